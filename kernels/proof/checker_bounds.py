"""Bounds of a variant against its original over one box, recomputed in integers: no float, no choice but given slopes.

Numbers are integers over 2^GRID, rounded outward. Node 0 is the input, then come the original's units, then two nodes
for each of the variant's units: its value and its difference to its mate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from operator import add
from typing import NamedTuple

from kernels.proof.checker_graph import BITS, MASK, Lacks, Net, Row, Tensor, Unit, Wrong, combined, require, variables
from kernels.proof.checker_lines import GRID, SLOPE, Function, Ints, Pair, apart

OWN_ROUNDING = Fraction(1, 1 << 60)  # of an operation's dyadic approximations, where float32 rounding is not counted

Pairs = list[Pair]  # of each place: low and high, or slopes or constants from below and from above
Waiting = dict[int, tuple[Ints, int]]


class Form(NamedTuple):
    """Linear rows over nodes: by node and row (place, weight over 2^e), and the runtime's error of each row."""

    e: int
    terms: dict[int, list[list[Pair]]]
    errors: Ints


Arguments = list[tuple[Form, Pairs]]  # with their slopes


class Node(NamedTuple):
    """Slopes . arguments + constants, from below and from above; constants are over 2^(GRID + SLOPE)."""

    arguments: Arguments
    constants: Pairs
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
        self.ranges: dict[int, Pairs] = {0: [(1 << GRID, 1 << GRID), *zip(low, high, strict=True)]}
        self.nodes: dict[int, Node] = {}
        self.arguments: dict[int, tuple[Form, Pairs]] = {}
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
            sizes = ((each, *self.ranges[key >> BITS][key & MASK]) for key, each in row.mags.items())
            total = sum(each * max(-low, high) for each, low, high in sizes)
            require(total < 1 << 127 + GRID, Wrong, "numbers in the net may overflow float32 over this region")
            found.append(math.ceil(total * g))
        return found or [0] * len(tensor.items)

    def range(self, form: Form) -> Pairs:
        """By intervals and, where the form is not of the input alone, by back-substitution."""

        def most(i: int, sign: int) -> int:
            ends = ((sign * w, self.ranges[node], at) for node, rows in form.terms.items() for at, w in rows[i])
            high = -(-sum(w * box[at][w > 0] for w, box, at in ends) >> form.e) + form.errors[i]
            row = [sign * (j == i) for j in range(len(form.errors))]
            return min(high, sum(self.upper(form, row))) if any(form.terms) else high

        return [(-most(i, -1), most(i, 1)) for i in range(len(form.errors))]

    def upper(self, form: Form, weights: Sequence[int]) -> Pair:
        """The largest value of weights . form: in real numbers, and what float rounding adds."""
        waiting: Waiting = {0: ([0] * len(self.ranges[0]), 0)}
        real, rounded = 0, self._spread(form, weights, 0, waiting)
        while at := max(waiting):
            (rows, e), node = waiting.pop(at), self.nodes[at]
            real += -(-sum(_most(rows, node.constants)) >> e + SLOPE)
            rounded += -(-node.rounding * sum(map(abs, rows)) >> e)
            for form, slopes in node.arguments:
                if any(vector := _most(rows, slopes)):
                    rounded += self._spread(form, vector, e + SLOPE, waiting)
        rows, e = waiting[0]
        return real - (-sum(_most(rows, self.ranges[0])) >> e), rounded

    def _spread(self, form: Form, vector: Sequence[int], e: int, waiting: Waiting) -> int:
        """Replaces vector / 2^e . form by its nodes; returns the float error, rounded up."""
        for node, rows in form.terms.items():
            values, old = waiting.get(node) or ([0] * len(self.ranges[node]), e + form.e)
            more = max(old, e + form.e)
            values = [each << more - old for each in values] if more > old else values
            for a, row in zip(vector, rows, strict=True):
                if a:
                    a <<= more - e - form.e
                    for place, weight in row:
                        values[place] += a * weight
            waiting[node] = values, more
        return -(-sum(abs(a) * each for a, each in zip(vector, form.errors, strict=True)) >> e)

    def _take(self, places: int) -> Pairs:
        """The certificate's next slopes: one of each place, then another of each."""
        first, second = (list(itertools.islice(self._slopes, places)) for _ in range(2))
        return list(zip(first, second, strict=True))

    def _single(self, unit: Unit) -> None:
        form = self.pairing.forms[unit.node]._replace(errors=self.errors(unit.argument))
        z, f = self.range(form), Function(unit, self.floats)
        self.arguments[unit.node] = form, z
        slopes = self._take(len(z))
        sides = [
            [[f.farthest(x, sign, slope), f.farthest(x, sign, 0)] for sign, slope in zip((-1, 1), both, strict=True)]
            for x, both in zip(z, slopes, strict=True)
        ]
        self._record(unit.node, [(form, slopes)], f.rounding, sides)

    def _paired(self, unit: Unit, mate: Unit) -> None:
        (ours, v), f, g = self.arguments[unit.node], Function(mate, self.floats), Function(unit, self.floats)
        theirs = self.pairing.forms[-unit.node]  # the expression itself, without the rounding of the original's run
        theirs, z = self.arguments[mate.node] if mate.node else (theirs, self.range(theirs))
        form = self.pairing.forms[unit.node + 1]._replace(errors=list(map(add, ours.errors, theirs.errors)))
        d = _meet(self.range(form), _minus(v, z))
        v, z = _meet(v, _minus(z, [(-high, -low) for low, high in d])), _meet(z, _minus(v, d))
        below, above = self._take(len(d)), self._take(len(d))  # each by d and by z
        sides = [
            [apart(f, g, of_z, of_v, of_d, sign, [line, (0, 0)]) for sign, line in ((-1, low), (1, high))]
            for of_z, of_v, of_d, low, high in zip(z, v, d, below, above, strict=True)
        ]
        by_d, by_z = ([(low[i], high[i]) for low, high in zip(below, above, strict=True)] for i in (0, 1))
        self._record(unit.node + 1, [(form, by_d), (theirs, by_z)], f.rounding + g.rounding, sides)

    def _record(self, at: int, arguments: Arguments, rounding: int, sides: list[list[Ints]]) -> None:
        """A node from what farthest and apart say of each place below and above it: for its lines, for its range."""
        self.nodes[at] = Node(arguments, [(-low, high) for (low, _), (high, _) in sides], rounding)
        self.ranges[at] = [
            ((-least >> SLOPE) - rounding, -(-most >> SLOPE) + rounding) for (_, least), (_, most) in sides
        ]


def _minus(a: Pairs, b: Pairs) -> Pairs:
    return [(low - most, high - least) for (low, high), (least, most) in zip(a, b, strict=True)]


def _meet(a: Pairs, b: Pairs) -> Pairs:
    """The intersection; two sound ranges of one value have one."""
    found = [(max(low, least), min(high, most)) for (low, high), (least, most) in zip(a, b, strict=True)]
    require(all(low <= high for low, high in found), Wrong, "two bounds of one value contradict each other")
    return found


def _most(rows: Ints, ends: Pairs) -> Ints:
    """The largest products of rows and what lies between the two ends."""
    return [a and a * each[a > 0] for a, each in zip(rows, ends, strict=True)]
