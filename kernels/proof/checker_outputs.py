"""From bounds of the outputs to the claim: raw values, probabilities or the label. Exact rationals."""

from __future__ import annotations

from fractions import Fraction
from functools import cache, partial
from math import isqrt

from kernels.proof.checker_bounds import Argument, Box, Pairing, form_of
from kernels.proof.checker_lines import GRID
from kernels.proof.checker_rows import Lacks

PAIRS_MAX = 32  # classes up to which every pair is bounded for itself
MARGIN = 1 << (GRID - 16)  # of logits, so that float32 probabilities keep their order
EXPONENT_MAX = 600
SIGMOID_FLOAT = Fraction(9, 1 << 22)  # each of both to 2^-20 in float32, and a subtraction from one
_TERMS = 48
_POINT = 320

Interval = tuple[Fraction, Fraction]
Bounds = tuple[Fraction, Fraction]  # with float32 rounding, and without


class Outputs:
    """The output rows of both nets, and of their difference; made once for every box."""

    def __init__(self, pairing: Pairing) -> None:
        self.theirs = pairing.original.tensors[pairing.original.output]
        own = pairing.variant.tensors[pairing.variant.output]
        self.ours, self.original = pairing.moved(own), pairing.original
        self.forms = [form_of(each) for each in (self.theirs, self.ours, pairing.difference(own, self.theirs))]
        self.n = len(self.theirs.rows)

    def bound(self, box: Box, quantity: str) -> Bounds | None:
        """The largest change of the quantity over the box. None: the label may change. Raises Lacks."""
        errors = box.rounding(self.theirs), box.rounding(self.ours)
        both = [a + b for a, b in zip(*errors, strict=True)]
        theirs, ours, apart = (Argument(f, e) for f, e in zip(self.forms, (*errors, both), strict=True))
        if quantity == "label":
            return None if self.original.sigmoid else self._label(box, theirs, ours, apart)
        if quantity == "softmax" or self.original.sigmoid:
            return self._probabilities(box, theirs, apart)
        found = [box.upper(apart, _row(self.n, {i: sign})) for i in range(self.n) for sign in (1, -1)]
        return _exact(max(map(sum, found))), _exact(max(real for real, _ in found))

    def _label(self, box: Box, theirs: Argument, ours: Argument, apart: Argument) -> Bounds | None:
        """Zero when one output is above all others in both nets, whatever the input."""
        least = MARGIN if box.floats and self.original.softmax else 0

        def above(i: int, j: int) -> bool:
            row = _row(self.n, {j: 1, i: -1})
            worst = sum(box.upper(theirs, row))
            of_ours = min(sum(box.upper(ours, row)), worst + sum(box.upper(apart, row)))
            return max(worst, of_ours) < -least

        if any(all(above(i, j) for j in range(self.n) if j != i) for i in range(self.n)):
            return Fraction(0), Fraction(0)
        return None

    def _probabilities(self, box: Box, theirs: Argument, apart: Argument) -> Bounds:
        """p = 1 / (1 + R), R = sum of exp(z_j - z_i); the variant's R is R k, ln k within the pairs' differences.

        A sigmoid is a softmax over its input and a zero.
        """
        n, alone = self.n, bool(self.original.sigmoid)
        if n > PAIRS_MAX:
            raise Lacks(f"softmax over more than {PAIRS_MAX} classes")
        of_theirs, of_apart = (cache(partial(box.upper, which)) for which in (theirs, apart))
        total = real = Fraction(0)
        for i in range(n):
            rows = [_row(n, {i: -1} if alone else {j: 1, i: -1}) for j in range(n) if (i == j) == alone]
            backs = [tuple(-each for each in row) for row in rows]
            away = [[_exact(sum(of_theirs(row))) for row in side] for side in (rows, backs)]
            odds = _odds([(-low, high) for high, low in zip(*away, strict=True)])
            change = [[of_apart(row) for row in side] for side in (rows, backs)]
            for rounded in (True, False):
                high, low = (_exact(max([0, *(a + b * rounded for a, b in side)])) for side in change)
                worst = max(changed(-low, odds), changed(high, odds))
                total, real = (max(total, worst), real) if rounded else (total, max(real, worst))
        floats = SIGMOID_FLOAT if alone else Fraction(0 if n == 1 else 9 + n + n.bit_length(), 1 << 23)
        return total + (floats if box.floats else 0), real


def _odds(ranges: list[Interval]) -> Interval | None:
    """The sum of the exponentials; None when one is too large or too small to matter."""
    if any(abs(each) > EXPONENT_MAX for pair in ranges for each in pair):
        return None
    return sum((exp(a, False) for a, _ in ranges), Fraction(0)), sum((exp(b, True) for _, b in ranges), Fraction(0))


def changed(shift: Fraction, odds: Interval | None) -> Fraction:
    """Largest |1/(1+R) - 1/(1+R k)| for ln k = shift and R within the odds (None: any R).

    For fixed k it is largest at R = 1/sqrt(k), there (sqrt(k) - 1) / (sqrt(k) + 1), and falls to both sides.
    """
    if not shift or abs(shift) > EXPONENT_MAX:
        return Fraction(0 if not shift else 1)
    k = exp(shift, shift > 0)
    root = Fraction(isqrt(int(k * (1 << 2 * _POINT))) + (1 if shift > 0 else 0), 1 << _POINT)
    if odds is None or odds[0] ** 2 * k <= 1 <= odds[1] ** 2 * k:
        return abs(root - 1) / (root + 1)
    r = odds[0] if odds[0] ** 2 * k > 1 else odds[1]
    return r * abs(k - 1) / ((1 + r) * (1 + r * k))


def exp(x: Fraction, up: bool) -> Fraction:
    """A bound of exp(x), from above or below: Taylor on x / 2^s in [0, 1/2], squared s times, rounded outward."""
    if x < 0:
        return 1 / exp(-x, not up)
    s = max(0, int(x).bit_length() + 1)
    y = _cut(x / (1 << s), up)
    term, total = Fraction(1), Fraction(1)
    for i in range(1, _TERMS):
        term = _cut(term * y / i, up)
        total += term
    total += 2 * term if up else 0  # the rest of the series is less
    for _ in range(s):
        total = _cut(total * total, up)
    return total


def _cut(value: Fraction, up: bool) -> Fraction:
    scaled = value.numerator << _POINT
    return Fraction(-(-scaled // value.denominator) if up else scaled // value.denominator, 1 << _POINT)


def _exact(value: int) -> Fraction:
    return Fraction(value, 1 << GRID)


def _row(n: int, weights: dict[int, int]) -> tuple[int, ...]:
    return tuple(weights.get(i, 0) for i in range(n))
