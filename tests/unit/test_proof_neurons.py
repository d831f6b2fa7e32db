"""Bounds from Lagrange multipliers, and branch and bound over what functions do: never below what the runtime shows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kernels.proof.bounds import Analysis
from kernels.proof.ir import Unsupported
from kernels.proof.lagrange import G_DOWN, Dual, Objective, Pass
from kernels.proof.neurons import Branching, Part, Side, decide
from kernels.proof.outputs import softmax, sufficient
from kernels.proof.question import Question, ask
from kernels.proof.trees import Forest
from kernels.proof.verify import verify
from tests import random_nets
from tests.random_nets import Array, Builder, Layer, answering, build
from tests.unit.test_soundness import flat, quantity_of, question_of

SEEDS = 2
POINTS = 2_000
TURNS, TURNS_OF_BUGS = 450, 1800  # steps of a search, instead of seconds


@dataclasses.dataclass(frozen=True)
class Case:
    """A pair over its box, random rows of the outputs' difference, and the largest values that the runtime shows."""

    name: str
    analysis: Analysis
    rows: Array
    seen: Array


def cases(folder: Path, seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for pair in random_nets.pairs(seed):
        question = question_of(folder, pair, quantity_of(pair))
        product = question.product
        if product is None or isinstance(product.original, Forest) or question.net.ending == "softmaxed":
            continue
        nets = product.original, product.variant
        if any(unary.function.smooth for net in nets for unary in net.unaries):
            continue
        low, high = flat(pair)
        try:
            analysis = Analysis(product, low[None].astype(float), high[None].astype(float))
        except Unsupported:
            continue
        half = rng.normal(size=(1, product.original.tensors[product.original.output].size))
        rows = np.concatenate([half, -half])
        yield Case(f"{pair.name} {seed}", analysis, rows, shown(rng, question, low, high) @ rows.T)


def shown(rng: np.random.Generator, question: Question, low: Array, high: Array) -> Array:
    """Differences of the sessions' outputs at random points and corners."""
    corner = np.where(rng.random((POINTS // 4, len(low))) < 0.5, low, high).astype(np.float32)
    x = np.concatenate([random_nets.draw(rng, low, high, POINTS), corner])
    answers = [session.run(x).astype(float).reshape(len(x), -1) for session in question.sessions]
    return np.asarray(answers[1] - answers[0])


def turns(count: int) -> Callable[[], float]:
    left = itertools.count(count, -1)
    return lambda: float(next(left))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_multipliers_bound_what_the_runtime_shows(tmp_path: Path, seed: int) -> None:
    rng, tried = np.random.default_rng(seed), 0
    for case in cases(tmp_path, seed):
        dual = Dual(case.analysis)
        regions = [each.corners[:, :, None] for each in dual.cells]
        for row, seen in zip(case.rows, case.seen.max(0), strict=True):
            objective = dual.objective(row)
            start = dual.start(objective)
            for noise in (0.0, 1e-3, 0.1, 3.0):
                m = start * rng.uniform(0.5, 1.5, start.shape) + noise * rng.normal(size=start.shape)
                assert dual.passed(objective, m, regions).bound[0] >= seen, case.name
                tried += 1
    assert tried > 50


def violations(folder: Path, seed: int, kind: type[Branching] = Branching, count: int = TURNS) -> Iterator[str]:
    """Cases whose bound after splitting, down to a limit just below what is seen, is below it."""
    for case in cases(folder, seed):
        row, seen = case.rows[0], float(case.seen[:, 0].max())
        if kind(Dual(case.analysis), row, seen - 1e-4 * abs(seen), turns(count)).run() < seen:
            yield case.name


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_tree_of_splits_bounds_below_what_the_runtime_shows(tmp_path: Path, seed: int) -> None:
    assert list(violations(tmp_path, seed)) == []


class LostSide(Branching):
    """The upper side of a cut is taken for its lower one: inputs of the upper one are in no part."""

    def _sides(self, parts: list[Part], seen: Pass, m: Array) -> list[Side]:
        return [dataclasses.replace(each, above=False) for each in super()._sides(parts, seen, m)]


class LostLevel(Branching):
    """A level is lost between both sides of a quantizer's cut."""

    def _sides(self, parts: list[Part], seen: Pass, m: Array) -> list[Side]:
        steps = [each.functions for each in self.dual.cells]
        return [dataclasses.replace(each, at=each.at + each.above * steps[each.place[0]][each.which].step)
                for each in super()._sides(parts, seen, m)]  # fmt: skip


class NoStaircase(Branching):
    """A quantizer's lower bound is taken for its upper one."""

    def _regions(self, parts: list[Part]) -> list[Array]:
        return [each[[0, 1, 2, 3, G_DOWN, G_DOWN]] for each in super()._regions(parts)]


class NoError(Branching):
    """Constants of the objective are lost."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.objective = Objective(self.objective.values, np.zeros(1))


@pytest.mark.parametrize("kind", [LostSide, LostLevel, NoStaircase, NoError])
def test_a_bug_is_caught_by_sampling(tmp_path: Path, kind: type[Branching]) -> None:
    assert next((name for seed in range(SEEDS) for name in violations(tmp_path, seed, kind, TURNS_OF_BUGS)), "")


def quantized_pair(folder: Path, features: int) -> tuple[Path, Path]:
    """An MLP, and the same with 4-bit-like activations."""
    rng = np.random.default_rng(3)
    weights = [(rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32) for shape in ((features, 12), (12, 1))]
    layers = [Layer("Gemm", (weights[0], np.zeros(12, np.float32))), Layer("Relu"),
              Layer("Gemm", (weights[1], np.zeros(1, np.float32)))]  # fmt: skip
    onnx.save(answering(build(layers, (features,)), (features,)), folder / "a.onnx")
    builder = Builder()
    value = builder.node("Gemm", ["x", *map(builder.constant, layers[0].weights)])
    value = builder.node("Relu", [value])
    grid = [builder.constant(np.asarray(np.float32(0.125))), builder.constant(np.asarray(np.uint8(0)))]
    value = builder.node("DequantizeLinear", [builder.node("QuantizeLinear", [value, *grid]), *grid])
    builder.node("Gemm", [value, *map(builder.constant, layers[2].weights)])
    onnx.save(answering(builder, (features,)), folder / "b.onnx")
    return folder / "a.onnx", folder / "b.onnx"


def test_splits_prove_what_bounds_alone_do_not(tmp_path: Path) -> None:
    a, b = quantized_pair(tmp_path, 20)
    low, high = np.full((1, 20), -0.05), np.full((1, 20), 0.05)
    question = ask(a, b, "raw")
    analysis = Analysis(question.product, low, high)  # type: ignore[arg-type]
    rows, _ = sufficient(analysis, "raw", 1.0) or (np.zeros((0, 0)), None)
    root = analysis.outputs(rows, "difference").total[0]
    bounds, x = decide(analysis, rows, np.full(2, 0.0), turns(TURNS_OF_BUGS))
    assert (bounds <= root).all() and bounds.max() < 0.97 * root.max()
    epsilon = float(1.0001 * bounds.max())
    found = verify(a, b, low, high, epsilon, "raw", 20.0)
    assert found.outcomes[0].verdict == "PROVED" and found.outcomes[0].bound <= epsilon < root.max()
    seen = float(question.replay(x.astype(np.float32)).max())
    assert 0 < seen <= bounds.max()
    wrong = verify(a, b, low, high, 0.9 * seen, "raw", 5.0)
    assert wrong.outcomes[0].verdict == "REFUTED" and wrong.outcomes[0].seen > 0.9 * seen


def test_pairs_within_the_limits_keep_probabilities_within_epsilon(tmp_path: Path) -> None:
    """Softmax of logits whose pairwise differences move by the limit, in the worst direction and at the worst place."""
    rng = np.random.default_rng(0)
    pair = next(each for each in random_nets.pairs(1) if each.name.startswith("softmax"))
    question = question_of(tmp_path, pair, "softmax")
    low, high = flat(pair)
    analysis = Analysis(question.product, low[None].astype(float), high[None].astype(float))  # type: ignore[arg-type]
    rows, limits = sufficient(analysis, "softmax", 0.01) or (np.zeros((0, 0)), np.zeros(0))
    n = rows.shape[1]
    logits, moves = rng.normal(size=(100_000, n)) * 3, rng.normal(size=(100_000, n))
    moves *= (limits[0] / np.abs(moves @ rows.T).max(1))[:, None]
    change = np.abs(softmax(logits + moves) - softmax(logits)).max()
    assert 0.8 * 0.01 < change <= 0.01
