"""Branch and bound over what functions inside the nets do: a rectifier is active or not, a quantizer gives a level up
to this one, or one from the next on. What a box of many features needs, since halving one of them gains little.

Each part is bounded with Lagrange multipliers of its own (lagrange.py), found by gradient steps in single precision
and believed in double precision alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.proof.bounds import Analysis
from kernels.proof.ir import F64, Function
from kernels.proof.lagrange import LEVELS, Cells, Dual, Objective, Pass, corners

F32 = npt.NDArray[np.float32]
Place = tuple[int, int]  # cells, and which of them
PARTS_MAX = 50_000
_ROOT_STEPS = 150
_STEPS = 60
_LOOK = 30  # for each candidate
_RATE = 0.05
_LOOK_RATE = 0.01
_TOGETHER = 12
_BYTES_MAX = 1 << 28  # of the corners of parts that are looked at together
_CANDIDATES = 4
_DOUBLINGS_SEEN = 7  # of the parts, before it is judged whether there is any hope
_HOPE = 1.5  # times more parts than there is time for, if bounds go on falling as with the last two doublings
_ROOM = 2.0**-42


@dataclass
class Part:
    """The inputs that lead to certain windows, and multipliers for them."""

    bound: float
    m: F32
    windows: dict[Place, F64]  # float64[5, 2], where they are not the box's
    corners: dict[Place, F64]  # float64[6, corners], of these windows


@dataclass(frozen=True)
class Side:
    """A cut of a function (0: f, 1: g) of a part: its level is at most `at` or above; or its argument is."""

    parent: int
    place: Place
    which: int
    at: float
    above: bool


def decide(analysis: Analysis, rows: F64, limits: F64, left_s: Callable[[], float]) -> tuple[F64, F64]:
    """Bounds float64[rows] of rows @ (variant - original) over the analysis' only box, and inputs to look at.

    Parts are split until rows are below their limits float64[rows], or one of them cannot be in the seconds left.
    """
    bounds, seen, dual = analysis.outputs(rows, "difference").total[0], [], None
    for at in np.argsort(limits - bounds):
        if bounds[at] > limits[at] and left_s() > 0:
            dual = dual or Dual(analysis)
            branching = Branching(dual, rows[at], float(limits[at]), left_s)
            bounds[at] = min(bounds[at], branching.run())
            seen.append(branching.x)
            if bounds[at] > limits[at]:
                break
    return bounds, np.stack(seen) if seen else np.zeros((0, analysis.product.original.features))


class Branching:
    """Bounds one row of the outputs' difference until it is below a limit. `x`: where it seemed to be largest."""

    def __init__(self, dual: Dual, row: F64, limit: float, left_s: Callable[[], float]) -> None:
        """row: float64[outputs]. left_s: seconds."""
        self.dual, self.limit, self.left_s = dual, limit, left_s
        self.objective = dual.objective(row)
        self.closed, self.parts = -np.inf, 1
        corner_bytes = 8 * sum(each.corners.size for each in dual.cells)
        self.together = min(_TOGETHER, _BYTES_MAX // (4 * _CANDIDATES * corner_bytes + 1))
        self.worst, self.x = -np.inf, np.asarray(dual.box.low[0])

    def run(self) -> float:
        """The largest bound of all parts. Those with the largest bounds are split first."""
        if not self.together:
            return np.inf
        whole = Part(np.inf, self.dual.start(self.objective).astype(np.float32)[0], {}, {})
        ascent = Ascent(self.dual, self.objective, whole.m[None], self._regions([whole]))
        ascent.steps(_ROOT_STEPS, _RATE, self.limit, self.left_s)
        waiting = self._open([whole], ascent)
        course, began_s = [whole.bound], self.left_s()  # the bound at each doubling of the parts
        while waiting and self.parts < PARTS_MAX and self.left_s() > 0:
            waiting.sort(key=lambda part: part.bound)
            top = waiting[-1].bound
            if self.parts >= 2 ** len(course):
                course.append(top)
                if len(course) > _DOUBLINGS_SEEN and self._hopeless(course, began_s):
                    break
            chosen, waiting = waiting[-self.together :], waiting[: -self.together]
            found = self._split(chosen)
            if found is None:
                waiting += chosen
                break
            waiting += found
        return float(max([self.closed, *(each.bound for each in waiting)]))

    def _hopeless(self, course: list[float], began_s: float) -> bool:
        """Whether many more parts are needed than there is time for."""
        doublings = (course[-1] - self.limit) / (0.5 * (course[-3] - course[-1]) + 1e-12)
        spent_s = max(began_s - self.left_s(), 1e-9)
        return bool(spent_s * 2.0 ** min(doublings, 60.0) > _HOPE * began_s)

    def _open(self, parts: list[Part], ascent: Ascent) -> list[Part]:
        """Those whose exact bound is above the limit."""
        exact = self.dual.passed(ascent.objective, ascent.best_m.astype(np.float64), ascent.regions).bound
        for part, bound, m in zip(parts, exact, ascent.best_m, strict=True):
            part.bound, part.m = min(part.bound, float(bound)), m
        self.closed = max([self.closed, *(part.bound for part in parts if part.bound <= self.limit)])
        return [part for part in parts if part.bound > self.limit]

    def _regions(self, parts: list[Part]) -> list[F64]:
        """Corners float64[6, corners, parts, n] of each cells."""
        return [_assembled(each.corners, k, [part.corners for part in parts])
                for k, each in enumerate(self.dual.cells)]  # fmt: skip

    def _split(self, parts: list[Part]) -> list[Part] | None:
        """What is open of the better two sides of each; None where a part cannot be split."""
        m, regions = np.stack([part.m for part in parts]), [each.astype(np.float32) for each in self._regions(parts)]
        sides = self._sides(parts, self.dual.passed(self.objective.of([0] * len(parts)), m, regions), m)
        parents = [each.parent for each in sides]
        if set(parents) != set(range(len(parts))):
            return None
        children = self._children(parts, sides)
        look = Ascent(self.dual, self.objective.of([0] * len(sides)), m[parents], self._regions(children))
        look.steps(_LOOK, _LOOK_RATE, self.limit, self.left_s)
        gain = np.array([part.bound for part in parts])[parents] - np.maximum(look.best, self.limit)
        score, best = np.maximum(gain[::2], 1e-9) * np.maximum(gain[1::2], 1e-9), dict[int, int]()
        for at, parent in enumerate(parents[::2]):
            best[parent] = at if parent not in best or score[at] > score[best[parent]] else best[parent]
        kept = [2 * at + more for at in best.values() for more in (0, 1)]
        self.parts += len(kept)
        look, children = look.of(kept), [children[at] for at in kept]
        left = self._open(children, look)
        if not left:
            return []
        ascent = look.of([at for at, each in enumerate(children) if each.bound > self.limit])
        ascent.steps(_STEPS, _RATE, self.limit, self.left_s)
        return self._open(left, ascent)

    def _sides(self, parts: list[Part], seen: Pass, m: F32) -> list[Side]:
        """Both sides of cuts through functions that the relaxation treats worst."""
        near, gaps, cuts = self._forward(seen), list[F64](), list[F64]()
        for k, each in enumerate(self.dual.cells):
            window, truth = _assembled(each.windows, k, [part.windows for part in parts]), np.zeros(seen.tops[k].shape)
            found = []
            for which, (slot, f) in enumerate(zip(each.slots, each.functions, strict=True)):
                a = np.clip(near[slot], window[which, 0], window[which, 1])
                truth += seen.weights[slot] * f.run(a) - self.dual.parts(m)[slot - 1] * a
                found.append(_cut(f, window, which, a))
            cuts.append(np.array(found))
            gaps.append(np.where(np.isfinite(cuts[-1]).any(0), seen.tops[k] - truth, -np.inf))
        places = [(k, at) for k, each in enumerate(gaps) for at in range(each.shape[1])]
        every, all_cuts = np.concatenate(gaps, 1), np.concatenate(cuts, 2)
        return [Side(parent, places[at], which, float(cut), above)
                for parent, order in enumerate(np.argsort(-every, 1)[:, :_CANDIDATES])
                for at in order if every[parent, at] > -np.inf
                for which, cut in enumerate(all_cuts[:, parent, at]) if np.isfinite(cut)
                for above in (False, True)]  # fmt: skip

    def _forward(self, seen: Pass) -> list[F64]:
        """Arguments of all slots at the inputs of a pass, the worst of which is kept."""
        slots, x = self.dual.slots, seen.x.astype(np.float64)
        near: list[F64] = [x, *(np.repeat(each.constant[None].astype(np.float64), len(x), 0) for each in slots[1:])]
        values = list(near)
        for each in self.dual.cells:
            for slot, f in zip(each.slots, each.functions, strict=True):
                for place, matrix in slots[slot].terms:
                    near[slot] = near[slot] + values[place] @ matrix.T
                values[slot] = f.run(near[slot])
        total = sum((a @ b[0] for a, b in zip(values, self.objective.values, strict=True)), self.objective.constant)
        if total.max() > self.worst:
            self.worst, self.x = float(total.max()), x[total.argmax()]
        return near

    def _children(self, parts: list[Part], sides: list[Side]) -> list[Part]:
        """What each side leaves of its parent."""
        found: dict[int, Part] = {}
        for k, each in enumerate(self.dual.cells):
            mine = [(at, side, parts[side.parent]) for at, side in enumerate(sides) if side.place[0] == k]
            windows = [narrowed(each, part.windows.get(side.place, each.windows[:, :, side.place[1]]), side)
                       for _, side, part in mine]  # fmt: skip
            shapes = corners(each.functions, np.stack(windows, 2)) if mine else np.zeros((6, 1, 0))
            for row, (at, side, part) in enumerate(mine):
                found[at] = Part(part.bound, part.m, {**part.windows, side.place: windows[row]},
                                 {**part.corners, side.place: shapes[:, :, row]})  # fmt: skip
        return [found[at] for at in range(len(sides))]


def _assembled(base: F64, k: int, changes: Sequence[dict[Place, F64]]) -> F64:
    """float64[a, b, parts, n] of float64[a, b, n] and what is other in some parts; the first of b fills up."""
    changed = [(row, at, each) for row, part in enumerate(changes) for (cells, at), each in part.items() if cells == k]
    most = max([base.shape[1], *(each.shape[1] for _, _, each in changed)])
    fill = np.arange(most) * (np.arange(most) < base.shape[1])
    found = np.repeat(base[:, fill, None], len(changes), 2)
    for row, at, each in changed:
        found[:, : each.shape[1], row, at] = each
        found[:, each.shape[1] :, row, at] = each[:, :1]
    return found


def _cut(f: Function, window: F64, which: int, near: F64) -> F64:
    """Where to cut: at a break, or behind the level that is given near the argument `near`; NaN where nowhere."""
    low, high = window[which]
    if f.step:
        room, levels = f.noise[1], window[LEVELS + which]
        first, last = np.clip(f.run(low - room), *levels), np.clip(f.run(high + room), *levels)
        at = np.clip(np.floor(near / f.step) * f.step, first, np.maximum(last - f.step, first))
        return np.where(last > first, at, np.nan)
    found = np.full(np.shape(low), np.nan)
    for each in f.breaks:
        found = np.where((low < each) & (each < high), each, found)
    return found


def narrowed(cells: Cells, window: F64, side: Side) -> F64:
    """The window of one side of a cut. A quantizer's level up to `at`, or from the next one on, bounds its argument.

    It may be empty: that no input leads there is not claimed.
    """
    f, found, end = cells.functions[side.which], window.copy(), 0 if side.above else 1
    if f.step:
        found[LEVELS + side.which, end] = side.at + (f.step if side.above else 0.0)
        room = f.noise[1] + _ROOM * (abs(side.at) + f.step)
        edge = side.at + f.step / 2 + (-room if side.above else room)
    else:
        edge = side.at
    found[side.which, end] = (max if side.above else min)(found[side.which, end], edge)
    return found


class Ascent:
    """Gradient steps (Adam: Kingma and Ba, ICLR 2015) on multipliers, many parts at once."""

    def __init__(self, dual: Dual, objective: Objective, m: F32, regions: Sequence[F64]) -> None:
        self.dual, self.objective, self.regions = dual, objective, regions
        self.best, self.best_m = np.full(len(m), np.inf, np.float32), m.copy()

    def steps(self, count: int, rate: float, limit: float, left_s: Callable[[], float]) -> None:
        """So many, or until all bounds seem to be below the limit, or no seconds are left."""
        regions = [each.astype(np.float32) for each in self.regions]
        m, first, second, scale = self.best_m.copy(), *(np.zeros_like(self.best_m) for _ in range(3))
        for mine, each in zip(self.dual.parts(m), self.dual.parts(scale), strict=True):
            each += np.abs(mine).sum(1, keepdims=True) / np.float32(max(mine.shape[1], 1)) + np.float32(1e-6)
        for done in range(1, count + 1):
            seen = self.dual.passed(self.objective, m, regions)
            better = seen.bound < self.best
            self.best[better], self.best_m[better] = seen.bound[better], m[better]
            if (self.best < limit - abs(limit) * 2.0**-20).all() or left_s() <= 0:
                break
            first += np.float32(0.1) * (seen.gradient - first)
            second += np.float32(0.01) * (seen.gradient**2 - second)
            step = np.float32(rate * (1 - 0.98 * (done - 1) / count) / (1 - 0.9**done))
            m -= step * scale * first / (np.sqrt(second / np.float32(1 - 0.99**done)) + np.float32(1e-9))

    def of(self, places: list[int]) -> Ascent:
        """From the best multipliers of these parts."""
        regions = [each[:, :, places] for each in self.regions]
        return Ascent(self.dual, self.objective.of(places), self.best_m[places], regions)
