"""A lane that is steered: what actors report decides its windows; whatever fails, the static limits hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from schemas import framing
from streams.limits import LaneLimits, Seen
from streams.scheduler import Features, Outcome, Plan, Scheduler
from streams.steering import LOST_S, NAME, PLAN, STALE_S, Adaptive, Clocks, Report, Reports
from streams.window import Block
from tests.unit.test_scheduler import world

STATIC_LIMITS = LaneLimits(0.005, 4000, 1 << 20)
BUSY_S, RATE, OBJECTIVE_S = 0.004, 8_000, 0.1


@dataclass
class Heard(Reports):
    """Reports that a test gives."""

    newest: dict[str, Report] = field(default_factory=dict)
    fresh: list[Report] = field(default_factory=list)
    learned: dict[str, Any] = field(default_factory=dict)
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)

    def look(self, now_s: float) -> None:
        pass

    def to_the_end(self, beat: Callable[[], None]) -> None:
        beat()


@dataclass
class Lane:
    """Simulated: its clock goes from window to window, an actor reports twice a second (or `reports` nothing)."""

    steering: Adaptive
    heard: Heard
    clock: list[float]
    best_s: float = 0.02
    objective_s: float = OBJECTIVE_S
    rate: float = RATE
    reports: bool = True
    lag: int = 0
    windows: list[LaneLimits] = field(default_factory=list)
    answers: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    told_s: float = 0.0

    def run(self, seconds: float) -> list[LaneLimits]:
        """The limits of each window of so many seconds."""
        end, first = self.clock[0] + seconds, len(self.windows)
        while self.clock[0] < end:
            limits = self.steering.limits()
            self.windows.append(limits)
            span_s = limits.rest_s + limits.window_s + BUSY_S
            self.clock[0] += span_s
            records = max(1, round(self.rate * span_s))
            self.answers.setdefault(self.steering.plan_id, []).append((records, world(limits.window_s, self.best_s)))
            self.steering.ended(Seen(self.clock[0] - BUSY_S, records, 0.01, BUSY_S / 2, BUSY_S / 2, self.lag))
            if self.reports and self.clock[0] - self.told_s > 0.5:
                self.told_s = self.clock[0]
                self._report()
        return self.windows[first:]

    def _report(self) -> None:
        plans = {}
        for plan, taken in self.answers.items():
            answers, p95_s = sum(count for count, _ in taken), max(p95_s for _, p95_s in taken)
            plans[plan] = answers, round(answers * in_time(p95_s, self.objective_s)), p95_s * 1000
        self.answers = {}
        self.heard.fresh.append(Report("actor", "standard", "m", "1", 0, self.objective_s * 1000, plans))


def in_time(p95_s: float, objective_s: float) -> float:
    """The share of answers within the objective."""
    return min(1.0, 0.95 * objective_s / p95_s)


def lane(learner: Any = None, priority: str = "standard", objective_s: float = OBJECTIVE_S, **more: Any) -> Lane:
    clock, heard = [100.0], Heard()
    steering = Adaptive(
        "lane", "worker", priority, STATIC_LIMITS, {("m", "1"): objective_s}, heard, "t.scheduler", learner,
        clocks=Clocks(lambda: clock[0], lambda: clock[0], lambda: 0.0), seed=1,
    )  # fmt: skip
    return Lane(steering, heard, clock, objective_s=objective_s, **more)


def test_before_anything_was_seen_the_static_limits_hold() -> None:
    assert lane().steering.limits() == STATIC_LIMITS


TIGHT_S = 0.065  # which only windows near the best keep


def test_within_a_minute_the_windows_keep_the_objective() -> None:
    steered = lane(objective_s=TIGHT_S)
    steered.run(60)
    last = sorted(limits.window_s for limits in steered.run(10))
    assert in_time(world(last[len(last) // 2], 0.02), TIGHT_S) >= 0.95
    assert steered.steering.guard.trips == 0


def test_after_a_change_of_load_it_is_back_within_half_a_minute() -> None:
    steered = lane(objective_s=TIGHT_S)
    steered.run(60)
    steered.rate = 500
    steered.run(30)
    last = sorted(limits.window_s for limits in steered.run(10))
    assert in_time(world(last[len(last) // 2], 0.02), TIGHT_S) >= 0.95


class Crashing(Scheduler):
    def decide(self, features: Features, rng: Random) -> Plan:
        raise ZeroDivisionError("a bug")


class Nonsense(Scheduler):
    def __init__(self, window_s: float) -> None:
        super().__init__(STATIC_LIMITS.window_s)
        self.nonsense_s = window_s

    def decide(self, features: Features, rng: Random) -> Plan:
        return Plan(0, self.nonsense_s, 0.0)


class Speechless(Scheduler):
    def state(self) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")


def test_a_learner_that_cannot_say_what_it_learned_is_left_too() -> None:
    steered = lane(Speechless(0.005))
    steered.run(5)
    assert steered.steering.blocks(60_000) == []
    assert {limits.window_s for limits in steered.run(1)} == {STATIC_LIMITS.window_s}


class Random_(Scheduler):
    """It learns noise."""

    rng = Random(7)

    def learn(self, features: Features, plan: Plan, outcome: Outcome) -> None:
        within = self.rng.randrange(outcome.answers + 1)
        super().learn(features, plan, Outcome(outcome.answers, within, self.rng.random()))


class Inverted(Scheduler):
    """It takes the worst for the best."""

    def learn(self, features: Features, plan: Plan, outcome: Outcome) -> None:
        super().learn(features, plan, Outcome(outcome.answers, outcome.answers - outcome.within, 1 / outcome.ratio))


@pytest.mark.parametrize("learner", [Crashing(0.005), Nonsense(float("nan")), Nonsense(-1.0), Nonsense(float("inf"))])
def test_a_learner_that_fails_never_reaches_a_window(learner: Scheduler) -> None:
    assert {limits.window_s for limits in lane(learner).run(5)} == {STATIC_LIMITS.window_s}


@pytest.mark.parametrize("learner", [Random_, Inverted])
def test_poisoned_learning_costs_at_most_two_hundredths(learner: type[Scheduler]) -> None:
    """The static window is by far the best here, so that whatever the learner chooses is worse."""
    best_s, objective_s = STATIC_LIMITS.window_s, 0.07
    steered = lane(learner(best_s), best_s=best_s, objective_s=objective_s)
    windows = [limits.window_s for limits in steered.run(1000)]
    spans = [window_s + BUSY_S for window_s in windows]
    found = sum(
        span_s * in_time(world(window_s, best_s), objective_s) for span_s, window_s in zip(spans, windows, strict=True)
    ) / sum(spans)
    assert steered.steering.guard.trips > 0
    assert found >= 0.98 * in_time(world(best_s, best_s), objective_s)


def test_frozen_reports_are_no_ground_to_decide_on() -> None:
    steered = lane()
    steered.run(60)
    steered.reports = False
    steered.run(STALE_S + 4)
    assert {limits.window_s for limits in steered.run(5)} == {STATIC_LIMITS.window_s}
    steered.reports = True
    steered.run(3)
    assert {limits.window_s for limits in steered.run(10)} != {STATIC_LIMITS.window_s}


def test_after_a_rest_reports_are_not_missed() -> None:
    steered = lane()
    steered.run(20)
    before = steered.steering.counts["static"]
    steered.clock[0] += 600
    steered.run(2)
    assert steered.steering.counts["static"] == before


def test_answers_that_never_come_count_as_late() -> None:
    steered = lane(reports=False)
    steered.run(LOST_S + 5)
    learned = [reward for arms in steered.steering.learner.state().values() for epochs, reward, _ in arms if epochs]
    assert learned
    assert max(learned) < 0.1


def test_what_was_learned_is_taken_over() -> None:
    first = lane()
    first.run(60)
    second = lane()
    second.heard.learned["worker"] = first.steering.learner.state()
    second.steering.begin(lambda: None)
    assert second.steering.learner.state() == first.steering.learner.state()


@pytest.mark.parametrize("state", ["x", {"1": 3}, None])
def test_what_cannot_be_taken_over_is_said(state: Any) -> None:
    steered = lane()
    steered.heard.learned["worker"] = state
    steered.steering.begin(lambda: None)
    assert steered.steering.learner.state() == {}


def test_a_lower_lane_rests_while_a_higher_one_misses_its_objective() -> None:
    steered = lane(priority="bulk")
    steered.steering.objectives = {}
    steered.run(1)
    for missed in (True, False):
        for _ in range(40):
            p95_ms = 120.0 if missed else 60.0
            now_ms = round(1000 * steered.clock[0])
            steered.heard.newest["a"] = Report("a", "interactive", "m", "1", now_ms, 100.0, {0: (10, 5, p95_ms)})
            limits = steered.run(0.5)[-1]
        assert (limits.rest_s > 0) == missed
        assert limits.window_s == STATIC_LIMITS.window_s


def test_records_say_what_was_decided_and_learned() -> None:
    steered = lane()
    steered.run(20)
    records = [decoded(block) for block in steered.steering.blocks(5_000)]
    assert [record["kind"] for record in records] == [PLAN]
    detail = json.loads(records[0]["detail"])
    assert detail["chose"]["window_s"] == pytest.approx(steered.steering.limits().window_s)
    assert detail["static_window_s"] == STATIC_LIMITS.window_s
    assert not steered.steering.blocks(5_500)
    assert [decoded(block)["kind"] for block in steered.steering.blocks(60_000)] == [PLAN, "learned"]


def decoded(block: Block) -> Mapping[str, Any]:
    name, record = framing.decode(block.values[0])
    assert (name, block.topic) == (NAME, "t.scheduler")
    assert block.keys == [f"{record['kind']}/worker".encode()]
    return record


def test_a_report_is_read_as_it_was_written() -> None:
    report = Report("w", "standard", "m", "1", 7, 100.0, {3: (10, 9, 50.5)})
    heard = Heard()
    block = report.block("t.scheduler")
    heard.put("report/w", block.values[0])
    assert heard.fresh == [report] == [heard.newest["report/w"]]


EMPTY = {"kind": "report", "worker": "w", "priority": "p", "at": 1, "model": None, "version": None, "detail": "{}"}


@pytest.mark.parametrize("value", [None, b"", b"x", framing.encode(NAME, EMPTY)])
def test_other_records_are_passed_over(value: bytes | None) -> None:
    heard = Heard()
    heard.put("report/w", value)
    assert heard.fresh == []
