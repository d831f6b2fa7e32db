"""audit.rows against a row-by-row reading of its bytes."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import rows
from schemas.errors import IntegrityError
from schemas.requests import read_map
from tests.decisions import ANSWERED_US, Row, batch_of, ranges_of

_UNPACK = {"received_at": ">q", "answered_at": ">q", "request_offset": ">q", "request_partition": ">i",
           "topic_id": ">i", "release_id": ">i", "worker_id": ">i", "rows": ">i", "batch_rows": ">i", "queue_s": ">f",
           "execution_s": ">f", "status": ">h", "score": ">d"}  # fmt: skip
_EPOCH_2000_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def read_back(encoded: bytes) -> list[dict[str, Any]]:
    """The rows of a binary COPY without header and trailer, field by field."""
    found, at = [], 0
    while at < len(encoded):
        (fields,) = struct.unpack_from(">h", encoded, at)
        at += 2
        row: dict[str, Any] = {}
        for name in rows.COLUMNS:
            (length,) = struct.unpack_from(">i", encoded, at)
            at += 4
            value = None if length < 0 else encoded[at : at + length]
            at += max(length, 0)
            row[name] = struct.unpack(_UNPACK[name], value)[0] if value is not None and name in _UNPACK else value
        assert fields == len(row)
        found.append(row)
    return found


def encoded(batches: list[dict[str, Any]]) -> tuple[bytes, list[int], rows.Decisions]:
    decisions = rows.gather(batches)
    result = rows.encode(
        decisions,
        [10 + i for i in range(len(decisions.topics))],
        [20 + i for i in range(len(decisions.workers))],
        [30 + i for i in range(len(decisions.releases))],
        [bytes([i % 256]) * 16 for i in range(len(decisions.attribute_sets))],
    )
    return result.data.tobytes(), result.lengths.tolist(), decisions


def expected(batches: list[list[Row]]) -> list[dict[str, Any]]:
    """What the rows should be, by the slow way."""
    found = []
    for number, batch in enumerate(batches):
        for row in batch:
            code, message = row.error or (None, None)
            found.append(
                {
                    "received_at": row.received_at_ms * 1000 - _EPOCH_2000_US,
                    "answered_at": ANSWERED_US - _EPOCH_2000_US,
                    "request_offset": row.offset,
                    "request_partition": row.partition,
                    "topic_id": 10 + number,
                    "worker_id": 20 + number,
                    "rows": row.rows,
                    "batch_rows": row.batch_rows,
                    "queue_s": row.queue_s,
                    "execution_s": row.execution_s,
                    "status": row.status,
                    "request_id": row.request_id.encode() if isinstance(row.request_id, str) else row.request_id,
                    "score": row.score,
                    "decision": _encoded(row.decision),
                    "subject_pseudonym": _encoded(row.subject),
                    "consent_id": _encoded(row.consent_id),
                    "purpose": _encoded(row.purpose),
                    "error_code": _encoded(code),
                    "error_message": _encoded(message),
                }
            )
    return found


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


_TEXTS = st.none() | st.text(st.characters(codec="utf-8"), max_size=5)
_FLOATS = st.floats(width=32, allow_nan=False)
_ROWS = st.builds(
    Row,
    offset=st.integers(0, 2**63 - 1),
    partition=st.integers(0, 2**31 - 1),
    request_id=st.text(st.characters(codec="utf-8"), max_size=40),
    received_at_ms=st.integers(-62_135_596_800_000, 253_402_300_799_999),
    model=st.sampled_from(["m", "n"]),
    version=st.none() | st.just("2"),
    frozen=st.none() | st.just("f"),
    status=st.integers(0, 3),
    error=st.none() | st.tuples(st.sampled_from(["", "code", "longer"]), st.text(max_size=3)),
    score=st.none() | st.floats(allow_nan=False),
    decision=_TEXTS,
    attributes=st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
    subject=_TEXTS,
    consent_id=_TEXTS,
    purpose=_TEXTS,
    queue_s=_FLOATS,
    execution_s=_FLOATS,
    rows=st.integers(0, 2**31 - 1),
    batch_rows=st.integers(0, 2**31 - 1),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(_ROWS, max_size=5), min_size=1, max_size=4))
def test_every_field_of_every_row_is_what_the_slow_way_gives(batches: list[list[Row]]) -> None:
    records = [batch_of(batch) for batch in batches]
    whole, lengths, decisions = encoded(records)
    assert sum(lengths) == len(whole)
    found = read_back(whole)
    flat = [row for batch in batches for row in batch]
    assert len(found) == len(flat) == len(decisions)
    for row, source in zip(found, flat, strict=True):
        release, attributes = decisions.releases[row.pop("release_id") - 30], row.pop("attributes_id")
        assert release == (source.model, source.version, source.variant, source.certificate, source.frozen)
        assert (read_map(decisions.attribute_sets[attributes[0]]) if attributes else {}) == source.attributes
    assert found == expected(batches)


@pytest.mark.parametrize(
    "texts",
    [["", ""], ["", None], [None, None], ["ab", "cd"], ["ab", None], ["", "ü"]],
    ids=["empty", "empty-null", "null", "same", "same-null", "different"],
)
def test_texts_of_each_shape(texts: list[str | None]) -> None:
    whole, _, _ = encoded([batch_of([Row(i, purpose=text, decision=text) for i, text in enumerate(texts)])])
    found = read_back(whole)
    assert [row["purpose"] for row in found] == [_encoded(text) for text in texts]
    assert [row["decision"] for row in found] == [_encoded(text) for text in texts]


def test_no_rows_at_all() -> None:
    assert encoded([batch_of([])])[0] == b""


@pytest.mark.parametrize("outside", [253_402_300_800_000, 2**63 - 1, -(2**63), -62_135_596_800_001])
def test_a_time_outside_the_calendar_becomes_one_that_postgres_refuses(outside: int) -> None:
    whole, _, _ = encoded([batch_of([Row(0, received_at_ms=outside)])])
    assert read_back(whole)[0]["received_at"] == 2**63 - 2


def test_the_bytes_of_a_row_are_found_by_the_lengths() -> None:
    batch = batch_of([Row(0, request_id="a", purpose="x" * 9), Row(1, request_id="bcd", score=None)])
    whole, lengths, _ = encoded([batch])
    second = read_back(whole[lengths[0] :])
    assert [row["request_id"] for row in second] == [b"bcd"]
    assert second[0]["score"] is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("offset", b"\0" * 7 * 8),
        ("release", struct.pack("<2i", 0, 1)),
        ("release", struct.pack("<2i", 0, -1)),
        ("release", b""),
        ("decision", struct.pack("<2i", 0, -2)),
        ("attributes", struct.pack("<i", 0)),
        ("request_id", {"lengths": struct.pack("<2i", 1, 1), "data": b"abc"}),
        ("request_id", {"lengths": struct.pack("<i", 1), "data": b"a"}),
    ],
)
def test_a_batch_that_contradicts_itself_is_named(column: str, value: Any) -> None:
    batch = {**batch_of([Row(0, attributes={"a": "b"}), Row(1, decision="yes")]), column: value}
    with pytest.raises(IntegrityError, match=column):
        rows.gather([batch])


def test_attributes_have_one_json_whatever_their_order() -> None:
    assert (
        rows.attributes_json({"b": "ü", "a": "1"}) == rows.attributes_json({"a": "1", "b": "ü"}) == '{"a":"1","b":"ü"}'
    )


def test_attributes_with_nul_can_be_stored_and_a_spelled_out_nul_stays() -> None:
    assert json.loads(rows.attributes_json({"a\0": "b\0c"})) == {"a\ufffd": "b\ufffdc"}
    assert json.loads(rows.attributes_json({"a": "\\u0000"})) == {"a": "\\u0000"}
    assert json.loads(rows.attributes_json({"a": "\\u0000", "b": "\0"})) == {"a": "\\u0000", "b": "\ufffd"}


def test_the_id_of_attributes_is_the_keyed_hash() -> None:
    assert rows.attributes_id(b"k", "{}") == hmac.new(b"k", b"{}", hashlib.sha256).digest()[:16]
    assert rows.attributes_id(b"k", "{}") != rows.attributes_id(b"l", "{}")


def test_keys_of_dictionary_entries_tell_null_from_empty() -> None:
    assert rows.dictionary_key(("m", None)) != rows.dictionary_key(("m", ""))


def test_a_release_without_a_freeze_has_the_key_of_old_stores() -> None:
    old = ("m", "1", "int8", None)
    assert rows.dictionary_key((*old, None)) == rows.dictionary_key(old)
    assert rows.dictionary_key((*old, "f")) != rows.dictionary_key(old)


def test_ranges_of_a_worker_that_follow_each_other_become_one() -> None:
    batches = [ranges_of((0, 10, 20, 9), (1, 0, 5, 5)), ranges_of((0, 0, 10, 10), (1, 6, 7, 1))]
    found = [(item.partition, item.first, item.following, item.records) for item in rows.merged_ranges(batches)]
    assert found == [(0, 0, 20, 19), (1, 0, 5, 5), (1, 6, 7, 1)]


def test_overlapping_ranges_and_those_of_two_workers_stay() -> None:
    batches = [ranges_of((0, 0, 10, 10)), ranges_of((0, 5, 20, 15)), ranges_of((0, 10, 12, 2), worker="other")]
    assert len(rows.merged_ranges(batches)) == 3


def test_a_refused_row_can_be_read_as_json() -> None:
    decisions = rows.gather([batch_of([Row(0), Row(1, request_id=b"a\0\xff", error=("code", "m\0"), status=1)])])
    shown = json.loads(json.dumps(rows.as_json(decisions, 1, None)))
    assert shown["request_id"] == "a\ufffd\\xff"
    assert (shown["status"], shown["error_message"], shown["model"]) == ("REJECTED", "m\ufffd", "m")
