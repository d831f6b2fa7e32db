"""What can be quantized in a net: layers with weights, and the tensors that 8-bit layers hand each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from kernels.compile.importing import Reason
from kernels.compile.net import Array, Net, attributes, inferred

TERMS_MAX = 65_000  # 255 * 127 * terms fits the int32 that the runtime adds up in
FLOAT_BITS = 32
_LAYERS = ("Conv", "Gemm", "MatMul")
# the runtime has them for 8-bit values; those of the second group change no value
_EIGHT = ("Add", "GlobalAveragePool", "AveragePool", "Concat")
_SAME = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
_SATURATING = ("Relu", "Clip")


@dataclass(frozen=True, slots=True)
class Width:
    """Bits of weights and activations of a layer: 4, 8, 16 (weights only) or 32, which are floats. `clip`: the share of
    the largest weight of a channel that 4 bits reach, None is the one that errs least."""

    weight: int
    activation: int
    clip: float | None = None

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


FLOAT = Width(FLOAT_BITS, FLOAT_BITS)
Plan = dict[str, Width]  # by the name of a layer; FLOAT where missing


@dataclass(frozen=True, slots=True)
class WeightLayer:
    """A Conv, Gemm or MatMul with constant weights. `axis`: of the output channels in them; `name`: of its output."""

    name: str
    node: NodeProto
    source: str
    weight: str
    bias: str
    axis: int
    shape: tuple[int, ...]

    @property
    def op(self) -> str:
        return str(self.node.op_type)

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    def file_bytes(self, bits: int) -> int:
        """Of the weights at that width, scales included."""
        scales = 4 * self.channels if bits < 16 else 0
        return self.elements * bits // 8 + scales


def find(net: Net) -> tuple[list[WeightLayer], list[Reason]]:
    """The layers in their order, and why others are none."""
    layers, reasons = [], []
    ranks = inferred(net).ranks
    for node in net.nodes:
        if node.op_type not in _LAYERS:
            continue
        found = _layer(net, node, ranks)
        if isinstance(found, str):
            reasons.append(Reason(node.output[0], node.op_type, found))
        else:
            layers.append(found)
    return layers, reasons


def eight_bit_tensors(net: Net, layers: list[WeightLayer], plan: Plan) -> dict[str, str]:
    """The tensors that are held in 8 bits, each with the tensor whose scale it has (itself mostly).

    Inputs of 8-bit layers, what a Conv hands on, and backwards through operators that work on 8 bits.
    """
    eight = [each for each in layers if plan.get(each.name, FLOAT).activation == 8]
    outputs = {_after(net, each.name): each for each in eight}
    left = [each.source for each in eight] + [name for name, each in outputs.items() if each.op == "Conv"]
    found: set[str] = set()
    while left:
        name = left.pop()
        if name in found or not _is_float(net, name):
            continue
        found.add(name)
        node = net.producer.get(_before(net, name))
        if node is not None and node.op_type in (*_EIGHT, *_SAME):
            inputs = list(node.input) if node.op_type in ("Add", "Concat") else [node.input[0]]
            if all(net.weight(each) is None for each in inputs):
                left += [each for each in inputs if _worth(net, each, outputs)]
    return {name: _scale_of(net, name, found) for name in sorted(found)}


@dataclass(frozen=True, slots=True)
class Place:
    """Where Q and DQ go behind a tensor. `all_takers`: whoever makes it makes 8 bits, so there are no floats to read.

    Otherwise only `takers` (ids of nodes that work on 8 bits) read what comes back, and the others the floats.
    """

    all_takers: bool
    takers: frozenset[int]


def places(net: Net, layers: list[WeightLayer], plan: Plan, held: dict[str, str]) -> dict[str, Place]:
    """For each tensor that is held in 8 bits."""
    eight = {id(each.node): each for each in layers if plan.get(each.name, FLOAT).activation == 8}
    outputs = {_after(net, each.name): each for each in eight.values()}
    found = {}
    for name in held:
        takers = {
            id(node)
            for node in net.consumers.get(name, [])
            if id(node) in eight or (node.op_type in (*_EIGHT, *_SAME) and _after(net, node.output[0]) in held)
        }
        whole = name not in net.inputs and _worth(net, name, outputs)
        found[name] = Place(whole, frozenset(takers))
    return found


def _worth(net: Net, name: str, outputs: dict[str, WeightLayer]) -> bool:
    """Whether an 8-bit layer or operator makes the tensor; a scale on anything else gains nothing."""
    if name in outputs:
        return True
    node = net.producer.get(_before(net, name))
    return node is not None and node.op_type in (*_EIGHT, *_SAME)


def _scale_of(net: Net, name: str, found: set[str]) -> str:
    """Behind operators that change no value the scale is that of what goes in."""
    node = net.producer.get(name)
    while node is not None and node.op_type in _SAME and node.input[0] in found:
        name = node.input[0]
        node = net.producer.get(name)
    return name


def _after(net: Net, name: str) -> str:
    """The tensor behind the Relu or Clip that follows alone, as saturation does its work."""
    taker = net.only_consumer(name)
    saturates = taker is not None and taker.op_type in _SATURATING and _from_zero(net, taker)
    return str(taker.output[0]) if taker is not None and saturates else name


def _before(net: Net, name: str) -> str:
    """The tensor before the Relu or Clip that makes this one, where it goes nowhere else."""
    node = net.producer.get(name)
    if node is not None and node.op_type in _SATURATING and _after(net, node.input[0]) == name:
        return str(node.input[0])
    return name


def _from_zero(net: Net, node: NodeProto) -> bool:
    if node.op_type == "Relu":
        return True
    low = net.weight(node.input[1]) if len(node.input) > 1 else None
    return low is not None and low.size == 1 and float(low.reshape(-1)[0]) == 0


def _is_float(net: Net, name: str) -> bool:
    kinds = {each.name: each.type.tensor_type.elem_type for each in net.model.graph.input}
    return kinds.get(name, TensorProto.FLOAT) == TensorProto.FLOAT and net.weight(name) is None


def _layer(net: Net, node: NodeProto, ranks: dict[str, int]) -> WeightLayer | str:
    """The layer, or why it is none."""
    weight = net.weight(node.input[1])
    stated = attributes(node)
    bias = node.input[2] if len(node.input) > 2 else ""
    if weight is None:
        return "its weights are computed, not constant"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}"
    if net.weight(node.input[0]) is not None or (bias and net.weight(bias) is None):
        return "its input or bias is not what a layer has"
    if node.input[0] not in ranks:
        return "its input has a dynamic rank"
    if not np.isfinite(weight).all():
        return "its weights hold NaN or infinity"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its weights have {weight.ndim} dimensions"
    if node.op_type == "Gemm" and (stated.get("transA", 0), stated.get("alpha", 1), stated.get("beta", 1)) != (0, 1, 1):
        return "its input is transposed or scaled"
    axis = 0 if node.op_type == "Conv" or stated.get("transB", 0) else 1
    if weight.size // weight.shape[axis] > TERMS_MAX:
        return f"sums of more than {TERMS_MAX} terms overflow the runtime's 32 bits"
    return WeightLayer(node.output[0], node, node.input[0], node.input[1], bias, axis, weight.shape)


def weight_of(net: Net, layer: WeightLayer) -> Array:
    """float32, as in the file."""
    found = net.weight(layer.weight)
    assert found is not None
    return found
