"""Bounds of the difference of two nets over boxes, many boxes at once: back-substitution through both nets together.

The forms are CROWN's (Zhang et al., NeurIPS 2018) on the pair (original value, difference), as in ReluDiff and
NeuroDiff (Paulsen et al., ICSE and ASE 2020). Pure; arrays are float64[tasks, n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels.proof.ir import F64, IDENTITY, MAGNITUDE_MAX, Expression, Function, Unsupported, rounding
from kernels.proof.lines import Flags, Lines, Range, paired, single
from kernels.proof.pair import Form, Mate, Product, original_form

_OWN = 2.0**-50  # our own rounding of one sum, by its magnitude and terms


@dataclass
class Argument:
    """A form with its errors: `exact` of our own arithmetic, `float_` of the runtime's, float64[tasks, n]."""

    form: Form
    exact: F64
    float_: F64


@dataclass
class Node:
    """The lines of a node on one or two arguments; `noise` is float error of its function."""

    arguments: tuple[Argument, ...]
    lines: Lines
    noise: float


@dataclass
class Rows:
    """Linear functions of the outputs to be bounded: their largest values, float64[tasks, rows].

    `real` without float rounding, `rounded` what it adds; `influence`: float64[tasks, rows, features] on the input.
    """

    real: F64
    rounded: F64
    influence: F64

    @property
    def total(self) -> F64:
        return (self.real + self.rounded) * (1 + 2.0**-50 * np.sign(self.real + self.rounded))


class Analysis:
    """Both nets over boxes. The work is done when it is made."""

    def __init__(
        self, product: Product, low: F64, high: F64, floats: bool = True, tick: Callable[[], None] = lambda: None
    ) -> None:
        """`low`, `high`: float64[tasks, features]. `floats`: with float32 rounding. Raises Unsupported on overflow.

        tick: called between products, may raise to break off.
        """
        self.product, self.floats, self.tasks, self._tick = product, floats, len(low), tick
        self.ranges: dict[int, Range] = {0: Range(low, high)}
        self.nodes: dict[int, Node] = {}
        self.arguments: dict[int, tuple[Argument, Range]] = {}
        self.regions: dict[int, tuple[Range, Range, Range]] = {}  # of pairs: z, z' and d
        for at, unary in enumerate(product.original.unaries, 1):
            self._single(at, unary.function, unary.argument, original_form(unary.argument))
        for at, (unary, mate) in enumerate(zip(product.variant.unaries, product.mates, strict=True), 1):
            node = product.value(at)
            self._single(node, unary.function, unary.argument, product.variant_form(unary.argument))
            if mate is not None:
                self._paired(at, unary.function, unary.argument, mate)

    def outputs(self, rows: F64, which: str) -> Rows:
        """Largest values of rows @ outputs: the "original"'s, the "variant"'s, or the "difference".

        rows: float64[rows, outputs], or float64[tasks, rows, outputs].
        """
        product = self.product
        ours = product.variant.tensors[product.variant.output]
        theirs = product.original.tensors[product.original.output]
        if which == "original":
            argument = self._argument(original_form(theirs), theirs, None)
        elif which == "variant":
            argument = self._argument(product.variant_form(ours), None, ours)
        else:
            argument = self._argument(product.difference_form(ours, theirs), theirs, ours)
        return self._upper(argument, rows if rows.ndim == 3 else rows[None])

    def answers(self) -> tuple[Argument, Argument]:
        """The outputs of the variant and of the original, each over its own net."""
        product = self.product
        ours, theirs = (net.tensors[net.output] for net in (product.variant, product.original))
        return (
            self._argument(product.variant_form(ours), None, ours),
            self._argument(original_form(theirs), theirs, None),
        )

    def _single(self, node: int, f: Function, expression: Expression, form: Form) -> None:
        mine = node <= len(self.product.original.unaries)
        argument = self._argument(form, expression if mine else None, None if mine else expression)
        self.arguments[node] = argument, self._range(argument, f.breaks, f.smooth or bool(f.step))
        self._lined(node, f, self.arguments[node][1])

    def _lined(self, node: int, f: Function, z: Range) -> None:
        """The lines of a node whose argument is in z."""
        lines, noise = single(f, z), f.noise[1] if self.floats else 0.0
        self.nodes[node] = Node((self.arguments[node][0],), lines, noise)
        self.ranges[node] = _widened(lines.range, noise)

    def _paired(self, at: int, g: Function, expression: Expression, mate: Mate) -> None:
        product, value = self.product, self.product.value(at)
        form = product.difference_form(expression, mate.argument)
        d_argument = self._argument(form, mate.argument, expression, mate.exact)
        moves = self._moves(value)
        if mate.exact:
            z_argument = self._argument(original_form(mate.argument), mate.argument, None, True)
            z, own, moves = self._range(z_argument, (), False), None, np.ones_like(moves)
        else:
            own = int(product.mates[at - 1].value.base or 0)  # type: ignore[union-attr]
            z_argument, z = self.arguments[own]
            moves = moves | self._moves(own)
        zv = self.arguments[value][1]
        d = self._range(d_argument, None, False, moves).meet(zv - z)  # of two constants no difference is asked
        zv, z = zv.meet(z + d), z.meet(zv - d)
        self.regions[at] = z, zv, d
        f = mate.function
        theirs_lines = single(IDENTITY, z) if own is None else self.nodes[own].lines
        self._lined(value, g, zv)
        lines = paired(f, g, z, zv, d, self.nodes[value].lines, theirs_lines)
        noise = f.noise[1] + g.noise[1] if self.floats else 0.0
        node = product.difference(at)
        self.nodes[node] = Node((d_argument, z_argument), lines, noise)
        self.ranges[node] = _widened(lines.range, noise)

    def _moves(self, node: int) -> Flags:
        """Which values of the node are not constant over each box."""
        return np.asarray((self.ranges[node].high > self.ranges[node].low).any(0))

    def _argument(
        self, form: Form, theirs: Expression | None, ours: Expression | None, exact_theirs: bool = False
    ) -> Argument:
        """The form with its errors; `theirs` of the original and `ours` of the variant are what floats compute.

        exact_theirs: the original's expression stands for itself, not for the runtime's value of it.
        """
        size = np.abs(form.constant)[None]
        for node, matrix in form.terms.items():
            size = size + _times(self.ranges[node].size, None if matrix is None else np.abs(matrix))
        terms = 16 + sum(self.ranges[node].low.shape[1] for node in form.terms)
        exact = np.zeros((self.tasks, len(form.constant)))
        if any(matrix is not None for matrix in form.terms.values()) or len(form.terms) > 1 or form.constant.any():
            exact = exact + terms * _OWN * size
        float_ = np.zeros_like(exact)
        for expression, variant in ((theirs, False), (ours, True)):
            if expression is None or not expression.count:
                continue
            magnitude = np.broadcast_to(expression.magnitude, exact.shape)
            for base, term in expression.terms.items():
                node = self.product.value(base) if variant else base
                magnitude = magnitude + _times(self.ranges[node].size, term.magnitude)
            if not (magnitude < MAGNITUDE_MAX).all():
                raise Unsupported("numbers in the net may overflow float32 over this box")
            exact = exact + terms * _OWN * magnitude
            if self.floats and (variant or not exact_theirs):
                float_ = float_ + rounding(expression.count) * magnitude
        return Argument(form, exact, float_)

    def _range(
        self, argument: Argument, breaks: tuple[float, ...] | None, always: bool, asked: Flags | None = None
    ) -> Range:
        """Intervals, and back-substitution of those that vary and are `asked`, `always`, or divided by a break."""
        form = argument.form
        middle, radius = form.constant[None], argument.exact + argument.float_
        for node, matrix in form.terms.items():
            box = self.ranges[node]
            middle = middle + _times(0.5 * (box.low + box.high), matrix)
            radius = radius + _times(0.5 * (box.high - box.low), None if matrix is None else np.abs(matrix))
        found = Range(middle - radius, middle + radius)
        if all(node == 0 for node in form.terms):
            return found
        if always or asked is not None:
            needed = (found.high > found.low).any(0) & (True if asked is None else asked)
        else:
            needed = np.zeros(found.low.shape[1], bool)
            for each in breaks or ():
                needed |= ((found.low < each) & (found.high > each)).any(0)
        places = np.flatnonzero(needed)
        if len(places):
            rows = np.zeros((2 * len(places), len(form.constant)))
            rows[np.arange(len(places)), places] = 1.0
            rows[len(places) + np.arange(len(places)), places] = -1.0
            most = self._upper(argument, rows[None]).total
            tight = Range(found.low.copy(), found.high.copy())
            tight.high[:, places] = most[:, : len(places)]
            tight.low[:, places] = -most[:, len(places) :]
            found = found.meet(tight)
        return found

    def _upper(self, argument: Argument, rows: F64) -> Rows:
        """Largest values of rows float64[1 or tasks, rows, n] @ argument."""
        real = np.zeros((self.tasks, rows.shape[1]))
        rounded = np.zeros_like(real)
        waiting: dict[int, F64] = {}
        _spread(argument, rows, waiting, real, rounded)
        while waiting and max(waiting) > 0:
            self._tick()
            at = max(waiting)
            rows, node = waiting.pop(at), self.nodes[at]
            positive = np.maximum(rows, 0.0)
            lower, upper = node.lines.lower, node.lines.upper
            real += _dot(rows, lower.constant) + _dot(positive, upper.constant - lower.constant)
            if node.noise:
                rounded += node.noise * np.abs(rows).sum(2)
            slopes = ((lower.slope, upper.slope), (lower.second, upper.second))
            for each, (low, high) in zip(node.arguments, slopes, strict=False):
                if low is None or high is None or not (low.any() or high.any()):
                    continue
                coefficients = rows * low[:, None] + positive * (high - low)[:, None]
                _spread(each, coefficients, waiting, real, rounded)
        box = self.ranges[0]
        influence = waiting.get(0, np.zeros((1, rows.shape[1], box.low.shape[1])))
        real += _dot(influence, 0.5 * (box.low + box.high)) + _dot(np.abs(influence), 0.5 * (box.high - box.low))
        real += _OWN * 16 * influence.shape[2] * _dot(np.abs(influence), box.size)
        return Rows(real, rounded, influence)


def _spread(argument: Argument, rows: F64, waiting: dict[int, F64], real: F64, rounded: F64) -> None:
    """Replaces the argument by its form."""
    form, size, n = argument.form, np.abs(rows), rows.shape[2]
    if form.constant.any():
        real += rows @ form.constant
    if len(rows) == 1:
        real += _dot(size, argument.exact)
        rounded += _dot(size, argument.float_)
    else:
        errors = np.matmul(size, np.stack([argument.exact, argument.float_], 2))
        real += errors[:, :, 0]
        rounded += errors[:, :, 1]
    for node, matrix in form.terms.items():
        part = rows if matrix is None else (rows.reshape(-1, n) @ matrix).reshape(*rows.shape[:2], -1)
        waiting[node] = waiting[node] + part if node in waiting else part


def _dot(rows: F64, values: F64) -> F64:
    """rows float64[1 or tasks, rows, n] times values float64[tasks, n]: float64[tasks, rows]."""
    if len(rows) == 1:
        return np.asarray(values @ rows[0].T)
    return np.asarray(np.matmul(rows, values[:, :, None])[:, :, 0])


def _times(values: F64, matrix: F64 | None) -> F64:
    return values if matrix is None else values @ matrix.T


def _widened(range_: Range, noise: float) -> Range:
    return Range(range_.low - noise, range_.high + noise) if noise else range_
