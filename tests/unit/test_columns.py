"""Columns against a slow oracle that takes one Python step a record."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.columns import Piece, Texts, assemble, fixed, pick, spans, strings, varints
from tests.samples import padded_long

ITEMS = st.lists(st.none() | st.binary(max_size=12), max_size=12)
LONGS = st.integers(-(2**63), 2**63 - 1)


@given(ITEMS)
def test_texts_hold_their_items(items: list[bytes | None]) -> None:
    column = Texts.of(items)
    assert column.to_list() == items
    assert column.all_null == all(item is None for item in items)
    assert Texts.from_record(column.to_record(), len(items)).to_list() == items
    assert column.sizes.tolist() == [len(item or b"") for item in items]


@given(ITEMS, st.data())
def test_take_and_rows_of(items: list[bytes | None], data: st.DataObject) -> None:
    column = Texts.of(items)
    rows = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=20)) if items else []
    assert column.take(np.array(rows, np.int64)).to_list() == [items[row] for row in rows]
    owners = [row for row, item in enumerate(items) for _ in item or b""]
    places = data.draw(st.lists(st.integers(0, len(owners) - 1), max_size=20)) if owners else []
    assert column.rows_of(np.array(places, np.int64)) == sorted({owners[place] for place in places})


@given(st.lists(ITEMS, min_size=1, max_size=4))
def test_concat(parts: list[list[bytes | None]]) -> None:
    assert Texts.concat([Texts.of(part) for part in parts]).to_list() == [item for part in parts for item in part]


def test_texts_keep_trailing_zeros_and_decode() -> None:
    assert Texts.of([b"a\0\0", b"\0"]).to_list() == [b"a\0\0", b"\0"]
    assert Texts.of(["ü", None, ""]).to_strings() == ["ü", None, ""]
    assert Texts.nulls(2).to_list() == [None, None]


@given(st.binary(min_size=1, max_size=40), st.data())
def test_pick_and_spans(buffer: bytes, data: st.DataObject) -> None:
    length = st.integers(0, len(buffer))
    same = data.draw(st.booleans())
    width = data.draw(length)
    pieces = data.draw(st.lists(st.tuples(length, length), max_size=10))
    chosen = [(min(start, len(buffer) - width), width) for start, _ in pieces] if same else pieces
    chosen = [(start, min(size, len(buffer) - start)) for start, size in chosen]
    starts = np.array([start for start, _ in chosen], np.int64)
    lengths = np.array([size for _, size in chosen], np.int64)
    whole = np.frombuffer(buffer, np.uint8)
    assert pick(whole, starts, lengths).tobytes() == b"".join(buffer[a : a + n] for a, n in chosen)
    assert spans(starts, lengths).tolist() == [i for a, n in chosen for i in range(a, a + n)]


@given(st.lists(LONGS, max_size=20))
def test_varints_against_the_slow_writer(values: list[int]) -> None:
    assert varints(np.array(values, np.int64)).to_list() == [padded_long(value) for value in values]


@pytest.mark.parametrize("bits", range(64))
def test_varints_at_each_width(bits: int) -> None:
    values = [value for value in (2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1) if -(2**63) <= value < 2**63]
    assert varints(np.array(values, np.int64)).to_list() == [padded_long(value) for value in values]


@settings(max_examples=300)
@given(st.integers(0, 8), st.integers(0, 2**32))
def test_assemble_against_joins(n: int, seed: int) -> None:
    rnd = random.Random(seed)
    pieces: list[Piece] = []
    wanted = [b""] * n
    for _ in range(rnd.randint(1, 6)):
        kind = rnd.randrange(4)
        if kind == 0:
            each: list[bytes] = [rnd.randbytes(rnd.randint(0, 3))] * n
            pieces.append(each[0] if n else b"x")
        elif kind == 1:
            values = np.array([rnd.randrange(2**31) for _ in range(n)], "<i4")
            each = [value.tobytes() for value in values]
            pieces.append(fixed(values))
        else:
            width = rnd.randint(0, 4)
            each = [rnd.randbytes(width if kind == 2 else rnd.randint(0, 5)) for _ in range(n)]
            pieces.append(Texts.of(each))
        wanted = [whole + part for whole, part in zip(wanted, each, strict=True)]
    assert assemble(n, pieces).to_list() == wanted


def test_strings_write_null_as_empty() -> None:
    assert assemble(3, strings(Texts.of([b"ab", None, b"c" * 64]))).to_list() == [
        b"\x04ab",
        b"\0",
        b"\x80\x01" + b"c" * 64,
    ]
