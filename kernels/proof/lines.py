"""Linear bounds of functions and of their differences. Pure; arrays are float64[tasks, n].

Any slope is sound, because the constant is computed for it: a piecewise linear function minus a line takes its extremes
at vertices, and all of them are tried. Slopes are multiples of 1/256, so that a certificate can hold them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.proof.ir import F64, Function
from kernels.proof.staircase import Side, side

Flags = npt.NDArray[np.bool_]
GRID = 256.0
_SLACK = 2.0**-42  # of the numbers that a constant is computed from: our own rounding, with room


@dataclass
class Range:
    """low <= value <= high, elementwise."""

    low: F64
    high: F64

    @property
    def size(self) -> F64:
        """The largest magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def meet(self, other: Range) -> Range:
        """The intersection. Where rounding makes it empty, self stays."""
        low, high = np.maximum(self.low, other.low), np.minimum(self.high, other.high)
        wrong = low > high
        return Range(np.where(wrong, self.low, low), np.where(wrong, self.high, high))

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Range) -> Range:
        return Range(self.low - other.high, self.high - other.low)


@dataclass
class Bound:
    """One side of a function: slope * argument (+ second * second argument) + constant."""

    slope: F64
    constant: F64
    second: F64 | None = None


@dataclass
class Lines:
    """Both sides, and the range of the value."""

    lower: Bound
    upper: Bound
    range: Range


def single(f: Function, z: Range) -> Lines:
    """Lines of f on z; constants hold a quantizer's rounding, not that of floats."""
    ends = f.at(z.low), f.at(z.high)
    bounds = []
    for sign in (-1.0, 1.0):
        edge = side(f, z.low, z.high, sign, _SLACK * z.size)
        best: Bound | None = None
        for slope in _slopes(f, z, edge):
            constant = _farthest(edge, z, slope)
            if f.step and not slope.any():
                constant = _cells(f, z)[int(sign > 0)]
            best = _better(best, Bound(slope, constant), z, sign)
        assert best is not None
        bounds.append(best)
    low, high = _cells(f, z) if f.step else (ends[0] - _SLACK, ends[1] + _SLACK) if f.smooth else ends
    return Lines(bounds[0], bounds[1], Range(low, high))


def _slopes(f: Function, z: Range, edge: Side) -> list[F64]:
    """Slopes that are tried: flat, the chord, the middle's or the leak's, steep, and to a quantizer's last jump."""
    found = [np.zeros_like(z.low), _chord(edge, z.low, z.high)]
    found.append(_grid(f.slope(0.5 * (z.low + z.high)) if f.smooth else np.full_like(z.low, f.alpha)))
    if not f.smooth:
        found.append(np.ones_like(z.low))
    if f.step:
        found.append(_chord(edge, z.low if edge.sign > 0 else z.high, edge.knots[1]))
    return found


def _chord(edge: Side, a: F64, b: F64) -> F64:
    width = b - a
    return _grid(np.divide(edge.at(b) - edge.at(a), width, out=np.zeros_like(width), where=width != 0))


def _grid(slope: F64) -> F64:
    return np.clip(np.rint(slope * GRID), -2 * GRID, 2 * GRID) / GRID


def _farthest(edge: Side, z: Range, slope: F64) -> F64:
    """The largest f(z) - slope z from above, or the least from below, with room for our rounding."""
    points = [z.low, z.high, *(np.clip(each, z.low, z.high) for each in edge.knots)]
    if edge.f.smooth:
        points += [np.clip(each, z.low, z.high) for each in _critical(edge.f, slope)]
    most = np.maximum.reduce([edge.sign * (edge.at(each) - slope * each) for each in points])
    return np.asarray(edge.sign * (most + _SLACK * (z.size + np.abs(most))))


def _critical(f: Function, slope: F64) -> tuple[F64, F64]:
    """Where the derivative is the slope: s (1 - s) = slope, or 1 - t^2 = slope."""
    if f.kind == "sigmoid":
        root = np.sqrt(np.maximum(1 - 4 * slope, 0.0))
        most = np.log1p(np.minimum(root, 1 - 2.0**-50)) - np.log1p(-np.minimum(root, 1 - 2.0**-50))
    else:
        most = np.arctanh(np.minimum(np.sqrt(np.maximum(1 - slope, 0.0)), 1 - 2.0**-50))
    return -most, most


def _cells(f: Function, z: Range) -> tuple[F64, F64]:
    """The levels that a quantizer can give on z, with room for the rounding of its division and product."""
    room = f.noise[1]
    low, high = f.run(z.low - room), f.run(z.high + room)
    return low - np.abs(low) * 2.0**-23, high + np.abs(high) * 2.0**-23


def _better(a: Bound | None, b: Bound, z: Range, sign: float, second: Range | None = None) -> Bound:
    """The one that is tighter in the middle; sign 1 for upper bounds."""
    if a is None:
        return b
    middle = 0.5 * (z.low + z.high)
    gain = (b.slope - a.slope) * middle + b.constant - a.constant
    if second is not None and a.second is not None and b.second is not None:
        gain = gain + (b.second - a.second) * 0.5 * (second.low + second.high)
    take = sign * gain < 0
    both = None
    if a.second is not None and b.second is not None:
        both = np.where(take, b.second, a.second)
    return Bound(np.where(take, b.slope, a.slope), np.where(take, b.constant, a.constant), both)


def paired(f: Function, g: Function, z: Range, zv: Range, d: Range, ours: Lines, theirs: Lines) -> Lines:
    """Lines of g(z + d) - f(z) in d and (second) z, for z + d in zv; `ours` are g's lines, `theirs` are f's."""
    zero, one = np.zeros_like(z.low), np.ones_like(z.low)
    apart = ours.range - theirs.range
    lower = Bound(zero, apart.low, zero)
    upper = Bound(zero, apart.high, zero)
    mixed_low = Bound(ours.lower.slope, ours.lower.constant - theirs.upper.constant,
                      ours.lower.slope - theirs.upper.slope)  # fmt: skip
    mixed_high = Bound(ours.upper.slope, ours.upper.constant - theirs.lower.constant,
                       ours.upper.slope - theirs.lower.slope)  # fmt: skip
    lower, upper = _better(lower, mixed_low, d, -1.0, z), _better(upper, mixed_high, d, 1.0, z)
    if f.smooth or g.smooth:
        if f == g:
            lower, upper = _same_smooth(f, z, zv, d, lower, upper)
        return Lines(lower, upper, _extent(d, z, lower, upper).meet(apart))
    spread = d.high - d.low
    bounds, extent = [], []
    for sign, bound, mixed in ((-1.0, lower, mixed_low), (1.0, upper, mixed_high)):
        vertices = _vertices(f, g, z, zv, d, sign)
        toward = np.divide(np.maximum(sign * (d.high if sign > 0 else d.low), 0), spread, out=zero.copy(),
                           where=spread > 0)  # fmt: skip
        for slope, second in ((zero, zero), (one, zero), (_grid(np.minimum(toward, 1)), zero),
                              (mixed.slope, mixed.second)):  # fmt: skip
            assert second is not None
            constant = sign * _largest(vertices, slope, second)
            bound = _better(bound, Bound(slope, constant, second), d, sign, z)
        bounds.append(bound)
        extent.append(sign * _largest(vertices, zero, zero))
    return Lines(bounds[0], bounds[1], Range(extent[0], extent[1]).meet(apart))


@dataclass
class _Vertices:
    """z, d and whether it counts, float64[vertices, tasks, n]; `value`: sign * (g(z + d) - f(z)), at least."""

    z: F64
    d: F64
    fits: Flags
    value: F64
    sign: float


def _vertices(f: Function, g: Function, z: Range, zv: Range, d: Range, sign: float) -> _Vertices:
    """Of the region cut where the functions bend."""
    room = _SLACK * (z.size + zv.size + d.size)
    theirs, ours = side(f, z.low, z.high, -sign, room), side(g, zv.low, zv.high, sign, room)
    zs, vs, ds = [z.low, z.high, *theirs.knots], [zv.low, zv.high, *ours.knots], [d.low, d.high]
    pairs = [(a, b) for a in zs for b in ds]
    pairs += [(a, v - a) for a in zs for v in vs] + [(v - b, b) for v in vs for b in ds]
    at, by = np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])
    fits = (at >= z.low - room) & (at <= z.high + room) & (by >= d.low - room) & (by <= d.high + room)
    fits &= (at + by >= zv.low - room) & (at + by <= zv.high + room)
    corners = np.arange(len(pairs)) < 4
    fits |= corners[:, None, None] & ~fits.any(0)  # an empty region is a matter of rounding: then all of the box
    return _Vertices(at, by, fits, sign * (ours.at(at + by) - theirs.at(at)), sign)


def _largest(vertices: _Vertices, slope: F64, second: F64) -> F64:
    """max of sign * (g(z + d) - f(z) - slope d - second z), with room for our rounding."""
    at, by, fits = vertices.z, vertices.d, vertices.fits
    value = vertices.value - vertices.sign * (slope * by + second * at)
    room = _SLACK * np.max(np.where(fits, np.abs(at) + np.abs(by), 0.0), 0)
    return np.asarray(np.max(np.where(fits, value, -np.inf), 0) + 4 * room)


def _same_smooth(f: Function, z: Range, zv: Range, d: Range, lower: Bound, upper: Bound) -> tuple[Bound, Bound]:
    """f(z + d) - f(z) = s d for some s between the least and the largest derivative on both ranges."""
    low, high = np.minimum(z.low, zv.low), np.maximum(z.high, zv.high)
    inside = f.slope(np.clip(0.0, low, high)) + 2.0**-45
    least = np.maximum(np.minimum(f.slope(low), f.slope(high)) - 2.0**-45, 0.0)
    zero, spread = np.zeros_like(low), d.high - d.low
    ends_high = np.where(d.low < 0, least, inside) * d.low, np.where(d.high > 0, inside, least) * d.high
    ends_low = np.where(d.low < 0, inside, least) * d.low, np.where(d.high > 0, least, inside) * d.high
    for (a, b), sign in ((ends_high, 1.0), (ends_low, -1.0)):
        slope = _grid(np.divide(b - a, spread, out=zero.copy(), where=spread > 0))
        crosses = np.where((d.low < 0) & (d.high > 0), 0.0, sign * (a - slope * d.low))
        constant = np.maximum.reduce([sign * (a - slope * d.low), sign * (b - slope * d.high), crosses])
        bound = Bound(slope, sign * (constant + _SLACK * (1 + d.size)), zero)
        if sign > 0:
            upper = _better(upper, bound, d, 1.0, z)
        else:
            lower = _better(lower, bound, d, -1.0, z)
    return lower, upper


def _extent(d: Range, z: Range, lower: Bound, upper: Bound) -> Range:
    """The range that lines allow."""
    assert lower.second is not None and upper.second is not None
    low = np.minimum(lower.slope * d.low, lower.slope * d.high)
    low = low + np.minimum(lower.second * z.low, lower.second * z.high)
    high = np.maximum(upper.slope * d.low, upper.slope * d.high)
    high = high + np.maximum(upper.second * z.low, upper.second * z.high)
    room = _SLACK * (1 + d.size + z.size)
    return Range(low + lower.constant - room, high + upper.constant + room)
