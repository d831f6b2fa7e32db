"""The decisions of a window as rows of Postgres' binary COPY, without a Python step a row. Pure.

The format: https://www.postgresql.org/docs/18/sql-copy.html, "Binary Format".
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.columns import Bytes, Ints, Piece, Texts, assemble, fixed
from schemas.errors import IntegrityError

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"
STATUSES = ("OK", "REJECTED", "EXPIRED", "FAILED")

Indices = npt.NDArray[np.int32]
Floats = npt.NDArray[np.floating[Any]]
Release = tuple[str, str | None, str | None, str | None, str | None]  # model, version, variant, certificate, freeze

_POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01
_MS_MIN, _MS_MAX = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
_UNFROZEN = 4  # texts of a release before its freeze
_US_REFUSED = 2**63 - 2  # beyond Postgres' last timestamp, short of its infinity

# The columns of a fixed width that are never null, in the order of the table: one block of constant layout a row.
_FIXED = (
    ("received_at", ">i8"),
    ("answered_at", ">i8"),
    ("request_offset", ">i8"),
    ("request_partition", ">i4"),
    ("topic_id", ">i4"),
    ("release_id", ">i4"),
    ("worker_id", ">i4"),
    ("rows", ">i4"),
    ("batch_rows", ">i4"),
    ("queue_s", ">f4"),
    ("execution_s", ">f4"),
    ("status", ">i2"),
)
_NULLABLE = ("request_id", "score", "attributes_id", "decision", "subject_pseudonym", "consent_id", "purpose",
             "error_code", "error_message")  # fmt: skip
COLUMNS = (*(name for name, _ in _FIXED), *_NULLABLE)
_BLOCK = np.dtype(
    [("fields", ">i2"), *(part for name, dtype in _FIXED for part in ((f"#{name}", ">i4"), (name, dtype)))]
)


@dataclass(frozen=True)
class Decisions:
    """The n decisions of some DecisionBatch records as one set of columns.

    Indices point into the list of the same name; -1 is null.
    """

    topics: list[str]
    workers: list[str]
    releases: list[Release]
    attribute_sets: list[bytes]
    """each an Avro map of strings"""
    errors: list[tuple[str, str]]
    labels: list[str]
    topic: Indices
    worker: Indices
    release: Indices
    attributes: Indices
    error: Indices
    label: Indices
    partition: Indices
    offset: Ints
    received_at_ms: Ints
    answered_at_us: Ints
    request_id: Texts
    subject: Texts
    consent_id: Texts
    purpose: Texts
    status: npt.NDArray[np.uint8]
    score: Floats
    queue_s: Floats
    execution_s: Floats
    rows: Indices
    batch_rows: Indices

    def __len__(self) -> int:
        return len(self.offset)


def gather(batches: Sequence[Mapping[str, Any]]) -> Decisions:
    """The decoded DecisionBatch records end to end. Raises IntegrityError where they contradict themselves."""
    counts = np.array([batch["count"] for batch in batches], np.int64)

    def numbers(name: str, dtype: str) -> npt.NDArray[Any]:
        column = np.frombuffer(b"".join(batch[name] for batch in batches), dtype)
        return _checked(name, column, int(counts.sum()))

    def texts(name: str) -> Texts:
        column = Texts.concat([Texts.from_record(b[name], n) for b, n in zip(batches, counts.tolist(), strict=True)])
        _checked(name, column.lengths, int(counts.sum()))
        return Texts(_checked(name, column.data, int(column.sizes.sum())), column.lengths)

    topics, workers = [batch["topic"] for batch in batches], [batch["worker"] for batch in batches]
    each = np.repeat(np.arange(len(batches), dtype=np.int32), counts)
    return Decisions(
        topics=topics,
        workers=workers,
        releases=[_release(item) for batch in batches for item in batch["releases"]],
        attribute_sets=[item for batch in batches for item in batch["attribute_sets"]],
        errors=[(item["code"], item["message"]) for batch in batches for item in batch["errors"]],
        labels=[item for batch in batches for item in batch["decisions"]],
        topic=each,
        worker=each,
        release=_indices(batches, counts, "release", "releases", lowest=0),
        attributes=_indices(batches, counts, "attributes", "attribute_sets"),
        error=_indices(batches, counts, "error", "errors"),
        label=_indices(batches, counts, "decision", "decisions"),
        partition=numbers("partition", "<i4"),
        offset=numbers("offset", "<i8"),
        received_at_ms=numbers("received_at", "<i8"),
        answered_at_us=np.repeat(np.array([batch["answered_at"] for batch in batches], np.int64), counts),
        request_id=texts("request_id"),
        subject=texts("subject"),
        consent_id=texts("consent_id"),
        purpose=texts("purpose"),
        status=numbers("status", "<u1"),
        score=numbers("score", "<f8"),
        queue_s=numbers("queue_s", "<f4"),
        execution_s=numbers("execution_s", "<f4"),
        rows=numbers("rows", "<i4"),
        batch_rows=numbers("batch_rows", "<i4"),
    )


def encode(
    decisions: Decisions, topic_ids: Sequence[int], worker_ids: Sequence[int], release_ids: Sequence[int],
    attribute_ids: Sequence[bytes | None],
) -> Texts:  # fmt: skip
    """The rows of audit.decision_row in the order of COLUMNS, without header and trailer of the COPY.

    The ids are those of the lists of `decisions`, in their order. A time outside the years 1 to 9999 becomes one that
    Postgres refuses.
    """
    n = len(decisions)
    errors = decisions.error
    return assemble(
        n,
        _joined(
            [
                _block(decisions, topic_ids, worker_ids, release_ids),
                *_field(n, decisions.request_id),
                *_field(n, _numbers_or_null(decisions.score)),
                *_field(n, _looked_up(attribute_ids, decisions.attributes)),
                *_field(n, _looked_up(decisions.labels, decisions.label)),
                *_field(n, decisions.subject),
                *_field(n, decisions.consent_id),
                *_field(n, decisions.purpose),
                *_field(n, _looked_up([code for code, _ in decisions.errors], errors)),
                *_field(n, _looked_up([message for _, message in decisions.errors], errors)),
            ]
        ),
    )


def attributes_json(attributes: Mapping[str, str]) -> str:
    """Canonical JSON of an attribute set; U+0000, which Postgres cannot hold, is shown as U+FFFD.

    >>> attributes_json({"sex": "f", "age": "30-40"})
    '{"age":"30-40","sex":"f"}'
    """
    canonical = json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if "\\u0000" in canonical and any("\0" in text for item in attributes.items() for text in item):
        return attributes_json({storable(name): storable(value) for name, value in attributes.items()})
    return canonical


def attributes_id(key: bytes, canonical: str) -> bytes:
    """bytes[16]: HMAC-SHA256 of the canonical JSON, cut. Without the key nobody can test guesses against an id."""
    return hmac.digest(key, canonical.encode(), "sha256")[:16]


def dictionary_key(values: Sequence[str | None]) -> bytes:
    """bytes[16] that names an entry of a dictionary, however long its texts are.

    A release without a freeze has the key that it had before there were freezes, so that it stays one entry.
    """
    named = values[:_UNFROZEN] if len(values) > _UNFROZEN and values[_UNFROZEN] is None else values
    return hashlib.sha256(json.dumps(list(named)).encode()).digest()[:16]


def storable(text: str) -> str:
    """The text with U+0000, which Postgres cannot hold, as U+FFFD."""
    return text.replace("\0", "\ufffd")


@dataclass(frozen=True)
class SourceRange:
    """The records that a worker consumed at offsets first <= offset < following."""

    topic: str
    worker: str
    partition: int
    first: int
    following: int
    records: int


def merged_ranges(batches: Sequence[Mapping[str, Any]]) -> list[SourceRange]:
    """The ranges of decoded SourceRanges records; those of a worker that follow each other without a hole as one."""
    found = sorted(
        (batch["topic"], batch["worker"], item["partition"], item["from"], item["next"], item["records"])
        for batch in batches
        for item in batch["ranges"]
    )
    merged: list[SourceRange] = []
    for topic, worker, partition, first, following, records in found:
        if merged and (topic, worker, partition, first) == _end(merged[-1]):
            merged[-1] = replace(merged[-1], following=following, records=merged[-1].records + records)
        else:
            merged.append(SourceRange(topic, worker, partition, first, following, records))
    return merged


def as_json(decisions: Decisions, row: int, attributes_id: bytes | None) -> dict[str, Any]:
    """One row for a person to read, in what JSON and Postgres can hold; the attributes stay out."""
    error = decisions.errors[decisions.error[row]] if decisions.error[row] >= 0 else (None, None)
    model, version, variant, certificate, frozen = decisions.releases[decisions.release[row]]
    one = np.array([row])
    shown = {
        "request_id": _text(decisions.request_id.take(one)),
        "model": model,
        "version": version,
        "variant": variant,
        "certificate": certificate,
        "frozen": frozen,
        "status": STATUSES[status] if (status := int(decisions.status[row])) < len(STATUSES) else status,
        "score": repr(float(decisions.score[row])),
        "decision": decisions.labels[decisions.label[row]] if decisions.label[row] >= 0 else None,
        "attributes_id": attributes_id.hex() if attributes_id else None,
        "subject_pseudonym": _text(decisions.subject.take(one)),
        "consent_id": _text(decisions.consent_id.take(one)),
        "purpose": _text(decisions.purpose.take(one)),
        "error_code": error[0],
        "error_message": error[1],
        "received_at_ms": int(decisions.received_at_ms[row]),
        "answered_at_us": int(decisions.answered_at_us[row]),
        "rows": int(decisions.rows[row]),
        "batch_rows": int(decisions.batch_rows[row]),
        "worker": decisions.workers[decisions.worker[row]],
    }
    return {name: storable(value) if isinstance(value, str) else value for name, value in shown.items()}


def _checked(name: str, column: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    if len(column) != n:
        raise IntegrityError(f"DecisionBatch.{name} has {len(column)} elements where {n} belong; correct its producer")
    return column


def _end(item: SourceRange) -> tuple[str, str, int, int]:
    return item.topic, item.worker, item.partition, item.following


def _release(item: Mapping[str, Any]) -> Release:
    return item["model"], item["version"], item["variant"], item["certificate"], item.get("frozen")


def _indices(batches: Sequence[Mapping[str, Any]], counts: Ints, name: str, listed: str, lowest: int = -1) -> Indices:
    """Each batch's indices moved to where its list begins in the joined list; an empty column is none."""
    columns, start = [], 0
    for batch, n in zip(batches, counts.tolist(), strict=True):
        column = np.frombuffer(batch[name], "<i4") if batch[name] else np.full(n, -1, np.int32)
        _checked(name, column, n)
        if n and not lowest <= int(column.min()) <= int(column.max()) < len(batch[listed]):
            raise IntegrityError(f"DecisionBatch.{name} points outside its {len(batch[listed])} {listed}")
        columns.append(np.where(column < 0, column, column + np.int32(start)))
        start += len(batch[listed])
    joined: Indices = np.concatenate(columns) if columns else np.empty(0, np.int32)
    return joined


def _block(
    decisions: Decisions, topic_ids: Sequence[int], worker_ids: Sequence[int], release_ids: Sequence[int]
) -> Bytes:
    """uint8[n, width]: the number of fields, then every fixed column behind its length."""
    block = np.empty(len(decisions), _BLOCK)
    block["fields"] = len(COLUMNS)
    values: dict[str, npt.NDArray[Any]] = {
        "received_at": _postgres_us(decisions.received_at_ms, 1000),
        "answered_at": _postgres_us(decisions.answered_at_us, 1),
        "request_offset": decisions.offset,
        "request_partition": decisions.partition,
        "topic_id": np.array(topic_ids, np.int32)[decisions.topic],
        "release_id": np.array(release_ids, np.int32)[decisions.release],
        "worker_id": np.array(worker_ids, np.int32)[decisions.worker],
        "rows": decisions.rows,
        "batch_rows": decisions.batch_rows,
        "queue_s": decisions.queue_s,
        "execution_s": decisions.execution_s,
        "status": decisions.status,
    }
    for name, dtype in _FIXED:
        block[f"#{name}"] = np.dtype(dtype).itemsize
        block[name] = values[name]
    return block.view(np.uint8).reshape(len(block), _BLOCK.itemsize)


def _postgres_us(values: Ints, us: int) -> Ints:
    """Microseconds since 2000 of a count of `us` microseconds since 1970."""
    low, high = _MS_MIN * 1000 // us, _MS_MAX * 1000 // us
    inside = (values >= low) & (values <= high)
    return np.where(inside, np.where(inside, values, 0) * us - _POSTGRES_EPOCH_US, _US_REFUSED)


def _numbers_or_null(values: Floats) -> Texts:
    present = ~np.isnan(values)
    sizes = np.where(present, 8, -1).astype(np.int32)
    return Texts(fixed(values[present].astype(">f8")).reshape(-1), sizes)


def _looked_up(items: Sequence[bytes | None] | Sequence[str], index: Indices) -> Texts:
    """The items at the indices; -1, the last place of the table, is null."""
    if not len(index) or int(index.max()) < 0:
        return Texts.nulls(len(index))
    return Texts.of([*items, None]).take(index)


def _field(n: int, column: Texts) -> list[Piece]:
    """A column as its length prefixes (-1 for null) and its contents."""
    if not n or int(column.lengths.min()) == int(column.lengths.max()):
        prefix: Piece = struct.pack(">i", int(column.lengths[0]) if n else -1)
    else:
        prefix = fixed(column.lengths.astype(">i4"))
    return [prefix, Texts(column.data, column.sizes.astype(np.int32))] if len(column.data) else [prefix]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Constant pieces that follow each other as one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, bytes) and isinstance(last, bytes):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return joined


def _text(column: Texts) -> str | None:
    item = column.to_list()[0]
    return None if item is None else item.decode(errors="backslashreplace")
