"""Branch and bound over what functions inside the nets do: a rectifier is active or not, a quantizer gives a level up to
this one or one from the next on. What a box of many features needs, since halving one of them gains little.

Each side is bounded with Lagrange multipliers of its own (lagrange.py), found by gradient steps in single precision
and believed in double precision alone; a side whose function is tied to fewer inputs needs no more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.proof.bounds import Analysis
from kernels.proof.ir import F64, Function
from kernels.proof.lagrange import AT_V, AT_Z, LEVELS, Cells, D, Dual, Floats, Objective, Pass, V, Z, corners
from kernels.proof.trees import Forest

F32 = npt.NDArray[np.float32]
Place = tuple[int, int]  # cells, and which of them
NODES_MAX = 50_000
_ROOT_STEPS = 150
_STEPS = 20  # three times for each side, as long as it is open
_LOOK = 10  # for each candidate
_RATE = 0.05
_TOGETHER = 12
_CANDIDATES = 4
_ROOM = 2.0**-42
_PARTS_SEEN = 150  # before it is judged whether there is any hope
_HOPE = 4.0  # more parts than there is time for, by how bounds fell with each doubling


@dataclass
class Part:
    """The inputs that lead to these windows, and multipliers for them."""

    bound: float
    m: F32
    windows: dict[Place, F64]  # float64[5, 2]
    corners: dict[Place, F64]  # float64[6, corners]


@dataclass
class Found:
    """Of one row: the largest bound of all parts, and the inputs on which it seemed to be largest."""

    bound: float
    x: F64
    parts: int


def applies(analysis: object) -> bool:
    """Whether all functions are piecewise linear."""
    if not isinstance(analysis, Analysis) or isinstance(analysis.product.original, Forest):
        return False
    nets = analysis.product.original, analysis.product.variant
    return not any(unary.function.smooth for net in nets for unary in net.unaries)


def decide(
    analysis: Analysis, rows: F64, limits: F64, left_s: Callable[[], float]
) -> tuple[F64, F64]:
    """Bounds float64[rows] of rows @ (variant - original) over the analysis' only box, and inputs to look at.

    Rows are split until they are below their limits float64[rows], or one of them cannot be in the seconds left.
    """
    bounds, seen = analysis.outputs(rows, "difference").total[0], []
    dual: Dual | None = None
    for at in np.argsort(limits - bounds):
        if bounds[at] > limits[at] and left_s() > 0:
            dual = dual or Dual(analysis)
            branching = Branching(dual, rows[at], float(limits[at]), left_s)
            bounds[at] = min(bounds[at], branching.run().bound)
            seen.append(branching.x)
            if bounds[at] > limits[at]:
                break
    return bounds, np.stack(seen) if seen else np.zeros((0, analysis.ranges[0].low.shape[1]))


class Branching:
    """Bounds one row of the outputs' difference, until it is below a limit."""

    def __init__(self, dual: Dual, row: F64, limit: float, left_s: Callable[[], float]) -> None:
        """row: float64[outputs]. left_s: seconds."""
        self.dual, self.limit, self.left_s = dual, limit, left_s
        self.objective = dual.objective(row[None])
        self.base = [each.corners for each in dual.cells]
        self.closed = -np.inf
        self.worst, self.x = -np.inf, 0.5 * (dual.low + dual.high)

    def run(self) -> Found:
        """Splits the parts with the largest bounds first."""
        m = self.dual.start(self.objective).astype(np.float32)
        ascent = Ascent(self.dual, self.objective, m, [each[:, :, None] for each in self.base])
        ascent.steps(_ROOT_STEPS, _ROOT_STEPS)
        bound = float(ascent.exact()[0])
        waiting = [] if bound <= self.limit else [Part(bound, ascent.best_m[0], {}, {})]
        self.closed, parts, first_s = bound if not waiting else -np.inf, 1, self.left_s()
        while waiting and parts < NODES_MAX and self.left_s() > 0:
            waiting.sort(key=lambda part: part.bound)
            if parts > _PARTS_SEEN:
                gain = (bound - waiting[-1].bound) / np.log2(parts) + 1e-12
                needed = parts * 2.0 ** min((waiting[-1].bound - self.limit) / gain, 60.0)
                if needed > _HOPE * parts * first_s / max(first_s - self.left_s(), 1e-9):
                    break
            chosen, waiting = waiting[-_TOGETHER:], waiting[:-_TOGETHER]
            found = self._split(chosen)
            if found is None:
                return Found(max(each.bound for each in [*chosen, *waiting]), self.x, parts)
            parts += 2 * len(chosen)
            waiting += found
        return Found(max([self.closed, *(each.bound for each in waiting)]), self.x, parts)

    def _regions(self, parts: list[Part]) -> list[F64]:
        """float64[6, corners, parts, n] of each cells."""
        found = []
        for k, base in enumerate(self.base):
            changed = [(row, at, each) for row, part in enumerate(parts) for (c, at), each in part.corners.items() if c == k]
            most = max([base.shape[1], *(each.shape[1] for _, _, each in changed)])
            region = np.repeat(_padded(base, most)[:, :, None], len(parts), 2)
            for row, at, each in changed:
                region[:, :, row, at] = _padded(each, most)
            found.append(region)
        return found

    def _split(self, parts: list[Part]) -> list[Part] | None:
        """What is left open of the two sides of each; None where nothing can be split."""
        regions = [each.astype(np.float32) for each in self._regions(parts)]
        m = np.stack([part.m for part in parts])
        objective = self.objective.repeated(len(parts))
        seen = self.dual.passed(objective, m, regions)
        sides = self._candidates(parts, seen, m)
        if not sides or {each.parent for each in sides} != set(range(len(parts))):
            return None
        children = self._children(parts, sides)
        parents = np.array([each.parent for each in sides])
        ascent = Ascent(self.dual, self.objective.repeated(len(sides)), m[parents], self._regions(children))
        ascent.steps(_LOOK, _LOOK)
        kept = self._chosen(sides, ascent.best, np.array([part.bound for part in parts]))
        children, ascent = [children[at] for at in kept], ascent.of(kept)
        for round_ in range(4):
            if round_:
                ascent.steps(_STEPS, 3 * _STEPS)
            below = np.flatnonzero(ascent.best <= self.limit)
            exact = ascent.of(below).exact() if len(below) else np.zeros(0)
            self.closed = max([self.closed, *exact[exact <= self.limit].tolist()])
            done = set(below[exact <= self.limit].tolist())
            left = np.array([at for at in range(len(children)) if at not in done], int)
            children, ascent = [children[at] for at in left], ascent.of(left)
            if not children:
                return []
            if not round_:
                ascent.restart()
        bounds = ascent.exact()
        for part, bound, mine in zip(children, bounds, ascent.best_m, strict=True):
            part.bound, part.m = min(part.bound, float(bound)), mine
        self.closed = max([self.closed, *(part.bound for part in children if part.bound <= self.limit)])
        return [part for part in children if part.bound > self.limit]

    def _candidates(self, parts: list[Part], seen: Pass, m: F32) -> list[Side]:
        """Both sides of cuts through functions that the relaxation treats worst."""
        dual, values = self.dual, self._forward(seen)
        gaps, arguments = [], []
        for k, each in enumerate(dual.cells):
            windows = self._windows(parts, k)
            z, v = (np.clip(values[slot][0], windows[at, 0], windows[at, 1]) for at, slot in zip((Z, V), each.slots, strict=True))
            p, q = (seen.weights[slot] for slot in each.slots)
            mz, mv = (dual.parts(m)[slot - 1] for slot in each.slots)
            truth = p * each.f.run(z) + q * each.g.run(v) - mz * z - mv * v
            gaps.append(np.where(_splits(each.f, windows, 0) | _splits(each.g, windows, 1), seen.tops[k] - truth, -1.0))
            arguments.append((windows, z, v))
        ends = np.cumsum([0, *(each.shape[1] for each in gaps)])
        every = np.concatenate(gaps, 1)
        sides: list[Side] = []
        for parent, order in enumerate(np.argsort(-every, 1)[:, :_CANDIDATES]):
            for at in order[every[parent, order] >= 0]:
                k = int(np.searchsorted(ends, at, "right")) - 1
                place = int(at - ends[k])
                windows, z, v = arguments[k]
                for which, near, f in ((0, z, dual.cells[k].f), (1, v, dual.cells[k].g)):
                    cut = _cut(f, windows[:, :, parent, place], which, float(near[parent, place]))
                    if cut is not None:
                        sides += [Side(parent, (k, place), which, cut, above) for above in (False, True)]
        return sides

    def _forward(self, seen: Pass) -> list[tuple[F64, F64]]:
        """Arguments and values of all slots at the inputs of a pass; the best of these is kept."""
        slots = self.dual.slots
        x = seen.x.astype(np.float64)
        found: list[tuple[F64, F64]] = [(x, x)] * len(slots)
        for each in self.dual.cells:
            for slot, f in zip(each.slots, (each.f, each.g), strict=True):
                a = np.repeat(slots[slot].constant[None], len(x), 0)
                for place, matrix in slots[slot].terms:
                    a = a + found[place][1] @ matrix.T
                found[slot] = a, f.run(a)
        total = self.objective.constant + sum(
            found[place][1] @ weight[0] for place, weight in enumerate(self.objective.values)
        )
        if total.max() > self.worst:
            self.worst, self.x = float(total.max()), x[total.argmax()]
        return found

    def _windows(self, parts: list[Part], k: int) -> F64:
        """float64[5, 2, parts, n]."""
        found = np.repeat(self.dual.cells[k].windows[:, :, None], len(parts), 2)
        for row, part in enumerate(parts):
            for (cells, place), window in part.windows.items():
                if cells == k:
                    found[:, :, row, place] = window
        return found

    def _children(self, parts: list[Part], sides: list[Side]) -> list[Part]:
        """What each side leaves of its parent."""
        found: dict[int, Part] = {}
        for k in {side.place[0] for side in sides}:
            each, mine = self.dual.cells[k], [at for at, side in enumerate(sides) if side.place[0] == k]
            windows = np.stack([narrowed(each, self._window(parts[sides[at].parent], sides[at].place), sides[at])
                                for at in mine], 2)  # fmt: skip
            shapes = corners(each.f, each.g, windows)
            for row, at in enumerate(mine):
                place, parent = sides[at].place, parts[sides[at].parent]
                found[at] = Part(parent.bound, parent.m, {**parent.windows, place: windows[:, :, row]},
                                 {**parent.corners, place: shapes[:, :, row]})  # fmt: skip
        return [found[at] for at in range(len(sides))]

    def _window(self, part: Part, place: Place) -> F64:
        return part.windows.get(place, self.dual.cells[place[0]].windows[:, :, place[1]])

    def _chosen(self, sides: list[Side], bounds: Floats, before: F64) -> list[int]:
        """Of each parent the cut both of whose sides gain most."""
        best: dict[int, tuple[float, int]] = {}
        gain = np.maximum(before[[each.parent for each in sides]] - np.maximum(bounds, self.limit), 1e-9)
        for at in range(0, len(sides), 2):
            score = float(gain[at] * gain[at + 1])
            best[sides[at].parent] = max(best.get(sides[at].parent, (-1.0, 0)), (score, at))
        return [at + more for _, at in best.values() for more in (0, 1)]


@dataclass(frozen=True)
class Side:
    """A cut of a function of a part: the value is at most / at least (above) a level, or its argument `at`."""

    parent: int
    place: Place
    which: int  # 0: the original's function, 1: the variant's
    at: float
    above: bool


def _splits(f: Function, windows: F64, which: int) -> npt.NDArray[np.bool_]:
    low, high = windows[which]
    if f.step:
        first, last = _levels(f, windows, which)
        return np.asarray(last > first)
    found = np.zeros(low.shape, bool)
    for each in f.breaks:
        found |= (low < each) & (each < high)
    return found


def _levels(f: Function, windows: F64, which: int) -> tuple[F64, F64]:
    """The first and the last level that a quantizer can give in its window."""
    room = f.noise[1]
    low, high = windows[which]
    least, most = windows[LEVELS + which]
    return np.clip(f.run(low - room), least, most), np.clip(f.run(high + room), least, most)


def _cut(f: Function, window: F64, which: int, near: float) -> float | None:
    """Where to cut: at the break, or behind the level that is given near the argument `near`."""
    if not f.step:
        low, high = window[which]
        inside = [each for each in f.breaks if low < each < high]
        return min(inside, key=lambda each: abs(each - near)) if inside else None
    first, last = (float(each) for each in _levels(f, window, which))
    if last <= first:
        return None
    return float(np.clip(np.floor(near / f.step) * f.step, first, last - f.step))


def narrowed(cells: Cells, window: F64, side: Side) -> F64:
    """The window of one side of a cut. A quantizer's level up to `at`, or from the next one on, bounds its argument."""
    which, at, above, found = side.which, side.at, side.above, window.copy()
    f = cells.g if which else cells.f
    low, high = found[which]
    if f.step:
        room = f.noise[1] + _ROOM * (abs(at) + f.step)
        if above:
            found[LEVELS + which, 0] = at + f.step
            found[which, 0] = max(low, at + f.step / 2 - room)
        else:
            found[LEVELS + which, 1] = at
            found[which, 1] = min(high, at + f.step / 2 + room)
    else:
        found[which, 0 if above else 1] = at
    _met(found, V, found[Z, 0] + found[D, 0], found[Z, 1] + found[D, 1])
    _met(found, Z, found[V, 0] - found[D, 1], found[V, 1] - found[D, 0])
    _met(found, D, found[V, 0] - found[Z, 1], found[V, 1] - found[Z, 0])
    return found


def _met(window: F64, at: int, low: float, high: float) -> None:
    """An empty meeting changes nothing: that no input leads there is not claimed."""
    low, high = max(window[at, 0], low), min(window[at, 1], high)
    if low <= high:
        window[at] = low, high


def _padded(region: F64, most: int) -> F64:
    """With as many corners, the first one repeated."""
    return np.concatenate([region, np.repeat(region[:, :1], most - region.shape[1], 1)], 1)


class Ascent:
    """Gradient steps (Adam, Kingma and Ba 2015) on multipliers, many parts at once."""

    def __init__(self, dual: Dual, objective: Objective, m: F32, regions: list[F64]) -> None:
        self.dual, self.objective, self.m, self.regions = dual, objective, m, regions
        self.fast = [each.astype(np.float32) for each in regions]
        self.best, self.best_m = np.full(len(m), np.inf, np.float32), m.copy()
        self.restart()

    def restart(self) -> None:
        """Forgets the steps, and goes on from the best multipliers."""
        self.m, self.done = self.best_m.copy(), 0
        self.first, self.second = np.zeros_like(self.m), np.zeros_like(self.m)
        self.scale = np.concatenate(
            [np.repeat(np.abs(each).mean(1, keepdims=True) + 1e-6, each.shape[1], 1) if each.shape[1] else each
             for each in self.dual.parts(self.m)], 1)  # fmt: skip

    def steps(self, count: int, of: int) -> None:
        """`count` more of all in all `of` steps."""
        for _ in range(count):
            seen = self.dual.passed(self.objective, self.m, self.fast)
            better = seen.total < self.best
            self.best = np.where(better, seen.total, self.best)
            self.best_m[better] = self.m[better]
            g = seen.gradient
            self.done += 1
            self.first += 0.1 * (g - self.first)
            self.second += 0.01 * (g * g - self.second)
            rate = _RATE * (1 - 0.98 * (self.done - 1) / of) / (1 - 0.9**self.done)
            size = np.sqrt(self.second / np.float32(1 - 0.99**self.done)) + np.float32(1e-9)
            self.m = self.m - np.float32(rate) * self.scale * self.first / size

    def of(self, places: list[int] | npt.NDArray[np.int64]) -> Ascent:
        """Only these parts."""
        found = Ascent.__new__(Ascent)
        found.dual, found.done = self.dual, self.done
        found.objective = self.objective.of(places)
        found.regions, found.fast = ([each[:, :, places] for each in one] for one in (self.regions, self.fast))
        for name in ("m", "best", "best_m", "first", "second", "scale"):
            setattr(found, name, getattr(self, name)[places])
        return found

    def exact(self) -> F64:
        """float64[parts]: bounds that hold."""
        return np.asarray(self.dual.passed(self.objective, self.best_m.astype(np.float64), self.regions).bound)
