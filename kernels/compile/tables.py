"""Tables that ids look up (embeddings) in 8 bits with a scale a row, or in 16: only the rows looked up become floats.

The ids are computed, so the runtime cannot fold a table back into floats when it loads.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from kernels.compile import ranges
from kernels.compile.net import Array, Net, attributes, renamed

BYTES_MIN = 1 << 18  # of floats; three more operators gain nothing for a smaller table
_HALF_MAX = float(np.finfo(np.float16).max)


def find(net: Net) -> list[str]:
    """The names of the tables: float32[ids, ...], which nothing but Gather along the first axis takes."""
    names = dict.fromkeys(node.input[0] for node in net.nodes if node.op_type == "Gather")
    return [name for name in names if _is_table(net, name)]


def write(net: Net, bits: int) -> Net:
    """The net with its tables in 8 or 16 bits."""
    tables = set(find(net))
    if not tables:
        return net
    added: dict[str, Array] = {}
    nodes: list[NodeProto] = []
    for node in net.nodes:
        if node.op_type == "Gather" and node.input[0] in tables:
            nodes += _looked_up(net, node, bits, added)
        else:
            nodes.append(node)
    return net.rebuilt(nodes, added)


def _is_table(net: Net, name: str) -> bool:
    array = net.weight(name)
    if array is None or array.dtype != np.float32 or array.ndim < 2 or array.nbytes < BYTES_MIN:
        return False
    takers = net.consumers[name]
    plain = all(each.op_type == "Gather" and not attributes(each).get("axis", 0) for each in takers)
    computed = all(net.weight(each.input[1]) is None for each in takers if plain)
    return plain and computed and name not in net.outputs and bool(np.abs(array).max() <= _HALF_MAX)


def _looked_up(net: Net, node: NodeProto, bits: int, added: dict[str, Array]) -> list[NodeProto]:
    """The nodes instead of a Gather; `added` gets the table and its scales."""
    name, out = node.input[0], node.output[0]
    array = net.weight(name)
    assert array is not None
    short = renamed(node, {name: f"{name}.w", out: f"{out}.w"})
    if bits == 16:
        added[f"{name}.w"] = array.astype(np.float16)
        return [short, helper.make_node("Cast", [f"{out}.w"], [out], to=TensorProto.FLOAT)]
    if f"{name}.w" not in added:
        steps, scales = ranges.weights(array, 8, 0)
        added |= {f"{name}.w": steps, f"{name}.ws": scales.reshape(-1, *(1,) * (array.ndim - 1))}
    return [
        short,
        helper.make_node("Cast", [f"{out}.w"], [f"{out}.c"], to=TensorProto.FLOAT),
        renamed(node, {name: f"{name}.ws", out: f"{out}.s"}),
        helper.make_node("Mul", [f"{out}.c", f"{out}.s"], [out]),
    ]
