"""Execution providers: what is not there, or falls back silently, is an error that says what to install."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from kernels import devices
from kernels.devices import NoDevice


def test_the_processor_is_always_there() -> None:
    found = devices.device("cpu")
    assert found.provider == "CPUExecutionProvider"
    devices.check_provider(found, [found.provider])


@pytest.mark.parametrize("name", [each for each in devices.DEVICES if each != "cpu"])
def test_what_this_runtime_lacks_says_what_to_install(name: str) -> None:
    wanted = devices.DEVICES[name]
    if wanted.provider in onnxruntime.get_available_providers():
        assert devices.device(name) is wanted
        return
    with pytest.raises(NoDevice, match=wanted.package.split(",")[0]):
        devices.device(name)


def test_an_unknown_name_lists_the_others() -> None:
    with pytest.raises(NoDevice, match="cpu, cuda, tensorrt, openvino"):
        devices.device("gpu")


@pytest.mark.parametrize("providers", [["CPUExecutionProvider"], []])
def test_a_silent_fall_back_is_an_error(providers: list[str]) -> None:
    with pytest.raises(NoDevice, match="fell back"):
        devices.check_provider(devices.DEVICES["cuda"], providers)


def test_features_of_the_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx avx2 avx512_vnni new\n")
    assert devices.cpu_features(tmp_path / "cpuinfo")[1:] == ("avx", "avx2", "avx512_vnni")
    assert len(devices.cpu_features(tmp_path / "missing")) == 1
