"""Whose kernel runs next, by the rule of `workers.turns`, without threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from workers.turns import Turns


class SimulatedTurns(Turns):
    """The same choice; instead of a thread that waits there is a call."""

    def __init__(self, lanes: int, runs: int = 1) -> None:
        super().__init__(lanes, runs)
        self._calls: list[deque[Callable[[], None]]] = [deque() for _ in range(lanes)]

    def ask(self, lane: int, go: Callable[[], None]) -> None:
        """`go` is called when it is the lane's turn, perhaps at once; it ends with `release`."""
        self._waiting[lane] += 1
        self._calls[lane].append(go)
        self._serve()

    def release(self) -> None:
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        while self._free and any(self._waiting):
            lane = self._next()
            self._waiting[lane] -= 1
            self._free -= 1
            self._passed[lane] = 0
            for other, waiting in enumerate(self._waiting):
                self._passed[other] += bool(waiting)
            self._calls[lane].popleft()()
