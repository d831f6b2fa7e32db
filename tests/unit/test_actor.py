"""An actor's lane: poison is found by halving, its neighbours are answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.session import KernelError
from streams.window import Window
from tests.samples import encoded, request, spec, tensor
from tests.stages import Ends, Identity, actor, coalesce, outputs, through
from workers.actor import Unavailable

NET = spec()
POISON = 666.0


class Poisoned(Identity):
    """Fails on a run that holds a certain value."""

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if (inputs["features"] == POISON).any():
            self.runs.append(-len(inputs["features"]))
            raise KernelError("666 is the number of the beast")
        return super().run(inputs)


def value(*rows: float) -> bytes:
    values = np.repeat(np.array(rows, np.float32)[:, None], 3, axis=1)
    return encoded(request([tensor("features", values)]))


def ended(
    rows: list[list[float]], kernel: Identity, rows_max: int = 64, pool: ThreadPoolExecutor | None = None
) -> Ends:
    ends = through([value(*each) for each in rows], coalesce([NET]), [actor(NET, kernel, rows_max, pool=pool)])
    ends.check(len(rows))
    return ends


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from((1.0, 2.0, 3.0, POISON)), min_size=1, max_size=3), min_size=1, max_size=20))
def test_poison_fails_alone(rows: list[list[float]]) -> None:
    poison_fails_alone(rows, ended(rows, Poisoned(), rows_max=8))
    with ThreadPoolExecutor(2) as pool:
        poison_fails_alone(rows, ended(rows, Poisoned(), rows_max=8, pool=pool))


def poison_fails_alone(rows: list[list[float]], ends: Ends) -> None:
    for i, each in enumerate(rows):
        if POISON in each:
            assert (ends.code(i), ends.results[i][0]["status"]) == ("kernel_failed", "FAILED")
            assert "666 is the number" in ends.message(i)
        else:
            assert outputs(ends.results[i][0])["value"][:, 0].tolist() == each


class Meeting(Identity):
    """A run ends when another one has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Barrier(2, timeout=10)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.both.wait()
        return super().run(inputs)


def test_long_runs_go_at_once() -> None:
    with ThreadPoolExecutor(2) as pool:
        ends = ended([[1.0], [2.0], [3.0], [4.0]], Meeting(), pool=pool)
    assert [outputs(ends.results[i][0])["value"][0, 0] for i in range(4)] == [1, 2, 3, 4]


def test_halving_takes_few_runs() -> None:
    kernel = Poisoned()
    ended([[1.0]] * 31 + [[POISON]], kernel)
    assert len(kernel.runs) <= 2 * 5 + 1


def test_a_model_that_is_away_is_said_to_be() -> None:
    ends = through([value(1.0)] * 3, coalesce([NET]), [actor(NET, Unavailable("net keeps crashing; later"))])
    ends.check(3)
    assert {ends.results[i][0]["status"] for i in range(3)} == {"FAILED"}
    assert {ends.code(i) for i in range(3)} == {"model_unavailable"}
    assert "later" in ends.message(0)


class Noted:
    """A journal that notes when runs begin and end."""

    def __init__(self, kernel: Identity) -> None:
        self.kernel = kernel
        self.notes: list[str] = []

    def begins(self, window: Window) -> bool:
        self.notes.append(f"begins {len(window.values)}")
        return False

    def ended(self) -> None:
        self.notes.append(f"ended {len(self.kernel.runs)}")


def test_the_journal_frames_the_runs() -> None:
    kernel = Identity()
    lane = actor(NET, kernel)
    journal = Noted(kernel)
    lane.journal = journal
    through([value(1.0)], coalesce([NET]), [lane])
    assert journal.notes == ["begins 1", "ended 1"]


def test_shapes_that_are_equal_run_together() -> None:
    kernel = Identity()
    ended([[1.0]] * 5, kernel)
    assert kernel.runs == [5]
