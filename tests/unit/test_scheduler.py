"""The scheduler learns the window that keeps most answers in time, and its guard ends what does worse."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.scheduler import (
    ARMS,
    EXPLORE,
    FIRST,
    SCALES,
    STATIC,
    WINDOW_S_MIN,
    Features,
    Guard,
    Outcome,
    Plan,
    Rest,
    Scheduler,
    p95_s,
)

STATIC_S = 0.005
CALM = Features(rate=8_000, busy_s=0.01, objective_s=0.1)


def outcome(p95: float, objective_s: float = 0.1, answers: int = 1000) -> Outcome:
    """Of exponential latencies with that p95."""
    within = 1 - math.exp(-objective_s * math.log(20) / p95)
    return Outcome(answers, round(answers * within), p95 / objective_s)


def world(window_s: float, best_s: float = 0.03) -> float:
    """A p95 that is least at `best_s`, elsewhere than the formula says."""
    return 0.06 * (0.5 + 0.25 * (window_s / best_s + best_s / max(window_s, 1e-4)))


def live(scheduler: Scheduler, features: Features, epochs: int, rng: Random) -> list[Plan]:
    plans = []
    for _ in range(epochs):
        plan = scheduler.decide(features, rng)
        scheduler.learn(features, plan, outcome(world(plan.window_s)))
        plans.append(plan)
    return plans


@given(st.floats(1e-4, 1), st.floats(0, 1))
def test_it_begins_at_the_least_of_the_formula(busy_s: float, other: float) -> None:
    features = Features(100, busy_s, 1e9)
    plan = Scheduler(STATIC_S).decide(features, Random(1))
    assert plan.arm == FIRST
    assert p95_s(plan.window_s, busy_s) <= p95_s(max(WINDOW_S_MIN, other), busy_s) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_window_within_a_minute(seed: int) -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(seed)
    plans = live(scheduler, CALM, 60, rng)
    best = max(range(len(SCALES)), key=lambda arm: outcome(world(scheduler.window_s(arm, CALM))).reward)
    assert abs(max(range(ARMS), key=lambda arm: scheduler.estimates[CALM.context][arm].reward) - best) <= 1
    tried = [plan.tried for plan in live(scheduler, CALM, 1000, rng)]
    assert sum(tried) <= 1000 * EXPLORE * 2, "once it knows, it tries seldom"
    assert {plan.arm for plan in plans} - {FIRST}, "it tried others"


def test_it_keeps_the_static_window_where_that_was_seen_to_be_best() -> None:
    scheduler, rng = Scheduler(0.03), Random(3)
    features = Features(8_000, 0.001, 0.1, pressed=True)  # its own windows are far too short
    for each in (scheduler.static(features), scheduler.decide(features, rng)):
        scheduler.learn(features, each, outcome(world(each.window_s)))
    assert scheduler.decide(features, rng).static


def test_a_load_never_seen_begins_where_the_nearest_one_is() -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(1)
    live(scheduler, CALM, 100, rng)
    best = scheduler.decide(Features(8_000, 0.01, 0.1, pressed=True), rng).arm
    assert scheduler.decide(Features(16_000, 0.01, 0.1), rng).arm == best


def test_it_never_tries_what_is_expected_to_miss_the_objective() -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(1)
    objective_s = world(scheduler.window_s(FIRST, CALM)) * 1.02
    features = Features(8_000, 0.01, objective_s)
    for _ in range(300):
        plan = scheduler.decide(features, rng)
        known = [each for each in scheduler.estimates.get(features.context, []) if each.epochs]
        assert not plan.tried or plan.expected_s <= max(objective_s, max(each.ratio for each in known) * objective_s)
        scheduler.learn(features, plan, outcome(world(plan.window_s), objective_s))


def test_a_pressed_lane_tries_nothing() -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(1)
    live(scheduler, CALM, 5, rng)
    pressed = Features(8_000, 0.01, 0.1, pressed=True)
    assert not any(scheduler.decide(pressed, rng).tried for _ in range(200))


@given(st.floats(0, 1e6), st.floats(0, 10), st.floats(1e-4, 100), st.booleans(), st.integers(0, 99))
def test_windows_are_within_bounds(rate: float, busy_s: float, objective_s: float, behind: bool, seed: int) -> None:
    features = Features(rate, busy_s, objective_s, behind)
    plan = Scheduler(STATIC_S).decide(features, Random(seed))
    assert 0 <= plan.window_s <= max(0.4 * objective_s, STATIC_S)
    assert math.isfinite(plan.expected_s)


def test_what_was_learned_travels() -> None:
    scheduler, other = Scheduler(STATIC_S), Scheduler(STATIC_S)
    live(scheduler, CALM, 50, Random(2))
    other.restore(scheduler.state())
    assert other.estimates == scheduler.estimates


@pytest.mark.parametrize(
    "state", [{"13": [[1, 0.5, 1]]}, {"13": [[1, float("nan"), 1]] * ARMS}, {"13": "x"}, {"13": [1]}]
)
def test_what_is_no_state_is_refused(state: dict[str, object]) -> None:
    scheduler = Scheduler(STATIC_S)
    with pytest.raises((ValueError, TypeError)):
        scheduler.restore(state)
    assert scheduler.estimates == {}


def plan(arm: int) -> Plan:
    return Plan(arm, 0.01, 0.05)


def baseline(guard: Guard, context: str = "13") -> None:
    """The static setting's share, as often as the guard asks for it at first."""
    asked = [guard.asks(context) for _ in range(2 * Guard.BASELINE)]
    assert asked == [True, False] * Guard.BASELINE
    for within in (96, 95, 94):
        assert not guard.seen(context, plan(STATIC), Outcome(100, within, 0.9), 0)


def test_the_guard_ends_what_does_worse_than_the_static_setting() -> None:
    guard = Guard()
    baseline(guard)
    tripped = [at for at in range(30) if guard.seen("13", plan(2), Outcome(100, 60, 1.2), at)]
    assert tripped[0] == Guard.EPOCHS - 1
    assert guard.holds(tripped[0] + Guard.HOLD_S - 1)
    assert not guard.holds(tripped[-1] + 10_000)
    assert guard.trips == len(tripped) >= 2


def test_the_guard_asks_for_the_static_setting_ever_again() -> None:
    guard = Guard()
    baseline(guard)
    assert sum(guard.asks("13") for _ in range(320)) == 10


def test_the_guard_holds_longer_each_time() -> None:
    guard = Guard()
    baseline(guard)
    held, at = [], 0.0
    for _ in range(12):
        while not guard.seen("13", plan(2), Outcome(100, 60, 1.2), at):
            at += 1
        held.append(guard.until_s - at)
        at = guard.until_s
    assert held[:3] == [30, 60, 120]
    assert held[-1] == Guard.HOLD_S_MAX


@pytest.mark.parametrize("seed", range(10))
def test_noise_and_other_loads_do_not_trip_the_guard(seed: int) -> None:
    guard, rng = Guard(), Random(seed)
    trips = 0
    for at in range(1000):
        shared = min(100, max(0, round(rng.gauss(90, 5))))
        trips += guard.seen("13", plan(STATIC if guard.asks("13") else 3), Outcome(100, shared, 1), at)
    for at in range(50):  # a load of which the static setting's share is unknown
        assert not guard.seen("16", plan(3), Outcome(100, 10, 5), at)
    assert trips <= 1


def test_a_lower_lane_rests_while_a_higher_one_misses() -> None:
    rest = Rest()
    taken = [rest.reported(missed) for missed in [True] * 10 + [False] * 30]
    assert taken[9] == Rest.MOST_S
    assert taken[-1] == 0.0
    assert all(0 <= each <= Rest.MOST_S for each in taken)
