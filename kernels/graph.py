"""What an ONNX graph says of itself, read without a runtime and without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from kernels.spec import Problem, TensorSpec

OPSET_MIN = 17
DATATYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}
# their converters state the lowest opset that the operators need, whatever opset they were asked for
_LOWERING = {"skl2onnx", "onnxmltools"}
_NAN_OPERATORS = ("TreeEnsemble", "Imputer", "IsNaN")


@dataclass
class Graph:
    """The facts of a graph; what is wrong with it is in `problems`."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    rows_fixed: int | None = None
    zipmap: bool = False
    classical: bool = False  # has operators of ai.onnx.ml
    allow_nan: bool = False
    classes: tuple[int, ...] | None = None
    labels: tuple[str, ...] | None = None
    external: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, what: str, fix: str) -> None:
        self.problems.append(Problem(str(path), what, fix))


def read(path: Path) -> Graph:
    """The graph of a model.onnx. Never raises for what the file holds: see `problems`."""
    graph = Graph()
    proto = _load(path, graph)
    if proto is None:
        return graph
    nodes = list(_nodes(proto.graph))
    graph.classical = any(node.domain == "ai.onnx.ml" for node in nodes)
    _opset(proto, path, graph)
    maps = {node.output[0]: node for node in proto.graph.node if node.op_type == "ZipMap" and node.output}
    graph.zipmap = bool(maps)
    graph.allow_nan = any(node.op_type.startswith(_NAN_OPERATORS) for node in nodes)
    graph.classes, graph.labels = _class_labels(nodes)
    graph.external = _external(proto, path, graph)
    _read_inputs(proto, path, graph)
    _read_outputs(proto, maps, path, graph)
    return graph


def without_zipmap(path: str) -> bytes:
    """The model with each ZipMap, a Python object a row, replaced by the probabilities that it wraps.

    Weights in files of their own are read in. The names of the outputs stay.
    """
    proto = onnx.load(path)
    outputs = {each.name: each for each in proto.graph.output}
    for node in proto.graph.node:
        if node.op_type != "ZipMap":
            continue
        width = len(_labels(node)[1])
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
        if (output := outputs.get(node.output[0])) is not None:
            output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [None, width]))
    if not any(each.domain in ("", "ai.onnx") for each in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("", OPSET_MIN))
    return bytes(proto.SerializeToString())


def _load(path: Path, graph: Graph) -> ModelProto | None:
    fix = "export the model again or copy it whole"
    try:
        if not path.stat().st_size:
            graph.problem(path, "the file is empty", fix)
            return None
        proto = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        graph.problem(path, "the file is missing", "put the model there under this name")
        return None
    except (DecodeError, OSError, ValueError) as err:
        graph.problem(path, f"the file is no ONNX model ({_first_line(err)})", fix)
        return None
    if not proto.graph.node:
        graph.problem(path, "the file is no ONNX model (it has no nodes)", fix)
        return None
    return proto


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes, those of inner graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


def _opset(proto: ModelProto, path: Path, graph: Graph) -> None:
    versions = [each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")]
    lowered = graph.classical or proto.producer_name.lower() in _LOWERING
    if not versions or max(versions) >= OPSET_MIN or lowered:
        return
    graph.problem(
        path,
        f"the opset of ai.onnx is {max(versions)}, at least {OPSET_MIN} is needed",
        f"export with opset {OPSET_MIN}, or convert: onnx.save(onnx.version_converter.convert_version("
        f"onnx.load('model.onnx'), {OPSET_MIN}), 'model.onnx')",
    )


def _labels(node: NodeProto) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """The classes of a classifier or ZipMap node: their integer values if they are integers, and their names."""
    for attribute in node.attribute:
        if attribute.name.startswith("classlabels") and attribute.strings:
            return None, tuple(each.decode(errors="replace") for each in attribute.strings)
        if attribute.name.startswith("classlabels") and attribute.ints:
            return tuple(attribute.ints), tuple(str(each) for each in attribute.ints)
    return None, ()


def _class_labels(nodes: list[NodeProto]) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    for node in reversed(nodes):
        classes, names = _labels(node)
        if names:
            return classes, names
    return None, None


def _external(proto: ModelProto, path: Path, graph: Graph) -> tuple[str, ...]:
    """The files that hold weights, checked to be there and in the model's own folder."""
    names = {
        entry.value
        for tensor in _tensors(proto.graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(names):
        if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            graph.problem(path, f"its weights are in {name!r}, outside of its folder", "save them beside model.onnx")
        elif not (path.parent / name).is_file():
            graph.problem(path, f"the file {name!r} with its weights is missing", "copy it beside model.onnx")
    return tuple(sorted(names))


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in _nodes(graph):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from attribute.g.initializer


def _read_inputs(proto: ModelProto, path: Path, graph: Graph) -> None:
    weights = {each.name for each in proto.graph.initializer}
    specs, first = [], set()
    for value in proto.graph.input:
        if value.name in weights:
            continue
        spec, rows = _tensor(value, "input", path, graph)
        if spec is not None:
            specs.append(spec)
            first.add(rows)
    if not specs and not graph.problems:
        graph.problem(
            path, "the graph has no inputs, so no rows", "export it with inputs whose first dimension is rows"
        )
    fixed = {rows for rows in first if isinstance(rows, int)}
    named = {rows for rows in first if isinstance(rows, str) and rows}
    if len(fixed) > 1 or len(named) > 1:
        sizes = ", ".join(str(rows) for rows in sorted(map(str, first)))
        graph.problem(path, f"the first dimensions of the inputs differ ({sizes})", "make rows the first of each")
    for spec in specs:
        if named & set(spec.varying):
            graph.problem(
                path,
                f"input {spec.name!r} has its rows in another dimension too",
                "give each dimension of the export its own name",
            )
    graph.inputs = tuple(specs)
    graph.rows_fixed = max(fixed) if fixed else None


def _read_outputs(proto: ModelProto, maps: dict[str, NodeProto], path: Path, graph: Graph) -> None:
    values = list(proto.graph.output)
    if any(value.name not in maps and not value.type.tensor_type.HasField("shape") for value in values):
        values = list(_inferred(proto).graph.output)
    specs = []
    for value in values:
        if value.name in maps:
            specs.append(TensorSpec(value.name, "FP32", (len(_labels(maps[value.name])[1]),)))
            continue
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            datatype = DATATYPES.get(value.type.tensor_type.elem_type, "FP32")
            specs.append(TensorSpec(value.name, datatype, (f"{value.name}_unknown",)))
            continue
        spec, rows = _tensor(value, "output", path, graph)
        # converters of classical models state shapes of outputs that do not hold
        if isinstance(rows, int) and rows != graph.rows_fixed and graph.inputs and not graph.classical:
            graph.problem(
                path,
                f"output {value.name!r} always has {rows} rows",
                "export it so that each row of the inputs gets a row of the output",
            )
        if spec is not None:
            specs.append(spec)
    graph.outputs = tuple(specs)


def _inferred(proto: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, ValueError):
        return proto


def _tensor(value: ValueInfoProto, kind: str, path: Path, graph: Graph) -> tuple[TensorSpec | None, int | str]:
    """The tensor, and its first dimension ('' where it has no name); None after noting a problem."""
    what = f"{kind} {value.name!r}"
    if not value.type.HasField("tensor_type"):
        form = (value.type.WhichOneof("value") or "untyped value").removesuffix("_type")
        graph.problem(path, f"{what} is a {form}, not a tensor", "export the model with tensors only")
        return None, ""
    tensor = value.type.tensor_type
    datatype = DATATYPES.get(tensor.elem_type)
    if datatype is None:
        name = TensorProto.DataType.Name(tensor.elem_type)
        graph.problem(path, f"{what} is of type {name}", f"cast it to one of {', '.join(DATATYPES.values())}")
        return None, ""
    dims: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param for dim in tensor.shape.dim
    ]
    if not dims:
        graph.problem(path, f"{what} is a scalar or has no shape", "export it with rows as its first dimension")
        return None, ""
    shape = tuple(size or f"{value.name}_{axis}" for axis, size in enumerate(dims[1:], 1))
    return TensorSpec(value.name, datatype, shape), dims[0]


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
