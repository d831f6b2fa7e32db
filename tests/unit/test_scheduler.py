"""The scheduler learns the window that keeps most answers in time, and its guard ends what does worse."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.scheduler import (
    ARMS,
    EXPLORE,
    LONGEST,
    SHARES,
    STATIC,
    TARGET,
    Features,
    Guard,
    Outcome,
    Plan,
    Rest,
    Scheduler,
    p95_s,
)

STATIC_S = 0.005
CALM = Features(rate=8_000, busy_s=0.004, objective_s=0.1)
PRESSED = replace(CALM, pressed=True)


def outcome(p95: float, objective_s: float = 0.1, answers: int = 1000) -> Outcome:
    """Of exponential latencies with that p95."""
    within = 1 - math.exp(-objective_s * math.log(20) / p95)
    return Outcome(answers, round(answers * within), p95 / objective_s)


def world(window_s: float, best_s: float = 0.02) -> float:
    """A p95 that is least at `best_s`, elsewhere than the formula says."""
    return 0.06 * (0.5 + 0.25 * (window_s / best_s + best_s / max(window_s, 1e-4)))


def live(scheduler: Scheduler, features: Features, epochs: int, rng: Random) -> list[Plan]:
    plans = []
    for _ in range(epochs):
        plan = scheduler.decide(features, rng)
        scheduler.learn(features, plan, outcome(world(plan.window_s)))
        plans.append(plan)
    return plans


@settings(deadline=None)
@given(st.floats(1e-4, 1), st.floats(1e-3, 10))
def test_it_begins_with_the_longest_window_that_keeps_the_objective(busy_s: float, objective_s: float) -> None:
    features = Features(100, busy_s, objective_s)
    scheduler = Scheduler(STATIC_S)
    plan = scheduler.decide(features, Random(1))
    keeps = [p95_s(scheduler.window_s(arm, features), busy_s) <= TARGET * objective_s for arm in range(STATIC)]
    assert plan.arm == max((arm for arm in range(STATIC) if keeps[arm]), default=LONGEST)
    assert plan.window_s <= max(10 * busy_s, STATIC_S)


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_a_good_window_within_half_a_minute(seed: int) -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(seed)
    plans = live(scheduler, CALM, 60, rng)
    rewards = [outcome(world(scheduler.window_s(arm, CALM))).reward for arm in range(ARMS)]
    assert rewards[scheduler.decide(PRESSED, rng).arm] >= max(rewards) - 0.1
    tried = [plan.tried for plan in live(scheduler, CALM, 1000, rng)]
    assert sum(tried) <= 1000 * EXPLORE * 3, "once it knows, it tries seldom"
    assert len({plan.arm for plan in plans}) > 1, "it tried others"


def test_it_keeps_the_static_window_where_that_was_seen_to_be_best() -> None:
    scheduler, rng = Scheduler(0.02), Random(3)
    features = replace(PRESSED, objective_s=0.05)  # which only a window near 20 ms keeps
    for each in (scheduler.static(features), *(scheduler.decide(features, rng) for _ in range(3))):
        scheduler.learn(features, each, outcome(world(each.window_s, 0.02), 0.05))
    best = scheduler.decide(features, rng)
    assert best.static or abs(best.window_s - 0.02) < 0.006


def test_a_load_never_seen_begins_where_the_nearest_one_is() -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(1)
    live(scheduler, CALM, 100, rng)
    assert scheduler.decide(replace(CALM, rate=16_000), rng).arm == scheduler.decide(PRESSED, rng).arm


def test_it_never_tries_what_is_expected_to_miss_the_objective() -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(1)
    features = replace(CALM, objective_s=0.08)
    tried = 0
    for _ in range(300):
        plan = scheduler.decide(features, rng)
        assert not plan.tried or plan.expected_s <= TARGET * features.objective_s
        tried += plan.tried
        scheduler.learn(features, plan, outcome(world(plan.window_s), features.objective_s))
    assert tried


def test_a_pressed_lane_tries_nothing_but_the_longest_window() -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(1)
    scheduler.learn(CALM, scheduler.static(CALM), outcome(0.2))
    assert scheduler.decide(PRESSED, rng).arm == LONGEST
    live(scheduler, CALM, 20, rng)
    assert not any(scheduler.decide(PRESSED, rng).tried for _ in range(200))


def test_a_lane_that_is_behind_takes_the_longest_window_and_learns_nothing() -> None:
    scheduler, rng = Scheduler(STATIC_S), Random(1)
    live(scheduler, CALM, 20, rng)
    before, behind = scheduler.state(), replace(CALM, behind=True)
    plan = scheduler.decide(behind, rng)
    scheduler.learn(behind, plan, outcome(9.0))
    assert (plan.arm, scheduler.state()) == (LONGEST, before)


def test_an_objective_that_asks_for_little_makes_no_long_windows() -> None:
    plan = Scheduler(STATIC_S).decide(Features(rate=100, busy_s=0.004, objective_s=10.0), Random(1))
    assert plan.window_s == pytest.approx(10 * 0.004)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 10), st.floats(1e-4, 100), st.booleans(), st.integers(0, 99))
def test_windows_are_within_bounds(rate: float, busy_s: float, objective_s: float, behind: bool, seed: int) -> None:
    features = Features(rate, busy_s, objective_s, behind)
    plan = Scheduler(STATIC_S).decide(features, Random(seed))
    assert 0 < plan.window_s <= max(SHARES[-1] * objective_s, STATIC_S)
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


LEARNED = 2


def lives(guard: Guard, epochs: int, learned: int, static: int, safe: bool = True) -> list[int]:
    """Epochs of a load of which so many of 100 answers come in time; those at which the static setting took over."""
    tripped = []
    for at in range(epochs):
        asked = guard.holds(at) or guard.asks("13", safe)
        each = plan(STATIC) if asked else plan(LEARNED)
        if guard.seen("13", each, Outcome(100, static if asked else learned, 1.0), at):
            tripped.append(at)
    return tripped


def test_the_guard_ends_what_does_worse_than_the_static_setting() -> None:
    guard = Guard()
    tripped = lives(guard, 100, learned=60, static=95)
    assert tripped[0] <= 4 * Guard.ASKS + Guard.EPOCHS, "within seconds"
    assert len(tripped) == guard.trips == 2
    assert guard.until_s == tripped[1] + 2 * Guard.HOLD_S


def test_the_guard_does_not_ask_where_all_is_well() -> None:
    guard = Guard()
    assert lives(guard, 500, learned=99, static=0) == []
    assert guard.static_share("13") is None


def test_the_guard_asks_seldom_where_the_static_setting_is_expected_to_fail() -> None:
    guard = Guard()
    asked = 0
    for at in range(640):
        ask = guard.asks("13", safe=False)
        asked += ask
        guard.seen("13", plan(STATIC if ask else LEARNED), Outcome(100, 50, 2.0), at)
    assert asked <= 12


def test_the_guard_holds_longer_each_time() -> None:
    guard, held, at = Guard(), [], 0.0
    for share in (96, 95, 94):
        guard.seen("13", plan(STATIC), Outcome(100, share, 0.9), 0)
    for _ in range(12):
        while not guard.seen("13", plan(LEARNED), Outcome(100, 60, 1.2), at):
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
        each = plan(STATIC if guard.asks("13", True) else LEARNED)
        trips += guard.seen("13", each, Outcome(100, shared, 1), at)
    for at in range(50):  # a load of which the static setting's share is unknown
        assert not guard.seen("16", plan(3), Outcome(100, 10, 5), at)
    assert trips <= 1


def test_a_lower_lane_rests_while_a_higher_one_misses() -> None:
    rest = Rest()
    taken = [rest.reported(missed) for missed in [True] * 10 + [False] * 30]
    assert taken[9] == Rest.MOST_S
    assert taken[-1] == 0.0
    assert all(0 <= each <= Rest.MOST_S for each in taken)
