"""Where the runtime's default session computes something else than the graph says. Measured with ONNX Runtime 1.31.

All of them are rewrites around QuantizeLinear and DequantizeLinear; `session.disable_quant_qdq` switches them off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto

if TYPE_CHECKING:
    from kernels.proof.lower import Lowering

_TERM = 255 * 128  # the largest product of an 8-bit activation and weight
_SAME = 2.0**-20  # relative


def note(state: Lowering, node: NodeProto, terms: int) -> None:
    """Notes what the default session does to this product of `terms` terms."""
    made = [state.makers.get(name) for name in node.input]
    of = [each if each is not None and each.op_type == "DequantizeLinear" else None for each in made]
    activations, weights, *bias = of
    where, odd = f"{node.op_type} {node.output[0]!r}", state.net.odd
    if activations is None:
        if weights is not None and node.op_type != "Conv":
            odd.append(f"{where}: only its weights are quantized, which the runtime turns into MatMulNBits")
        return
    if weights is None:
        odd.append(f"{where}: its weights are floats, which the runtime quantizes")
        return
    if terms * _TERM >= 2**31:
        odd.append(f"{where}: {terms} products may overflow the int32 accumulator")
    if (bias and bias[0] is None and node.input[2]) or _added(state, node):
        odd.append(f"{where}: its bias is of floats, which the runtime quantizes")
    if bias and bias[0] is not None:
        scales = [np.asarray(state.constants.get(each.input[1], np.nan), np.float64).reshape(-1)
                  for each in (activations, weights, bias[0])]  # fmt: skip
        if not (np.abs(scales[2] - scales[0] * scales[1]) <= _SAME * np.abs(scales[2])).all():
            odd.append(f"{where}: the scale of its int32 bias is not the product of the other scales")


def _added(state: Lowering, node: NodeProto) -> bool:
    """Whether a constant is added to the product, which makes it a bias."""
    return any(
        each.op_type in ("Add", "Sub", "BatchNormalization", "Mul", "Div") and node.output[0] in each.input
        for each in state.graph.node
    )


def adjacent(state: Lowering) -> None:
    """Notes pairs of QuantizeLinear and DequantizeLinear behind each other with different scales, which are merged."""
    for node in state.graph.node:
        before = state.makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if before is None or before.op_type != "DequantizeLinear":
            continue
        ours, theirs = ([state.constants.get(name) for name in each.input[1:3]] for each in (node, before))
        if not all(a is not None and b is not None and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            state.net.odd.append(f"QuantizeLinear {node.output[0]!r}: a pair behind another, which the runtime merges")
