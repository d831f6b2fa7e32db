"""What one model does, or what is done to it, leaves the others alone."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator

from confluent_kafka import Consumer, TopicPartition

from streams import topics
from tests.chaos import models
from tests.chaos.checks import drained, exactly_once, quantiles
from tests.chaos.harness import Client, Load, Place, Reader, Running, Show, request, until, up

HELD_UP_S_MAX = 2.0  # 1 s is asked for, and the figure is printed; this is the bound for busy cores
UNTOUCHED_S_MAX = 1.0
HANG_S = 3
TRIES_MAX = 300
CAUGHT_S = 0.5  # of other processes a transaction is open for some milliseconds only; well below HANG_S


def latencies(load: Client, reader: Reader, model: str, since: float = 0.0) -> list[float]:
    return [each.at - load.sent[each.source][1] for each in reader.of(model, since) if each.source in load.sent]


class Ends:
    """Where the decisions end for those who read everything, and for those who read what is committed."""

    def __init__(self, place: Place) -> None:
        plain = {"bootstrap.servers": place.kafka, "group.id": "ends", "log_level": 2}
        levels = ("read_uncommitted", "read_committed")
        self.consumers = [Consumer({**plain, "isolation.level": level}) for level in levels]
        self.partitions = [TopicPartition(topics.decisions(place.prefix), p) for p in range(2)]

    def open(self) -> bool:
        """Whether an open transaction hides records."""
        whole, committed = (
            [each.get_watermark_offsets(p, 5)[1] for p in self.partitions] for each in reversed(self.consumers)
        )
        return whole != committed

    def close(self) -> None:
        for each in self.consumers:
            each.close()


def over_s(seconds: float) -> Iterator[int]:
    """Counts for so long, and to 5 at least."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda number: number < 5 or time.monotonic() < end, itertools.count())


def stop_inside_transaction(place: Place, running: Running, name: str) -> int:
    """SIGSTOPs the process until it is caught with records written and not committed."""
    ends, pid = Ends(place), running.children()[name]
    try:
        for _ in range(TRIES_MAX):
            os.kill(pid, signal.SIGSTOP)
            if all(ends.open() for _ in over_s(CAUGHT_S)):
                return pid
            os.kill(pid, signal.SIGCONT)
    finally:
        ends.close()
    raise AssertionError(f"{name} was not caught inside a transaction in {TRIES_MAX} tries")


def test_a_process_stopped_inside_its_transaction(make_place: Callable[..., Place], show: Show) -> None:
    place = make_place("steady", "other")
    with up(place, hang_s=HANG_S) as running, Reader(place) as reader:
        with Load(place, 200, (("steady", None), ("other", None), ("steady", None))) as load:
            until(lambda: len(reader.sources) > 200, 30, running.tail)
            name = next(each for each in running.children() if "work-steady" in each)
            pid = stop_inside_transaction(place, running, name)
            stopped = time.time()
            hung = until(lambda: [e for e in running.named("hung") if e["pid"] == pid], HANG_S + 10, running.tail)[0]
            before = [s for s, (_, at) in list(load.sent.items()) if at < hung["at"]]
            until(lambda: reader.of("steady", hung["at"]), 20, running.tail)
        drained(place, load, reader)
        assert running.stop() == 0, running.tail()
    exactly_once(place, load)
    asked = set(before)
    late = [each.at - hung["at"] for each in reader.of("other") if each.source in asked and each.at > hung["at"]]
    held = f"{max(late):.2f} s" if late else "not"
    show(f"stopped in its transaction for {hung['at'] - stopped:.1f} s; after the kill others were held up {held}")
    assert not late or max(late) <= HELD_UP_S_MAX
    assert len(running.named("hung")) == 1


def test_a_model_that_keeps_crashing(make_place: Callable[..., Place], show: Show) -> None:
    place = make_place("steady", "crashing")
    with up(place) as running, Reader(place) as reader:
        assert running.named("stand_in", child="work-crashing")
        ready = time.time()
        with Load(place, 60, (("steady", None), ("crashing", 1))) as load:
            again = until(lambda: running.named("stand_in")[1:], 40, "the model is tried again")
            count = len(reader.of("crashing"))
            until(lambda: len(reader.of("crashing")) > count + 20, 30, running.tail)
        drained(place, load, reader)
        assert running.stop() == 0, running.tail()
    answers = exactly_once(place, load)
    assert again
    assert {(each.status, each.code) for each in answers if each.model == "crashing"} == {
        ("FAILED", "model_unavailable")
    }
    assert {each.status for each in answers if each.model == "steady"} == {"OK"}
    waited = latencies(load, reader, "steady", ready)
    show(f"beside a model that keeps crashing: {quantiles(waited)}")
    assert sorted(waited)[int(len(waited) * 0.95)] < UNTOUCHED_S_MAX
    assert not running.died("work-steady")


def poisoned(
    show: Show, place: Place, model: str, harmless: int, poison: dict[int, int], count: int, hang_s: float
) -> Running:
    """Sends one batch with a poison in it beside a steady load; checks who was answered how."""
    with up(place, hang_s=hang_s) as running, Reader(place) as reader:
        with Load(place, 60, (("steady", None),)) as load:
            until(lambda: len(reader.sources) > 60, 30, running.tail)
            began = time.time()
            for number in range(count):
                value = poison.get(number, harmless)
                load.send("bulk", f"p{number}", request(f"p{number}", model, value))
            until(lambda: len(reader.of(model)) == count, 60, running.tail)
            show(f"{model}: {count} requests, {len(poison)} poisoned, answered after {time.time() - began:.1f} s")
        drained(place, load, reader)
        assert running.stop() == 0, running.tail()
    answers = [each for each in exactly_once(place, load) if each.model == model]
    failed = {each.request_id: (each.status, each.code) for each in answers if each.status != "OK"}
    assert failed == {f"p{number}": ("FAILED", "kernel_failed") for number in poison}
    waited = latencies(load, reader, "steady", began)
    show(f"steady beside it: {quantiles(waited)}")
    assert sorted(waited)[int(len(waited) * 0.95)] < UNTOUCHED_S_MAX
    assert not running.died("work-steady")
    return running


def test_a_request_that_kills_its_process(make_place: Callable[..., Place], show: Show) -> None:
    poison = {17: models.KILLS, 203: models.FAILS}
    running = poisoned(show, make_place("steady", "killer"), "killer", 5, poison, 400, 15)
    died = running.named("died", child="work-killer")
    assert 2 <= len(died) <= 4, died
    assert {event["exit_code"] for event in died} == {-signal.SIGFPE}
    assert not running.named("stand_in")


def test_a_request_that_never_ends(make_place: Callable[..., Place], show: Show) -> None:
    running = poisoned(show, make_place("steady", "hanging"), "hanging", 1, {2: models.HANGS}, 6, HANG_S)
    assert len(running.named("hung", child="work-hanging")) == 2, running.died()
