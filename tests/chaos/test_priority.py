"""A bulk backlog and interactive requests: these keep their latency, bulk goes on."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from audit.verify import verify
from tests.bench.load import mlp_requests
from tests.chaos.checks import quantiles, stored
from tests.chaos.harness import Client, Load, Place, Reader, Show, request, until, up

ROWS = int(os.environ.get("LRAI_CHAOS_BACKLOG", "100000"))
RATE = 200
ALONE = 3 * RATE
# of the time that the backlog takes: behind it they would wait for half of it at the median, whatever the machine.
# The figures of `make bench` are the measured ones
SHARE_P95_MAX = 1 / 3


class Interactive(Load):
    """Interactive requests only."""

    def _one(self, number: int) -> None:
        self.send("interactive", f"i{number}", request(f"i{number}", "steady"))


def waited(load: Load, reader: Reader, since: float, until_: float) -> list[float]:
    return [
        each.at - load.sent[each.source][1]
        for each in reader.of(since=since)
        if each.source in load.sent and load.sent[each.source][1] < until_
    ]


def test_a_bulk_backlog_leaves_interactive_alone(make_place: Callable[..., Place], show: Show) -> None:
    place = make_place("steady")
    bulk = Client(place)
    with up(place, log_level="info") as running, Reader(place, ["interactive"]) as reader:
        with Interactive(place, RATE, ()) as load:
            until(lambda: len(reader.sources) > ALONE, 60, running.tail)
            began = time.time()
            for value in itertools.chain.from_iterable(mlp_requests("steady", "features", (1, 30)).chunks(ROWS)):
                bulk.send("bulk", value[14:26].decode(errors="replace"), value)
            bulk.flush()
            until(lambda: stored(place) >= ROWS + len(load.sent) - RATE, max(120, ROWS / 1000), running.tail)
            ended = time.time()
        load.flush()
        until(lambda: stored(place) >= ROWS + len(load.sent), 60, running.tail)
        assert running.stop() == 0, running.tail()
    alone, beside = waited(load, reader, 0.0, began), waited(load, reader, began, ended)
    show(f"interactive at {RATE}/s alone: {quantiles(alone)}")
    show(f"beside {ROWS} rows of bulk, done in {ended - began:.1f} s: {quantiles(beside)}")
    report = verify(place.store, datetime.now(UTC), 0.0)
    assert report.ok and report.decisions == ROWS + len(load.sent), report
    assert np.percentile(beside, 95) < SHARE_P95_MAX * (ended - began)
