"""Lines of functions and of differences hold at every point of their region; statistics have their closed forms."""

from __future__ import annotations

import doctest
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.proof import stat
from kernels.proof.ir import IDENTITY, Function
from kernels.proof.lines import GRID, Bound, Range, paired, single
from kernels.proof.split import outward
from kernels.proof.staircase import side

FUNCTIONS = [
    Function("relu"), Function("leaky", alpha=0.1), Function("clip", -0.5, 1.5), IDENTITY, Function("sigmoid"),
    Function("tanh"), Function("clip", 0.0, 2.55, step=0.01, levels=256),
    Function("clip", -1.0, 0.75, step=0.25, levels=5),
]  # fmt: skip
NUMBERS = st.floats(-4, 4, width=32)
WIDTHS = st.sampled_from([0.0, 1e-6, 0.01, 0.5, 3.0])


def at(bound: Bound, d: float, z: float = 0.0) -> float:
    second = 0.0 if bound.second is None else float(bound.second[0, 0])
    return float(bound.slope[0, 0]) * d + second * z + float(bound.constant[0, 0])


def between(low: float, high: float) -> Range:
    return Range(np.array([[low]]), np.array([[high]]))


@given(st.sampled_from(FUNCTIONS), NUMBERS, WIDTHS)
@settings(max_examples=300, deadline=None)
def test_lines_of_one_function_hold(f: Function, low: float, width: float) -> None:
    lines = single(f, between(low, low + width))
    assert float(lines.lower.slope[0, 0] * GRID).is_integer()
    for z in np.linspace(low, low + width, 41):
        value = float(f.run(np.array(z)))
        room = f.noise[1]
        assert at(lines.lower, z) - room <= value <= at(lines.upper, z) + room
        assert lines.range.low[0, 0] - room <= value <= lines.range.high[0, 0] + room


@pytest.mark.parametrize("f", [each for each in FUNCTIONS if each.step], ids=lambda f: f"{f.step}")
def test_a_staircase_lies_between_its_sides(f: Function) -> None:
    """At random places, at the jumps themselves, and beside them; the sides are no farther than a step from it."""
    rng = np.random.default_rng(3)
    low = rng.uniform(1.5 * f.low - f.step, 1.2 * f.high, (1, 2000))
    high = low + rng.choice([0.0, 1e-9, 0.3, 1.0, 4.0, 900.0], low.shape) * f.step * rng.random(low.shape)
    z = low + rng.random((60, *low.shape)) * (high - low)
    jumps = (np.rint(z / f.step - 0.5) + 0.5) * f.step
    z = np.concatenate([z, low[None], high[None], *(jumps + move for move in (0.0, -f.noise[1] / 2, f.noise[1] / 2))])
    z = np.clip(z, low, high)
    early, late = (f.run(z + sign * f.noise[1] / 2) for sign in (-1, 1))  # what a rounded division may make of it
    above, below = (side(f, low, high, sign, 1e-12 + 0 * low).at(z) for sign in (1.0, -1.0))
    assert (above >= late - 1e-12).all() and (below <= early + 1e-12).all()
    assert (above - below <= 2 * f.step + 1e-9).all()
    still = f.run(low - 2 * f.noise[1]) == f.run(high + 2 * f.noise[1])
    assert still.any() and (above == below)[:, still].all()


@given(
    st.sampled_from(FUNCTIONS), st.sampled_from(FUNCTIONS), NUMBERS, WIDTHS, st.floats(-0.5, 0.5), WIDTHS,
    st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=600, deadline=None)
def test_lines_of_a_difference_hold(
    f: Function, g: Function, low: float, width: float, apart: float, spread: float, cut: float
) -> None:
    """z + d is also kept in a range of its own, as the variant's analysis finds one."""
    z, d = between(low, low + width), between(apart, apart + spread)
    zv = between(low + apart + 0.3 * cut * width, low + apart + width + spread - 0.3 * cut * spread)
    lines = paired(f, g, z, zv, d, single(g, zv), single(f, z))
    room = f.noise[1] + g.noise[1]
    for one in np.linspace(low, low + width, 13):
        for two in np.linspace(apart, apart + spread, 13):
            if not zv.low[0, 0] <= one + two <= zv.high[0, 0]:
                continue
            value = float(g.run(np.array(one + two)) - f.run(np.array(one)))
            assert at(lines.lower, two, one) - room <= value <= at(lines.upper, two, one) + room
            assert lines.range.low[0, 0] - room <= value <= lines.range.high[0, 0] + room


def test_a_stable_rectifier_is_exact() -> None:
    relu = Function("relu")
    z, d = between(1.0, 2.0), between(-0.1, 0.1)
    lines = paired(relu, relu, z, z + d, d, single(relu, z + d), single(relu, z))
    for bound in (lines.lower, lines.upper):
        assert at(bound, 0.05, 1.5) == pytest.approx(0.05, abs=1e-9)


def test_statistics_are_those_of_clopper_and_pearson() -> None:
    assert doctest.testmod(stat).failed == 0
    assert stat.upper(5, 5) == stat.upper(0, 0) == 1.0
    assert stat.upper(1, 100) == pytest.approx(0.0645, abs=1e-4)
    assert all(a < b for a, b in pairwise(stat.upper(hits, 50) for hits in range(10)))


def test_a_box_is_rounded_outwards() -> None:
    low, high = outward(np.array([0.1, -1.0]), np.array([0.1, 2.0]))
    assert low[0] < 0.1 < high[0]
    assert (low[1], high[1]) == (-1.0, 2.0)
