"""audit.warnings by simulated weeks: each rule speaks when it should, and not a day before."""

from __future__ import annotations

import json

import numpy as np
import pytest

from audit.fairness import demographic_parity
from audit.warnings import DAY_S, Rules, complaints, disparity, latency, utilisation

FIRST = 20_000  # a day in 2024
USUAL_S = [0.010, 0.011, 0.009, 0.010, 0.0105, 0.0095, 0.010]


def days(*values: float, first: int = FIRST) -> dict[int, float]:
    return {first + number: value for number, value in enumerate(values)}


def test_latency_that_rises_by_a_fifth_on_three_days_is_told_on_the_third() -> None:
    values = [*USUAL_S, 0.013, 0.0121, 0.0125]
    assert not any(latency(days(*values[:count])) for count in range(len(values)))
    (found,) = latency(days(*values))
    assert (found.kind, found.severity) == ("latency", "warning")
    assert found.message == "p95 latency at least 21% above 10 ms on 3 successive days"
    assert "re-tune" in found.action
    assert json.loads(json.dumps(found.evidence))["baseline_s"] == 0.010


def test_exactly_a_fifth_is_enough() -> None:
    assert latency(days(*[0.010] * 7, *[0.012] * 3))
    assert not latency(days(*[0.010] * 7, *[0.01199] * 3))


@pytest.mark.parametrize(
    "values", [[0.013, 0.010, 0.013], [0.013, 0.013, 0.011], [0.0119, 0.013, 0.013]], ids=["gap", "better", "not yet"]
)
def test_latency_that_comes_back_is_not_told(values: list[float]) -> None:
    assert not latency(days(*USUAL_S, *values))


def test_days_must_follow_each_other() -> None:
    rising = days(0.013, 0.013, 0.013, first=FIRST + 10)
    assert latency({**days(*USUAL_S), **rising})
    assert not latency({**days(*USUAL_S), **{day + (day > FIRST + 11): each for day, each in rising.items()}})
    assert not latency(rising) and not latency({}) and not latency(days(*[0.0] * 10))


def test_a_year_of_usual_latency_is_silent() -> None:
    year = np.random.default_rng(1).lognormal(np.log(0.010), 0.05, 365).tolist()
    assert not any(latency(days(*year[:count])) for count in range(366))


def test_a_device_idle_for_a_week_is_told_on_the_seventh_day() -> None:
    week = [0.19, 0.02, 0.1, 0.0, 0.15, 0.1, 0.05]
    assert not any(utilisation(days(0.5, *week[:count])) for count in range(7))
    (found,) = utilisation(days(0.5, *week))
    assert found.message == "device utilisation at most 19% on 7 successive days" and "scale down" in found.action
    assert not utilisation(days(*week[:6], 0.2)) and not utilisation({})


def test_more_than_fifteen_complaints_a_week_are_told() -> None:
    times = [number * 11.3 * 3_600 for number in range(60)]  # 15 a week, no more
    assert not any(complaints(times, now) for now in times)
    sixteen = [now * DAY_S / 3 for now in range(16)]
    (found,) = complaints(sixteen, 6.9 * DAY_S)
    assert (found.severity, found.evidence["complaints"]) == ("critical", 16)
    assert not complaints(sixteen, 7.0 * DAY_S) and not complaints(sixteen, 4.9 * DAY_S)


def test_a_disparity_is_told_by_its_state() -> None:
    counts = {"F": (3_000, 900), "M": (3_000, 1_200)}
    (found,) = disparity(demographic_parity(counts, 0.05, 0.01), 0.05, "sex")
    assert found.severity == "critical" and found.action.startswith("freeze and review")
    assert found.message == "demographic_parity_difference by sex is 0.100, limit 0.05: established"
    (found,) = disparity(demographic_parity(counts, 0.2, 0.01), 0.2, "sex")
    assert found.severity == "warning" and json.loads(json.dumps(found.evidence))["groups"]["F"] == [3_000, 900]
    assert not disparity(demographic_parity({"F": (100, 30), "M": (100, 40)}, 0.05, 0.01), 0.05, "sex")


def test_rules_are_settings() -> None:
    rules = Rules(latency_rise=0.5, latency_days=1, utilisation_min=0.6, utilisation_days=2, complaints_max=0)
    assert latency(days(0.01, 0.016), rules) and not latency(days(0.01, 0.014), rules)
    assert utilisation(days(0.5, 0.5), rules) and complaints([5.0], 6.0, rules)
