"""Every operator that the prover reads, against the runtime; tree ensembles; what the runtime rewrites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kernels.proof.ir import BadProblem
from kernels.proof.lower import Lowering, load
from kernels.proof.question import ask
from kernels.proof.runtime import Model, Options
from kernels.proof.verify import verify
from tests.nets import Builder

Make = Callable[[Builder, str], str]
F32 = np.float32


def model(path: Path, make: Make, shape: tuple[int, ...], seed: int = 0, opset: int = 17) -> Path:
    """The graph that `make` builds on the input."""
    builder = Builder(seed)
    made = make(builder, "x")
    builder.node("Identity", made, out="y")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in
            (("x", ["rows", *shape]), ("y", None))]  # fmt: skip
    graph = helper.make_graph(builder.nodes, "net", ends[:1], ends[1:], builder.weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def vector(*values: Any, dtype: Any = np.int64) -> Any:
    return np.array(values, dtype)


IMAGE = (2, 6, 6)
OPERATORS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "dense": (lambda b, x: b.dense(x, 4, 3), (4,)),
    "gemm": (
        lambda b, x: b.node("Gemm", x, b.normal(3, 4, scale=1), b.normal(3, scale=1), transB=1, alpha=0.5, beta=2.0),
        (4,),
    ),
    "rows_of_words": (lambda b, x: b.node("MatMul", x, b.normal(4, 3, scale=1)), (5, 4)),
    "arithmetic": (
        lambda b, x: b.node(
            "Div", b.node("Sub", b.weight(F32([1.0])), b.node("Mul", x, b.normal(4, scale=1))), b.weight(F32([3.0]))
        ),
        (4,),
    ),
    "branches": (lambda b, x: b.node("Add", b.dense(x, 4, 3), b.node("Relu", b.dense(x, 4, 3))), (4,)),
    "max": (lambda b, x: b.node("Max", b.dense(x, 4, 3), b.dense(x, 4, 3)), (4,)),
    "concat": (lambda b, x: b.node("Concat", b.dense(x, 4, 2), x, axis=-1), (4,)),
    "clip": (lambda b, x: b.node("Clip", b.dense(x, 4, 3), b.weight(F32(-0.2)), b.weight(F32(0.3))), (4,)),
    "leaky": (lambda b, x: b.node("LeakyRelu", b.dense(x, 4, 3), alpha=0.2), (4,)),
    "sigmoid": (lambda b, x: b.node("Sigmoid", b.dense(x, 4, 3)), (4,)),
    "tanh": (lambda b, x: b.node("Tanh", b.dense(x, 4, 3)), (4,)),
    "conv": (
        lambda b, x: b.node(
            "Conv",
            x,
            b.normal(4, 1, 3, 2, scale=1),
            b.normal(4, scale=1),
            group=2,
            strides=[2, 1],
            pads=[1, 0, 0, 1],
            dilations=[1, 2],
        ),
        IMAGE,
    ),
    "same": (
        lambda b, x: b.node("Conv", x, b.normal(2, 2, 3, 3, scale=1), auto_pad="SAME_UPPER", strides=[2, 2]),
        IMAGE,
    ),
    "line": (lambda b, x: b.node("Conv", x, b.normal(3, 2, 3, scale=1), pads=[1, 1]), (2, 7)),
    "norm": (
        lambda b, x: b.node("BatchNormalization", x, *(b.weight(F32(v)) for v in ([1, 2], [0, 1], [0.5, -1], [1, 4]))),
        IMAGE,
    ),
    "max_pool": (lambda b, x: b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), IMAGE),
    "average": (lambda b, x: b.node("AveragePool", x, kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 0, 1]), IMAGE),
    "padded": (
        lambda b, x: b.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        IMAGE,
    ),
    "global": (lambda b, x: b.node("Flatten", b.node("GlobalAveragePool", x)), IMAGE),
    "shapes": (
        lambda b, x: b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.weight(vector(0, -1, 4))),
        IMAGE,
    ),
    "slices": (
        lambda b, x: b.node(
            "Slice", x, b.weight(vector(1, 5)), b.weight(vector(2, -7)), b.weight(vector(1, 3)), b.weight(vector(1, -2))
        ),
        IMAGE,
    ),
    "gather": (lambda b, x: b.node("Gather", x, b.weight(vector(3, 0, 3)), axis=2), IMAGE),
    "squeezed": (
        lambda b, x: b.node("Squeeze", b.node("Unsqueeze", x, b.weight(vector(1))), b.weight(vector(1))),
        (4,),
    ),
    "folded": (lambda b, x: b.node("MatMul", x, b.node("Cast", b.weight(np.ones((4, 3), np.float16)), to=1)), (4,)),
    "quantized": (
        lambda b, x: b.node(
            "DequantizeLinear", b.node("QuantizeLinear", x, *(s := (b.weight(F32(0.1)), b.weight(np.uint8(7))))), *s
        ),
        (4,),
    ),
    "scaler": (
        lambda b, x: b.node("Scaler", x, domain="ai.onnx.ml", offset=[1.0, 2.0, 0.0, 0.5], scale=[2.0, 1.0, 0.1, 3.0]),
        (4,),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_read_as_the_runtime_computes_it(tmp_path: Path, name: str) -> None:
    make, shape = OPERATORS[name]
    path = model(tmp_path / "a.onnx", make, shape)
    state = Lowering(load(path))
    state.tensor("y")
    state.net.output = "y"
    x = np.random.default_rng(1).uniform(-2, 2, (64, int(np.prod(shape)))).astype(F32)
    answers = Model(load(path), "y", Options()).run(x)
    np.testing.assert_allclose(state.net.run(x.astype(np.float64)), answers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_bound_through_an_operator_holds(tmp_path: Path, name: str) -> None:
    """Other weights (where there are any): the bound holds, and is tight where the net is linear."""
    make, shape = OPERATORS[name]
    a, b = model(tmp_path / "a.onnx", make, shape), model(tmp_path / "b.onnx", make, shape, seed=1)
    center = np.random.default_rng(2).uniform(-1, 1, (2, int(np.prod(shape))))
    found = verify(a, b, center - 0.1, center + 0.1, 100.0, "raw", 10)
    assert found.exit_code == 0
    x = np.random.default_rng(3).uniform(-0.1, 0.1, (2000, center.shape[1]))
    for at, outcome in enumerate(found.outcomes):
        seen = found.question.replay((center[at] + x).astype(F32)).max()
        assert seen <= outcome.bound <= 3 * seen + 0.5


INTEGERS: dict[str, Make] = {
    "relu": lambda b, q: b.node("Relu", q),
    "max": lambda b, q: b.node("Max", q, q),
    "concat": lambda b, q: b.node("Concat", q, q, axis=-1),
    "transpose": lambda b, q: b.node("Transpose", q, perm=[0, 2, 1]),
    "maxpool": lambda b, q: b.node("MaxPool", q, kernel_shape=[2]),
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("zero", [np.int8(0), np.int8(-10), np.int8(90)])
def test_no_bound_of_an_operator_on_integers_is_too_small(tmp_path: Path, name: str, zero: np.int8) -> None:
    """They stand for other numbers: Relu cuts at 0, not at the zero point. Proved rightly, or not at all."""

    def quantized(b: Builder, x: str) -> str:
        pair = b.weight(F32(0.1)), b.weight(np.array(zero))
        return b.node("DequantizeLinear", INTEGERS[name](b, b.node("QuantizeLinear", x, *pair)), *pair)

    original = model(tmp_path / "a.onnx", INTEGERS[name], (2, 4), opset=21)
    variant = model(tmp_path / "b.onnx", quantized, (2, 4), opset=21)
    low, high = np.full((1, 8), -1.0), np.full((1, 8), 2.0)
    (outcome,) = verify(original, variant, low, high, 0.2, "raw", 5.0, statistics=False).outcomes
    x = np.random.default_rng(4).uniform(-1, 2, (2000, 8)).astype(F32)
    try:
        answers = [Model(load(path), "y", Options()).run(x) for path in (original, variant)]
    except BadProblem:  # no kernel of the runtime takes them
        assert outcome.verdict == "UNKNOWN"
        return
    assert outcome.verdict != "PROVED" or np.abs(answers[0] - answers[1]).max() <= outcome.bound


def tree(path: Path, weights: tuple[float, ...], threshold: float = 0.5) -> Path:
    """x_0 <= threshold: the first leaf; else by x_1 <= -1 the second or the third."""

    def make(b: Builder, x: str) -> str:
        return b.node(
            "TreeEnsembleRegressor", x, domain="ai.onnx.ml", n_targets=1,
            nodes_treeids=[0] * 5, nodes_nodeids=[0, 1, 2, 3, 4], nodes_featureids=[0, 0, 1, 0, 0],
            nodes_values=[threshold, 0.0, -1.0, 0.0, 0.0], nodes_truenodeids=[1, 0, 3, 0, 0],
            nodes_falsenodeids=[2, 0, 4, 0, 0], nodes_modes=["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
            target_treeids=[0] * 3, target_nodeids=[1, 3, 4], target_ids=[0] * 3, target_weights=list(weights),
        )  # fmt: skip

    return model(path, make, (2,))


def test_trees_of_one_structure_differ_by_their_leaves(tmp_path: Path) -> None:
    a, b = tree(tmp_path / "a.onnx", (1.0, 2.0, 3.0)), tree(tmp_path / "b.onnx", (1.0, 2.25, 3.5))
    low, high = np.array([[-1.0, -2.0], [0.6, -2.0], [-1.0, -2.0]]), np.array([[0.5, 2.0], [2.0, -1.0], [2.0, 2.0]])
    found = verify(a, b, low, high, 1.0, "raw", 10)
    assert [round(each.bound, 4) for each in found.outcomes] == [0.0, 0.25, 0.5]
    assert found.exit_code == 0


def test_trees_of_other_thresholds_are_bounded_by_cutting(tmp_path: Path) -> None:
    a, b = tree(tmp_path / "a.onnx", (1.0, 2.0, 3.0)), tree(tmp_path / "b.onnx", (1.0, 2.0, 3.0), 0.75)
    low, high = np.array([[-1.0, 0.0], [0.8, 0.0]]), np.array([[2.0, 2.0], [2.0, 2.0]])
    found = verify(a, b, low, high, 0.1, "raw", 10)
    assert [each.verdict for each in found.outcomes] == ["REFUTED", "PROVED"]
    assert found.outcomes[0].x is not None and 0.5 < found.outcomes[0].x[0] <= 0.75


def test_weights_that_the_runtime_would_quantize_again_are_noted(tmp_path: Path) -> None:
    """A float product behind a quantizer: the default session quantizes its weights, the proof's session does not."""

    def make(b: Builder, x: str) -> str:
        given = b.weight(F32(2 / 255)), b.weight(np.uint8(128))
        x = b.node("DequantizeLinear", b.node("QuantizeLinear", x, *given), *given)
        return b.dense(x, 4, 3)

    a = model(tmp_path / "a.onnx", lambda b, x: b.dense(x, 4, 3), (4,))
    question = ask(a, model(tmp_path / "b.onnx", make, (4,)), "raw")
    assert question.served is not None
    assert "floats" in str(question.semantics["notes"])
    x = np.random.default_rng(0).uniform(-1, 1, (200, 4)).astype(F32)
    assert question.product is not None
    ours = question.product.variant.run(x.astype(np.float64))
    assert np.median(np.abs(question.sessions[1].run(x) - ours).max(1)) < 1e-5


def test_a_net_too_large_is_refused_before_the_work(tmp_path: Path) -> None:
    def make(b: Builder, x: str) -> str:
        return b.node("Flatten", b.node("Conv", x, b.normal(32, 32, 3, 3, scale=1), pads=[1, 1, 1, 1]))

    path = model(tmp_path / "a.onnx", make, (32, 96, 96))
    box = np.zeros((1, 32 * 96 * 96))
    with pytest.raises(BadProblem, match="too large"):
        verify(path, path, box, box, 0.1, "raw")


def test_the_softmax_of_one_output_says_nothing(tmp_path: Path) -> None:
    a = model(tmp_path / "a.onnx", lambda b, x: b.dense(x, 4, 1), (4,))
    b = model(tmp_path / "b.onnx", lambda b, x: b.dense(x, 4, 2), (4,))
    assert ask(a, a, "softmax").empty
    assert not ask(a, a, "raw").empty and not ask(b, b, "softmax").empty
