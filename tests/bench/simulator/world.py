"""What all lanes of a run share: time, cores, costs, the answers so far and what actors publish about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from schemas.errors import LraiError
from streams.topics import PRIORITIES
from tests.bench.simulator.calendar import Calendar, Call, Cores
from tests.bench.simulator.machine import Floats, Ints, Machine, Model, Spent, Trace
from tests.bench.simulator.policy import Policy, Reported

REPORT_S = 1.0  # between two publications of an actor
REPORT_LATE_S = 0.1  # until everybody has read one
RANDOM = 4096  # drawn at a time
OK, EXPIRED = 1, 2
LANES = len(PRIORITIES)
Done = Callable[[], None]


class Miscounted(LraiError):
    """A request was answered twice or never; the simulator is wrong."""


class BadSimulation(LraiError):
    """What is to be simulated cannot be."""


class World:
    """One run. `answered_s` float64[n] and `code` int8[n] fill up as answers reach the reader."""

    def __init__(self, trace: Trace, models: Sequence[Model], machine: Machine, policy: Policy, seed: int) -> None:
        self.trace, self.machine, self.policy = trace, machine, policy
        by_name = {each.name: each for each in models}
        if absent := [name for name in trace.models if name not in by_name]:
            raise BadSimulation(f"models = {sorted(by_name)}: the trace asks for {absent[0]}; add it")
        self.models = [by_name[name] for name in trace.models]
        self.host = Cores(machine.cores - machine.background_cores, machine.crowding)
        self.broker = self.host if machine.broker_cores is None else Cores(machine.broker_cores, machine.crowding)
        self.calendar = Calendar([self.host] if self.broker is self.host else [self.host, self.broker])
        self.spent = Spent()
        n = len(trace.at_s)
        self.answered_s, self.code = np.full(n, np.nan), np.zeros(n, np.int8)
        self.deadline_at_s: Floats | None = None
        if not np.isnan(trace.deadline_s).all():
            self.deadline_at_s = np.where(np.isnan(trace.deadline_s), np.inf, trace.at_s + trace.deadline_s)
        self.reports = Reports(self)
        self._rng = np.random.default_rng(seed)
        self._factors = self._draw()

    def work(self, role: str, work_s: float, done: Call) -> None:
        """On the cores of everybody."""
        self.spent.add(role, work_s)
        self.host.submit(self.calendar.now_s, work_s, done)

    def serve(self, work_s: float, done: Call) -> None:
        """In the broker."""
        self.spent.add("broker", work_s)
        self.broker.submit(self.calendar.now_s, work_s, done)

    def answer(self, requests: Ints, code: int) -> None:
        """At this moment. Raises Miscounted."""
        if self.code[requests].any():
            raise Miscounted(f"of {len(requests)} requests, some had an answer already")
        self.code[requests] = code
        self.answered_s[requests] = self.calendar.now_s

    def factor(self) -> float:
        """Log-normal with mean 1: what a transaction costs of what it costs on average."""
        if not self._factors:
            self._factors = self._draw()
        return self._factors.pop()

    def uniform(self, below: int) -> int:
        return int(self._rng.integers(below)) if below > 1 else 0

    def _draw(self) -> list[float]:
        sigma = self.machine.jitter
        drawn: list[float] = np.exp(self._rng.standard_normal(RANDOM) * sigma - sigma**2 / 2).tolist()
        return drawn


class Reports:
    """Latencies by model and priority as actors publish them once a second; `seen` is what lanes know of them."""

    def __init__(self, world: World) -> None:
        self.seen: dict[tuple[str, int], Reported] = {}
        self._world = world
        self._since: dict[tuple[int, int], list[Floats]] = {}
        self._due = False

    def add(self, model: int, priority: int, latency_s: Floats) -> None:
        """Of one window of an actor."""
        self._since.setdefault((model, priority), []).append(latency_s)
        if not self._due:
            self._due = True
            self._world.calendar.after(REPORT_S, self._publish)

    def _publish(self) -> None:
        self._due = False
        now_s, found = self._world.calendar.now_s, {}
        for (model, priority), parts in self._since.items():
            latency_s = np.concatenate(parts)
            p50, p95, p99 = np.quantile(latency_s, (0.5, 0.95, 0.99)).tolist()
            late = int((latency_s > self._world.models[model].objective_s[priority]).sum())
            name = self._world.models[model].name
            found[name, priority] = Reported(float(now_s), len(latency_s), p50, p95, p99, late)
        self._since.clear()
        self._world.calendar.after(REPORT_LATE_S, lambda: self._read(found))

    def _read(self, found: dict[tuple[str, int], Reported]) -> None:
        self.seen = {**self.seen, **found}


class Transactions:
    """Those of one lane: its two producers take turns, as in `streams.transaction`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._unmarked = 0

    def write(self, records: int, committed: Done, visible: Done) -> None:
        """`committed` when the lane may go on, `visible` when readers of committed records have the records."""
        world, machine = self._world, self._world.machine
        if self._unmarked >= 2:
            world.calendar.after(machine.put_off_s, lambda: self.write(records, committed, visible))
            return
        self._unmarked += 1
        world.spent.transactions += 1
        factor = world.factor()

        def marked() -> None:
            self._unmarked -= 1
            visible()

        def confirmed() -> None:
            world.serve(machine.marker_s * factor, marked)
            world.serve(machine.after_s * factor, nothing)
            committed()

        work_s = machine.transaction_s * factor + machine.record_s * records
        world.serve(work_s, lambda: world.calendar.after(machine.commit_latency_s * factor, confirmed))


def nothing() -> None:
    """For work that nobody waits for."""
