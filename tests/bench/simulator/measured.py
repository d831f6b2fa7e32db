"""What was measured on the real machine: batch profiles, runs of the pipeline, and what was fitted to them.

`python -m tests.bench.simulator.measured` measures the profiles of the nets of the benchmarks and keeps them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kernels.repository import load_model
from kernels.session import Session
from tests import nets
from tests.bench.simulator.machine import Machine, Profile

HERE = Path(__file__).parent
RUNS = HERE / "runs.json"
PROFILES = HERE / "profiles.json"
FITTED = HERE / "fitted.json"
NETS: dict[str, tuple[int, ...]] = {
    "mlp": (30, 128, 64, 2),
    "mlp-a": (30, 128, 64, 2),
    "mlp-b": (12, 64, 32, 2),
    "risk-scorer": (64, 128, 3),
    "wide": (784, 32, 32, 32, 10),
    "heavy": (256, 1024, 1024, 1024, 10),
}


@dataclass(frozen=True)
class Run:
    """One measured run of requests for `model`: at a steady rate in one lane, and `backlog` more in the lane
    `backlog_priority`, there from the start. `events_s`: answers a second. NaN is not measured."""

    name: str
    model: str
    priority: str
    rate: float
    windows_ms: tuple[float, float, float]
    p50_ms: float = float("nan")
    p95_ms: float = float("nan")
    broker_cores: float = float("nan")
    events_s: float = float("nan")
    backlog: int = 0
    backlog_priority: str = "bulk"
    rounds: int = 1
    """the figures are medians of so many"""
    source: str = ""
    fit: bool = True


def runs(path: Path = RUNS) -> list[Run]:
    """Those that were kept."""
    return [Run(**{**each, "windows_ms": tuple(each["windows_ms"])}) for each in json.loads(path.read_text())]


def keep(run: Run, path: Path = RUNS) -> None:
    """Adds a run that was measured, in the place of one of the same name."""
    known = [each for each in json.loads(path.read_text()) if each["name"] != run.name]
    stated = {name: each for name, each in asdict(run).items() if each == each}  # without NaN
    path.write_text("[\n" + ",\n".join(f" {json.dumps(each)}" for each in [*known, stated]) + "\n]\n")


def profile(name: str) -> Profile:
    """Of one of NETS, as it was measured."""
    stated = json.loads(PROFILES.read_text())[name]
    return Profile(tuple(stated["rows"]), tuple(stated["seconds"]), stated["best_rows"])


def machine(**changes: Any) -> Machine:
    """The machine as it was fitted, with changes."""
    return replace(Machine(**json.loads(FITTED.read_text())["machine"]), **changes)


def measure(build: Callable[[Path], object]) -> Profile:
    """The batch profile of a net on this machine, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m" / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        build(path)
        found = Session(load_model(Path(folder), "m", "1")).profile(1.0)
    return Profile(tuple(found.seconds), tuple(found.seconds.values()), found.best_rows)


def mlp(sizes: Sequence[int]) -> Profile:
    return measure(lambda path: nets.mlp(path, sizes, 1))


def main() -> None:
    """Measures the profiles anew."""
    found = {name: mlp(sizes) for name, sizes in NETS.items()}
    PROFILES.write_text(json.dumps({name: vars(each) for name, each in found.items()}, indent=1) + "\n")
    for name, each in found.items():
        print(
            f"{name}: best {each.best_rows} rows, {each.row_s * 1e6:.2f} us a row, {each.run_s(1) * 1e6:.0f} us for one"
        )


if __name__ == "__main__":
    main()
