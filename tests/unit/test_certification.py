"""What `lrai compile` says at its end: verdicts, the smallest variant that is proved, and how many bits would be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infra.commands.certification import Certified, certify
from kernels import gate, manifest
from kernels.compile import rows
from kernels.compile.compiler import Tried
from kernels.compile.rows import Rows
from kernels.repository import load_model
from kernels.spec import ModelSpec
from tests import nets
from tests.variants import add

FEATURES = 4


def rounded(bits: int, path: Path) -> None:
    """The original with each weight matrix rounded evenly."""
    model = onnx.load(path.parents[2] / "model.onnx")
    for each in model.graph.initializer:
        array = numpy_helper.to_array(each)
        if array.ndim == 2:
            step = np.abs(array).max() / np.float32(2 ** (bits - 1) - 1)
            each.CopyFrom(numpy_helper.from_array(np.rint(array / step) * step, each.name))
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """m/1 with `fine`, of 15 bits, and `coarse`, of 3, which calls itself smaller."""
    models = tmp_path_factory.mktemp("certification")
    nets.mlp(models / "m/1/model.onnx", (FEATURES, 8, 3))
    found = load_model(models, "m", "1")
    for name, bits in (("fine", 15), ("coarse", 3)):
        add(found, name, build=lambda path, bits=bits: rounded(bits, path), file_bytes=bits, bits=f"w{bits}")
    return load_model(models, "m", "1")


@pytest.fixture(scope="module")
def given(spec: ModelSpec) -> Rows:
    values = np.random.default_rng(1).uniform(-1, 1, (60, FEATURES)).astype(np.float32)
    return rows.given([{"features": values}], spec, "rows", "file")


def kept(spec: ModelSpec) -> list[Tried]:
    found = manifest.read_variants(Path(spec.path).parent)
    return [Tried(name, "", each) for name, each in found.items()]


def test_what_is_proved_and_what_is_not(spec: ModelSpec, given: Rows) -> None:
    steps: list[str] = []
    found = certify(spec, kept(spec), given, 20.0, steps.append)
    assert found.shown == {"coarse": "REFUTED", "fine": "PROVED"}
    smallest, refuted, bits = found.notes
    assert smallest.startswith("fine is the smallest that is proved")
    assert refuted.startswith("coarse: it is 0.") and refuted.endswith(f"coarse/{gate.FILE}")
    number = int(bits.split()[0])
    assert 3 < number <= 15 and f"{number - 1} bits were not" in bits
    assert steps == ["coarse: certifying", "fine: certifying", "bits that can be proved"]
    counterexample = json.loads((Path(spec.path).parent / "variants/coarse" / gate.FILE).read_text())["counterexample"]
    assert len(counterexample["x"]) == FEATURES
    folder = Path(spec.path).parent / "variants/fine"
    assert gate.admit(spec, manifest.read(folder / manifest.MANIFEST), folder).kind == "proved"


def test_without_time_or_rows_there_is_no_certificate(spec: ModelSpec, given: Rows) -> None:
    assert certify(spec, kept(spec), given, 0.0, lambda step: None) == Certified({})
    found = certify(spec, kept(spec), None, 9.0, lambda step: None)
    assert found.shown == {} and "--calibration" in found.notes[0]
    assert certify(spec, [], given, 9.0, lambda step: None) == Certified({})


def test_what_has_no_certificate_says_why(spec: ModelSpec, given: Rows) -> None:
    """A variant whose answers depend on its batch-mates."""
    (_, fine) = kept(spec)
    assert fine.manifest is not None
    folder = Path(spec.path).parent / "variants/fine"
    alone = replace(fine.manifest, requests_per_run=1)
    alone.write(folder / manifest.MANIFEST)
    try:
        found = certify(spec, [replace(fine, manifest=alone)], given, 4.0, lambda step: None)
    finally:
        fine.manifest.write(folder / manifest.MANIFEST)
    assert found.shown == {"fine": "none"}
    assert "other rows of a run" in found.notes[0]
