"""Two models made comparable: which tensors are compared, how they are paired, and the sessions that answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto

from kernels.proof import runtime
from kernels.proof.deviations import adjacent
from kernels.proof.ir import F64, BadProblem, Net, Unsupported
from kernels.proof.lower import Lowering, attribute, load
from kernels.proof.operators import LABELS
from kernels.proof.outputs import Quantity, measured, softmax
from kernels.proof.pair import Product, pair
from kernels.proof.trees import Forest, as_net

NAMES = ("original", "variant")
_AGREE = 1e-2
_BEHIND = ("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze")  # what may follow the numbers


@dataclass
class Question:
    """A pair of models. `product` is None where `reason` says what is not modelled."""

    quantity: Quantity
    sessions: tuple[runtime.Model, runtime.Model]
    net: Net  # the original's, or an empty one that knows its ending
    features: int
    shape: tuple[int, ...]
    outputs: tuple[str, str]
    semantics: dict[str, object]
    product: Product | None
    reason: str
    served: tuple[runtime.Model, runtime.Model] | None = None  # in default sessions, which compute something else

    def replay(self, x: npt.NDArray[np.float32]) -> F64:
        """The runtime's own |variant - original|, float64[rows] of float32[rows, features]."""
        found = [each.run(x) for each in self.sessions]
        if self.net.ending == "softmaxed":
            with np.errstate(invalid="ignore"):
                found = [np.log(np.maximum(each, 2.0**-149)) for each in found]
        return measured(self.net, self.quantity, found[0], found[1])

    def misread(self, x: npt.NDArray[np.float32]) -> str:
        """Why the runtime does not compute what was read from the files, or "": a last check of our own reading.

        Rounding may move a quantizer by a step on a few rows, so half of the rows must agree.
        """
        if self.product is None:
            return ""
        for session, net, name in zip(self.sessions, (self.product.original, self.product.variant), NAMES, strict=True):
            answers, ours = session.run(x), net.run(x.astype(np.float64))
            if self.net.ending == "softmaxed":
                ours = softmax(ours)
            with np.errstate(invalid="ignore"):
                off = np.abs(answers - ours).max(1) / (1 + np.abs(ours).max(1))
            if np.isfinite(answers).all() and np.median(off) > _AGREE:
                return f"the runtime's answers of the {name} are {np.median(off):.2g} away from what its graph says"
        return ""

    def confirmed(self, x: npt.NDArray[np.float32]) -> float:
        """The least that one row x differs, alone and in a batch."""
        return float(min(self.replay(x[None])[0], self.replay(np.repeat(x[None], 7, 0)).min()))

    @property
    def empty(self) -> bool:
        """Whether it asks for the softmax of one output, which is 1 whatever the models do."""
        there = self.product is not None and self.net.ending != "probabilities"
        return self.quantity == "softmax" and there and self.net.tensors[self.net.output].size == 1

    def by_default(self) -> Question | None:
        """The same question about default sessions, where they compute something else; only to be tested."""
        return replace(self, sessions=self.served, served=None, product=None) if self.served else None


def ask(original: Path, variant: Path, quantity: Quantity, options: runtime.Options | None = None) -> Question:
    """Reads both. `options`: of the variant's session; without, the runtime's defaults. Raises BadProblem."""
    protos = load(original), load(variant)
    ends = [_ending(proto) for proto in protos]
    through = [_ending(proto, rounded=True) for proto in protos]
    if ends != through and all(each.kind == "softmax" for each in through):  # probabilities that one of them rounds
        ends = through if quantity == "raw" else [Ending(_output(proto), "probabilities") for proto in protos]
    if quantity == "raw" and ends[0].kind == "softmaxed":
        raise BadProblem("--output raw: the graph has no tensor of logits; use --output softmax")
    _alike(protos[0], protos[1], ends)
    features = runtime.cpu_features()
    nets: list[Net] = []
    reason = ""
    try:
        first = Lowering(protos[0])
        nets.append(_net(first, ends[0]))
        second = Lowering(protos[1], frozenset(nets[0].signatures.values()))
        nets.append(_net(second, ends[1]))
    except Unsupported as err:
        reason = str(err)
    except (ValueError, IndexError, KeyError, TypeError) as err:  # a graph that contradicts itself
        reason = f"the graph cannot be read ({type(err).__name__}: {err})"
    odd = [each for net in nets for each in net.odd]
    quantized = [any(node.op_type == "QuantizeLinear" for node in proto.graph.node) for proto in protos]
    if any(quantized) and runtime.saturates(features):
        odd.append("products of uint8 and int8 may saturate on this machine, which has no VNNI")
    default = runtime.Options()
    written = runtime.Options(config=dict(runtime.AS_WRITTEN)) if odd else default
    chosen = options or written
    tensors = [end.tensor for end in ends]
    sessions = _sessions(protos, tensors, default if options else written, chosen)
    served = _sessions(protos, tensors, default, default) if odd and not options else None
    literal = options and (options.level == "disabled" or options.config.get("session.disable_quant_qdq") == "1")
    if options and odd and not literal:
        reason = reason or f"the session of the manifest computes something else than the graph: {odd[0]}"
    net = nets[0] if nets else Net(0, ending=ends[0].kind)
    shape = _shape(protos[0])
    if len({isinstance(each, Forest) for each in nets}) == 2:
        reason = "one model is a tree ensemble, the other is not"
    product = pair(nets[0], nets[1]) if len(nets) == 2 and not reason else None
    if product and product.original.tensors[net.output].size != product.variant.tensors[nets[1].output].size:
        raise BadProblem("the models answer with different numbers of outputs")
    facts = runtime.semantics(chosen, odd)
    outputs = (ends[0].tensor, ends[1].tensor)
    return Question(quantity, sessions, net, int(np.prod(shape)), shape, outputs, facts, product, reason, served)


def _sessions(
    protos: tuple[onnx.ModelProto, onnx.ModelProto], tensors: list[str], first: runtime.Options, second: runtime.Options
) -> tuple[runtime.Model, runtime.Model]:
    return runtime.Model(protos[0], tensors[0], first), runtime.Model(protos[1], tensors[1], second)


@dataclass(frozen=True)
class Ending:
    """The tensor of numbers, and what they are.

    kind: "softmax" (logits before one), "softmaxed" (probabilities that a node makes of logits of its own),
    "probabilities" or "".
    """

    tensor: str
    kind: str


def _ending(proto: onnx.ModelProto, rounded: bool = False) -> Ending:
    """The float output of the graph, followed back to the logits; `rounded`: through quantizers, too.

    Raises BadProblem.
    """
    behind = ("ZipMap", *_BEHIND, *(("QuantizeLinear", "DequantizeLinear") if rounded else ()))
    makers = {name: node for node in proto.graph.node for name in node.output}
    floats = [each.name for each in proto.graph.output if _is_float(each, makers)]
    label = [each.name for each in proto.graph.output]
    name = next((each for each in floats if "prob" in each.lower()), floats[0] if floats else "")
    if not name:
        name = _before_label(label, makers)
    node = makers.get(name)
    while node is not None and node.op_type in behind:
        name = node.input[0]
        node = makers.get(name)
    if node is not None and node.op_type == "Normalizer" and attribute(node, "norm", b"MAX") == b"L1":
        before = makers.get(node.input[0])
        if before is not None and before.op_type == "LinearClassifier" and _transform(before) == "softmaxed":
            return Ending(before.output[1], "softmaxed")
    if node is not None and node.op_type.endswith("Classifier"):
        return Ending(name, _transform(node))
    if node is not None and node.op_type == "Softmax" and attribute(node, "axis", -1) in (-1, 1):
        return Ending(node.input[0], "softmax")
    return Ending(name, "probabilities" if _are_probabilities(name, makers) else "")


def _output(proto: onnx.ModelProto) -> str:
    """The numbers themselves: what is between them and the Softmax is not modelled, and only tested."""
    return str(next(each.name for each in proto.graph.output if each.type.tensor_type.elem_type == TensorProto.FLOAT))


def _is_float(value: onnx.ValueInfoProto, makers: dict[str, NodeProto]) -> bool:
    if value.name in makers and makers[value.name].op_type == "ZipMap":
        return True
    return value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE)


def _before_label(names: list[str], makers: dict[str, NodeProto]) -> str:
    """The numbers whose arg max is the label. Raises BadProblem."""
    left = list(names)
    for _ in range(64):
        node = makers.get(left.pop()) if left else None
        if node is not None and node.op_type == "ArgMax":
            return str(node.input[0])
        left.extend(reversed(node.input) if node is not None else ())
    raise BadProblem(f"the graph has no float output; its outputs are {names}")


def _are_probabilities(name: str, makers: dict[str, NodeProto]) -> bool:
    node = makers.get(name)
    if node is None or node.op_type in ("Sigmoid", "Softmax", "Normalizer"):
        return node is not None
    if node.op_type == "Concat":
        return all(
            (made := makers.get(each)) is not None
            and (made.op_type == "Sigmoid" or (made.op_type == "Sub" and _are_probabilities(made.input[1], makers)))
            for each in node.input
        )
    return False


def _transform(node: NodeProto) -> str:
    """What a classifier's numbers are: two logistic ones are a softmax of (0, score)."""
    kind = attribute(node, "post_transform", b"NONE")
    labels = max(len(attribute(node, name, [])) for name in LABELS)
    if kind == b"SOFTMAX" or (kind == b"LOGISTIC" and labels == 2):
        return "softmaxed"
    return "probabilities" if kind == b"NONE" else "transformed"


def _net(state: Lowering, ending: Ending) -> Net:
    if ending.kind == "transformed":
        raise Unsupported(f"the post_transform of the node that makes {ending.tensor!r} is not modelled")
    node = state.makers.get(ending.tensor)
    if node is not None and node.op_type.startswith("TreeEnsemble") and node.op_type != "TreeEnsemble":
        source = state.tensor(node.input[0]) if node.input[0] in state.makers else state.tensors[node.input[0]]
        grown = as_net(node, source.expression, state.net.features, ending.tensor)
        grown.ending = ending.kind
        return grown
    found = state.tensor(ending.tensor)
    if ending.kind == "softmax" and len([each for each in found.shape if each != 1]) > 1:
        raise Unsupported(f"Softmax over one axis of a tensor of shape {found.shape} is not modelled")
    adjacent(state)
    state.net.output, state.net.ending = ending.tensor, ending.kind
    return state.net


def _shape(proto: onnx.ModelProto) -> tuple[int, ...]:
    return Lowering(proto).tensors[Lowering(proto).input].shape


def _alike(a: onnx.ModelProto, b: onnx.ModelProto, ends: list[Ending]) -> None:
    """Raises BadProblem where the models cannot be compared."""
    first, second = Lowering(a), Lowering(b)
    if first.input != second.input or first.tensors[first.input].shape != second.tensors[second.input].shape:
        raise BadProblem(
            f"the models have different inputs: {first.input!r} {first.tensors[first.input].shape} and"
            f" {second.input!r} {second.tensors[second.input].shape}"
        )
    names = [sorted(each.name for each in proto.graph.output) for proto in (a, b)]
    if names[0] != names[1]:
        raise BadProblem(f"the models have different outputs: {names[0]} and {names[1]}")
    if ends[0].kind != ends[1].kind:
        raise BadProblem(f"one model ends in {ends[0].kind or 'values'}, the other in {ends[1].kind or 'values'}")
