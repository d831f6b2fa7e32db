"""`lrai compile` on trained models: every variant against its original on rows that calibration did not see."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from infra import demo_models
from infra.commands import compiling
from kernels import manifest
from kernels.compile import candidates, compiler, importing, judge, rows, runtime
from kernels.compile.compiler import Compiled, Options
from kernels.compile.judge import Refused
from kernels.loading import load_variant
from kernels.repository import load_model
from kernels.session import Session
from kernels.spec import ModelSpec
from schemas.errors import LraiError
from tests import nets

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's models, trained and compiled with their own rows; their variants need no certificate."""
    directory = tmp_path_factory.mktemp("models")
    for name in demo_models.train(directory):
        path = directory / name / "1/model.toml"
        path.write_text('require_certificate = "none"\n' + path.read_text().partition("\n[variants]")[0])
    return directory


@pytest.fixture(scope="module")
def compiled(models: Path) -> dict[str, Compiled]:
    return {name: run(models / name / "1", models / name / "1/rows.npy")[0] for name in demo_models.MODELS}


def run(folder: Path, calibration: Path | None = None, options: Options | None = None) -> tuple[Compiled, str]:
    """What was compiled, and what a user sees."""
    console = Console(file=io.StringIO(), width=240)
    found, spec, _ = compiling.compile_folder(folder, calibration, [], options or Options(), console)
    compiling.show(console, found, spec)
    text = console.file
    assert isinstance(text, io.StringIO)
    return found, text.getvalue()


def spec_at(models: Path, name: str) -> ModelSpec:
    return load_model(models, name, "1")


@pytest.mark.parametrize("name", demo_models.MODELS)
def test_variants_decide_as_their_original_on_all_rows(models: Path, compiled: dict[str, Compiled], name: str) -> None:
    """Label agreement of at least 99 % bounds the loss of accuracy by 1 %; both on all rows of the data set."""
    spec = spec_at(models, name)
    features = np.load(models / name / "1/rows.npy")
    wanted = judge.decisions(spec, Session(spec).run({"features": features}), len(features))
    for variant in spec.variants:
        loaded = load_variant(spec, variant, 1)  # hashes, runtime, golden answers bit for bit
        found = judge.decisions(spec, loaded.session.run({"features": features}), len(features))
        assert np.mean([a == b for a, b in zip(wanted, found, strict=True)]) >= 0.99, variant.name
    assert {each.name for each in spec.variants} == {each.name for each in compiled[name].kept}


def test_a_scaler_in_the_weights_is_worth_it_for_every_network(compiled: dict[str, Compiled]) -> None:
    for name in ("diabetes", "breast-cancer", "digits"):
        folded = next(each.manifest for each in compiled[name].kept if each.name == "folded")
        assert folded is not None
        assert folded.error.max < 1e-5
        assert folded.error.label_agreement == 1


def test_trees_keep_their_original_and_say_why(compiled: dict[str, Compiled]) -> None:
    assert not compiled["iris"].kept
    assert any("no Conv, Gemm or MatMul" in each.why for each in compiled["iris"].reasons)


def test_records_say_what_was_measured(models: Path, compiled: dict[str, Compiled]) -> None:
    folder = models / "digits/1"
    original = manifest.read_original(folder)
    found = manifest.read_variants(folder)
    assert original is not None
    assert original.original_sha256 == original.model_sha256 == spec_at(models, "digits").sha256
    for each in (original, *found.values()):
        assert 1 in each.profile.seconds
        assert each.profile.best_rows in each.profile.seconds
        assert each.memory_bytes > 10e6
        assert each.calibration.source == "file"
        assert len(each.calibration.sha256) == 64
        assert each.error.rows > 500
        assert each.file_bytes > 1000
    assert found["weights8"].file_bytes < original.file_bytes / 2
    assert all(each.weight_bits == 8 for each in found["weights8"].layers)
    lines = [json.loads(line) for line in (folder / "variants/quantization.jsonl").read_text().splitlines()]
    layers = [each for each in lines if each["variant"] == "weights8" and "weight_bits" in each]
    assert [each["weight_bits"] for each in layers] == [8, 8, 8]
    assert all(each["why"] for each in layers)


def test_compiling_again_gives_the_same_files(models: Path, compiled: dict[str, Compiled]) -> None:
    """The clock may prefer others, but a variant of one name is the same to the byte."""
    folder = models / "diabetes/1"
    before = manifest.read_variants(folder)
    run(folder, folder / "rows.npy")
    after = manifest.read_variants(folder)
    assert set(before) & set(after)
    for name in set(before) & set(after):
        assert before[name].model_sha256 == after[name].model_sha256
    assert sorted(each.name for each in folder.iterdir()) == sorted(
        ["model.onnx", "model.toml", "reference.json", "rows.json", "rows.npy", "trained.txt", "variants"]
    )


def test_without_rows_it_says_what_that_costs(tmp_path: Path) -> None:
    nets.mlp(tmp_path / "net/1/model.onnx", sizes=(5, 8, 2))
    found, text = run(tmp_path / "net/1")
    assert found.original.calibration.source == "ranges"
    assert "--calibration FILE" in text
    assert "original" in text


def test_dynamic_8_bits_depend_on_batch_mates(tmp_path: Path) -> None:
    """An outlier in the batch changes the scale of all, so such a variant never runs several requests."""
    spec = matmuls(tmp_path / "m/1/model.onnx")
    pool = {"x": np.random.default_rng(0).standard_normal((32, 4, 16), np.float32)}
    net = importing.read(spec).net
    assert net is not None
    made = candidates.bench(spec, net, [pool])
    candidates.calibrate(made, lambda what: None)
    dynamic = next(candidates.one_request(made))
    static = next(candidates.static(made))
    assert (dynamic.requests_per_run, static.requests_per_run) == (1, 0)
    for each in (dynamic, static):
        onnx.save(each.net.model, tmp_path / f"{each.name}.onnx")
    judge.batch_invariant(session(spec, tmp_path / "int8.onnx"), pool)
    with pytest.raises(Refused, match="50-fold outlier"):
        judge.batch_invariant(session(spec, tmp_path / "dynamic.onnx"), pool)
    there = runtime.operators(runtime.optimized(dynamic.net.model, dynamic.options))
    assert there["DynamicQuantizeMatMul"] + there["MatMulIntegerToFloat"] == 2


def matmuls(path: Path) -> ModelSpec:
    """x float32[rows, 4, 16] -> y float32[rows, 4, 3]."""
    net = nets.Builder(1)
    hidden = net.node("Relu", net.dense("x", 16, 32))
    net.dense(hidden, 32, 3, out="y")
    net.save(path, {"x": (TensorProto.FLOAT, ["rows", 4, 16])}, {"y": (TensorProto.FLOAT, ["rows", 4, 3])})
    return load_model(path.parents[2], path.parents[1].name, path.parent.name)


def session(spec: ModelSpec, path: Path) -> Session:
    return Session(ModelSpec(spec.model, spec.version, str(path), "", spec.inputs, spec.outputs))


def test_float_weights_are_not_rounded_behind_the_files_back(tmp_path: Path) -> None:
    """DequantizeLinear of weights before a MatMul becomes MatMulNBits, which rounds activations; not Cast and Mul."""
    spec = matmuls(tmp_path / "m/1/model.onnx")
    pool = {"x": np.random.default_rng(0).standard_normal((32, 4, 16), np.float32)}
    net = importing.read(spec).net
    assert net is not None
    made = candidates.bench(spec, net, [pool])
    for each in candidates.stored(made):
        there = runtime.operators(runtime.optimized(each.net.model, each.options))
        assert there["MatMulNBits"] == 0
        literal, executed = (runtime.Runner(each.net.model, how, 1).run(pool)["y"] for how in
                             (runtime.LITERAL, each.options))  # fmt: skip
        np.testing.assert_allclose(literal, executed, rtol=1e-4, atol=1e-5)


def net_with(tmp_path: Path, node: onnx.NodeProto, domain: str = "") -> Path:
    """x float32[rows, 4] -> node -> y."""
    folder = tmp_path / "net/1"
    nets.save(folder / "model.onnx", [node], {"x": (TensorProto.FLOAT, ["rows", 4])},
              {"y": (TensorProto.FLOAT, ["rows", 4])})  # fmt: skip
    if domain:
        model = onnx.load(folder / "model.onnx")
        model.opset_import.append(helper.make_opsetid(domain, 1))
        onnx.save(model, folder / "model.onnx")
    return folder


def branch(name: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", ["x"], [name])], name, [], [value])


def test_control_flow_keeps_the_original(tmp_path: Path) -> None:
    net = nets.Builder()
    always = net.weight(np.array(True))
    net.nodes.append(helper.make_node("If", [always], ["y"], then_branch=branch("a"), else_branch=branch("b")))
    net.save(tmp_path / "net/1/model.onnx", {"x": (TensorProto.FLOAT, ["rows", 4])},
             {"y": (TensorProto.FLOAT, ["rows", 4])})  # fmt: skip
    found, text = run(tmp_path / "net/1")
    assert [(each.op, each.why) for each in found.reasons] == [
        ("If", "control flow: what runs depends on the input")
    ]
    assert "net 1 keeps its original" in text
    assert manifest.read_original(tmp_path / "net/1") is not None


def test_custom_operators_keep_the_original(tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    found, _ = run(net_with(tmp_path, node, "com.microsoft"))
    assert "custom operator of domain 'com.microsoft'" in found.reasons[0].why


def test_what_the_runtime_lacks_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="org.example")
    with pytest.raises(LraiError, match="Frobnicate"):
        run(net_with(tmp_path, node, "org.example"))
    assert not (tmp_path / "net/1/variants").exists()


def bad(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((20, 30), np.nan, np.float32), "NaN or infinity in row 0"),
        (np.ones((20, 30), np.float32), "all 20 rows are equal"),
        (np.zeros((20, 31), np.float32), "the model takes"),
        (np.zeros((3, 30), np.float32), "has 3 rows; give at least 8"),
        (np.zeros((0, 30), np.float32), "has no rows"),
        (np.zeros((20, 30), np.complex64), "complex64; the model takes FP32"),
        (np.full((20, 30), 1e300), "NaN or infinity"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path: Path, array: np.ndarray, message: str) -> None:
    nets.mlp(tmp_path / "net/1/model.onnx")
    with pytest.raises(LraiError, match=message):
        run(tmp_path / "net/1", bad(tmp_path / "rows.npy", array))
    assert [each.name for each in (tmp_path / "net/1").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.npy", b"", "cannot be read as an NPY"),
        ("rows.npz", b"torn", "no NPZ"),
        ("rows.csv", b"", "is empty"),
        ("rows.csv", b"a,b\n1,2\n", "2 columns"),
        ("rows.jsonl", b"{", "no JSON"),
        ("rows.txt", b"1", "must end with"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    nets.mlp(tmp_path / "net/1/model.onnx")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LraiError, match=message):
        run(tmp_path / "net/1", tmp_path / name)
    with pytest.raises(LraiError, match=r"cannot be read|missing\.csv"):
        run(tmp_path / "net/1", tmp_path / "missing.csv")


def test_a_corrupt_model_is_named(tmp_path: Path) -> None:
    path = nets.mlp(tmp_path / "net/1/model.onnx")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(LraiError, match=r"model\.onnx"):
        run(tmp_path / "net/1")
    with pytest.raises(LraiError, match="MODELS/<model>/<version>"):
        run(tmp_path / "net")


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # no file may be larger: as on a full disk
from lrai import main
sys.argv = ["lrai", "compile", sys.argv[1]]
main()
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    nets.mlp(tmp_path / "net/1/model.onnx", sizes=(30, 256, 2))
    kept = tmp_path / "net/1/variants/old/manifest.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "net/1")], capture_output=True, text=True,
                          cwd=ROOT, timeout=120, env={**os.environ, "TMPDIR": str(tmp_path)})  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "lrai:" in done.stderr
    assert kept.read_text() == "{}"
    assert sorted(each.name for each in (tmp_path / "net/1").iterdir()) == ["model.onnx", "variants"]


def test_rows_of_different_lengths_are_grouped(tmp_path: Path) -> None:
    nets.sequence(tmp_path / "seq/1/model.onnx")
    lines = [
        json.dumps({"inputs": {"ids": [list(range(n))], "mask": [[1] * n]}}) for n in [3, 4, 5, 6] * 8
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(LraiError, match="rows are equal"):
        run(tmp_path / "seq/1", one_length(tmp_path / "same.jsonl"))
    found, _ = run(tmp_path / "seq/1", tmp_path / "rows.jsonl", Options(agreement_min=0))
    assert found.original.calibration.rows == 16
    assert any(each.name == "weights8" for each in found.tried)


def one_length(path: Path) -> Path:
    path.write_text("\n".join([json.dumps({"inputs": {"ids": [[1, 2]], "mask": [[1, 1]]}})] * 10))
    return path


def test_a_graph_that_fixes_its_rows(tmp_path: Path) -> None:
    path = nets.mlp(tmp_path / "net/1/model.onnx")
    model = onnx.load(path)
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    found, _ = run(tmp_path / "net/1")
    assert list(found.original.profile.seconds) == [4]
    for variant in load_model(tmp_path, "net", "1").variants:
        load_variant(replace(load_model(tmp_path, "net", "1"), require_certificate="none"), variant, 1)


def test_answers_that_overflow_once_quantized_are_refused(tmp_path: Path) -> None:
    """exp of nearly 88.72 is finite, of a little more it is not: 9.9 comes back from 8 bits as 9.98."""
    net = nets.Builder()
    weight, bias = net.weight(np.array([[1.0], [0.93]], np.float32)), net.weight(np.zeros(1, np.float32))
    net.node("Exp", net.node("Gemm", "x", weight, bias), out="y")
    net.save(tmp_path / "net/1/model.onnx", {"x": (TensorProto.FLOAT, ["rows", 2])},
             {"y": (TensorProto.FLOAT, ["rows", 1])})  # fmt: skip
    values = np.stack([np.r_[np.full(62, 79.5), 0, 1], np.full(64, 9.9)], axis=1).astype(np.float32)
    found, text = run(tmp_path / "net/1", bad(tmp_path / "rows.npy", values))
    assert "not kept: int8: it answers NaN or infinity" in text
    assert any(each.name == "weights16" for each in found.tried)


def test_rows_are_split_and_bounded() -> None:
    spec = ModelSpec("m", "1", "", "", nets_inputs(), ())
    array = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    found = rows.given([{"x": array}], spec, "here", "file")
    assert (rows.count(found.calibrate), rows.count(found.judge)) == (rows.CALIBRATE_ROWS_MAX, rows.JUDGE_ROWS_MAX)
    used = {tuple(row) for side in (found.calibrate, found.judge) for row in side[0]["x"].tolist()}
    assert len(used) == rows.CALIBRATE_ROWS_MAX + rows.JUDGE_ROWS_MAX
    again = rows.given([{"x": array}], spec, "here", "file")
    assert again.sha256 == found.sha256
    assert np.array_equal(again.judge[0]["x"], found.judge[0]["x"])


def nets_inputs() -> tuple[compiling.repository.TensorSpec, ...]:
    return (compiling.repository.TensorSpec("x", "FP32", (4,)),)


def test_the_log_of_refusals_is_complete(compiled: dict[str, Compiled], models: Path) -> None:
    for name, found in compiled.items():
        lines = (models / name / "1/variants" / compiler.LOG).read_text().splitlines()
        refused = {each["variant"] for each in map(json.loads, lines) if "refused" in each}
        assert name == "diabetes" or refused == {each.name for each in found.tried if each.refused}
