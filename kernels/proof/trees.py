"""Tree ensembles: which leaves a box can reach, and how far two ensembles are apart over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from kernels.proof.bounds import Rows
from kernels.proof.ir import F64, Expression, Net, Unsupported, rounding
from kernels.proof.lines import Range
from kernels.proof.lower import attribute
from kernels.proof.pair import Product

_REACH_MAX = 1 << 27  # comparisons of leaves and boxes at a time
_OWN = 2.0**-45


@dataclass
class Forest(Net):
    """A net that is one ensemble. Leaf l answers weights[l] where low[l] < x <= high[l]; leaves lie tree by tree."""

    low: F64 = field(default_factory=lambda: np.zeros((0, 0)))
    high: F64 = field(default_factory=lambda: np.zeros((0, 0)))
    weights: F64 = field(default_factory=lambda: np.zeros((0, 0)))
    base: F64 = field(default_factory=lambda: np.zeros(0))
    starts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # the first leaf of each tree

    def reached(self, low: F64, high: F64) -> npt.NDArray[np.bool_]:
        """bool[boxes, leaves]: whether some point of the box comes to the leaf."""
        size = max(1, _REACH_MAX // max(self.low.size, 1))
        parts = [
            ((low[at : at + size, None] <= self.high) & (high[at : at + size, None] > self.low)).all(2)
            for at in range(0, len(low), size)
        ]
        return np.concatenate(parts)

    def run(self, x: F64) -> F64:
        return np.asarray(self.reached(x, x).astype(float) @ self.weights + self.base)

    def gradient(self, x: F64, weights: F64) -> F64:
        return np.random.default_rng(len(x)).choice([-1.0, 1.0], x.shape)  # flat nearly everywhere: any direction

    def most(self, rows: F64, reached: npt.NDArray[np.bool_], weights: F64) -> F64:
        """Largest rows @ answer: float64[boxes, rows], a leaf for each tree on its own."""
        values = rows @ weights.T
        held = np.where(reached[:, None, :], values, -np.inf)
        return np.asarray(np.maximum.reduceat(held, self.starts, 2).sum(2))


class ForestAnalysis:
    """Both ensembles over boxes, with the interface of bounds.Analysis."""

    def __init__(
        self, product: Product, low: F64, high: F64, floats: bool = True, tick: Callable[[], None] = lambda: None
    ) -> None:
        tick()
        assert isinstance(product.original, Forest) and isinstance(product.variant, Forest)
        self.product, self.floats, self.tasks = product, floats, len(low)
        self.ranges = {0: Range(low, high)}
        self._nets = product.original, product.variant
        self._reached = [net.reached(low, high) for net in self._nets]
        first, second = self._nets
        self._alike = first.low.shape == second.low.shape and all(
            np.array_equal(getattr(first, name), getattr(second, name)) for name in ("low", "high", "starts")
        )

    def outputs(self, rows: F64, which: str) -> Rows:
        """As bounds.Analysis.outputs."""
        rows = rows if rows.ndim == 3 else rows[None]
        (first, second), (there, here) = self._nets, self._reached
        if which == "difference" and self._alike:
            real = second.most(rows, here, second.weights - first.weights) + rows @ (second.base - first.base)
        elif which == "difference":
            real = second.most(rows, here, second.weights) + rows @ (second.base - first.base)
            real = real + first.most(-rows, there, first.weights)
        else:
            net, reached = (first, there) if which == "original" else (second, here)
            real = net.most(rows, reached, net.weights) + rows @ net.base
        size = np.abs(rows).sum(2).max() * sum(self._size(net) for net in self._nets)
        count = max(len(net.starts) for net in self._nets) + 8
        rounded = np.full_like(real, rounding(count) * size if self.floats else 0.0)
        return Rows(real + _OWN * count * size, rounded, self._influence(real.shape[1]))

    def _size(self, net: Forest) -> float:
        trees = np.maximum.reduceat(np.abs(net.weights).max(1), net.starts)
        return float(trees.sum() + np.abs(net.base).max(initial=0))

    def _influence(self, rows: int) -> F64:
        """How many bounds of leaves cut the box along each feature, a share of its width."""
        box = self.ranges[0]
        edges = self._nets[0].high[None]
        inside = ((edges > box.low[:, None]) & (edges < box.high[:, None])).sum(1)
        share = inside / np.maximum(box.high - box.low, 1e-30)
        return np.repeat(share[:, None].astype(float), rows, 1)


def forest(node: NodeProto, features: int) -> Forest:
    """Reads TreeEnsembleRegressor or TreeEnsembleClassifier. Raises Unsupported."""
    given: Callable[[str], list[Any]] = lambda name: list(attribute(node, name, []))  # noqa: E731
    kind = "class" if node.op_type.endswith("Classifier") else "target"
    if attribute(node, "aggregate_function", b"SUM") != b"SUM" or given("base_values_as_tensor"):
        raise Unsupported(f"{node.op_type} {node.output[0]!r} with another aggregate than SUM, or doubles")
    weights: dict[tuple[int, int], list[tuple[int, float]]] = {}
    fields = [given(f"{kind}_{name}") for name in ("treeids", "nodeids", "ids", "weights")]
    for tree, leaf, output, weight in zip(*fields, strict=True):
        weights.setdefault((tree, leaf), []).append((output, weight))
    outputs = attribute(node, "n_targets", 1) if kind == "target" else max(
        len(given("classlabels_int64s")), len(given("classlabels_strings")))  # fmt: skip
    used = {output for each in weights.values() for output, _ in each}
    binary = kind == "class" and outputs == 2 and len(used) == 1
    if binary and attribute(node, "post_transform", b"NONE") != b"LOGISTIC":
        raise Unsupported(f"{node.op_type} {node.output[0]!r} of one score for two classes without LOGISTIC")
    names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    nodes = {(each[0], each[1]): each for each in zip(*(given(f"nodes_{name}") for name in names), strict=True)}
    found = Forest(features)
    low: list[F64] = []
    high: list[F64] = []
    answers: list[F64] = []
    starts: list[int] = []
    for tree in dict.fromkeys(each[0] for each in nodes):
        starts.append(len(low))
        root = next(key for key in nodes if key[0] == tree)
        waiting = [(root, np.full(features, -np.inf), np.full(features, np.inf))]
        while waiting:
            key, least, most = waiting.pop()
            _, _, feature, value, mode, yes, no = nodes[key]
            if mode == b"LEAF":
                answer = np.zeros(outputs)
                for output, weight in weights.get(key, []):
                    answer[1 if binary else output] += weight
                low.append(least)
                high.append(most)
                answers.append(answer)
                continue
            edge = _edge(value, mode, node)
            below, above = most.copy(), least.copy()
            below[feature], above[feature] = min(most[feature], edge), max(least[feature], edge)
            waiting += [((tree, yes), least, below), ((tree, no), above, most)]
    found.low, found.high, found.weights = np.array(low), np.array(high), np.array(answers)
    found.starts, base = np.array(starts), given("base_values")
    found.base = np.zeros(outputs)
    found.base[-len(base) or outputs :] = base
    return found


def _edge(value: float, mode: bytes, node: NodeProto) -> float:
    """The largest float32 x that goes the way of true."""
    if mode == b"BRANCH_LEQ":
        return float(np.float32(value))
    if mode == b"BRANCH_LT":
        return float(np.nextafter(np.float32(value), np.float32(-np.inf)))
    raise Unsupported(f"{node.op_type} {node.output[0]!r} with {mode.decode()}")


def as_net(node: NodeProto, source: Expression, features: int, output: str) -> Forest:
    """The ensemble as the whole net. Raises Unsupported where it does not read the input itself."""
    if source.base != 0:
        raise Unsupported(f"{node.op_type} {node.output[0]!r} behind other operators is not modelled")
    found = forest(node, features)
    size = len(found.base)
    found.tensors[output] = Expression({}, np.zeros(size), np.zeros(size))
    found.output = output
    return found
