"""A simulated actor: a lane a priority that share the kernel; `workers.actor` without numbers."""

from __future__ import annotations

from collections import deque
from functools import partial

import numpy as np

from tests.bench.simulator.lane import Lane
from tests.bench.simulator.machine import Ints, Model, Profile
from tests.bench.simulator.policy import LaneView, Plan, Stage
from tests.bench.simulator.turns import SimulatedTurns
from tests.bench.simulator.world import EXPIRED, LANES, OK, Done, World


class ActorLane(Lane):
    """One priority of an actor. `lowest`: where deferred requests go, None in the lowest lane itself."""

    stage: Stage = "work"

    def __init__(self, world: World, name: str, model: int, priority: int, turns: SimulatedTurns) -> None:
        super().__init__(world, name, priority)
        self.lowest: ActorLane | None = None
        self._number, self._model = model, world.models[model]
        self._turns = turns
        self._queue: deque[Ints] = deque()
        self._waiting = self._rows = 0

    def deliver(self, requests: Ints) -> None:
        """Batch records of one window of a coalescer, by the rows that one may have."""
        rows = np.cumsum(self.world.trace.rows[requests])
        most = self.world.machine.batch_rows_max
        if rows[-1] <= most:
            self._queue.append(requests)
        else:
            self._queue.extend(np.split(requests, np.flatnonzero(np.diff((rows - 1) // most)) + 1))
        self._waiting += len(requests)
        self._rows += int(rows[-1])
        self.arrived()

    def lag(self) -> int:
        return self._waiting

    def full(self, plan: Plan) -> bool:
        return len(self._queue) >= (plan.records_max or self.world.machine.batches_max)

    def view(self) -> LaneView:
        trace, now_s = self.world.trace, self.world.calendar.now_s
        oldest_s = now_s - float(trace.at_s[self._queue[0][0]]) if self._queue else 0.0
        return LaneView(
            stage=self.stage, lane=self.name, priority=self.priority, model=self._model.name, lag=self._waiting,
            batches=len(self._queue), rows=self._rows, oldest_s=oldest_s, rate=self.rate.value, last=self.last,
            objective_s=self._model.objective_s[self.priority], ladder=self._model.ladder,
            reported=self.world.reports.seen,
        )  # fmt: skip

    def take(self, plan: Plan) -> tuple[Ints, int]:
        count = min(len(self._queue), plan.records_max or self.world.machine.batches_max)
        taken = [self._queue.popleft() for _ in range(count)]
        requests = taken[0] if count == 1 else np.concatenate(taken)
        self._waiting -= len(requests)
        self._rows -= int(self.world.trace.rows[requests].sum())
        return requests, count

    def function(self, requests: Ints, plan: Plan) -> None:
        machine = self.world.machine
        work_s = machine.actor_s + machine.actor_record_s * len(requests)
        self.world.work("actor", work_s, lambda: self._decoded(requests, plan))

    def _decoded(self, requests: Ints, plan: Plan) -> None:
        expired, requests = self.expired(requests)
        deferred = requests[:0]
        if plan.shed or (plan.defer and self.lowest):
            age_s = self.world.calendar.now_s - self.world.trace.at_s[requests]
            late = age_s > (self._model.objective_s[self.priority] if plan.late_s is None else plan.late_s)
            if plan.shed:
                expired, requests = np.concatenate([expired, requests[late]]), requests[~late]
            else:
                deferred, requests = requests[late], requests[~late]
        self._run(requests, plan, lambda: self._ran(requests, expired, deferred))

    def _run(self, requests: Ints, plan: Plan, done: Done) -> None:
        """In pieces, each at its turn."""
        profile = self._model.ladder[plan.variant]
        most = plan.rows_max or profile.best_rows
        self._pieces(int(self.world.trace.rows[requests].sum()), most, profile, done)

    def _pieces(self, rows: int, most: int, profile: Profile, done: Done) -> None:
        if rows <= 0:
            done()
            return
        seconds = profile.run_s(min(rows, most))

        def ended() -> None:
            # a thread that leaves its turn asks for the next one before another has woken up
            self._pieces(rows - most, most, profile, done)
            self._turns.release()

        def go() -> None:
            if profile.gpu:
                self.world.spent.add("gpu", seconds)
                self.world.calendar.after(seconds, ended)
            else:
                self.world.work("kernel", seconds, ended)

        self._turns.ask(self.priority, go)

    def _ran(self, requests: Ints, expired: Ints, deferred: Ints) -> None:
        world, now_s = self.world, self.world.calendar.now_s
        if len(requests):
            world.reports.add(self._number, self.priority, now_s - world.trace.at_s[requests])
        world.spent.deferred += len(deferred)
        answers = ((requests, OK), (expired, EXPIRED))

        def visible() -> None:
            for each, code in answers:
                if len(each):
                    world.work("reader", world.machine.reader_record_s * len(each), partial(world.answer, each, code))
            if len(deferred) and self.lowest:
                self.lowest.deliver(deferred)

        self.write(len(requests) + len(expired) + len(deferred), visible)


class Actors:
    """The processes of one model. Each owns some partitions of each of its batch topics."""

    def __init__(self, world: World, number: int) -> None:
        model: Model = world.models[number]
        self._world = world
        self._owners = min(model.actors, world.machine.partitions)
        self._lanes: list[list[ActorLane]] = []
        for actor in range(self._owners):
            turns = SimulatedTurns(LANES, world.machine.runs)
            lanes = [ActorLane(world, f"{model.name}-{actor}-{lane}", number, lane, turns) for lane in range(LANES)]
            for each in lanes[:-1]:
                each.lowest = lanes[-1]
            self._lanes.append(lanes)

    def deliver(self, priority: int, requests: Ints) -> None:
        """To a partition by chance, as the sticky partitioner does with what is produced in a moment."""
        partition = self._world.uniform(self._world.machine.partitions)
        self._lanes[partition % self._owners][priority].deliver(requests)
