"""How many tallies a second the monitor takes: `python -m tests.bench.monitor`, with a Kafka of its own."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from infra.parts import parts
from streams.admin import Admin, all_topics
from streams.settings import Settings
from tests import nets
from tests.chaos.harness import Place, alone, until
from tests.produced_tallies import AT_MS, Tallies, histogram, kept, tally

TALLIES = 30_000
BATCH = 500
LIMIT_S = 300.0
WATCHED = """sensitive_features = ["sex"]
labels = ["no", "yes"]
favourable = "yes"
freeze_on = "never"
"""


def main(histograms: int) -> float:
    """Tallies a second of three groups and so many histograms, from when the monitor is ready until it has all."""
    with parts() as running, tempfile.TemporaryDirectory() as folder:
        place = Place(running.kafka, running.store, f"b{secrets.token_hex(3)}", Path(folder) / "s", Path(folder) / "m")
        nets.mlp(place.models / "net" / "1" / "model.onnx").with_name("model.toml").write_text(WATCHED)
        settings = Settings(kafka=place.kafka, prefix=place.prefix, state=place.state)
        Admin(settings).ensure_topics(all_topics(settings, [("net", "1")]))
        tallies, rng = Tallies(place.kafka, place.prefix), np.random.default_rng(0)
        for start in range(0, TALLIES, BATCH):
            tallies.transaction([_tally(rng, AT_MS + start, histograms) for _ in range(BATCH)])
        with alone(place, "monitor") as monitor:
            monitor.ready()
            began = time.monotonic()
            until(lambda: _requests(place) == TALLIES * 100, LIMIT_S, monitor.tail)
            return TALLIES / (time.monotonic() - began)


def _tally(rng: np.random.Generator, at: int, histograms: int) -> dict[str, object]:
    groups = {"sex": {"F": (40, int(rng.integers(40))), "M": (50, int(rng.integers(50))), None: (10, 4)}}
    counts = rng.multinomial(100, [1 / 22] * 22).tolist()
    features = [histogram(counts, f"x[{number}]") for number in range(histograms)]
    return tally(groups, "decisions", "net", "1", at, histograms=features)


def _requests(place: Place) -> int:
    found = kept(place.kafka, place.prefix)
    return found["net/1"].requests if found else 0


if __name__ == "__main__":
    for number in map(int, sys.argv[1:] or ("0", "30")):
        print(f"{number} histograms a tally: {main(number):.0f} tallies/s", flush=True)
