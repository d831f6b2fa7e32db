"""Bugs put into the prover on purpose: each is caught by sampling in the runtime or by the checker."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from kernels.proof.bounds import Analysis, Argument
from kernels.proof.checker_bounds import Box, Pairing
from kernels.proof.checker_graph import Lacks, Wrong, load, read
from kernels.proof.checker_outputs import Outputs
from kernels.proof.ir import Expression, Function
from kernels.proof.lines import Bound, Lines, Range
from kernels.proof.outputs import bounded
from kernels.proof.pair import Form, Product
from kernels.proof.question import Question
from kernels.proof.trees import Forest
from tests import random_nets
from tests.certificates import grid
from tests.random_nets import Array, Pair
from tests.unit.test_soundness import batches, flat, quantity_of, question_of

SEEDS = 3
POINTS = 4_000
ROOM = 1 + 2.0**-10  # that a certificate leaves to the checker


@dataclass(frozen=True)
class Case:
    """A pair, the worst that the runtime was seen to do, and the checker's reading of it (None: it lacks something)."""

    pair: Pair
    question: Question
    seen: float
    checked: tuple[Pairing, Outputs] | None

    @property
    def product(self) -> Product:
        assert self.question.product is not None
        return self.question.product


@cache
def cases() -> tuple[Case, ...]:
    rng = np.random.default_rng(5)
    found = []
    with TemporaryDirectory() as name:
        for pair in (each for seed in range(SEEDS) for each in random_nets.pairs(seed)):
            question = question_of(Path(name), pair, quantity_of(pair))
            if question.product is not None and not isinstance(question.product.original, Forest):
                seen = max(float(each.max()) for _, each, _ in batches(rng, question, *flat(pair), POINTS))
                found.append(Case(pair, question, seen, reading(Path(name), question)))
    return tuple(found)


def reading(folder: Path, question: Question) -> tuple[Pairing, Outputs] | None:
    assert question.product is not None
    protos = [load(folder / f"{which}.onnx")[0] for which in ("original", "variant")]
    try:
        original = read(protos[0], question.outputs[0])
        variant = read(protos[1], question.outputs[1], len(original.units) + 1, 2)
    except Lacks:
        return None
    mates = question.product.mates
    pairs = {unit.tensor: list(mate.name) if mate else None for unit, mate in zip(variant.units, mates, strict=True)}
    pairing = Pairing(original, variant, pairs)
    return pairing, Outputs(pairing)


def as_it_is(product: Product) -> Product:
    return product


def worst_of(analysis: Analysis, case: Case) -> float:
    return float(bounded(analysis, case.question.quantity).bound[0])


@dataclass(frozen=True)
class Bug:
    """A prover with something wrong: how it reads, how it bounds, what it claims, over which box."""

    name: str
    analysis: type[Analysis] = Analysis
    product: Callable[[Product], Product] = as_it_is
    claim: Callable[[Analysis, Case], float] = worst_of
    floats: bool = True
    shrink: float = 0.0  # of the box, at each side


def altered(change: Callable[[Lines], Lines], differences: bool) -> type[Analysis]:
    """A prover whose lines of values, or of differences, are changed after they were computed."""

    class Altered(Analysis):
        def _single(self, node: int, *arguments: Any) -> None:
            super()._single(node, *arguments)
            if not differences:
                self.nodes[node].lines = change(self.nodes[node].lines)

        def _paired(self, at: int, *arguments: Any) -> None:
            super()._paired(at, *arguments)
            if differences:
                node = self.product.difference(at)
                self.nodes[node].lines = change(self.nodes[node].lines)
                self.ranges[node] = self.nodes[node].lines.range

    return Altered


def flatter_upper(lines: Lines) -> Lines:
    """The chord's slope is wrong, its constant is that of the right one."""
    return replace(lines, upper=replace(lines.upper, slope=lines.upper.slope * 0.5))


def no_upper_constant(lines: Lines) -> Lines:
    return replace(lines, upper=replace(lines.upper, constant=np.zeros_like(lines.upper.constant)))


def negated_constant(lines: Lines) -> Lines:
    return replace(lines, upper=replace(lines.upper, constant=-lines.upper.constant))


def steep_lower(lines: Lines) -> Lines:
    return replace(lines, lower=replace(lines.lower, slope=np.ones_like(lines.lower.slope)))


def as_upper(lines: Lines) -> Lines:
    """Both sides on the lower line."""
    return replace(lines, upper=lines.lower)


def unchanged_difference(lines: Lines) -> Lines:
    """A unit passes a difference through: true only where both are active."""
    zero, one = np.zeros_like(lines.lower.slope), np.ones_like(lines.lower.slope)
    same = Bound(one, zero, zero)
    return replace(lines, lower=same, upper=same)


def no_difference(lines: Lines) -> Lines:
    zero = np.zeros_like(lines.lower.slope)
    return Lines(Bound(zero, zero, zero), Bound(zero, zero, zero), Range(zero, zero))


def half_range(lines: Lines) -> Lines:
    half = Range(lines.range.low / 2, lines.range.high / 2)
    zero = np.zeros_like(half.low)
    return Lines(Bound(zero, half.low, zero), Bound(zero, half.high, zero), half)


class WrongSides(Analysis):
    """A positive coefficient takes the lower line."""

    def _upper(self, argument: Argument, rows: Array) -> Any:
        for node in self.nodes.values():
            node.lines = replace(node.lines, lower=node.lines.upper, upper=node.lines.lower)
        found = super()._upper(argument, rows)
        for node in self.nodes.values():
            node.lines = replace(node.lines, lower=node.lines.upper, upper=node.lines.lower)
        return found


class NarrowArguments(Analysis):
    """Intervals of half their radius."""

    def _range(self, *arguments: Any) -> Range:
        found = super()._range(*arguments)
        middle, radius = 0.5 * (found.low + found.high), 0.25 * (found.high - found.low)
        return Range(middle - radius, middle + radius)


class NoConstants(Analysis):
    """Biases are forgotten in back-substitution."""

    def _argument(self, form: Form, *arguments: Any) -> Argument:
        found = super()._argument(form, *arguments)
        return replace(found, form=Form(form.terms, np.zeros_like(form.constant)))


class ForgottenInput(Product):
    """W' d without (W' - W) x."""

    def difference_form(self, ours: Expression, theirs: Expression) -> Form:
        form = super().difference_form(ours, theirs)
        kept = {node: each for node, each in form.terms.items() if node > len(self.original.unaries)}
        return Form(kept, form.constant)


class ForgottenHidden(Product):
    """(W' - W) x without W' d."""

    def difference_form(self, ours: Expression, theirs: Expression) -> Form:
        form = super().difference_form(ours, theirs)
        kept = {node: each for node, each in form.terms.items() if node <= len(self.original.unaries)}
        return Form(kept, form.constant)


class OriginalWeights(Product):
    """Differences travel through the original's weights and biases."""

    def difference_form(self, ours: Expression, theirs: Expression) -> Form:
        form = super().difference_form(ours, theirs)
        return Form(form.terms, np.zeros_like(form.constant))


def of(kind: type[Product]) -> Callable[[Product], Product]:
    return lambda product: kind(product.original, product.variant, product.mates)


class Exact(Function):
    """A quantizer that is said not to round."""

    @property
    def noise(self) -> tuple[float, float]:
        return 0.0, 0.0

    def run(self, z: Array) -> Array:
        return self.at(z)


def with_functions(change: Callable[[Function], Function]) -> Callable[[Product], Product]:
    """Functions of both nets are read wrongly."""

    def read_wrongly(product: Product) -> Product:
        found = copy.deepcopy(product)
        for unary in [*found.original.unaries, *found.variant.unaries]:
            unary.function = change(unary.function)
        mates = [m and replace(m, function=change(m.function)) for m in found.mates]
        return Product(found.original, found.variant, mates)

    return read_wrongly


def exact(f: Function) -> Function:
    return Exact(**{each.name: getattr(f, each.name) for each in fields(f)}) if f.step else f


def unsaturated(f: Function) -> Function:
    return replace(f, low=-1e30, high=1e30) if f.step else f


def shifted(f: Function) -> Function:
    return replace(f, low=f.low + 9 * f.step, high=f.high + 9 * f.step) if f.step else f


def half_step(f: Function) -> Function:
    return replace(f, step=f.step / 2) if f.step else f


class Late(Function):
    """A staircase whose jumps come half a step late."""

    def run(self, z: Array) -> Array:
        return np.clip(np.floor(z / self.step) * self.step, self.low, self.high) if self.step else self.at(z)


def late(f: Function) -> Function:
    return Late(**{each.name: getattr(f, each.name) for each in fields(f)}) if f.step else f


def no_leak(f: Function) -> Function:
    return Function("relu") if f.kind == "leaky" else f


def half_clip(f: Function) -> Function:
    return replace(f, high=f.high / 2) if f.kind == "clip" and not f.step else f


def first_of_window(product: Product) -> Product:
    """MaxPool takes the first number of its window."""
    found = copy.deepcopy(product)
    for unary in [*found.original.unaries, *found.variant.unaries]:
        if "#" in unary.tensor:
            unary.function = Function("clip", 0.0, 0.0)
    return found


def unquantized_weights(product: Product) -> Product:
    """The last layer's weights are read as the original's."""
    found = copy.deepcopy(product)
    ours, theirs = (net.tensors[net.output].terms.values() for net in (found.variant, found.original))
    for own, other in zip(ours, theirs, strict=False):
        if own.matrix is not None and other.matrix is not None and own.matrix.shape == other.matrix.shape:
            own.matrix[:] = other.matrix
    return found


def no_output_bias(product: Product) -> Product:
    found = copy.deepcopy(product)
    found.variant.tensors[found.variant.output].constant[:] = found.original.tensors[found.original.output].constant
    return found


def one_sided(analysis: Analysis, case: Case) -> float:
    """Only variant - original, not original - variant."""
    n = analysis.product.original.tensors[analysis.product.original.output].size
    return float(analysis.outputs(np.eye(n), "difference").total.max())


def half_of_softmax(analysis: Analysis, case: Case) -> float:
    """tanh(d / 8) where tanh(d / 4) is right."""
    worst = worst_of(analysis, case)
    return worst if case.question.quantity == "raw" else float(np.tanh(np.arctanh(min(worst, 0.999)) / 2))


BUGS = [
    Bug("wrong slope of the upper line", altered(flatter_upper, False)),
    Bug("no constant of the upper line", altered(no_upper_constant, False)),
    Bug("sign of the upper constant", altered(negated_constant, False)),
    Bug("lower slope of one", altered(steep_lower, False)),
    Bug("one line for both sides", altered(as_upper, False)),
    Bug("difference passes through", altered(unchanged_difference, True)),
    Bug("difference vanishes", altered(no_difference, True)),
    Bug("half the difference", altered(half_range, True)),
    Bug("wrong slope of a difference", altered(flatter_upper, True)),
    Bug("sides swapped", WrongSides),
    Bug("narrow intervals", NarrowArguments),
    Bug("biases forgotten", NoConstants),
    Bug("weight difference forgotten", product=of(ForgottenInput)),
    Bug("hidden difference forgotten", product=of(ForgottenHidden)),
    Bug("difference of biases forgotten", product=of(OriginalWeights)),
    Bug("quantizer without noise", product=with_functions(exact)),
    Bug("quantizer without saturation", product=with_functions(unsaturated)),
    Bug("quantizer with a wrong zero point", product=with_functions(shifted)),
    Bug("quantizer with half a step", product=with_functions(half_step)),
    Bug("quantizer that rounds down", product=with_functions(late)),
    Bug("leak forgotten", product=with_functions(no_leak)),
    Bug("clip at half of its limit", product=with_functions(half_clip)),
    Bug("pool takes the first", product=first_of_window),
    Bug("weights read as the original's", product=unquantized_weights),
    Bug("bias of the variant forgotten", product=no_output_bias),
    Bug("float rounding dropped", floats=False),
    Bug("one-sided bound", claim=one_sided),
    Bug("softmax by half", claim=half_of_softmax),
    Bug("half the box", shrink=0.25),
]


def caught(bug: Bug, case: Case) -> str:
    """"sampling", "checker", or nothing."""
    low, high = (each[None].astype(np.float64) for each in flat(case.pair))
    radius = bug.shrink * (high - low)
    analysis = bug.analysis(bug.product(case.product), low + radius, high - radius, floats=bug.floats)
    claimed = bug.claim(analysis, case)
    if not np.isfinite(claimed):
        return ""
    if case.seen > claimed:
        return "sampling"
    if case.checked is None:
        return ""
    pairing, outputs = case.checked
    sides = [grid(each) for each in (case.pair.low, case.pair.high)]
    try:
        box = Box(pairing, sides[0], sides[1], slopes_of(analysis), floats=True)
        found = outputs.bound(box, case.question.quantity)
    except Wrong:
        return "checker"
    return "checker" if found is None or float(found[0]) > claimed * ROOM else ""


def slopes_of(analysis: Analysis) -> list[int]:
    """As a certificate holds them."""
    product, found = analysis.product, []
    places = [*range(1, len(product.original.unaries) + 1)]
    for at, mate in enumerate(product.mates, 1):
        places += [product.value(at), *([product.difference(at)] if mate is not None else [])]
    for node in places:
        lines = analysis.nodes[node].lines
        sides = (lines.lower.slope, lines.lower.second, lines.upper.slope, lines.upper.second)
        found += [int(each) for side in sides if side is not None for each in np.rint(side[0] * 256)]
    return found


def test_the_prover_as_it_is_is_caught_by_nobody() -> None:
    right = Bug("none")
    assert [case.pair.name for case in cases() if caught(right, case)] == []


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_is_caught(bug: Bug) -> None:
    assert any(caught(bug, case) for case in cases())
