"""Simulated time: what happens when, and cores that are shared by all who work at a moment."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

Call = Callable[[], None]


class Cores:
    """Processor sharing: each of n single-threaded jobs gets min(1, cores / n) of a core.

    `crowding`: by how much all work grows, for caches and switches, when there are many more jobs than cores.
    Every job advances equally, so one virtual clock serves all: a job that comes at virtual time v with w seconds of
    work ends at v + w, and a heap of these ends says who is next (Kleinrock, Queueing Systems II, 4.4).
    """

    __slots__ = ("_jobs", "_order", "_since_s", "_virtual_s", "busy_s", "count", "crowding", "work_s")

    def __init__(self, count: float, crowding: float = 0.0) -> None:
        self.count, self.crowding = count, crowding
        self.work_s = self.busy_s = 0.0  # what was asked for, and what it took of the cores
        self._virtual_s = self._since_s = 0.0
        self._jobs: list[tuple[float, int, Call]] = []
        self._order = 0

    def submit(self, now_s: float, work_s: float, done: Call) -> None:
        """`done` is called when the job has had `work_s` seconds of a core."""
        self._advance(now_s)
        self._order += 1
        self.work_s += work_s
        heapq.heappush(self._jobs, (self._virtual_s + work_s, self._order, done))

    def next_s(self) -> float:
        """When the next job ends, as long as no other comes; infinity when there is none."""
        if not self._jobs:
            return float("inf")
        return self._since_s + max(0.0, self._jobs[0][0] - self._virtual_s) * self._slowness()

    def pop(self, now_s: float) -> Call:
        """Ends the next job, at the time that `next_s` said."""
        self._advance(now_s)
        return heapq.heappop(self._jobs)[2]

    def _advance(self, now_s: float) -> None:
        if self._jobs:
            self._virtual_s += (now_s - self._since_s) / self._slowness()
            self.busy_s += (now_s - self._since_s) * min(self.count, len(self._jobs))
        self._since_s = now_s

    def _slowness(self) -> float:
        share = len(self._jobs) / self.count
        return share + self.crowding * (share - 1) if share > 1 else 1.0


class Calendar:
    """Calls what is due, in the order of time; what is due at one moment in the order in which it was asked for."""

    def __init__(self, pools: Sequence[Cores]) -> None:
        self.now_s = 0.0
        self.events = 0
        self._pools = pools
        self._timers: list[tuple[float, int, Call]] = []
        self._order = 0

    def at(self, at_s: float, call: Call) -> None:
        self._order += 1
        heapq.heappush(self._timers, (at_s, self._order, call))

    def after(self, delay_s: float, call: Call) -> None:
        self.at(self.now_s + delay_s, call)

    def run(self, until_s: float = float("inf")) -> None:
        """Until nothing is left to do, or nothing before `until_s`."""
        timers, pools = self._timers, self._pools
        while True:
            at_s, pool = (timers[0][0] if timers else float("inf")), None
            for each in pools:
                if (ends_s := each.next_s()) < at_s:
                    at_s, pool = ends_s, each
            if at_s > until_s or at_s == float("inf"):
                return
            self.now_s = at_s
            self.events += 1
            (pool.pop(at_s) if pool else heapq.heappop(timers)[2])()
