"""The operators that the checker knows: each makes a tensor of rows, or folds constants as the runtime does."""

from __future__ import annotations

import itertools
import math
import operator
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from onnx import NodeProto, TensorProto

from kernels.proof.checker_graph import Lacks, Net, Row, Tensor, Terms, attribute, combined, fixed, named, require

INTEGER_TERMS_MAX = 2**31 // (255 * 128) - 1  # products of 8-bit integers that fit into int32
SCALE_MIN = 2.0**-100  # below, products of levels and scale may be denormal
WEIGHTS_MAX = 4_000_000
_FOLDED = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv}
_ONE = Fraction(1)
_ALONE = fixed(_ONE)
_LIMITS: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255), TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
}  # fmt: skip

Sizes = Sequence[int]


def float32(value: float) -> float:
    """Rounded to float32, to nearest even."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def near(value: Fraction) -> Fraction:
    """A dyadic within 2^-64 relative: an operation's count of roundings has room for it."""
    shift = 66 + value.denominator.bit_length() - abs(value.numerator).bit_length()
    return Fraction(round(value * (1 << shift)), 1 << shift) if shift > 0 else value


def moved(source: Tensor, shape: Sizes, origin: Callable[[Sizes], Iterable[int]]) -> Tensor:
    """The tensor's numbers at other places: `origin` says for each place of `shape` from where."""
    items, spots = source.placed, itertools.product(*map(range, shape))
    return source._replace(shape=tuple(shape), items=[items[tuple(origin(each))] for each in spots])


def broadcast(source: Tensor, shape: Sizes) -> Tensor:
    own = (1,) * (len(shape) - len(source.shape)) + source.shape
    fits = all(size in (1, wanted) for size, wanted in zip(own, shape, strict=True))
    require(fits, ValueError, f"{list(own)} is not broadcast to {list(shape)}")
    return moved(source._replace(shape=own), shape, lambda spot: (at % n for at, n in zip(spot, own, strict=True)))


def _sums(source: Tensor, shape: tuple[int, ...], n: int, plan: Iterable[Terms]) -> Tensor:
    """For each place of `shape` the sum of weight times row; at most `n` products and a bias in each."""
    require(math.prod(shape) * n <= WEIGHTS_MAX, Lacks, f"room for an operator of more than {WEIGHTS_MAX} weights")
    return Tensor(shape, [combined(each) for each in plan], rounds=source.rounds + n + 10)


def _bias(net: Net, node: NodeProto, size: int) -> Sequence[Row]:
    """The third input, if there is one."""
    given = net.constant(node, 2) if len(node.input) > 2 and node.input[2] else Tensor((), [0.0], TensorProto.FLOAT)
    return broadcast(given._replace(shape=given.shape[-1:]), (size,)).rows


def _integers(net: Net, node: NodeProto, terms: int) -> None:
    """Notes where a runtime that rewrites quantizers may run something else than these float32 operations."""
    made = [net.scales.get(name) for name in node.input if name]
    if not any(made[:2]):
        return
    after = {each.op_type for each in net.producers.values() if node.output[0] in each.input}
    if None in made or (len(made) < 3 and {"Add", "Sub", "Mul", "Div", "BatchNormalization"} & after):
        net.odd.append(f"{named(node)} has quantized and float operands")
    elif terms > INTEGER_TERMS_MAX:
        net.odd.append(f"{named(node)}: a sum of {terms} integer products may overflow int32")
    else:
        (a,), b, *bias = (each for each in made if each)
        pairs = [(x, a * y) for each in bias for x, y in zip(each, list(b) * (len(each) // len(b)), strict=True)]
        if any(abs(x - y) > abs(x) * 2.0**-20 for x, y in pairs):
            net.odd.append(f"{named(node)} has a bias of another scale than its product")


def _dense(net: Net, node: NodeProto) -> Tensor:
    """MatMul and Gemm with a constant matrix."""
    source, weight = net.tensor(node), net.constant(node, 1)
    if attribute(node, "transB", 0):
        weight = moved(weight, weight.shape[::-1], lambda spot: spot[::-1])
    rows, columns = weight.shape
    require(source.shape[1:][-1:] == (rows,), Lacks, f"{named(node)} of {list(source.shape)} and {list(weight.shape)}")
    alpha, beta = (Fraction(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    values, bias = [alpha * Fraction(each) for each in weight.items], _bias(net, node, columns)
    _integers(net, node, rows)
    blocks = [source.items[at : at + rows] for at in range(0, len(source.items), rows)]
    plan = ([(beta, bias[j]), *zip(values[j::columns], each, strict=True)] for each in blocks for j in range(columns))
    return _sums(source, (*source.shape[:-1], columns), rows, plan)


def _windows(node: NodeProto, source: Tensor, kernel: Sizes) -> tuple[tuple[int, ...], list[list[Row | None]]]:
    """Sizes of the output, and for each of its places the rows under the kernel, None for padding.

    kernel: how many channels it sees, then its sizes; it steps over as many channels.
    """
    n = len(kernel) - 1
    steps, gaps = [kernel[0], *attribute(node, "strides", [1] * n)], [1, *attribute(node, "dilations", [1] * n)]
    pads = attribute(node, "pads", [0] * 2 * n)
    axes = []
    layout = zip(source.shape[1:], kernel, steps, gaps, [0, *pads[:n]], [0, *pads[n:]], strict=True)
    for size, cells, step, gap, before, behind in layout:
        count = (size + before + behind - gap * (cells - 1) - 1) // step + 1
        axes.append([[at * step + cell * gap - before for cell in range(cells)] for at in range(count)])
    inside = source._replace(shape=source.shape[1:]).placed
    windows = [[inside.get(spot) for spot in itertools.product(*each)] for each in itertools.product(*axes)]
    return tuple(map(len, axes)), windows


def _conv(net: Net, node: NodeProto) -> Tensor:
    source, weight = net.tensor(node), net.constant(node, 1)
    filters, *kernel = weight.shape
    (groups, *out), windows = _windows(node, source, kernel)
    n, places, share = math.prod(kernel), math.prod(out), filters // groups
    fits = groups == attribute(node, "group", 1) and groups * kernel[0] == source.shape[1] and groups * share == filters
    require(fits, Lacks, f"{named(node)}: weights {list(weight.shape)} for an input {list(source.shape)}")
    values, bias = [Fraction(each) for each in weight.items], _bias(net, node, filters)
    _integers(net, node, n)
    plan = (
        [(_ONE, bias[f]), *zip(values[f * n : (f + 1) * n], window, strict=True)]
        for f in range(filters)
        for window in windows[f // share * places :][:places]
    )
    return _sums(source, (1, filters, *out), n, plan)


def _average(net: Net, node: NodeProto) -> Tensor:
    """AveragePool and GlobalAveragePool."""
    source = net.tensor(node)
    kernel = attribute(node, "kernel_shape", source.shape[2:])
    out, windows = _windows(node, source, [1, *kernel])
    padded, n = attribute(node, "count_include_pad", 0), math.prod(kernel)
    sizes = [n if padded else len(window) - window.count(None) for window in windows]
    plan = ([(near(Fraction(1, size)), row) for row in window] for size, window in zip(sizes, windows, strict=True))
    return _sums(source, (1, *out), n, plan)


def _maxpool(net: Net, node: NodeProto) -> Tensor:
    """max(a, b) = a + relu(b - a), window place by place; padding repeats the last place of its window."""
    source = net.tensor(node, integers=True)
    out, windows = _windows(node, source, [1, *attribute(node, "kernel_shape", [])])
    lasts = [[row for row in window if row is not None][-1] for window in windows]
    filled = [[row or last for row in window] for window, last in zip(windows, lasts, strict=True)]
    best, *others = zip(*filled, strict=True)
    for k, other in enumerate(others, 1):
        apart = [combined([(_ONE, b), (-_ONE, a)], False) for a, b in zip(best, other, strict=True)]
        more = net.unit(f"{node.output[0]}#{k}", Tensor((1, *out), apart, rounds=source.rounds), low=Fraction(0))
        best = tuple(combined([(_ONE, a), (_ONE, b)], False) for a, b in zip(best, more.items, strict=True))
    return source._replace(shape=(1, *out), items=best)


def _arithmetic(net: Net, node: NodeProto) -> Tensor:
    """Add and Sub; Mul and Div by a constant; of constants alone as float32."""
    op, pair = node.op_type, [net.tensor(node, place) for place in range(len(node.input))]
    rank = max(len(each.shape) for each in pair)
    shape = [max(sizes) for sizes in zip(*((1,) * (rank - len(each.shape)) + each.shape for each in pair), strict=True)]
    require(all(each.type or len(each.shape) == rank for each in pair), Lacks, f"{named(node)} across rows")
    a, b = (broadcast(each, shape) for each in pair)
    if a.type and b.type:
        return a._replace(items=[float32(_FOLDED[op](x, y)) for x, y in zip(a.items, b.items, strict=True)])
    if op in ("Add", "Sub"):
        sign = _ONE if op == "Add" else -_ONE
        rows = [combined([(_ONE, x), (sign, y)]) for x, y in zip(a.rows, b.rows, strict=True)]
    else:
        scaled, weights = (b, a.items) if a.type and op == "Mul" else (a, b.items)
        factors = [Fraction(each) if op == "Mul" else near(1 / Fraction(each)) for each in weights]
        rows = [combined([each]) for each in zip(factors, scaled.items, strict=True)]
    return Tensor(a.shape, rows, rounds=max(a.rounds, b.rounds) + 2)


def _affine(net: Net, node: NodeProto) -> Tensor:
    """Scaler and BatchNormalization: (x - middle) * factor + shift, given for each place, each channel, or for all."""
    source, count = net.tensor(node), 4
    shift: Sequence[float] = [0.0]
    middle, factor = attribute(node, "offset", [0.0]), attribute(node, "scale", [1.0])
    if node.op_type == "BatchNormalization":
        scale, shift, middle, variance = (net.constant(node, place).items for place in range(1, 5))
        spread = [Fraction(each) + Fraction(attribute(node, "epsilon", 1e-5)) for each in variance]
        roots = [Fraction(math.isqrt(int(each * (1 << 400))), 1 << 200) for each in spread]
        factor, count = [near(Fraction(a) / root) for a, root in zip(scale, roots, strict=True)], 10
    n = len(source.items)
    each_place = ([Fraction(one) for one in each for _ in range(n // len(each))] for each in (middle, factor, shift))
    rows = [
        combined([(f, combined([(_ONE, row), (-m, _ALONE)])), (s, _ALONE)])
        for row, m, f, s in zip(source.items, *each_place, strict=True)
    ]
    return Tensor(source.shape, rows, rounds=source.rounds + count)


def _reshaped(net: Net, node: NodeProto) -> Tensor:
    """Operators that keep the numbers and their order."""
    source = net.tensor(node, integers=True)
    shape: Sizes = source.shape
    if node.op_type in ("Flatten", "Reshape"):
        wanted = net.constant(node, 1, True).items if node.op_type == "Reshape" else [0, -1]
        kept = source.type or wanted[0] in (0, -1) or -1 not in wanted  # -1 may take in the rows
        require(bool(kept) and attribute(node, "axis", 1) == 1, Lacks, f"{named(node)} across rows")
        shape = [shape[i] if each == 0 else each for i, each in enumerate(wanted)]
        rest = len(source.items) // math.prod(each for each in shape if each != -1)
        shape = [rest if each == -1 else each for each in shape]
    return source._replace(shape=tuple(shape))


def _cast(net: Net, node: NodeProto) -> Tensor:
    """To float32; of constants of 4 bits to those of 8 bits, too."""
    to, source = attribute(node, "to", 0), net.tensor(node, integers=True)
    if source.type and to == TensorProto.FLOAT:
        return source._replace(items=[float32(each) for each in source.items], type=to)
    wider = (source.type, to) in ((TensorProto.INT4, TensorProto.INT8), (TensorProto.UINT4, TensorProto.UINT8))
    same = not source.type and not source.levels and to == TensorProto.FLOAT
    require(wider or same, Lacks, f"{named(node)} to another type than float32")
    return source._replace(type=to if wider else 0)


def _transpose(net: Net, node: NodeProto) -> Tensor:
    source = net.tensor(node, integers=True)
    order = list(attribute(node, "perm", range(len(source.shape))[::-1]))
    require(bool(source.type) or order[0] == 0, Lacks, f"{named(node)} across rows")
    back = [order.index(d) for d in range(len(order))]
    return moved(source, [source.shape[d] for d in order], lambda spot: (spot[d] for d in back))


def _concat(net: Net, node: NodeProto) -> Tensor:
    parts = [net.tensor(node, place) for place in range(len(node.input))]
    axis = attribute(node, "axis", 0) % len(parts[0].shape)
    ((before, behind),) = {(each.shape[:axis], each.shape[axis + 1 :]) for each in parts}
    require(axis > 0, Lacks, f"{named(node)} across rows")
    lists = [(each.rows, len(each.items) // math.prod(before)) for each in parts]
    rows = [row for at in range(math.prod(before)) for each, n in lists for row in each[at * n : (at + 1) * n]]
    shape = (*before, sum(each.shape[axis] for each in parts), *behind)
    return Tensor(shape, rows, rounds=max(each.rounds for each in parts))


def _function(net: Net, node: NodeProto) -> Tensor:
    """Relu, LeakyRelu, Clip, Sigmoid and Tanh."""
    source, name, left = net.tensor(node), node.output[0], Fraction(0)
    if node.op_type in ("Sigmoid", "Tanh"):
        return net.unit(name, source, curve=1 if node.op_type == "Sigmoid" else 2)
    low: Fraction | None = left
    high: Fraction | None = None
    if node.op_type == "Clip":
        given = [len(node.input) > i and node.input[i] for i in (1, 2)]
        low, high = (Fraction(net.constant(node, i).items[0]) if has else None for i, has in enumerate(given, 1))
    elif node.op_type == "LeakyRelu":
        left = Fraction(attribute(node, "alpha", float32(0.01)))
    fits = 0 <= left <= 1 and (low is None or high is None or low <= high)
    require(fits, Lacks, f"{named(node)} with such limits")
    made = net.unit(name, source, low=low, high=high, left=left)
    return Tensor(made.shape, [combined([(_ONE, row)]) for row in made.items], rounds=1) if left else made


def _levels(net: Net, node: NodeProto) -> tuple[Fraction, int, int]:
    """Step, lowest and highest level of a QuantizeLinear or DequantizeLinear, relative to its zero point."""
    (scale,) = net.constant(node, 1).items
    given = len(node.input) > 2 and node.input[2]
    zero = net.constant(node, 2, True) if given else Tensor((1,), [0], TensorProto.UINT8)
    known = zero.type in _LIMITS and len(zero.items) == 1 and scale >= SCALE_MIN
    require(known, Lacks, f"{named(node)} with such a scale, or to other than 8 or 16 bits")
    low, high = _LIMITS[zero.type]
    return Fraction(scale), low - zero.items[0], high - zero.items[0]


def _quantize(net: Net, node: NodeProto) -> Tensor:
    source, levels = net.tensor(node), _levels(net, node)
    behind = net.producers.get(node.input[0])
    if behind is not None and behind.op_type == "DequantizeLinear" and _levels(net, behind) != levels:
        net.odd.append(f"{named(node)} follows a DequantizeLinear of another scale")
    step, low, high = levels
    last = net.units[-1] if net.units else None
    if last and last.tensor == node.input[0] and net.uses[last.tensor] == 1 and last.low == 0:
        end = Fraction(high) if last.high is None else min(max(last.high / step, Fraction(low)), Fraction(high))
        if end.denominator == 1 and not last.left and not last.levels:  # q(clip(x)) = clip(q(x))
            source, low, high = net.units.pop().argument, 0, int(end)
            del net.tensors[node.input[0]]
    made = net.unit(node.output[0], source, low=step * low, high=step * high, levels=(step, low, high))
    return made._replace(levels=levels)


def _dequantize(net: Net, node: NodeProto) -> Tensor:
    """Of a constant float32(float32(q - zero) * scale), with one scale, or one for each place of an axis."""
    source, scale = net.tensor(node, integers=True), net.constant(node, 1)
    net.scales[node.output[0]] = scale.items
    if not source.type:
        same = source.levels == _levels(net, node)
        require(same, Lacks, f"{named(node)} with another scale than its QuantizeLinear")
        return source._replace(levels=None)
    net.saturates |= source.type == TensorProto.INT8 and max(map(abs, source.items)) > 64
    given = len(node.input) > 2 and node.input[2]
    zero = net.constant(node, 2, True) if given else scale._replace(items=[0] * len(scale.items))
    axis = int(attribute(node, "axis", 1)) % max(1, len(source.shape))
    shape = tuple(len(scale.items) if d == axis else 1 for d in range(len(source.shape)))
    scales, zeros = (broadcast(each._replace(shape=shape), source.shape).items for each in (scale, zero))
    triples = zip(source.items, zeros, scales, strict=True)
    return Tensor(source.shape, [float32(float32(q - z) * s) for q, z, s in triples], TensorProto.FLOAT)


READ = """alpha axis beta count_include_pad dilations epsilon group kernel_shape momentum offset pads perm saturate
scale seed storage_order strides to transB"""  # or without influence here
PLAIN = {"allowzero": (0,), "auto_pad": (b"NOTSET", b"VALID"), "ceil_mode": (0,), "training_mode": (0,),
         "transA": (0,)}  # what is read of these  # fmt: skip
OPERATORS: dict[str, Callable[[Net, NodeProto], Tensor]] = {
    **dict.fromkeys(("MatMul", "Gemm"), _dense),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(("Flatten", "Reshape", "Identity", "Dropout"), _reshaped),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _average),
    **dict.fromkeys(("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh"), _function),
    **dict.fromkeys(("BatchNormalization", "ai.onnx.ml.Scaler"), _affine),
    "Conv": _conv, "MaxPool": _maxpool, "Concat": _concat, "Transpose": _transpose, "Cast": _cast,
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize,
}  # fmt: skip
