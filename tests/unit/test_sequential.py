"""audit.sequential: against plain oracles, and that no peeking breaks it."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import exp, inf, log, prod

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from audit.sequential import EXPECTED_MIN, betting, half_width, holm, information, p_value, sufficient, wilson
from tests import simulated

COUNT = st.tuples(st.integers(1, 2_000), st.floats(0, 1)).map(lambda drawn: (drawn[0], int(drawn[0] * drawn[1])))


@given(COUNT)
def test_wilson_is_scipys(count: tuple[int, int]) -> None:
    expected = binomtest(count[1], count[0]).proportion_ci(0.95, "wilson")
    assert wilson(count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_without_decisions_a_rate_may_be_anything() -> None:
    assert wilson((0, 0)) == (0.0, 1.0)


@given(COUNT, COUNT)
def test_sufficient_by_fractions(a: tuple[int, int], b: tuple[int, int]) -> None:
    pooled = Fraction(a[1] + b[1], a[0] + b[0])
    expected = min(count * rate for count in (a[0], b[0]) for rate in (pooled, 1 - pooled))
    assert sufficient(a, b) == (expected >= EXPECTED_MIN)


@given(st.floats(0.1, 1e9), st.floats(1e-6, 0.5))
def test_the_sequence_ends_where_the_p_value_is_alpha(seen: float, alpha: float) -> None:
    assert p_value(half_width(seen, alpha), seen) == pytest.approx(alpha, rel=1e-6)


@given(COUNT, COUNT)
def test_information_is_that_of_either_reading_at_most(a: tuple[int, int], b: tuple[int, int]) -> None:
    assume(0 < a[1] + b[1] < a[0] + b[0])
    rates = [Fraction(k, n) for n, k in (a, b)]
    pooled = Fraction(a[1] + b[1], a[0] + b[0])
    apart = sum(rate * (1 - rate) / n for rate, (n, _) in zip(rates, (a, b), strict=True))
    together = pooled * (1 - pooled) * (Fraction(1, a[0]) + Fraction(1, b[0]))
    assert information(a, b) == pytest.approx(float(1 / max(apart, together)))
    assert information(a, b) == information(b, a)


def test_nothing_is_known_without_decisions() -> None:
    assert information((0, 0), (10, 5)) == information((10, 0), (10, 0)) == information((10, 10), (10, 10)) == 0
    assert half_width(0, 0.01) == inf and p_value(1.0, 0) == 1


def test_the_betting_test_is_exact() -> None:
    """The expectation over all outcomes of eight decisions is at most 1 whatever the equal rate."""
    sizes = 5, 3
    for rate in (0.01, 0.3, 0.5, 0.9):
        mean = 0.0
        for outcome in product((0, 1), repeat=sum(sizes)):
            likelihood = prod(rate if each else 1 - rate for each in outcome)
            mean += likelihood * exp(betting((sizes[0], sum(outcome[:5])), (sizes[1], sum(outcome[5:]))))
        assert mean <= 1


def test_the_betting_wealth_is_that_of_bets_one_by_one() -> None:
    rng = np.random.default_rng(4)
    groups, outcomes = rng.integers(0, 2, 300), rng.random(300) < 0.4
    wealth, seen = 0.0, np.zeros((2, 2))  # [group, outcome]
    for group, outcome in zip(groups, outcomes.astype(int), strict=True):
        wealth += log((seen[group, outcome] + 0.5) / (seen[group].sum() + 1))
        seen[group, outcome] += 1
    equal = seen.sum(0) / seen.sum()
    wealth -= sum(seen.sum(0)[each] * log(equal[each]) for each in (0, 1))
    a, b = ((int(each.sum()), int(each[1])) for each in seen)
    assert betting(a, b) == pytest.approx(wealth)


def test_the_betting_test_is_seldom_wrong_and_finds_a_disparity() -> None:
    alike = simulated.betting(*simulated.streams(3, [0.3, 0.3], [50, 50], 100, 1_000))
    assert (alike.max(axis=1) >= log(100)).mean() <= 0.01
    apart = simulated.betting(*simulated.streams(3, [0.3, 0.36], [50, 50], 100, 300))
    assert 1_400 < np.median((apart >= log(100)).argmax(axis=1) + 1) * 50 < 3_500


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_as_stepping_down_does(p_values: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for index in sorted(range(len(p_values)), key=lambda each: p_values[each]):
        if p_values[index] > alpha / (len(p_values) - len(rejected)):
            break
        rejected.add(index)
    levels = holm(p_values, alpha)
    assert {i for i, p in enumerate(p_values) if p <= levels[i]} == rejected
    assert all(alpha / len(p_values) <= level <= alpha for level in levels)
