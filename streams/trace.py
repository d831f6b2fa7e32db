"""Traces: how requests came (when, of which priority, model and size), without what was in them. Pure.

A trace file is CSV with the one header line of COLUMNS, then a line a request, never earlier than the line before.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.errors import LraiError
from streams.topics import PRIORITIES

REQUESTS_MAX = 100_000_000
MODELS_MAX = 32_767
LINE_CHARACTERS_MAX = 1000
GAP_S_MAX = 60.0
CHUNK = 10_000  # lines written at a time

# by column: what a value looks like, and what to write
FIELDS = {
    "at_us": ("[0-9]{1,18}", "write the time in whole microseconds, from 0 up"),
    "priority": ("|".join(PRIORITIES), f"write one of {', '.join(PRIORITIES)}"),
    "model": ("[a-z0-9-]{1,64}", "write the name of a model: 1 to 64 of a-z, 0-9 and -"),
    "rows": ("[1-9][0-9]{0,8}", "write the rows of the request, a whole number from 1 to 999999999"),
    "bytes": ("[0-9]{1,9}", "write the size of the record, a whole number from 0 to 999999999"),
    "deadline_ms": ("[0-9]{0,15}", "write whole milliseconds from arrival, from 0 up, or nothing without a deadline"),
}
COLUMNS = tuple(FIELDS)
HEADER = ",".join(COLUMNS)
_LINE = re.compile(",".join(f"({pattern})" for pattern, _ in FIELDS.values()) + "\n")


class BadTrace(LraiError):
    """The trace file must be corrected at the line that is named."""


@dataclass(frozen=True, eq=False)
class Trace:
    """n requests in the order of their arrival.

    `at_s`: float64[n], seconds from the first, never falling; `priority`: int8[n], index into PRIORITIES;
    `model`: int16[n], index into `models`; `rows`, `bytes`: int32[n], of the request and of its record;
    `deadline_s`: float64[n], seconds from arrival, NaN without one.
    """

    at_s: npt.NDArray[np.float64]
    priority: npt.NDArray[np.int8]
    model: npt.NDArray[np.int16]
    models: tuple[str, ...]
    rows: npt.NDArray[np.int32]
    bytes: npt.NDArray[np.int32]
    deadline_s: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def seconds(self) -> float:
        """From the first request to the last."""
        return float(self.at_s[-1]) if len(self) else 0.0


def dispersion(counts: npt.NDArray[np.int64]) -> float:
    """Index of dispersion of the requests in each second: variance over mean, 1 of a Poisson process.

    `counts`: int64[seconds]; the last of them is not over and is left out. NaN below two whole seconds.

    >>> dispersion(np.array([3, 1, 1]))
    0.5
    """
    whole = counts[:-1]
    return float(np.var(whole) / np.mean(whole)) if len(whole) > 1 and whole.any() else float("nan")


def read(lines: Iterable[str], gap_s_max: float = GAP_S_MAX, requests_max: int = REQUESTS_MAX) -> Trace:
    """The trace of a file's lines, each with its line break; its first request counts as second 0.

    A silence of more than `gap_s_max` is a gap: something is missing. Raises BadTrace, which names the line.
    """
    source = iter(lines)
    _check_header(next(source, ""))
    at, deadline = array("q"), array("d")
    priority, model, rows, size = array("b"), array("h"), array("i"), array("i")
    ranks = {name: rank for rank, name in enumerate(PRIORITIES)}
    models: dict[str, int] = {}
    for number, line in enumerate(source, 2):
        found = _LINE.fullmatch(line)
        if found is None:
            raise _wrong(number, line)
        when, whose, name, height, length, limit = found.groups()
        if len(at) == requests_max:
            raise BadTrace(f"line {number}: there are more than {requests_max} requests; cut the file into parts")
        at.append(int(when))
        _check_order(number, at, gap_s_max)
        priority.append(ranks[whose])
        model.append(models.setdefault(name, len(models)))
        if len(models) > MODELS_MAX:
            raise BadTrace(f"line {number}: model = {name!r} is one more than {MODELS_MAX}; cut the file into parts")
        rows.append(int(height))
        size.append(int(length))
        deadline.append(int(limit) / 1000 if limit else float("nan"))
    if not at:
        raise BadTrace("line 2: there is no request; record again, or write a line a request")
    whens = np.frombuffer(at, np.int64)
    return Trace(
        (whens - whens[0]) / 1e6, np.frombuffer(priority, np.int8), np.frombuffer(model, np.int16), tuple(models),
        np.frombuffer(rows, np.int32), np.frombuffer(size, np.int32), np.frombuffer(deadline, np.float64),
    )  # fmt: skip


def _check_header(line: str) -> None:
    if line == HEADER + "\n":
        return
    fix = f"write exactly {HEADER}"
    if not line:
        raise BadTrace(f"line 1: the file is empty; {fix}, then a line a request")
    if not line.endswith("\n"):
        raise _cut_off(1, line)
    names = line[:-1].split(",")
    for name in names:
        if name not in COLUMNS:
            raise BadTrace(f"line 1: column {name[:80]!r} is not known; {fix}")
    for name in COLUMNS:
        if name not in names:
            raise BadTrace(f"line 1: column {name!r} is missing; {fix}")
    raise BadTrace(f"line 1: the columns are {line[:-1][:200]!r}; {fix}")


def _check_order(number: int, at: Sequence[int], gap_s_max: float) -> None:
    if len(at) < 2:
        return
    earlier, now = at[-2], at[-1]
    if now < earlier:
        raise BadTrace(
            f"line {number}: at_us = {now} is before the {earlier} of line {number - 1}; sort the lines by time"
        )
    if now - earlier > gap_s_max * 1e6:
        gap_s = (now - earlier) / 1e6
        raise BadTrace(
            f"line {number}: at_us = {now} comes {gap_s:.9g} s after line {number - 1}, a gap of more than"
            f" {gap_s_max:g} s: requests are missing; if it really was so quiet, say --gap-s-max {np.ceil(gap_s):.0f}"
        )


def _wrong(number: int, line: str) -> BadTrace:
    """What is wrong with a line that does not match."""
    if not line.endswith("\n"):
        return _cut_off(number, line)
    values = line[:-1].split(",")
    if len(values) != len(COLUMNS):
        return BadTrace(f"line {number}: has {len(values)} values, not {len(COLUMNS)}; write {HEADER}")
    for (name, (pattern, fix)), value in zip(FIELDS.items(), values, strict=True):
        if not re.fullmatch(pattern, value):
            return BadTrace(f"line {number}: {name} = {value[:80]!r}; {fix}")
    raise AssertionError(f"line {number} is right")


def _cut_off(number: int, line: str) -> BadTrace:
    if len(line) >= LINE_CHARACTERS_MAX:
        return BadTrace(f"line {number}: is longer than {LINE_CHARACTERS_MAX} characters; this is no trace")
    return BadTrace(f"line {number}: {line[:80]!r} has no line break: the file was cut off; delete it, or record again")


def write(trace: Trace) -> Iterator[str]:
    """The lines of a file, each with its line break; times are rounded to microseconds, deadlines to milliseconds."""
    yield HEADER + "\n"
    for first in range(0, len(trace), CHUNK):
        part = slice(first, first + CHUNK)
        stated = ~np.isnan(trace.deadline_s[part])
        limits = np.rint(np.where(stated, trace.deadline_s[part], 0) * 1e3).astype(np.int64)
        columns = (
            np.rint(trace.at_s[part] * 1e6).astype(np.int64).tolist(),
            [PRIORITIES[rank] for rank in trace.priority[part].tolist()],
            [trace.models[index] for index in trace.model[part].tolist()],
            trace.rows[part].tolist(),
            trace.bytes[part].tolist(),
            [limit if has else "" for limit, has in zip(limits.tolist(), stated.tolist(), strict=True)],
        )
        for values in zip(*columns, strict=True):
            yield ",".join(map(str, values)) + "\n"
