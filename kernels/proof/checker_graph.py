"""The checker's own reading of an ONNX graph. Imports nothing of the prover."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from kernels.proof.checker_rows import (
    Constant,
    Lacks,
    Net,
    Tensor,
    Unit,
    Wrong,
    combined,
    constant,
    float32,
    near,
    whole,
)  # fmt: skip
from kernels.proof.checker_windows import attribute, flat, windows

INTEGER_TERMS_MAX = 2**31 // (255 * 128) - 1  # products of 8-bit integers that fit into int32
SCALE_MIN = 2.0**-100  # below, products of levels and scale may be denormal
WEIGHTS_MAX = 4_000_000
_BEHIND = ("Softmax", "Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "ZipMap", "ArgMax")  # the numbers
_LIMITS: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255), TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
}  # fmt: skip


def read(path: Path, name: str) -> Net:
    """The net up to the tensor of this name: an output, or what a final Softmax is of. Raises Lacks and Wrong."""
    try:
        graph = onnx.load(str(path)).graph
    except Exception as err:  # protobuf's, onnx's and the system's errors share no base class
        raise Wrong(f"{path}: no ONNX model ({(str(err).splitlines() or [type(err).__name__])[0][:100]})") from None
    net = Net(producers={name: node for node in graph.node for name in node.output})
    net.constants = {each.name: constant(each) for each in graph.initializer}
    net.output = name
    net.uses.update(each for node in graph.node for each in node.input)
    net.uses.update(each.name for each in graph.output)
    ends = {each.name for each in graph.output}
    for each in reversed(graph.node):
        if each.op_type in _BEHIND and ends & set(each.output):
            last = each.op_type == "Softmax" and attribute(each, "axis", -1) in (-1, 1)
            net.softmax |= last and each.input[0] == name
            ends.add(each.input[0])
    if name not in ends:
        raise Wrong(f"{path}: {name!r} is no output of the model, nor what its final Softmax is of")
    if sigmoid := _sigmoid(net, name):
        name, net.sigmoid = net.producers[sigmoid].input[0], sigmoid
        net.output = name
    _input(graph, net)
    wanted, left = {name}, [name]
    while left:
        node = net.producers.get(left.pop())
        new = set(node.input if node is not None else ()) - wanted
        wanted |= new
        left += new
    for each in graph.node:
        if set(each.output) & wanted:
            if each.op_type not in _OPERATORS or each.domain not in ("", "ai.onnx", "ai.onnx.ml"):
                raise Lacks(f"operator {each.op_type} (node {each.name or each.output[0]!r})")
            _OPERATORS[each.op_type](net, each)
    if name not in net.tensors:
        raise Lacks(f"{path}: output {name!r} is not computed from the input")
    return net


def _sigmoid(net: Net, name: str) -> str:
    """The Sigmoid whose output p is the tensor of this name, or is in it as (1 - p, p); "" without one."""
    node = net.producers.get(name)
    two = node is not None and node.op_type == "Concat" and len(node.input) == 2
    if node is not None and two and attribute(node, "axis", 1) in (1, -1):
        name, minus = node.input[1], net.producers.get(node.input[0])
        one = net.constants.get(minus.input[0]) if minus is not None and minus.op_type == "Sub" else None
        if minus is None or one is None or list(one.values) != [1.0] or minus.input[1] != name:
            return ""
        node = net.producers.get(name)
    return name if node is not None and node.op_type == "Sigmoid" else ""


def _input(graph: GraphProto, net: Net) -> None:
    inputs = [each for each in graph.input if each.name not in net.constants]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise Lacks("a net with other than one float32 input")
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim[1:]]
    if not dims or min(dims) < 1:
        raise Lacks("an input of varying shape")
    net.features = math.prod(dims)
    net.tensors[inputs[0].name] = whole(0, tuple(dims))


def _known(net: Net, node: NodeProto, place: int, floats: bool = True) -> Constant:
    name = node.input[place] if place < len(node.input) else ""
    found = net.constants.get(name)
    if found is None or (floats and (found.type != TensorProto.FLOAT or not all(map(math.isfinite, found.values)))):
        raise Lacks(f"{node.op_type} {node.output[0]!r}, whose input {place} is no constant of finite numbers")
    return found


def _value(net: Net, node: NodeProto, place: int = 0) -> Tensor:
    if node.input[place] not in net.tensors:
        raise Lacks(f"{node.op_type} {node.output[0]!r}, whose input {place} is not computed from the input")
    return net.tensors[node.input[place]]


def _bias(net: Net, node: NodeProto, size: int) -> list[Fraction]:
    """The third input, if there is one."""
    if len(node.input) < 3 or not node.input[2]:
        return [Fraction(0)] * size
    values = [Fraction(each) for each in _known(net, node, 2).values]
    if len(values) not in (1, size):
        raise Lacks(f"{node.op_type} {node.output[0]!r} with a bias of {len(values)} numbers")
    return values * (size // len(values))


Plan = list[tuple[list[tuple[int, Fraction]], Fraction]]


def _linear(net: Net, node: NodeProto, plan: Plan, shape: tuple[int, ...], count: int) -> None:
    """For each (terms, bias) of the plan the sum of weight times row of the first input, plus bias."""
    source = _value(net, node)
    if sum(len(terms) for terms, _ in plan) > WEIGHTS_MAX:
        raise Lacks(f"room for {node.op_type} {node.output[0]!r}: more than {WEIGHTS_MAX} weights")
    rows = [combined(((w, source.rows[i]) for i, w in terms if w), bias) for terms, bias in plan]
    net.tensors[node.output[0]] = Tensor(shape, rows, source.count + count)


def _dense(net: Net, node: NodeProto) -> None:
    """MatMul and Gemm with a constant matrix."""
    source, weight = _value(net, node), _known(net, node, 1)
    across = bool(attribute(node, "transB", 0))
    rows, columns = weight.shape[::-1] if across else weight.shape
    if attribute(node, "transA", 0) or source.shape[-1] != rows:
        raise Lacks(f"{node.op_type} {node.output[0]!r} of {list(source.shape)} and {list(weight.shape)}")
    alpha, beta = (Fraction(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    values = [alpha * Fraction(each) for each in weight.values]
    bias = [beta * each for each in _bias(net, node, columns)]
    _integers(net, node, rows)
    by_i, by_j = (1, rows) if across else (columns, 1)
    plan = [
        ([(first + i, values[i * by_i + j * by_j]) for i in range(rows)], bias[j])
        for first in range(0, len(source.rows), rows)
        for j in range(columns)
    ]
    _linear(net, node, plan, (*source.shape[:-1], columns), rows + 10)


def _integers(net: Net, node: NodeProto, terms: int) -> None:
    """Notes where a runtime may run something else than these float32 operations."""
    behind = [net.producers.get(name) for name in node.input[:3]]
    made = [each if each is not None and each.op_type == "DequantizeLinear" else None for each in behind]
    where = f"{node.op_type} {node.output[0]!r}"
    if not any(made[:2]):
        return
    after = [each.op_type for name, each in net.producers.items() if node.output[0] in each.input]
    if None in made or (len(made) < 3 and {"Add", "Sub", "Mul", "Div", "BatchNormalization"} & set(after)):
        net.odd.append(f"{where} has quantized and float operands")
    elif terms > INTEGER_TERMS_MAX:
        net.odd.append(f"{where}: a sum of {terms} integer products may overflow int32")
    else:
        names = [each.input for each in made if each is not None]
        weights = net.constants[names[1][0]]
        net.saturates |= weights.type == TensorProto.INT8 and max(map(abs, weights.values), default=0) > 64
        scales = [net.constants[each[1]].values for each in names]
        wanted = [scales[0][0] * each for each in scales[1]]
        pairs = zip(scales[2] if len(scales) > 2 else wanted, wanted * 10_000, strict=False)
        if any(abs(a - b) > abs(a) * 2.0**-20 for a, b in pairs):
            net.odd.append(f"{where} has a bias of another scale than its product")


def _conv(net: Net, node: NodeProto) -> None:
    source, weight = _value(net, node), _known(net, node, 1)
    (channels, *sizes), (filters, inner, *kernel) = source.shape, weight.shape
    group, span, cells = int(attribute(node, "group", 1)), math.prod(sizes), math.prod(kernel)
    if inner * group != channels or len(kernel) != len(sizes):
        raise Wrong(f"Conv {node.output[0]!r}: weights {list(weight.shape)} for an input {list(source.shape)}")
    values = [Fraction(each) for each in weight.values]
    bias = _bias(net, node, filters)
    out, places = windows(node, sizes, kernel)
    _integers(net, node, inner * cells)
    plan: Plan = []
    for f, window in itertools.product(range(filters), places):
        first = f // (filters // group) * inner
        seen = [(c, i, at) for c in range(inner) for i, at in enumerate(window) if at >= 0]
        plan.append(([((first + c) * span + at, values[(f * inner + c) * cells + i]) for c, i, at in seen], bias[f]))
    _linear(net, node, plan, (filters, *out), inner * cells + 10)


def _average(net: Net, node: NodeProto) -> None:
    """AveragePool and GlobalAveragePool."""
    channels, *sizes = _value(net, node).shape
    kernel = attribute(node, "kernel_shape", sizes)
    out, places = windows(node, sizes, kernel)
    padded, span = attribute(node, "count_include_pad", 0), math.prod(sizes)
    plan: Plan = []
    for c, window in itertools.product(range(channels), places):
        kept = [at for at in window if at >= 0]
        share = near(Fraction(1, len(window) if padded else len(kept)))
        plan.append(([(c * span + at, share) for at in kept], Fraction(0)))
    _linear(net, node, plan, (channels, *out), math.prod(kernel) + 10)


def _maxpool(net: Net, node: NodeProto) -> None:
    """max(a, b) = a + relu(b - a), window place by place; padding repeats a place of its window."""
    source, zero, one = _value(net, node), Fraction(0), Fraction(1)
    channels, *sizes = source.shape
    out, places = windows(node, sizes, attribute(node, "kernel_shape", []))
    span, shape = math.prod(sizes), (channels, *out)
    filled = [[at if at >= 0 else max(window) for at in window] for window in places]
    lists = [[c * span + at for at in window] for c in range(channels) for window in filled]
    best = [source.rows[each[0]] for each in lists]
    for k in range(1, len(lists[0])):
        others = [source.rows[each[k]] for each in lists]
        apart = [combined([(one, b), (-one, a)], zero, False) for a, b in zip(best, others, strict=True)]
        net.units.append(Unit(f"{node.output[0]}#{k}", Tensor(shape, apart, source.count), low=zero))
        net.tensors[net.units[-1].tensor] = more = whole(len(net.units), shape)
        best = [combined([(one, a), (one, b)], zero, False) for a, b in zip(best, more.rows, strict=True)]
    net.tensors[node.output[0]] = Tensor(shape, best, source.count, source.levels)


def _arithmetic(net: Net, node: NodeProto) -> None:
    """Add, Sub, Mul and Div with a constant; Add and Sub of two tensors of one shape."""
    op, one = node.op_type, Fraction(1)
    if op == "Mul" and all(name in net.constants for name in node.input):
        net.constants[node.output[0]] = _product(net, node)
        return
    if all(name in net.tensors for name in node.input):
        a, b = _value(net, node), _value(net, node, 1)
        if a.shape != b.shape or op not in ("Add", "Sub"):
            raise Lacks(f"{op} {node.output[0]!r} of tensors of shapes {list(a.shape)} and {list(b.shape)}")
        sign = one if op == "Add" else -one
        rows = [combined([(one, x), (sign, y)]) for x, y in zip(a.rows, b.rows, strict=True)]
        net.tensors[node.output[0]] = Tensor(a.shape, rows, max(a.count, b.count) + 2)
        return
    place = 0 if node.input[0] in net.tensors else 1
    source = _value(net, node, place)
    values, zero = _spread(net, node, 1 - place, source.shape), Fraction(0)
    pairs: list[tuple[Fraction, Fraction]]
    if op in ("Add", "Sub"):
        own, sign = (-one if op == "Sub" and place else one), (-one if op == "Sub" and not place else one)
        pairs = [(own, each * sign) for each in values]
    elif op == "Mul" or (op == "Div" and not place and all(values)):
        pairs = [(each if op == "Mul" else near(1 / each), zero) for each in values]
    else:
        raise Lacks(f"{op} {node.output[0]!r} by the input, or by zero")
    rows = [combined([(w, row)], bias) for row, (w, bias) in zip(source.rows, pairs, strict=True)]
    net.tensors[node.output[0]] = Tensor(source.shape, rows, source.count + 2)


def _spread(net: Net, node: NodeProto, place: int, shape: tuple[int, ...]) -> list[Fraction]:
    """A constant's number at each place of a row."""
    found = _known(net, node, place)
    given = found.shape[-len(shape) :]
    padded = (1,) * (len(shape) - len(given)) + given
    if math.prod(given) != len(found.values) or any(own not in (1, n) for own, n in zip(padded, shape, strict=True)):
        raise Lacks(f"{node.op_type} {node.output[0]!r} with a constant of shape {list(found.shape)}")
    spots = itertools.product(*map(range, shape))
    flats = [flat([0 if own == 1 else i for own, i in zip(padded, spot, strict=True)], padded) for spot in spots]
    return [Fraction(found.values[each]) for each in flats]


def _product(net: Net, node: NodeProto) -> Constant:
    """float32(a * b) of constants, the smaller one repeated."""
    shape = max((_known(net, node, place).shape for place in (0, 1)), key=lambda each: (math.prod(each), len(each)))
    pairs = zip(_spread(net, node, 0, shape), _spread(net, node, 1, shape), strict=True)
    return Constant(shape, [float32(float(a * b)) for a, b in pairs])  # 48 bits: a double holds them


def _reshaped(net: Net, node: NodeProto) -> None:
    """Operators that keep the numbers and their order."""
    if node.op_type == "Cast" and node.input[0] in net.constants:
        found = _known(net, node, 0, False)
        if attribute(node, "to", 0) != TensorProto.FLOAT or any(float32(each) != each for each in found.values):
            raise Lacks(f"Cast {node.output[0]!r} to another type than float32, or of numbers that are none")
        net.constants[node.output[0]] = Constant(found.shape, list(map(float, found.values)))
        return
    source, op = _value(net, node), node.op_type
    shape = source.shape
    if op == "Cast" and (attribute(node, "to", 0) != TensorProto.FLOAT or source.levels):
        raise Lacks(f"Cast {node.output[0]!r} to another type than float32")
    if op in ("Flatten", "Reshape"):
        given = _known(net, node, 1, False).values if op == "Reshape" else [-1, len(source.rows)]
        wanted = [int(each) for each in given]
        sizes = [shape[i - 1] if each == 0 and i else each for i, each in enumerate(wanted)][1:]
        rest = len(source.rows) // max(1, math.prod(each for each in sizes if each != -1))
        shape = tuple(rest if each == -1 else each for each in sizes)
        if attribute(node, "axis", 1) != 1 or wanted[0] not in (-1, 0, 1) or math.prod(shape) != len(source.rows):
            raise Lacks(f"{op} {node.output[0]!r} that does not keep rows apart")
    net.tensors[node.output[0]] = replace(source, shape=shape)


def _scaler(net: Net, node: NodeProto) -> None:
    """ai.onnx.ml.Scaler: (x - offset) * scale."""
    source = _value(net, node)
    n, one, zero = len(source.rows), Fraction(1), Fraction(0)
    given = [[Fraction(each) for each in attribute(node, name, [])] for name in ("offset", "scale")]
    offset, scale = (each * n if len(each) == 1 else each for each in given)
    middle = [combined([(one, row)], -each) for row, each in zip(source.rows, offset or [zero] * n, strict=True)]
    rows = [combined([(each, row)]) for row, each in zip(middle, scale or [one] * n, strict=True)]
    net.tensors[node.output[0]] = Tensor(source.shape, rows, source.count + 4)


def _function(net: Net, node: NodeProto) -> None:
    """Relu, LeakyRelu and Clip."""
    source, left = _value(net, node), Fraction(0)
    low: Fraction | None = left
    high = None
    if node.op_type == "Clip":
        low, high = (
            Fraction(_known(net, node, i).values[0]) if len(node.input) > i and node.input[i] else None for i in (1, 2)
        )
    elif node.op_type == "LeakyRelu":
        left = Fraction(attribute(node, "alpha", 0.01))
    if not 0 <= left <= 1 or (low is not None and high is not None and low > high) or (source.levels and (low or left)):
        raise Lacks(f"{node.op_type} {node.output[0]!r} with such limits")
    net.units.append(Unit(node.output[0], source, low, high, left))
    made = whole(len(net.units), source.shape)
    if left:  # the product rounds
        made = Tensor(made.shape, [combined([(Fraction(1), row)]) for row in made.rows], 1)
    net.tensors[node.output[0]] = replace(made, levels=source.levels)


def _levels(net: Net, node: NodeProto) -> tuple[Fraction, int, int]:
    """Step, lowest and highest level of a QuantizeLinear or DequantizeLinear, relative to its zero point."""
    scale = _known(net, node, 1)
    given = len(node.input) > 2 and node.input[2]
    zero = _known(net, node, 2, False) if given else Constant((), [0], TensorProto.UINT8)
    if len(scale.values) != 1 or len(zero.values) != 1 or zero.type not in _LIMITS or scale.values[0] < SCALE_MIN:
        raise Lacks(f"{node.op_type} {node.output[0]!r} by axis, with such a scale, or to other than 8 or 16 bits")
    low, high = _LIMITS[zero.type]
    return Fraction(scale.values[0]), low - int(zero.values[0]), high - int(zero.values[0])


def _quantize(net: Net, node: NodeProto) -> None:
    source, levels = _value(net, node), _levels(net, node)
    behind = net.producers.get(node.input[0])
    if behind is not None and behind.op_type == "DequantizeLinear" and _levels(net, behind) != levels:
        net.odd.append(f"QuantizeLinear {node.output[0]!r} follows a DequantizeLinear of another scale")
    step, low, high = levels
    last = net.units[-1] if net.units else None
    alone = last and last.tensor == node.input[0] and net.uses[last.tensor] == 1
    if last and alone and last.low == 0 and not last.left and not last.levels:
        end = Fraction(high) if last.high is None else min(max(last.high / step, Fraction(low)), Fraction(high))
        if end.denominator == 1:  # q(clip(x)) = clip(q(x))
            source, low, high = net.units.pop().argument, 0, int(end)
            del net.tensors[node.input[0]]
    net.units.append(Unit(node.output[0], source, step * low, step * high, levels=(step, low, high)))
    net.tensors[node.output[0]] = replace(whole(len(net.units), source.shape), levels=levels)


def _dequantize(net: Net, node: NodeProto) -> None:
    if node.input[0] in net.constants:
        net.constants[node.output[0]] = _dequantized(net, node)
        return
    source = _value(net, node)
    if source.levels != _levels(net, node):
        raise Lacks(f"DequantizeLinear {node.output[0]!r} with another scale than its QuantizeLinear")
    net.tensors[node.output[0]] = replace(source, levels=None)


def _dequantized(net: Net, node: NodeProto) -> Constant:
    """float32(float32(q - zero) * scale): one scale, or one for each place of an axis."""
    found, scale = _known(net, node, 0, False), _known(net, node, 1)
    shape, n = found.shape, len(scale.values)
    given = len(node.input) > 2 and node.input[2]
    zero = list(_known(net, node, 2, False).values) if given else [0] * n
    axis = int(attribute(node, "axis", 1)) % max(1, len(shape))
    if (n > 1 and (attribute(node, "block_size", 0) or n != shape[axis])) or len(zero) != n or not found.values:
        raise Lacks(f"DequantizeLinear {node.output[0]!r} by blocks, or of such a type")
    places = [0 if n == 1 else place // math.prod(shape[axis + 1 :]) % n for place in range(len(found.values))]
    pairs = zip(found.values, places, strict=True)
    return Constant(shape, [float32(float32(float(q - zero[k])) * scale.values[k]) for q, k in pairs])


_OPERATORS: dict[str, Callable[[Net, NodeProto], None]] = {
    **dict.fromkeys(("MatMul", "Gemm"), _dense),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(("Flatten", "Reshape", "Identity", "Dropout", "Cast"), _reshaped),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _average),
    **dict.fromkeys(("Relu", "LeakyRelu", "Clip"), _function),
    "Conv": _conv,
    "MaxPool": _maxpool,
    "Scaler": _scaler,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
