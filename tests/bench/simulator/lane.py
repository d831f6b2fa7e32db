"""One consumer, one window at a time: the loop that coalescers and actors share, as in `streams.loop`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from tests.bench.simulator.machine import Ints
from tests.bench.simulator.policy import LaneView, Observed, Plan, Stage
from tests.bench.simulator.world import Done, Transactions, World

RATE_S = 1.0  # over which the rate is smoothed


class Rate:
    """Requests a second, forgotten with the time constant RATE_S.

    >>> rate = Rate()
    >>> for second in range(1, 9): rate.add(100, float(second))
    >>> round(rate.value)
    100
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._at_s = 0.0
        self._since = 0

    def add(self, count: int, now_s: float) -> None:
        self._since += count
        if now_s <= self._at_s:
            return
        span_s = now_s - self._at_s
        kept = math.exp(-span_s / RATE_S) if self._at_s else 0.0
        self.value = kept * self.value + (1 - kept) * self._since / span_s
        self._at_s, self._since = now_s, 0


class Lane(ABC):
    """Waits for records, plans a window, takes it, works, writes, and tells the policy."""

    stage: Stage

    def __init__(self, world: World, name: str, priority: int) -> None:
        self.world, self.name, self.priority = world, name, priority
        self.rate = Rate()
        self.last: Observed | None = None
        self._transactions = Transactions(world)
        self._busy = self._open = False
        self._plan = Plan()
        self._opened_s = self._closed_s = self._worked_s = 0.0
        self._taken_now: Ints = np.zeros(0, np.int64)
        self._batches = self._windows = 0

    @abstractmethod
    def lag(self) -> int:
        """Records that wait."""

    @abstractmethod
    def full(self, plan: Plan) -> bool:
        """Whether the window need not stay open."""

    @abstractmethod
    def view(self) -> LaneView: ...

    @abstractmethod
    def take(self, plan: Plan) -> tuple[Ints, int]:
        """The requests of the window and the batch records that held them."""

    @abstractmethod
    def function(self, requests: Ints, plan: Plan) -> None:
        """The work; ends with `write`."""

    def arrived(self) -> None:
        """Records became visible."""
        if not self._busy:
            self._begin()
        elif self._open and self.full(self._plan):
            self._close()

    def _begin(self) -> None:
        self._busy = True
        now_s = self.world.calendar.now_s
        self._plan = self.world.policy.plan(self.view(), now_s)
        self._opened_s, self._open = now_s, True
        self._windows += 1
        if self._plan.window_s <= 0 or self.full(self._plan):
            self._close()
        else:
            number = self._windows
            self.world.calendar.after(self._plan.window_s, lambda: self._timed_out(number))

    def _timed_out(self, number: int) -> None:
        if self._open and number == self._windows:
            self._close()

    def _close(self) -> None:
        self._open = False
        self._closed_s = self.world.calendar.now_s
        self._taken_now, self._batches = self.take(self._plan)
        self.rate.add(len(self._taken_now), self._closed_s)
        self.world.spent.windows += 1
        self.function(self._taken_now, self._plan)

    def write(self, records: int, visible: Done) -> None:
        """One transaction; then the next window."""
        self._worked_s = self.world.calendar.now_s
        self._transactions.write(records, self._committed, visible)

    def expired(self, requests: Ints) -> tuple[Ints, Ints]:
        """Those whose deadline is over, and the others."""
        if self.world.deadline_at_s is None:
            return requests[:0], requests
        over = self.world.deadline_at_s[requests] < self.world.calendar.now_s
        return requests[over], requests[~over]

    def _committed(self) -> None:
        now_s, taken = self.world.calendar.now_s, self._taken_now
        self.last = Observed(
            at_s=now_s, plan=self._plan, records=len(taken), rows=int(self.world.trace.rows[taken].sum()),
            batches=self._batches, open_s=self._closed_s - self._opened_s, function_s=self._worked_s - self._closed_s,
            write_s=now_s - self._worked_s, age_s=now_s - self.world.trace.at_s[taken],
        )  # fmt: skip
        self.world.spent.busy.setdefault(self.stage, []).append((self._closed_s, now_s, len(taken)))
        self.world.policy.observe(self.view(), self.last)
        if self._plan.pause_s > 0:
            self.world.calendar.after(self._plan.pause_s, self._again)
        else:
            self._again()

    def _again(self) -> None:
        self._busy = False
        if self.lag():
            self._begin()
