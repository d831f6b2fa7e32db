"""An actor's lane: poison is found by halving, its neighbours are answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.session import KernelError
from schemas import framing
from streams.coalesce import Coalesce
from streams.steering import Report
from streams.window import Window
from tests.samples import encoded, request, spec, tensor, window
from tests.stages import Ends, Identity, actor, coalesce, outputs, through, topic_of
from workers.actor import Unavailable
from workers.reporting import Reporting

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


def batches_of(stage: Coalesce, values: Sequence[bytes], at_ms: int, first: int = 0) -> list[bytes]:
    """The batch records of a window of requests that were appended at that time, at offsets from `first` on."""
    given = replace(window(values, start=first), timestamp=np.full(len(values), at_ms))
    found = stage(given, at_ms)
    return [each for block in found.blocks if ".batches." in block.topic for each in block.values]


def test_reports_tell_how_long_answers_took_by_the_plan_they_came_under() -> None:
    stage, lane = coalesce([NET]), actor(NET, Identity())
    lane.reporting = Reporting(NET, "standard", "w", "t.scheduler", lane.limits, objective_s=60)
    now_ms = time.time_ns() // 1_000_000  # the end of a run is not a test's to choose
    stage.epoch = lambda: 7
    late = batches_of(stage, [value(1.0), value(2.0)], now_ms - 70_000)
    stage.epoch = lambda: 8
    fresh = batches_of(stage, [value(3.0)], now_ms, first=2)
    outcome = lane(window([*late, *fresh], topic=topic_of(NET)), now_ms)
    (block,) = [block for block in outcome.blocks if block.topic == "t.scheduler"]
    report = Report.of(framing.decode(block.values[0])[1])
    assert {plan: (answers, within) for plan, (answers, within, _) in report.plans.items()} == {7: (2, 0), 8: (1, 1)}
    assert report.plans[7][2] >= 70_000 > 60_000 >= report.plans[8][2]
    assert report.missed
    again = lane(window(batches_of(stage, [value(1.0)], now_ms), topic=topic_of(NET)), now_ms)
    assert not [block for block in again.blocks if block.topic == "t.scheduler"], "twice a second at most"
