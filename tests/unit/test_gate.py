"""The gate: a variant serves with a certificate of its files, its runtime and its inputs, and is refused without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infra.commands import certifying, compiling
from kernels import manifest as manifests
from kernels.gate import FILE, UNCERTIFIED, Admission, admit
from kernels.loading import load_all
from kernels.proof.certificate import identity
from kernels.repository import check, load_model
from kernels.session import KernelError
from kernels.spec import ModelSpec
from tests import nets
from tests.variants import add

Certificate = dict[str, Any]
FEATURES, EPSILON = 6, 0.01


def halves(path: Path) -> None:
    """The original's neighbour: the same net with its weights rounded to 11 bits."""
    model = onnx.load(path.parents[2] / "model.onnx")
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT:
            rounded = numpy_helper.to_array(each).astype(np.float16).astype(np.float32)
            each.CopyFrom(numpy_helper.from_array(rounded, each.name))
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with m/1 and its variant `half`, proved over the range of some rows."""
    models = tmp_path_factory.mktemp("certified")
    version = models / "m/1"
    nets.mlp(version / "model.onnx", (FEATURES, 16, 3))
    folder = add(load_model(models, "m", "1"), "half", build=halves)
    np.save(version / "rows.npy", np.random.default_rng(0).uniform(-1, 1, (60, FEATURES)).astype(np.float32))
    spec = compiling.spec_of(version)
    rows = compiling.rows_of(version / "rows.npy", spec, ())
    found, _ = certifying.certify(folder, spec, None, rows, EPSILON, "softmax", 4.0, tests=2_000, balls=0)
    assert found["verdict"] == "PROVED"
    return models


@pytest.fixture
def models(certified: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(certified, tmp_path / "models")


def stated(models: Path) -> Certificate:
    found: Certificate = json.loads(path(models).read_text())
    return found


def path(models: Path) -> Path:
    return models / "m/1/variants/half" / FILE


def write(models: Path, found: Certificate) -> None:
    path(models).write_text(json.dumps({**found, "id": identity(found)}))


def spec_of(models: Path, text: str = "") -> ModelSpec:
    (models / "m/1/model.toml").write_text(text)
    return load_model(models, "m", "1")


def admission(models: Path, text: str = "") -> Admission:
    folder = path(models).parent
    return admit(spec_of(models, text), manifests.read(folder / manifests.MANIFEST), folder)


def untested(found: Certificate) -> Certificate:
    return {**found, "verdict": "UNKNOWN", "statistical": None}


def opened(found: Certificate) -> Certificate:
    """Without a proof."""
    return {**found, "regions": [{**found["regions"][0], "tree": {"open": "no time"}}], "verdict": "STATISTICAL"}


def cut(found: Certificate) -> Certificate:
    """Proved where the first feature is at most 0: lines with any slopes are sound in a part of their box."""
    (region,) = found["regions"]
    bound = {"bound": EPSILON.hex(), "bound_real": EPSILON.hex()}
    tree = {"split": 0, "at": (0.0).hex(), "below": {**region["tree"], **bound}, "above": {"open": "no time"}}
    return {**found, "regions": [{**region, "tree": tree}], "verdict": "REFUTED"}


def counted(**changed: Any) -> Callable[[Certificate], Certificate]:
    return lambda found: {**opened(found), "statistical": {**found["statistical"], **changed}}


def semantics(**changed: Any) -> Callable[[Certificate], Certificate]:
    return lambda found: {**found, "semantics": {**found["semantics"], **changed}}


def with_(**changed: Any) -> Callable[[Certificate], Certificate]:
    return lambda found: {**found, **changed}


def too_good(found: Certificate) -> Certificate:
    (region,) = found["regions"]
    tree = {**region["tree"], "bound": (1e-9).hex(), "bound_real": (1e-10).hex()}
    return {**found, "regions": [{**region, "tree": tree}]}


def narrow(found: Certificate) -> Certificate:
    (region,) = found["regions"]
    return {**found, "regions": [{"low": region["low"][1:], "high": region["high"][1:], "tree": {"open": ""}}]}


def inside(found: Admission, rows: Any) -> list[bool]:
    assert found.region is not None
    held: list[bool] = found.region.holds(np.array(rows, np.float32)).tolist()
    return held


def test_a_proved_variant_serves_with_its_certificate(models: Path) -> None:
    found = admission(models)
    assert (found.kind, found.certificate) == ("proved", stated(models)["id"])
    assert found.checked_s > 0
    assert inside(found, [[0.0] * FEATURES, [0.0] * (FEATURES - 1) + [5.0]]) == [True, False]
    assert check(models) == []
    loaded, refused = load_all(spec_of(models), 1, models.parent / "state", models.parent / "slot")
    assert ([each.name for each in loaded], refused) == (["original", "half"], {})
    assert [each.admission.certificate for each in loaded] == [None, found.certificate]


def test_the_region_is_what_is_proved(models: Path) -> None:
    write(models, cut(stated(models)))
    found = admission(models, 'require_certificate = "proved"')
    assert found.kind == "proved"
    assert inside(found, [[-0.1] + [0.0] * 5, [0.1] + [0.0] * 5]) == [True, False]
    assert admission(models).kind == "proved"  # what is refuted as a whole is not better by tests


def test_tests_are_enough_where_they_are_asked_for(models: Path) -> None:
    write(models, opened(stated(models)))
    found = admission(models)
    assert (found.kind, found.checked_s) == ("statistical", 0.0)
    assert inside(found, [[0.0] * FEATURES, [5.0] * FEATURES]) == [True, False]
    for text in ('risk_class = "high"', 'require_certificate = "proved"'):
        with pytest.raises(KernelError, match="says STATISTICAL, and is no proof here"):
            admission(models, text)


def test_a_checker_that_lacks_an_operator_makes_it_no_proof(models: Path) -> None:
    """The certificate names the file that is there, and the checker does not know what is in it."""
    folder = path(models).parent
    model = onnx.load(folder / "model.onnx")
    next(each for each in model.graph.node if each.op_type == "Relu").op_type = "Softplus"
    onnx.save(model, folder / "model.onnx")
    digest = manifests.sha256(folder, ["model.onnx"])
    manifest = json.loads((folder / manifests.MANIFEST).read_text())
    (folder / manifests.MANIFEST).write_text(json.dumps({**manifest, "model_sha256": digest}))
    found = stated(models)
    write(models, {**found, "variant": {**found["variant"], "sha256": digest}})
    assert admission(models).kind == "statistical"
    with pytest.raises(KernelError, match="the checker lacks"):
        admission(models, 'risk_class = "high"')


def test_who_asks_for_none_gets_none(models: Path) -> None:
    path(models).unlink()
    assert admission(models, 'risk_class = "high"\nrequire_certificate = "none"') is UNCERTIFIED


@pytest.mark.parametrize(
    ("text", "required"),
    [("", "statistical"), ('risk_class = "minimal"', "statistical"), ('risk_class = "high"', "proved"),
     ('risk_class = "high"\nrequire_certificate = "statistical"', "statistical")],
)  # fmt: skip
def test_what_is_required(models: Path, text: str, required: str) -> None:
    assert spec_of(models, text).require_certificate == required


def test_mistakes_in_model_toml(models: Path) -> None:
    path(models).unlink()
    for text in ('risk_class = "low"', 'require_certificate = "yes"', "coverage_min = 95", "epsilon_max = -1.0"):
        (models / "m/1/model.toml").write_text(text)
        assert text.partition(" ")[0] in check(models)[0].what


REFUSED: list[tuple[str, Callable[[Certificate], Certificate], str, str]] = [
    ("other format", with_(format=2), "", "format = 2"),
    ("other original", with_(original={"sha256": "0" * 64}), "", "original = '000"),
    ("other variant", with_(variant={"sha256": "0" * 64}), "", "variant = '000"),
    ("other runtime", semantics(runtime="1.0.0"), "", "runtime = '1.0.0'"),
    ("other provider", semantics(provider="CUDAExecutionProvider"), "", "CUDA"),
    ("other options of the provider", semantics(provider_options={"a": "b"}), "", "provider_options"),
    ("other session", semantics(session={"graph_optimization_level": "basic"}), "", "session"),
    ("other processor", semantics(cpu_features=["avx_nothing"]), "", "cpu_features"),
    ("real numbers", semantics(arithmetic="real"), "", "arithmetic = 'real'"),
    ("too far", with_(epsilon=(0.5).hex()), "", "allows 0.5, epsilon_max is 0.01"),
    ("no epsilon", with_(epsilon="nan"), "", "allows nan"),
    ("further than asked", lambda found: found, "epsilon_max = 0.001", "epsilon_max is 0.001"),
    ("of labels", with_(output="label"), "", "about the label alone"),
    ("too few rows inside", opened, "coverage_min = 0.99", "coverage_min is 0.99"),
    ("nobody knows how many", lambda found: {**opened(found), "coverage": {}}, "coverage_min = 0.5", "unknown share"),
    ("a bound that does not hold", too_good, "", "its certificate is wrong: leaf 0"),
    ("no proof and no tests", lambda found: untested(opened(found)), "", "says UNKNOWN"),
    ("tests with a hit", counted(hits=1), "", "no proof here"),
    ("few tests", counted(tests=999), "", "no proof here"),
    ("refuted", lambda found: {**opened(found), "verdict": "REFUTED"}, "", "says REFUTED"),
    ("other features", narrow, "", "5 features, the input 6"),
    ("two regions", lambda found: {**found, "regions": 2 * found["regions"]}, "", "cannot be read"),
    ("no region", with_(regions=[]), "", "cannot be read"),
    ("no semantics", with_(semantics=None), "", "cannot be read"),
    ("numbers that are none", with_(epsilon="small"), "", "cannot be read"),
]


@pytest.mark.parametrize(("change", "text", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_and_why(
    models: Path, change: Callable[[Certificate], Certificate], text: str, reason: str
) -> None:
    write(models, change(stated(models)))
    with pytest.raises(KernelError) as refused:
        admission(models, text)
    assert reason in str(refused.value)
    assert f"run `lrai verify {path(models).parent}`" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"format": 1', b"[" * 100_000], ids=repr)
def test_a_file_that_is_no_certificate(models: Path, content: bytes) -> None:
    path(models).write_bytes(content)
    with pytest.raises(KernelError, match="cannot be read"):
        admission(models)


def test_what_was_changed_afterwards(models: Path) -> None:
    path(models).write_text(json.dumps({**stated(models), "coverage": {"held_out": 1.0}}))
    with pytest.raises(KernelError, match="states id ="):
        admission(models)


def test_without_a_certificate_the_original_serves_and_the_check_says_why(models: Path) -> None:
    path(models).unlink()
    spec = spec_of(models)
    loaded, refused = load_all(spec, 1, models.parent / "state", models.parent / "slot")
    assert [each.name for each in loaded] == ["original"]
    assert "it has no certificate" in refused["half"]
    (problem,) = check(models)
    assert "it has no certificate" in problem.what and "lrai verify" in problem.what


def test_a_certificate_is_about_one_output(models: Path) -> None:
    spec = spec_of(models)
    folder = path(models).parent
    numbers = next(each for each in spec.outputs if each.datatype == "FP32")
    two = replace(spec, outputs=(*spec.outputs, replace(numbers, name="other")))
    with pytest.raises(KernelError, match="one output of numbers"):
        admit(two, manifests.read(folder / manifests.MANIFEST), folder)
