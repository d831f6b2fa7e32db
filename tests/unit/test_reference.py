"""reference.json: made from rows, checked when it is read, obeyed by who counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import lrai
from kernels import reference
from kernels.reference import BINS, FILE, BadReference, Reference, count, digest, edges_of
from kernels.repository import check, load_model, load_repository
from kernels.spec import ModelSpec, TensorSpec
from schemas.errors import BadSetting
from tests import nets
from tests.samples import spec

ROWS = np.random.default_rng(3).normal(size=(600, 3)).astype("f4")


def answer(group: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {"value": group["features"] * 2}


def model(**fields: Any) -> ModelSpec:
    return spec(score=("value", 1), **fields)


def test_a_reference_survives_its_file(tmp_path: Path) -> None:
    found = reference.make(model(), [{"features": ROWS[:400]}, {"features": ROWS[400:]}], answer)
    assert reference.read(tmp_path, model()) is None
    reference.write(tmp_path, found)
    assert reference.read(tmp_path, model()) == found
    assert found.features == ("features[0]", "features[1]", "features[2]", "score")
    assert found.histograms[3].sum == pytest.approx(2 * found.histograms[1].sum)
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


def test_continuous_features_fall_into_bins_of_about_equal_counts() -> None:
    found = reference.make(model(), [{"features": ROWS}], answer)
    for each in found.histograms:
        assert len(each.counts) == BINS
        assert max(each.counts) - min(each.counts) <= 2
        assert each.sha256 == digest(each.edges)


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([0.0, 1.0, 1.0], [0, 1, 2, 0]),
        ([5.0, 5.0, 5.0], [0, 3, 0]),
        ([np.nan, np.nan, 2.0], [0, 1, 0]),
        ([np.nan, np.nan, np.nan], [0, 0]),
        ([np.inf, -np.inf, 2.0], [1, 1, 1]),
    ],
)
def test_features_of_few_values_have_a_bin_each(values: list[float], counts: list[int]) -> None:
    found = edges_of(np.array(values))
    (own,), _, _, _ = count(np.array(values)[:, None], [found])
    assert own.tolist() == counts


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=60),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=8, unique=True),
)
def test_counting_is_that_of_a_plain_loop(values: list[float], edges: list[float]) -> None:
    edges = sorted(edges)
    (own,), missing, total, squares = count(np.array(values)[:, None], [np.array(edges)])
    plain = [0] * (len(edges) + 1)
    for each in values:
        if each == each:
            plain[sum(edge <= each for edge in edges)] += 1
    finite = [each for each in values if np.isfinite(each)]
    assert own.tolist() == plain
    assert missing[0] == sum(each != each for each in values)
    assert total[0] == pytest.approx(sum(finite), rel=1e-6, abs=1e-6 * max(map(abs, finite), default=0))
    assert squares[0] == pytest.approx(sum(each * each for each in finite), rel=1e-6)


def test_text_and_inputs_of_varying_width_have_no_histograms() -> None:
    inputs = (TensorSpec("words", "BYTES", (1,)), TensorSpec("ids", "INT64", ("seq",)), TensorSpec("age", "INT32", ()))
    found = reference.Columns(spec(inputs=inputs))
    assert found.names == ("age[0]",)
    assert found.take({"age": np.array([7, 9], "i4")}).tolist() == [[7.0], [9.0]]


def test_sums_too_large_for_a_double_are_the_largest(tmp_path: Path) -> None:
    huge = ROWS.astype("f8") * 1e200
    inputs = (TensorSpec("features", "FP64", (3,)),)
    reference.write(tmp_path, reference.make(model(inputs=inputs), [{"features": huge}], answer))
    found = reference.read(tmp_path, model(inputs=inputs))
    assert found is not None
    assert found.histograms[0].sum_squares > 1e308


def test_too_few_rows_or_nothing_to_watch() -> None:
    with pytest.raises(BadReference, match=r"29 rows are too few .* give at least 30"):
        reference.make(model(), [{"features": ROWS[:29]}], answer)
    bare = spec(inputs=(TensorSpec("words", "BYTES", (1,)),))
    with pytest.raises(BadReference, match="nothing to watch"):
        reference.make(bare, [{"words": np.full((40, 1), "a", object)}], lambda group: {"value": np.zeros((40, 1))})


def broken(change: str) -> Any:
    """The JSON of a good reference with one thing wrong."""
    found = json.loads(reference._READER.dump_json(reference.make(model(), [{"features": ROWS}], answer)))
    first = found["histograms"][0]
    if change == "edges":
        first["edges"][0] -= 1
    elif change == "order":
        first["edges"] = first["edges"][::-1]
    elif change == "infinite":
        first["edges"][-1] = 1e999
    elif change == "counts":
        first["counts"][0] += 1
    elif change == "feature":
        first["feature"] = "other[0]"
    elif change == "key":
        del found["rows"]
    elif change == "model":
        found["model_sha256"] = "0"
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("edges", "not those of its SHA-256"),
        ("order", "not finite and ascending"),
        ("infinite", "not finite and ascending"),
        ("counts", "not those of 600 rows"),
        ("feature", "it is about other\\[0\\]"),
        ("key", "rows: Field required"),
        ("model", "another model.onnx"),
    ],
)
def test_a_bad_reference_is_refused_with_its_fix(tmp_path: Path, change: str, message: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(broken(change)))
    with pytest.raises(BadReference, match=f"{message}.*; make it with `lrai reference"):
        reference.read(tmp_path, model())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_what_is_no_reference_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BadReference, match="lrai reference"):
        reference.read(tmp_path, model())


def test_the_command_makes_what_the_repository_checks(tmp_path: Path) -> None:
    folder = tmp_path / "models/net/1"
    nets.mlp(folder / "model.onnx", (5, 8, 2))
    rows = np.random.default_rng(0).normal(size=(200, 5)).astype("f4")
    np.save(tmp_path / "rows.npy", rows)
    command = ["reference", str(folder), "--from", str(tmp_path / "rows.npy")]
    done = CliRunner().invoke(lrai.app, command)
    assert (done.exit_code, "200 rows" in done.output) == (0, True), done.output
    assert check(tmp_path / "models") == []
    found = reference.read(folder, load_model(tmp_path / "models", "net", "1"))
    assert isinstance(found, Reference)
    assert (found.rows, found.features[-1]) == (200, "score")
    nets.mlp(folder / "model.onnx", (5, 9, 2))
    (problem,) = check(tmp_path / "models")
    assert (problem.what, "lrai reference" in problem.fix) == ("it was made for another model.onnx", True)
    with pytest.raises(BadSetting, match="made for another"):
        load_repository(tmp_path / "models")
    assert CliRunner().invoke(lrai.app, command).exit_code == 0
    assert check(tmp_path / "models") == []
