"""Upper bounds of a linear function of both nets' outputs over one box, from any Lagrange multipliers. Pure.

Each argument a of a function is the value of its expression plus an error e. With a multiplier m for each of these
equations, row . outputs <= constants + sum |m| e + the sum over cells of the largest p f(z) + q g(v) - m z - m' v, where
p and q are what row and multipliers make of the values: weak duality, so that any multipliers are sound (the
decomposition of Bunel et al., JMLR 2020). A cell is a function of the variant with its mate, or one function alone;
its arguments lie in a polygon, on which the functions are piecewise linear, so that corners hold the largest value.
A cell's window may be smaller than what the box allows: then the bound is about the inputs that lead there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.proof.bounds import Analysis, Argument
from kernels.proof.ir import F64, IDENTITY, Expression, Function
from kernels.proof.lines import Range
from kernels.proof.staircase import side

Floats = npt.NDArray[np.floating]
Z, V, D, LEVELS = 0, 1, 2, 3  # of a window: arguments, their difference, levels of the original's function (+ 1: ours)
AT_Z, AT_V, F_UP, F_DOWN, G_UP, G_DOWN = range(6)  # of corners
_SLACK = 2.0**-42
_OWN = 2.0**-40  # our own rounding, of all magnitudes in a sum


@dataclass
class Slot:
    """A function's argument: matrices on values of other slots (0: the input), and what is known of its error."""

    terms: list[tuple[int, Floats]]
    constant: Floats
    error: Floats
    noise: float  # of the function's value

    def single(self) -> Slot:
        """In single precision, to find multipliers with."""
        terms = [(place, matrix.astype(np.float32)) for place, matrix in self.terms]
        return Slot(terms, self.constant.astype(np.float32), self.error.astype(np.float32), self.noise)


@dataclass
class Cells:
    """Functions that are bounded together. `windows`: float64[5, 2, n], low and high; `corners`: float64[6, corners, n].

    The first slot is the original's function f of z, the second the variant's g of v; where there is none it is zero.
    """

    f: Function
    g: Function
    slots: tuple[int, int]
    windows: F64
    corners: F64
    start: tuple[F64, F64, F64]  # slopes of today's lines: float64[2 signs, n] of g by v and by z, and of f by z


def corners(f: Function, g: Function, windows: F64) -> F64:
    """float64[6, corners, n]: corners of the region cut where the functions bend; unused ones repeat another."""
    (zl, zh), (vl, vh), (dl, dh) = windows[:3]
    size = [np.maximum(np.abs(each[0]), np.abs(each[1])) for each in windows[:3]]
    room = _SLACK * (size[Z] + size[V] + size[D])
    theirs = [side(f, zl, zh, sign, room, windows[LEVELS]) for sign in (1.0, -1.0)]
    ours = [side(g, vl, vh, sign, room, windows[LEVELS + 1]) for sign in (1.0, -1.0)]
    zs, vs = [zl, zh], [vl, vh]
    for sides, ends in ((theirs, zs), (ours, vs)):
        ends += [each for one in sides[: 2 if sides[0].f.step else 1] for each in one.knots]
    pairs = [(a, a + b) for a in (zl, zh) for b in (dl, dh)] + [(a, a + b) for a in zs[2:] for b in (dl, dh)]
    pairs += [(a, b) for a in zs for b in vs] + [(b - a, b) for a in (dl, dh) for b in vs]
    z, v = np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])
    fits = (z >= zl - room) & (z <= zh + room) & (v >= vl - room) & (v <= vh + room)
    fits &= (v - z >= dl - room) & (v - z <= dh + room)
    for at in range(1, len(pairs)):
        fits[at] &= ~(fits[:at] & (z[:at] == z[at]) & (v[:at] == v[at])).any(0)
    first = np.arange(len(pairs)) < 4
    fits |= first[:, None] & ~fits.any(0)  # an empty region is a matter of rounding: then all of the box
    order = np.argsort(~fits, 0, kind="stable")[: int(fits.sum(0).max(initial=1))]
    order = np.where(np.take_along_axis(fits, order, 0), order, order[:1])
    z, v = np.take_along_axis(z, order, 0), np.take_along_axis(v, order, 0)
    return np.stack([z, v, theirs[0].at(z), theirs[1].at(z), ours[0].at(v), ours[1].at(v)])


class Dual:
    """The relaxation over the box of an analysis of one task, for linear functions of the outputs' difference."""

    def __init__(self, analysis: Analysis) -> None:
        """Functions that cannot change are constants. Smooth functions are not modelled: see `applies`."""
        self.analysis, product = analysis, analysis.product
        self.low, self.high = analysis.ranges[0].low[0], analysis.ranges[0].high[0]
        self.reach = analysis.ranges[0].size[0]
        self.slots: list[Slot] = [Slot([], np.zeros(0), np.zeros(0), 0.0)]
        self.cells: list[Cells] = []
        self._places: dict[int, tuple[int, npt.NDArray[np.int64]]] = {0: (0, np.arange(len(self.low)))}
        mated = {int(mate.value.base or 0): at for at, mate in enumerate(product.mates, 1) if mate and not mate.exact}
        pairs = _ordered({at: own for own, at in mated.items()}, len(product.original.unaries), len(product.mates))
        for own, at in pairs:
            self._cells(own, at)
        for own, at in pairs:
            for node, place in ((own, own), (product.value(at), at)):
                if place:
                    self._slot(node, (product.original if node == own else product.variant).unaries[place - 1].argument)
        self.fast = [each.single() for each in self.slots]
        self.widths = [len(each.constant) for each in self.slots[1:]]
        self.ends = np.cumsum([0, *self.widths])

    def _cells(self, own: int, at: int) -> None:
        analysis, product = self.analysis, self.analysis.product
        nodes = own, product.value(at) if at else 0
        f = product.original.unaries[own - 1].function if own else IDENTITY
        g = product.variant.unaries[at - 1].function if at else IDENTITY
        n = analysis.ranges[nodes[0] or nodes[1]].low.shape[1]
        zero = np.zeros((1, n))
        z, v = (analysis.arguments[node][1] if node else Range(zero, zero) for node in nodes)
        d = v - z
        if own and at:
            z, v, d = analysis.regions[at]
        noises = [analysis.nodes[node].noise if node else 0.0 for node in nodes]
        moves = np.zeros(n, bool)
        for node, noise in zip(nodes, noises, strict=True):
            if node:
                box = analysis.ranges[node]
                moves |= (box.high - box.low)[0] > 2 * noise * (1 + 2.0**-20)
        live = np.flatnonzero(moves)
        levels = [Range(zero + each.low, zero + each.high) for each in (f, g)]
        windows = np.stack([np.stack([each.low[0], each.high[0]]) for each in (z, v, d, *levels)])[:, :, live]
        for node, noise in zip(nodes, noises, strict=True):
            if node:
                self._places[node] = len(self.slots), live
            self.slots.append(Slot([], np.zeros(len(live)), np.zeros(len(live)), noise))
        slots = len(self.slots) - 2, len(self.slots) - 1
        self.cells.append(Cells(f, g, slots, windows, corners(f, g, windows), self._slopes(own, at, live)))

    def _slopes(self, own: int, at: int, live: npt.NDArray[np.int64]) -> tuple[F64, F64, F64]:
        """Of the analysis' lines, for a value that counts negatively and positively."""
        nodes, product = self.analysis.nodes, self.analysis.product
        zero = np.zeros((2, len(live)))
        theirs = zero
        if own:
            lines = nodes[own].lines
            theirs = np.stack([lines.lower.slope[0], lines.upper.slope[0]])[:, live]
        if not at:
            return zero, zero, theirs
        lines = nodes[product.difference(at) if own else product.value(at)].lines
        ours = np.stack([lines.lower.slope[0], lines.upper.slope[0]])[:, live]
        if not own or lines.lower.second is None or lines.upper.second is None:
            return ours, zero, theirs
        second = np.stack([lines.lower.second[0], lines.upper.second[0]])[:, live]
        return ours, second - ours, theirs

    def _slot(self, node: int, expression: Expression) -> None:
        """Fills in the argument of a function."""
        place, live = self._places[node]
        argument = self.analysis.arguments[node][0]
        slot = self.slots[place]
        slot.terms, slot.constant, slot.error = self._linear(argument, live)

    def _linear(self, argument: Argument, rows: npt.NDArray[np.int64]) -> tuple[list[tuple[int, F64]], F64, F64]:
        """These rows of a form, with what is constant folded in."""
        form, terms = argument.form, []
        constant, error = form.constant[rows], (argument.exact + argument.float_)[0, rows]
        for node, matrix in form.terms.items():
            place, live = self._places[node]
            box = self.analysis.ranges[node]
            low, high = box.low[0], box.high[0]
            part = np.eye(len(low))[rows] if matrix is None else matrix[rows]
            still = np.ones(len(low), bool)
            still[live] = False
            constant = constant + part[:, still] @ (0.5 * (low + high)[still])
            error = error + np.abs(part[:, still]) @ ((0.5 + _SLACK) * (high - low)[still])
            error = error + _OWN * (np.abs(part[:, still]) @ box.size[0, still])
            terms.append((place, part[:, live]))
        return terms, constant, error

    def objective(self, rows: F64) -> Objective:
        """Of rows float64[rows, outputs] times variant - original."""
        product = self.analysis.product
        ours = product.variant.tensors[product.variant.output]
        theirs = product.original.tensors[product.original.output]
        found = Objective(rows, [np.zeros((len(rows), n)) for n in (len(self.low), *self.widths)], np.zeros(len(rows)))
        for sign, argument in zip((1.0, -1.0), self.analysis.answers(), strict=True):
            terms, constant, error = self._linear(argument, np.arange(rows.shape[1]))
            for place, matrix in terms:
                found.values[place] = found.values[place] + sign * rows @ matrix
            found.constant += sign * rows @ constant + np.abs(rows) @ (error + _OWN * np.abs(constant))
        assert ours.size == theirs.size == rows.shape[1]
        return found

    def start(self, objective: Objective) -> F64:
        """Multipliers float64[rows, all] that say what today's lines do."""
        found = np.zeros((len(objective.constant), int(self.ends[-1])))
        values = [each.copy() for each in objective.values]
        for each in reversed(self.cells):
            (own, ours), (g_v, g_z, f_z) = each.slots, each.start
            p, q = values[own], values[ours]
            m = [np.where(q >= 0, g_z[1], g_z[0]) * q, np.where(q >= 0, g_v[1], g_v[0]) * q]
            left = p + q if each.f is not IDENTITY and each.g is not IDENTITY else p
            m[0] = m[0] + np.where(left >= 0, f_z[1], f_z[0]) * left
            for slot, mine in zip(each.slots, m, strict=True):
                found[:, self.ends[slot - 1] : self.ends[slot]] = mine
                for place, matrix in self.slots[slot].terms:
                    values[place] = values[place] + mine @ matrix
        return found

    def passed(self, objective: Objective, m: Floats, regions: Sequence[Floats]) -> Pass:
        """One pass: values, and the gradient by the multipliers. regions: of each cells[k], [6, corners, rows, n]."""
        exact = m.dtype == np.float64
        slots = self.slots if exact else self.fast
        parts = self.parts(m)
        weights = [each.astype(m.dtype) for each in objective.values]
        total, size = objective.constant.astype(m.dtype), np.zeros(len(m), m.dtype)
        for slot, mine in zip(slots[1:], parts, strict=True):
            total = total + mine @ slot.constant + np.abs(mine) @ slot.error
            size = size + np.abs(mine) @ np.abs(slot.constant)
            for place, matrix in slot.terms:
                weights[place] = weights[place] + mine @ matrix
        values: list[Floats] = [np.where(weights[0] > 0, self.high, self.low).astype(m.dtype)]
        gradient, tops = [], []
        for each, region in zip(self.cells, regions, strict=True):
            p, q = (weights[slot] for slot in each.slots)
            mz, mv = (parts[slot - 1] for slot in each.slots)
            f = np.where(p >= 0, region[F_UP], region[F_DOWN]) if each.f.step else region[F_UP]
            g = np.where(q >= 0, region[G_UP], region[G_DOWN]) if each.g.step else region[G_UP]
            score, part = p * f, np.empty_like(f)
            for weight, each_side in ((q, g), (-mz, region[AT_Z]), (-mv, region[AT_V])):
                np.multiply(weight, each_side, out=part)
                score += part
            top = score.argmax(0)
            at = top * top.size + np.arange(top.size).reshape(top.shape)  # of the flat array
            tops.append(score.take(at))
            values += [f.take(at), g.take(at)]
            gradient += [-region[AT_Z].take(at), -region[AT_V].take(at)]
            for slot in each.slots:
                total = total + np.abs(weights[slot]).sum(1) * m.dtype.type(slots[slot].noise)
            total = total + tops[-1].sum(1)
            if exact:
                pairs = ((p, f), (q, g), (mz, region[AT_Z]), (mv, region[AT_V]))
                size = size + sum((np.abs(a) * np.abs(b).max(0)).sum(1) for a, b in pairs)
        total = total + (weights[0] * values[0]).sum(1)
        size = size + np.abs(weights[0]) @ self.reach.astype(m.dtype)
        for own, slot in enumerate(slots[1:]):
            gradient[own] += slot.constant + np.sign(parts[own]) * slot.error
            for place, matrix in slot.terms:
                gradient[own] += values[place] @ matrix.T
        return Pass(total, size, np.concatenate(gradient, 1), weights, values[0], tops)

    def parts(self, m: Floats) -> list[Floats]:
        """The multipliers of each slot."""
        return [m[:, a:b] for a, b in zip(self.ends[:-1], self.ends[1:], strict=True)]


def _ordered(mates: dict[int, int], originals: int, variants: int) -> list[tuple[int, int]]:
    """Places (of the original, of the variant; 0: none), what is computed first before what needs it."""
    found: list[tuple[int, int]] = []
    free = [own for own in range(1, originals + 1) if own not in mates.values()]
    for at in range(1, variants + 1):
        own = mates.get(at, 0)
        while own and free and free[0] < own:
            found.append((free.pop(0), 0))
        found.append((own, at))
    return found + [(own, 0) for own in free]


@dataclass
class Objective:
    """Rows times the outputs' difference: what they make of the values of slots, [rows, n], and their constants."""

    rows: F64
    values: list[F64]
    constant: F64

    def of(self, places: Sequence[int] | npt.NDArray[np.int64]) -> Objective:
        """Some of many."""
        return Objective(self.rows, [each[places] for each in self.values], self.constant[places])

    def repeated(self, n: int) -> Objective:
        """The only row, n times."""
        return Objective(self.rows, [np.repeat(each, n, 0) for each in self.values], np.repeat(self.constant, n))


@dataclass
class Pass:
    """What multipliers lead to. `bound` is sound in double precision alone."""

    total: Floats
    size: Floats
    gradient: Floats
    weights: list[Floats]
    x: Floats  # where the linear part in the input is largest
    tops: list[Floats]  # the largest value of each cell

    @property
    def bound(self) -> Floats:
        return self.total + _OWN * (self.size + np.abs(self.total))
