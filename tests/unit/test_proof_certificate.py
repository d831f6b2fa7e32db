"""Certificates: written for a variant's folder, and held against the independent checker."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from kernels import manifest as manifests
from kernels.manifest import BatchProfile, Calibration, Manifest, RunOptions, VariantError
from kernels.proof import checker
from kernels.proof.certificate import identity
from lrai import app
from tests.unit.test_proof_verify import halves, net


def variant(folder: Path, path: Path, requests_per_run: int = 0) -> Path:
    """models/m/1/variants/half with a manifest."""
    version = folder / "m" / "1"
    made = version / "variants" / "half"
    made.mkdir(parents=True)
    net(version / "model.onnx", ending="Softmax")
    path.rename(made / "model.onnx")
    np.save(version / "rows.npy", np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32))
    manifest = Manifest(
        "half", "weights16", "w16", manifests.sha256(version, ["model.onnx"]), manifests.sha256(made, ["model.onnx"]),
        Calibration(), "0", "0", (), "CPUExecutionProvider", {}, RunOptions(), requests_per_run,
        BatchProfile(1, 0.0, 0.0, 1, {1: 0.0}), 0, 0, VariantError(0.0, 0.0, None, 0),
    )  # fmt: skip
    manifest.write(made / manifests.MANIFEST)
    return made


def test_a_variant_is_certified_and_the_checker_agrees(tmp_path: Path) -> None:
    made = variant(tmp_path, net(tmp_path / "b.onnx", halves, "Softmax"))
    ran = CliRunner().invoke(app, ["verify", str(made), "--epsilon", "0.01", "--timeout", "4", "--json"])
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert said["verdict"] == "PROVED"
    assert said["coverage"]["rows"] == 20 and 0 <= said["coverage"]["held_out"] <= 1
    assert said["statistical"]["hits"] == 0
    path = made / "certificate.json"
    found = json.loads(path.read_text())
    assert found["id"] == identity(found) == said["id"] == manifests.read(made / manifests.MANIFEST).certificate
    report = checker.check(path)
    assert report.verdict == "PROVED", report.reason
    assert report.bound is not None and report.bound <= 0.01
    ran = CliRunner().invoke(app, ["certificate", "check", str(path)])
    assert ran.exit_code == 0
    honest = path.read_text()
    found["regions"][0]["tree"]["bound"] = (1e-9).hex()
    path.write_text(json.dumps({**found, "id": identity(found)}))
    assert checker.check(path).verdict == "REJECTED"
    path.write_text(honest)
    (made / "model.onnx").write_bytes((tmp_path / "m" / "1" / "model.onnx").read_bytes())
    assert checker.check(path).verdict == "REJECTED"


def test_the_cut_region_of_a_coarse_variant_is_a_union(tmp_path: Path) -> None:
    made = variant(tmp_path, net(tmp_path / "b.onnx", lambda w: np.rint(w * 64) / 64, "Softmax"))
    ran = CliRunner().invoke(app, ["verify", str(made), "--epsilon", "0.003", "--timeout", "1.5", "--json"])
    assert ran.exit_code in (1, 2), ran.output
    report = checker.check(made / "certificate.json")
    assert report.verdict in ("PARTIAL", "UNKNOWN"), report.reason
    assert (report.leaves > 0) == (report.verdict == "PARTIAL")


def test_what_depends_on_its_batch_is_refused(tmp_path: Path) -> None:
    made = variant(tmp_path, net(tmp_path / "b.onnx", halves, "Softmax"), requests_per_run=1)
    ran = CliRunner().invoke(app, ["verify", str(made)])
    assert "other rows" in str(ran.exception)
    manifest = manifests.read(made / manifests.MANIFEST)
    replace(manifest, requests_per_run=0, provider="CUDAExecutionProvider").write(made / manifests.MANIFEST)
    assert "CUDA" in str(CliRunner().invoke(app, ["verify", str(made)]).exception)
