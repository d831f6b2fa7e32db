"""Quantized graphs against plain numpy: rounding half to even, saturation, zero points, biases, ranges."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from kernels.compile import layers, qdq, ranges, runtime
from kernels.compile.judge import Comparison
from kernels.compile.layers import Plan, Width
from kernels.compile.net import Array, Net
from kernels.compile.ranges import Scale, Seen
from kernels.compile.runtime import Runner, Tensors
from kernels.manifest import RunOptions
from tests import nets, samples

WIDTHS = [Width(8, 8), Width(4, 8), Width(16, 32), Width(8, 32), Width(4, 32)]


def quantized(x: Array, scale: float, zero: int) -> Array:
    """QuantizeLinear of ONNX: round half to even, then the zero point, then saturation."""
    return np.clip(np.round(x.astype(np.float32) / np.float32(scale)).astype(np.int64) + zero, 0, 255)


def dequantized(q: Array, scale: npt.ArrayLike, zero: int = 0) -> Array:
    return ((q.astype(np.int64) - zero) * np.asarray(scale, np.float64)).astype(np.float64)


def held(x: Array, scale: Scale) -> Array:
    return dequantized(quantized(x, float(scale.scale), scale.zero), float(scale.scale), scale.zero)


def mlp_oracle(net: Net, found: list[layers.WeightLayer], plan: Plan, scales: dict[str, Scale], x: Array) -> Array:
    """Logits of a chain of Gemm and Relu with each layer at its width, in float64; integers are exact there."""
    value: Array = x.astype(np.float64)
    for place, layer in enumerate(found):
        width = plan.get(layer.name, layers.FLOAT)
        weight = layers.weight_of(net, layer).astype(np.float64)
        bias = net.weight(layer.bias)
        assert bias is not None
        exact: Array = bias.astype(np.float64)
        if layer.source in scales and width.activation == 8:
            value = held(value, scales[layer.source])
            unit = float(scales[layer.source].scale)
            steps, by_channel = ranges.weights(layers.weight_of(net, layer), width.weight, layer.axis)
            exact = np.round(exact / (unit * by_channel)) * (unit * by_channel.astype(np.float64))
        if width.weight == 16:
            weight = weight.astype(np.float16).astype(np.float64)
        elif width.weight < 16:
            steps, by_channel = ranges.weights(layers.weight_of(net, layer), width.weight, layer.axis)
            assert np.abs(steps).max() <= 2 ** (width.weight - 1) - 1
            weight = steps * by_channel.astype(np.float64)
        value = value @ weight + exact
        if place < len(found) - 1:
            value = np.maximum(value, 0)
    return value


def small_mlp(path: Path, seed: int, sizes: tuple[int, ...]) -> Net:
    """x -> y: Gemm, Relu, ..., Gemm."""
    net = nets.Builder(seed)
    value = "x"
    for place, (width_in, width_out) in enumerate(itertools.pairwise(sizes)):
        last = place == len(sizes) - 2
        value = net.node("Gemm", value, net.normal(width_in, width_out, scale=(2 / width_in) ** 0.5),
                         net.normal(width_out, scale=0.3), out="y" if last else None)  # fmt: skip
        value = value if last else net.node("Relu", value)
    net.save(path, {"x": (TensorProto.FLOAT, ["rows", sizes[0]])}, {"y": (TensorProto.FLOAT, ["rows", sizes[-1]])})
    model = onnx.load(path)
    return Net(onnx.version_converter.convert_version(model, 21))


def written(net: Net, plan: Plan, feed: Tensors, method: str) -> tuple[Net, dict[str, Scale]]:
    found, _ = layers.find(net)
    held_in = layers.eight_bit_tensors(net, found, {each.name: Width(8, 8) for each in found})
    seen = ranges.observe(net, sorted(held_in), [feed])
    scales = {name: ranges.scale_of(each, method) for name, each in seen.items()}
    return qdq.write(net, found, plan, scales), scales


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 24), min_size=2, max_size=4),
    chosen=st.lists(st.sampled_from(WIDTHS), min_size=3, max_size=3),
    method=st.sampled_from(ranges.METHODS),
)
def test_what_is_executed_is_what_numpy_says(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sizes: list[int], chosen: list[Width], method: str
) -> None:
    """Fused, unfused and the oracle agree within one step of the activations that round differently in float32."""
    net = small_mlp(tmp_path_factory.mktemp("n") / "model.onnx", seed, tuple(sizes))
    found, _ = layers.find(net)
    plan = {layer.name: width for layer, width in zip(found, chosen, strict=False)}
    x = np.random.default_rng(seed).standard_normal((16, sizes[0]), np.float32)
    made, scales = written(net, plan, {"x": x}, method)
    onnx.checker.check_model(made.model)
    expected = mlp_oracle(net, found, plan, scales, x)
    bound = one_step(net, found, scales, x)
    for options in (runtime.LITERAL, RunOptions("all")):
        answers = Runner(made.model, options, 1).run({"x": x})["y"]
        assert np.abs(answers - expected).max() <= bound


def one_step(net: Net, found: list[layers.WeightLayer], scales: dict[str, Scale], x: Array) -> float:
    """What one step more or less in a few activations of each layer can make of the outputs, and float rounding."""
    total, gain = 1e-4, 1.0
    for layer in reversed(found):
        gain *= float(np.abs(layers.weight_of(net, layer)).sum(axis=0).max())
        total += 1.01 * gain * float(scales[layer.source].scale) if layer.source in scales else 1e-5 * gain
    return total


def test_rounding_is_half_to_even_and_saturates() -> None:
    scale = Scale(np.float32(0.5), 10)
    x = np.array([0.25, 0.75, -0.25, -0.75, 1e9, -1e9, 0.0], np.float32)
    assert ranges.fake(x, scale).tolist() == [0.0, 1.0, 0.0, -1.0, 122.5, -5.0, 0.0]
    assert held(x, scale).tolist() == [0.0, 1.0, 0.0, -1.0, 122.5, -5.0, 0.0]


@given(low=st.floats(-1e6, 1e6), high=st.floats(-1e6, 1e6))
def test_a_scale_holds_its_range_and_zero_exactly(low: float, high: float) -> None:
    seen = Seen()
    values = np.array([min(low, high), max(low, high)], np.float32)
    seen.update(values, 2)
    found = ranges.scale_of(seen, "range")
    assert ranges.fake(np.zeros(1, np.float32), found) == 0
    assert 0 <= found.zero <= 255
    if np.abs(values).max() > 1e-30:
        # both ends of the range come back within a step: half of it, and half for the place of zero
        assert np.abs(ranges.fake(values, found) - values).max() <= 1.01 * float(found.scale)


def test_values_that_are_never_negative_have_zero_point_0() -> None:
    """The runtime then leaves Relu out: saturation does its work."""
    seen = Seen()
    seen.update(np.abs(np.random.default_rng(0).standard_normal(1000)).astype(np.float32), 1000)
    assert {ranges.scale_of(seen, method).zero for method in ranges.METHODS} == {0}


def test_methods_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(16_000), [1000.0]]).astype(np.float32)
    seen = Seen()
    seen.update(values, len(values))
    found = {method: ranges.scale_of(seen, method) for method in ranges.METHODS}
    errors = {method: float(np.mean((ranges.fake(values, each) - values) ** 2)) for method, each in found.items()}
    assert found["range"].clipped == 0 < found["percentile"].clipped < 1e-3
    assert errors["mse"] <= errors["range"]
    inner = values[:-1]
    assert np.mean((ranges.fake(inner, found["percentile"]) - inner) ** 2) < np.mean(
        (ranges.fake(inner, found["range"]) - inner) ** 2
    )


@pytest.mark.parametrize("values", [np.zeros(10), np.full(10, 3.0), np.full(10, -2.0), np.full(10, 1e-40)])
def test_constant_values_have_a_scale(values: npt.NDArray[np.float64]) -> None:
    seen = Seen()
    seen.update(values.astype(np.float32), 10)
    for method in ranges.METHODS:
        found = ranges.scale_of(seen, method)
        assert np.isfinite(found.scale)
        assert found.scale > 0
        back = ranges.fake(values.astype(np.float32), found)
        assert np.abs(back - values).max() <= 1e-6 * np.abs(values).max() + 1e-38


@given(st.integers(0, 1000), st.sampled_from([4, 8]), st.sampled_from([0, 1]))
@settings(max_examples=30, deadline=None)
def test_weights_come_back_within_half_a_step(seed: int, bits: int, axis: int) -> None:
    array = np.random.default_rng(seed).standard_normal((7, 5)).astype(np.float32)
    steps, scales = ranges.weights(array, bits, axis)
    shape = (-1, 1) if axis == 0 else (1, -1)
    most = 2 ** (bits - 1) - 1
    assert np.abs(steps).max() <= most
    plain = np.clip(np.round(array / scales.reshape(shape)), -most, most)
    assert np.array_equal(steps, plain)
    if bits == 8:
        assert np.abs(steps * scales.reshape(shape) - array).max() <= 0.5001 * scales.max()
    best = ((array - steps * scales.reshape(shape)) ** 2).sum()
    full = np.abs(array).max(axis=1 - axis) / most
    assert best <= ((array - np.round(array / full.reshape(shape)) * full.reshape(shape)) ** 2).sum() * 1.0001


def test_a_channel_of_zeros_and_a_large_bias_are_exact(tmp_path: Path) -> None:
    net = small_mlp(tmp_path / "model.onnx", 0, (4, 3))
    weight, bias = (net.weight(name) for name in net.nodes[0].input[1:])
    assert weight is not None
    assert bias is not None
    weight, bias = weight.copy(), bias.copy()
    weight[:, 0], bias[:] = 0, (5e7, -7.0, 0.0)
    net = net.rebuilt(net.nodes, {net.nodes[0].input[1]: weight, net.nodes[0].input[2]: bias})
    x = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    made, _ = written(net, {"y": Width(8, 8)}, {"x": x}, "range")
    answers = Runner(made.model, RunOptions("all"), 1).run({"x": x})["y"]
    assert answers[:, 0] == pytest.approx(5e7, rel=1e-6)
    assert answers[:, 1] == pytest.approx(x @ weight[:, 1] - 7, abs=0.1)


def small_cnn(path: Path) -> Net:
    """pixels float32[rows, 3, 16, 16] -> y: convolutions, a residual, pools, Concat, Clip, Gemm."""
    net = nets.Builder(3)
    first = net.node("Relu", net.conv("pixels", (3, 8), 3))
    pooled = net.node("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])
    low, high = net.weight(np.array(0, np.float32)), net.weight(np.array(6, np.float32))
    second = net.node("Clip", net.conv(pooled, (8, 8), 3), low, high)
    both = net.node("Relu", net.node("Add", second, pooled))
    wide = net.node("Concat", both, net.node("Sigmoid", net.conv(both, (8, 4), 1)), axis=1)
    last = net.conv(wide, (12, 16), 1)
    flat = net.node("Flatten", net.node("GlobalAveragePool", last))
    net.node("Gemm", flat, net.normal(16, 5, scale=0.3), net.normal(5, scale=0.1), out="y")
    net.save(path, {"pixels": (TensorProto.FLOAT, ["rows", 3, 16, 16])}, {"y": (TensorProto.FLOAT, ["rows", 5])})
    return Net(onnx.shape_inference.infer_shapes(onnx.version_converter.convert_version(onnx.load(path), 21)))


def test_eight_bits_stay_between_operators(tmp_path: Path) -> None:
    net = small_cnn(tmp_path / "model.onnx")
    found, reasons = layers.find(net)
    assert (len(found), reasons) == (5, [])
    x = np.random.default_rng(1).random((8, 3, 16, 16), np.float32)
    for width in (Width(8, 8), Width(4, 8)):
        made, _ = written(net, {each.name: width for each in found}, {"pixels": x}, "range")
        there = runtime.operators(runtime.optimized(made.model, RunOptions("all")))
        assert (there["QLinearConv"], there["QGemm"], there["QLinearAdd"]) == (4, 1, 1)
        assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "Relu", "Clip", "Add"} & set(there)
        literal, fused = (Runner(made.model, each, 1).run({"pixels": x}) for each in (runtime.LITERAL, RunOptions()))
        original = Runner(net.model).run({"pixels": x})
        error, deviation = relative(original, fused), relative(literal, fused)
        assert deviation < 0.02 + error / 2
        assert error < (0.05 if width.weight == 8 else 0.4)


@settings(max_examples=10, deadline=None)
@given(chosen=st.lists(st.sampled_from([*WIDTHS, layers.FLOAT]), min_size=5, max_size=5))
def test_any_mixture_of_widths_answers_as_the_file_says(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[Width]
) -> None:
    net = small_cnn(tmp_path_factory.mktemp("n") / "model.onnx")
    found, _ = layers.find(net)
    x = np.random.default_rng(1).random((8, 3, 16, 16), np.float32)
    plan = {layer.name: width for layer, width in zip(found, chosen, strict=True)}
    made, _ = written(net, plan, {"pixels": x}, "range")
    onnx.checker.check_model(made.model)
    literal, fused = (Runner(made.model, each, 1).run({"pixels": x}) for each in (runtime.LITERAL, RunOptions()))
    error = relative(Runner(net.model).run({"pixels": x}), fused)
    assert relative(literal, fused) < 0.02 + error / 2
    assert error < (0.4 if any(each.weight == 4 for each in chosen) else 0.06)


def test_a_file_holds_the_widths_that_it_states(tmp_path: Path) -> None:
    net = small_mlp(tmp_path / "model.onnx", 0, (64, 64, 64, 8))
    found, _ = layers.find(net)
    x = np.random.default_rng(1).standard_normal((16, 64), np.float32)
    weights = sum(each.elements for each in found)
    for width in WIDTHS:
        made, _ = written(net, {each.name: width for each in found}, {"x": x}, "range")
        stated = sum(each.file_bytes(width.weight) for each in found)
        sizes = {TensorProto.INT4: 0.5, TensorProto.INT8: 1.0, TensorProto.FLOAT16: 2.0}
        stored = sum(
            np.prod(each.dims) * sizes[each.data_type]
            for each in made.model.graph.initializer
            if len(each.dims) == 2 and each.data_type in sizes
        )
        assert stored == weights * width.weight / 8
        assert abs(len(made.model.SerializeToString()) - stated) < 4000


def relative(wanted: dict[str, Any], found: dict[str, Any]) -> float:
    seen = Comparison(samples.spec())
    seen.update(wanted, found)
    return seen.relative
