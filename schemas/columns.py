"""Columns of byte strings, and records put together from columns without a Python step a record. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class Texts:
    """A column of n byte strings.

    `data`: uint8[sum of lengths], the strings end to end; `lengths`: int32[n], -1 is null.

    >>> Texts.of([b"ab", None, "ü"]).to_list()
    [b'ab', None, b'\\xc3\\xbc']
    """

    __slots__ = ("data", "lengths")

    def __init__(self, data: Bytes, lengths: npt.NDArray[np.int32]) -> None:
        self.data = data
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, items: Iterable[bytes | str | None]) -> Texts:
        """A column of the items; a str becomes UTF-8."""
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        lengths = np.fromiter((-1 if item is None else len(item) for item in encoded), np.int32, len(encoded))
        return cls(np.frombuffer(b"".join(item for item in encoded if item), np.uint8), lengths)

    @classmethod
    def nulls(cls, n: int) -> Texts:
        """n nulls."""
        return cls(np.empty(0, np.uint8), np.full(n, -1, np.int32))

    @classmethod
    def slices(cls, buffer: Bytes, starts: Ints, lengths: Ints) -> Texts:
        """The pieces buffer[starts[i] : starts[i] + lengths[i]]; a length of -1 makes a null."""
        return cls(pick(buffer, starts, np.maximum(lengths, 0)), lengths.astype(np.int32))

    @property
    def sizes(self) -> Ints:
        """int64[n], the lengths with null as 0."""
        return np.maximum(self.lengths, 0).astype(np.int64)

    @property
    def all_null(self) -> bool:
        return not len(self.lengths) or int(self.lengths.max()) < 0

    def to_list(self) -> list[bytes | None]:
        """The items, a Python object each."""
        whole = self.data.tobytes()
        ends = np.cumsum(self.sizes).tolist()
        return [
            whole[end - length : end] if length >= 0 else None
            for end, length in zip(ends, self.lengths.tolist(), strict=True)
        ]

    def to_strings(self) -> list[str | None]:
        """The items decoded as UTF-8."""
        return [None if item is None else item.decode() for item in self.to_list()]

    def rows_of(self, places: Ints) -> list[int]:
        """The rows that hold these places of `data`, each once."""
        if not len(places):
            return []
        rows: list[int] = np.unique(np.searchsorted(np.cumsum(self.sizes), places, "right")).tolist()
        return rows

    def take(self, rows: npt.NDArray[Any]) -> Texts:
        """The items at these indices (or where this mask is true), in that order."""
        sizes = self.sizes
        return Texts.slices(self.data, (np.cumsum(sizes) - sizes)[rows], self.lengths[rows].astype(np.int64))

    @classmethod
    def concat(cls, columns: Sequence[Texts]) -> Texts:
        """The columns one after another."""
        if len(columns) == 1:
            return columns[0]
        return cls(np.concatenate([c.data for c in columns]), np.concatenate([c.lengths for c in columns]))

    def to_record(self) -> dict[str, bytes]:
        """As the Avro record `Texts`; a column of nulls has no lengths."""
        if self.all_null:
            return {"lengths": b"", "data": b""}
        return {"lengths": self.lengths.tobytes(), "data": self.data.tobytes()}

    @classmethod
    def from_record(cls, record: dict[str, bytes], n: int) -> Texts:
        """From the Avro record `Texts` of a batch of n."""
        if not record["lengths"]:
            return cls.nulls(n)
        return cls(np.frombuffer(record["data"], np.uint8), np.frombuffer(record["lengths"], np.int32))


def pick(buffer: Bytes, starts: Ints, lengths: Ints) -> Bytes:
    """The pieces buffer[starts[i] : starts[i] + lengths[i]] end to end.

    >>> pick(np.frombuffer(b"abcdef", np.uint8), np.array([4, 0]), np.array([2, 2])).tobytes()
    b'efab'
    """
    if not len(starts):
        return np.empty(0, np.uint8)
    width = int(lengths[0])
    if int(lengths.max()) != width or int(lengths.min()) != width:
        return buffer[spans(starts, lengths)]
    if not width or int(starts.max()) + width > len(buffer):
        return np.empty(0, np.uint8) if not width else buffer[spans(starts, lengths)]
    return windows(buffer, width)[starts].reshape(-1)


def windows(buffer: Bytes, width: int) -> Bytes:
    """A view uint8[len(buffer) - width + 1, width] whose row i begins at byte i: rows are copied whole."""
    return np.ndarray((len(buffer) - width + 1, width), np.uint8, buffer, strides=(1, 1))


def spans(starts: Ints, lengths: Ints) -> Ints:
    """The indices starts[i], starts[i] + 1, ... (lengths[i] of them) for every i, end to end.

    >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    if not len(starts):
        return np.empty(0, np.int64)
    if (width := int(lengths[0])) == int(lengths.max()) == int(lengths.min()):
        grid: Ints = (starts[:, None] + np.arange(width)).reshape(-1)
        return grid
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(int(ends[-1]))


def varints(values: Ints) -> Texts:
    """Avro longs: zig-zag, then seven bits a byte, least significant first.

    >>> varints(np.array([0, -1, 64])).to_list()
    [b'\\x00', b'\\x01', b'\\x80\\x01']
    """
    zigzag = ((values << 1) ^ (values >> 63)).view(np.uint64)
    top = int(zigzag.max()) if len(zigzag) else 0
    width = max(1, -(-top.bit_length() // 7))
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    groups = zigzag[:, None] >> shifts
    digits = (groups & np.uint64(0x7F)).astype(np.uint8)
    if width == 1:
        return Texts(digits.reshape(-1), np.ones(len(values), np.int32))
    used = groups > 0
    used[:, 0] = True
    digits[:, :-1] |= used[:, 1:].astype(np.uint8) << 7
    return Texts(digits[used], used.sum(axis=1, dtype=np.int32))


def strings(column: Texts) -> list[Texts]:
    """The two pieces of a column of Avro strings or bytes: lengths and contents."""
    return [varints(column.sizes), Texts(column.data, column.sizes.astype(np.int32))]


Piece = bytes | Texts | Bytes


def assemble(n: int, pieces: Sequence[Piece]) -> Texts:
    """n records, each its parts of the pieces one after another.

    A piece is the same bytes for every record, a column without nulls, or a uint8[n, width] matrix.

    >>> assemble(2, [b"<", Texts.of([b"a", b"bc"]), b">"]).to_list()
    [b'<a>', b'<bc>']
    """
    if not n:
        return Texts.nulls(0)
    widths = [_width(piece) for piece in pieces]
    if all(width >= 0 for width in widths):
        matrix = np.empty((n, sum(widths)), np.uint8)
        at = 0
        for piece, width in zip(pieces, widths, strict=True):
            matrix[:, at : at + width] = _matrix(piece, n, width)
            at += width
        return Texts(matrix.reshape(-1), np.full(n, at, np.int32))
    lengths = np.zeros(n, np.int64)
    for piece, width in zip(pieces, widths, strict=True):
        lengths += piece.lengths if isinstance(piece, Texts) else width
    out = np.empty(int(lengths.sum()), np.uint8)
    at_each = np.cumsum(lengths) - lengths
    for piece, width in zip(pieces, widths, strict=True):
        if width >= 0:
            if width:
                windows(out, width)[at_each] = _matrix(piece, n, width)
            at_each = at_each + width
        elif isinstance(piece, Texts):
            sizes = piece.sizes
            out[spans(at_each, sizes)] = piece.data
            at_each = at_each + sizes
    return Texts(out, lengths.astype(np.int32))


def _width(piece: Piece) -> int:
    """Bytes a record, -1 where they differ."""
    if isinstance(piece, bytes):
        return len(piece)
    if isinstance(piece, Texts):
        low, high = int(piece.lengths.min()), int(piece.lengths.max())
        return low if low == high else -1
    return int(piece.shape[1])


def _matrix(piece: Piece, n: int, width: int) -> Bytes:
    if isinstance(piece, bytes):
        return np.frombuffer(piece, np.uint8)
    if isinstance(piece, Texts):
        return piece.data.reshape(n, width)
    return piece


def fixed(values: npt.NDArray[Any]) -> Bytes:
    """Numbers as a uint8[n, itemsize] matrix, in the byte order of their dtype."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.dtype.itemsize)
