"""The monitor is killed, its tallies are aborted: it counts each committed one once, and freezes in time."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests import nets
from tests.chaos.harness import LONG, Place, Running, Show, alone, over, until
from tests.produced_tallies import Tallies, kept, sums

KILLS = 50 if LONG else 10
BACK_S_MAX = 10.0
MODELS = ("steady", "other")
WATCHED = """sensitive_features = ["sex"]
labels = ["no", "yes"]
favourable = "yes"
freeze_on = "never"
"""


def watched(models: Path, name: str, text: str = WATCHED) -> None:
    """A model with an owner who says what is watched."""
    path = nets.mlp(models / name / "1" / "model.onnx")
    path.with_name("model.toml").write_text(text)


class Stream:
    """Transactions of tallies, a third of them aborted, on a thread while it is entered."""

    def __init__(self, place: Place) -> None:
        self.tallies = Tallies(place.kafka, place.prefix)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            records = self.tallies.some(MODELS, self.tallies.rng.randint(1, 5), time.time_ns() // 1_000_000)
            self.tallies.transaction(records, abort=self.tallies.rng.random() < 1 / 3)

    def __enter__(self) -> Tallies:
        self._thread.start()
        return self.tallies

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the stream did not end"


def kill(running: Running) -> None:
    """The monitor itself, wherever it is in its work."""
    for pid in running.children().values():
        os.kill(pid, signal.SIGKILL)


def test_kills_lose_and_double_nothing(make_place: Callable[..., Place], show: Show) -> None:
    place, rng, back = make_place(), random.Random(1), list[float]()
    for name in MODELS:
        watched(place.models, name)
    with alone(place, "monitor", partitions=2) as running:
        running.ready()
        with Stream(place) as tallies:
            for number in range(KILLS):
                if number % 3:  # else while it starts
                    until(lambda: len(running.named("ready")) > len(back), 40, running.tail)
                until(over(rng.uniform(0, 1.0)), 5, "a moment")
                killed, count = time.monotonic(), len(running.named("ready"))
                kill(running)
                if number % 3:
                    until(lambda c=count: len(running.named("ready")) > c, 40, running.tail)
                    back.append(time.monotonic() - killed)
        until(lambda: sums(kept(place.kafka, place.prefix)) == tallies.counted, 30, lambda: differs(place, tallies))
        assert running.stop() == 0, running.tail()
    show(f"{KILLS} kills: {tallies.committed} tallies counted once, {tallies.aborted} aborted ones not; "
         f"ready again after {max(back):.1f} s at most")  # fmt: skip


def differs(place: Place, tallies: Tallies) -> str:
    found = sums(kept(place.kafka, place.prefix))
    return f"counted {found - tallies.counted} too much, {tallies.counted - found} too little"
