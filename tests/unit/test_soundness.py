"""No proved bound is ever violated: ten million points of random nets in the runtime, half of them from attacks.

More of them: python -m tests.unit.test_soundness 1000000000
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from kernels.proof.bounds import Analysis
from kernels.proof.ir import Unsupported, evaluate
from kernels.proof.outputs import Quantity, bounded
from kernels.proof.pair import Product
from kernels.proof.question import Question, ask
from kernels.proof.trees import Forest, ForestAnalysis
from tests import random_nets
from tests.random_nets import Array, Pair, Rng

SEEDS = 10
POINTS = 10_000_000
PAIRS_A_SEED = 14
ROUNDS = 4  # of an attack
BEST = 64
REFERENCE_POINTS = 200
INSIDE_POINTS = 500


@dataclass
class Tally:
    """Points tried, of them from attacks, and what was violated."""

    points: int = 0
    attacks: int = 0
    bounds: int = 0
    violated: list[str] | None = None


def question_of(folder: Path, pair: Pair, quantity: Quantity) -> Question:
    """The prover's own reading and sessions."""
    paths = folder / "original.onnx", folder / "variant.onnx"
    for path, model in zip(paths, (pair.original, pair.variant), strict=True):
        onnx.save(model, path)
    return ask(paths[0], paths[1], quantity)


def quantity_of(pair: Pair) -> Quantity:
    return "softmax" if pair.name.startswith("softmax") else "raw"


def flat(pair: Pair) -> tuple[Array, Array]:
    return pair.low.reshape(-1), pair.high.reshape(-1)


def analysed(product: Product, low: Array, high: Array) -> Analysis | ForestAnalysis:
    """The prover's bounds over one box."""
    kind = ForestAnalysis if isinstance(product.original, Forest) else Analysis
    return kind(product, low[None].astype(float), high[None].astype(float))


def mutated(rng: Rng, best: Array, low: Array, high: Array, n: int) -> Array:
    """float32[n, features] near the best: coordinates swapped, moved by any size down to an ulp, or put on an edge."""
    rows = best[rng.integers(len(best), size=n)]
    others = best[rng.integers(len(best), size=n)]
    rows = np.where(rng.random(rows.shape) < 0.2, others, rows)
    size = 10.0 ** -rng.integers(0, 8, rows.shape)
    with np.errstate(over="ignore", under="ignore"):
        moved = (rows + (rng.random(rows.shape) - 0.5) * size * (high - low)).astype(np.float32)
    rows = np.where(rng.random(rows.shape) < 0.5, moved, rows)
    rows = np.where(rng.random(rows.shape) < 0.05, np.nextafter(rows, high), rows)
    edge = np.where(rng.random(rows.shape) < 0.5, low, high)
    return np.clip(np.where(rng.random(rows.shape) < 0.1, edge, rows), low, high).astype(np.float32)


def batches(rng: Rng, question: Question, low: Array, high: Array, points: int) -> Iterator[tuple[Array, Array, bool]]:
    """Points, the runtime's difference at them, and whether they come from an attack."""
    x = random_nets.draw(rng, low, high, points // 2)
    seen = question.replay(x)
    yield x, seen, False
    corners = np.where(rng.random((BEST, len(low))) < 0.5, low, high)
    best = np.concatenate([x[np.argsort(seen)[-BEST:]], corners.astype(np.float32)])
    for _ in range(ROUNDS):
        x = mutated(rng, best, low, high, -(-points // (2 * ROUNDS)))
        seen = question.replay(x)
        yield x, seen, True
        best = np.concatenate([best[BEST:], x[np.argsort(seen)[-BEST:]]])


def try_pair(pair: Pair, folder: Path, rng: Rng, points: int, tally: Tally) -> None:
    """Samples and attacks one pair over its box and over a part of it."""
    question = question_of(folder, pair, quantity_of(pair))
    if question.product is None:
        assert question.reason  # what is not modelled is named, and no bound is claimed
        return
    low, high = flat(pair)
    part = np.sort(random_nets.draw(rng, low, high, 2), axis=0)
    for box_low, box_high in ((low, high), (part[0], part[1])):
        try:
            analysis = analysed(question.product, box_low, box_high)
        except Unsupported:
            continue
        bound = bounded(analysis, question.quantity).bound[0]
        tally.bounds += 1
        for x, seen, attack in batches(rng, question, box_low, box_high, points // 2):
            tally.points += len(x)
            tally.attacks += len(x) * attack
            if not seen.max() <= bound:
                tally.violated = [*(tally.violated or []), f"{pair.name}: {seen.max()} > {bound}"]


def inside(analysis: Analysis, product: Product, x: Array) -> list[str]:
    """Nodes whose value at a point lies outside of the range that the prover holds for it."""
    values: list[list[Array]] = []
    for net in (product.original, product.variant):
        found = [x.astype(np.float64)]
        for unary in net.unaries:
            found.append(unary.function.run(evaluate(unary.argument, found)))
        values.append(found)
    wrong = []
    nodes = [(at, values[0][at]) for at in range(1, len(values[0]))]
    for at, mate in enumerate(product.mates, 1):
        nodes.append((product.value(at), values[1][at]))
        if mate is not None:
            nodes.append((product.difference(at), values[1][at] - evaluate(mate.value, values[0])))
    for node, value in nodes:
        box = analysis.ranges[node]
        room = 1e-9 * (np.abs(value) + box.size)  # of this evaluation in float64
        if ((value < box.low - room) | (value > box.high + room)).any():
            wrong.append(f"node {node}")
    return wrong


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_bound_is_violated(tmp_path: Path, seed: int) -> None:
    tally, rng = Tally(), np.random.default_rng(10_000 + seed)
    modelled = PAIRS_A_SEED - 1  # a rare overflow aside
    for pair in random_nets.pairs(seed):
        try_pair(pair, tmp_path, rng, POINTS // SEEDS // modelled + 2 * ROUNDS, tally)
    assert tally.violated is None
    assert tally.points >= POINTS // SEEDS and 2 * tally.attacks >= tally.points
    assert tally.bounds >= 2 * modelled


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_range_inside_is_violated(tmp_path: Path, seed: int) -> None:
    """Each unit's value, and its difference to its mate, layer by layer."""
    rng = np.random.default_rng(seed)
    for pair in random_nets.pairs(seed):
        question = question_of(tmp_path, pair, quantity_of(pair))
        if question.product is None or isinstance(question.product.original, Forest):
            continue
        low, high = flat(pair)
        analysis = Analysis(question.product, low[None].astype(float), high[None].astype(float))
        x = np.concatenate([random_nets.draw(rng, low, high, INSIDE_POINTS), np.stack([low, high])])
        assert inside(analysis, question.product, x) == [], pair.name


@pytest.mark.parametrize("seed", range(2))
def test_no_bound_is_violated_by_the_reference(tmp_path: Path, seed: int) -> None:
    """The same in numpy: ONNX's own reference implementation."""
    rng = np.random.default_rng(seed)
    for pair in random_nets.pairs(seed):
        question = question_of(tmp_path, pair, "raw")
        if question.product is None or pair.name.startswith("softmax"):
            continue
        low, high = flat(pair)
        bound = bounded(analysed(question.product, low, high), "raw").bound[0]
        x = random_nets.draw(rng, pair.low, pair.high, REFERENCE_POINTS)
        with np.errstate(all="ignore"):
            answers = [ReferenceEvaluator(each).run(None, {"x": x})[0] for each in (pair.original, pair.variant)]
        assert np.abs(answers[1].astype(float) - answers[0]).max() <= bound, pair.name


def main(points: int) -> None:
    """As many points as asked for, on other seeds than the tests'."""
    tally, seed = Tally(), SEEDS
    with tempfile.TemporaryDirectory() as folder:
        while tally.points < points:
            for pair in random_nets.pairs(seed):
                try_pair(pair, Path(folder), np.random.default_rng(seed), 1_000_000, tally)
            seed += 1
            violated = tally.violated or "none violated"
            print(f"{tally.points} points, {tally.attacks} of attacks, {tally.bounds} bounds: {violated}")
    sys.exit(tally.violated is not None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
