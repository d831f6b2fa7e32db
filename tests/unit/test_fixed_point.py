"""The benchmark's fixed-point nets against exact fractions, and the attack on them: what it claims is replayed."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest

from tests.bench.fixed_point import Array, Attack, FixedPoint, Weights, gradient

SIZES = (12, 8, 8, 3)


def weights_of(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    numbers = [(rng.normal(size=shape) / 2, rng.normal(size=shape[1]) / 4) for shape in pairwise(SIZES)]
    return Weights([(w.astype(np.float32), b.astype(np.float32)) for w, b in numbers])


def exactly(net: FixedPoint, pixels: list[int]) -> list[Fraction]:
    """The paper's arithmetic in fractions: levels of 2^-(bits - 2), half up, from zero to the last level."""
    values = [Fraction(each, 256) for each in pixels]
    for place, (w, b) in enumerate(net.layers):
        sums = [sum((v * Fraction(int(each), 1 << net.bits - 1) for v, each in zip(values, column, strict=True)),
                    Fraction(int(shift), 1 << net.bits - 2)) for column, shift in zip(w.T, b, strict=True)]  # fmt: skip
        levels = [floor(each * (1 << net.bits - 2) + Fraction(1, 2)) for each in sums]
        last = place == len(net.layers) - 1
        values = sums if last else [Fraction(min(max(k, 0), 2**net.bits - 1), 1 << net.bits - 2) for k in levels]
    return values


@pytest.mark.parametrize("bits", [4, 6, 8, 10])
def test_fixed_point_is_exact(bits: int) -> None:
    net, rng = FixedPoint.of(weights_of(bits), bits), np.random.default_rng(0)
    for x in rng.integers(0, 256, (20, SIZES[0])):
        assert net.answers(x[None])[0].tolist() == [float(each) for each in exactly(net, x.tolist())]


def smoothly(net: FixedPoint, x: Array, width: float) -> Array:
    """Output 0 with smoothed jumps."""
    near = net.floats()
    for w, b in near.layers[:-1]:
        x, _ = net.smoothed(width)(x @ w + b)
    return np.asarray((x @ near.layers[-1][0] + near.layers[-1][1])[:, 0])


@pytest.mark.parametrize("bits", [4, 6])
def test_the_slopes_of_smoothed_jumps_are_those_of_their_values(bits: int) -> None:
    net, x = FixedPoint.of(weights_of(1), bits), np.random.default_rng(1).random(SIZES[0])
    slope, h = gradient(net.floats(), x[None], 0, net.smoothed(0.3))[0], 1e-6
    for at in range(len(x)):
        up, down = (x + sign * h * np.eye(len(x))[at] for sign in (1, -1))
        rise = (smoothly(net, up[None], 0.3) - smoothly(net, down[None], 0.3))[0] / (2 * h)
        assert slope[at] == pytest.approx(rise, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_attack_claims_what_integers_of_the_box_show(seed: int) -> None:
    weights = weights_of(seed)
    net, rng = FixedPoint.of(weights, 4), np.random.default_rng(seed)
    middle = rng.integers(0, 256, SIZES[0])
    low, high = np.clip(middle - 3, 0, 255).astype(float), np.clip(middle + 3, 0, 255).astype(float)
    attack = Attack(weights, net, 1, low, high)
    worst = attack.run(np.stack([low, high]), np.inf, 3)
    best = attack.best
    assert (best == np.rint(best)).all() and (low <= best).all() and (best <= high).all()
    shown = float(exactly(net, best.astype(int).tolist())[1]) - float(weights.answers(best[None])[0, 1])
    assert worst == pytest.approx(abs(shown), abs=1e-12)
    points = rng.integers(low, high, (2000, SIZES[0]), endpoint=True).astype(float)
    assert worst >= attack.differences(points).max()
