"""From bounds of the outputs to the claim: raw values, probabilities or the label. Exact rationals."""

from __future__ import annotations

from fractions import Fraction
from functools import cache, partial
from math import isqrt

from kernels.proof.checker_bounds import Box, Form, Pairing, form_of
from kernels.proof.checker_graph import Lacks, require
from kernels.proof.checker_lines import GRID, POINT, exp

PAIRS_MAX = 32  # classes up to which every pair is bounded for itself
MARGIN = 1 << (GRID - 16)  # of logits, so that float32 probabilities keep their order
EXPONENT_MAX = 600 << GRID  # powers of less are 0 over 2^POINT
HUGE = Fraction(1 << 2000)  # more than a power of half of it
_PROBABLE = ("Sigmoid", "Concat", "Identity", "Cast", "Dropout", "Reshape", "Flatten")  # perhaps probabilities

Bounds = tuple[Fraction, Fraction]  # with float32 rounding, and without


class Outputs:
    """The output rows of both nets, and of their difference; made once for every box."""

    def __init__(self, pairing: Pairing) -> None:
        self.original = pairing.original
        self.tensors = [net.tensors[net.output] for net in (pairing.original, pairing.variant)]
        rows = [each.rows for each in self.tensors]
        self.forms = [form_of(each) for each in (*rows, pairing.difference(*self.tensors[::-1]))]
        self.n = len(self.tensors[0].items)

    def bound(self, box: Box, quantity: str) -> Bounds | None:
        """The largest change of the quantity over the box. None: the label may change. Raises Lacks."""
        errors = [box.errors(each) for each in self.tensors]
        both = [a + b for a, b in zip(*errors, strict=True)]
        theirs, ours, apart = (f._replace(errors=e) for f, e in zip(self.forms, (*errors, both), strict=True))
        if quantity == "label":
            return (Fraction(0), Fraction(0)) if self._keeps(box, theirs, ours, apart) else None
        last = self.original.producers[self.original.output].op_type
        if quantity == "softmax" and last not in _PROBABLE:
            return self._probabilities(box, theirs, apart)
        found = [box.upper(apart, self._row({i: sign})) for i in range(self.n) for sign in (1, -1)]
        return Fraction(max(map(sum, found)), 1 << GRID), Fraction(max(real for real, _ in found), 1 << GRID)

    def _row(self, weights: dict[int, int]) -> tuple[int, ...]:
        return tuple(weights.get(i, 0) for i in range(self.n))

    def _keeps(self, box: Box, theirs: Form, ours: Form, apart: Form) -> bool:
        """Whether one output is above all others in both nets, whatever the input."""
        require(self.n > 1, Lacks, "a label of one output")
        least = MARGIN if box.floats and self.original.softmax else 0

        def above(row: tuple[int, ...]) -> bool:
            worst = sum(box.upper(theirs, row))
            return max(worst, min(sum(box.upper(ours, row)), worst + sum(box.upper(apart, row)))) < -least

        rows = [[self._row({j: 1, i: -1}) for j in range(self.n) if j != i] for i in range(self.n)]
        return any(all(map(above, each)) for each in rows)

    def _probabilities(self, box: Box, theirs: Form, apart: Form) -> Bounds:
        """p = 1 / (1 + R), R = sum of exp(z_j - z_i); the variant's R is R k, ln k within the pairs' differences."""
        n = self.n
        if n == 1 and self.original.softmax:
            return Fraction(0), Fraction(0)  # it is one
        require(1 < n <= PAIRS_MAX, Lacks, f"softmax over one class or more than {PAIRS_MAX}")
        of_theirs, of_apart = (cache(partial(box.upper, which)) for which in (theirs, apart))
        worst = [Fraction(0), Fraction(0)]
        for i in range(n):
            rows = [[self._row({j: sign, i: -sign}) for j in range(n) if j != i] for sign in (1, -1)]
            high, low = ([sum(of_theirs(row)) for row in side] for side in rows)
            odds = powers([-each for each in low], False), powers(high, True)
            for place in (0, 1):
                high, low = ([a + b * (1 - place) for a, b in map(of_apart, side)] for side in rows)
                worst[place] = max(worst[place], *(changed(each, odds) for each in (max([0, *high]), -max([0, *low]))))
        floats = 9 + n + n.bit_length() if box.floats else 0
        return worst[0] + Fraction(floats, 1 << 23), worst[1]


def powers(exponents: list[int], up: bool) -> Fraction:
    """A bound of the sum of exp(x)."""
    if up and max(exponents) > EXPONENT_MAX:
        return HUGE
    kept = [max(min(each, EXPONENT_MAX), -EXPONENT_MAX) << POINT - GRID for each in exponents]
    return Fraction(sum(exp(each, up) for each in kept), 1 << POINT)


def changed(shift: int, odds: Bounds) -> Fraction:
    """Largest |1/(1+R) - 1/(1+R k)| for ln k = shift and R within the odds, where HUGE is any number.

    For fixed k it is largest at R = 1/sqrt(k), there (sqrt(k) - 1) / (sqrt(k) + 1), and falls to both sides.
    """
    if not shift or abs(shift) > EXPONENT_MAX:
        return Fraction(0 if not shift else 1)
    k = powers([shift], shift > 0)
    root = Fraction(isqrt(int(k * (1 << 2 * POINT))) + (shift > 0), 1 << POINT)
    if odds[0] ** 2 * k <= 1 <= odds[1] ** 2 * k:
        return abs(root - 1) / (root + 1)
    r = odds[0] if odds[0] ** 2 * k > 1 else odds[1]
    return r * abs(k - 1) / ((1 + r) * (1 + r * k))
