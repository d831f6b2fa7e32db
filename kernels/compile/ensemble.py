"""Models that answer the same input as one graph: an ensemble or an A/B pair, an entry with `members` in model.toml."""

from __future__ import annotations

import hashlib
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper, inliner

from kernels import graph as graphs
from kernels import settings
from kernels.compile.importing import checked
from kernels.compile.net import Net, attributes, has_subgraph, renamed, tensor
from kernels.compile.runtime import NotCompiled
from kernels.compile.stack import OPSET_MIN, stacked
from kernels.graph import Graph
from kernels.spec import TensorSpec

BYTES_MAX = 2_000_000_000  # what one protobuf message may hold
_DEFAULT = ("", "ai.onnx")


class BadEnsemble(NotCompiled):
    """The members cannot be one graph."""


def build(folder: Path) -> tuple[str, ...]:
    """Writes model.onnx of <models>/<name>/<version> from the members that its model.toml names, and returns them.

    Empty where it names none: then nothing is written. Raises BadEnsemble and OSError; a file that was there stays.
    """
    stated, problems = settings.read(folder / "model.toml")
    if problems:
        raise BadEnsemble("\n".join(map(str, problems)))
    if not stated.members:
        return ()
    models = folder.resolve().parent.parent
    paths = [models / member for member in stated.members]
    if folder.resolve() in paths:
        raise BadEnsemble(f"{folder / 'model.toml'}: members names the entry itself; name other models")
    merged = merge(paths, stated.batch_rows, stated.joined)
    aside = folder / ".model.onnx.part"
    try:
        aside.write_bytes(merged.SerializeToString())
        os.replace(aside, folder / "model.onnx")
    finally:
        aside.unlink(missing_ok=True)
    return tuple(stated.members)


def merge(members: Sequence[Path], rows: int | None = None, joined: bool = False) -> ModelProto:
    """One graph of the models in these folders, <models>/<model>/<version>, that take the same inputs.

    Inputs keep their names; outputs are `<model>/<version>.<output>`, in the order of the members; a ZipMap becomes the
    matrix that it wraps. `joined`: outputs keep their names instead, each [rows, members, ...], which costs least where
    there are many members. `rows`: of a run, where known (see `stacked`). Raises BadEnsemble, naming what differs.
    """
    names = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in members]
    if len(set(names)) != len(names) or len(names) < 2:
        raise BadEnsemble(f"members is {names}; name at least two models, each once")
    facts = [_facts(path / "model.onnx") for path in members]
    for name, other in zip(names[1:], facts[1:], strict=True):
        _same_inputs(names[0], facts[0], name, other)
    models = [_loaded(path / "model.onnx", each) for path, each in zip(members, facts, strict=True)]
    opsets = _highest(models)
    parts = [_prefixed(_raised(model, opsets, name), name) for model, name in zip(models, names, strict=True)]
    for part, name in zip(parts, names, strict=True):
        _name_sizes(part, parts[0].input, f"{name}.")
    merged = _joined(parts, opsets, max(model.ir_version for model in models))
    whole = _join(merged, parts, names) if joined else {}
    if not any(has_subgraph(node) for node in merged.graph.node):
        nodes = iter(merged.graph.node)
        own = [list(itertools.islice(nodes, len(part.node))) for part in parts]
        merged = stacked(Net(merged), own, rows, whole).model
    checked(merged, "the members' graph")
    return merged


def _facts(path: Path) -> Graph:
    facts = graphs.read(path)
    if facts.problems:
        raise BadEnsemble("\n".join(map(str, facts.problems)))
    return facts


def _same_inputs(one: str, facts: Graph, other: str, others: Graph) -> None:
    fix = f"{one} and {other} must take the same inputs to be members of one entry"
    mine, theirs = ({each.name: each for each in graph.inputs} for graph in (facts, others))
    for name in sorted(mine.keys() ^ theirs.keys()):
        has, lacks = (one, other) if name in mine else (other, one)
        raise BadEnsemble(f"{has} has an input {name!r}, {lacks} does not; {fix}")
    for name, spec in mine.items():
        here, there = _shape(spec, facts.rows_fixed), _shape(theirs[name], others.rows_fixed)
        if here != there:
            raise BadEnsemble(f"input {name!r} is {here} in {one} and {there} in {other}; {fix}")


def _shape(spec: TensorSpec, rows: int | None) -> str:
    """Names of varying sizes say nothing: each export has its own."""
    sizes = [str(rows) if rows else "rows", *("?" if isinstance(size, str) else str(size) for size in spec.shape)]
    return f"{spec.datatype}[{', '.join(sizes)}]"


def _loaded(path: Path, facts: Graph) -> ModelProto:
    """The model without ZipMaps, functions, constants as nodes, and weights among its inputs."""
    try:
        model = onnx.load_from_string(graphs.without_zipmap(str(path))) if facts.zipmap else onnx.load(path)
        if model.functions:
            model = inliner.inline_local_functions(model)
    except (DecodeError, OSError, ValueError, RuntimeError) as err:
        raise BadEnsemble(f"{path}: cannot be read ({err}); export it again") from None
    inputs = {each.name for each in facts.inputs}
    kept = [each for each in model.graph.input if each.name in inputs]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    if same := inputs & {each.name for each in model.graph.output}:
        raise BadEnsemble(f"{path}: {', '.join(sorted(same))} is an input and an output; give the output its own name")
    constants = {node.output[0]: _constant(node) for node in model.graph.node if node.op_type == "Constant"}
    known = {name: each for name, each in constants.items() if each is not None}
    nodes = [node for node in model.graph.node if not (node.op_type == "Constant" and node.output[0] in known)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(known.values())
    return model


def _constant(node: NodeProto) -> TensorProto | None:
    """Its value as a weight; None for forms that stay a node."""
    value = attributes(node).get("value")
    return tensor(node.output[0], onnx.numpy_helper.to_array(value)) if value is not None else None


def _opsets(model: ModelProto) -> dict[str, int]:
    return {"" if each.domain in _DEFAULT else each.domain: each.version for each in model.opset_import}


def _highest(models: Sequence[ModelProto]) -> dict[str, int]:
    highest: dict[str, int] = {}
    for model in models:
        for domain, version in _opsets(model).items():
            highest[domain] = max(version, highest.get(domain, 0))
    return highest


def _raised(model: ModelProto, opsets: dict[str, int], name: str) -> ModelProto:
    """The model at these versions of its operator sets. Raises BadEnsemble where an operator does not get there."""
    for domain, own in _opsets(model).items():
        version = opsets[domain]
        changed = [node for node in _nodes(model.graph) if _changed(node, domain, own, version)]
        if not changed:
            continue
        what = f"{name} has opset {own} of {domain or 'ai.onnx'}, another member {version}"
        fix = "export the members with the same opset"
        if domain or any(has_subgraph(node) for node in model.graph.node):
            raise BadEnsemble(f"{what}, in which {changed[0].op_type} changed; {fix}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = onnx.version_converter.convert_version(model, version)
        except (RuntimeError, ValueError) as err:
            raise BadEnsemble(f"{what}, and cannot be converted ({str(err).splitlines()[0][:200]}); {fix}") from None
    return model


def _changed(node: NodeProto, domain: str, own: int, version: int) -> bool:
    """Whether the operator means another thing, or none that is known, in the other version of its operator set."""
    if own == version or ("" if node.domain in _DEFAULT else node.domain) != domain:
        return False
    try:
        since = {onnx.defs.get_schema(node.op_type, each, domain).since_version for each in (own, version)}
    except onnx.defs.SchemaError:
        return True
    return len(since) > 1


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner)


def _prefixed(model: ModelProto, name: str) -> GraphProto:
    """The graph with the member's name before every name but those of the inputs."""
    prefix = f"{name}."
    weights = {each.name: prefix + each.name for each in model.graph.initializer}
    graph: GraphProto = compose.add_prefix_graph(
        model.graph, prefix, rename_inputs=False, inplace=True, name_map=weights
    )
    return graph


def _name_sizes(part: GraphProto, inputs: Sequence[ValueInfoProto], prefix: str) -> None:
    """Varying sizes get the names that the shared inputs give them, else the member's own: the runtime takes sizes of
    one name for equal and lets tensors share memory by that. Tensors between say nothing of their sizes any more."""
    shared = {
        own.dim_param: theirs.dim_param
        for one in part.input
        for other in inputs
        if one.name == other.name
        for own, theirs in zip(_sizes(one), _sizes(other), strict=True)
    }
    for output in part.output:
        for size in _sizes(output):
            if size.dim_param:
                size.dim_param = shared.get(size.dim_param, prefix + size.dim_param)
    del part.value_info[:]


def _sizes(value: ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _joined(parts: Sequence[GraphProto], opsets: dict[str, int], ir_version: int) -> ModelProto:
    """One model of the parts; equal weights are kept once."""
    if sum(part.ByteSize() for part in parts) > BYTES_MAX:
        raise BadEnsemble(f"the members exceed {BYTES_MAX} bytes together; name fewer")
    whole = GraphProto(name="ensemble")
    whole.input.extend(parts[0].input)
    share = not any(has_subgraph(node) for part in parts for node in part.node)
    first: dict[object, str] = {}
    for part in parts:
        same: dict[str, str] = {}
        outputs = {each.name for each in part.output}
        for weight in part.initializer:
            if share and weight.name not in outputs:
                same[weight.name] = first.setdefault(_content(weight), weight.name)
            if same.get(weight.name, weight.name) == weight.name:
                whole.initializer.append(weight)
        whole.node.extend(renamed(node, same, outputs=False) for node in part.node)
        whole.sparse_initializer.extend(part.sparse_initializer)
        whole.output.extend(part.output)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(whole, opset_imports=imports, ir_version=ir_version, producer_name="lrai")


def _join(merged: ModelProto, parts: Sequence[GraphProto], names: Sequence[str]) -> dict[str, list[str]]:
    """Declares the joined outputs instead of the members'. Returns what each is made of."""
    outputs = [
        {each.name.removeprefix(f"{name}."): each for each in part.output}
        for part, name in zip(parts, names, strict=True)
    ]
    stated = [{name: _form(each) for name, each in own.items()} for own in outputs]
    if any(each != stated[0] for each in stated):
        raise BadEnsemble(f"the outputs of {', '.join(names)} differ; only equal ones can be joined")
    if any(has_subgraph(node) for node in merged.graph.node) or _opsets(merged).get("", 0) < OPSET_MIN:
        raise BadEnsemble(f"outputs are joined at opset {OPSET_MIN} or later and without control flow; export again")
    del merged.graph.output[:]
    for name, value in outputs[0].items():
        tensor_type = value.type.tensor_type
        sizes: list[str | int | None] = [each.dim_value or each.dim_param or None for each in tensor_type.shape.dim]
        shape = [sizes[0], len(parts), *sizes[1:]]
        merged.graph.output.append(helper.make_tensor_value_info(name, tensor_type.elem_type, shape))
    return {name: [own[name].name for own in outputs] for name in outputs[0]}


def _form(value: ValueInfoProto) -> tuple[object, ...]:
    kind = value.type.tensor_type
    return kind.elem_type, *((size.dim_value or "?") for size in kind.shape.dim)


def _content(weight: TensorProto) -> object:
    """Equal for equal weights, and for nothing else."""
    if weight.data_type == TensorProto.STRING:
        return tuple(weight.dims), tuple(weight.string_data)
    array = np.ascontiguousarray(onnx.numpy_helper.to_array(weight))
    return weight.data_type, tuple(weight.dims), hashlib.sha256(array.tobytes()).digest()
