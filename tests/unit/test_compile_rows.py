"""Rows for a compilation: recorded requests, files, and rows made up from what the graph says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from infra.commands import compiling
from infra.commands.compiling import Recorded
from kernels.compile import importing, rows
from kernels.repository import load_model
from kernels.spec import ModelSpec, TensorSpec
from schemas import framing
from schemas.errors import LraiError
from tests import nets, samples

SPEC = samples.spec(features=3)
GOOD = np.array([[1, 2, 3]], np.float32)


def value(array: np.ndarray, model: str = "net", name: str = "features", **fields: object) -> bytes:
    return samples.encoded(samples.request([samples.tensor(name, array)], model=model, **fields))


def test_requests_of_the_model_are_taken_in_either_framing() -> None:
    plain = value(GOOD)
    confluent = b"\0" + (7).to_bytes(4, "big") + plain[framing.SINGLE_OBJECT_BYTES :]
    for each in (plain, confluent, value(GOOD, version="1")):
        found = compiling.inputs_of(each, SPEC)
        assert found is not None
        assert found["features"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\0\0",
        b"junk",
        value(GOOD, model="other"),
        value(GOOD, version="2"),
        value(GOOD, name="other"),
        value(GOOD.astype(np.float64)),
        value(np.ones((1, 4), np.float32)),
        value(np.ones(3, np.float32)),
        value(np.ones((0, 3), np.float32)),
        value(np.array([[1, 2, np.nan]], np.float32)),
    ],
)
def test_what_the_model_would_not_take_is_passed_over(record: bytes) -> None:
    assert compiling.inputs_of(record, SPEC) is None


def test_recorded_rows_are_marked_as_such(tmp_path: Path) -> None:
    spec = load_model(tmp_path, "net", "1") if nets.mlp(tmp_path / "net/1/model.onnx") else SPEC
    array = np.random.default_rng(0).standard_normal((40, 30), np.float32)
    compiling.save(tmp_path / "rows.npz", Recorded({"features": array}, 40, 0))
    found = compiling.rows_of(tmp_path / "rows.npz", spec, [])
    assert (found.source, found.calibrate_rows) == ("topic", 20)
    np.savez(tmp_path / "other.npz", features=array)
    assert compiling.rows_of(tmp_path / "other.npz", spec, []).source == "file"
    np.save(tmp_path / "rows.npy", array.astype(np.float64))
    assert np.array_equal(compiling.rows_of(tmp_path / "rows.npy", spec, []).judge[0]["features"],
                          found.judge[0]["features"])  # fmt: skip
    with pytest.raises(LraiError, match="cannot be written"):
        compiling.save(tmp_path / "missing/rows.npz", Recorded({"features": array}, 40, 0))


def test_a_csv_file_may_hold_more_columns(tmp_path: Path) -> None:
    nets.mlp(tmp_path / "net/1/model.onnx", sizes=(2, 4, 2))
    spec = load_model(tmp_path, "net", "1")
    lines = ["a,b,region", *(f"{i},{i * i},north" for i in range(20))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    assert compiling.rows_of(tmp_path / "rows.csv", spec, ["region"]).calibrate_rows == 10
    with pytest.raises(LraiError, match="3 columns"):
        compiling.rows_of(tmp_path / "rows.csv", spec, [])


def test_made_up_rows_follow_what_the_graph_says(tmp_path: Path) -> None:
    """A scaler states mean and spread, a table its size; pixels are bytes, flags are flags."""
    net = nets.Builder()
    scaled = net.node("Scaler", "x", domain="ai.onnx.ml", offset=[100.0, -5.0], scale=[0.1, 2.0])
    looked = net.node("ReduceMean", net.node("Gather", net.normal(7, 2, scale=1.0), "ids"),
                      axes=[1], keepdims=0)  # fmt: skip
    net.node("Add", net.node("Add", scaled, looked), net.node("Cast", "pixels", to=1), out="y")
    inputs = {"x": (TensorProto.FLOAT, ["rows", 2]), "ids": (TensorProto.INT64, ["rows", 5]),
              "pixels": (TensorProto.UINT8, ["rows", 2])}  # fmt: skip
    net.save(tmp_path / "net/1/model.onnx", inputs, {"y": (TensorProto.FLOAT, ["rows", 2])})  # type: ignore[arg-type]
    spec = load_model(tmp_path, "net", "1")
    imported = importing.read(spec)
    found = rows.made(spec, imported.net)
    group = {name: np.concatenate([side[0][name] for side in (found.calibrate, found.judge)]) for name in inputs}
    assert np.allclose(group["x"].mean(axis=0), [100, -5], atol=2)
    assert np.allclose(group["x"].std(axis=0), [10, 0.5], rtol=0.2)
    assert set(group["ids"].reshape(-1).tolist()) == set(range(7))
    assert (group["pixels"].min(), group["pixels"].max()) == (0, 255)
    assert "--calibration" in found.cost


def test_text_cannot_be_made_up() -> None:
    spec = ModelSpec("m", "1", "m.onnx", "", (TensorSpec("t", "BYTES", (1,)),), ())
    with pytest.raises(LraiError, match="--calibration"):
        rows.made(spec, None)
