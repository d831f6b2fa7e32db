"""Attributes of nodes, and which places of an image a sliding window sees. Imports nothing of the prover."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import NodeProto

from kernels.proof.checker_rows import Lacks


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def windows(node: NodeProto, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[tuple[int, ...], list[list[int]]]:
    """Sizes of the output; for each of its places those of the input under the kernel, -1 for padding."""
    n = len(sizes)
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or attribute(node, "ceil_mode", 0):
        raise Lacks(f"{node.op_type} {node.output[0]!r} with auto_pad or ceil_mode")
    steps, gaps = attribute(node, "strides", [1] * n), attribute(node, "dilations", [1] * n)
    pads = attribute(node, "pads", [0] * 2 * n)
    out = tuple((sizes[d] + pads[d] + pads[n + d] - gaps[d] * (kernel[d] - 1) - 1) // steps[d] + 1 for d in range(n))
    found = []
    for place in itertools.product(*map(range, out)):
        cells = itertools.product(*map(range, kernel))
        spots = [[place[d] * steps[d] - pads[d] + cell[d] * gaps[d] for d in range(n)] for cell in cells]
        inside = [all(0 <= at < size for at, size in zip(spot, sizes, strict=True)) for spot in spots]
        found.append([flat(spot, sizes) if own else -1 for spot, own in zip(spots, inside, strict=True)])
    return out, found


def flat(spot: Sequence[int], sizes: Sequence[int]) -> int:
    place = 0
    for at, size in zip(spot, sizes, strict=True):
        place = place * size + at
    return place
