"""Reads an ONNX graph into a Net, only as far as one output needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from kernels.proof.ir import BadProblem, Expression, Function, Net, Unary, Unsupported, base_expression

Array = npt.NDArray[Any]
BYTES_MAX = 3 << 30  # of the matrices of one net
# of constants: their results are rounded once, or not at all, so that the runtime's are the same
_FOLDED = """Abs Add Cast Ceil Clip Concat Constant ConstantOfShape DequantizeLinear Div Expand Flatten Floor Gather
Identity Max Min Mul Neg QuantizeLinear Relu Reshape Round Shape Size Slice Split Sqrt Squeeze Sub Tile Transpose
Unsqueeze Where"""
_FOLDED_MAX = 1 << 28  # numbers of a folded constant


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: its expression, its shape without the rows, and its quantizer where it is an integer."""

    expression: Expression
    shape: tuple[int, ...]
    signature: str
    scale: tuple[float, int, int] | None = None  # of an integer tensor: scale, zero point, type
    double: bool = False

    @property
    def index(self) -> npt.NDArray[np.int64]:
        return np.arange(self.expression.size).reshape(self.shape)


class Lowering:
    """The state of one reading: constants, tensors and the net that grows."""

    def __init__(self, proto: onnx.ModelProto, known: frozenset[str] = frozenset()) -> None:
        """`known`: signatures of the original, where the variant is read."""
        self.graph: GraphProto = proto.graph
        self.proto = proto
        self.known = known
        self.constants: dict[str, Array] = {each.name: numpy_helper.to_array(each) for each in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.tensors: dict[str, Tensor] = {}
        self.input, shape = _input(self.graph)
        features = int(np.prod(shape))
        self.net = Net(features)
        self.bytes = 0
        self._record(self.input, Tensor(base_expression(0, features), shape, "in"))

    def tensor(self, name: str) -> Tensor:
        """Lowers what the tensor needs, in the order of the graph. Raises Unsupported, BadProblem."""
        from kernels.proof.operators import OF_INTEGERS, OPERATORS

        for node in self._needed(name):
            self.reserve(0)
            if all(each in self.constants for each in node.input if each):
                self._fold(node)
                continue
            key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
            if key not in OPERATORS:
                raise Unsupported(f"operator {key} (node {node.name or node.output[0]!r}) is not modelled")
            integers = any(each in self.tensors and self.tensors[each].scale for each in node.input)
            if integers and key not in OF_INTEGERS:  # others take the numbers, not what they stand for
                raise Unsupported(f"{key} {node.output[0]!r} of integers is not modelled")
            place = 1 if node.op_type == "LinearClassifier" else 0  # its first output is the label
            self._record(node.output[place], OPERATORS[key](self, node))
        if name not in self.tensors:
            raise Unsupported(f"output {name!r} does not depend on the input")
        return self.tensors[name]

    def reserve(self, numbers: int) -> None:
        """Counts matrices before they are made. Raises BadProblem."""
        self.bytes += 16 * numbers
        if self.bytes > BYTES_MAX:
            raise BadProblem(
                f"the net is too large for a proof: its matrices need {self.bytes / 2**30:.1f} GiB or more,"
                f" {BYTES_MAX / 2**30:.0f} GiB are allowed"
            )

    def unary(self, function: Function, argument: Tensor, node: NodeProto, name: str = "") -> Tensor:
        """A new base: the function of the tensor."""
        parent = argument.signature
        rectifies = function.kind == "relu" or (function.kind == "clip" and function.low == 0)
        signature = parent
        if function.step and parent.startswith("relu("):
            rectifies = False
        if rectifies and not (function.step and f"relu({parent})" not in self.known):
            signature = f"relu({parent})"
        elif not function.step:
            signature = f"{function.kind}({parent})"
        tensor = name or node.output[0]
        self.net.unaries.append(Unary(function, argument.expression, tensor, parent))
        self.net.tensors.setdefault(tensor, base_expression(len(self.net.unaries), argument.expression.size))
        self.net.signatures[tensor] = signature
        return Tensor(self.net.tensors[tensor], argument.shape, signature)

    def uses(self, name: str) -> int:
        """How many nodes and outputs read the tensor."""
        read = [each for node in self.graph.node for each in node.input] + [each.name for each in self.graph.output]
        return read.count(name)

    def forget(self, name: str) -> None:
        """Takes back the last base, which is this tensor."""
        self.net.unaries.pop()
        for each in (self.net.tensors, self.net.signatures, self.tensors):
            del each[name]

    def of(self, node: NodeProto, place: int = 0) -> Tensor:
        """The input of a node that depends on the net's input."""
        name = node.input[place]
        if name not in self.tensors:
            raise Unsupported(f"{node.op_type} (node {node.name or node.output[0]!r}) of a constant as input {place}")
        return self.tensors[name]

    def constant(self, node: NodeProto, place: int, default: Array | None = None) -> Array:
        if len(node.input) <= place or not node.input[place]:
            if default is None:
                raise BadProblem(f"{node.op_type} (node {node.name or node.output[0]!r}) lacks input {place}")
            return default
        name = node.input[place]
        if name not in self.constants:
            raise Unsupported(f"{node.op_type} (node {node.name or node.output[0]!r}) whose input {place} is computed")
        array = self.constants[name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Unsupported(f"{node.op_type} (node {node.name or node.output[0]!r}) with NaN or infinity in {name!r}")
        return array

    def _record(self, name: str, tensor: Tensor) -> None:
        if tensor.expression.size != int(np.prod(tensor.shape)):
            raise BadProblem(f"tensor {name!r} has {tensor.expression.size} numbers for shape {tensor.shape}")
        self.tensors[name] = tensor
        self.net.tensors[name] = tensor.expression
        self.net.signatures[name] = tensor.signature

    def _needed(self, name: str) -> list[NodeProto]:
        needed, left = set(), [name]
        while left:
            node = self.makers.get(left.pop())
            if node is not None and id(node) not in needed and not self.tensors.keys() & set(node.output):
                needed.add(id(node))
                left.extend(node.input)
        return [node for node in self.graph.node if id(node) in needed]

    def _fold(self, node: NodeProto) -> None:
        """Evaluates a node of constants, in float32 as the runtime does."""
        feeds = {name: self.constants[name] for name in node.input if name}
        if sum(each.size for each in feeds.values()) > _FOLDED_MAX:
            raise BadProblem(f"node {node.output[0]!r} folds more than {_FOLDED_MAX} numbers")
        if node.op_type == "DequantizeLinear" and not attribute(node, "block_size", 0):
            self.constants[node.output[0]] = self._dequantized(node)
            return
        if node.op_type not in _FOLDED.split():
            raise Unsupported(f"{node.op_type} of constants ({node.output[0]!r}), which may be rounded otherwise")
        try:
            found = ReferenceEvaluator(_alone(node, feeds, self.proto)).run(None, feeds)
        except Exception as err:  # the reference raises whatever numpy does
            raise Unsupported(f"constant node {node.output[0]!r} ({node.op_type}): {err}") from None
        self.constants.update({name: np.asarray(each) for name, each in zip(node.output, found, strict=True)})

    def _dequantized(self, node: NodeProto) -> Array:
        values, scale = self.constants[node.input[0]], self.constants[node.input[1]].astype(np.float32)
        zero = self.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), np.int32)
        if scale.size > 1:
            axis = attribute(node, "axis", 1)
            shape = [-1 if each == axis % values.ndim else 1 for each in range(values.ndim)]
            scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise Unsupported(f"DequantizeLinear {node.output[0]!r} has a scale that is not above zero")
        levels = (values.astype(np.int64) - zero.astype(np.int64)).astype(np.float32)
        return np.asarray(levels * scale.reshape(()) if scale.size == 1 else levels * scale, np.float32)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The attribute's value, or the default."""
    for each in node.attribute:
        if each.name == name:
            return onnx.helper.get_attribute_value(each)
    return default


def load(path: Path) -> onnx.ModelProto:
    """The model with its external weights. Raises BadProblem."""
    try:
        proto = onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as err:
        first = (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
        raise BadProblem(f"{path}: no ONNX model ({first})") from None
    if not proto.graph.node:
        raise BadProblem(f"{path}: no ONNX model (it has no nodes)")
    return proto


def features(path: Path) -> int:
    """How many numbers a row of the model's input has. Raises BadProblem."""
    return Lowering(load(path)).net.features


def _alone(node: NodeProto, feeds: dict[str, Array], proto: onnx.ModelProto) -> onnx.ModelProto:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
        for name, each in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], "folded", values, outputs)
    return onnx.helper.make_model(graph, opset_imports=list(proto.opset_import))


def _input(graph: GraphProto) -> tuple[str, tuple[int, ...]]:
    """The one float input and its shape without rows. Raises BadProblem."""
    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1:
        raise BadProblem(f"a proof needs one input, the graph has {[each.name for each in inputs]}")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        raise BadProblem(f"input {inputs[0].name!r} holds no floats; a proof is about float32 inputs")
    dims = list(tensor.shape.dim)
    if len(dims) < 2:
        raise BadProblem(f"input {inputs[0].name!r} has shape {[each.dim_value for each in dims]}; rows come first")
    unknown = [each.dim_param or "?" for each in dims[1:] if each.dim_value <= 0]
    if unknown:
        raise BadProblem(
            f"input {inputs[0].name!r} has sizes that vary beside its rows ({', '.join(unknown)}); fix them"
        )
    return inputs[0].name, tuple(each.dim_value for each in dims[1:])


Operator = Callable[[Lowering, NodeProto], Tensor]
