"""A device answers as the CPU does, alone and in the place where an actor has it, and what it cannot do is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kernels.compile.compiler import Options, compile_model
from kernels.devices import CPU, Device, NoDevice
from kernels.loading import load_all
from kernels.repository import load_model
from kernels.session import Session
from kernels.spec import ModelSpec
from tests import nets, transformers
from workers.isolate import IsolatedKernel

Feed = dict[str, npt.NDArray[np.generic]]
RNG = np.random.default_rng(0)
CASES: dict[str, tuple[Callable[[Path], object], Callable[[int], Feed]]] = {
    "mlp": (nets.mlp, lambda rows: {"features": RNG.standard_normal((rows, 30), np.float32)}),
    "resnet": (
        lambda path: nets.resnet50(path, image=64),
        lambda rows: {"pixels": RNG.integers(0, 256, (rows, 64, 64, 3), np.uint8)},
    ),
    "bert": (
        lambda path: transformers.bert(path, transformers.TINY),
        lambda rows: dict(transformers.tokens(rows, 16, transformers.TINY)),
    ),
}


def model(tmp_path: Path, build: Callable[[Path], object]) -> ModelSpec:
    build(tmp_path / "m/1/model.onnx")
    (tmp_path / "m/1/model.toml").write_text('require_certificate = "none"\n')
    return load_model(tmp_path, "m", "1")


def apart(found: npt.NDArray[np.floating], wanted: npt.NDArray[np.floating]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_the_cpu_whatever_the_rows(tmp_path: Path, device: Device, name: str) -> None:
    build, feed = CASES[name]
    spec = model(tmp_path, build)
    here, there = Session(spec), Session(spec, device=device)
    assert (there.batches is not None and there.batches.pinned) is device.pinned
    for rows in (1, 5, 2, 16):
        batch = feed(rows)
        found, wanted = there.run(batch), here.run(batch)
        for output, array in wanted.items():
            assert apart(found[output], array) < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_what_is_compiled_for_it_serves_there_alone(tmp_path: Path, device: Device, name: str) -> None:
    build, feed = CASES[name]
    options = Options(agreement_min=0.0, device=device)
    done = compile_model(model(tmp_path, build), None, options, lambda step: None)
    tried = {each.name: each.refused for each in done.tried}
    assert set(device.halves) <= set(tried)
    for half in device.halves:
        assert "is as good in everything" in tried[half] or not tried[half]
    spec = load_model(tmp_path, "m", "1")
    found, refused = load_all(spec, 1, tmp_path / "profiles", tmp_path / "slot", device)
    assert not refused
    assert {each.name for each in found} == {"original", *(each.name for each in done.kept)}
    batch = feed(4)
    exact = Session(spec).run(batch)
    for each in found:
        for output, array in each.session.run(batch).items():
            assert apart(array, exact[output]) < (1e-3 if each.name == "original" else 0.5)
    elsewhere, refused = load_all(spec, 1, tmp_path / "profiles", tmp_path / "slot", CPU)
    assert [each.name for each in elsewhere] == ["original"]
    assert all("--device cpu" in why for why in refused.values())


def test_a_run_apart_is_on_the_device_too(tmp_path: Path, device: Device) -> None:
    build, feed = CASES["mlp"]
    spec = model(tmp_path, build)
    (found,), _ = load_all(spec, 1, tmp_path / "profiles", tmp_path / "slot", device)
    batch = feed(3)
    kernel = IsolatedKernel(found.how, run_s_max=60.0)
    assert apart(kernel.run(batch)["probabilities"], found.session.run(batch)["probabilities"]) < 1e-4
    kernel._started().communicate(timeout=60)


def test_trees_do_not_run_there_and_say_so(tmp_path: Path, device: Device) -> None:
    spec = model(tmp_path, lambda path: nets.boosted_trees(path, 10, 3, 8))
    with pytest.raises(NoDevice, match=r"TreeEnsemble.* on the CPU; set device = 'cpu'|nothing of the model"):
        Session(spec, device=device)
