"""Manifests: what is written is read; what is damaged is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels import manifest
from kernels.manifest import (
    BadManifest,
    BatchProfile,
    Calibration,
    Golden,
    Layer,
    Manifest,
    OutputError,
    RunOptions,
    VariantError,
)

EXAMPLE = Manifest(
    name="int8",
    kind="int8",
    bits="w8a8",
    original_sha256="a" * 64,
    model_sha256="b" * 64,
    calibration=Calibration("file", "c" * 64, 100),
    compiler="0.1.0",
    runtime="1.31.1",
    cpu_features=("avx512_vnni",),
    provider="CPUExecutionProvider",
    provider_options={},
    session=RunOptions("all", ("MatMulAddFusion",), {"session.intra_op.allow_spinning": "0"}),
    requests_per_run=0,
    profile=BatchProfile(8, 1e-5, 1e-6, 32, {1: 1.1e-5, 8: 1.8e-5}),
    file_bytes=1000,
    memory_bytes=2000,
    error=VariantError(0.01, 0.001, None, 50, {"y": OutputError(0.1, 0.01)}),
    layers=(Layer("fc", "Gemm", 8, 8, 0.01, "first under the budget", 0.0),),
    golden=Golden(rows=4),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "variants/int8"
    folder.mkdir(parents=True)
    EXAMPLE.write(folder / "manifest.json")
    assert manifest.read(folder / "manifest.json") == EXAMPLE
    assert manifest.read_variants(tmp_path) == {"int8": EXAMPLE}
    assert manifest.read_original(tmp_path) is None
    assert [each.name for each in folder.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda found: found.pop("profile"), "profile: field required"),
        (lambda found: found.update(format=2), "format is 2"),
        (lambda found: found.update(file_bytes="many"), "file_bytes"),
        (lambda found: found["session"].update(graph_optimization_level="most"), "session.graph_optimization_level"),
        (lambda found: found["layers"][0].update(weight_bits=None), "layers.0.weight_bits"),
        (lambda found: found["calibration"].update(source="guess"), "calibration.source"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[dict[str, Any]], object], named: str) -> None:
    EXAMPLE.write(tmp_path / "manifest.json")
    found = json.loads((tmp_path / "manifest.json").read_text())
    damage(found)
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(BadManifest, match=named):
        manifest.read(tmp_path / "manifest.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_no_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadManifest, match="lrai compile"):
        manifest.read(tmp_path / "manifest.json")
    with pytest.raises(BadManifest, match="cannot be read"):
        manifest.read(tmp_path / "missing.json")


def test_a_folder_renamed_by_hand_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "variants/other"
    folder.mkdir(parents=True)
    EXAMPLE.write(folder / "manifest.json")
    with pytest.raises(BadManifest, match="'other'"):
        manifest.read_variants(tmp_path)
