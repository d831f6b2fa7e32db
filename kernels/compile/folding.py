"""Scalers and other affine steps before a layer, moved into its weights: exact in the reals, one rounding in float32.

    (a x + b) W + c  =  x (a W) + (b W + c)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from kernels.compile.net import Array, Net, attributes, renamed

_STEPS = ("Add", "Sub", "Mul", "Div")
_PASSES_MAX = 1000  # each moves one step


@dataclass(frozen=True, slots=True)
class Affine:
    """`a x + b`, by feature (float64[features]) or for all (float64[])."""

    source: str
    a: Array
    b: Array


def fold(net: Net) -> tuple[Net, tuple[str, ...]]:
    """The net with affine steps in the weights of the layers behind them, and what was done, for the log."""
    done: list[str] = []
    for _ in range(_PASSES_MAX):
        step = next(filter(None, (_folded(net, node) for node in net.nodes)), None)
        if step is None:
            break
        net, what = step
        done.append(what)
    return net, tuple(done)


def _folded(net: Net, layer: NodeProto) -> tuple[Net, str] | None:
    """The step before this layer moved into it, None where there is none."""
    if layer.op_type not in ("Gemm", "MatMul", "Conv", "LinearClassifier", "LinearRegressor"):
        return None
    step = net.producer.get(layer.input[0])
    if step is None or step.op_type not in _STEPS or net.only_consumer(layer.input[0]) is not layer:
        return None
    affine = _affine(net, step)
    if affine is None:
        return None
    into = {"Conv": _into_conv, "Gemm": _into_gemm, "MatMul": _into_matmul}.get(layer.op_type, _into_linear)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = into(net, layer, affine)
    if moved is None:
        return None
    node, weights = moved
    if any(not np.isfinite(each).all() for each in weights.values()):
        return None
    nodes = [node if each is layer else each for each in net.nodes if each is not step]
    return net.rebuilt(nodes, weights), f"{step.op_type} {step.output[0]} into {layer.op_type} {layer.output[0]}"


def _affine(net: Net, step: NodeProto) -> Affine | None:
    """The step as a x + b; None where it is none."""
    left, right = (net.weight(name) for name in step.input)
    if (left is None) == (right is None):
        return None
    found = left if left is not None else right
    if found is None or found.dtype != np.float32:
        return None
    constant: Array = found.astype(np.float64)
    source = step.input[1] if left is not None else step.input[0]
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if step.op_type == "Add":
        return Affine(source, one, constant)
    if step.op_type == "Mul":
        return Affine(source, constant, zero)
    if step.op_type == "Sub":
        return Affine(source, one, -constant) if right is not None else Affine(source, -one, constant)
    return Affine(source, 1 / constant, zero) if right is not None and constant.all() else None


def _vectors(affine: Affine, features: int, axis: int) -> tuple[Array, Array] | None:
    """a and b as float64[features], where they vary only along that axis, counted from the end (-1: the last)."""
    shape = affine.a.shape
    if affine.a.size == 1 and len(shape) <= -axis + (axis != -1):
        return np.full(features, affine.a.reshape(-1)[0]), np.full(features, affine.b.reshape(-1)[0])
    if affine.a.size != features or len(shape) < -axis or shape[axis] != features:
        return None
    return affine.a.reshape(-1), affine.b.reshape(-1)


def _into_gemm(net: Net, layer: NodeProto, affine: Affine) -> tuple[NodeProto, dict[str, Array]] | None:
    stated = attributes(layer)
    weight = net.weight(layer.input[1])
    named = layer.input[2] if len(layer.input) > 2 else ""
    bias = net.weight(named) if named else np.zeros(1, np.float32)
    if weight is None or bias is None or weight.dtype != np.float32 or stated.get("transA", 0):
        return None
    exact = weight.astype(np.float64).T if stated.get("transB", 0) else weight.astype(np.float64)
    vectors = _vectors(affine, len(exact), -1)
    if vectors is None or affine.a.ndim > 2:
        return None
    a, b = vectors
    alpha, beta = stated.get("alpha", 1.0), stated.get("beta", 1.0)
    moved = alpha * (b @ exact) + beta * bias
    names = (f"{layer.output[0]}_weight", f"{layer.output[0]}_bias")
    node = helper.make_node("Gemm", [affine.source, *names], list(layer.output), name=layer.name, alpha=alpha)
    return node, {names[0]: (a[:, None] * exact).astype(np.float32), names[1]: moved.astype(np.float32)}


def _into_matmul(net: Net, layer: NodeProto, affine: Affine) -> tuple[NodeProto, dict[str, Array]] | None:
    weight = net.weight(layer.input[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or affine.b.any():
        return None
    vectors = _vectors(affine, len(weight), -1)
    if vectors is None or affine.a.ndim > 1:
        return None
    name = f"{layer.output[0]}_weight"
    node = helper.make_node("MatMul", [affine.source, name], list(layer.output), name=layer.name)
    return node, {name: (vectors[0][:, None] * weight.astype(np.float64)).astype(np.float32)}


def _into_conv(net: Net, layer: NodeProto, affine: Affine) -> tuple[NodeProto, dict[str, Array]] | None:
    stated = attributes(layer)
    weight = net.weight(layer.input[1])
    named = layer.input[2] if len(layer.input) > 2 else ""
    padded = any(stated.get("pads", [])) or stated.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if weight is None or weight.ndim != 4 or weight.dtype != np.float32 or stated.get("group", 1) != 1:
        return None
    bias = net.weight(named) if named else np.zeros(len(weight), np.float32)
    vectors = _vectors(affine, weight.shape[1], -3)
    # beyond the edge a padded image is 0, not b
    if vectors is None or bias is None or affine.a.ndim > 4 or (padded and affine.b.any()):
        return None
    a, b = vectors
    exact = weight.astype(np.float64)
    names = (f"{layer.output[0]}_weight", f"{layer.output[0]}_bias")
    node = renamed(layer, {layer.input[0]: affine.source})
    node.input[:] = [affine.source, *names]
    moved = np.einsum("ochw,c->o", exact, b) + bias
    return node, {names[0]: (exact * a[:, None, None]).astype(np.float32), names[1]: moved.astype(np.float32)}


def _into_linear(net: Net, layer: NodeProto, affine: Affine) -> tuple[NodeProto, dict[str, Array]] | None:
    """LinearClassifier and LinearRegressor (ai.onnx.ml) keep their weights in attributes."""
    stated = attributes(layer)
    targets = stated.get("targets", 1) if layer.op_type == "LinearRegressor" else len(stated.get("intercepts", []))
    coefficients = np.array(stated["coefficients"], np.float64)
    if not targets or len(coefficients) % targets:
        return None
    weight = coefficients.reshape(targets, -1)
    vectors = _vectors(affine, weight.shape[1], -1)
    if vectors is None or affine.a.ndim > 2:
        return None
    a, b = vectors
    intercepts = np.array(stated.get("intercepts", [0.0] * targets), np.float64) + weight @ b
    stated |= {"coefficients": (weight * a).reshape(-1).tolist(), "intercepts": intercepts.tolist()}
    return (
        helper.make_node(
            layer.op_type, [affine.source], list(layer.output), name=layer.name, domain=layer.domain, **stated
        ),
        {},
    )


def labels(net: Net) -> Net:
    """Gather of 0, 1, 2, ... by ArgMax is the ArgMax: the Gather and the casts of it go."""
    for gather in net.nodes:
        classes = net.weight(gather.input[0]) if gather.op_type == "Gather" else None
        index = net.producer.get(gather.input[1]) if classes is not None else None
        if index is None or index.op_type != "ArgMax" or classes is None or classes.ndim != 1:
            continue
        if not np.array_equal(classes, np.arange(len(classes))) or classes.dtype.kind != "i":
            continue
        reshape = net.only_consumer(gather.output[0])
        cast = net.only_consumer(reshape.output[0]) if reshape is not None and reshape.op_type == "Reshape" else None
        if reshape is None or cast is None or cast.op_type != "Cast" or attributes(cast)["to"] != 7:  # INT64
            continue
        direct = renamed(reshape, {gather.output[0]: index.output[0], reshape.output[0]: cast.output[0]})
        nodes = [direct if each is reshape else each for each in net.nodes if each is not gather and each is not cast]
        return net.rebuilt(nodes)
    return net
