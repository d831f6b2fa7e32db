"""Affine steps moved into weights answer as before, up to float rounding; what is not exact stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from kernels.compile import folding, importing, layers, smoothing
from kernels.compile.net import Array, Net, inferred
from kernels.compile.ranges import observe
from kernels.compile.runtime import Runner, operators
from tests import nets, samples

RNG = np.random.default_rng(0)


def net_of(path: Path, builder: nets.Builder, shape: list[Any]) -> Net:
    """From x to y, at the opset of the compiler."""
    builder.save(path, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, None)})  # type: ignore[dict-item]
    found = importing.read(replace(samples.spec(), path=str(path)))
    assert found.net is not None, found.reasons
    return found.net


def same(one: Net, other: Net, x: Array, within: float = 2e-5) -> None:
    a, b = Runner(one.model).run({"x": x}), Runner(other.model).run({"x": x})
    for name, wanted in a.items():
        scale = float(np.abs(wanted).max()) + 1
        assert np.abs(wanted - b[name]).max() <= within * scale
    importing.checked(other.model, "folded")


@settings(max_examples=12, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Mul", "Div"]), st.booleans(), st.booleans()), min_size=1, max_size=4
    ),
    layer=st.sampled_from(["Gemm", "GemmT", "MatMul+Add"]),
    seed=st.integers(0, 999),
)
def test_chains_of_affine_steps_go_into_a_layer(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool, bool]], layer: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    builder = nets.Builder(seed)
    value = "x"
    for op, scalar, _ in steps:
        constant = builder.weight((rng.random((1,) if scalar else (6,)) + 0.5).astype(np.float32))
        value = builder.node(op, value, constant)
    if layer == "MatMul+Add":
        builder.dense(value, 6, 4, out="y")
    elif layer == "Gemm":
        builder.node("Gemm", value, builder.normal(6, 4, scale=0.5), builder.normal(4, scale=0.5), out="y")
    else:
        builder.node("Gemm", value, builder.normal(4, 6, scale=0.5), out="y", transB=1)
    net = net_of(tmp_path_factory.mktemp("n") / "model.onnx", builder, ["rows", 6])
    folded, done = folding.fold(net)
    assert operators(folded.model) == {"Gemm": 1}
    assert done
    same(net, folded, rng.standard_normal((5, 6), np.float32), 1e-4)


@pytest.mark.parametrize(
    ("op", "pads", "moved"), [("Mul", 1, True), ("Mul", 0, True), ("Sub", 0, True), ("Sub", 1, False)]
)
def test_a_padded_convolution_takes_scales_and_no_offsets(tmp_path: Path, op: str, pads: int, moved: bool) -> None:
    """Beyond the edge there is 0, not 0 less the mean."""
    builder = nets.Builder()
    value = builder.node(op, "x", builder.weight((RNG.random((3, 1, 1)) + 0.5).astype(np.float32)))
    builder.node("Conv", value, builder.normal(4, 3, 3, 3, scale=0.3), builder.normal(4, scale=0.1), out="y",
                 kernel_shape=[3, 3], pads=[pads] * 4)  # fmt: skip
    net = net_of(tmp_path / "model.onnx", builder, ["rows", 3, 8, 8])
    folded, done = folding.fold(net)
    assert bool(done) == moved
    same(net, folded, RNG.standard_normal((2, 3, 8, 8), np.float32))


def test_what_others_read_too_stays(tmp_path: Path) -> None:
    builder = nets.Builder()
    scaled = builder.node("Mul", "x", builder.weight(np.array([2.0, 3.0], np.float32)))
    builder.node("Add", builder.node("Gemm", scaled, builder.normal(2, 2, scale=1.0)), scaled, out="y")
    net = net_of(tmp_path / "model.onnx", builder, ["rows", 2])
    assert folding.fold(net)[1] == ()


def test_numbers_that_leave_float32_are_not_folded(tmp_path: Path) -> None:
    builder = nets.Builder()
    huge = builder.weight(np.array([1e30, 1.0], np.float32))
    builder.node("Gemm", builder.node("Mul", "x", huge), builder.weight(np.full((2, 2), 1e20, np.float32)), out="y")
    net = net_of(tmp_path / "model.onnx", builder, ["rows", 2])
    assert folding.fold(net)[1] == ()


def test_classical_linear_models_take_their_scaler(tmp_path: Path) -> None:
    builder = nets.Builder()
    scaled = builder.node("Scaler", "x", domain="ai.onnx.ml", offset=[1.0, -2.0, 0.5], scale=[2.0, 0.1, 1.0])
    builder.node("LinearRegressor", scaled, out="y", domain="ai.onnx.ml",
                 coefficients=[0.5, -1.0, 2.0], intercepts=[0.25])  # fmt: skip
    net = net_of(tmp_path / "model.onnx", builder, ["rows", 3])
    folded, done = folding.fold(net)
    assert operators(folded.model) == {"LinearRegressor": 1}
    assert len(done) == 2
    same(net, folded, RNG.standard_normal((5, 3), np.float32))


def test_outliers_move_into_weights(tmp_path: Path) -> None:
    """The answers stay, and the activations become even: 8 bits then hold them better."""
    builder = nets.Builder()
    weight = builder.normal(8, 4, scale=0.5)
    axes = builder.weight(np.array([1]))
    rows3 = builder.node("Unsqueeze", "x", axes)
    builder.node("MatMul", rows3, weight, out="y")
    net = net_of(tmp_path / "model.onnx", builder, ["rows", 8])
    x = RNG.standard_normal((64, 8), np.float32) * np.array([1, 1, 1, 1, 1, 1, 1, 100], np.float32)
    found, _ = layers.find(net)
    seen = observe(net, [each.source for each in found], [{"x": x}])
    smoothed = smoothing.smooth(net, found, seen)
    assert smoothed is not None
    same(net, smoothed, x)
    after, _ = layers.find(inferred(smoothed))
    largest = observe(smoothed, [after[0].source], [{"x": x}])[after[0].source].largest
    before = seen[found[0].source].largest
    assert largest is not None
    assert before is not None
    assert largest.max() / largest.min() < before.max() / before.min() / 5


def test_a_layer_behind_a_dynamic_rank_is_left_alone(tmp_path: Path) -> None:
    """Squeeze without axes: how many dimensions are left depends on the input."""
    builder = nets.Builder()
    builder.node("MatMul", builder.node("Squeeze", "x"), builder.normal(4, 3, scale=0.5), out="y")
    found, reasons = layers.find(net_of(tmp_path / "model.onnx", builder, ["rows", "depth", 4]))
    assert found == []
    assert [(each.node, each.why) for each in reasons] == [("y", "its input has a dynamic rank")]
