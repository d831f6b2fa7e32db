"""Lines of one unit and of the difference of two, in integers over 2^GRID: constants for given slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from kernels.proof.checker_rows import Unit, Wrong

GRID = 200
SLOPE = 8  # slopes are integers over 2^SLOPE

Pair = tuple[int, int]
Ints = list[int]
Range = tuple[Ints, Ints]
Points = list[tuple[int, int, int]]  # (g(z + d) - f(z)) over 2^(GRID + SLOPE), d and z over 2^GRID


@dataclass
class Slopes:
    """The certificate's slopes, taken one unit after the other."""

    values: Sequence[int]
    at: int = 0

    def take(self, n: int) -> Ints:
        found = list(self.values[self.at : self.at + n])
        self.at += n
        if len(found) != n:
            raise Wrong("a leaf has fewer slopes than the nets have units")
        return found


def ceil(value: Fraction) -> int:
    """Over 2^GRID, rounded up."""
    return -((-value.numerator << GRID) // value.denominator)


def on_grid(value: Fraction) -> int:
    """Over 2^GRID. Raises Wrong for what no float32 of 2^-100 or more, and no product of one and a level, needs."""
    found = value * (1 << GRID)
    if found.denominator != 1:
        raise Wrong(f"{float(value)} has more digits than a float32")
    return found.numerator


def meet(a: Range, b: Range) -> Range:
    """The intersection; two sound ranges of one value have one."""
    found = list(map(max, a[0], b[0])), list(map(min, a[1], b[1]))
    if any(low > high for low, high in zip(*found, strict=True)):
        raise Wrong("two bounds of one value contradict each other")
    return found


class Scaled:
    """A unit on the grid."""

    def __init__(self, unit: Unit, floats: bool) -> None:
        step, least, most = unit.levels or (Fraction(0), 0, 0)
        self.low, self.high = (None if each is None else on_grid(each) for each in (unit.low, unit.high))
        self.breaks = [each for each in (self.low, self.high) if each is not None]
        self.left, self.step, self.levels = unit.left, on_grid(step), (least, most)
        self.noise = self.step + 1 >> 1
        self.room = ceil(step * (max(abs(least), abs(most)) + 1) / (1 << 21))
        self.rounding = self.room if floats else 0
        self.fuzz = 1 if unit.left else 0  # a product that is cut off the grid

    def at(self, x: int) -> int:
        """The function over 2^(GRID + SLOPE), at most `fuzz` too small."""
        if self.low is not None and x < self.low:
            return (self.low << SLOPE) + ((x - self.low) * self.left.numerator << SLOPE) // self.left.denominator
        return (self.high if self.high is not None and x > self.high else x) << SLOPE

    def line(self, low_slope: int, high_slope: int, low: int, high: int) -> Pair:
        """Constants of the lower and the upper line on [low, high], over 2^(GRID + SLOPE)."""
        values = [(self.at(x), x) for x in (low, high, *(each for each in self.breaks if low < each < high))]
        below = min(y - low_slope * x for y, x in values) - (self.noise << SLOPE)
        above = max(y - high_slope * x for y, x in values) + (self.noise << SLOPE) + self.fuzz
        first, last = self.ends(low, high)
        if self.step:
            below = max(below, first << SLOPE) if not low_slope else below
            above = min(above, last << SLOPE) if not high_slope else above
        return below, above

    def ends(self, low: int, high: int) -> Pair:
        """The range of the output: of a quantizer the levels that it can give, with room for division and product."""
        if not self.step:
            return self.at(low) >> SLOPE, -(-(self.at(high) + self.fuzz) >> SLOPE)
        found = [round(Fraction(each, self.step)) for each in (low - self.room, high + self.room)]
        first, last = (self.step * min(max(each, self.levels[0]), self.levels[1]) for each in found)
        return first - (abs(first) >> 23) - 1, last + (abs(last) >> 23) + 1


def vertices(f: Scaled, g: Scaled, z: Pair, v: Pair, d: Pair) -> Points:
    """Of the region z, d, z + d (in v) cut by the breaks of f and g: between them g(z + d) - f(z) is linear."""
    zs = {*z, *(each for each in f.breaks if z[0] < each < z[1])}
    vs = {*v, *(each for each in g.breaks if v[0] < each < v[1])}
    found = {(a, b) for a in zs for b in d} | {(a, c - a) for a in zs for c in vs} | {(c - b, b) for c in vs for b in d}
    inside = [(a, b) for a, b in found if z[0] <= a <= z[1] and d[0] <= b <= d[1] and v[0] <= a + b <= v[1]]
    if not inside:
        raise Wrong("two bounds of one value contradict each other")
    offs = (-1, 1) if f.fuzz or g.fuzz else (0,)
    return [(g.at(a + b) - f.at(a) + off, b, a) for a, b in inside for off in offs]


def largest(points: Points, sign: int, mu: int, sigma: int) -> int:
    """max of sign * (g(z + d) - f(z) - mu d - sigma z), over 2^(GRID + SLOPE)."""
    return max(sign * (x - mu * b - sigma * a) for x, b, a in points)
