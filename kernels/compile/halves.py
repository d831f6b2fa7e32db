"""Weights and activations in 16 bits, float16 or bfloat16: what a GPU multiplies several times as fast as float32.

Inputs and outputs of the graph keep their type. A node stays float32 where its operator takes no 16-bit floats, or
where float16 would not hold what it takes, makes or has as weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, defs, helper

from kernels.compile import ranges
from kernels.compile.candidates import Candidate
from kernels.compile.net import Array, Net, inferred
from kernels.compile.runtime import Tensors
from kernels.manifest import Layer

_FLOAT = TensorProto.FLOAT
_MARGIN = 8  # rows that calibration did not see may go so much further
Wide = list[tuple[NodeProto, str]]


@dataclass(frozen=True, slots=True)
class Half:
    """16-bit floats. `rounding`: of one number, as a share of it."""

    name: str
    element: int
    largest: float
    rounding: float


HALVES = {each.name: each for each in (
    Half("fp16", TensorProto.FLOAT16, 65_504.0, 2.0**-11), Half("bf16", TensorProto.BFLOAT16, 3.38e38, 2.0**-8),
)}  # fmt: skip


def candidates(net: Net, feeds: Sequence[Tensors], names: Sequence[str]) -> Iterator[Candidate]:
    """The net in each of these; `feeds` show which tensors 16 bits do not hold. Raises NotCompiled."""
    net = inferred(net)
    floats = [name for name, kind in _elements(net).items() if kind == _FLOAT and net.weight(name) is None]
    seen = ranges.observe(net, floats, feeds, finite=False) if names else {}
    for half in map(HALVES.__getitem__, names):
        far = {name for name, each in seen.items() if max(-each.low, each.high) > half.largest / _MARGIN}
        narrow, kept = convert(net, half, far)
        bits = [32 if why else 16 for _, why in kept]
        layers = (Layer(node.output[0], node.op_type, width, width, 0.0, why or "every node alike")
                  for (node, why), width in zip(kept, bits, strict=True))  # fmt: skip
        yield Candidate(half.name, half.name, half.name, narrow, tuple(layers), rounding=half.rounding)


def convert(net: Net, half: Half, far: set[str]) -> tuple[Net, Wide]:
    """The net in 16 bits, and its nodes of floats, each with why it stays float32 ("" where it does not).

    `far`: tensors that 16 bits do not hold. The net must state the types of its tensors: see `inferred`.
    """
    made = _Halves(net, half, far)
    for node in net.nodes:
        made.add(node)
    for name in net.outputs:
        made.form(name, wide=True)
    return inferred(net.rebuilt(made.nodes, made.weights)), made.done


class _Halves:
    """The nodes of the new graph. `narrow`: tensors that a 16-bit node makes; a cast makes the other form, once."""

    def __init__(self, net: Net, half: Half, far: set[str]) -> None:
        self.net, self.half, self.far, self.elements = net, half, far, _elements(net)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.narrow: set[str] = set()
        self.forms: set[str] = set()
        self.done: Wide = []

    def add(self, node: NodeProto) -> None:
        """Takes over a node, in 16 bits where it can be."""
        takes, makes = _able(self.net, node, self.half)
        is_float = [self.elements.get(name) == _FLOAT for name in node.input]
        outputs = {name for name in node.output if self.elements.get(name) == _FLOAT}
        floats = outputs | {name for name, each in zip(node.input, is_float, strict=True) if each}
        short = [able for able, each in zip(takes, is_float, strict=True) if each] or [node.op_type == "Cast"]
        able = any(short) and all(each for each, name in zip(makes, node.output, strict=True) if name in outputs)
        why = self._beyond(floats) if able else f"{node.op_type} of opset {self.net.opset} takes no {self.half.name}"
        if not outputs and not floats & self.narrow:
            why = "what it takes is float32"
        new = NodeProto()
        new.CopyFrom(node)
        for place, name in enumerate(node.input):
            new.input[place] = self.form(name, wide=bool(why) or not takes[place]) if is_float[place] else name
        if floats:
            self.done.append((node, why))
        if not why:
            self.narrow |= outputs
            new.output[:] = [f"{name}.h" if name in outputs else name for name in node.output]
            if node.op_type == "Cast" and outputs:
                del new.attribute[:]
                new.attribute.append(helper.make_attribute("to", self.half.element))
        self.nodes.append(new)

    def form(self, name: str, *, wide: bool) -> str:
        """The name of a tensor of floats in 32 or in 16 bits."""
        here, short = f"{name}.h", self.half.element
        found, source, kind = (name, here, _FLOAT) if wide else (here, name, short)
        if (array := self.net.weight(name)) is not None:
            self.weights |= {} if wide else {here: array.astype(helper.tensor_dtype_to_np_dtype(short))}
        elif wide == (name in self.narrow) and found not in self.forms:
            self.nodes.append(helper.make_node("Cast", [source], [found], to=kind))
            self.forms.add(found)
        return found

    def _beyond(self, names: set[str]) -> str:
        """Why 16 bits do not hold these tensors."""
        if far := self.far & names:
            return f"{min(far)!r} comes within a factor {_MARGIN} of the largest {self.half.name}"
        arrays = [array for array in map(self.net.weight, names) if array is not None]
        large = any(np.abs(array).max(initial=0) > self.half.largest for array in arrays)
        return f"a weight exceeds the largest {self.half.name}" if large else ""


def _able(net: Net, node: NodeProto, half: Half) -> tuple[list[bool], list[bool]]:
    """Of each input and output, whether the operator lets it be of these 16 bits."""
    sides = node.input, node.output
    if node.domain or not defs.has(node.op_type):
        return [False] * len(sides[0]), [False] * len(sides[1])
    schema, wanted = defs.get_schema(node.op_type, net.opset), TensorProto.DataType.Name(half.element).lower()
    able = {each.type_param_str: f"tensor({wanted})" in each.allowed_type_strs for each in schema.type_constraints}
    stated = ([able.get(each.type_str, False) for each in side] for side in (schema.inputs, schema.outputs))
    takes, makes = ([*own, *own[-1:] * len(names)][: len(names)] for own, names in zip(stated, sides, strict=True))
    return takes, makes  # the last that is declared may be repeated


def _elements(net: Net) -> dict[str, int]:
    """The types of its tensors, as far as they are stated."""
    graph = net.model.graph
    weights = {each.name: each.data_type for each in graph.initializer}
    values = [*graph.input, *graph.value_info, *graph.output]
    return weights | {each.name: each.type.tensor_type.elem_type for each in values}
