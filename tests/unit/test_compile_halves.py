"""fp16 and bf16: what becomes 16 bits, what stays float32 and why, and how far the answers are from float32's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kernels import devices
from kernels.compile import halves, importing
from kernels.compile.compiler import Options, compile_model
from kernels.compile.halves import HALVES
from kernels.compile.net import Net, inferred
from kernels.compile.runtime import Runner, Tensors
from kernels.loading import load_variant
from kernels.manifest import read_original, read_variants
from kernels.repository import load_model
from kernels.session import KernelError
from tests import nets, transformers

RNG = np.random.default_rng(0)
IDS = {"input_ids": RNG.integers(0, 50, (3, 5)), "attention_mask": np.ones((3, 5), np.int64),
       "token_type_ids": np.zeros((3, 5), np.int64)}  # fmt: skip
CASES: list[tuple[str, Callable[[Path], object], Tensors]] = [
    ("mlp", nets.mlp, {"features": RNG.standard_normal((4, 30), np.float32)}),
    ("sequence", nets.sequence, {"ids": RNG.integers(0, 100, (3, 5)), "mask": np.ones((3, 5), np.int64)}),
    ("bert", lambda path: transformers.bert(path, transformers.TINY), IDS),
    ("resnet", lambda path: nets.resnet50(path, image=32), {"pixels": RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)}),
]


def net_of(tmp_path: Path, build: Callable[[Path], object]) -> Net:
    build(tmp_path / "m/1/model.onnx")
    net = importing.read(load_model(tmp_path, "m", "1")).net
    assert net is not None
    return net


def graph(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], **outputs: int) -> Net:
    """x float32[rows, 4] -> the outputs, of these types."""
    made = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return inferred(Net(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)))


def why(kept: halves.Wide) -> dict[str, str]:
    return {node.op_type: said for node, said in kept}


@pytest.mark.parametrize(("name", "build", "feed"), CASES, ids=[case[0] for case in CASES])
def test_fp16_keeps_inputs_outputs_and_nearly_the_answers(
    tmp_path: Path, name: str, build: Callable[[Path], object], feed: Tensors
) -> None:
    net = net_of(tmp_path, build)
    (made,) = halves.candidates(net, [feed], ["fp16"])
    onnx.checker.check_model(made.net.model, full_check=True)
    types = [[(v.name, v.type.tensor_type.elem_type) for v in (*n.model.graph.input, *n.model.graph.output)]
             for n in (net, made.net)]  # fmt: skip
    assert types[0] == types[1]
    assert {each.why for each in made.layers} == {"every node alike"}
    assert not any(each.data_type == TensorProto.FLOAT for each in made.net.model.graph.initializer)
    assert sum(node.op_type == "Cast" for node in made.net.nodes) <= sum(n.op_type == "Cast" for n in net.nodes) + 3
    wanted, found = Runner(net.model).run(feed), Runner(made.net.model).run(feed)
    for output, array in wanted.items():
        assert 0 < np.abs(found[output] - array).max() < 5e-3 * np.abs(array).max()


@pytest.mark.parametrize(("name", "build", "feed"), CASES[:3], ids=[case[0] for case in CASES[:3]])
def test_bf16_as_the_reference_of_onnx_executes_it(
    tmp_path: Path, name: str, build: Callable[[Path], object], feed: Tensors
) -> None:
    net = net_of(tmp_path, build)
    (made,) = halves.candidates(net, [feed], ["bf16"])
    onnx.checker.check_model(made.net.model, full_check=True)
    wanted = Runner(net.model).run(feed)
    for output, array in zip(made.net.outputs, ReferenceEvaluator(made.net.model).run(None, feed), strict=True):
        assert array.dtype == np.float32
        assert 0 < np.abs(array - wanted[output]).max() < 2e-2 * np.abs(wanted[output]).max()


def test_what_an_operator_does_not_take_stays_float32(tmp_path: Path) -> None:
    net = net_of(tmp_path, CASES[3][1])
    (made,) = halves.candidates(net, [CASES[3][2]], ["bf16"])
    onnx.checker.check_model(made.net.model, full_check=True)
    said = {each.op: each.why for each in made.layers}
    assert said["Conv"] == "Conv of opset 21 takes no bf16"
    assert said["Gemm"] == "every node alike"


def test_values_that_fp16_does_not_hold_stay_float32() -> None:
    """The second Mul goes to 9e8: it stays, and so does what takes it; bfloat16 holds all of it."""
    big = np.array([3e4], np.float32)
    nodes = [helper.make_node(op, inputs, [out]) for op, inputs, out in (
        ("Relu", ["x"], "a"), ("Mul", ["a", "big"], "b"), ("Mul", ["b", "big"], "c"), ("Div", ["c", "huge"], "d"),
        ("Tanh", ["d"], "y"))]  # fmt: skip
    net = graph(nodes, {"big": big, "huge": big * 30_000}, y=TensorProto.FLOAT)
    feed = {"x": np.array([[0.1, 1, -1, 0.5]], np.float32)}
    wide, short = halves.candidates(net, [feed], ["fp16", "bf16"])
    assert [each.weight_bits for each in wide.layers] == [16, 32, 32, 32, 16]
    assert "'b' comes within a factor 8" in wide.layers[1].why
    assert {each.weight_bits for each in short.layers} == {16}
    found, wanted = Runner(wide.net.model).run(feed)["y"], Runner(net.model).run(feed)["y"]
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
    assert "a weight exceeds the largest fp16" in why(halves.convert(net, HALVES["fp16"], set())[1])["Div"]


def test_infinities_on_the_way_do_not_end_a_compilation() -> None:
    """As in attention masks: log 0 is -inf, and Softmax makes 0 of it."""
    nodes = [helper.make_node("Log", ["x"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])]
    feed = {"x": np.array([[0, 1, 2, 3]], np.float32)}
    (made,) = halves.candidates(graph(nodes, {}, y=TensorProto.FLOAT), [feed], ["fp16"])
    assert {each.weight_bits for each in made.layers} == {32}
    np.testing.assert_allclose(Runner(made.net.model).run(feed)["y"], feed["x"] / 6, rtol=1e-5)


def test_whole_numbers_in_floats_are_read_as_they_are() -> None:
    """4097 is no float16: an id must be cast from the input itself; sizes of Resize must be float32."""
    table = np.arange(5000, dtype=np.float32)[:, None] / 5000
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Resize", ["rows", "", "scales"], ["y"], mode="nearest"),
    ]
    scales = np.array([1, 1, 2], np.float32)
    net = graph(nodes, {"table": table, "scales": scales}, y=TensorProto.FLOAT)
    feed = {"x": np.array([[4097, 4099, 1, 2]], np.float32)}
    (made,) = halves.candidates(net, [feed], ["fp16"])
    found = Runner(made.net.model).run(feed)["y"]
    np.testing.assert_allclose(found, Runner(net.model).run(feed)["y"], rtol=1e-3)
    assert found[0, 0, 0] != found[0, 1, 0]
    kinds = {each.name: each.data_type for each in made.net.model.graph.initializer}
    assert kinds == {"table.h": TensorProto.FLOAT16, "scales": TensorProto.FLOAT}


OPERATORS = ["Relu", "Tanh", "Exp", "Neg", "Add", "Mul", "CumSum", "Range"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(OPERATORS), min_size=1, max_size=8))
def test_any_chain_of_operators_runs_and_stays_close(ops: list[str]) -> None:
    nodes, name = [], "x"
    for place, op in enumerate(ops):
        takes = {"Add": [name, "half"], "Mul": [name, "half"], "CumSum": [name, "axis"]}.get(op, [name])
        if op == "Range":  # takes no fp16, and has nothing to do with x
            nodes.append(helper.make_node("Range", ["zero", "four", "one"], [f"r{place}"]))
            op, takes = "Add", [name, f"r{place}"]
        nodes.append(helper.make_node(op, takes, [f"t{place}"]))
        name = f"t{place}"
    nodes.append(helper.make_node("Sigmoid", [name], ["y"]))
    weights = {"half": np.array([0.5], np.float32), "axis": np.array(1), "zero": np.array(0, np.float32),
               "four": np.array(4, np.float32), "one": np.array(1, np.float32)}  # fmt: skip
    net = graph(nodes, weights, y=TensorProto.FLOAT)
    feed = {"x": np.array([[-1, -0.25, 0.5, 1]], np.float32)}
    (made,) = halves.candidates(net, [feed], ["fp16"])
    wanted, found = Runner(net.model).run(feed)["y"], Runner(made.net.model).run(feed)["y"]
    largest = max(np.abs(np.nan_to_num(each, posinf=1e4, neginf=1e4)).max() for each in tensors(net, feed))
    assert np.abs(found - wanted).max() < HALVES["fp16"].rounding * 8 * len(ops) * max(1.0, largest)


def tensors(net: Net, feed: Tensors) -> list[np.ndarray]:
    """What every node makes."""
    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    names = [name for node in net.nodes for name in node.output if name != "y"]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return list(Runner(model).run(feed).values())


def test_compiled_for_a_device_with_16_bits(tmp_path: Path) -> None:
    """The CPU in its place: it runs fp16 slowly and bf16 not at all, which is said; only its actors take it."""
    nets.mlp(tmp_path / "m/1/model.onnx", (8, 32, 16, 3))
    (tmp_path / "m/1/model.toml").write_text('require_certificate = "none"\n')
    spec = load_model(tmp_path, "m", "1")
    device = replace(devices.CPU, halves=("fp16", "bf16"), within=1e-3)
    done = compile_model(spec, None, Options(device=device), lambda step: None)
    refused = {each.name: each.refused for each in done.tried if each.refused}
    assert "Could not find an implementation for Gemm" in refused["bf16"]
    found = read_variants(tmp_path / "m/1")
    assert "fp16" in found or "as good in everything" in refused["fp16"]
    assert read_original(tmp_path / "m/1") == done.original
    spec = load_model(tmp_path, "m", "1")
    for variant in spec.variants:
        golden = found[variant.name].golden
        assert golden is not None
        assert golden.within == (pytest.approx(4 * 2**-11) if variant.name == "fp16" else 1e-3)
        assert load_variant(spec, variant, 1, device=device).session.device == device
        with pytest.raises(KernelError, match="--device cuda"):
            load_variant(spec, variant, 1, device=devices.DEVICES["cuda"])
