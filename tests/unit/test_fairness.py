"""audit.fairness: equal to Fairlearn, rarely false, quick to see a disparity, indifferent to order and names."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import Any

import fairlearn.metrics
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import fairness
from audit.fairness import Confusion, demographic_parity, odds
from schemas.errors import BadSetting, IntegrityError
from tests.simulated import assessed, false_freezes, median_detection, p_values, streams

COUNT = st.tuples(st.integers(0, 5_000), st.floats(0, 1)).map(lambda drawn: (drawn[0], int(drawn[0] * drawn[1])))
COUNTS = st.dictionaries(st.text(max_size=3), COUNT, max_size=6)


def tables(number: int) -> Iterator[tuple[dict[str, Confusion], tuple[Any, Any, Any]]]:
    """Random confusions with the rows that they count: outcomes, decisions, groups."""
    rng = np.random.default_rng(7)
    for _ in range(number):
        confusions, rows = {}, []
        for group in range(rng.integers(1, 7)):
            name, size = f"group {group}", rng.integers(1, 60)
            outcome, decision = rng.random((2, size)) < rng.random((2, 1))
            counts = (size, decision.sum(), outcome.sum(), (outcome & decision).sum())
            confusions[name] = Confusion(*map(int, counts))
            rows += [(int(y), int(d), name) for y, d in zip(outcome, decision, strict=True)]
        outcomes, decisions, groups = zip(*rows, strict=True)
        yield confusions, (outcomes, decisions, groups)


@pytest.mark.parametrize(("confusions", "rows"), list(tables(60)))
def test_metrics_are_fairlearns(confusions: dict[str, Confusion], rows: tuple[Any, Any, Any]) -> None:
    outcomes, decisions, groups = rows
    counts = {group: (each.decided, each.favourable) for group, each in confusions.items()}
    arguments = {"y_true": outcomes, "y_pred": decisions, "sensitive_features": groups}
    rates = fairlearn.metrics.MetricFrame(metrics=fairlearn.metrics.selection_rate, **arguments).by_group
    assert fairness.selection_rate(counts) == pytest.approx(dict(rates), abs=1e-12)
    expected = {group: rate / max(rates) if max(rates) else float("nan") for group, rate in rates.items()}
    assert fairness.impact_ratio(counts) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    for name, table in (
        ("demographic_parity_difference", counts),
        ("demographic_parity_ratio", counts),
        ("equalized_odds_difference", confusions),
        ("equal_opportunity_difference", confusions),
    ):
        theirs = getattr(fairlearn.metrics, name)(**arguments)
        assert getattr(fairness, name)(table) == pytest.approx(theirs, abs=1e-12, nan_ok=True), name


def test_assessments_carry_the_same_numbers() -> None:
    confusions = {"F": Confusion(3_000, 900, 1_000, 500), "M": Confusion(3_000, 1_080, 1_000, 700)}
    both, opportunity = odds(confusions, 0.05, 0.01)
    assert (both.definition, both.value) == ("equalized_odds_difference", pytest.approx(0.2))
    assert both.method.endswith("of true positive rates") and both.established
    assert (opportunity.value, opportunity.ratio) == (pytest.approx(0.2), pytest.approx(5 / 7))
    assert [(each.decided, each.favourable) for each in opportunity.groups] == [(1_000, 500), (1_000, 700)]


@given(st.lists(st.tuples(COUNT, COUNT), max_size=5), st.sampled_from([None, "1"]))
def test_odds_are_two_demographic_parities(drawn: list[Any], reference: str | None) -> None:
    """Of the rows with the favourable outcome, and of those without."""
    positives, negatives = ({str(i): each[side] for i, each in enumerate(drawn)} for side in (0, 1))
    confusions = {
        name: Confusion(p[0] + n[0], p[1] + n[1], p[0], p[1])
        for name, p, n in zip(positives, positives.values(), negatives.values(), strict=True)
    }
    both, opportunity = odds(confusions, 0.05, 0.01, reference)
    assert opportunity.groups == demographic_parity(positives, 0.05, 0.01, reference).groups
    strict = [demographic_parity(each, 0.05, 0.005, reference) for each in (positives, negatives)]
    loose = [demographic_parity(each, 0.05, 0.01, reference) for each in (positives, negatives)]
    assert any(each.established for each in strict) <= both.established <= any(each.established for each in loose)
    assert both.value == max(each.value for each in loose) and both.ratio == min(each.ratio for each in loose)
    shown = negatives if both.method.endswith("of false positive rates") else positives
    assert [(each.decided, each.favourable) for each in both.groups] == list(shown.values())


@pytest.mark.parametrize(
    ("rates", "step"),
    [
        ([0.3] * 2, [100] * 2),
        ([0.3] * 2, [20] * 2),
        ([0.1, 0.1], [10, 500]),
        ([0.3] * 8, [100] * 8),
        ([0.1] * 8, [20, 20, 50, 50, 100, 100, 400, 400]),
    ],
)
def test_false_freezes_are_rare(rates: list[float], step: list[int]) -> None:
    assert false_freezes(1, rates, step) <= 0.01


def test_a_disparity_is_found_in_time() -> None:
    assert median_detection(2, [0.30, 0.36], 20, 500) <= 2_400
    assert median_detection(2, [0.30, 0.45], 10, 200) <= 400
    assert median_detection(2, [0.30] * 4 + [0.36] * 4, 20, 500) <= 2_400  # no group is 5 points from all the others
    assert 400 < median_detection(2, [0.30, 0.45], 20, 500, freeze_on="excludes_limit") <= 800


def test_the_code_agrees_with_the_vectorised_reading() -> None:
    decided, favourable = streams(5, [0.2, 0.2, 0.23, 0.3], [10, 40, 30, 5], 40, 10)
    strongest = p_values(decided, favourable).min(-1)
    for stream, window in np.ndindex(strongest.shape):
        found = assessed(decided[stream, window], favourable[stream, window], 1e-9, 0.01, "established")
        assert found.established == (strongest[stream, window] < 0.01 / 4)


@given(COUNTS, st.randoms())
def test_order_and_names_do_not_matter(counts: dict[str, tuple[int, int]], random: Any) -> None:
    names = sorted(counts)
    others = {name: f"{i:03}" for i, name in enumerate(random.sample(names, len(names)))}
    first = demographic_parity(counts, 0.05, 0.01)
    second = demographic_parity({others[name]: counts[name] for name in reversed(names)}, 0.05, 0.01)
    by_name = {each.group: each for each in second.groups}
    assert (first.value, first.ratio, first.state, first.method) == (
        second.value,
        second.ratio,
        second.state,
        second.method,
    )
    assert all(by_name[others[each.group]].state == each.state for each in first.groups)
    assert [each.group for each in first.groups] == names


@given(COUNTS, st.sampled_from(fairness.FREEZE_ON), st.sampled_from([None, "", "a", "absent"]))
def test_what_an_assessment_says_holds_together(
    counts: dict[str, tuple[int, int]], freeze_on: str, reference: str | None
) -> None:
    found = demographic_parity(counts, 0.05, 0.01, reference, freeze_on)
    assert found.established == (found.state == "alarm" and freeze_on != "never")
    assert not isnan(found.ratio) and 0 <= found.ratio <= 1 and 0 <= found.value <= 1
    for each in found.groups:
        assert 0 <= each.low <= each.rate <= each.high <= 1
        assert -1 <= each.difference_low <= each.difference <= each.difference_high <= 1
        if each.state == "insufficient":
            assert (each.difference_low, each.difference_high) == (-1, 1)
        elif each.group != reference:
            assert (each.difference_low > 0 or each.difference_high < 0) == (each.state in ("warn", "alarm"))
        if each.state == "alarm" and freeze_on == "excludes_limit":
            assert each.difference_low > 0.05 or each.difference_high < -0.05


@given(st.lists(COUNTS, max_size=5))
def test_counts_add_up_in_any_order(tallies: list[dict[str, tuple[int, int]]]) -> None:
    def merged(parts: list[dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
        total: dict[str, tuple[int, int]] = {}
        for group, (decided, favourable) in (each for part in parts for each in part.items()):
            before = total.get(group, (0, 0))
            total[group] = (before[0] + decided, before[1] + favourable)
        return total

    half = [merged(tallies[::2]), merged(tallies[1::2])]
    assert demographic_parity(merged(tallies), 0.05, 0.01) == demographic_parity(merged(half[::-1]), 0.05, 0.01)


@settings(max_examples=30)
@given(st.integers(100, 10_000), st.integers(30, 70))
def test_two_groups_mirror_each_other(decided: int, percent: int) -> None:
    found = demographic_parity({"a": (decided, decided // 2), "b": (decided, decided * percent // 100)}, 0.05, 0.01)
    a, b = found.groups
    assert a.state == b.state and "Holm over 1 " in found.method
    assert (a.difference, a.difference_low) == pytest.approx((-b.difference, -b.difference_high))


def test_small_groups_are_insufficient_and_do_not_hide_others() -> None:
    found = demographic_parity({"F": (3_000, 900), "M": (3_000, 1_200), "X": (40, 0), "none": (0, 0)}, 0.05, 0.01)
    assert [each.state for each in found.groups] == ["alarm", "alarm", "insufficient", "insufficient"]
    assert found.established
    assert demographic_parity({"F": (99, 29), "M": (99, 30)}, 0.05, 0.01).state == "insufficient"
    assert demographic_parity({"F": (100, 30), "M": (100, 30)}, 0.05, 0.01).state == "ok"
    assert demographic_parity({"F": (500, 0), "M": (500, 150)}, 0.05, 0.01).established  # 0 of 75 expected


@pytest.mark.parametrize("counts", [{}, {"F": (0, 0)}, {"F": (900, 300)}, {"F": (900, 0), "M": (900, 0)}])
def test_with_nothing_to_compare_it_is_insufficient(counts: dict[str, tuple[int, int]]) -> None:
    for found in (demographic_parity(counts, 0.05, 0.01), demographic_parity(counts, 0.05, 0.01, "M")):
        assert (found.state, found.established, found.value, found.ratio) == ("insufficient", False, 0.0, 1.0)


def test_a_reference_group_is_what_others_are_compared_with() -> None:
    counts = {"F": (5_000, 1_500), "M": (5_000, 2_000), "X": (5_000, 1_990)}
    found = demographic_parity(counts, 0.05, 0.01, "M")
    assert [(each.compared_with, each.state) for each in found.groups] == [("M", "alarm"), ("M", "ok"), ("M", "ok")]
    assert "Holm over 2 " in found.method
    assert demographic_parity(counts, 0.05, 0.01, "absent").state == "insufficient"


def test_what_freezes_is_a_setting() -> None:
    counts = {"F": (3_000, 900), "M": (3_000, 1_080)}
    states = {each: demographic_parity(counts, 0.05, 0.01, None, each) for each in fairness.FREEZE_ON}
    assert [(each.state, each.established) for each in states.values()] == [
        ("alarm", True),
        ("warn", False),
        ("alarm", False),
    ]
    assert demographic_parity({"F": (50_000, 15_000), "M": (50_000, 16_000)}, 0.05, 0.01).state == "warn"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"limit": 0.0}, "disparity_limit is 0.0"),
        ({"limit": 1.5}, "disparity_limit is 1.5"),
        ({"limit": float("nan")}, "disparity_limit is nan"),
        ({"alpha": 0.0}, "fairness_alpha is 0.0"),
        ({"alpha": 1.0}, "fairness_alpha is 1.0"),
        ({"freeze_on": "soon"}, 'freeze_on is "soon"; give one of established, excludes_limit, never'),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        demographic_parity(**{"counts": {}, "limit": 0.05, "alpha": 0.01, **changed})


@pytest.mark.parametrize("count", [(3, 4), (-1, 0), (3, -1)])
def test_counts_that_cannot_be_are_refused(count: tuple[int, int]) -> None:
    with pytest.raises(IntegrityError, match='group "F"'):
        demographic_parity({"F": count}, 0.05, 0.01)
    with pytest.raises(IntegrityError, match='group "F"'):
        odds({"F": Confusion(10, 5, *count)}, 0.05, 0.01)
