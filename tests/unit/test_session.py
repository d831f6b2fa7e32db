from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from infra import demo_models
from kernels.outcome import outcome
from kernels.repository import load_model
from kernels.session import KernelError, Session, best_rows
from kernels.spec import ModelSpec
from tests import nets


def session(tmp_path: Path, build: Callable[[Path], object], text: str = "") -> Session:
    build(tmp_path / "m/1/model.onnx")
    (tmp_path / "m/1/model.toml").write_text(text)
    return Session(load_model(tmp_path, "m", "1"))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def test_rows_in_rows_out_whatever_the_batch(tmp_path: Path) -> None:
    run = session(tmp_path, nets.mlp).run
    features = normal(7, 30)
    together = run({"features": features})["probabilities"]
    assert together.shape == (7, 2)
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-5)
    for row in range(7):
        alone = run({"features": features[row : row + 1]})["probabilities"][0]
        np.testing.assert_allclose(alone, together[row], rtol=1e-5)


@pytest.mark.parametrize("classes", [(0, 1, 2), ("setosa", "versicolor", "virginica")])
def test_zipmap_becomes_the_matrix_that_it_wraps(tmp_path: Path, classes: tuple[Any, ...]) -> None:
    found = session(tmp_path, lambda path: nets.classifier(path, classes=classes)).run({"features": normal(5, 4)})
    assert found["probabilities"].shape == (5, 3)
    assert found["probabilities"].dtype == np.float32
    assert found["label"].tolist() == [classes[place] for place in found["probabilities"].argmax(axis=1)]


def test_zipmap_with_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    path = nets.classifier(tmp_path / "m/1/model.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 4), 2, np.float32), "twice"))
    model.graph.node.insert(0, helper.make_node("Mul", ["features", "twice"], ["doubled"]))
    model.graph.node[1].input[0] = "doubled"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    spec = load_model(tmp_path, "m", "1")
    assert (spec.zipmap, spec.external) == (True, ("weights",))
    found = Session(spec).run({"features": normal(3, 4)})["probabilities"]
    expected = session(tmp_path / "plain", nets.classifier).run({"features": 2 * normal(3, 4)})["probabilities"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_strings_go_in_and_come_out(tmp_path: Path) -> None:
    run = session(tmp_path, nets.strings).run
    expected = {"value": [[1.0], [2.0], [0.0]], "name": [["red"], ["green"], ["other"]]}
    for items in (["red", "green", "blü"], [b"red", b"green", "blü".encode()]):
        found = run({"colour": np.array(items, object).reshape(3, 1)})
        assert {name: each.tolist() for name, each in found.items()} == expected
    with pytest.raises(KernelError, match="UTF-8"):
        run({"colour": np.array([[b"\xff"]], object)})


def test_padding_leaves_the_pooled_answer(tmp_path: Path) -> None:
    run = session(tmp_path, nets.sequence, "buckets = [8]").run
    ids, mask = np.arange(10).reshape(2, 5), np.ones((2, 5), np.int64)
    padding = ((0, 0), (0, 3))
    short = run({"ids": ids, "mask": mask})
    padded = run({"ids": np.pad(ids, padding), "mask": np.pad(mask, padding)})
    np.testing.assert_allclose(padded["pooled"], short["pooled"], rtol=1e-5)
    np.testing.assert_allclose(padded["tokens"][:, :5], short["tokens"], rtol=1e-5)


@pytest.mark.parametrize("fixed", [1, 4])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_a_fixed_first_dimension_is_cut_and_filled_up(tmp_path: Path, fixed: int, rows: int) -> None:
    def build(path: Path) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
        shape = (TensorProto.FLOAT, [fixed, 3])
        nets.save(path, nodes, {"x": shape}, {"y": shape})

    loaded = session(tmp_path, build)
    x = normal(rows, 3)
    np.testing.assert_array_equal(loaded.run({"x": x})["y"], np.maximum(x, 0))
    loaded.warm()
    assert loaded.profile(0.01).best_rows == fixed


def test_an_image_net_takes_bytes(tmp_path: Path) -> None:
    loaded = session(tmp_path, lambda path: nets.resnet50(path, image=32))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = loaded.run({"pixels": pixels})["probabilities"]
    assert found.shape == (2, 1000)
    assert np.isfinite(found).all()


def test_errors_of_a_run_are_short(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = session(tmp_path, nets.sequence).run
    with pytest.raises(KernelError, match="indices element out of data bounds, idx=5000") as err:
        run({"ids": np.full((1, 2), 5000), "mask": np.ones((1, 2), np.int64)})
    assert "\n" not in str(err.value)
    assert len(str(err.value)) <= 300
    with pytest.raises(KernelError, match="missing"):
        run({"ids": np.ones((1, 2), np.int64)})
    assert capfd.readouterr().err == ""


def test_a_graph_that_loses_rows_is_refused(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)]
        shape = (TensorProto.FLOAT, ["rows", 3])
        nets.save(path, nodes, {"x": shape}, {"y": (TensorProto.FLOAT, ["n", 1])})

    with pytest.raises(KernelError, match=r"output 'y' has shape \[1, 1\] for 2 rows"):
        session(tmp_path, build).warm()


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 4),
        ({1: 1.0, 2: 1.0, 4: 1.95}, 2),
        ({1: 8.4, 16: 56.1, 128: 934.0}, 16),
    ],
)
def test_the_best_size_is_the_smallest_near_the_best_rate(seconds: dict[int, float], best: int) -> None:
    assert best_rows(seconds) == best


def test_profile_of_boosted_trees_keeps_its_budget(tmp_path: Path) -> None:
    loaded = session(tmp_path, nets.boosted_trees)
    began = time.perf_counter()
    profile = loaded.profile(0.3)
    assert time.perf_counter() - began < 3
    assert list(profile.seconds) == [1 << power for power in range(len(profile.seconds))]
    rates = {rows: rows / took for rows, took in profile.seconds.items()}
    assert rates[profile.best_rows] >= 0.95 * max(rates.values())


def test_profile_of_strings_and_sequences(tmp_path: Path) -> None:
    assert session(tmp_path / "a", nets.strings).profile(0.05).best_rows >= 1
    assert session(tmp_path / "b", nets.sequence, "buckets = [4, 8]").profile(0.05).best_rows >= 1


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec("m", "1", "", "", (), (), **changes)


Case = tuple[str, ModelSpec, dict[str, np.ndarray]]


def cases(rows: int) -> list[Case]:
    rng = np.random.default_rng(rows)
    wide = rng.standard_normal((rows, 3)).astype(np.float32)
    one = rng.random((rows, 1)).astype(np.float32)
    wide[rng.random(rows) < 0.1, 1] = np.nan
    one[rng.random(rows) < 0.1] = np.nan
    label = rng.integers(1, 3, rows)
    words = np.array(["no", "yes"], object)[label - 1]
    both = ("p", 1)
    return [
        ("nothing", spec(), {"p": wide}),
        ("widest", spec(score=("p", None), decision="p"), {"p": wide}),
        ("widest named", spec(score=("p", None), decision="p", labels=("a", "b", "c")), {"p": wide}),
        ("value", spec(score=("p", None)), {"p": one}),
        ("threshold", spec(score=("p", None), threshold=0.5), {"p": one}),
        ("threshold named", spec(score=("p", None), threshold=0.5, labels=("low", "high")), {"p": one}),
        ("label", spec(score=both, decision="l"), {"l": label, "p": wide}),
        ("label named", spec(score=both, decision="l", classes=(1, 2), labels=("x", "y")), {"l": label, "p": wide}),
        ("words", spec(score=both, decision="l"), {"l": words[:, None], "p": wide}),
        ("flag", spec(decision="l"), {"l": label > 1}),
        ("tokens", spec(score=("p", None)), {"p": wide.reshape(rows, 3, 1)}),
    ]


def slow(spec: ModelSpec, outputs: dict[str, np.ndarray], start: int, rows: int) -> tuple[float, str | None]:
    """One request, a row at a time."""
    scores, found = [], []
    for row in range(start, start + rows):
        score = float("nan")
        if spec.score:
            values = outputs[spec.score[0]][row].reshape(-1)
            score = float(
                max(values, key=lambda v: (np.isnan(v), v)) if spec.score[1] is None else values[spec.score[1]]
            )
        scores.append(score)
        found.append(slow_decision(spec, outputs, row, score))
    return float(np.mean(scores)), found[0] if len(set(found)) == 1 else None


def slow_decision(spec: ModelSpec, outputs: dict[str, np.ndarray], row: int, score: float) -> str | None:
    if spec.threshold is not None:
        return None if np.isnan(score) else (spec.labels or ("0", "1"))[int(score >= spec.threshold)]
    if spec.decision is None:
        return None
    values = outputs[spec.decision][row].reshape(-1)
    if values.dtype.kind == "f":
        place = int(np.argmax(values))
        return None if np.isnan(values).any() else (spec.labels or ("0", "1", "2"))[place]
    if values.dtype.kind == "O":
        return str(values[0])
    value = int(values[0])
    return spec.labels[spec.classes.index(value)] if spec.labels and spec.classes else str(value)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.booleans())
def test_outcome_equals_the_slow_one(rows: list[int], gap: bool) -> None:
    counts = np.array(rows, np.int32)
    starts = np.cumsum(counts, dtype=np.int64) - counts + (2 if gap else 0)
    for name, spec, outputs in cases(int(counts.sum()) + (3 if gap else 0)):
        score, codes, words = outcome(spec, outputs, starts, counts)
        assert (score.dtype, codes.dtype) == (np.float64, np.int32)
        for i, (start, count) in enumerate(zip(starts.tolist(), rows, strict=True)):
            expected, decision = slow(spec, outputs, start, count)
            np.testing.assert_allclose(score[i], expected, rtol=1e-6, err_msg=name)
            assert (words[codes[i]] if codes[i] >= 0 else None) == decision, name


def test_outcome_of_no_requests() -> None:
    empty = np.empty(0, np.int64)
    score, codes, words = outcome(spec(score=("p", None)), {"p": np.empty((0, 1))}, empty, empty.astype(np.int32))
    assert (len(score), len(codes), words) == (0, 0, [])


def test_a_class_without_a_label_is_its_number() -> None:
    labelled = spec(decision="l", labels=("a", "b"))
    one = np.ones(2, np.int32)
    _, codes, words = outcome(labelled, {"l": np.array([1, 7])}, np.arange(2), one)
    assert [words[code] for code in codes] == ["b", "7"]


def test_the_demo_classifier_of_words_runs(tmp_path: Path) -> None:
    demo_models.train(tmp_path)
    loaded = Session(load_model(tmp_path, "iris", "1"))
    features = demo_models.rows(tmp_path, "iris").features
    found = loaded.run({demo_models.INPUT: features})
    n = len(features)
    score, codes, words = outcome(loaded.spec, found, np.arange(n), np.ones(n, np.int32))
    assert set(words) == {"setosa", "versicolor", "virginica"}
    assert np.mean([words[code] for code in codes[:50]] == np.repeat("setosa", 50)) > 0.9
    assert ((score > 1 / 3) & (score <= 1)).all()
