"""Random pairs of nets, an original and a variant of it, made to be hard on a prover: corner cases of every layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = npt.NDArray[Any]
Rng: TypeAlias = np.random.Generator

OPSET = 21
IR_VERSION = 10
CALIBRATION_ROWS = 256
SEVERITY_FATAL = 4


@dataclass(frozen=True)
class Pair:
    """Two nets with one input `x`, float32[rows, *shape], and the box that the claim is about."""

    name: str
    original: onnx.ModelProto
    variant: onnx.ModelProto
    low: Array  # float32[*shape]
    high: Array


@dataclass(frozen=True)
class Layer:
    """One operator: its constants by input place, its attributes; `branch` is added to or joined with its input."""

    op: str
    weights: tuple[Array, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    branch: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Widths:
    """How the variant is quantized; None keeps a part in float32."""

    weights: int | None
    activations: np.dtype[Any] | None
    per_channel: bool = False
    clip: float = 1.0  # share of the calibrated range that is kept: below one it saturates
    power_of_two: bool = False  # scales that make ties common


@dataclass
class Builder:
    """Nodes and constants of a graph in the making."""

    widths: Widths | None = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # where an activation may be quantized

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        domain = "ai.onnx.ml" if op.startswith("TreeEnsemble") else ""
        self.nodes.append(helper.make_node(op, list(inputs), [name], domain=domain, **attributes))
        return name

    def weight(self, array: Array, axis: int) -> str:
        """The name of the weight; in a variant of integers behind a DequantizeLinear."""
        if self.widths is None or self.widths.weights is None:
            return self.constant(array)
        most = (1 << (self.widths.weights - 1)) - 1
        others = tuple(each for each in range(array.ndim) if each != axis)
        largest = np.abs(array).max(axis=others if self.widths.per_channel else None)
        scale = self._scale(np.asarray(largest / most, np.float32))
        shaped = scale.reshape([-1 if each == axis else 1 for each in range(array.ndim)]) if scale.ndim else scale
        dtype = np.int8 if self.widths.weights <= 8 else np.int16
        with np.errstate(over="ignore"):
            integers = np.clip(np.rint(array.astype(np.float64) / shaped), -most, most).astype(dtype)
        names = [self.constant(integers), self.constant(scale), self.constant(np.zeros(scale.shape, dtype))]
        return self.node("DequantizeLinear", names, **({"axis": axis} if scale.ndim else {}))

    def activation(self, name: str, place: str) -> str:
        """The value, in a variant through a quantizer."""
        self.places.append(name)
        if self.widths is None or self.widths.activations is None or place not in self.ranges:
            return name
        info = np.iinfo(self.widths.activations)
        low, high = (self.widths.clip * each for each in self.ranges[place])
        low, high = min(low, 0.0), max(high, 0.0)
        scale = self._scale(np.asarray((high - low) / (info.max - info.min), np.float32))
        zero = np.clip(np.rint(info.min - low / float(scale)), info.min, info.max).astype(self.widths.activations)
        step, point = self.constant(scale), self.constant(np.asarray(zero))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, step, point]), step, point])

    def _scale(self, scale: Array) -> Array:
        scale = np.maximum(scale, np.float32(1e-30))
        if self.widths is not None and self.widths.power_of_two:
            return np.asarray(np.exp2(np.round(np.log2(scale))), np.float32)
        return scale


def build(layers: Iterable[Layer], shape: Sequence[int], widths: Widths | None = None, ranges: Any = None) -> Builder:
    """A graph from `x` to its last node."""
    builder = Builder(widths, ranges or {})
    _chain(builder, layers, builder.activation("x", "p0"))
    return builder


def _chain(builder: Builder, layers: Iterable[Layer], value: str) -> str:
    for layer in layers:
        if layer.branch:
            other = _chain(builder, layer.branch, value)
            value = builder.node(layer.op, [value, other], **layer.attributes)
        else:
            axis = {"Conv": 0, "Gemm": 0 if layer.attributes.get("transB") else 1, "MatMul": 1}.get(layer.op)
            names = [
                builder.weight(each, axis) if axis is not None and place == 0 else builder.constant(each)
                for place, each in enumerate(layer.weights)
            ]
            value = builder.node(layer.op, [value, *names], **layer.attributes)
        value = builder.activation(value, f"p{len(builder.places)}")
    return value


def model_of(builder: Builder, shape: Sequence[int], outputs: Sequence[str]) -> onnx.ModelProto:
    """The graph as a model; `outputs` are names of values."""
    graph = helper.make_graph(
        builder.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        builder.constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def answering(builder: Builder, shape: Sequence[int]) -> onnx.ModelProto:
    """The graph as a model with one output, `y`."""
    builder.nodes[-1].output[0] = "y"
    return model_of(builder, shape, ["y"])


def session(model: onnx.ModelProto, optimised: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SEVERITY_FATAL
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def draw(rng: Rng, low: Array, high: Array, rows: int) -> Array:
    """float32[rows, *shape] inside the box: uniform, float32 rounding included."""
    share = rng.random((rows, *low.shape), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.clip(low + share * (high - low), low, high).astype(np.float32)


def quantized(name: str, layers: Sequence[Layer], low: Array, high: Array, widths: Widths, rng: Rng) -> Pair:
    """The pair of the net and its quantized self, calibrated on random inputs of the box."""
    plain = build(layers, low.shape)
    rows = draw(rng, low, high, CALIBRATION_ROWS)
    values = session(model_of(plain, low.shape, plain.places[1:])).run(None, {"x": rows})
    bounds = [(float(low.min()), float(high.max())), *((float(v.min()), float(v.max())) for v in values)]
    ranges = {f"p{place}": each for place, each in enumerate(bounds[:-1])}  # the output itself stays float
    variant = build(layers, low.shape, widths, ranges)
    models = [answering(each, low.shape) for each in (plain, variant)]
    return Pair(name, models[0], models[1], low, high)


def perturbed(name: str, layers: Sequence[Layer], low: Array, high: Array, change: Callable[[Array], Array]) -> Pair:
    """The pair of the net and one of the same layers whose float constants are changed."""

    def altered(layer: Layer) -> Layer:
        weights = tuple(change(w) if w.dtype == np.float32 else w for w in layer.weights)
        return Layer(layer.op, weights, layer.attributes, tuple(altered(each) for each in layer.branch))

    graphs = [build(layers, low.shape), build([altered(each) for each in layers], low.shape)]
    models = [answering(each, low.shape) for each in graphs]
    return Pair(name, models[0], models[1], low, high)


def _dense(rng: Rng, rows: int, columns: int, size: float = 1.0) -> Layer:
    """Gemm, or MatMul with the bias as an Add behind it when drawn so."""
    weight = (rng.standard_normal((rows, columns)) * size / np.sqrt(rows)).astype(np.float32)
    bias = (rng.standard_normal(columns) * size * 0.3).astype(np.float32)
    if rng.random() < 0.5:
        return Layer("Gemm", (np.ascontiguousarray(weight.T), bias), {"transB": 1})
    return Layer("Gemm", (weight, bias))


def _rectifier(rng: Rng) -> Layer:
    kind = rng.integers(4)
    if kind == 2:
        return Layer("LeakyRelu", (), {"alpha": float(np.float32(rng.choice([0.01, 0.2, 1 / 3])))})
    if kind == 3:
        return Layer("Clip", (np.float32(0), np.float32(rng.choice([0.5, 6.0]))))  # type: ignore[arg-type]
    return Layer("Relu")


def _mlp(rng: Rng, size: float = 1.0, depth: int | None = None) -> tuple[list[Layer], int]:
    features = int(rng.integers(2, 7))
    hidden = rng.integers(3, 9, depth or int(rng.integers(1, 4)))
    widths = [features, *(int(each) for each in hidden), int(rng.integers(1, 5))]
    layers: list[Layer] = []
    for rows, columns in itertools.pairwise(widths):
        layers += [_dense(rng, rows, columns, size), _rectifier(rng)]
    return layers[:-1], features


def _box(rng: Rng, features: int, size: float = 1.0) -> tuple[Array, Array]:
    middle = rng.standard_normal(features) * size
    radius = rng.random(features) * size * rng.choice([0.01, 0.1, 1.0])
    return (middle - radius).astype(np.float32), (middle + radius).astype(np.float32)


def _floats_pair(rng: Rng, seed: int, size: float) -> Pair:
    layers, features = _mlp(rng, size)
    low, high = _box(rng, features)

    def change(weights: Array) -> Array:
        with np.errstate(over="ignore"):
            halves = weights.astype(np.float16).astype(np.float32)
        return np.where(np.isfinite(halves), halves, weights).astype(np.float32)

    return perturbed(f"floats {size:g} #{seed}", layers, low, high, change)


def _quantized_pair(rng: Rng, seed: int, widths: Widths, size: float = 1.0) -> Pair:
    layers, features = _mlp(rng, size)
    low, high = _box(rng, features, size)
    return quantized(f"{widths} {size:g} #{seed}", layers, low, high, widths, rng)


def _ties_pair(rng: Rng, seed: int) -> Pair:
    """Integer weights and a scale of a power of two: many inputs lie on the edge of a cell."""
    features = int(rng.integers(2, 5))
    weight = rng.integers(-2, 3, (features, 4)).astype(np.float32) / 8
    layers = [Layer("Gemm", (weight, np.zeros(4, np.float32))), Layer("Relu"), _dense(rng, 4, 2)]
    low, high = np.full(features, -4, np.float32), np.full(features, 4, np.float32)
    widths = Widths(8, np.dtype(rng.choice(["uint8", "int8"])), power_of_two=True, clip=float(rng.choice([0.5, 1.0])))
    return quantized(f"ties #{seed}", layers, low, high, widths, rng)


def _conv_pair(rng: Rng, seed: int) -> Pair:
    size = int(rng.integers(4, 7))
    filters = int(rng.integers(2, 4))
    kernel = (rng.standard_normal((filters, 1, 3, 3)) * 0.4).astype(np.float32)
    layers = [Layer("Conv", (kernel, rng.random(filters, np.float32)), {"pads": [1, 1, 1, 1]}), Layer("Relu")]
    pool = str(rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool", "none"]))
    side = size
    if pool == "GlobalAveragePool":
        layers.append(Layer(pool))
        side = 1
    elif pool != "none":
        layers.append(Layer(pool, (), {"kernel_shape": [2, 2], "strides": [2, 2]}))
        side = size // 2
    layers += [Layer("Flatten"), _dense(rng, filters * side * side, 3)]
    low = rng.random((1, size, size)).astype(np.float32)
    high = low + np.float32(rng.choice([0.01, 0.05]))
    widths = Widths(8, np.dtype(rng.choice(["uint8", "int8"])) if rng.random() < 0.5 else None, per_channel=True)
    return quantized(f"conv {pool} #{seed}", layers, low, high, widths, rng)


def _branches_pair(rng: Rng, seed: int) -> Pair:
    """A residual branch, batch-norm-like scaling by constants, and a smooth function at times."""
    layers, features = _mlp(rng, depth=1)
    inner = (_dense(rng, features, features), Layer(str(rng.choice(["Relu", "Sigmoid", "Tanh"]))))
    scale = (1 + rng.random(features)).astype(np.float32)
    op = str(rng.choice(["Add", "Concat"]))
    joined = Layer(op, (), {"axis": 1} if op == "Concat" else {}, inner)
    head = [Layer("Mul", (scale,)), Layer("Sub", (scale / 3,)), joined]
    if op == "Concat":
        layers = [_dense(rng, 2 * features, 4), Layer("Relu"), _dense(rng, 4, 2)]
    low, high = _box(rng, features)
    return quantized(f"{op} {inner[1].op} #{seed}", [*head, *layers], low, high, Widths(8, None), rng)


def _softmax_pair(rng: Rng, seed: int) -> Pair:
    layers, features = _mlp(rng, float(rng.choice([1.0, 5.0])))
    low, high = _box(rng, features)
    widths = Widths(int(rng.integers(4, 9)), None)
    return quantized(f"softmax #{seed}", [*layers, Layer("Softmax", (), {"axis": -1})], low, high, widths, rng)


def _sigmoid_pair(rng: Rng, seed: int) -> Pair:
    layers, features = _mlp(rng)
    low, high = _box(rng, features)
    widths = Widths(int(rng.integers(4, 9)), None)
    return quantized(f"sigmoid #{seed}", [*layers, Layer("Sigmoid")], low, high, widths, rng)


def _trees_pair(rng: Rng, seed: int) -> Pair:
    """Boosted stumps and the same with leaves of fewer bits; thresholds stay."""
    features, trees = int(rng.integers(2, 5)), int(rng.integers(1, 5))
    thresholds = rng.standard_normal(trees).astype(np.float32)
    leaves = rng.standard_normal((trees, 2)).astype(np.float32)

    def model(values: Array) -> onnx.ModelProto:
        node = helper.make_node(
            "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, post_transform="NONE",
            nodes_treeids=np.repeat(np.arange(trees), 3).tolist(), nodes_nodeids=[0, 1, 2] * trees,
            nodes_featureids=[each for t in range(trees) for each in (t % features, 0, 0)],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * trees,
            nodes_values=[float(each) for t in range(trees) for each in (thresholds[t], 0, 0)],
            nodes_truenodeids=[1, 0, 0] * trees, nodes_falsenodeids=[2, 0, 0] * trees,
            nodes_missing_value_tracks_true=[0, 0, 0] * trees, nodes_hitrates=[1.0] * (3 * trees),
            target_treeids=np.repeat(np.arange(trees), 2).tolist(), target_nodeids=[1, 2] * trees,
            target_ids=[0] * (2 * trees), target_weights=values.ravel().tolist(),
        )  # fmt: skip
        return answering(Builder(nodes=[node]), (features,))

    low, high = _box(rng, features)
    return Pair(f"trees #{seed}", model(leaves), model(leaves.astype(np.float16).astype(np.float32)), low, high)


def pairs(seed: int) -> Iterable[Pair]:
    """One pair of each kind for a seed."""
    rng = np.random.default_rng(seed)
    integers = [np.dtype(each) for each in ("uint8", "int8", "uint16")]
    yield _floats_pair(rng, seed, 1.0)
    yield _floats_pair(rng, seed, float(rng.choice([1e-30, 1e-12, 1e4, 1e9])))
    yield _quantized_pair(rng, seed, Widths(int(rng.integers(4, 9)), None, per_channel=bool(rng.integers(2))))
    yield _quantized_pair(rng, seed, Widths(int(rng.integers(9, 17)), None))
    yield _quantized_pair(rng, seed, Widths(8, integers[rng.integers(2)], bool(rng.integers(2))))
    yield _quantized_pair(rng, seed, Widths(8, integers[rng.integers(2)], clip=float(rng.choice([0.2, 0.7]))))
    yield _quantized_pair(rng, seed, Widths(None, integers[2]))
    yield _quantized_pair(rng, seed, Widths(8, integers[rng.integers(2)]), float(rng.choice([1e-9, 1e6])))
    yield _ties_pair(rng, seed)
    yield _conv_pair(rng, seed)
    yield _branches_pair(rng, seed)
    yield _softmax_pair(rng, seed)
    yield _trees_pair(rng, seed)
    yield _sigmoid_pair(rng, seed)
