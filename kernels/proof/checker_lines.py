"""Lines above and below units and their differences, for given slopes; in integers over 2^GRID, rounded outward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from kernels.proof.checker_graph import Unit, Wrong, require

GRID = 200
SLOPE = 8  # slopes are integers over 2^SLOPE, constants of lines over 2^(GRID + SLOPE)
POINT = 320  # powers are over 2^POINT
SMOOTH_FLOAT = 1 << (GRID - 20)  # how far the runtime's sigmoid and tanh are off
_TERMS = 48
_FLAT = 128 << GRID  # beyond it sigmoid is 0 or 1, but for 2^-184

Pair = tuple[int, int]
Ints = list[int]


def on_grid(value: Fraction) -> int:
    """Over 2^GRID. Raises Wrong for what no float32 of 2^-100 or more, and no product of one and a level, needs."""
    found = value * (1 << GRID)
    require(found.denominator == 1, Wrong, f"{float(value)} has more digits than a float32")
    return found.numerator


def exp(x: int, up: bool) -> int:
    """A bound of exp(x), both over 2^POINT: Taylor's series of x / 2^s in [0, 1/2], squared s times."""
    if x < 0:
        return (1 << 2 * POINT) // exp(-x, not up) + up
    s = (x >> POINT - 1).bit_length()
    y = (x >> s) + up
    term = total = 1 << POINT
    for i in range(1, _TERMS):
        term = (term * y >> POINT) // i + up
        total += term
    total += 2 * term * up  # the rest of the series is less
    for _ in range(s):
        total = (total * total >> POINT) + up
    return total


def sigmoid(x: int, up: bool) -> int:
    """A bound of 1 / (1 + exp(-x))."""
    if abs(x) > _FLAT:
        return int(up) << GRID if (x > 0) == up else sigmoid(_FLAT if x > 0 else -_FLAT, up)
    return (1 << GRID + POINT) // ((1 << POINT) + exp(-x << POINT - GRID, not up)) + up


class Function:
    """A unit on the grid, as upper bounds of sign * f(sign * y): sign 1 bounds f from above, -1 from below."""

    def __init__(self, unit: Unit, floats: bool) -> None:
        """floats: the runtime's float32 rounding counts, as `rounding`."""
        step, *levels = unit.levels or (Fraction(0), 0, 0)
        self.low, self.high = (None if each is None else on_grid(each) for each in (unit.low, unit.high))
        self.left, self.curve, self.step, self.levels = unit.left, unit.curve, on_grid(step), levels
        self.room = -(-self.step * (max(map(abs, levels)) + 1) >> 21)  # of a quantizer's division and product
        self.rounding = (SMOOTH_FLOAT if unit.curve else self.room) if floats else 0

    def farthest(self, x: Pair, sign: int, slope: int) -> int:
        """The largest sign * (f(x) - slope x) over a range: the constant of a line above or below."""
        return max((h << SLOPE) - slope * y for y, h in self.corners(x, sign, slope))

    def corners(self, x: Pair, sign: int, slope: int = 0) -> list[Pair]:
        """Points (y, h), between which lines lie above sign * f(sign * y); `slope` matters to curves alone."""
        low, high = sorted(sign * each for each in x)
        if self.curve:
            return self._tangents(low, high, sign, slope)
        if self.step:
            return self._stairs(low, high, sign)
        bends = [sign * each for each in (self.low, self.high) if each is not None]
        places = [low, *sorted(each for each in bends if low < each < high), high]
        return [(y, sign * self._at(sign * y, sign)) for y in places]

    def _at(self, x: int, sign: int) -> int:
        """A function of straight pieces, rounded up for sign 1, else down."""
        if self.low is not None and x < self.low:
            return self.low - sign * int(sign * (self.low - x) * self.left // 1)
        return x if self.high is None else min(x, self.high)

    def _stairs(self, low: int, high: int, sign: int) -> list[Pair]:
        """A line from the begin of the range to the first jump, one through the corners of the jumps, the last level.

        Jumps may come earlier by the room of the division.
        """
        least, most = sorted(sign * each for each in self.levels)
        levels = [min(max(round(Fraction(y + self.room, self.step)), least), most) for y in (low, high)]
        first, last = (self.step * each for each in levels)
        half = self.step + 1 >> 1
        jumps = [(first + self.step - half - self.room, first + self.step), (last - half - self.room, last)]
        return [(low, first), *(jumps if first < last else ()), (high, last)]

    def _tangents(self, low: int, high: int, sign: int, slope: int) -> list[Pair]:
        """Where the curve is convex its chord, then a tangent. Any will do: floats choose where it touches."""
        k, middle = self.curve, min(max(low, 0), high)

        def value(y: int) -> int:
            return k * sigmoid(k * y, True) - ((k - 1 if sign > 0 else 1) << GRID)

        points = [(y, value(y)) for y in (low, middle) if low < 0]
        if high >= 0:  # the derivative k^2 s (1 - s) is the slope at log(s / (1 - s)) / k
            root = math.sqrt(max(1 - slope / (k * k << SLOPE - 2), 0))
            place = int(math.log((1 + root) / (1 - root)) / k * (1 << 40)) << GRID - 40 if root < 1 else high
            at = min(max(place, middle), high)
            least, most = self.slopes(at, at)
            points.append((middle, value(at) - (least * (at - middle) >> GRID)))
            points.append((high, value(at) - (-most * (high - at) >> GRID)))
        return points

    def slopes(self, low: int, high: int) -> Pair:
        """Bounds of a curve's derivative k^2 s (1 - s) over a range: it is largest at zero, and falls to both sides."""

        def slope(x: int, up: bool) -> int:
            s = max(sigmoid(self.curve * abs(x), not up), 1 << GRID - 1)
            return self.curve**2 * ((s * ((1 << GRID) - s) >> GRID) + up)

        return min(slope(low, False), slope(high, False)), slope(min(max(low, 0), high), True)


def between(points: list[Pair], y: int) -> int:
    """The height of lines through the points, rounded up."""
    pieces = [(a, p, b, q) for (a, p), (b, q) in pairwise(points) if a <= y <= b]
    return max(max(p, q) if a == b else p - (p - q) * (y - a) // (b - a) for a, p, b, q in pieces)


def apart(f: Function, g: Function, z: Pair, v: Pair, d: Pair, sign: int, lines: Sequence[Pair]) -> Ints:
    """The largest sign * (g(z + d) - f(z) - mu d - sigma z) for each line (mu, sigma), where z + d is in v."""
    found = []
    points = _quotients(f, g, z, v, d, sign) if f.curve or g.curve else _vertices(f, g, z, v, d, sign)
    for mu, sigma in lines:
        most = [max((h << SLOPE) - sign * (mu * b + sigma * a) for a, b, h in points)] if points else []
        if f.curve or g.curve:  # each for itself: g(v) - mu v and f(z) - (mu - sigma) z
            most.append(g.farthest(v, sign, mu) + f.farthest(z, -sign, mu - sigma))
        found.append(min(most))
    return found


def _quotients(f: Function, g: Function, z: Pair, v: Pair, d: Pair, sign: int) -> list[tuple[int, int, int]]:
    """f(z + d) - f(z) = s d with a value s of the derivative: at the corners (z, d, sign s d)."""
    slopes = f.slopes(min(z[0], v[0]), max(z[1], v[1])) if f.curve == g.curve else ()
    return [(a, b, -(-sign * s * b >> GRID)) for a in z for b in d for s in slopes]


def _vertices(f: Function, g: Function, z: Pair, v: Pair, d: Pair, sign: int) -> list[tuple[int, int, int]]:
    """(z, d, sign (g - f)) at the vertices of the region cut where bounds of f and g bend: between, they are linear."""
    theirs, ours = f.corners(z, -sign), g.corners(v, sign)
    zs, vs = {-sign * y for y, _ in theirs}, {sign * y for y, _ in ours}
    found = {(a, b) for a in zs for b in d} | {(a, c - a) for a in zs for c in vs} | {(c - b, b) for c in vs for b in d}
    inside = [(a, b) for a, b in found if z[0] <= a <= z[1] and d[0] <= b <= d[1] and v[0] <= a + b <= v[1]]
    require(bool(inside), Wrong, "two bounds of one value contradict each other")
    return [(a, b, between(ours, sign * (a + b)) + between(theirs, -sign * a)) for a, b in inside]
