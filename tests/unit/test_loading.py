"""Variants in memory: what is not what was compiled, or answers otherwise, is refused with a reason."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from infra.commands import variants as commands
from kernels import devices
from kernels import manifest as manifests
from kernels.gate import UNCERTIFIED
from kernels.loading import InMemory, load_all, load_original, load_variant
from kernels.manifest import Golden, RunOptions
from kernels.repository import check, load_model, load_repository
from kernels.session import KernelError, Session
from kernels.spec import ModelSpec
from schemas.errors import BadSetting
from streams.control import Control
from tests import nets
from tests.chaos.models import crashing, killer
from tests.variants import PROFILE, add, describe
from workers.isolate import IsolatedKernel

ROOT = Path(__file__).parents[2]
NONE = 'require_certificate = "none"\n'


def model(tmp_path: Path, text: str = "") -> ModelSpec:
    """m/1, an MLP, not compiled; its variants need no certificate."""
    nets.mlp(tmp_path / "m/1/model.onnx", (6, 16, 3))
    (tmp_path / "m/1/model.toml").write_text(NONE + text)
    return load_model(tmp_path, "m", "1")


def again(tmp_path: Path) -> ModelSpec:
    return load_model(tmp_path, "m", "1")


def load(tmp_path: Path, name: str = "int8") -> InMemory:
    spec = again(tmp_path)
    (variant,) = [each for each in spec.variants if each.name == name]
    return load_variant(spec, variant, 1)


def test_a_variant_answers_as_it_was_compiled(tmp_path: Path) -> None:
    add(model(tmp_path), "int8", certificate="c-1")
    found = load(tmp_path)
    assert (found.name, found.rows, found.alone) == ("int8", 32, False)
    assert found.admission is UNCERTIFIED  # nobody looked at the certificate that the manifest names
    assert found.row_s == pytest.approx(4e-5 / 32)
    x = np.random.default_rng(1).standard_normal((9, 6), np.float32)
    exact = Session(again(tmp_path)).run({"features": x})["probabilities"]
    answers = found.session.run({"features": x})["probabilities"]
    assert 0 < np.abs(answers - exact).max() < 0.1
    assert check(tmp_path) == []


def test_a_run_apart_answers_as_the_variant(tmp_path: Path) -> None:
    add(model(tmp_path), "int8", session=RunOptions("basic", ("ConstantFolding",), {"session.use_env_allocators": "0"}))
    found = load(tmp_path)
    x = {"features": np.random.default_rng(1).standard_normal((3, 6), np.float32)}
    isolated = IsolatedKernel(found.how)
    np.testing.assert_array_equal(isolated.run(x)["probabilities"], found.session.run(x)["probabilities"])
    process = isolated._started()
    process.communicate(timeout=30)  # the end of its input is its end
    assert process.returncode == 0


def test_a_variant_that_runs_requests_alone(tmp_path: Path) -> None:
    add(model(tmp_path, "batch_rows = 16"), "dynamic", requests_per_run=1)
    found = load(tmp_path, "dynamic")
    assert (found.rows, found.alone, found.row_s) == (1, True, PROFILE.seconds[1])


def test_rows_that_the_operator_states_come_first(tmp_path: Path) -> None:
    add(model(tmp_path, "batch_rows = 2"), "int8")
    assert (load(tmp_path).rows, load(tmp_path).row_s) == (2, PROFILE.seconds[1])


def changed(**stated: Any) -> Callable[[ModelSpec, Path], None]:
    return lambda spec, folder: describe(spec, folder, name="int8", **stated).write(folder / "manifest.json")


def other_answers(spec: ModelSpec, folder: Path) -> None:
    arrays = dict(np.load(folder / "golden.npz"))
    arrays["output/probabilities"] = np.nextafter(arrays["output/probabilities"], np.float32(2))
    np.savez(folder / "golden.npz", **arrays)


def golden(**arrays: Any) -> Callable[[ModelSpec, Path], None]:
    return lambda spec, folder: np.savez(folder / "golden.npz", **arrays)


def written(name: str, content: bytes) -> Callable[[ModelSpec, Path], None]:
    def write(spec: ModelSpec, folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def missing(name: str) -> Callable[[ModelSpec, Path], None]:
    return lambda spec, folder: (folder / name).unlink()


def another_net(spec: ModelSpec, folder: Path) -> None:
    nets.mlp(folder / "model.onnx", (6, 16, 3), seed=5)


def other_tensors(spec: ModelSpec, folder: Path) -> None:
    nets.sequence(folder / "model.onnx")


def other_operators(spec: ModelSpec, folder: Path) -> None:
    found = onnx.load(folder / "model.onnx")
    found.graph.node[-1].op_type = "Nonsense"
    onnx.save(found, folder / "model.onnx")
    changed()(spec, folder)


def test_elsewhere_golden_answers_need_not_be_the_same_bits(tmp_path: Path) -> None:
    """Kernels are chosen anew on each device: the manifest says how far answers may be away; on the CPU it does not."""
    folder = add(model(tmp_path), "int8", golden=Golden(rows=5, within=1e-3))
    with np.load(folder / "golden.npz") as stored:
        arrays = {name: stored[name] for name in stored}
    spec = again(tmp_path)
    gpu = replace(devices.CPU, within=1e-4)
    for share, served in ((5e-4, True), (2e-3, False)):
        off = {**arrays, "output/probabilities": arrays["output/probabilities"] * np.float32(1 + share)}
        np.savez(folder / "golden.npz", **off)
        with pytest.raises(KernelError, match="otherwise"):
            load_variant(spec, spec.variants[0], 1)
        if served:
            assert load_variant(spec, spec.variants[0], 1, device=gpu).name == "int8"
        else:
            with pytest.raises(KernelError, match="otherwise"):
                load_variant(spec, spec.variants[0], 1, device=gpu)


ROW = np.zeros((1, 6), np.float32)
REFUSED: list[tuple[str, Callable[[ModelSpec, Path], None], str]] = [
    ("other model file", another_net, "model_sha256"),
    ("other original", changed(original_sha256="0" * 64), "original_sha256"),
    ("other runtime", changed(runtime="1.0.0"), "runtime = '1.0.0'"),
    ("other provider", changed(provider="CUDAExecutionProvider"), "compiled for CUDAExecutionProvider"),
    ("other options of the provider", changed(provider_options={"a": "b"}), "--device cpu"),
    ("no golden inputs stated", changed(golden=None), "no golden inputs"),
    ("golden inputs missing", missing("golden.npz"), "golden.npz"),
    ("golden inputs torn", written("golden.npz", b"PK\3\4 torn"), "golden.npz cannot be read"),
    ("golden inputs empty", written("golden.npz", b""), "golden.npz cannot be read"),
    ("golden inputs of objects", golden(**{"input/features": np.array([{}], object)}), "allow_pickle"),
    ("no golden rows", golden(**{"input/features": ROW[:0], "output/probabilities": ROW[:0]}), "no golden rows"),
    ("no golden answers", golden(**{"input/features": ROW}), "no golden rows"),
    ("golden answers of nothing", golden(**{"input/features": ROW, "output/z": ROW}), "output 'z'"),
    ("golden inputs that do not fit", golden(**{"input/z": ROW, "output/probabilities": ROW}), "features"),
    ("other answers by one bit", other_answers, "answers golden inputs otherwise"),
    ("manifest missing", missing("manifest.json"), "manifest.json: cannot be read"),
    ("manifest torn", written("manifest.json", b'{"format": 1, '), "is no JSON"),
    ("manifest of another form", written("manifest.json", b'{"format": 9}'), "format is 9"),
    ("model missing", missing("model.onnx"), "the file is missing"),
    ("model corrupt", written("model.onnx", b"no model"), "no ONNX model"),
    ("other inputs", other_tensors, "where the original has"),
    ("an operator that the runtime lacks", other_operators, "Nonsense"),
    ("an unknown option", changed(session=RunOptions(config={"": ""})), "Config key is empty"),
]


@pytest.mark.parametrize(("break_it", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_and_why(tmp_path: Path, break_it: Callable[[ModelSpec, Path], None], reason: str) -> None:
    spec = model(tmp_path)
    break_it(spec, add(spec, "int8"))
    with pytest.raises(KernelError) as refused:
        load(tmp_path)
    assert reason in str(refused.value)
    assert load_repository(tmp_path)["m", "1"].variants  # the original serves
    (problem,) = check(tmp_path)
    assert reason in problem.what and "variants" in problem.path


def test_the_original_and_what_is_not_refused(tmp_path: Path) -> None:
    spec = model(tmp_path)
    add(spec, "int8")
    other_answers(spec, add(spec, "torn"))
    found, why = load_all(again(tmp_path), 1, tmp_path / "state", tmp_path / "m.slot")
    assert ([each.name for each in found], list(why)) == (["original", "int8"], ["torn"])
    assert not list(tmp_path.glob("m.*"))


def test_a_variant_that_kills_the_process_is_left_out_after_the_restart(tmp_path: Path) -> None:
    spec = killing(tmp_path)
    add(spec, "kills", {"value": np.array([[5]])}, build=crashing)
    add(spec, "same", {"value": np.array([[5]])}, build=killer)
    assert started(tmp_path).returncode == -signal.SIGFPE
    assert started(tmp_path).stdout.split() == started(tmp_path).stdout.split() == ["original", "same"]
    (mark,) = tmp_path.glob("m.*.loading")
    mark.unlink()
    assert started(tmp_path).returncode == -signal.SIGFPE


def killing(tmp_path: Path) -> ModelSpec:
    killer(tmp_path / "m/1/model.onnx")
    (tmp_path / "m/1/model.toml").write_text(NONE)
    return again(tmp_path)


def started(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """What an actor does first, in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from kernels.loading import load_all\n"
        "from kernels.repository import load_model; here = Path(sys.argv[1]); spec = load_model(here, 'm', '1')\n"
        "print(*[each.name for each in load_all(spec, 1, here / 'state', here / 'm.slot')[0]])"
    )
    return subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)


def test_variants_that_model_toml_names(tmp_path: Path) -> None:
    spec = model(tmp_path)
    add(spec, "int8")
    add(spec, "int4")
    text = '[variants]\nprefer = ["int8"]\nunder_load = ["int8", "original"]\nnever = ["int4"]'
    (tmp_path / "m/1/model.toml").write_text(text)
    found = again(tmp_path)
    assert ([each.name for each in found.variants], found.prefer) == (["int8"], ("int8",))
    assert found.under_load == ("int8", "original")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('prefer = ["int9"]', "variants.prefer names 'int9'"),
        ('under_load = ["int9"]', "variants.under_load names 'int9'"),
        ('never = ["int9"]', "variants.never names 'int9'"),
        ('never = ["original"]', "variants.never names 'original'"),
        ('prefer = ["int8"]\nnever = ["int8"]', "variants.prefer names 'int8', which cannot be meant"),
        ('prefered = ["int8"]', "unknown key 'variants.prefered'"),
        ('prefer = "int8"', "variants.prefer is 'int8'"),
    ],
)
def test_mistakes_in_model_toml(tmp_path: Path, text: str, what: str) -> None:
    add(model(tmp_path), "int8")
    (tmp_path / "m/1/model.toml").write_text(f"[variants]\n{text}")
    (problem,) = check(tmp_path)
    assert what in problem.what
    with pytest.raises(BadSetting, match="variants"):
        again(tmp_path)


def test_a_folder_that_the_compiler_writes_aside_is_no_variant(tmp_path: Path) -> None:
    add(model(tmp_path), "int8").rename(tmp_path / "m/1/variants/.int8.part")
    assert again(tmp_path).variants == ()
    assert check(tmp_path) == []


def test_the_profile_of_the_original_is_measured_once(tmp_path: Path) -> None:
    spec, cache = model(tmp_path), tmp_path / "state"
    first = load_original(spec, 1, cache)
    (file,) = cache.iterdir()
    stated = json.loads(file.read_text())
    assert first.rows == stated["best_rows"]
    file.write_text(json.dumps({"best_rows": 7, "seconds": {"7": 0.7}}))
    assert (load_original(spec, 1, cache).rows, load_original(spec, 1, cache).row_s) == (7, pytest.approx(0.1))
    for torn in ("", "[]", "{}", '{"best_rows": 7, "seconds": 3}'):
        file.write_text(torn)
        assert load_original(spec, 1, cache).rows == json.loads(file.read_text())["best_rows"]
    load_original(replace(spec, batch_rows=4), 1, cache)
    assert len(list(cache.iterdir())) == 2


def test_a_state_folder_that_cannot_be_written_costs_a_measurement_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert load_original(model(tmp_path), 1, tmp_path / "file" / "profiles").rows >= 1


def test_the_compilers_profile_spares_the_measurement(tmp_path: Path) -> None:
    spec = model(tmp_path)
    path = add(spec, "int8").parent / manifests.ORIGINAL_FILE
    own = describe(spec, tmp_path / "m/1", name="original", kind="original", golden=None)
    own.write(path)
    assert load_original(spec, 1, tmp_path / "state").rows == PROFILE.best_rows
    assert not (tmp_path / "state").exists()
    for other in (replace(own, original_sha256="0" * 64), replace(own, runtime="1.0.0")):
        other.write(path)
        load_original(spec, 1, tmp_path / "state")
        assert (tmp_path / "state").exists()
    path.write_text("torn")
    assert load_original(spec, 1, tmp_path / "state").rows >= 1
    assert onnxruntime.__version__ == own.runtime


def test_a_table_of_variants(tmp_path: Path) -> None:
    spec = model(tmp_path)
    add(spec, "int8", certificate="c-1")
    add(spec, "torn").joinpath("manifest.json").write_text("{")
    forced = Control("variant", "m", "1", "int8", "ann", "", 0)
    for each, answers in ((None, "when forced"), (forced, "forced")):
        columns = {column.header: list(column.cells) for column in commands.table(again(tmp_path), each).columns}
        assert columns["variant"] == ["original", "int8", "torn"]
        assert columns["answers"][1] == answers
        assert (columns["bits"][1], columns["labels"][1], columns["certificate"][1]) == ("w8a8", "99.00%", "c-1")
        assert "is no JSON" in columns["certificate"][2]
