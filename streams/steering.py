"""What sets the limits of a coalescer's lane while requests flow: reports of actors in, a plan an epoch out."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from random import Random
from statistics import median
from typing import Any, Protocol

from schemas import framing
from schemas.errors import BadRecord
from streams import meters, topics
from streams.compacted import Compacted
from streams.limits import LaneLimits, Seen
from streams.log import log
from streams.scheduler import Features, Guard, Outcome, Plan, Rest, Scheduler
from streams.settings import Settings
from streams.topics import PRIORITIES
from streams.window import Block

NAME = "scheduling"
REPORT, PLAN, LEARNED = "report", "plan", "learned"
EPOCH_S = 0.5
SWITCH_S = 0.2  # an epoch ends earlier where the load changed, but not at once
SETTLED_S = 1.5  # after its end, an epoch whose reports have come is learned from
LOST_S = 10.0  # without any, its answers came late at any rate
STALE_S = 3.0  # reports older than that are no ground to decide on
TOLD_MS, LEARNED_MS = 1_000, 30_000  # between two records of what was chosen, and of what was learned
WINDOWS = 32  # whose work is looked at
SPAN_S = 0.25  # over which the rate is taken
REST_SHARE = 0.25  # of its own objective, that a lane may rest for the sake of a higher one
LATE = 10.0  # times the objective, of answers of which nothing is known
WINDOW_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Report:
    """Of a lane of an actor: of the last second, by plan (0 is none) answers, those within the objective, p95 in ms."""

    worker: str
    priority: str
    model: str
    version: str
    at: int
    objective_ms: float
    plans: Mapping[int, tuple[int, int, float]]

    @property
    def missed(self) -> bool:
        return any(p95_ms > self.objective_ms for _, _, p95_ms in self.plans.values())

    def block(self, topic: str) -> Block:
        detail = {"objective_ms": self.objective_ms, "plans": {str(id): each for id, each in self.plans.items()}}
        record = {"kind": REPORT, "worker": self.worker, "priority": self.priority, "at": self.at, "model": self.model,
                  "version": self.version, "detail": json.dumps(detail)}  # fmt: skip
        return Block(topic, [framing.encode(NAME, record)], [f"{REPORT}/{self.worker}".encode()])

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Report:
        """Raises ValueError, KeyError, TypeError."""
        detail = json.loads(record["detail"])
        plans = {int(id): (int(n), int(within), float(p95)) for id, (n, within, p95) in detail["plans"].items()}
        names = record["worker"], record["priority"], record["model"], record["version"], record["at"]
        return cls(*names, float(detail["objective_ms"]), plans)


class Reports(Compacted):
    """What actors report. `newest`: by worker; `fresh`: those that came since it was emptied; `learned`: by worker, the
    detail of the last record of what a coalescer learned."""

    def __init__(self, settings: Settings, client_id: str) -> None:
        super().__init__(settings, topics.scheduler(settings.prefix), client_id)
        self.newest: dict[str, Report] = {}
        self.fresh: list[Report] = []
        self.learned: dict[str, Any] = {}
        self.plans: dict[str, dict[str, Any]] = {}

    def put(self, key: str, value: bytes | None) -> None:
        try:
            name, record = framing.decode(value or b"")
            if name != NAME:
                raise BadRecord("unknown_schema", f"a {name} is no record of a scheduler")
            if record["kind"] == REPORT:
                self.newest[key] = report = Report.of(record)
                self.fresh.append(report)
            elif record["kind"] == LEARNED:
                self.learned[record["worker"]] = json.loads(record["detail"])
            else:
                self.plans[record["worker"]] = {**record, "detail": json.loads(record["detail"])}
        except (BadRecord, ValueError, KeyError, TypeError) as err:
            log("error", "no record of LRAI's on lrai.scheduler; passed over", key=key, error=str(err))


class Learner(Protocol):
    """What decides; see streams.scheduler."""

    def decide(self, features: Features, rng: Random) -> Plan: ...

    def learn(self, features: Features, plan: Plan, outcome: Outcome) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Epoch:
    """A time in which a lane keeps one plan, and what is known of its answers."""

    id: int
    plan: Plan
    features: Features
    began_s: float
    cpu_s: float
    ended_s: float = math.inf
    reported_s: float = -math.inf
    cores: float = 0.0
    windows: int = 0
    answers: int = 0
    within: int = 0
    ratio: float = 0.0

    def report(self, report: Report, now_s: float) -> None:
        if found := report.plans.get(self.id):
            answers, within, p95_ms = found
            self.answers, self.within = self.answers + answers, self.within + within
            self.ratio = max(self.ratio, p95_ms / report.objective_ms)
            self.reported_s = now_s

    def settled(self, now_s: float) -> bool:
        """Whether no further report is to be expected."""
        since_s = now_s - self.ended_s
        return since_s > LOST_S or (self.answers > 0 and since_s > SETTLED_S and now_s - self.reported_s > 2 * EPOCH_S)

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.answers or 1, self.within, self.ratio or LATE, self.cores)


@dataclass(frozen=True)
class Clocks:
    """Seconds: monotonic, since the epoch, and of the process's CPU."""

    now_s: Callable[[], float] = time.monotonic
    wall_s: Callable[[], float] = time.time
    cpu_s: Callable[[], float] = time.process_time


@dataclass
class Arrivals:
    """Records of the last windows: how many a second, and how long the work of a window takes."""

    windows: deque[Seen] = field(default_factory=lambda: deque(maxlen=WINDOWS))

    def rate(self, now_s: float) -> float:
        """Records a second over the last SPAN_S or so."""
        taken = 0
        for each in reversed(self.windows):
            taken += each.records
            if now_s - each.began_s > SPAN_S:
                return taken / (now_s - each.began_s)
        return taken / max(now_s - self.windows[0].began_s, 1e-3) if self.windows else 0.0

    @property
    def busy_s(self) -> float:
        return median(each.busy_s for each in self.windows) if self.windows else 0.0


class Adaptive:
    """Of one lane. `objectives`: seconds, by model and version, of those that are scheduled; `higher`: the priorities
    that it makes room for. Whatever fails in here, the lane goes on with its static limits."""

    def __init__(
        self, lane: str, worker: str, priority: str, static: LaneLimits, objectives: Mapping[tuple[str, str], float],
        reports: Reports, topic: str, learner: Learner | None = None, clocks: Clocks | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.lane, self.worker, self.priority, self.topic = lane, worker, priority, topic
        self.static, self.objectives, self.reports = static, objectives, reports
        self.clocks = clocks or Clocks()
        self.learner: Learner = learner or Scheduler(static.window_s)
        self.formula = Scheduler(static.window_s)  # that has learned nothing
        self.guard, self.arrivals, self.rng = Guard(), Arrivals(), Random(seed)
        self.rest = Rest(min([Rest.MOST_S, *(REST_SHARE * each for each in objectives.values())]))
        self.higher = PRIORITIES[: PRIORITIES.index(priority)]
        self.epoch: Epoch | None = None
        self.pending: dict[int, Epoch] = {}
        self.failed = False
        self.counts = {"learned": 0, "static": 0, "tried": 0}
        self._pressed = self._was_stale = False
        self._fresh_s = self._active_s = self.clocks.now_s()
        self._rest_at_s = self._told_ms = self._kept_ms = 0.0
        self._now = static

    @property
    def plan_id(self) -> int:
        """Of the batches that are cut now, for the actors' reports; 0 where nothing is planned."""
        return self.epoch.id if self.epoch else 0

    def begin(self, beat: Callable[[], None]) -> None:
        """Takes over what this lane's predecessor learned."""
        self.reports.to_the_end(beat)
        self.reports.fresh.clear()
        if self.worker in self.reports.learned:
            try:
                self.learner.restore(self.reports.learned[self.worker])
            except (ValueError, TypeError, AttributeError) as err:
                log("warning", "what the scheduler had learned cannot be used", lane=self.lane, error=str(err))

    def limits(self) -> LaneLimits:
        """Of the next window."""
        if not self.failed:
            try:
                now_s = self.clocks.now_s()
                self._hear(now_s)
                self._now = self._limits(now_s)
            except Exception as err:
                self._fails(err)
        return self._now

    def ended(self, seen: Seen) -> None:
        """A window was written."""
        self.arrivals.windows.append(seen)
        now_s = self.clocks.now_s()
        if now_s - self._active_s > 2 * EPOCH_S:
            self._fresh_s = now_s  # after a rest there was nothing to report
        self._active_s = now_s
        if self.epoch:
            self.epoch.windows += 1

    def blocks(self, now_ms: int) -> list[Block]:
        """What this lane decided, once a second, and what it has learned, now and then."""
        if self.failed or not self.epoch:
            return []
        try:
            return self._blocks(self.epoch, now_ms)
        except Exception as err:
            self._fails(err)
            return []

    def _fails(self, err: Exception) -> None:
        """The learner, or whatever else is in here; for good, as a restart is what mends a bug."""
        self.failed, self.epoch, self._now = True, None, self.static
        self._says("crashed", error=f"{type(err).__name__}: {err}")

    def _blocks(self, epoch: Epoch, now_ms: int) -> list[Block]:
        found = []
        if now_ms - self._told_ms >= TOLD_MS:
            self._told_ms = now_ms
            found.append(self._block(PLAN, self._told(epoch), now_ms))
        if now_ms - self._kept_ms >= LEARNED_MS and (state := self.learner.state()):
            self._kept_ms = now_ms
            found.append(self._block(LEARNED, state, now_ms))
        return found

    def _limits(self, now_s: float) -> LaneLimits:
        if not self.arrivals.windows:
            return self.static
        self._yield(now_s)
        if not self.objectives:
            return replace(self.static, rest_s=self.rest.rest_s)
        features, epoch = self._features(now_s), self.epoch
        age_s = now_s - epoch.began_s if epoch else math.inf
        if epoch and not epoch.windows:  # nothing came since; of that there is nothing to learn
            epoch.began_s = now_s
        elif epoch is None or age_s > EPOCH_S or (age_s > SWITCH_S and features.context != epoch.features.context):
            self._ends(now_s)
            self.epoch = epoch = self._begins(features, now_s)
        return replace(self.static, window_s=epoch.plan.window_s, rest_s=self.rest.rest_s)

    def _features(self, now_s: float) -> Features:
        last, objective_s = self.arrivals.windows[-1], min(self.objectives.values())
        behind = last.lag > self.static.records_max or last.age_s > objective_s
        return Features(self.arrivals.rate(now_s), self.arrivals.busy_s, objective_s, behind, self._pressed)

    def _begins(self, features: Features, now_s: float) -> Epoch:
        plan = self.learner.decide(features, self.rng)
        kind = "static" if plan.static else "tried" if plan.tried else "learned"
        if not 0 <= plan.window_s <= WINDOW_S_MAX:
            self._says("nonsense", window_s=plan.window_s)
            kind = "static"
        elif self.guard.holds(now_s) or self._stale(now_s) or self._asked(features):
            kind = "static"
        if kind == "static":
            plan = self.formula.static(features)
        self.counts[kind] += 1
        meters.EPOCHS.labels(self.lane, kind).inc()
        meters.PLANNED_S.labels(self.lane).set(plan.window_s)
        return Epoch(round(self.clocks.wall_s() * 1e6), plan, features, now_s, self.clocks.cpu_s())

    def _asked(self, features: Features) -> bool:
        """Whether the guard wants to see the static setting; not while the lane is behind, which tells nothing."""
        if features.behind:
            return False
        safe = self.formula.safe(self.formula.static(features), features)
        return self.guard.asks(features.context, safe)

    def _ends(self, now_s: float) -> None:
        if epoch := self.epoch:
            epoch.ended_s = now_s
            epoch.cores = (self.clocks.cpu_s() - epoch.cpu_s) / max(now_s - epoch.began_s, 1e-6)
            self.pending[epoch.id] = epoch

    def _hear(self, now_s: float) -> None:
        """Takes the actors' reports, and learns from the epochs that they settle."""
        self.reports.look(now_s)
        for report in self.reports.fresh:
            if report.priority == self.priority and (report.model, report.version) in self.objectives:
                self._fresh_s = now_s
                for epoch in (*self.pending.values(), *([self.epoch] if self.epoch else [])):
                    epoch.report(report, now_s)
        self.reports.fresh.clear()
        for epoch in [each for each in self.pending.values() if each.settled(now_s)]:
            del self.pending[epoch.id]
            self._learns(epoch, now_s)

    def _learns(self, epoch: Epoch, now_s: float) -> None:
        outcome = epoch.outcome
        self._pressed = outcome.ratio > 1
        self.learner.learn(epoch.features, epoch.plan, outcome)
        if not epoch.features.behind and self.guard.seen(epoch.features.context, epoch.plan, outcome, now_s):
            self._says("worse", until_s=round(self.guard.until_s - now_s, 1))

    def _stale(self, now_s: float) -> bool:
        """Whether windows are written, but no actor reports."""
        if now_s - self._active_s > 2 * EPOCH_S:
            self._fresh_s = now_s
        stale = now_s - self._fresh_s > STALE_S + SETTLED_S
        if stale and not self._was_stale:
            self._says("stale", age_s=round(now_s - self._fresh_s, 1))
        self._was_stale = stale
        return stale

    def _yield(self, now_s: float) -> None:
        """Rests longer or shorter, as higher lanes report; twice a second."""
        if not self.higher or now_s - self._rest_at_s < EPOCH_S:
            return
        self._rest_at_s = now_s
        now_ms = 1000 * self.clocks.wall_s()
        newest = [each for each in self.reports.newest.values() if now_ms - each.at < 3 * EPOCH_S * 1000]
        self.rest.reported(any(each.missed for each in newest if each.priority in self.higher))
        meters.REST_S.labels(self.lane).set(self.rest.rest_s)

    def _told(self, epoch: Epoch) -> dict[str, Any]:
        total = max(1, sum(self.counts.values()))
        return {
            "saw": asdict(epoch.features), "context": epoch.features.context, "chose": asdict(epoch.plan),
            "static_window_s": self.static.window_s,
            "static_share": self.guard.static_share(epoch.features.context), "rest_s": self.rest.rest_s,
            "epochs": self.counts, "tried_share": self.counts["tried"] / total, "trips": self.guard.trips,
            "held": self.guard.holds(self.clocks.now_s()), "failed": self.failed,
        }  # fmt: skip

    def _block(self, kind: str, detail: Mapping[str, Any], now_ms: int) -> Block:
        record = {"kind": kind, "worker": self.worker, "priority": self.priority, "at": now_ms, "model": None,
                  "version": None, "detail": json.dumps(detail)}  # fmt: skip
        return Block(self.topic, [framing.encode(NAME, record)], [f"{kind}/{self.worker}".encode()])

    def _says(self, why: str, **what: Any) -> None:
        meters.GUARDED.labels(self.lane, why).inc()
        log("warning", "the static settings take over", lane=self.lane, why=why, **what)
