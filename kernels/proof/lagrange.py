"""Upper bounds of a linear function of both nets' outputs over one box, from any Lagrange multipliers. Pure.

Each argument a of a function is the value of its expression plus an error e. With a multiplier m for each of these
equations, row . outputs <= constants + sum |m| |e| + the sum over cells of the largest p f(z) + q g(v) - m z - m' v,
where p and q are what row and multipliers make of the values: weak duality, so that any multipliers are sound (the
decomposition of Bunel et al., UAI 2020). A cell is a function of the variant with its mate, or one function alone;
its arguments lie in a polygon, on which the functions are piecewise linear, so that corners hold the largest value.
A cell's window may be smaller than what the box allows: then the bound is about the inputs that lead there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.proof.bounds import Analysis, Argument
from kernels.proof.ir import F64, IDENTITY, Function
from kernels.proof.lines import Range
from kernels.proof.pair import Product
from kernels.proof.staircase import side

Floats = npt.NDArray[np.floating]
Z, V, D, LEVELS = 0, 1, 2, 3  # of a window: arguments, their difference, levels of the original's function (+ 1: ours)
F_UP, F_DOWN, G_UP, G_DOWN = 2, 3, 4, 5  # of corners, behind Z and V
_SLACK = 2.0**-42
_OWN = 2.0**-40  # our own rounding, of all magnitudes in a sum


@dataclass
class Slot:
    """A function's argument: matrices on values of other slots (0: the input), a constant, the size of its error."""

    terms: list[tuple[int, Floats]]
    constant: Floats
    error: Floats
    noise: float = 0.0  # of the function's value

    def single(self) -> Slot:
        """In single precision, to find multipliers with."""
        terms = [(place, matrix.astype(np.float32)) for place, matrix in self.terms]
        return Slot(terms, self.constant.astype(np.float32), self.error.astype(np.float32), self.noise)


@dataclass
class Cells:
    """Functions f of z and g of v that are bounded together; one that is not there stands for zero.

    slots: of z and v. windows: float64[5, 2, n], low and high. corners: float64[6, corners, n].
    """

    functions: tuple[Function, Function]
    slots: tuple[int, int]
    windows: F64
    corners: F64


def corners(functions: tuple[Function, Function], windows: F64) -> F64:
    """float64[6, corners, n]: corners of the region cut where the functions bend; unused ones repeat another."""
    z, v, d = windows[:3]
    room = _SLACK * np.abs(windows[:3]).max(1).sum(0)
    sides = [[side(f, low, high, sign, room, levels) for sign in (1.0, -1.0)]
             for f, (low, high), levels in zip(functions, (z, v), windows[LEVELS:], strict=True)]  # fmt: skip
    zs, vs = ([*ends, *(knot for each in both[: 2 if both[0].f.step else 1] for knot in each.knots)]
              for ends, both in zip((z, v), sides, strict=True))  # fmt: skip
    pairs = [(a, a + b) for a in zs for b in d] + [(a, b) for a in zs for b in vs] + [(b - a, b) for a in d for b in vs]
    at = np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])
    fits = np.ones(at[0].shape, bool)
    for value, (low, high) in ((at[0], z), (at[1], v), (at[1] - at[0], d)):
        fits &= (value >= low - room) & (value <= high + room)
    for row in range(1, len(pairs)):
        fits[row] &= ~(fits[:row] & (at[0][:row] == at[0][row]) & (at[1][:row] == at[1][row])).any(0)
    fits[:4] |= ~fits.any(0)  # an empty region is a matter of rounding: then all of the box
    order = np.argsort(~fits, 0, kind="stable")[: int(fits.sum(0).max(initial=1))]
    order = np.where(np.take_along_axis(fits, order, 0), order, order[:1])
    a, b = (np.take_along_axis(each, order, 0) for each in at)
    return np.stack([a, b, *(each.at(a) for each in sides[0]), *(each.at(b) for each in sides[1])])


class Dual:
    """The relaxation over the only box of an analysis, whose functions must not be smooth."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.box = analysis, analysis.ranges[0]
        self.slots, self.cells = [Slot([], np.zeros(0), np.zeros(0))], list[Cells]()
        self._places = {0: (0, np.arange(analysis.product.original.features))}  # of nodes: slot, and what can change
        for own, at in _ordered(analysis.product):
            self._cells(own, at)
        for node, (place, live) in self._places.items():
            if node:
                linear = self._linear(analysis.arguments[node][0], live)
                self.slots[place] = Slot(*linear, analysis.nodes[node].noise)
        self.fast = [each.single() for each in self.slots]
        self.ends = np.cumsum([0, *(len(each.constant) for each in self.slots[1:])])

    def _cells(self, own: int, at: int) -> None:
        """A cell for what can change of a function of the original and of the variant (0: none)."""
        analysis, nets = self.analysis, (self.analysis.product.original, self.analysis.product.variant)
        nodes = own, analysis.product.value(at)
        f, g = (net.unaries[place - 1].function if place else IDENTITY
                for net, place in zip(nets, (own, at), strict=True))  # fmt: skip
        there = [node for node in nodes if node]
        zero = np.zeros_like(analysis.ranges[there[0]].low)
        z, v = (analysis.arguments[node][1] if node else Range(zero, zero) for node in nodes)
        z, v, d = analysis.regions[at] if len(there) == 2 else (z, v, v - z)
        widths = [(box.high - box.low)[0] > 2.01 * analysis.nodes[node].noise
                  for node in there for box in (analysis.ranges[node],)]  # fmt: skip
        live = np.flatnonzero(np.any(widths, 0))
        ranges = (z, v, d, *(Range(zero + each.low, zero + each.high) for each in (f, g)))
        windows = np.array([[each.low[0], each.high[0]] for each in ranges])[:, :, live]
        places = len(self.slots), len(self.slots) + 1
        self.slots += [Slot([], np.zeros(len(live)), np.zeros(len(live))) for _ in places]
        self._places |= {node: (place, live) for node, place in zip(nodes, places, strict=True) if node}
        self.cells.append(Cells((f, g), places, windows, corners((f, g), windows)))

    def _linear(self, argument: Argument, rows: npt.NDArray[np.int64]) -> tuple[list[tuple[int, Floats]], F64, F64]:
        """These rows of a form as terms, constant and error, with what cannot change folded in."""
        terms: list[tuple[int, Floats]] = []
        constant, error = argument.form.constant[rows], (argument.exact + argument.float_)[0, rows]
        for node, matrix in argument.form.terms.items():
            place, live = self._places[node]
            low, high = self.analysis.ranges[node].low[0], self.analysis.ranges[node].high[0]
            part = np.eye(len(low))[rows] if matrix is None else matrix[rows]
            still = np.delete(np.arange(len(low)), live)
            reach = (0.5 + _SLACK) * (high - low) + _OWN * np.maximum(np.abs(low), np.abs(high))
            constant = constant + part[:, still] @ (0.5 * (low + high)[still])
            error = error + np.abs(part[:, still]) @ reach[still]
            terms.append((place, part[:, live]))
        return terms, constant, error

    def objective(self, row: F64) -> Objective:
        """Of row float64[outputs] times variant - original."""
        sizes = len(self._places[0][1]), *np.diff(self.ends)
        values = [np.zeros((1, each)) for each in sizes]
        total = np.zeros(1)
        for sign, argument in zip((1.0, -1.0), self.analysis.answers(), strict=True):
            terms, constant, error = self._linear(argument, np.arange(len(row)))
            for place, matrix in terms:
                values[place] = values[place] + sign * row @ matrix
            total += sign * row @ constant + np.abs(row) @ (error + _OWN * np.abs(constant))
        return Objective(values, total)

    def start(self, objective: Objective) -> F64:
        """Multipliers float64[1, all]: slopes of chords."""
        found, values = np.zeros((1, int(self.ends[-1]))), list(objective.values)
        for each in reversed(self.cells):
            for slot, f, (low, high) in zip(each.slots, each.functions, each.windows, strict=False):
                rise = np.divide(f.at(high) - f.at(low), high - low, out=np.zeros_like(low), where=high > low)
                self.parts(found)[slot - 1][:] = mine = rise * values[slot]
                for place, matrix in self.slots[slot].terms:
                    values[place] = values[place] + mine @ matrix
        return found

    def parts(self, m: Floats) -> list[Floats]:
        """The multipliers of each slot."""
        return [m[:, a:b] for a, b in zip(self.ends[:-1], self.ends[1:], strict=True)]

    def passed(self, objective: Objective, m: Floats, regions: Sequence[Floats]) -> Pass:
        """Values for multipliers float[rows, all], and the gradient. regions: of each cells, [6, corners, rows, n]."""
        slots = self.slots if m.dtype == np.float64 else self.fast
        parts, weights = self.parts(m), [each.astype(m.dtype) for each in objective.values]
        total, size = objective.constant.astype(m.dtype), np.zeros(len(m), m.dtype)
        for slot, mine in zip(slots[1:], parts, strict=True):
            total = total + mine @ slot.constant + np.abs(mine) @ slot.error
            size += np.abs(mine) @ np.abs(slot.constant)
            for place, matrix in slot.terms:
                weights[place] = weights[place] + mine @ matrix
        values: list[Floats] = [np.where(weights[0] > 0, self.box.high, self.box.low).astype(m.dtype)]
        gradient, tops = list[Floats](), list[Floats]()
        for each, region in zip(self.cells, regions, strict=True):
            score, part, chosen = np.zeros_like(region[0]), np.empty_like(region[0]), []
            for at, f, up in zip(each.slots, each.functions, (F_UP, G_UP), strict=True):
                weight = weights[at]
                chosen.append(np.where(weight >= 0, region[up], region[up + 1]) if f.step else region[up])
                total = total + np.abs(weight).sum(1) * m.dtype.type(slots[at].noise)
                for factor, value in ((weight, chosen[-1]), (-parts[at - 1], region[at - each.slots[0]])):
                    score += np.multiply(factor, value, out=part)
                    if m.dtype == np.float64:
                        size += (np.abs(factor) * np.abs(value).max(0)).sum(1)
            top = score.argmax(0)
            flat = top * top.size + np.arange(top.size).reshape(top.shape)
            tops.append(score.take(flat))
            values += [value.take(flat) for value in chosen]
            gradient += [-region[which].take(flat) for which in (Z, V)]
            total = total + tops[-1].sum(1)
        total = total + (weights[0] * values[0]).sum(1)
        size += np.abs(weights[0]) @ self.box.size[0].astype(m.dtype)
        for mine, part, slot in zip(parts, gradient, slots[1:], strict=True):
            part += slot.constant + np.sign(mine) * slot.error
            for place, matrix in slot.terms:
                part += values[place] @ matrix.T
        bound = total + m.dtype.type(_OWN) * (size + np.abs(total))
        return Pass(bound, np.concatenate(gradient, 1), weights, values[0], tops)


@dataclass
class Objective:
    """What a row makes of the values of slots, float64[parts, n], and its constant, float64[parts]."""

    values: list[F64]
    constant: F64

    def of(self, places: Sequence[int] | npt.NDArray[np.int64]) -> Objective:
        """Of these parts."""
        return Objective([each[places] for each in self.values], self.constant[places])


@dataclass
class Pass:
    """What multipliers lead to. `bound` holds where it was computed in double precision."""

    bound: Floats
    gradient: Floats
    weights: list[Floats]
    x: Floats  # where the linear part in the input is largest
    tops: list[Floats]  # the largest value of each cell


def _ordered(product: Product) -> list[tuple[int, int]]:
    """Places of functions of the original and the variant (0: none) that make up cells, in the order of the graphs."""
    mates = {at: int(mate.value.base or 0) for at, mate in enumerate(product.mates, 1) if mate and not mate.exact}
    alone = [(own, 0) for own in range(1, len(product.original.unaries) + 1) if own not in mates.values()]
    return alone + [(mates.get(at, 0), at) for at in range(1, len(product.mates) + 1)]
