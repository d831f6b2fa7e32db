"""What the checker makes of bounds of logits: powers, and the change of a probability."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from kernels.proof.checker_lines import GRID, POINT, exp
from kernels.proof.checker_outputs import changed, powers


@pytest.mark.parametrize("x", [Fraction(0), Fraction(1, 3), Fraction(-7, 2), Fraction(40), Fraction(-99)])
def test_exp_is_enclosed(x: Fraction) -> None:
    low, high = (exp(int(x * (1 << POINT)), up) for up in (False, True))
    assert low < high and high - low <= high >> 120
    assert low / 2**POINT == pytest.approx(np.exp(float(x)), rel=1e-12)


def test_change_of_a_probability_is_that_of_a_grid() -> None:
    for shift in (0.03, -0.2, 2.0):
        for low, high in ((0.01, 100.0), (3.0, 5.0), (0.2, 0.3)):
            r = np.geomspace(low, high, 10_001)
            seen = np.abs(1 / (1 + r) - 1 / (1 + r * np.exp(shift))).max()
            found = changed(int(Fraction(shift) * (1 << GRID)), (Fraction(low), Fraction(high)))
            assert seen - 1e-15 <= float(found) <= seen + 1e-6
    some = (Fraction(1, 3), Fraction(2))
    assert changed(700 << GRID, some) == 1 and changed(0, some) == 0


@pytest.mark.parametrize("shift", [-3.0, 0.1, 250.0, -590.0])
def test_odds_beyond_all_powers_are_still_bounded(shift: float) -> None:
    """A logit that is far below or above the others: R next to 0, or beyond all numbers."""
    whole = int(Fraction(shift) * (1 << GRID))
    for low, high in ((-5000, -700), (-700, 3), (2, 5000), (700, 5000)):
        odds = powers([low << GRID], False), powers([high << GRID], True)
        found = changed(whole, odds)
        for x in np.linspace(low, high, 4001):
            a, b = (0.5 * (1 - np.tanh(0.5 * each)) for each in (x, x + shift))
            assert abs(a - b) <= float(found) + 1e-12
    small = powers([-5000 << GRID], False), powers([-700 << GRID], True)
    assert shift > 100 or changed(whole, small) < Fraction(1, 1 << 60)
