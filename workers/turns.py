"""Who runs next: the lanes of an actor share its cores, the highest waiting priority first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

PASSED_MAX = 8
BEAT_S = 0.5


class Turns:
    """`runs` at once for a few lanes; lane 0 is the highest. A lane that was passed over PASSED_MAX times goes next."""

    def __init__(self, lanes: int, runs: int = 1) -> None:
        self._condition = Condition()
        self._waiting = [0] * lanes
        self._passed = [0] * lanes
        self._free = runs

    @contextmanager
    def turn(self, lane: int, beat: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Waits for the kernel, with a sign of life now and then: it is the lane that runs which may hang."""
        with self._condition:
            self._waiting[lane] += 1
            while not self._free or self._next() != lane:
                self._condition.wait(BEAT_S)
                beat()
            self._waiting[lane] -= 1
            self._free -= 1
            self._passed[lane] = 0
            for other, waiting in enumerate(self._waiting):
                if waiting:
                    self._passed[other] += 1
        try:
            yield
        finally:
            with self._condition:
                self._free += 1
                self._condition.notify_all()

    def _next(self) -> int:
        """The lane whose turn it is, among those that wait."""
        waiting = [lane for lane, count in enumerate(self._waiting) if count]
        starved = [lane for lane in waiting if self._passed[lane] >= PASSED_MAX]
        return max(starved, key=lambda lane: self._passed[lane]) if starved else min(waiting)
