"""The prover from end to end: two files and boxes in, verdicts out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from kernels.proof.ir import BadProblem
from kernels.proof.outputs import softmax
from kernels.proof.verify import verify
from lrai import app

F64 = npt.NDArray[np.float64]
RNG = np.random.default_rng(3)
WEIGHTS = [(RNG.standard_normal((a, b)) * (2 / a) ** 0.5, RNG.standard_normal(b) * 0.1) for a, b in ((4, 12), (12, 3))]


def net(
    path: Path, change: Any = lambda w: w, ending: str = "", scales: tuple[float, ...] = (), op: str = "Relu",
    features: int = 4, rows: str | int = "rows",
) -> Path:  # fmt: skip
    """A net of two layers whose weights went through `change`; with `scales` it quantizes as int8 files do."""
    nodes, weights = [], []

    def constant(name: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def rounded(name: str, step: float, zero: int) -> str:
        given = [constant(f"{name}_s", np.float32(step)), constant(f"{name}_z", np.uint8(zero))]
        nodes.append(helper.make_node("QuantizeLinear", [name, *given], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *given], [f"{name}_d"]))
        return f"{name}_d"

    name = rounded("x", scales[0], 128) if scales else "x"
    for at, (w, b) in enumerate(WEIGHTS):
        w = np.resize(w, (features, w.shape[1])) if at == 0 else w
        if scales:
            step = np.float32(np.abs(w).max() / 127)
            kernel = constant(f"w{at}_q", np.rint(w.T / step).astype(np.int8)), constant(f"w{at}_s", step)
            bias_step = np.float32(np.float32(scales[at]) * step)
            bias = constant(f"b{at}_q", np.rint(b / bias_step).astype(np.int32)), constant(f"b{at}_s", bias_step)
            for letter, each in (("w", kernel), ("b", bias)):
                nodes.append(helper.make_node("DequantizeLinear", each, [f"{letter}{at}"]))
        else:
            constant(f"w{at}", np.ascontiguousarray(change(w).T, np.float32))
            constant(f"b{at}", np.asarray(change(b), np.float32))
        nodes.append(helper.make_node("Gemm", [name, f"w{at}", f"b{at}"], [f"g{at}"], transB=1))
        name = f"g{at}"
        if at == 0:
            nodes.append(helper.make_node(op, [name], ["h"]))
            name = rounded("h", scales[1], 0) if scales else "h"
    nodes.append(helper.make_node(ending or "Identity", [name], ["y"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, k]) for n, k in (("x", features), ("y", 3))]
    graph = helper.make_graph(nodes, "net", [ends[0]], [ends[1]], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def halves(w: F64) -> F64:
    return w.astype(np.float16).astype(np.float64)


def answers(path: Path, x: F64) -> F64:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.astype(np.float32)})[0], np.float64)


def boxes(radius: float, tasks: int = 4) -> tuple[F64, F64]:
    centers = np.random.default_rng(5).uniform(-1, 1, (tasks, 4))
    return centers - radius, centers + radius


@pytest.mark.parametrize("ending", ["", "Softmax"])
@pytest.mark.parametrize("quantity", ["raw", "softmax"])
def test_a_bound_holds_at_every_point_and_is_near(tmp_path: Path, ending: str, quantity: Any) -> None:
    a, b = net(tmp_path / "a.onnx", ending=ending), net(tmp_path / "b.onnx", halves, ending)
    low, high = boxes(0.2)
    found = verify(a, b, low, high, 0.05, quantity, 20)
    assert [each.verdict for each in found.outcomes] == ["PROVED"] * 4
    assert found.exit_code == 0
    if ending and quantity == "raw":
        return  # the logits are no output of the file
    for each, least, most in zip(found.outcomes, low, high, strict=True):
        x = np.random.default_rng(0).uniform(least, most, (2000, 4))
        values = [answers(path, x) for path in (a, b)]
        if not ending and quantity == "softmax":
            values = [softmax(value) for value in values]
        seen = np.abs(values[1] - values[0]).max()
        assert seen <= each.bound <= 0.05
        assert each.real <= each.bound < 40 * seen + 1e-4


@pytest.mark.parametrize("quantity", ["raw", "softmax", "label"])
def test_a_refutation_is_shown_by_the_runtime(tmp_path: Path, quantity: Any) -> None:
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", lambda w: np.rint(w * 2) / 2)
    low, high = boxes(1.0)
    found = verify(a, b, low, high, 0.05, quantity, 3)
    assert found.exit_code == 1
    refuted = [(at, each) for at, each in enumerate(found.outcomes) if each.verdict == "REFUTED"]
    for at, each in refuted:
        assert each.x is not None and each.x.dtype == np.float32
        assert (each.x >= low[at]).all() and (each.x <= high[at]).all()
        first, second = (answers(path, each.x[None].astype(np.float64)) for path in (a, b))
        if quantity == "label":
            assert first.argmax() != second.argmax()
        elif quantity == "softmax":
            assert np.abs(softmax(second) - softmax(first)).max() > 0.05
        else:
            assert np.abs(second - first).max() > 0.05


def test_integers_are_bounded_as_the_runtime_computes_them(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", scales=(2 / 127, 4 / 255))
    low, high = boxes(0.1)
    found = verify(a, b, low, high, 1.0, "raw", 20)
    assert not found.question.semantics["notes"]
    assert [each.verdict for each in found.outcomes] == ["PROVED"] * 4
    for each, least, most in zip(found.outcomes, low, high, strict=True):
        x = np.random.default_rng(0).uniform(least, most, (5000, 4))
        assert np.abs(answers(b, x) - answers(a, x)).max() <= each.bound


def test_saturation_is_part_of_the_bound(tmp_path: Path) -> None:
    """A clip that is far too small: inputs are cut at 0.127."""
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", scales=(0.001, 4 / 255))
    found = verify(a, b, *boxes(0.1), 0.05, "raw", 20)
    assert {each.verdict for each in found.outcomes} == {"REFUTED"}


def test_equal_models_are_proved_at_the_size_of_rounding(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx")
    found = verify(a, b, *boxes(0.5), 1e-4, "raw", 20)
    assert all(each.verdict == "PROVED" and each.real < 2e-5 for each in found.outcomes)


def test_real_arithmetic_says_so(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx")
    found = verify(a, b, *boxes(0.5), 1e-9, "raw", 20, floats=False)
    assert all(each.verdict == "PROVED" for each in found.outcomes)
    assert found.as_dict()["semantics"]["arithmetic"] == "real"


def test_an_unknown_operator_is_named_and_tested(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx", op="Sin"), net(tmp_path / "b.onnx", halves, op="Sin")
    found = verify(a, b, *boxes(0.1), 0.5, "raw", 1)
    task = found.as_dict()["tasks"][0]
    assert found.exit_code == 2
    assert task["verdict"] == "UNKNOWN" and "Sin" in task["reason"]
    assert task["statistical"]["hits"] == 0 < task["statistical"]["tests"]


def rounds_its_answers(path: Path) -> Path:
    """The same net with its probabilities in 8 bits, as ONNX Runtime's quantizer leaves them."""
    model = onnx.load(net(path, ending="Softmax"))
    model.graph.node[-1].output[0] = "p"
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(1 / 255), "p_s"), numpy_helper.from_array(np.uint8(0), "p_z")]
    )
    model.graph.node.append(helper.make_node("QuantizeLinear", ["p", "p_s", "p_z"], ["p_q"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["p_q", "p_s", "p_z"], ["y"]))
    onnx.save(model, path)
    return path


def test_probabilities_that_one_model_rounds(tmp_path: Path) -> None:
    """Logits are before the Softmax of both and are proved; the rounded answers are tested."""
    a, b = net(tmp_path / "a.onnx", ending="Softmax"), rounds_its_answers(tmp_path / "b.onnx")
    low, high = boxes(0.1)
    assert verify(a, b, low, high, 1e-3, "raw").exit_code == 0
    coarse = verify(a, b, low, high, 0.1, "softmax", 3).as_dict()["tasks"][0]
    assert coarse["verdict"] == "UNKNOWN" and 0 < coarse["seen"] <= 0.5 / 255 + 1e-6
    assert verify(a, b, low, high, 1e-5, "softmax", 3).exit_code == 1
    with pytest.raises(BadProblem, match="one model ends in softmax"):
        verify(a, net(tmp_path / "c.onnx"), low, high, 0.1, "softmax")


def test_a_model_that_answers_nan_is_refuted(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", lambda w: w * 1e38)
    found = verify(a, b, *boxes(0.5), 0.5, "raw", 20)
    assert {each.verdict for each in found.outcomes} == {"REFUTED"}
    json.dumps(found.as_dict(), allow_nan=False)


def test_overflow_that_is_not_seen_is_not_proved(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx", lambda w: w * 1e20), net(tmp_path / "b.onnx", lambda w: w * 1e20)
    found = verify(a, b, *boxes(0.5), 1e30, "raw", 1)
    assert "PROVED" not in {each.verdict for each in found.outcomes}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda low, high: (high + 1, low), "empty"),
        (lambda low, high: (low * np.nan, high), "NaN"),
        (lambda low, high: (low, high + np.inf), "infinity"),
        (lambda low, high: (low[:, :3], high[:, :3]), "3 features"),
        (lambda low, high: (low, high + 1e39), "float32"),
    ],
)
def test_bad_boxes_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", halves)
    with pytest.raises(BadProblem, match=said):
        verify(a, b, *change(*boxes(0.1)), 0.1)


def test_models_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a, other = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", features=5)
    with pytest.raises(BadProblem, match="different inputs"):
        verify(a, other, *boxes(0.1), 0.1)
    (tmp_path / "broken.onnx").write_bytes(a.read_bytes()[:300])
    with pytest.raises(BadProblem, match="no ONNX model"):
        verify(a, tmp_path / "broken.onnx", *boxes(0.1), 0.1)
    with pytest.raises(BadProblem, match="epsilon"):
        verify(a, a, *boxes(0.1), float("nan"))


def test_the_command_answers_with_json_and_an_exit_code(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", halves)
    low, high = boxes(0.1, 2)
    np.savez(tmp_path / "box.npz", low=low, high=high)
    np.savez(tmp_path / "ball.npz", center=(low + high) / 2, radius=np.float64(0.1))
    named = ["verify", "--original", str(a), "--variant", str(b), "--output", "raw", "--json"]
    for file in ("box.npz", "ball.npz"):
        ran = CliRunner().invoke(app, [*named, "--box", str(tmp_path / file), "--epsilon", "0.05"])
        assert ran.exit_code == 0, ran.output
        found = json.loads(ran.stdout)
        assert [task["verdict"] for task in found["tasks"]] == ["PROVED", "PROVED"]
        assert all(task["seen"] <= task["bound"] for task in found["tasks"])
    ran = CliRunner().invoke(app, [*named, "--box", str(tmp_path / "box.npz"), "--epsilon", "1e-9", "--timeout", "3"])
    assert ran.exit_code == 1
    assert len(json.loads(ran.stdout)["tasks"][0]["x"]) == 4
    ran = CliRunner().invoke(app, [*named, "--box", str(tmp_path / "none.npz")])
    assert isinstance(ran.exception, BadProblem) and ran.exception.exit_code == 3


def test_a_batch_that_the_graph_fixes_is_filled_up(tmp_path: Path) -> None:
    a, b = net(tmp_path / "a.onnx", rows=1), net(tmp_path / "b.onnx", halves, rows=1)
    found = verify(a, b, *boxes(0.1), 0.05, "raw", 20)
    assert found.exit_code == 0
