"""The restart policy, by table."""

from __future__ import annotations

import doctest

import pytest

from workers import backoff
from workers.backoff import Backoff, BackoffLimits, Restart

LIMITS = BackoffLimits(
    first_s=1.0, factor=2.0, cap_s=5.0, quiet_s=10.0, deaths_max=4, window_s=100.0, stand_in_s=30.0,
    stand_in_cap_s=100.0,
)


def real(after_s: float) -> Restart:
    return Restart(after_s, stand_in=False)


def stand_in(after_s: float, stand_in_s: float) -> Restart:
    return Restart(after_s, stand_in=True, stand_in_s=stand_in_s)


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        pytest.param([(0, 0)], [real(0)], id="the first death: at once"),
        pytest.param([(0, 99)], [real(0)], id="the first death after long work: at once"),
        pytest.param([(0, 0), (1, 0), (2, 0)], [real(0), real(1), real(2)], id="further deaths: longer each time"),
        pytest.param([(0, 0), (20, 9.9)], [real(0), real(1)], id="not quiet for long enough"),
        pytest.param([(0, 0), (1, 0), (20, 10)], [real(0), real(1), real(0)], id="a quiet time starts over"),
        pytest.param(
            [(0, 0), (1, 0), (2, 0), (3, 0), (40, 0), (120, 0), (230, 0)],
            [real(0), real(1), real(2), stand_in(4, 30), stand_in(5, 60), stand_in(5, 100), stand_in(5, 100)],
            id="a crash loop: the stand-in, for longer each time, up to the cap",
        ),
        pytest.param(
            [(0, 0), (1, 0), (2, 0), (3, 0), (60, 20), (61, 0)],
            [real(0), real(1), real(2), stand_in(4, 30), real(0), real(1)],
            id="the real process was quiet after the stand-in",
        ),
        pytest.param(
            [(0, 0), (90, 0), (180, 0), (270, 0), (360, 0)],
            [real(0), real(1), real(2), real(4), real(5)],
            id="deaths far apart: no stand-in",
        ),
    ],
)
def test_restart(deaths: list[tuple[float, float]], expected: list[Restart]) -> None:
    policy = Backoff(LIMITS)
    assert [policy.died(now, healthy_s) for now, healthy_s in deaths] == expected


def test_delay_and_memory_stay_bounded_over_many_deaths() -> None:
    policy = Backoff(LIMITS)
    restarts = [policy.died(float(now), 0.0) for now in range(5000)]
    assert restarts[-1] == stand_in(5, 100)
    assert len(policy.recent) == LIMITS.deaths_max


def test_examples() -> None:
    assert doctest.testmod(backoff).failed == 0
