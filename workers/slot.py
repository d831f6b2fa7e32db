"""A slot file: what one supervised process is doing, readable after its death.

The file is mapped into memory. A write costs about a microsecond and survives `kill -9` of the writer, because the
page cache holds it. The restarted process opens the same file and sees what its predecessor was running.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

RUNNING_BYTES_MAX = 8192
ERROR_BYTES_MAX = 4096

_MAGIC = 0x4C524131
_IDENTITY = struct.Struct("@II")
# native floats are stored with one 8-byte move: a reader in another process sees the old or the new time, no mixture
_TIME = struct.Struct("@d")
_NUMBER = struct.Struct("@I")
_PID, _STARTS, _READY_AT, _ERROR_PID, _ERROR_BYTES, _ERROR = 8, 12, 16, 24, 28, 32
_LANES = _ERROR + ERROR_BYTES_MAX
_LANE_RUNNING_BYTES, _LANE_RUNNING = 8, 16
_LANE_BYTES = _LANE_RUNNING + RUNNING_BYTES_MAX


@dataclass(frozen=True)
class LaneState:
    """One lane of a slot: the time of its last sign of life (`time.monotonic`, 0 for none) and what it runs."""

    heartbeat: float
    running: bytes


@dataclass(frozen=True)
class SlotState:
    """What a slot file says. `ready_at` is 0 until the process is ready;

    `error_pid` wrote `last_error`; `starts`: how many processes have begun here.
    """

    pid: int
    ready_at: float
    lanes: tuple[LaneState, ...]
    last_error: str
    error_pid: int
    starts: int = 0

    @property
    def ready(self) -> bool:
        return self.ready_at > 0


class Slot:
    """The slot file of one process with `lanes` lanes; opening an existing file keeps its content.

    Each lane is written by one thread at a time. A file of another layout or number of lanes is replaced.
    Raises ValueError for a number of lanes below 1, OSError when the file cannot be made.
    """

    def __init__(self, path: Path, lanes: int) -> None:
        if lanes < 1:
            raise ValueError(f"lanes is {lanes}; a slot has at least 1")
        self.path = path
        self.lanes = lanes
        size = _LANES + lanes * _LANE_BYTES
        identity = _IDENTITY.pack(_MAGIC, lanes)
        if not _fits(path, size, identity):
            _create(path, size, identity)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)

    def begin(self) -> None:
        """Takes the slot for this process: not ready, no heartbeats; what was running and the last error stay."""
        self._put_time(_READY_AT, 0.0)
        for lane in range(self.lanes):
            self._put_time(self._at(lane), 0.0)
        _NUMBER.pack_into(self._map, _STARTS, (self._number(_STARTS) + 1) % 2**32)
        _NUMBER.pack_into(self._map, _PID, os.getpid())

    def beat(self, lane: int, now: float) -> None:
        """Tells that the lane lives; `now` is `time.monotonic()`, one clock for all processes of a host."""
        self._put_time(self._at(lane), now)

    def running(self, lane: int, text: bytes) -> None:
        """Tells what the lane is about to run; ValueError above RUNNING_BYTES_MAX bytes."""
        if len(text) > RUNNING_BYTES_MAX:
            raise ValueError(f"running text has {len(text)} bytes; a slot holds at most {RUNNING_BYTES_MAX}")
        at = self._at(lane)
        self._put_text(at + _LANE_RUNNING_BYTES, at + _LANE_RUNNING, text)

    def done(self, lane: int) -> None:
        """Tells that what the lane was running has ended."""
        _NUMBER.pack_into(self._map, self._at(lane) + _LANE_RUNNING_BYTES, 0)

    def ready(self, now: float) -> None:
        """Tells that the process is warm and works; `now` is `time.monotonic()`."""
        self._put_time(_READY_AT, now)

    def error(self, text: str) -> None:
        """Keeps the last error, cut to ERROR_BYTES_MAX bytes."""
        self._put_text(_ERROR_BYTES, _ERROR, text.encode("utf-8", "replace")[:ERROR_BYTES_MAX])
        _NUMBER.pack_into(self._map, _ERROR_PID, os.getpid())

    def read(self) -> SlotState:
        """Reads all; while the writer lives a text may be half old, half new, so judge it only after its death."""
        return SlotState(
            pid=self._number(_PID),
            ready_at=self._time(_READY_AT),
            lanes=tuple(self._lane(lane) for lane in range(self.lanes)),
            last_error=self._text(_ERROR_BYTES, _ERROR, ERROR_BYTES_MAX).decode("utf-8", "replace"),
            error_pid=self._number(_ERROR_PID),
            starts=self._number(_STARTS),
        )

    def close(self) -> None:
        self._map.close()

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _at(self, lane: int) -> int:
        if not 0 <= lane < self.lanes:
            raise ValueError(f"lane is {lane}; the slot has lanes 0 to {self.lanes - 1}")
        return _LANES + lane * _LANE_BYTES

    def _lane(self, lane: int) -> LaneState:
        at = self._at(lane)
        text = self._text(at + _LANE_RUNNING_BYTES, at + _LANE_RUNNING, RUNNING_BYTES_MAX)
        return LaneState(self._time(at), text)

    def _put_time(self, at: int, value: float) -> None:
        _TIME.pack_into(self._map, at, value)

    def _time(self, at: int) -> float:
        return float(_TIME.unpack_from(self._map, at)[0])

    def _number(self, at: int) -> int:
        return int(_NUMBER.unpack_from(self._map, at)[0])

    def _put_text(self, length_at: int, at: int, text: bytes) -> None:
        # length 0, text, length: a writer that dies in between leaves an empty text, never a mixed one
        _NUMBER.pack_into(self._map, length_at, 0)
        self._map[at : at + len(text)] = text
        _NUMBER.pack_into(self._map, length_at, len(text))

    def _text(self, length_at: int, at: int, bytes_max: int) -> bytes:
        length = min(self._number(length_at), bytes_max)
        return bytes(self._map[at : at + length])


def read(path: Path) -> SlotState | None:
    """What the slot file says, whoever writes it; None for a file of another layout. Raises OSError."""
    with path.open("rb") as file:
        _, lanes = _IDENTITY.unpack(file.read(_IDENTITY.size).ljust(_IDENTITY.size, b"\0"))
    if not lanes or not _fits(path, _LANES + lanes * _LANE_BYTES, _IDENTITY.pack(_MAGIC, lanes)):
        return None
    with Slot(path, lanes) as slot:
        return slot.read()


def _fits(path: Path, size: int, identity: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size and file.read(len(identity)) == identity
    except FileNotFoundError:
        return False


def _create(path: Path, size: int, identity: bytes) -> None:
    """Puts a new file in place by a rename: a process that still maps an old one keeps it, and gets no SIGBUS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        # filled with zeros, not sparse: a full disk is an error here and not a SIGBUS at some later write
        fresh.write_bytes(identity + bytes(size - len(identity)))
        fresh.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
