"""A search that is broken off goes on from its open leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from kernels.proof.ir import BadProblem
from kernels.proof.split import Outcome
from kernels.proof.verify import verify
from lrai import app
from tests.unit.test_proof_verify import net

LOW, HIGH = -np.ones((1, 4)), np.ones((1, 4))
EPSILON = 0.0777  # between what is seen and the bound of the whole box: some cuts are needed
PLENTY_S = 600.0


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", lambda w: np.rint(w * 64) / 64)


def asked(pair: tuple[Path, Path], state: Path | None, epsilon: float = EPSILON, stop_after: int = 1000) -> Outcome:
    """The verdict; Ctrl-C comes after so many steps."""
    steps: list[int] = []

    def on_progress(done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == stop_after:
            raise KeyboardInterrupt

    found = verify(*pair, LOW, HIGH, epsilon, "raw", PLENTY_S, None, on_progress, statistics=False, state=state)
    return found.outcomes[0]


def sides(outcome: Outcome) -> set[tuple[float, ...]]:
    return {(*box.low, *box.high) for box in outcome.root.leaves()}


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    state = tmp_path / "state.json"
    with pytest.raises(KeyboardInterrupt):
        asked(pair, state, stop_after=3)
    kept = json.loads(state.read_text())["tasks"][0]["tree"]
    cuts = [each for each in kept if len(each) == 2]
    closed = [each for each in kept if len(each) == 3 and float.fromhex(each[0]) <= EPSILON]
    assert cuts and len(closed) < len(cuts) + 1
    whole, resumed = asked(pair, None), asked(pair, state)
    assert whole.verdict == resumed.verdict == "PROVED"
    assert whole.seen <= resumed.bound <= EPSILON
    assert sides(whole) == sides(resumed)
    assert asked(pair, state, stop_after=1).verdict == "PROVED"  # nothing is left to do


def test_a_refuted_task_is_replayed(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    state = tmp_path / "state.json"
    assert asked(pair, state, 0.01).verdict == asked(pair, state, 0.01).verdict == "REFUTED"


@pytest.mark.parametrize(("epsilon", "reason"), [(0.08, "other epsilon"), (EPSILON, "damaged")])
def test_another_state_is_refused(tmp_path: Path, pair: tuple[Path, Path], epsilon: float, reason: str) -> None:
    state = tmp_path / "state.json"
    asked(pair, state)
    if reason == "damaged":
        state.write_text(state.read_text().replace('"x"', '"z"'))
    with pytest.raises(BadProblem, match=reason):
        asked(pair, state, epsilon)


def boxes(path: Path, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> Path:
    np.savez(path, low=low, high=high)
    return path


def test_the_command_keeps_its_work(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    command = ["verify", "--original", str(pair[0]), "--variant", str(pair[1]), "--epsilon", str(EPSILON), "--output",
               "raw", "--box", str(boxes(tmp_path / "box.npz", LOW, HIGH)), "--json",
               "--resume", str(tmp_path / "state.json")]  # fmt: skip
    for _ in range(2):
        ran = CliRunner().invoke(app, command)
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.stdout)["counts"]["PROVED"] == 1
    ran = CliRunner().invoke(app, ["verify", str(tmp_path), "--resume", str(tmp_path / "state.json")])
    assert "--resume goes with" in str(ran.exception)
