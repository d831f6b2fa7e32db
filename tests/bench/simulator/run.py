"""`simulate`: a trace through the pipeline under a policy, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from streams.topics import PRIORITIES
from tests.bench.simulator.acting import Actors
from tests.bench.simulator.coalescing import Coalescer
from tests.bench.simulator.machine import Floats, Ints, Machine, Model, Spent, Trace
from tests.bench.simulator.policy import Policy
from tests.bench.simulator.world import EXPIRED, OK, BadSimulation, Miscounted, World


@dataclass(frozen=True)
class Result:
    """What a run gave. `latency_s` float64[n], from arrival to reader; `code` int8[n]: OK or EXPIRED."""

    trace: Trace
    latency_s: Floats
    code: NDArray[np.int8]
    objective_s: Floats
    span_s: float
    """of the arrivals"""
    ended_s: float
    spent: Spent
    events: int
    broker_s: float
    """seconds of a core that the brokers took, with what crowding added"""

    @cached_property
    def in_time(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self.code == OK) & (self.latency_s <= self.objective_s)
        return found

    @property
    def goodput(self) -> float:
        """Answers within their objective, a second of the trace."""
        return float(self.in_time.sum()) / self.span_s

    @property
    def throughput(self) -> float:
        """Answers a second until the last one."""
        return len(self.code) / self.ended_s

    @property
    def late(self) -> int:
        """Answered, but not within the objective."""
        return int((self.code == OK).sum() - self.in_time.sum())

    @property
    def expired(self) -> int:
        return int((self.code == EXPIRED).sum())

    def quantiles_s(self, priority: str | None = None, model: str | None = None, skip_s: float = 0.0) -> Floats:
        """float64[3]: p50, p95 and p99 of answered requests; NaN without any. `skip_s` of the beginning are not
        counted."""
        chosen = (self.code == OK) & (self.trace.at_s >= skip_s)
        if priority:
            chosen &= self.trace.priority == PRIORITIES.index(priority)
        if model:
            chosen &= self.trace.model == self.trace.models.index(model)
        if not chosen.any():
            return np.full(3, np.nan)
        return np.asarray(np.quantile(self.latency_s[chosen], (0.5, 0.95, 0.99)))


def simulate(trace: Trace, models: Sequence[Model], machine: Machine, policy: Policy, seed: int = 0) -> Result:
    """Until the last request is answered. Raises BadSimulation, Miscounted."""
    _check(trace, machine)
    world = World(trace, models, machine, policy, seed)
    actors = [Actors(world, number) for number in range(len(world.models))]

    def deliver(model: int, priority: int, requests: Ints) -> None:
        actors[model].deliver(priority, requests)

    for priority, name in enumerate(PRIORITIES):
        for instance, requests in enumerate(_shares(trace, priority, machine)):
            if len(requests):
                Coalescer(world, f"coalesce-{name}-{instance}", priority, requests, deliver)
    world.calendar.run()
    if missing := int((world.code == 0).sum()):
        raise Miscounted(f"{missing} of {len(world.code)} requests were never answered")
    objectives = np.array([each.objective_s for each in world.models])
    return Result(
        trace=trace, latency_s=world.answered_s - trace.at_s, code=world.code,
        objective_s=objectives[trace.model, trace.priority], span_s=max(float(trace.at_s[-1]), machine.tick_s, 1e-9),
        ended_s=float(world.answered_s.max()), spent=world.spent, events=world.calendar.events,
        broker_s=world.spent.cpu_s["broker"] * world.broker.busy_s / max(world.broker.work_s, 1e-9),
    )  # fmt: skip


def _shares(trace: Trace, priority: int, machine: Machine) -> list[Ints]:
    """The requests of each coalescer of a priority: a client's tick goes to one partition, a partition to one."""
    requests = np.flatnonzero(trace.priority == priority)
    owners = min(machine.coalescers, machine.partitions)
    if owners == 1:
        return [requests]
    ticks = (trace.at_s[requests] / (machine.tick_s or 1e-3)).astype(np.int64)
    return [requests[ticks % machine.partitions % owners == each] for each in range(owners)]


def _check(trace: Trace, machine: Machine) -> None:
    if not len(trace.at_s):
        raise BadSimulation("the trace has no requests; give one with some")
    if (np.diff(trace.at_s) < 0).any() or trace.at_s[0] < 0:
        raise BadSimulation("at_s of the trace falls; sort the requests by their time, from 0 on")
    if machine.cores <= machine.background_cores:
        raise BadSimulation(f"cores = {machine.cores}: give more than background_cores = {machine.background_cores}")
