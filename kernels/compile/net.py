"""A graph that passes can ask: who makes a tensor, who takes it, which weights it has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
OPSET = 21  # the first with 4-bit integers and block-wise scales
IR = 10  # the first with 4-bit integers


class Net:
    """A model, read only: a pass makes a new one with `rebuilt`."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.inputs = [each.name for each in model.graph.input]
        self.outputs = [each.name for each in model.graph.output]
        self._weights = {each.name: each for each in model.graph.initializer}
        self._arrays: dict[str, Array] = {}

    @cached_property
    def producer(self) -> dict[str, NodeProto]:
        """The node that makes each tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """The nodes that take each tensor."""
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @property
    def opset(self) -> int:
        """Of ai.onnx."""
        return max((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), default=0)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The dimensions of the tensors whose shape is stated: see `inferred`."""
        graph = self.model.graph
        values = [*graph.input, *graph.value_info, *graph.output]
        return {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")}

    def weight(self, name: str) -> Array | None:
        """The constant of that name, None where it is computed."""
        if name not in self._weights:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._weights[name])
        return self._arrays[name]

    def only_consumer(self, name: str) -> NodeProto | None:
        """The one node that takes the tensor; None where there are several or it is an output."""
        takers = self.consumers.get(name, [])
        return takers[0] if len(takers) == 1 and name not in self.outputs else None

    def rebuilt(self, nodes: Iterable[NodeProto], weights: dict[str, Array] | None = None) -> Net:
        """With these nodes, in an order that works, and these weights besides; what nobody takes any more is gone."""
        model = ModelProto()
        model.CopyFrom(_without_graph(self.model))
        graph = model.graph
        graph.name = self.model.graph.name or "net"
        graph.input.extend(self.model.graph.input)
        graph.output.extend(self.model.graph.output)
        kept = _needed(list(nodes), self.outputs)
        taken = {name for node in kept for name in node.input}
        graph.node.extend(_ordered(kept))
        new = weights or {}
        graph.initializer.extend(
            each for each in self.model.graph.initializer if each.name in taken and each.name not in new
        )
        graph.initializer.extend(tensor(name, array) for name, array in new.items() if name in taken)
        _declare(model)
        return Net(model)


def tensor(name: str, array: Array) -> TensorProto:
    """The array as an initializer."""
    return numpy_helper.from_array(np.ascontiguousarray(array) if array.ndim else array, name)


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def has_subgraph(node: NodeProto) -> bool:
    """Whether it is control flow."""
    return any(each.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for each in node.attribute)


def renamed(node: NodeProto, names: dict[str, str], *, inputs: bool = True, outputs: bool = True) -> NodeProto:
    """A copy whose tensors have their new names."""
    new = NodeProto()
    new.CopyFrom(node)
    if inputs:
        new.input[:] = [names.get(name, name) for name in node.input]
    if outputs:
        new.output[:] = [names.get(name, name) for name in node.output]
    return new


def _without_graph(model: ModelProto) -> ModelProto:
    bare = ModelProto(ir_version=max(model.ir_version, IR), producer_name="lrai", model_version=model.model_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    return bare


def _needed(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """Those that an output depends on."""
    producer = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    wanted: set[int] = set()
    left = list(outputs)
    while left:
        place = producer.get(left.pop())
        if place is not None and place not in wanted:
            wanted.add(place)
            left += nodes[place].input
    return [node for place, node in enumerate(nodes) if place in wanted]


def _ordered(nodes: list[NodeProto]) -> list[NodeProto]:
    """So that each comes behind what it takes."""
    maker = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    takes = {place: [maker[name] for name in node.input if name in maker] for place, node in enumerate(nodes)}
    return [nodes[place] for place in TopologicalSorter(takes).static_order()]


def _declare(model: ModelProto) -> None:
    """Leaves only the operator sets that are used."""
    used = {node.domain or "" for node in model.graph.node}
    kept = [each for each in model.opset_import if (each.domain or "") in used or each.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def inferred(net: Net) -> Net:
    """With the shapes of its tensors, as far as they follow."""
    try:
        return Net(onnx.shape_inference.infer_shapes(net.model, data_prop=True))
    except (onnx.shape_inference.InferenceError, ValueError, EncodeError):
        return net
