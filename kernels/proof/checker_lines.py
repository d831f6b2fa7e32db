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
        found = []
        for sign, slope in ((-1, low_slope), (1, high_slope)):
            edge = Side(self, low, high, sign)
            found.append(sign * max(sign * (edge.at(x) - slope * x) for x in (low, high, *edge.knots)))
        first, last = self.ends(low, high)
        below, above = found[0], found[1] + self.fuzz
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


class Side:
    """A unit over a range from above (sign 1) or below (-1), linear between its knots.

    Above a quantizer: a line from the begin of the range to its first jump, one through the corners of the jumps, the
    last level. Below it the same of -q(-x). Jumps may come earlier by the room of the division.
    """

    def __init__(self, unit: Scaled, low: int, high: int, sign: int) -> None:
        self.unit, self.sign = unit, sign
        self.knots = [each for each in unit.breaks if low < each < high]
        if not unit.step:
            return
        self.begin, end = (low, high) if sign > 0 else (-high, -low)
        least, most = unit.levels if sign > 0 else (-unit.levels[1], -unit.levels[0])
        levels = [min(max(round(Fraction(x + unit.room, unit.step)), least), most) for x in (self.begin, end)]
        self.first, self.last = (unit.step * each for each in levels)
        self.start = self.first + (unit.step >> 1) - unit.room
        jumps = (self.start, self.last - unit.noise - unit.room) if self.last > self.first else ()
        self.knots = [sign * each for each in jumps if self.begin < each < end]

    def at(self, x: int) -> int:
        """Over 2^(GRID + SLOPE); never on the wrong side, but by a unit's `fuzz`."""
        unit, x = self.unit, x * self.sign
        if not unit.step:
            return unit.at(x * self.sign)
        if self.last == self.first:
            return self.sign * self.first << SLOPE
        if x >= self.start:
            return self.sign * min(x + unit.noise + unit.room, self.last) << SLOPE
        rise = -((unit.step * (self.begin - x) << SLOPE) // (self.start - self.begin))
        return self.sign * ((self.first << SLOPE) + rise)


def vertices(f: Scaled, g: Scaled, z: Pair, v: Pair, d: Pair, sign: int) -> Points:
    """Of the region z, d, z + d (in v) cut where f and g bend: between, an upper (sign 1) or lower g - f is linear."""
    theirs, ours = Side(f, *z, -sign), Side(g, *v, sign)
    zs, vs = {*z, *theirs.knots}, {*v, *ours.knots}
    found = {(a, b) for a in zs for b in d} | {(a, c - a) for a in zs for c in vs} | {(c - b, b) for c in vs for b in d}
    inside = [(a, b) for a, b in found if z[0] <= a <= z[1] and d[0] <= b <= d[1] and v[0] <= a + b <= v[1]]
    if not inside:
        raise Wrong("two bounds of one value contradict each other")
    off = sign if f.fuzz or g.fuzz else 0
    return [(ours.at(a + b) - theirs.at(a) + off, b, a) for a, b in inside]


def largest(points: Points, sign: int, mu: int, sigma: int) -> int:
    """max of sign * (g(z + d) - f(z) - mu d - sigma z), over 2^(GRID + SLOPE)."""
    return max(sign * (x - mu * b - sigma * a) for x, b, a in points)
