"""Bounds of a variant against its original over one box, recomputed in integers: no float, no choice but given slopes.

Numbers are integers over 2^GRID, rounded outward. Node 0 is the input, then come the original's units, then two nodes
for each of the variant's units: its value and its difference to its mate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import itemgetter, mul
from typing import Any

from kernels.proof.checker_lines import (
    GRID,
    SLOPE,
    Ints,
    Pair,
    Points,
    Range,
    Scaled,
    Slopes,
    ceil,
    largest,
    meet,
    vertices,
)  # fmt: skip
from kernels.proof.checker_rows import BITS, MASK, Lacks, Net, Row, Tensor, Unit, Wrong, combined, whole

OWN_ROUNDING = Fraction(1, 1 << 60)  # of an operation's dyadic approximations, where float32 rounding is not counted

Known = tuple[int, int, int]  # mu, sigma, constant over 2^(GRID + SLOPE)
Column = tuple[int, Callable[[Any], Any], tuple[int, ...]]  # place, the rows that have it, their weights


@dataclass(frozen=True)
class Mate:
    """What a unit of the variant is compared with: `unit` of the original, or (None) the expression `argument`."""

    unit: int | None
    argument: Tensor


@dataclass(frozen=True)
class Form:
    """Linear rows over nodes in integers over 2^e: by rows, and for each place of a node by columns."""

    e: int
    const: Ints
    rows: list[list[tuple[int, int, int]]]
    columns: dict[int, list[Column]]


@dataclass(frozen=True)
class Argument:
    """A form and the runtime's float error in each row."""

    form: Form
    rounding: Ints


@dataclass(frozen=True)
class Node:
    """low slopes . arguments + low constants <= value <= ...; constants are over 2^(GRID + SLOPE)."""

    arguments: list[tuple[Argument, Ints, Ints]]
    low: Ints
    high: Ints
    noise: int


def form_of(tensor: Tensor) -> Form:
    """The rows of a tensor as integers."""
    numbers = [each for row in tensor.rows for each in (row.const, *row.coefs.values())]
    e = max((each.denominator.bit_length() - 1 for each in numbers), default=0)
    rows = [[(key >> BITS, key & MASK, int(w * (1 << e))) for key, w in row.coefs.items() if w] for row in tensor.rows]
    gathered: dict[int, dict[int, list[Pair]]] = {}
    for i, row in enumerate(rows):
        for node, place, weight in row:
            gathered.setdefault(node, {}).setdefault(place, []).append((i, weight))
    columns: dict[int, list[Column]] = {
        node: [(at, itemgetter(*(i for i, _ in each), 0), (*(w for _, w in each), 0)) for at, each in places.items()]
        for node, places in gathered.items()
    }
    return Form(e, [int(row.const * (1 << e)) for row in tensor.rows], rows, columns)


class Pairing:
    """Both nets and what is compared with what; forms are made once and serve every box."""

    def __init__(self, original: Net, variant: Net, mates: list[Mate | None], skipped: Pair = (0, 0)) -> None:
        """`skipped`: slopes of a final sigmoid of the original and of the variant, which is bounded without lines."""
        self.skipped = skipped
        self.original, self.variant, self.mates = original, variant, mates
        self.theirs = [form_of(unit.argument) for unit in original.units]
        self.ours = [self.moved(unit.argument) for unit in variant.units]
        self.our_forms = [form_of(each) for each in self.ours]
        both = list(zip(variant.units, mates, strict=True))
        self.apart = [None if m is None else form_of(self.difference(unit.argument, m.argument)) for unit, m in both]
        self.mate_forms = [None if m is None else form_of(m.argument) for m in mates]

    def value(self, block: int) -> int:
        """The node of a block of the variant."""
        return len(self.original.units) + 2 * block - 1 if block else 0

    def moved(self, tensor: Tensor) -> Tensor:
        """A tensor of the variant over nodes."""

        def renamed(coefs: dict[int, Fraction]) -> dict[int, Fraction]:
            return {(self.value(key >> BITS) << BITS) | (key & MASK): each for key, each in coefs.items()}

        return replace(tensor, rows=[replace(r, coefs=renamed(r.coefs), mags=renamed(r.mags)) for r in tensor.rows])

    def difference(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """ours - theirs over differences and the original's nodes; where a unit has no mate, over its value."""
        if len(ours.rows) != len(theirs.rows):
            raise Wrong(f"a pair of {len(ours.rows)} and {len(theirs.rows)} numbers")
        one, zero = Fraction(1), Fraction(0)
        mates = [None, *self.mates]
        values = [m and (whole(m.unit, m.argument.shape) if m.unit else m.argument).rows for m in mates]

        def split(key: int) -> list[Row]:
            """The variable as the mate's value and the difference to it."""
            block, place = key >> BITS, key & MASK
            rows = values[block]
            node = self.value(block) + (1 if rows else 0)
            return [Row({(node << BITS) | place: one}, zero, {}, zero), *([rows[place]] if rows else [])]

        rows = [
            combined([(-one, b), *((w, row) for key, w in a.coefs.items() for row in split(key))], a.const)
            for a, b in zip(ours.rows, theirs.rows, strict=True)
        ]
        return Tensor(ours.shape, rows)


class Box:
    """Both nets over one box of inputs. The work is done when it is made."""

    def __init__(self, pairing: Pairing, low: Ints, high: Ints, slopes: Slopes, floats: bool) -> None:
        """`low`, `high`: the box, over 2^GRID. `floats`: float32 rounding counts. Raises Lacks and Wrong."""
        self.pairing, self.floats = pairing, floats
        self.ranges: dict[int, Range] = {0: (low, high)}
        self.nodes: dict[int, Node] = {}
        self.arguments: dict[int, tuple[Argument, Range]] = {}
        for at, unit in enumerate(pairing.original.units, 1):
            self._single(at, unit, pairing.theirs[at - 1], unit.argument, slopes)
        slopes.take(pairing.skipped[0])
        for at, unit in enumerate(pairing.variant.units, 1):
            self._single(pairing.value(at), unit, pairing.our_forms[at - 1], pairing.ours[at - 1], slopes)
            if pairing.mates[at - 1] is not None:
                self._paired(at, unit, slopes)
        slopes.take(pairing.skipped[1])
        if slopes.at != len(slopes.values):
            raise Wrong("a leaf has more slopes than the nets have units")

    def rounding(self, tensor: Tensor) -> Ints:
        """Float error of the rows: g(k) (sum of magnitudes times the largest |variable|, plus constants)."""
        if not tensor.count:
            return [0] * len(tensor.rows)
        if tensor.count >= 1 << 23:
            raise Lacks("an error bound for a sum so long")
        g = Fraction(tensor.count, (1 << 24) - tensor.count) if self.floats else tensor.count * OWN_ROUNDING
        found = []
        for row in tensor.rows:
            total = row.mag
            for key, each in row.mags.items():
                low, high = self.ranges[key >> BITS]
                total += each * Fraction(max(-low[key & MASK], high[key & MASK]), 1 << GRID)
            if total >= 1 << 127:
                raise Wrong("numbers in the net may overflow float32 over this region")
            found.append(ceil(total * g))
        return found

    def range(self, argument: Argument) -> Range:
        """Of the form: by intervals and, where it is not of the input alone, by back-substitution."""
        form = argument.form
        lows, highs = [], []
        for i, row in enumerate(form.rows):
            low = high = form.const[i] << GRID
            for node, place, weight in row:
                first, last = weight * self.ranges[node][0][place], weight * self.ranges[node][1][place]
                low, high = (low + first, high + last) if weight > 0 else (low + last, high + first)
            low, high = (low >> form.e) - argument.rounding[i], -(-high >> form.e) + argument.rounding[i]
            if any(form.columns):
                one = [int(j == i) for j in range(len(form.rows))]
                high = min(high, sum(self.upper(argument, one)))
                low = max(low, -sum(self.upper(argument, [-each for each in one])))
            lows.append(low)
            highs.append(high)
        return lows, highs

    def upper(self, argument: Argument, weights: Sequence[int]) -> Pair:
        """The largest value of weights . argument: in real numbers, and what float rounding adds."""
        waiting: dict[int, tuple[Ints, int]] = {}
        real, rounded = self._spread(argument, weights, 0, waiting)
        while (at := max(waiting, default=0)) > 0:
            rows, e = waiting.pop(at)
            node = self.nodes[at]
            real += -(-_dot(rows, node.low, node.high) >> (e + SLOPE))
            rounded += -(-node.noise * sum(map(abs, rows)) >> e)
            for each, low, high in node.arguments:
                vector = [a * (y if a > 0 else x) for a, x, y in zip(rows, low, high, strict=True)]
                if any(vector):
                    more, added = self._spread(each, vector, e + SLOPE, waiting)
                    real, rounded = real + more, rounded + added
        rows, e = waiting.get(0, ([0] * len(self.ranges[0][0]), 0))
        return real - (-_dot(rows, *self.ranges[0]) >> e), rounded

    def _spread(
        self, argument: Argument, vector: Sequence[int], e: int, waiting: dict[int, tuple[Ints, int]]
    ) -> Pair:
        """Replaces vector / 2^e . argument by its form; returns the constant and the rounding, both upwards."""
        form = argument.form
        for node, columns in form.columns.items():
            values, old = waiting.get(node) or ([0] * len(self.ranges[node][0]), e + form.e)
            more = max(old, e + form.e)
            if more > old:
                values = [each << (more - old) for each in values]
            shift = more - e - form.e
            for place, getter, weights in columns:
                values[place] += sum(map(mul, getter(vector), weights)) << shift
            waiting[node] = values, more
        const = sum(map(mul, vector, form.const))
        return -((-const << GRID) >> (e + form.e)), -(-sum(map(mul, map(abs, vector), argument.rounding)) >> e)

    def _single(self, node: int, unit: Unit, form: Form, tensor: Tensor, slopes: Slopes) -> None:
        argument = Argument(form, self.rounding(tensor))
        z = self.range(argument)
        low, high = slopes.take(len(z[0])), slopes.take(len(z[0]))
        scaled = Scaled(unit, self.floats)
        lines = [scaled.line(a, b, x, y) for x, y, a, b in zip(*z, low, high, strict=True)]
        ends = [scaled.ends(x, y) for x, y in zip(*z, strict=True)]
        self.nodes[node] = Node([(argument, low, high)], *_apart(lines), scaled.rounding)
        self.ranges[node] = _apart(ends)
        self.arguments[node] = argument, z

    def _paired(self, at: int, unit: Unit, slopes: Slopes) -> None:
        pairing, value = self.pairing, self.pairing.value(at)
        mate, form, inner = pairing.mates[at - 1], pairing.apart[at - 1], pairing.mate_forms[at - 1]
        assert mate is not None and form is not None and inner is not None
        argument, v = self.arguments[value]
        ours, errors = Scaled(unit, self.floats), argument.rounding
        if mate.unit is None:  # the expression itself, without the rounding of the original's run
            z_argument = Argument(inner, [0] * len(inner.rows))
            z, mine = self.range(z_argument), Scaled(Unit("", mate.argument), self.floats)
        else:
            z_argument, z = self.arguments[mate.unit]
            mine = Scaled(pairing.original.units[mate.unit - 1], self.floats)
            errors = [a + b for a, b in zip(errors, z_argument.rounding, strict=True)]
        d_argument = Argument(form, errors)
        d = meet(self.range(d_argument), _minus(v, z))
        back = [-each for each in d[1]], [-each for each in d[0]]
        v, z = meet(v, _minus(z, back)), meet(z, _minus(v, d))
        apart = _minus(self.ranges[value], z if mate.unit is None else self.ranges[mate.unit])
        chosen = [slopes.take(len(errors)) for _ in range(4)]
        sides = []
        for i in range(len(errors)):
            of_z, of_v, of_d = ((each[0][i], each[1][i]) for each in (z, v, d))
            points = tuple(vertices(mine, ours, of_z, of_v, of_d, sign) for sign in (-1, 1))
            known = self._known(value, mate.unit, (z[0][i], z[1][i]), (apart[0][i], apart[1][i]), i)
            sides.append(_difference(points, [each[i] for each in chosen], known))
        rounding = mine.rounding + ours.rounding
        arguments = [(d_argument, chosen[0], chosen[2]), (z_argument, chosen[1], chosen[3])]
        self.nodes[value + 1] = Node(arguments, [each[0] for each in sides], [each[1] for each in sides], rounding)
        least = [max(each[2], low) - rounding for each, low in zip(sides, apart[0], strict=True)]
        most = [min(each[3], high) + rounding for each, high in zip(sides, apart[1], strict=True)]
        self.ranges[value + 1] = least, most

    def _known(self, value: int, unit: int | None, z: Pair, apart: Pair, i: int) -> tuple[list[Known], list[Known]]:
        """Lines of a difference that follow from those of its two values: lower and upper ones."""
        node = self.nodes[value]
        (_, low, high), = node.arguments
        theirs: list[tuple[Pair, Pair]] = [((1 << SLOPE, 0), (1 << SLOPE, 0)), ((0, z[0] << SLOPE), (0, z[1] << SLOPE))]
        if unit is not None:
            other = self.nodes[unit]
            (_, x, y), = other.arguments
            theirs = [((x[i], other.low[i]), (y[i], other.high[i]))]
        lower = [(0, 0, apart[0] << SLOPE), *((low[i], low[i] - b, node.low[i] - c) for _, (b, c) in theirs)]
        upper = [(0, 0, apart[1] << SLOPE), *((high[i], high[i] - a, node.high[i] - c) for (a, c), _ in theirs)]
        return lower, upper


def _difference(
    points: tuple[Points, ...], chosen: Ints, known: tuple[list[Known], list[Known]]
) -> tuple[int, ...]:
    """Constants of the lower and the upper line, over 2^(GRID + SLOPE), and the range, over 2^GRID."""
    found = []
    for sign, (mu, sigma), lines in ((-1, chosen[:2], known[0]), (1, chosen[2:], known[1])):
        own = sign * largest(points[sign > 0], sign, mu, sigma)
        same = [own, *(const for a, b, const in lines if (a, b) == (mu, sigma))]
        found.append(min(same) if sign > 0 else max(same))
    least = -(largest(points[0], -1, 0, 0) >> SLOPE) - 1
    return *found, least, (largest(points[1], 1, 0, 0) >> SLOPE) + 1


def _minus(a: Range, b: Range) -> Range:
    return [x - y for x, y in zip(a[0], b[1], strict=True)], [x - y for x, y in zip(a[1], b[0], strict=True)]


def _apart(pairs: Sequence[Pair]) -> Range:
    return [each for each, _ in pairs], [each for _, each in pairs]


def _dot(rows: Sequence[int], low: Sequence[int], high: Sequence[int]) -> int:
    """The largest value of rows . x for x between low and high."""
    return sum(a * (y if a > 0 else x) for a, x, y in zip(rows, low, high, strict=True) if a)
