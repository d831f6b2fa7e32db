"""The operators that a proof models, as linear expressions and unary functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from kernels.proof.deviations import note
from kernels.proof.ir import Function, Unsupported
from kernels.proof.lower import Array, Lowering, Operator, Tensor, attribute
from kernels.proof.quantizers import dequantize, quantize
from kernels.proof.windows import out_sizes, windows

LABELS = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


def linear(state: Lowering, source: Tensor, weights: Array, bias: Array | None, out: tuple[int, ...], terms: int,
           signature: str) -> Tensor:  # fmt: skip
    """weights float[m, n] @ source + bias; `terms` products are summed for one output."""
    state.reserve(weights.size + sum(weights.shape[0] * 8 for _ in source.expression.terms))
    wide = np.asarray(weights, np.float64)
    shift = None if bias is None else np.asarray(bias, np.float64).reshape(-1)
    return Tensor(source.expression.then(wide, shift, terms + 10), out, signature, double=source.double)


def picked(state: Lowering, source: Tensor, index: npt.NDArray[np.int64], kind: str = "") -> Tensor:
    """The numbers at `index` (flat places; the array's shape is the new one). -1 picks zero."""
    flat = index.reshape(-1)
    signature = f"{kind}({source.signature})" if kind else source.signature
    if len(flat) == source.expression.size and (flat == np.arange(len(flat))).all():
        return Tensor(source.expression, index.shape, signature, source.scale, source.double)
    state.reserve(len(flat) * source.expression.size)
    matrix = np.zeros((len(flat), source.expression.size))
    matrix[np.flatnonzero(flat >= 0), flat[flat >= 0]] = 1.0
    return Tensor(source.expression.then(matrix, None, 0), index.shape, signature, source.scale, source.double)


def _reshaped(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    if node.op_type == "Reshape":
        wanted = [int(each) for each in state.constant(node, 1)]
        shape = _kept_rows(source, wanted, node)
    elif node.op_type == "Flatten":
        if attribute(node, "axis", 1) != 1:
            raise Unsupported(f"Flatten {node.output[0]!r} with another axis than 1")
        shape = (source.expression.size,)
    else:
        shape = _squeezed(state, node, source)
    return Tensor(source.expression, shape, source.signature, source.scale, source.double)


def _kept_rows(source: Tensor, wanted: list[int], node: NodeProto) -> tuple[int, ...]:
    sizes = [source.shape[at - 1] if each == 0 and at and at <= len(source.shape) else each
             for at, each in enumerate(wanted)]  # fmt: skip
    rest, size = sizes[1:], source.expression.size
    known = int(np.prod([each for each in rest if each != -1])) if rest else 1
    if -1 in rest and known and size % known == 0:
        rest = [size // known if each == -1 else each for each in rest]
    if not sizes or sizes[0] not in (-1, 0, 1) or int(np.prod(rest)) != size:
        raise Unsupported(f"Reshape {node.output[0]!r} to {wanted} does not keep rows apart")
    return tuple(rest)


def _squeezed(state: Lowering, node: NodeProto, source: Tensor) -> tuple[int, ...]:
    axes = attribute(node, "axes", None)
    axes = [int(each) for each in (axes if axes is not None else state.constant(node, 1))]
    grown = len(source.shape) + 1 + (len(axes) if node.op_type == "Unsqueeze" else 0)
    places = {each % grown for each in axes}
    if 0 in places:
        raise Unsupported(f"{node.op_type} {node.output[0]!r} changes the rows")
    if node.op_type == "Squeeze":
        return tuple(size for at, size in enumerate(source.shape, 1) if at not in places)
    sizes = iter(source.shape)
    return tuple(1 if at in places else next(sizes) for at in range(1, grown))


def _same(state: Lowering, node: NodeProto) -> Tensor:
    return state.of(node)


def _cast(state: Lowering, node: NodeProto) -> Tensor:
    source, to = state.of(node), attribute(node, "to", 0)
    if to not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        raise Unsupported(f"Cast {node.output[0]!r} to {TensorProto.DataType.Name(to)} is not modelled")
    expression = source.expression
    if source.double and to == TensorProto.FLOAT:
        expression = expression.then(None, None, 1)
    return Tensor(expression, source.shape, source.signature, None, to == TensorProto.DOUBLE)


def _transpose(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    order = list(attribute(node, "perm", range(len(source.shape), -1, -1)))
    if order[0] != 0:
        raise Unsupported(f"Transpose {node.output[0]!r} moves the rows")
    return picked(state, source, source.index.transpose([each - 1 for each in order[1:]]), "transpose")


def _sliced(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    index = source.index[None]
    if node.op_type == "Gather":
        axis = attribute(node, "axis", 0) % index.ndim
        places = [slice(None)] * axis + [np.asarray(state.constant(node, 1), np.int64)]
    else:
        starts, ends = state.constant(node, 1), state.constant(node, 2)
        axes = state.constant(node, 3, np.arange(len(starts)))
        steps = state.constant(node, 4, np.ones(len(starts), np.int64))
        places = [slice(None)] * index.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            places[int(axis)] = slice(int(start), int(end) if abs(int(end)) < 1 << 40 else None, int(step))
    if not isinstance(places[0], slice) or places[0] != slice(None):
        raise Unsupported(f"{node.op_type} {node.output[0]!r} picks rows")
    return picked(state, source, index[tuple(places)][0], f"{node.op_type}{index[tuple(places)].size}")


def _concat(state: Lowering, node: NodeProto) -> Tensor:
    axis = attribute(node, "axis", 1)
    parts = [state.of(node, place) for place in range(len(node.input))]
    axis = (axis % (len(parts[0].shape) + 1)) - 1
    if axis < 0 or len({part.scale for part in parts}) > 1:
        raise Unsupported(f"Concat {node.output[0]!r} of rows, or of integers with different scales")
    offsets = np.cumsum([0, *(part.expression.size for part in parts)])
    whole = np.concatenate([part.index + at for part, at in zip(parts, offsets, strict=False)], axis)
    total, joined = int(offsets[-1]), None
    place = np.empty(total, np.int64)
    place[whole.reshape(-1)] = np.arange(total)
    for part, at in zip(parts, offsets, strict=False):
        index = np.full(total, -1, np.int64)
        index[place[at : at + part.expression.size]] = np.arange(part.expression.size)
        spread = picked(state, part, index)
        joined = spread.expression if joined is None else joined.plus(spread.expression, 1.0, 0)
    assert joined is not None
    signature = f"concat({','.join(part.signature for part in parts)})"
    return Tensor(joined, whole.shape, signature, parts[0].scale, parts[0].double)


def _arithmetic(state: Lowering, node: NodeProto) -> Tensor:
    names = list(node.input)
    if len(names) != 2:
        raise Unsupported(f"{node.op_type} {node.output[0]!r} of {len(names)} tensors is not modelled")
    if all(name in state.tensors for name in names):
        return _of_two(state, node, state.of(node, 0), state.of(node, 1))
    place = 0 if names[0] in state.tensors else 1
    source = state.of(node, place)
    given = np.asarray(state.constant(node, 1 - place), np.float64)
    shape = np.broadcast_shapes((1, *source.shape), given.shape)
    if shape[0] != 1:
        raise Unsupported(f"{node.op_type} {node.output[0]!r} with a constant that has rows")
    source = picked(state, source, np.broadcast_to(source.index[None], shape)[0])
    value = np.broadcast_to(given, shape)[0].reshape(-1)
    return Tensor(_with_constant(state, node, source, value, place), shape[1:], source.signature, None, source.double)


def _with_constant(state: Lowering, node: NodeProto, source: Tensor, value: Array, place: int) -> Any:
    expression, op = source.expression, node.op_type
    n = expression.size
    if op == "Add" or (op == "Sub" and place == 0):
        return expression.then(None, value if op == "Add" else -value, 2)
    state.reserve(n * n)
    if op == "Sub":
        return expression.then(-np.eye(n), value, 2)
    if op == "Mul":
        return expression.then(np.diag(value), None, 2)
    if op == "Div" and place == 0 and (value != 0).all():
        return expression.then(np.diag(1.0 / value), None, 2)
    raise Unsupported(f"Div {node.output[0]!r} by the input or by zero")


def _of_two(state: Lowering, node: NodeProto, a: Tensor, b: Tensor) -> Tensor:
    shape = np.broadcast_shapes((1, *a.shape), (1, *b.shape))
    a = picked(state, a, np.broadcast_to(a.index[None], shape)[0])
    b = picked(state, b, np.broadcast_to(b.index[None], shape)[0])
    signature = f"{node.op_type.lower()}({a.signature},{b.signature})"
    n = a.expression.size
    state.reserve(n * n * (len(a.expression.terms) + len(b.expression.terms)))
    if node.op_type in ("Add", "Sub"):
        sign = 1.0 if node.op_type == "Add" else -1.0
        return Tensor(a.expression.plus(b.expression, sign), shape[1:], signature, None, a.double)
    if node.op_type == "Max":
        larger = Tensor(b.expression.plus(a.expression, -1.0, 0), shape[1:], signature)
        rest = state.unary(Function("relu"), larger, node, f"{node.output[0]}#1")
        return Tensor(a.expression.plus(rest.expression, 1.0, 0), shape[1:], signature, None, a.double)
    raise Unsupported(f"{node.op_type} of two computed tensors ({node.output[0]!r}) is not modelled")


def _matmul(state: Lowering, node: NodeProto) -> Tensor:
    source, weights = state.of(node), state.constant(node, 1)
    if weights.ndim != 2 or not source.shape or source.shape[-1] != weights.shape[0]:
        raise Unsupported(f"MatMul {node.output[0]!r} of shapes {source.shape} and {weights.shape}")
    note(state, node, weights.shape[0])
    blocks = source.expression.size // weights.shape[0]
    matrix = weights.T if blocks == 1 else np.kron(np.eye(blocks), weights.T)
    out = (*source.shape[:-1], weights.shape[1])
    return linear(state, source, matrix, None, out, weights.shape[0], f"lin({source.signature},{out})")


def _gemm(state: Lowering, node: NodeProto) -> Tensor:
    source, weights = state.of(node), state.constant(node, 1)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    weights = weights if attribute(node, "transB", 0) else weights.T
    if attribute(node, "transA", 0) or weights.shape[1] != source.expression.size:
        raise Unsupported(f"Gemm {node.output[0]!r} with transA or other sizes than its input")
    bias = np.broadcast_to(np.asarray(state.constant(node, 2, np.zeros(1)), np.float64) * beta, (1, len(weights)))
    note(state, node, weights.shape[1])
    wide = np.asarray(weights, np.float64) * alpha
    out = (len(weights),)
    return linear(state, source, wide, bias, out, weights.shape[1], f"lin({source.signature},{out})")


def _conv(state: Lowering, node: NodeProto) -> Tensor:
    source, weights = state.of(node), state.constant(node, 1)
    group = attribute(node, "group", 1)
    channels, (out, per), kernel = source.shape[0], weights.shape[:2], weights.shape[2:]
    index = windows(source.shape[1:], kernel, node)  # [window, places], -1 is padding
    positions, area = index.shape[1], int(np.prod(source.shape[1:]))
    state.reserve(out * positions * channels * area)
    matrix = np.zeros((out, positions, channels, area))
    flat = np.asarray(weights, np.float64).reshape(out, per, -1)
    for o in range(out):
        first = (o // (out // group)) * per
        for k in range(index.shape[0]):
            valid = np.flatnonzero(index[k] >= 0)
            matrix[o, valid, first : first + per, index[k][valid]] += flat[o, :, k]
    bias = np.repeat(np.asarray(state.constant(node, 2, np.zeros(out)), np.float64), positions)
    note(state, node, flat[0].size)
    shape = (out, *out_sizes(source.shape[1:], kernel, node))
    wide = matrix.reshape(out * positions, channels * area)
    return linear(state, source, wide, bias, shape, flat[0].size, f"lin({source.signature},{shape})")


def _pool(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    sizes = source.shape[1:]
    whole = node.op_type == "GlobalAveragePool"
    kernel = sizes if whole else tuple(attribute(node, "kernel_shape", ()))
    index = np.arange(int(np.prod(sizes)))[:, None] if whole else windows(sizes, kernel, node)
    shape = (source.shape[0], *((1,) * len(sizes) if whole else out_sizes(sizes, kernel, node)))
    if node.op_type == "MaxPool":
        return _max_pool(state, node, source, index, shape)
    valid = index >= 0
    padded = attribute(node, "count_include_pad", 0)
    counts = np.full(index.shape[1], len(index)) if padded else valid.sum(0)
    one = np.zeros((index.shape[1], int(np.prod(sizes))))
    for k in range(len(index)):
        one[np.flatnonzero(valid[k]), index[k][valid[k]]] += 1.0 / counts[valid[k]]
    state.reserve(one.size * source.shape[0] ** 2)
    matrix = np.kron(np.eye(source.shape[0]), one)
    return linear(state, source, matrix, None, shape, len(index), f"average({source.signature},{shape})")


def _max_pool(state: Lowering, node: NodeProto, source: Tensor, index: npt.NDArray[np.int64],
              shape: tuple[int, ...]) -> Tensor:  # fmt: skip
    """max(a, b) = a + relu(b - a), window place by place; padding repeats a place of the same window."""
    area = int(np.prod(source.shape[1:]))
    inside = np.where(index >= 0, index, index.max(0)[None])
    offsets = (np.arange(source.shape[0]) * area)[:, None]
    signature = f"max({source.signature},{shape})"
    best = picked(state, source, inside[0][None] + offsets)
    for k in range(1, len(inside)):
        other = picked(state, source, inside[k][None] + offsets)
        larger = Tensor(other.expression.plus(best.expression, -1.0, 0), other.shape, f"{signature}#{k}")
        rest = state.unary(Function("relu"), larger, node, f"{node.output[0]}#{k}")
        best = Tensor(best.expression.plus(rest.expression, 1.0, 0), best.shape, signature)
    return Tensor(best.expression, shape, signature, source.scale, source.double)


def _batch_norm(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    scale, shift, mean, variance = (np.asarray(state.constant(node, place), np.float64) for place in range(1, 5))
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    if attribute(node, "training_mode", 0) or not np.isfinite(factor).all():
        raise Unsupported(f"BatchNormalization {node.output[0]!r} in training mode or of no variance")
    area = int(np.prod(source.shape[1:]))
    state.reserve(source.expression.size**2)
    expression = source.expression.then(None, -np.repeat(mean, area), 4)
    expression = expression.then(np.diag(np.repeat(factor, area)), np.repeat(shift, area), 6)
    return Tensor(expression, source.shape, source.signature, None, source.double)


def _scaler(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    n = source.expression.size
    offset = np.broadcast_to(np.asarray(attribute(node, "offset", [0.0]), np.float64), (n,))
    scale = np.broadcast_to(np.asarray(attribute(node, "scale", [1.0]), np.float64), (n,))
    if not (np.isfinite(offset).all() and np.isfinite(scale).all()):
        raise Unsupported(f"Scaler {node.output[0]!r} with NaN or infinity")
    expression = source.expression.then(None, -offset, 2).then(np.diag(scale), None, 2)
    return Tensor(expression, source.shape, source.signature, None, source.double)


def _linear_model(state: Lowering, node: NodeProto) -> Tensor:
    """LinearRegressor, or the scores of LinearClassifier; one score of two classes is a softmax of (0, score)."""
    source = state.of(node)
    weights = np.asarray(attribute(node, "coefficients", []), np.float64).reshape(-1, source.expression.size)
    shift = np.asarray(attribute(node, "intercepts", [0.0] * len(weights)), np.float64)
    kind = attribute(node, "post_transform", b"NONE")
    mirrored = len(weights) == 2 and (weights[0] == -weights[1]).all() and shift[0] == -shift[1]
    if node.op_type == "LinearClassifier" and kind == b"LOGISTIC" and (len(weights) == 1 or mirrored):
        weights, shift = np.stack([0 * weights[-1], weights[-1]]), np.array([0.0, shift[-1]])
    elif node.op_type == "LinearClassifier" and len(weights) == 1:
        raise Unsupported(f"LinearClassifier {node.output[0]!r} of one score without LOGISTIC")
    elif kind not in (b"NONE", b"SOFTMAX"):
        raise Unsupported(f"{node.op_type} {node.output[0]!r} with {kind.decode()} of several scores")
    return linear(state, source, weights, shift, (len(weights),), source.expression.size, f"lin({source.signature})")


def _function(state: Lowering, node: NodeProto) -> Tensor:
    source, op = state.of(node), node.op_type
    if op == "Clip":
        low, high = (attribute(node, name, None) for name in ("min", "max"))
        low = float(state.constant(node, 1, np.array(-np.inf)) if low is None else low)
        high = float(state.constant(node, 2, np.array(np.inf)) if high is None else high)
        if low > high:
            raise Unsupported(f"Clip {node.output[0]!r} with min above max")
        function = Function("relu") if (low, high) == (0.0, np.inf) else Function("clip", low, high)
    elif op == "LeakyRelu":
        function = Function("leaky", alpha=float(attribute(node, "alpha", np.float32(0.01))))
        if not 0 <= function.alpha <= 1:
            raise Unsupported(f"LeakyRelu {node.output[0]!r} with alpha outside of 0..1")
    else:
        function = Function({"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}[op])
    found = state.unary(function, source, node)
    expression = found.expression.then(None, None, 1) if op == "LeakyRelu" else found.expression
    return Tensor(expression, source.shape, found.signature, None, source.double)


# those that move numbers, or take the larger: what the numbers stand for moves with them
OF_INTEGERS = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"),
    *("Gather", "Slice", "Transpose", "Concat", "MaxPool", "DequantizeLinear"),
)
OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Gather", "Slice"), _sliced),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max"), _arithmetic),
    **dict.fromkeys(("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh"), _function),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool"), _pool),
    "Cast": _cast,
    "Transpose": _transpose,
    "Concat": _concat,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "ai.onnx.ml.Scaler": _scaler,
    **dict.fromkeys(("ai.onnx.ml.LinearRegressor", "ai.onnx.ml.LinearClassifier"), _linear_model),
}
