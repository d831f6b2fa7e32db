"""One cursor a record, against a reader that takes one byte after the other."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cursor import ALL, Cursors, select, subset
from tests.samples import padded_long

LONGS = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(LONGS, st.integers(0, 9), st.binary(max_size=5)), min_size=1, max_size=12))
def test_long(drawn: list[tuple[int, int, bytes]]) -> None:
    written = [padded_long(value, spare) for value, spare, _ in drawn]
    cursors = Cursors([each + rest for each, (_, _, rest) in zip(written, drawn, strict=True)])
    assert cursors.long().tolist() == [value for value, _, _ in drawn]
    assert (cursors.at - cursors.start).tolist() == [len(each) for each in written]
    assert cursors.finish().all()


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=12))
def test_text(texts: list[bytes]) -> None:
    cursors = Cursors([padded_long(len(text)) + text for text in texts])
    span = cursors.text()
    found = [cursors.buffer[a : a + n].tobytes() for a, n in zip(*map(np.ndarray.tolist, span), strict=True)]
    assert found == texts
    assert cursors.finish().all()


@pytest.mark.parametrize(
    "odd",
    [b"", b"\x04a", b"\x01", b"\xff" * 9 + b"\x01", b"\xff" * 30, padded_long(2**62), padded_long(-(2**63))],
    ids=bytes.hex,
)
def test_odd_texts_touch_no_neighbour(odd: bytes) -> None:
    cursors = Cursors([b"\x04ab", odd, b"\x02c"])
    span = cursors.text()
    assert cursors.finish().tolist() == [True, False, True]
    assert cursors.buffer[int(span.start[2]) :][: int(span.length[2])].tobytes() == b"c"


def test_optional_text() -> None:
    cursors = Cursors([b"\0", b"\x02\x02a", b"\x04", b"\x02\0"])
    span = cursors.optional_text()
    assert span.length.tolist() == [-1, 1, -1, 0]
    assert cursors.finish().tolist() == [True, True, False, True]


@given(st.lists(st.lists(LONGS, max_size=6), min_size=1, max_size=8), st.integers(0, 2**32))
def test_items_of_one_block(arrays: list[list[int]], seed: int) -> None:
    rnd = random.Random(seed)
    values = []
    for array in arrays:
        items = b"".join(map(padded_long, array))
        if array and rnd.random() < 0.5:
            values.append(padded_long(-len(array)) + padded_long(len(items)) + items + b"\0")
        else:
            values.append(padded_long(len(array)) + items + (b"\0" if array else b""))
    cursors = Cursors(values)
    found: list[list[int]] = [[] for _ in arrays]
    for i, count, rows in cursors.items(6):
        if i < 0:
            assert count.tolist() == [len(array) for array in arrays]
            continue
        indices = np.arange(len(arrays))[rows]
        for row, value in zip(indices.tolist(), cursors.long(rows).tolist(), strict=True):
            found[row].append(value)
    assert found == arrays
    assert cursors.finish().all()
    assert (cursors.at == cursors.end).all()


def test_items_beyond_the_bound_or_in_two_blocks_are_odd() -> None:
    two_blocks = b"\x02\x02\x02\x04\0"
    cursors = Cursors([b"\x02\x02\0", b"\x06\x02\x02\x02\0", two_blocks, padded_long(-(2**63)) + b"\0"])
    for i, _, rows in cursors.items(2):
        if i >= 0:
            cursors.long(rows)
    assert cursors.finish().tolist() == [True, False, False, False]


def test_select_and_subset_avoid_copies() -> None:
    assert select(np.array([True, True])) == ALL
    rows = select(np.array([True, False, True]))
    assert isinstance(rows, np.ndarray)
    assert rows.tolist() == [0, 2]
    narrowed = subset(rows, np.array([False, True]))
    assert isinstance(narrowed, np.ndarray)
    assert narrowed.tolist() == [2]
    assert subset(rows, np.array([True, True])) is rows
