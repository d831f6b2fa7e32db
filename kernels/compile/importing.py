"""The graph as every pass wants it: one opset, constants folded, shapes known, plain operators where possible."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, helper

from kernels.compile.net import OPSET, Array, Net, attributes, has_subgraph, inferred
from kernels.compile.runtime import NotCompiled, first_line, optimized
from kernels.graph import without_zipmap
from kernels.manifest import RunOptions
from kernels.spec import ModelSpec

BYTES_MAX = 2_000_000_000  # what one protobuf message may hold
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
              "MatMulInteger", "ConvInteger", "MatMulNBits"}  # fmt: skip
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a node, or the whole model where `node` is empty, stays as it is."""

    node: str
    op: str
    why: str


@dataclass(frozen=True, slots=True)
class Imported:
    """`net` is None where the model must stay as it is; `opset` and `datatypes` are the original's."""

    net: Net | None
    opset: int
    datatypes: tuple[str, ...]
    reasons: tuple[Reason, ...]


def read(spec: ModelSpec) -> Imported:
    """The model of a repository. Raises NotCompiled where the file is no valid model."""
    try:
        model = onnx.load_from_string(without_zipmap(spec.path)) if spec.zipmap else onnx.load(spec.path)
    except (DecodeError, EncodeError, OSError, ValueError) as err:
        raise NotCompiled(f"{spec.path}: cannot be read ({first_line(err)}); export the model again") from None
    opset, datatypes = Net(model).opset, _datatypes(model)
    if reasons := _obstacles(model):
        return Imported(None, opset, datatypes, reasons)
    if any(not each.type.tensor_type.HasField("shape") for each in model.graph.output):
        model = inferred(Net(model)).model
    try:
        checked(model, spec.path)
        net = Net(_upgraded(_plain(Net(model)).model))
    except (RuntimeError, ValueError, DecodeError, EncodeError, NotCompiled) as err:
        why = f"it cannot be read as a plain graph of opset {OPSET}: {first_line(err)}"
        return Imported(None, opset, datatypes, (Reason("", "", why),))
    return Imported(inferred(_gemms(net)), opset, datatypes, ())


def checked(model: ModelProto, path: str) -> None:
    """Raises NotCompiled where the graph breaks a rule of ONNX, naming the file.

    Outputs without a shape break one; the runtime takes them, so such graphs are left for it to judge.
    """
    if any(not each.type.tensor_type.HasField("shape") for each in model.graph.output):
        return
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as err:
        text = " ".join(str(err).split())[:300]
        raise NotCompiled(f"{path}: is no valid ONNX model ({text}); export it again") from None


def _obstacles(model: ModelProto) -> tuple[Reason, ...]:
    reasons = []
    for node in model.graph.node:
        domain = node.domain or ""
        if has_subgraph(node):
            reasons.append(Reason(node.name, node.op_type, "control flow: what runs depends on the input"))
        elif domain not in _STANDARD:
            reasons.append(Reason(node.name, node.op_type, f"custom operator of domain {domain!r}"))
        elif node.op_type in _QUANTIZED:
            reasons.append(Reason(node.name, node.op_type, "the model is quantized already"))
    if model.functions:
        reasons.append(Reason("", "", "the model has functions of its own"))
    if model.ByteSize() > BYTES_MAX:
        reasons.append(Reason("", "", f"its weights exceed {BYTES_MAX} bytes"))
    return tuple(reasons)


def _datatypes(model: ModelProto) -> tuple[str, ...]:
    kinds = {each.data_type for each in model.graph.initializer}
    kinds |= {each.type.tensor_type.elem_type for each in model.graph.input}
    return tuple(sorted(TensorProto.DataType.Name(kind) for kind in kinds))


def _upgraded(model: ModelProto) -> ModelProto:
    """At OPSET, constants folded and batch norms in the weights before them, by ONNX Runtime's basic level."""
    outputs = [each.name for each in model.graph.output]
    if Net(model).opset < OPSET:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = onnx.version_converter.convert_version(model, OPSET)
    basic = optimized(onnx.shape_inference.infer_shapes(model), RunOptions("basic"))
    del basic.graph.input[:], basic.graph.output[:]
    basic.graph.input.extend(each for each in model.graph.input)
    basic.graph.output.extend(model.graph.output)
    if {node.domain or "" for node in basic.graph.node} - {*_STANDARD}:
        basic = model  # an optimisation of a newer runtime that no pass knows
    if [each.name for each in basic.graph.output] != outputs:
        raise NotCompiled("its outputs changed their names")
    return Net(basic).rebuilt(basic.graph.node).model


def _plain(net: Net) -> Net:
    """Scaler (ai.onnx.ml) as Sub and Mul, ArrayFeatureExtractor of a constant as Gather; weights are no inputs."""
    model = net.model
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    net = Net(model)
    floats = {each.name for each in inputs if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes: list[NodeProto] = []
    added: dict[str, Array] = {}
    for place, node in enumerate(net.nodes):
        constant = net.weight(node.input[0]) if node.input else None
        if node.op_type == "Scaler" and node.input[0] in floats:
            stated = attributes(node)
            added |= {f"offset_{place}": np.array(stated.get("offset", [0.0]), np.float32),
                      f"scale_{place}": np.array(stated.get("scale", [1.0]), np.float32)}  # fmt: skip
            nodes += [
                helper.make_node("Sub", [node.input[0], f"offset_{place}"], [f"centred_{place}"]),
                helper.make_node("Mul", [f"centred_{place}", f"scale_{place}"], [node.output[0]]),
            ]
        elif node.op_type == "ArrayFeatureExtractor" and constant is not None and constant.ndim == 1:
            # of a vector it gives [1, n]; the Reshape that always follows it does not mind
            taker = net.only_consumer(node.output[0])
            flat = taker is not None and taker.op_type == "Reshape"
            nodes.append(helper.make_node("Gather", list(node.input), list(node.output)) if flat else node)
        else:
            nodes.append(node)
    return net.rebuilt(nodes, added)


def _gemms(net: Net) -> Net:
    """MatMul of a matrix and Add of a constant row as one Gemm, which carries its bias."""
    ranks = inferred(net).ranks
    nodes: list[NodeProto] = []
    added: dict[str, Array] = {}
    merged: set[int] = set()
    for node in net.nodes:
        add = net.only_consumer(node.output[0]) if node.op_type == "MatMul" else None
        weight = net.weight(node.input[1]) if add is not None else None
        if add is None or weight is None or weight.ndim != 2 or add.op_type != "Add" or ranks.get(node.input[0]) != 2:
            nodes.append(node)
            continue
        name = add.input[1] if add.input[0] == node.output[0] else add.input[0]
        bias = net.weight(name)
        if bias is None or bias.size not in (1, weight.shape[1]):
            nodes.append(node)
            continue
        wide = f"{name}_of_{add.output[0]}"
        added[wide] = np.broadcast_to(bias.reshape(-1), (weight.shape[1],)).copy()
        nodes.append(helper.make_node("Gemm", [*node.input, wide], list(add.output), name=node.name))
        merged.add(id(add))
    return net.rebuilt([node for node in nodes if id(node) not in merged], added)
