"""Small and large ONNX graphs with random weights, built without training, for tests and benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
Shape = Sequence[int | str | None]


class Builder:
    """Collects nodes and weights; each method returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def weight(self, array: npt.NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int, scale: float) -> str:
        return self.weight(self.rng.standard_normal(shape, np.float32) * np.float32(scale))

    def node(self, op: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], domain=domain, **attributes))
        return name

    def dense(self, x: str, width_in: int, width_out: int, out: str | None = None) -> str:
        product = self.node("MatMul", x, self.normal(width_in, width_out, scale=(2 / width_in) ** 0.5))
        return self.node("Add", product, self.normal(width_out, scale=0.1), out=out)

    def conv(self, x: str, channels: tuple[int, int], size: int, stride: int = 1, scale: float = 1.0) -> str:
        source, target = channels
        weights = self.normal(target, source, size, size, scale=scale * (2 / (source * size * size)) ** 0.5)
        bias = self.normal(target, scale=0.01)
        pads = [size // 2] * 4
        return self.node("Conv", x, weights, bias, kernel_shape=[size, size], strides=[stride, stride], pads=pads)

    def save(self, path: Path, inputs: dict[str, tuple[int, Shape]], outputs: dict[str, tuple[int, Shape]]) -> Path:
        """Writes the graph; `inputs` and `outputs` give element type and shape by name."""
        save(path, self.nodes, inputs, outputs, self.weights)
        return path


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[int, Shape]],
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = OPSET,
) -> None:
    """Writes a model of these nodes, with the folders above it."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def mlp(path: Path, sizes: Sequence[int] = (30, 128, 64, 2), seed: int = 0) -> Path:
    """features float32[rows, sizes[0]] -> probabilities float32[rows, sizes[-1]]."""
    net = Builder(seed)
    x = "features"
    for width_in, width_out in itertools.pairwise(sizes[:-1]):
        x = net.node("Relu", net.dense(x, width_in, width_out))
    net.node("Softmax", net.dense(x, sizes[-2], sizes[-1]), out="probabilities", axis=-1)
    return net.save(
        path,
        {"features": (TensorProto.FLOAT, ["rows", sizes[0]])},
        {"probabilities": (TensorProto.FLOAT, ["rows", sizes[-1]])},
    )


def resnet50(path: Path, seed: int = 0, image: int = 224) -> Path:
    """pixels uint8[rows, image, image, 3] -> probabilities float32[rows, 1000]; batch norms folded in, 100 MB."""
    net = Builder(seed)
    x = net.node("Cast", "pixels", to=TensorProto.FLOAT)
    x = net.node("Sub", x, net.weight(np.array([123.7, 116.3, 103.5], np.float32)))
    x = net.node("Mul", x, net.weight(1 / np.array([58.4, 57.1, 57.4], np.float32)))
    x = net.node("Transpose", x, perm=[0, 3, 1, 2])
    x = net.node("Relu", net.conv(x, (3, 64), 7, 2))
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, blocks, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            shortcut = net.conv(x, (channels, 4 * width), 1, stride) if block == 0 else x
            y = net.node("Relu", net.conv(x, (channels, width), 1))
            y = net.node("Relu", net.conv(y, (width, width), 3, stride))
            # small, so that the sums of 16 blocks stay in range without batch norms
            y = net.conv(y, (width, 4 * width), 1, scale=0.2)
            x = net.node("Relu", net.node("Add", y, shortcut))
            channels = 4 * width
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    net.node("Softmax", net.dense(x, channels, 1000), out="probabilities", axis=-1)
    return net.save(
        path,
        {"pixels": (TensorProto.UINT8, ["rows", image, image, 3])},
        {"probabilities": (TensorProto.FLOAT, ["rows", 1000])},
    )


def sequence(path: Path, words: int = 100, width: int = 16, classes: int = 3, seed: int = 0) -> Path:
    """ids, mask int64[rows, seq] -> pooled float32[rows, classes], tokens float32[rows, seq, classes].

    Where the mask is 0 a token does not count, so padding leaves `pooled` as it is.
    """
    net = Builder(seed)
    x = net.node("Gather", net.normal(words, width, scale=1.0), "ids")
    x = net.node("Tanh", net.dense(x, width, width))
    tokens = net.dense(x, width, classes, out="tokens")
    axes = net.weight(np.array([2]))
    mask = net.node("Unsqueeze", net.node("Cast", "mask", to=TensorProto.FLOAT), axes)
    sums = net.weight(np.array([1]))
    total = net.node("ReduceSum", net.node("Mul", tokens, mask), sums, keepdims=0)
    count = net.node("ReduceSum", mask, sums, keepdims=0)
    net.node("Div", total, net.node("Max", count, net.weight(np.ones(1, np.float32))), out="pooled")
    return net.save(
        path,
        {name: (TensorProto.INT64, ["rows", "seq"]) for name in ("ids", "mask")},
        {"pooled": (TensorProto.FLOAT, ["rows", classes]), "tokens": (TensorProto.FLOAT, ["rows", "seq", classes])},
    )


def strings(path: Path) -> Path:
    """colour BYTES[rows, 1] -> value float32[rows, 1] (red 1, green 2, else 0), name BYTES[rows, 1] (or "other")."""
    net = Builder()
    known = ["red", "green"]
    ml = "ai.onnx.ml"
    net.node(
        "LabelEncoder",
        "colour",
        out="value",
        domain=ml,
        keys_strings=known,
        values_floats=[1.0, 2.0],
        default_float=0.0,
    )
    net.node(
        "LabelEncoder",
        "colour",
        out="name",
        domain=ml,
        keys_strings=known,
        values_strings=known,
        default_string="other",
    )
    return net.save(
        path,
        {"colour": (TensorProto.STRING, ["rows", 1])},
        {"value": (TensorProto.FLOAT, ["rows", 1]), "name": (TensorProto.STRING, ["rows", 1])},
    )


def boosted_trees(path: Path, trees: int = 500, depth: int = 6, features: int = 30, seed: int = 0) -> Path:
    """features float32[rows, features] -> value float32[rows, 1]; complete binary trees with random splits."""
    rng = np.random.default_rng(seed)
    inner, leaves = (1 << depth) - 1, 1 << depth
    nodes = inner + leaves
    ids = np.tile(np.arange(nodes), trees)
    split = ids < inner
    leaf_ids = np.tile(np.arange(inner, nodes), trees)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["value"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=np.repeat(np.arange(trees), nodes).tolist(),
        nodes_nodeids=ids.tolist(),
        nodes_featureids=np.where(split, rng.integers(0, features, len(ids)), 0).tolist(),
        nodes_modes=np.where(split, "BRANCH_LEQ", "LEAF").tolist(),
        nodes_values=np.where(split, rng.standard_normal(len(ids)) * 0.5, 0).astype(np.float32).tolist(),
        nodes_truenodeids=np.where(split, 2 * ids + 1, 0).tolist(),
        nodes_falsenodeids=np.where(split, 2 * ids + 2, 0).tolist(),
        target_treeids=np.repeat(np.arange(trees), leaves).tolist(),
        target_nodeids=leaf_ids.tolist(),
        target_ids=[0] * len(leaf_ids),
        target_weights=(rng.standard_normal(len(leaf_ids)) / trees).astype(np.float32).tolist(),
    )
    save(
        path,
        [node],
        {"features": (TensorProto.FLOAT, ["rows", features])},
        {"value": (TensorProto.FLOAT, ["rows", 1])},
    )
    return path


def classifier(path: Path, features: int = 4, classes: Sequence[int | str] = (0, 1, 2), seed: int = 0) -> Path:
    """features float32[rows, features] -> label, probabilities as a ZipMap: what skl2onnx exports by default."""
    net = Builder(seed)
    words = {"classlabels_strings": list(classes)} if isinstance(classes[0], str) else {}
    attributes = words or {"classlabels_int64s": list(classes)}
    coefficients = net.rng.standard_normal(features * len(classes)).tolist()
    labels = {key.replace("int64s", "ints"): value for key, value in attributes.items()}
    net.nodes.append(
        helper.make_node(
            "LinearClassifier",
            ["features"],
            ["label", "raw"],
            domain="ai.onnx.ml",
            coefficients=coefficients,
            intercepts=[0.0] * len(classes),
            post_transform="SOFTMAX",
            **labels,
        )
    )
    net.node("ZipMap", "raw", out="probabilities", domain="ai.onnx.ml", **attributes)
    net.save(
        path,
        {"features": (TensorProto.FLOAT, [None, features])},
        {"label": (TensorProto.STRING if words else TensorProto.INT64, [None])},
    )
    model = onnx.load(path)
    key = TensorProto.STRING if words else TensorProto.INT64
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    zipped = helper.make_sequence_type_proto(helper.make_map_type_proto(key, value))
    model.graph.output.append(helper.make_value_info("probabilities", zipped))
    onnx.save(model, path)
    return path
