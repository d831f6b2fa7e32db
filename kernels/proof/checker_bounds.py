"""Bounds of a variant against its original over one box, recomputed in integers: no float, no choice but given slopes.

Numbers are integers over 2^GRID, rounded outward. Node 0 is the input, then come the original's units, then two nodes
for each of the variant's units: its value and its difference to its mate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from operator import add, le
from typing import NamedTuple

from kernels.proof.checker_graph import BITS, MASK, Lacks, Net, Row, Tensor, Unit, Wrong, combined, require, variables
from kernels.proof.checker_lines import GRID, SLOPE, Function, Ints, Pair, apart

OWN_ROUNDING = Fraction(1, 1 << 60)  # of an operation's dyadic approximations, where float32 rounding is not counted

Range = tuple[Ints, Ints]
Waiting = dict[int, tuple[Ints, int]]


class Form(NamedTuple):
    """Linear rows over nodes: by node and row (place, weight over 2^e), and the runtime's error of each row."""

    e: int
    terms: dict[int, list[list[Pair]]]
    errors: Ints


class Node(NamedTuple):
    """low slopes . arguments + low constants <= value <= ...; constants are over 2^(GRID + SLOPE)."""

    arguments: list[tuple[Form, Ints, Ints]]
    low: Ints
    high: Ints
    rounding: int


def form_of(rows: Sequence[Row]) -> Form:
    """Linear rows as integers, without errors."""
    e = max((each.denominator.bit_length() - 1 for row in rows for each in row.coefs.values()), default=0)
    nodes = {key >> BITS for row in rows for key, weight in row.coefs.items() if weight}
    terms: dict[int, list[list[Pair]]] = {node: [[] for _ in rows] for node in nodes}
    for i, row in enumerate(rows):
        for key, weight in row.coefs.items():
            if weight:
                terms[key >> BITS][i].append((key & MASK, weight.numerator * ((1 << e) // weight.denominator)))
    return Form(e, terms, [0] * len(rows))


class Pairing:
    """Both nets, and for units of the variant their mates: a unit of the original, or an expression as one of node 0.

    pairs: for a unit's tensor ["unary", tensor], ["tensor", tensor] or nothing; any pairing is sound.
    """

    def __init__(self, original: Net, variant: Net, pairs: dict[str, list[str] | None]) -> None:
        self.original, self.variant = original, variant
        known = {("unary", unit.tensor): unit for unit in original.units}
        known |= {("tensor", name): Unit("", tensor, 0) for name, tensor in original.tensors.items()}
        given = {unit.node: (pair[0], pair[1]) for unit in variant.units if (pair := pairs.get(unit.tensor))}
        strange = [pair for pair in given.values() if pair not in known]
        require(not strange, Wrong, f"pairs with {strange[:1]}, which the original has not")
        self.mates = {node: known[pair] for node, pair in given.items()}
        self.values: dict[int, Sequence[Row]] = {}  # of the mates
        self.forms = {unit.node: form_of(unit.argument.rows) for unit in [*original.units, *variant.units]}
        self.slopes = sum(2 * len(unit.argument.items) for unit in [*original.units, *variant.units])
        for unit in variant.units:
            if mate := self.mates.get(unit.node):
                self.slopes += 4 * len(unit.argument.items)
                self.forms[unit.node + 1] = form_of(self.difference(unit.argument, mate.argument))
                self.forms[-unit.node] = form_of(mate.argument.rows)
                values = variables(mate.node, mate.argument.shape) if mate.node else mate.argument
                self.values[unit.node] = values.rows

    def difference(self, ours: Tensor, theirs: Tensor) -> list[Row]:
        """ours - theirs over differences and the original's nodes; where a unit has no mate, over its value."""

        def parts(key: int) -> list[Row]:
            """The variable, or the difference to its mate and the mate's value."""
            mate = self.values.get(key >> BITS)
            own = Row({key + (1 << BITS if mate else 0): Fraction(1)}, {})
            return [own, Row(mate[key & MASK].coefs, {})] if mate else [own]

        terms = [[(w, part) for key, w in a.coefs.items() for part in parts(key)] for a in ours.rows]
        minus = Fraction(-1)
        return [combined([(minus, Row(b.coefs, {})), *a]) for a, b in zip(terms, theirs.rows, strict=True)]


class Box:
    """Both nets over one box of inputs. The work is done when it is made."""

    def __init__(self, pairing: Pairing, low: Ints, high: Ints, slopes: Sequence[int], floats: bool) -> None:
        """`low`, `high`: the box, over 2^GRID. `floats`: float32 rounding counts. Raises Lacks and Wrong."""
        wants = f"a leaf has {len(slopes)} slopes, the lines of these units have {pairing.slopes}"
        require(len(slopes) == pairing.slopes, Wrong, wants)
        self.pairing, self.floats, self._slopes = pairing, floats, iter(slopes)
        self.ranges: dict[int, Range] = {0: ([1 << GRID, *low], [1 << GRID, *high])}
        self.nodes: dict[int, Node] = {}
        self.arguments: dict[int, tuple[Form, Range]] = {}
        for unit in [*pairing.original.units, *pairing.variant.units]:
            self._single(unit)
            if mate := pairing.mates.get(unit.node):
                self._paired(unit, mate)

    def errors(self, tensor: Tensor) -> Ints:
        """Float errors of the rows: g(k) times the sum of magnitudes, each times the largest |variable|."""
        require(tensor.rounds < 1 << 23, Lacks, "an error bound for a sum so long")
        g = Fraction(tensor.rounds, (1 << 24) - tensor.rounds) if self.floats else tensor.rounds * OWN_ROUNDING
        found = []
        for row in tensor.items if tensor.rounds else ():
            sizes = ((each, *(side[key & MASK] for side in self.ranges[key >> BITS])) for key, each in row.mags.items())
            total = sum(each * max(-low, high) for each, low, high in sizes)
            require(total < 1 << 127 + GRID, Wrong, "numbers in the net may overflow float32 over this region")
            found.append(math.ceil(total * g))
        return found or [0] * len(tensor.items)

    def range(self, form: Form) -> Range:
        """By intervals and, where the form is not of the input alone, by back-substitution."""

        def most(i: int, sign: int) -> int:
            ends = ((sign * w, self.ranges[node], at) for node, rows in form.terms.items() for at, w in rows[i])
            high = -(-sum(w * box[w > 0][at] for w, box, at in ends) >> form.e) + form.errors[i]
            row = [sign * (j == i) for j in range(len(form.errors))]
            return min(high, sum(self.upper(form, row))) if any(form.terms) else high

        places = range(len(form.errors))
        return [-most(i, -1) for i in places], [most(i, 1) for i in places]

    def upper(self, form: Form, weights: Sequence[int]) -> Pair:
        """The largest value of weights . form: in real numbers, and what float rounding adds."""
        waiting: Waiting = {0: ([0] * len(self.ranges[0][0]), 0)}
        real, rounded = 0, self._spread(form, weights, 0, waiting)
        while at := max(waiting):
            (rows, e), node = waiting.pop(at), self.nodes[at]
            real += -(-_dot(rows, node.low, node.high) >> e + SLOPE)
            rounded += -(-node.rounding * sum(map(abs, rows)) >> e)
            for each, low, high in node.arguments:
                vector = [a and a * (y if a > 0 else x) for a, x, y in zip(rows, low, high, strict=True)]
                if any(vector):
                    rounded += self._spread(each, vector, e + SLOPE, waiting)
        rows, e = waiting[0]
        return real - (-_dot(rows, *self.ranges[0]) >> e), rounded

    def _spread(self, form: Form, vector: Sequence[int], e: int, waiting: Waiting) -> int:
        """Replaces vector / 2^e . form by its nodes; returns the float error, rounded up."""
        for node, rows in form.terms.items():
            values, old = waiting.get(node) or ([0] * len(self.ranges[node][0]), e + form.e)
            more = max(old, e + form.e)
            values = [each << more - old for each in values] if more > old else values
            for a, row in zip(vector, rows, strict=True):
                if a:
                    a <<= more - e - form.e
                    for place, weight in row:
                        values[place] += a * weight
            waiting[node] = values, more
        return -(-sum(abs(a) * each for a, each in zip(vector, form.errors, strict=True)) >> e)

    def _take(self, n: int) -> Ints:
        """The certificate's next slopes."""
        return list(itertools.islice(self._slopes, n))

    def _single(self, unit: Unit) -> None:
        form = self.pairing.forms[unit.node]._replace(errors=self.errors(unit.argument))
        z, f = self.range(form), Function(unit, self.floats)
        self.arguments[unit.node] = form, z
        low, high = self._take(len(z[0])), self._take(len(z[0]))
        sides = [
            [f.farthest(x, sign, slope) for sign, slope in ((-1, a), (1, b), (-1, 0), (1, 0))]
            for x, a, b in zip(zip(*z, strict=True), low, high, strict=True)
        ]
        self._record(unit.node, [(form, low, high)], f.rounding, sides)

    def _paired(self, unit: Unit, mate: Unit) -> None:
        (ours, v), f, g = self.arguments[unit.node], Function(mate, self.floats), Function(unit, self.floats)
        theirs = self.pairing.forms[-unit.node]  # the expression itself, without the rounding of the original's run
        theirs, z = self.arguments[mate.node] if mate.node else (theirs, self.range(theirs))
        form = self.pairing.forms[unit.node + 1]._replace(errors=list(map(add, ours.errors, theirs.errors)))
        d = _meet(self.range(form), _minus(v, z))
        v, z = _meet(v, _minus(z, ([-each for each in d[1]], [-each for each in d[0]]))), _meet(z, _minus(v, d))
        chosen = [self._take(len(form.errors)) for _ in range(4)]
        sides = []
        for of_z, of_v, of_d, *slopes in zip(*(zip(*each, strict=True) for each in (z, v, d)), *chosen, strict=True):
            low, least = apart(f, g, of_z, of_v, of_d, -1, [(slopes[0], slopes[1]), (0, 0)])
            high, most = apart(f, g, of_z, of_v, of_d, 1, [(slopes[2], slopes[3]), (0, 0)])
            sides.append([low, high, least, most])
        arguments = [(form, chosen[0], chosen[2]), (theirs, chosen[1], chosen[3])]
        self._record(unit.node + 1, arguments, f.rounding + g.rounding, sides)

    def _record(self, at: int, arguments: list[tuple[Form, Ints, Ints]], rounding: int, sides: list[Ints]) -> None:
        """A node from what farthest and apart say below and above it, for its lines and for its range."""
        low, high, least, most = ([each[i] for each in sides] for i in range(4))
        self.nodes[at] = Node(arguments, [-each for each in low], high, rounding)
        ends = [[-(-each >> SLOPE) + rounding for each in side] for side in (least, most)]
        self.ranges[at] = [-each for each in ends[0]], ends[1]


def _minus(a: Range, b: Range) -> Range:
    return [x - y for x, y in zip(a[0], b[1], strict=True)], [x - y for x, y in zip(a[1], b[0], strict=True)]


def _meet(a: Range, b: Range) -> Range:
    """The intersection; two sound ranges of one value have one."""
    found = list(map(max, a[0], b[0])), list(map(min, a[1], b[1]))
    require(all(map(le, *found)), Wrong, "two bounds of one value contradict each other")
    return found


def _dot(rows: Sequence[int], low: Sequence[int], high: Sequence[int]) -> int:
    """The largest value of rows . x for x between low and high."""
    return sum(a * (y if a > 0 else x) for a, x, y in zip(rows, low, high, strict=True) if a)
