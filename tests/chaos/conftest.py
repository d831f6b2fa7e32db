"""A place for each test: its own prefix, store, state and models on the shared Kafka and Postgres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import nets
from tests.chaos import models
from tests.chaos.harness import Place

MAKERS: dict[str, Callable[[Path], Path]] = {
    "killer": models.killer,
    "crashing": models.crashing,
    "hanging": models.hanging,
}


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a measured figure past pytest's capturing."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    return lambda line: terminal.write_line(f"\n  {line}") if terminal else None


@pytest.fixture
def make_place(kafka: str, store_url: str, prefix: str, tmp_path: Path) -> Callable[..., Place]:
    """A place with these models: an MLP, unless the name is one of MAKERS."""

    def make(*names: str) -> Place:
        for name in names:
            MAKERS.get(name, nets.mlp)(tmp_path / "models" / name / "1" / "model.onnx")
        return Place(kafka, store_url, prefix, tmp_path / "state", tmp_path / "models")

    return make
