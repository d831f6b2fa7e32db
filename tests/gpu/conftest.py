"""Tests of a device that is there: `pytest tests/gpu --device cuda`. Without the option they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels import devices
from kernels.devices import Device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="cuda, tensorrt or openvino; cuda:1 is another GPU")


@pytest.fixture
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    name = request.config.getoption("--device")
    if name is None:
        pytest.skip("name a device: --device cuda")
    return devices.device(name, tmp_path / "engines")
