"""Which places of an image a sliding window sees. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from kernels.proof.ir import Unsupported


def windows(sizes: Sequence[int], kernel: Sequence[int], node: NodeProto) -> npt.NDArray[np.int64]:
    """int64[places of the window, positions]: flat places in the image, -1 for padding. Raises Unsupported."""
    strides, dilations, pads = _layout(sizes, kernel, node)
    axes = []
    for axis, count in enumerate(out_sizes(sizes, kernel, node)):
        places = np.arange(kernel[axis])[:, None] * dilations[axis] + np.arange(count)[None] * strides[axis]
        places = places - pads[axis]
        axes.append(np.where((places >= 0) & (places < sizes[axis]), places, -1))
    found = axes[0]
    for axis, places in enumerate(axes[1:], 1):
        joined = found[:, None, :, None] * sizes[axis] + places[None, :, None, :]
        valid = (found[:, None, :, None] >= 0) & (places[None, :, None, :] >= 0)
        joined = np.where(valid, joined, -1)
        found = joined.reshape(joined.shape[0] * joined.shape[1], -1)
    return found.astype(np.int64)


def out_sizes(sizes: Sequence[int], kernel: Sequence[int], node: NodeProto) -> tuple[int, ...]:
    """The positions of the window along each axis."""
    strides, dilations, pads = _layout(sizes, kernel, node)
    n = len(sizes)
    return tuple(
        (sizes[i] + pads[i] + pads[n + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(n)
    )


def _layout(sizes: Sequence[int], kernel: Sequence[int], node: NodeProto) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, pads (begins, then ends)."""
    given = {each.name: list(each.ints) for each in node.attribute if each.ints}
    texts = {each.name: each.s.decode() for each in node.attribute if each.s}
    if any(each.name == "ceil_mode" and each.i for each in node.attribute):
        raise Unsupported(f"{node.op_type} {node.output[0]!r} with ceil_mode")
    n = len(sizes)
    if len(kernel) != n:
        raise Unsupported(f"{node.op_type} {node.output[0]!r} with a window of {list(kernel)} on {list(sizes)}")
    strides, dilations = given.get("strides", [1] * n), given.get("dilations", [1] * n)
    auto = texts.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        whole = [
            max((-(-sizes[i] // strides[i]) - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - sizes[i], 0)
            for i in range(n)
        ]
        less, more = [each // 2 for each in whole], [each - each // 2 for each in whole]
        return strides, dilations, less + more if auto == "SAME_UPPER" else more + less
    return strides, dilations, given.get("pads", [0] * (2 * n)) if auto == "NOTSET" else [0] * (2 * n)
