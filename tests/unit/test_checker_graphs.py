"""What the checker must not read: each such graph is UNKNOWN to it, or rejected, with the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kernels.proof import checker
from kernels.proof.checker_graph import Lacks, Net, Wrong, load, read
from tests.certificates import written
from tests.random_nets import Array, Pair, session

FLOATS = {
    "w": np.arange(12, dtype=np.float32).reshape(4, 3) / 8,
    "s": np.float32(0.5),
    "s3": np.full(3, 0.25, np.float32),
    "nan": np.full(4, np.nan, np.float32),
    "rows": np.zeros((2, 4), np.float32),
    "deep": np.zeros((1, 1, 4), np.float32),
    "k": np.ones((2, 4, 1, 1), np.float32),
    "z": np.uint8(3),
    "i8": np.int8(0),
    "i32": np.int32(0),
    "ends": np.zeros(4, np.float32),
    "neg": np.float32(-1),
}
SHAPES = {"flat": [-1], "aside": [1, -1, 4], "two": [2, -1], "back": [0, 2, 2], "plain": [-1, 4], "rest": [1, 4]}


def model(nodes: Sequence[tuple[Any, ...]], outputs: Sequence[str] = ("y",), opset: int = 21, shape: Any = (4,),
          domain: str = "") -> ModelProto:  # fmt: skip
    """Nodes (operator, inputs, output, attributes) on the input x."""
    constants = {**FLOATS, **{name: np.array(each, np.int64) for name, each in SHAPES.items()}}
    made = [
        helper.make_node(op, ins, [out], domain=domain, **(more[0] if more else {})) for op, ins, out, *more in nodes
    ]
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=10)


def value_of(net: Net, x: Array) -> list[float]:
    """The output of a net without units."""
    values = [Fraction(1), *(Fraction(float(each)) for each in x)]
    rows = net.tensors[net.output].rows
    return [float(sum(each * values[key] for key, each in row.coefs.items())) for row in rows]


LACKING = {
    "an operator": [("Erf", ["x"], "y")],
    "an attribute": [("MatMul", ["x", "w"], "y", {"invented": 1})],
    "a transposed input": [("Gemm", ["x", "w"], "y", {"transA": 1})],
    "wrong sizes": [("MatMul", ["x", "s3"], "y")],
    "weights that are computed": [("MatMul", ["x", "x"], "y")],
    "a product of two": [("Mul", ["x", "x"], "y")],
    "division by the input": [("Div", ["s", "x"], "y")],
    "division by zero": [("Div", ["x", "ends"], "y")],
    "NaN": [("Add", ["x", "nan"], "y")],
    "a constant with rows": [("Add", ["x", "rows"], "y")],
    "a constant of more dimensions": [("Add", ["x", "deep"], "y")],
    "rows joined": [("Concat", ["x", "x"], "y", {"axis": 0})],
    "rows moved": [("Transpose", ["x"], "y", {"perm": [1, 0]})],
    "rows split": [("Reshape", ["x", "two"], "y")],
    "rows flattened": [("Flatten", ["x"], "y", {"axis": 0})],
    "rows aside": [("Reshape", ["x", "aside"], "y")],
    "rows lost": [("Reshape", ["x", "flat"], "y")],
    "allowzero": [("Reshape", ["x", "back"], "y", {"allowzero": 1})],
    "a cast": [("Cast", ["x"], "y", {"to": TensorProto.FLOAT16})],
    "integers that go out": [("QuantizeLinear", ["x", "s", "z"], "y")],
    "a rectifier of integers": [
        ("QuantizeLinear", ["x", "s", "i8"], "q"), ("Relu", ["q"], "r"), ("DequantizeLinear", ["r", "s", "i8"], "y"),
    ],
    "a sum of integers": [
        ("QuantizeLinear", ["x", "s", "z"], "q"), ("Add", ["q", "q"], "r"), ("DequantizeLinear", ["r", "s", "z"], "y"),
    ],
    "integers of 32 bits": [("QuantizeLinear", ["x", "s", "i32"], "q"), ("DequantizeLinear", ["q", "s", "i32"], "y")],
    "another scale behind": [("QuantizeLinear", ["x", "s", "z"], "q"), ("DequantizeLinear", ["q", "s", "i8"], "y")],
    "scales by axis": [("QuantizeLinear", ["x", "s3", "z"], "q"), ("DequantizeLinear", ["q", "s3", "z"], "y")],
    "blocks": [("DequantizeLinear", ["z", "s", "z"], "d", {"block_size": 2}), ("Add", ["x", "d"], "y")],
    "limits that cross": [("Clip", ["x", "s", "neg"], "y")],
    "a steep leak": [("LeakyRelu", ["x"], "y", {"alpha": 2.0})],
    "a pool of flat rows": [("MaxPool", ["x"], "y", {"kernel_shape": [2]})],
    "a Softmax inside": [("Softmax", ["x"], "p"), ("MatMul", ["p", "w"], "y")],
    "a Softmax behind a Reshape": [
        ("MatMul", ["x", "w"], "l"), ("Reshape", ["l", "flat"], "r"), ("Softmax", ["r"], "y"),
    ],
}  # fmt: skip
IMAGES = {
    "rounded up": [("MaxPool", ["x"], "y", {"kernel_shape": [2, 2], "ceil_mode": 1})],
    "padded to the same size": [("AveragePool", ["x"], "y", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"})],
    "wrong groups": [("Conv", ["x", "k"], "y", {"group": 2})],
    "wrong channels": [("Conv", ["x", "k"], "y")],
    "a window of padding": [("MaxPool", ["x"], "y", {"kernel_shape": [1, 1], "pads": [1, 1, 1, 1]})],
    "a Softmax over channels alone": [("Softmax", ["x"], "y", {"axis": 1})],
}


@pytest.mark.parametrize("name", LACKING)
def test_such_a_graph_is_unknown(name: str) -> None:
    output = "l" if "Reshape" in name else "y"
    with pytest.raises(Lacks):
        read(model(LACKING[name]), output)


@pytest.mark.parametrize("name", IMAGES)
def test_such_an_image_net_is_unknown(name: str) -> None:
    output = "x" if "Softmax" in name else "y"
    with pytest.raises(Lacks):
        read(model(IMAGES[name], shape=(2, 2, 2)), output)


def test_old_operators_and_functions_are_unknown() -> None:
    nodes = [("MatMul", ["x", "w"], "y")]
    with pytest.raises(Lacks, match="before opset"):
        read(model(nodes, opset=11), "y")
    made = model(nodes)
    made.functions.append(helper.make_function("", "MatMul", ["a", "b"], ["c"], [], []))
    with pytest.raises(Lacks, match="functions"):
        read(made, "y")
    with pytest.raises(Lacks, match=r"com\.example\.MatMul"):
        read(model(nodes, domain="com.example"), "y")


def test_two_inputs_or_varying_ones_are_unknown() -> None:
    made = model([("MatMul", ["x", "w"], "y")])
    made.graph.input.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["rows", 4]))
    with pytest.raises(Lacks, match="one float32 input"):
        read(made, "y")
    with pytest.raises(Lacks, match="one float32 input"):
        read(model([("Relu", ["x"], "y")], shape=("n",)), "y")


def test_an_inner_tensor_is_wrong() -> None:
    with pytest.raises(Wrong, match="no output"):
        read(model([("Relu", ["x"], "r"), ("MatMul", ["r", "w"], "y")]), "r")


LINEAR = {
    "Gemm": [("Gemm", ["x", "w", "s3"], "y", {"alpha": 2.0, "beta": 0.5})],
    "constants": [("Mul", ["w", "s3"], "v"), ("Transpose", ["v"], "t"), ("Gemm", ["x", "t"], "y", {"transB": 1})],
    "moved": [("Reshape", ["x", "back"], "a"), ("Transpose", ["a"], "b", {"perm": [0, 2, 1]}), ("Flatten", ["b"], "y")],
    "joined": [("Sub", ["s", "x"], "a"), ("Concat", ["x", "a"], "b", {"axis": -1}), ("Div", ["b", "s"], "y")],
    "normalized": [("BatchNormalization", ["x", "n1", "n2", "n3", "n4"], "y", {"epsilon": 0.01})],
    "plain attributes": [("Reshape", ["x", "plain"], "a", {"allowzero": 0}), ("MatMul", ["a", "w"], "y")],
}


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_read_is_what_the_reference_computes(name: str) -> None:
    made = model(LINEAR[name])
    values = np.random.default_rng(1).random((4, 4)).astype(np.float32)
    made.graph.initializer.extend(numpy_helper.from_array(each, f"n{i}") for i, each in enumerate(values, 1))
    x = np.array([[0.5, -1.25, 3.0, 0.125]], np.float32)
    wanted = ReferenceEvaluator(made).run(None, {"x": x})[0].ravel()
    assert np.allclose(value_of(read(made, "y"), x[0]), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hidden", ["Identity", "Reshape"])
def test_probabilities_are_not_taken_for_logits(tmp_path: Path, hidden: str) -> None:
    """A softmax of probabilities changes less than they do: the claim must not shrink behind an Identity."""
    more = ["plain1"] if hidden == "Reshape" else []
    plain, changed = (
        model([("MatMul", ["x", "w"], "l"), ("Sigmoid", ["l"], "p"), (hidden, ["p", *more], "y")]) for _ in range(2)
    )
    for each, shift in ((plain, 0.0), (changed, 0.125)):
        weights = next(one for one in each.graph.initializer if one.name == "w")
        weights.CopyFrom(numpy_helper.from_array(FLOATS["w"] * np.float32(1 - shift), "w"))
        each.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3], np.int64), "plain1"))
    low = np.array([0.5, 0.5, 0.5, 0.5], np.float32)
    pair = Pair("p", plain, changed, low, low + np.float32(1e-3))
    bounds = [checker.check(written(tmp_path, pair, quantity)).bound for quantity in ("raw", "softmax")]
    assert bounds[0] == bounds[1] and bounds[0]


def test_external_weights_are_part_of_the_hash(tmp_path: Path) -> None:
    made, path = model([("MatMul", ["x", "w"], "y")]), tmp_path / "model.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="weights", size_threshold=0)
    found, before = load(path)
    assert value_of(read(found, "y"), np.ones(4, np.float32)) == FLOATS["w"].sum(0).tolist()
    raw = bytearray((tmp_path / "weights").read_bytes())
    raw[3] ^= 1
    (tmp_path / "weights").write_bytes(raw)
    assert load(path)[1] != before
    (tmp_path / "weights").unlink()
    with pytest.raises(Wrong, match="cannot be read"):
        load(path)


def test_the_rounding_of_floats_is_counted(tmp_path: Path) -> None:
    """The same sum in one part and in two: in real numbers there is no difference, in the runtime there is."""
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((64, 8)).astype(np.float32)
    mask = rng.random((64, 8)) < 0.5
    whole = model([("MatMul", ["x", "all"], "y")], shape=(64,))
    parts = model([("MatMul", ["x", "a"], "p"), ("MatMul", ["x", "b"], "q"), ("Add", ["p", "q"], "y")], shape=(64,))
    named = {"all": weights, "a": weights * mask, "b": weights * ~mask}
    for each in (whole, parts):
        each.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in named.items())
    pair = Pair("rounding", whole, parts, np.full(64, -1, np.float32), np.full(64, 1, np.float32))
    certificate = json.loads(written(tmp_path, pair).read_text())
    x = rng.uniform(-1, 1, (2000, 64)).astype(np.float32)
    answers = [session(each).run(None, {"x": x})[0].astype(float) for each in (whole, parts)]
    leaf = certificate["regions"][0]["tree"]
    assert float.fromhex(leaf["bound_real"]) < np.abs(answers[0] - answers[1]).max() <= float.fromhex(leaf["bound"])
