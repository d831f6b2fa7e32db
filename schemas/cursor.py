"""Reads the same Avro field of many records at once: one cursor a record, moved by numpy. Pure.

A window's records lie end to end in one buffer. Whatever a row holds that this reader does not take (truncated,
over-long, more items than the bounds) marks the row as odd; odd rows go through fastavro, which is the authority.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.columns import Bytes, Ints

Rows = slice | Ints
ALL = slice(None)
VARINT_BYTES_MAX = 10
PADDING = 1024  # what is read past the end of a cut record before that is noticed (a shape, two unions) stays inside


class Span(NamedTuple):
    """Pieces of the buffer: int64[n] each; a length of -1 is null."""

    start: Ints
    length: Ints

    def at(self, rows: npt.NDArray[np.generic]) -> Span:
        return Span(self.start[rows], self.length[rows])


class Cursors:
    """n cursors in one buffer.

    `buffer`: uint8[sum of lengths + PADDING]; `at`, `end`: int64[n]; `odd`: bool[n].
    """

    def __init__(self, values: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        self.buffer: Bytes = np.frombuffer(b"".join([*values, bytes(PADDING)]), np.uint8)
        self.end: Ints = np.cumsum(lengths)
        self.start: Ints = self.end - lengths
        self.at: Ints = self.start.copy()
        self.odd = np.zeros(len(values), bool)

    def long(self, rows: Rows = ALL) -> Ints:
        """Avro int or long."""
        at = self.at[rows]
        byte = self.buffer[at]
        if not len(byte) or int(byte.max()) < 0x80:
            self.at[rows] = at + 1
            raw = byte.astype(np.int64)
            return (raw >> 1) ^ -(raw & 1)
        return self._long_slow(rows, at)

    def _long_slow(self, rows: Rows, at: Ints) -> Ints:
        last = len(self.buffer) - 1
        raw = np.zeros(len(at), np.uint64)
        more = np.ones(len(at), bool)
        used = np.zeros(len(at), np.int64)
        for i in range(VARINT_BYTES_MAX):
            byte = self.buffer[np.minimum(at + i, last)].astype(np.uint64)
            raw |= np.where(more, byte & np.uint64(0x7F), np.uint64(0)) << np.uint64(7 * i)
            used += more
            if i == VARINT_BYTES_MAX - 1:  # the tenth byte holds the 64th bit alone
                self._mark(rows, more & (byte > 1))
            more &= byte >= 0x80
            if not more.any():
                break
        self.at[rows] = at + used
        signed = (raw >> np.uint64(1)).astype(np.int64)
        return signed ^ -(raw & np.uint64(1)).astype(np.int64)

    def text(self, rows: Rows = ALL) -> Span:
        """Avro string or bytes: where its contents lie."""
        length = self.long(rows)
        at = self.at[rows] + 0  # a copy: with a slice it would be a view of what moves on
        beyond = (length < 0) | (length > self.end[rows] - at)
        if beyond.any():
            self._mark(rows, beyond)
            length = np.where(beyond, 0, length)
            at = np.where(beyond, self.start[rows], at)
        self.at[rows] = at + length
        return Span(at, length)

    def optional(self) -> tuple[Ints, Rows]:
        """The branch of a union with null first: int64[n] of 0 and 1, and the rows that have a value."""
        branch = self.long()
        wrong = (branch != 0) & (branch != 1)
        if wrong.any():
            self._mark(ALL, wrong)
            branch = np.where(wrong, 0, branch)
        return branch, select(branch == 1)

    def optional_text(self) -> Span:
        """Avro union of null and string."""
        branch, rows = self.optional()
        n = len(branch)
        start, length = np.zeros(n, np.int64), np.full(n, -1, np.int64)
        if branch.any():
            start[rows], length[rows] = self.text(rows)
        return Span(start, length)

    def items(self, most: int, rows: Rows = ALL) -> Iterator[tuple[int, Ints, Rows]]:
        """Avro array or map of one block: for each item its number, and the rows that have it.

        Yields (-1, counts int64[len(rows)], rows) first. The body of the loop must read one item of those rows.
        """
        count = self.long(rows)
        if int(count.min(initial=0)) < 0:  # a negative count is followed by the block's size in bytes
            sized = subset(rows, count < 0)
            self.long(sized)
            count = np.abs(count)
        over = (count > most) | (count < 0)
        if over.any():
            self._mark(rows, over)
            count = np.where(over, 0, count)
        yield -1, count, rows
        top = int(count.max(initial=0))
        for i in range(top):
            yield i, count, subset(rows, count > i)
        self._end_block(rows, count)

    def _end_block(self, rows: Rows, count: Ints) -> None:
        """The zero that ends an array that is not empty; another block makes the row odd."""
        ended = subset(rows, count > 0)
        tail = self.long(ended)
        if tail.any():
            self._mark(ended, tail != 0)

    def finish(self) -> npt.NDArray[np.bool_]:
        """bool[n], the rows that were read whole; bytes behind a record are ignored, as fastavro does."""
        good: npt.NDArray[np.bool_] = ~self.odd & (self.at <= self.end)
        return good

    def _mark(self, rows: Rows, odd: npt.NDArray[np.bool_]) -> None:
        """Odd rows read on harmlessly from their own start."""
        if not odd.any():
            return
        indices = np.flatnonzero(odd) if isinstance(rows, slice) else rows[odd]
        self.odd[indices] = True
        self.at[indices] = self.start[indices]


def select(mask: npt.NDArray[np.bool_]) -> Rows:
    """The rows where mask is true; a slice when it is true everywhere, which numpy reads without a copy."""
    return ALL if mask.all() else np.flatnonzero(mask)


def subset(rows: Rows, mask: npt.NDArray[np.bool_]) -> Rows:
    """Those of the rows where mask is true."""
    if mask.all():
        return rows
    return np.flatnonzero(mask) if isinstance(rows, slice) else rows[mask]
