"""A simulated coalescer of one priority: `streams.loop` around `streams.coalesce`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.bench.simulator.lane import Lane
from tests.bench.simulator.machine import Ints
from tests.bench.simulator.policy import LaneView, Plan, Stage
from tests.bench.simulator.world import EXPIRED, World, nothing

Deliver = Callable[[int, int, Ints], None]  # model, priority, requests


class Coalescer(Lane):
    """Takes what clients produced to its partitions. `requests`: indices into the trace, in the order of time."""

    stage: Stage = "coalesce"

    def __init__(self, world: World, name: str, priority: int, requests: Ints, deliver: Deliver) -> None:
        super().__init__(world, name, priority)
        self._requests, self._at_s, self._deliver = requests, world.trace.at_s[requests], deliver
        self._sent = self._visible = self._taken = 0
        self._backlog = int(self._at_s.searchsorted(0.0, "right"))  # sent before the trace began, so at no cost
        self._objective_s = min(each.objective_s[priority] for each in world.models)
        self._produce_next()

    def _produce_next(self) -> None:
        """At the client's next tick that has requests: one produce request with all of them."""
        if self._sent < len(self._at_s):
            tick_s = self.world.machine.tick_s
            due_s = float(self._at_s[self._sent])
            due_s = math.ceil(due_s / tick_s - 1e-9) * tick_s if tick_s else due_s
            self.world.calendar.at(max(self.world.calendar.now_s, due_s), self._produce)

    def _produce(self) -> None:
        machine, due = self.world.machine, int(self._at_s.searchsorted(self.world.calendar.now_s + 1e-9, "right"))
        records = min(due - self._sent, machine.append_records_max)
        self._sent += records
        live = self._sent - max(self._sent - records, self._backlog)
        self.world.work("load", machine.load_record_s * max(0, live), nothing)
        self.world.serve(machine.append_s + machine.record_s * records, self._appended)

    def _appended(self) -> None:
        self._visible = self._sent
        self._produce_next()
        self.arrived()

    def lag(self) -> int:
        return self._visible - self._taken

    def full(self, plan: Plan) -> bool:
        return self.lag() >= (plan.records_max or self.world.machine.records_max)

    def view(self) -> LaneView:
        oldest_s = self.world.calendar.now_s - float(self._at_s[self._taken]) if self.lag() else 0.0
        return LaneView(
            stage=self.stage, lane=self.name, priority=self.priority, model=None, lag=self.lag(), batches=0,
            rows=self.lag(), oldest_s=oldest_s, rate=self.rate.value, last=self.last,
            objective_s=self._objective_s, ladder=(), reported=self.world.reports.seen,
        )  # fmt: skip

    def take(self, plan: Plan) -> tuple[Ints, int]:
        count = min(self.lag(), plan.records_max or self.world.machine.records_max)
        self._taken += count
        return self._requests[self._taken - count : self._taken], 0

    def function(self, requests: Ints, plan: Plan) -> None:
        machine = self.world.machine
        work_s = machine.coalesce_s + machine.coalesce_record_s * len(requests)
        self.world.work("coalesce", work_s, lambda: self._grouped(requests))

    def _grouped(self, requests: Ints) -> None:
        expired, requests = self.expired(requests)
        models = self.world.trace.model[requests]
        kinds: Sequence[int] = np.unique(models).tolist() if len(self.world.models) > 1 else [0] * bool(len(requests))
        groups = [(kind, requests[models == kind]) for kind in kinds]

        def visible() -> None:
            if len(expired):
                self.world.answer(expired, EXPIRED)
            for kind, members in groups:
                self._deliver(kind, self.priority, members)

        self.write(len(requests) + len(expired), visible)
