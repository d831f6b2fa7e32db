"""MatMuls whose activations get a scale at each run. The scale is that of the whole batch, so a run holds one request.

DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which the runtime fuses; weights int8 with a scale a column.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from kernels.compile import ranges
from kernels.compile.layers import WeightLayer, weight_of
from kernels.compile.net import Array, Net


def write(net: Net, layers: list[WeightLayer]) -> Net | None:
    """The net with its MatMuls so; None where it has none."""
    matmuls = {id(each.node): each for each in layers if each.op == "MatMul"}
    if not matmuls:
        return None
    weights: dict[str, Array] = {}
    nodes: list[NodeProto] = [
        helper.make_node("DynamicQuantizeLinear", [source], [f"{source}.{part}" for part in "qsz"])
        for source in dict.fromkeys(each.source for each in matmuls.values())
    ]
    for node in net.nodes:
        layer = matmuls.get(id(node))
        if layer is None:
            nodes.append(node)
            continue
        name, source = layer.name, layer.source
        steps, scales = ranges.weights(weight_of(net, layer), 8, layer.axis)
        weights |= {f"{name}.w": steps, f"{name}.ws": scales, f"{name}.wz": np.zeros(len(scales), np.int8)}
        inputs = [f"{source}.q", f"{name}.w", f"{source}.z", f"{name}.wz"]
        nodes += [
            helper.make_node("MatMulInteger", inputs, [f"{name}.i"]),
            helper.make_node("Cast", [f"{name}.i"], [f"{name}.c"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{source}.s", f"{name}.ws"], [f"{name}.u"]),
            helper.make_node("Mul", [f"{name}.c", f"{name}.u"], [name]),
        ]
    return net.rebuilt(nodes, weights)
