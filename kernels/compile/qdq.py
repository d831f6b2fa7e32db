"""A plan of widths written into the graph as QuantizeLinear and DequantizeLinear, in the places that keep 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import NodeProto, TensorProto, helper

from kernels.compile import ranges
from kernels.compile.layers import FLOAT, Place, Plan, WeightLayer, Width, eight_bit_tensors, places, weight_of
from kernels.compile.net import Array, Net, renamed
from kernels.compile.ranges import Scale

_BIAS_MAX = 2**30  # leaves the accumulator its half
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass
class _Draft:
    """The nodes and weights that come to a graph."""

    net: Net
    nodes: list[NodeProto]
    weights: dict[str, Array]

    def add(self, op: str, inputs: list[str], output: str, **stated: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **stated))
        return output

    def constant(self, name: str, array: Array) -> str:
        self.weights[name] = array
        return name


def write(net: Net, layers: list[WeightLayer], plan: Plan, scales: Mapping[str, Scale]) -> Net:
    """The net with the layers at their widths; `scales` has one for each of `eight_bit_tensors`."""
    draft = _Draft(net, [], {})
    held = eight_bit_tensors(net, layers, plan)
    where = places(net, layers, plan, held)
    names = {name: stepped(draft.nodes, draft.weights, name, scales[held[name]], where[name]) for name in held}
    by_node = {id(each.node): each for each in layers}
    for node in net.nodes:
        layer = by_node.get(id(node))
        width = plan.get(layer.name, FLOAT) if layer else FLOAT
        new = rewired(node, where, names)
        if layer is not None and width != FLOAT:
            scale = scales[held[layer.source]] if layer.source in held else None
            _layer(draft, layer, width, new, scale)
        draft.nodes.append(new)
    return net.rebuilt(draft.nodes, draft.weights)


def stepped(
    nodes: list[NodeProto], weights: dict[str, Array], name: str, scale: Scale, place: Place
) -> tuple[str, str]:
    """Adds Q and DQ behind a tensor: the name that its maker writes, and the one that its takers read."""
    weights |= {f"{name}.s": np.array(scale.scale, np.float32), f"{name}.z": np.array(scale.zero, np.uint8)}
    constants = [f"{name}.s", f"{name}.z"]
    before, after = (f"{name}.f", name) if place.all_takers else (name, f"{name}.d")
    nodes.append(helper.make_node("QuantizeLinear", [before, *constants], [f"{name}.q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *constants], [after]))
    return before, after


def rewired(node: NodeProto, where: Mapping[str, Place], names: Mapping[str, tuple[str, str]]) -> NodeProto:
    """The node reading and writing the tensors behind and before the steps."""
    new = renamed(node, {})
    new.input[:] = [names[each][1] if each in where and id(node) in where[each].takers else each for each in node.input]
    new.output[:] = [names[each][0] if each in where else each for each in node.output]
    return new


def _layer(draft: _Draft, layer: WeightLayer, width: Width, node: NodeProto, source: Scale | None) -> None:
    """The weights, and the bias where the runtime adds in whole numbers, put at their width."""
    array = weight_of(draft.net, layer)
    if width.weight == 16:
        if float(np.abs(array).max(initial=0)) <= _HALF_MAX:
            half = draft.constant(f"{layer.name}.w", array.astype(np.float16))
            node.input[1] = draft.add("Cast", [half], f"{layer.name}.wf", to=TensorProto.FLOAT)
        return
    bias = draft.net.weight(layer.bias) if layer.bias else None
    exact = width.activation == 8 and source is not None
    least = None
    if exact and bias is not None and source is not None:
        bias = np.broadcast_to(bias.reshape(-1), (layer.channels,))
        least = np.abs(bias.astype(np.float64)) / (float(source.scale) * _BIAS_MAX)
    steps, scales = ranges.weights(array, width.weight, layer.axis, least, width.clip)
    stored = _stored(draft, layer.name, steps, width.weight)
    if not exact or source is None:
        node.input[1] = _folded_at_load(draft, layer, stored, scales)
        return
    names = [stored, draft.constant(f"{layer.name}.ws", scales),
             draft.constant(f"{layer.name}.wz", np.zeros(len(scales), np.int8))]  # fmt: skip
    node.input[1] = draft.add("DequantizeLinear", names, f"{layer.name}.wf", axis=layer.axis)
    if bias is not None:
        unit = np.float32(source.scale) * scales  # the runtime reads the whole number in this unit, whatever is stated
        whole = np.rint(bias.astype(np.float64) / unit).astype(np.int32)
        names = [draft.constant(f"{layer.name}.b", whole), draft.constant(f"{layer.name}.bs", unit),
                 draft.constant(f"{layer.name}.bz", np.zeros(len(unit), np.int32))]  # fmt: skip
        node.input[2] = draft.add("DequantizeLinear", names, f"{layer.name}.bf", axis=0)


def _stored(draft: _Draft, name: str, steps: Array, bits: int) -> str:
    """Whole numbers in the file at their width; 4 bits become 8 when the runtime folds constants at load."""
    if bits == 8:
        return draft.constant(f"{name}.w", steps)
    packed = draft.constant(f"{name}.w", steps.astype(ml_dtypes.int4))
    return draft.add("Cast", [packed], f"{name}.w8", to=TensorProto.INT8)


def _folded_at_load(draft: _Draft, layer: WeightLayer, stored: str, scales: Array) -> str:
    """Weights stored small, floats in memory: Cast and Mul of constants, which the runtime folds when it loads.

    A DequantizeLinear here would run at each request, or become MatMulNBits, which may round activations as well.
    """
    shape = [1] * len(layer.shape)
    shape[layer.axis] = -1
    floats = draft.add("Cast", [stored], f"{layer.name}.wc", to=TensorProto.FLOAT)
    by_channel = draft.constant(f"{layer.name}.ws", scales.reshape(shape))
    return draft.add("Mul", [floats, by_channel], f"{layer.name}.wf")
