"""What a lane runs is written down; after the second death at a place its window runs apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streams.window import Range, Window
from workers.journal import DEATHS_MAX, LaneJournal
from workers.slot import RUNNING_BYTES_MAX, Slot


def window(*ranges: Range) -> Window:
    nothing = np.zeros(0, np.int64)
    return Window([], [], [], [], nothing, nothing, nothing, ranges)


def journal(slot: Slot) -> LaneJournal:
    return LaneJournal(slot, 0)


PLACE = Range("t", 0, 10, 20, 10)


def test_after_two_deaths_at_a_place_it_runs_apart(tmp_path: Path) -> None:
    apart = []
    for _ in range(DEATHS_MAX + 1):
        with Slot(tmp_path / "slot", 1) as slot:
            apart.append(journal(slot).begins(window(PLACE)))
    assert apart == [False, False, True]


def test_a_death_in_the_loaded_kernel_is_counted_by_the_successor_only(tmp_path: Path) -> None:
    with Slot(tmp_path / "slot", 1) as slot:
        first = journal(slot)
        for _ in range(5):
            assert first.begins(window(PLACE)) is False
            first.ended()


def test_what_was_survived_is_forgotten(tmp_path: Path) -> None:
    with Slot(tmp_path / "slot", 1) as slot:
        journal(slot).begins(window(PLACE))
        journal(slot).begins(window(PLACE))
        third = journal(slot)
        assert third.begins(window(PLACE)) is True
        third.ended()
        assert third.begins(window(PLACE)) is False
        third.ended()
        assert journal(slot).begins(window(PLACE)) is False


@pytest.mark.parametrize(
    ("later", "apart"),
    [
        (Range("t", 0, 0, 11, 11), True),
        (Range("t", 0, 19, 30, 5), True),
        (Range("t", 0, 0, 10, 10), False),
        (Range("t", 0, 20, 30, 10), False),
        (Range("t", 1, 10, 20, 10), False),
        (Range("other", 0, 10, 20, 10), False),
    ],
)
def test_windows_that_reach_into_the_place(tmp_path: Path, later: Range, apart: bool) -> None:
    with Slot(tmp_path / "slot", 1) as slot:
        for _ in range(DEATHS_MAX):
            journal(slot).begins(window(PLACE))
        assert journal(slot).begins(window(later)) is apart


def test_many_places_fit_the_slot(tmp_path: Path) -> None:
    ranges = [Range("topic", partition, 2**40, 2**41, 1) for partition in range(3000)]
    with Slot(tmp_path / "slot", 1) as slot:
        for _ in range(DEATHS_MAX):
            journal(slot).begins(window(*ranges))
        assert 0 < len(slot.read().lanes[0].running) <= RUNNING_BYTES_MAX
        assert journal(slot).begins(window(ranges[0])) is True


@pytest.mark.parametrize("torn", [b"{", b"[]", b'{"deaths": 1}', b'{"deaths": 1, "places": [[1]]}', b"\xff"])
def test_a_torn_note_is_no_note(tmp_path: Path, torn: bytes) -> None:
    with Slot(tmp_path / "slot", 1) as slot:
        slot.running(0, torn)
        assert journal(slot).begins(window(PLACE)) is False
