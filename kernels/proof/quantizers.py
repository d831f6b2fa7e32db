"""QuantizeLinear and DequantizeLinear of activations, as functions of one number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import NodeProto

from kernels.proof.ir import Function, Unsupported
from kernels.proof.lower import Array, Lowering, Tensor, attribute

_LEVELS = {
    np.dtype(np.uint8): (0, 255),
    np.dtype(np.int8): (-128, 127),
    np.dtype(np.uint16): (0, 65535),
    np.dtype(np.int16): (-32768, 32767),
}
_STEP_MIN = 2.0**-100  # below it levels may be denormal, and their errors absolute


def quantize(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    scale, zero = state.constant(node, 1), state.constant(node, 2, np.zeros((), np.uint8))
    if scale.size != 1 or zero.size != 1 or zero.dtype not in _LEVELS or attribute(node, "saturate", 1) != 1:
        raise Unsupported(f"QuantizeLinear {node.output[0]!r} by axis or to {zero.dtype}")
    return _quantized(state, node, source, float(scale.reshape(())), zero)


def _quantized(state: Lowering, node: NodeProto, source: Tensor, step: float, zero: Array) -> Tensor:
    """The tensor rounded to a grid: an integer tensor, written as the floats that it stands for."""
    if not step >= _STEP_MIN or not np.isfinite(step):
        raise Unsupported(f"{node.op_type} {node.output[0]!r} has the scale {step}; it must be {_STEP_MIN:.0e} or more")
    least, most = _LEVELS[zero.dtype]
    at = int(zero.reshape(()))
    levels = max(abs(least - at), abs(most - at)) + 1
    function = Function("clip", step * (least - at), step * (most - at), step=step, levels=levels)
    source, function = _through(state, node, source, function)
    found = state.unary(function, source, node)
    return Tensor(found.expression, source.shape, found.signature, (step, at, least), source.double)


def _through(state: Lowering, node: NodeProto, source: Tensor, q: Function) -> tuple[Tensor, Function]:
    """A quantizer of a rectifier alone is one of the rectifier's argument with fewer levels: q(clip(x)) = clip(q(x)).

    The checker does the same by the same rule: slopes in a certificate lie in the order of the functions.
    """
    base = source.expression.base
    clip = state.net.unaries[-1] if base and base == len(state.net.unaries) else None
    if clip is None or clip.function.kind not in ("relu", "clip") or clip.function.step:
        return source, q
    if clip.tensor != node.input[0] or state.uses(clip.tensor) > 1:
        return source, q
    low, high = (clip.function.low, clip.function.high) if clip.function.kind == "clip" else (0.0, np.inf)
    ends = [float(np.clip(each, q.low, q.high)) for each in (low, high)]
    if low != 0 or any(each != np.rint(each / q.step) * q.step for each in ends):
        return source, q  # no rectifier, or an end between two levels, whose rounding the runtime decides
    state.forget(clip.tensor)
    argument = Tensor(clip.argument, source.shape, clip.signature)
    return argument, replace(q, low=ends[0], high=ends[1])


def dequantize(state: Lowering, node: NodeProto) -> Tensor:
    source = state.of(node)
    scale, zero = state.constant(node, 1), state.constant(node, 2, np.zeros((), np.uint8))
    if scale.size != 1 or zero.dtype not in _LEVELS or source.scale is None:
        raise Unsupported(f"DequantizeLinear {node.output[0]!r} by axis, or of no quantized tensor")
    if source.scale != (float(scale.reshape(())), int(zero.reshape(())), _LEVELS[zero.dtype][0]):
        raise Unsupported(f"DequantizeLinear {node.output[0]!r} with another scale than its QuantizeLinear")
    return Tensor(source.expression, source.shape, source.signature)
