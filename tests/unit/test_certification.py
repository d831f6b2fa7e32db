"""What `lrai compile` says at its end: verdicts, the smallest variant that is proved, and how many bits would be."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infra.commands.certification import Certified, certify, fewest_bits
from kernels import gate, manifest
from kernels.compile import rows
from kernels.compile.compiler import Tried
from kernels.compile.rows import Rows
from kernels.repository import load_model
from kernels.spec import ModelSpec
from tests import nets
from tests.variants import add

FEATURES = 4
PATIENT_S = 60.0  # none of what is proved needs it
REFUTING_S = 20.0  # it is cut until then


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


def test_what_is_proved_is_named_and_serves(spec: ModelSpec, given: Rows) -> None:
    steps: list[str] = []
    found = certify(spec, kept(spec)[1:], given, PATIENT_S, steps.append)
    assert found.shown == {"fine": "PROVED"}
    assert found.notes == ("fine is the smallest that is proved: 0.0 kB, w15",)
    assert steps == ["fine: certifying"]
    folder = Path(spec.path).parent / "variants/fine"
    assert gate.admit(spec, manifest.read(folder / manifest.MANIFEST), folder).kind == "proved"


def test_what_is_refuted_shows_where(spec: ModelSpec, given: Rows) -> None:
    steps: list[str] = []
    found = certify(spec, kept(spec)[:1], given, REFUTING_S, steps.append)
    assert found.shown == {"coarse": "REFUTED"}
    assert steps == ["coarse: certifying", "bits that can be proved"]
    assert found.notes[0].startswith("coarse: it is ") and found.notes[0].endswith(f"coarse/{gate.FILE}")
    written = json.loads((Path(spec.path).parent / "variants/coarse" / gate.FILE).read_text())
    assert len(written["counterexample"]["x"]) == FEATURES


def test_how_many_bits_would_be_proved(spec: ModelSpec, given: Rows) -> None:
    number, *rest = fewest_bits(spec, given, time.monotonic() + PATIENT_S).split()
    assert 3 < int(number) <= 15
    assert f"{int(number) - 1} bits were not" in " ".join(rest)
    assert fewest_bits(spec, given, time.monotonic()) == ""


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
        found = certify(spec, [replace(fine, manifest=alone)], given, PATIENT_S, lambda step: None)
    finally:
        fine.manifest.write(folder / manifest.MANIFEST)
    assert found.shown == {"fine": "none"}
    assert "other rows of a run" in found.notes[0]
