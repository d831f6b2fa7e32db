"""LRAI's own scheduler in the simulator: the classes that steer the real lanes, on simulated clocks."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streams.limits import LaneLimits, Seen
from streams.steering import Adaptive, Clocks, Learner, Report, Reports
from streams.topics import PRIORITIES
from tests.bench.simulator.policy import LaneView, Observed, Plan, Static
from workers.reporting import EVERY_MS
from workers.variants import Load, LoadPolicy

HEARD_S = 0.3  # from an actor's commit until coalescers have read its report


class Heard(Reports):
    """Reports in memory."""

    def __init__(self) -> None:
        self.newest: dict[str, Report] = {}
        self.fresh: list[Report] = []
        self.learned: dict[str, Any] = {}
        self.plans: dict[str, dict[str, Any]] = {}
        self.under_way: list[tuple[float, Report]] = []

    def look(self, now_s: float) -> None:
        """Takes what has arrived by then."""
        arrived = [each for each in self.under_way if each[0] <= now_s]
        self.under_way = [each for each in self.under_way if each[0] > now_s]
        for _, report in arrived:
            self.newest[report.worker] = report
            self.fresh.append(report)


@dataclass
class Coalescing:
    """A coalescer's lane, and the beginnings of its epochs."""

    steering: Adaptive
    heard: Heard
    began_s: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    worked_s: float = 0.0

    def note(self, now_s: float) -> None:
        if not self.epochs or self.epochs[-1] != self.steering.plan_id:
            self.epochs.append(self.steering.plan_id)
            self.began_s.append(now_s)


@dataclass
class Acting:
    """An actor's lane: what it has to report, and its variant."""

    variants: LoadPolicy
    told_s: float = 0.0
    taken: list[tuple[float, np.ndarray[Any, Any]]] = field(default_factory=list)


class Scheduled:
    """Policy `adaptive`. `learner`: what decides in each lane, for trials with poisoned ones; `static`: what the guard
    falls back to."""

    def __init__(self, learner: type[Learner] | None = None, static: Static | None = None) -> None:
        self.learner, self.static = learner, static or Static()
        self.coalescing: dict[str, Coalescing] = {}
        self.acting: dict[str, Acting] = {}
        self.now_s = 0.0

    def plan(self, view: LaneView, now_s: float) -> Plan:
        """As the process of that lane would."""
        self.now_s = now_s
        if view.stage == "work":
            lane = self.acting.setdefault(
                view.lane, Acting(LoadPolicy([each.row_s for each in view.ladder], view.objective_s))
            )
            load = Load(now_s, view.oldest_s, view.rows, view.batches >= 16)
            return Plan(variant=lane.variants.choose(load))
        if view.lane not in self.coalescing:
            self.coalescing[view.lane] = self._coalescing(view)
        own = self.coalescing[view.lane]
        limits = own.steering.limits()
        own.note(now_s)
        return Plan(window_s=limits.window_s, pause_s=limits.rest_s)

    def observe(self, view: LaneView, observed: Observed) -> None:
        """What a lane sees of its window; actors report to the coalescers."""
        self.now_s = observed.at_s
        if view.stage == "coalesce":
            own = self.coalescing[view.lane]
            own.worked_s += observed.function_s
            began_s = observed.at_s - observed.function_s - observed.write_s
            age_s = float(observed.age_s.max(initial=0.0)) - observed.function_s - observed.write_s
            own.steering.ended(Seen(began_s, observed.records, age_s, observed.function_s, observed.write_s, view.lag))
            return
        lane = self.acting[view.lane]
        lane.taken.append((observed.at_s, observed.age_s))
        if observed.at_s - lane.told_s >= EVERY_MS / 1000:
            lane.told_s = observed.at_s
            self._report(view, lane)

    def _coalescing(self, view: LaneView) -> Coalescing:
        heard = Heard()
        static = LaneLimits(self.static.windows_s[view.priority], self.static.records_max or 4000, 1 << 24)
        clocks = Clocks(lambda: self.now_s, lambda: self.now_s, lambda: self.coalescing[view.lane].worked_s)
        learner = self.learner(static.window_s) if self.learner else None  # type: ignore[call-arg]
        priority = PRIORITIES[view.priority]
        objectives = {("all", "1"): view.objective_s}
        steering = Adaptive(view.lane, view.lane, priority, static, objectives, heard, "t", learner, clocks, seed=1)
        return Coalescing(steering, heard)

    def _report(self, view: LaneView, lane: Acting) -> None:
        """By the epoch in which each request arrived."""
        arrived = np.concatenate([at_s - age_s for at_s, age_s in lane.taken])
        taken = np.concatenate([age_s for _, age_s in lane.taken])
        lane.taken.clear()
        for own in self.coalescing.values():
            plans: dict[int, tuple[int, int, float]] = {}
            if own.steering.priority == PRIORITIES[view.priority] and own.epochs:
                codes = np.array([max(0, bisect_right(own.began_s, at_s) - 1) for at_s in arrived.tolist()])
                for code in np.unique(codes).tolist():
                    ages = taken[codes == code]
                    within = int((ages <= view.objective_s).sum())
                    plans[own.epochs[code]] = len(ages), within, 1000 * float(np.percentile(ages, 95))
            else:
                plans[0] = len(taken), int((taken <= view.objective_s).sum()), 1000 * float(np.percentile(taken, 95))
            report = Report(
                view.lane,
                PRIORITIES[view.priority],
                "all",
                "1",
                round(1000 * self.now_s),
                1000 * view.objective_s,
                plans,
            )
            own.heard.under_way.append((self.now_s + HEARD_S, report))
