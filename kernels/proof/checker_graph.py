"""The checker's own reading of an ONNX graph: units, each a function of linear rows, in exact numbers."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

BITS = 32  # a variable is (block << BITS) | place: block 0 is the input, each other one the outputs of a unit
MASK = (1 << BITS) - 1
ONE = 0  # the variable that is one; the features are at places 1, 2, ... behind it
TINY = Fraction(1, 1 << 100)  # covers underflow, also where denormals are flushed
OPSET_MIN = 13  # since then Softmax is of one axis
_ONNX = ("", "ai.onnx")
_BEHIND = ("Softmax", "Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "ZipMap", "ArgMax")  # the numbers
BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, ArithmeticError, struct.error)


class Lacks(Exception):
    """The checker lacks something that the models need: the verdict is UNKNOWN."""


class Wrong(Exception):
    """The file contradicts itself or the models: the certificate is rejected."""


def require(holds: bool, error: type[Exception], why: str) -> None:
    if not holds:
        raise error(why)


class Row(NamedTuple):
    """The sum of coefs times variables; `mags` bounds what the float operations handle. All numbers are dyadic."""

    coefs: dict[int, Fraction]
    mags: dict[int, Fraction]


Terms = Iterable[tuple[Fraction, Row | None]]


class Tensor(NamedTuple):
    """Numbers in C order: of a constant floats or integers, else rows, each made by so many operations that round.

    type: ONNX's, of a constant; 0 of what is computed from the input, whose first dimension is one row.
    levels: step, lowest and highest level, where it is one of integers, written as the floats they stand for.
    """

    shape: tuple[int, ...]
    items: Sequence[Any]
    type: int = 0
    rounds: int = 0
    levels: tuple[Fraction, int, int] | None = None

    @property
    def placed(self) -> dict[tuple[int, ...], Any]:
        return dict(zip(itertools.product(*map(range, self.shape)), self.items, strict=True))

    @property
    def rows(self) -> Sequence[Row]:
        return [fixed(Fraction(each)) for each in self.items] if self.type else self.items


class Unit(NamedTuple):
    """A function of one number, whose outputs are block `node`.

    Slope `left` below `low`, 1, and 0 above `high` (None: no such piece); with levels rounded to them; or, for curve
    k, k sigmoid(k x) - (k - 1), which is sigmoid for 1 and tanh for 2.
    """

    tensor: str
    argument: Tensor
    node: int
    low: Fraction | None = None
    high: Fraction | None = None
    left: Fraction = Fraction(0)
    levels: tuple[Fraction, int, int] | None = None
    curve: int = 0


def combined(terms: Terms, rounds: bool = True) -> Row:
    """The sum of weight times row: all that linear operators are made of. `rounds`: the runtime rounds it."""
    made = Row({}, {ONE: TINY} if rounds else {})
    for weight, row in terms:
        if row is not None and weight:
            for total, given, factor in ((made.coefs, row.coefs, weight), (made.mags, row.mags, abs(weight))):
                for key, each in given.items():
                    total[key] = total[key] + each * factor if key in total else each * factor
    return made


def fixed(value: Fraction) -> Row:
    """A row that is a number."""
    return Row({ONE: value}, {ONE: abs(value)})


def variables(block: int, shape: tuple[int, ...]) -> Tensor:
    """The variables of a block."""
    keys = [(block << BITS) | place + (block == 0) for place in range(math.prod(shape))]
    return Tensor(shape, [Row({key: Fraction(1)}, {key: Fraction(1)}) for key in keys])


class Net:
    """What is read of a graph: constants and tensors by name, and the units in the order of their blocks."""

    def __init__(self, graph: GraphProto, output: str, first: int, step: int) -> None:
        """first, step: the blocks of the units."""
        self.output, self.first, self.step = output, first, step
        self.features = 0
        self.units: list[Unit] = []
        self.tensors = {each.name: constant(each) for each in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.uses = Counter([each for node in graph.node for each in node.input] + [each.name for each in graph.output])
        self.softmax = _softmax(graph, output)
        self.scales: dict[str, Sequence[float]] = {}  # of what is dequantized
        self.odd: list[str] = []  # where a runtime with all optimisations computes something else
        self.saturates = False  # where a CPU without VNNI may saturate sums of 8-bit products

    def tensor(self, node: NodeProto, place: int = 0, integers: bool = False) -> Tensor:
        """An input of a node: finite floats, or `integers`, too. Raises Lacks."""
        found = self.tensors.get(node.input[place])
        if found is None or not (integers or (found.type in (0, TensorProto.FLOAT) and not found.levels)):
            raise Lacks(f"{named(node)}, whose input {place} is not of floats")
        require(not found.type or all(map(math.isfinite, found.items)), Lacks, f"{named(node)} of infinity or NaN")
        return found

    def constant(self, node: NodeProto, place: int, integers: bool = False) -> Tensor:
        found = self.tensor(node, place, integers)
        require(found.type > 0, Lacks, f"{named(node)}, whose input {place} is not constant")
        return found

    def unit(self, name: str, argument: Tensor, **function: Any) -> Tensor:
        """A new unit; returns its outputs."""
        self.units.append(Unit(name, argument, self.first + self.step * len(self.units), **function))
        self.tensors[name] = variables(self.units[-1].node, argument.shape)
        return self.tensors[name]


def constant(tensor: TensorProto) -> Tensor:
    return Tensor(tuple(tensor.dims), numpy_helper.to_array(tensor).ravel().tolist(), tensor.data_type)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def named(node: NodeProto) -> str:
    return f"{node.op_type} {node.output[0]!r}"


def load(path: Path) -> tuple[ModelProto, str]:
    """The model, and the SHA-256 of its files: its own, then those of its weights by name. Raises Wrong."""
    digest = hashlib.sha256()
    try:
        model = onnx.load(str(path), load_external_data=False)
        constants = [each.t for node in model.graph.node for each in node.attribute if each.HasField("t")]
        weights = [entry for each in [*model.graph.initializer, *constants] for entry in each.external_data]
        for name in [path.name, *sorted({each.value for each in weights if each.key == "location"})]:
            digest.update((path.parent / name).read_bytes())
        return onnx.load(str(path)), digest.hexdigest()
    except Exception as err:  # protobuf's, onnx's and the system's errors share no base class
        raise Wrong(f"{path}: cannot be read ({(str(err).splitlines() or [''])[0][:100]})") from None


def read(model: ModelProto, output: str, first: int = 1, step: int = 1) -> Net:
    """The net up to the tensor of this name: an output, or what a final Softmax is of. Raises Lacks and Wrong."""
    from kernels.proof.checker_operators import OPERATORS, PLAIN, READ

    graph = model.graph
    new = not model.functions and all(each.version >= OPSET_MIN for each in model.opset_import if each.domain in _ONNX)
    require(new, Lacks, f"functions in a model, and operators before opset {OPSET_MIN}")
    net = Net(graph, output, first, step)
    inputs = [each for each in graph.input if each.name not in net.tensors]
    dims = [dim.dim_value for each in inputs for dim in each.type.tensor_type.shape.dim[1:]]
    floats = [each.type.tensor_type.elem_type for each in inputs] == [TensorProto.FLOAT]
    require(floats and min(dims, default=0) > 0, Lacks, "a net with other than one float32 input of rows of one shape")
    net.features = math.prod(dims)
    net.tensors[inputs[0].name] = variables(0, (1, *dims))
    wanted = {output}
    for node in reversed(graph.node):
        wanted |= set(node.input if wanted & set(node.output) else ())
    for node in (each for each in graph.node if wanted & set(each.output)):
        key = node.op_type if node.domain in _ONNX else f"{node.domain}.{node.op_type}"
        others = [each.name for each in node.attribute if each.name not in READ.split()]
        strange = [name for name in others if attribute(node, name, None) not in PLAIN.get(name, ())]
        require(key in OPERATORS and not strange, Lacks, f"operator {key} (node {node.output[0]!r}) {strange or ''}")
        try:
            made = OPERATORS[key](net, node)
        except BROKEN as err:
            raise Lacks(f"{named(node)} of such inputs ({type(err).__name__}: {err})") from None
        fits = len(made.items) == math.prod(made.shape) and (made.type or made.shape[:1] == (1,))
        require(bool(fits), Lacks, f"{named(node)}, which does not keep rows apart")
        net.tensors[node.output[0]] = made
    found = net.tensors.get(output, net.tensors[inputs[0].name])
    require(output in net.tensors and not found.type and not found.levels, Lacks, f"{output!r}, which has no floats")
    axis = attribute(net.softmax, "axis", -1) if net.softmax else -1
    require(not net.softmax or found.shape[axis] == len(found.items), Lacks, "a Softmax that is not over all outputs")
    return net


def _softmax(graph: GraphProto, output: str) -> NodeProto | None:
    """Finds the output among the ends of the graph; returns the Softmax behind it. Raises Lacks and Wrong."""
    ends: dict[str, NodeProto | None] = {each.name: None for each in graph.output}
    for node in reversed(graph.node):
        behind = [each for each in node.output if each in ends]
        if node.op_type in _BEHIND and behind:
            ends[node.input[0]] = node if node.op_type == "Softmax" else ends.get(node.input[0]) or ends[behind[0]]
    require(output in ends, Wrong, f"{output!r} is no output of the model, nor what its final Softmax is of")
    found = ends[output]
    require(found is None or found.input[0] == output, Lacks, f"a Softmax behind, but not of {output!r}")
    return found
