"""Slot files: what survives the writer, and what a reader may meet."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from workers.slot import ERROR_BYTES_MAX, RUNNING_BYTES_MAX, LaneState, Slot, SlotState


def test_fresh_slot_is_empty(tmp_path: Path) -> None:
    with Slot(tmp_path / "deep" / "slot", 2) as slot:
        assert slot.read() == SlotState(0, 0.0, (LaneState(0.0, b""), LaneState(0.0, b"")), "", 0)
        assert not slot.read().ready


def test_lanes_do_not_mix(tmp_path: Path) -> None:
    with Slot(tmp_path / "slot", 3) as slot:
        for lane in range(3):
            slot.beat(lane, lane + 0.5)
            slot.running(lane, bytes([65 + lane]) * RUNNING_BYTES_MAX)
        slot.error("é" * ERROR_BYTES_MAX)
        slot.done(1)
        state = slot.read()
    assert [lane.heartbeat for lane in state.lanes] == [0.5, 1.5, 2.5]
    assert [lane.running for lane in state.lanes] == [b"A" * RUNNING_BYTES_MAX, b"", b"C" * RUNNING_BYTES_MAX]
    assert state.last_error == "é" * (ERROR_BYTES_MAX // 2)
    assert state.error_pid == os.getpid()


def test_successor_sees_what_a_killed_process_was_running(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        slot = Slot(tmp_path / "slot", 1)
        slot.begin()
        slot.ready(7.0)
        slot.beat(0, 8.0)
        slot.running(0, b"topic 3 17")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with Slot(tmp_path / "slot", 1) as slot:
        assert slot.read() == SlotState(pid, 7.0, (LaneState(8.0, b"topic 3 17"),), "", 0, 1)
        slot.begin()
        assert slot.read() == SlotState(os.getpid(), 0.0, (LaneState(0.0, b"topic 3 17"),), "", 0, 2)


def test_reader_sees_the_writer_through_its_own_mapping(tmp_path: Path) -> None:
    with Slot(tmp_path / "slot", 1) as writer, Slot(tmp_path / "slot", 1) as reader:
        writer.beat(0, 1.25)
        writer.ready(1.5)
        assert reader.read().lanes[0].heartbeat == 1.25
        assert reader.read().ready


def test_another_number_of_lanes_replaces_the_file_and_leaves_the_old_mapping_alone(tmp_path: Path) -> None:
    with Slot(tmp_path / "slot", 3) as old, Slot(tmp_path / "slot", 1) as new:
        old.running(2, b"old")
        assert old.read().lanes[2].running == b"old"
        assert new.read().lanes == (LaneState(0.0, b""),)
    assert os.listdir(tmp_path) == ["slot"]


@pytest.mark.parametrize("seed", range(20))
def test_reader_survives_any_content(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "slot"
    Slot(path, 2).close()
    noise = random.Random(seed)
    with path.open("r+b") as file:
        file.seek(8)
        file.write(noise.randbytes(path.stat().st_size - 8))
    with Slot(path, 2) as slot:
        state = slot.read()
    assert len(state.lanes) == 2
    assert all(len(lane.running) <= RUNNING_BYTES_MAX for lane in state.lanes)


@pytest.mark.parametrize("content", [b"", b"x", b"not a slot" * 5000])
def test_file_that_is_no_slot_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "slot").write_bytes(content)
    with Slot(tmp_path / "slot", 1) as slot:
        assert slot.read().pid == 0


def test_bounds(tmp_path: Path) -> None:
    with Slot(tmp_path / "slot", 1) as slot:
        slot.running(0, b"before")
        with pytest.raises(ValueError, match="8193 bytes"):
            slot.running(0, b"x" * (RUNNING_BYTES_MAX + 1))
        with pytest.raises(ValueError, match="lane is 1"):
            slot.beat(1, 0.0)
        with pytest.raises(ValueError, match="lane is -1"):
            slot.done(-1)
        assert slot.read().lanes[0].running == b"before"
    with pytest.raises(ValueError, match="at least 1"):
        Slot(tmp_path / "slot", 0)
