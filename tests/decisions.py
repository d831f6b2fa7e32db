"""DecisionBatch records made from rows, one Python step after the other: slow, and easy to believe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.columns import Texts
from schemas.requests import write_map

TOPIC = "lrai.requests.standard"
WORKER = "work-m-1-standard-node-0"
RECEIVED_MS = 1_767_225_600_000  # 2026-01-01
ANSWERED_US = RECEIVED_MS * 1000 + 20_000


@dataclass(frozen=True)
class Row:
    """One decision. `score` is exact in 64 bits, `queue_s` and `execution_s` in 32."""

    offset: int
    partition: int = 0
    request_id: str | bytes = "r"
    received_at_ms: int = RECEIVED_MS
    model: str = "m"
    version: str | None = "1"
    variant: str | None = "original"
    certificate: str | None = None
    frozen: str | None = None
    status: int = 0
    error: tuple[str, str] | None = None
    score: float | None = 0.5
    decision: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    subject: str | None = None
    consent_id: str | None = None
    purpose: str | None = None
    queue_s: float = 0.25
    execution_s: float = 0.125
    rows: int = 1
    batch_rows: int = 8


def batch_of(
    rows: Sequence[Row], topic: str = TOPIC, worker: str = WORKER, answered_at_us: int = ANSWERED_US
) -> dict[str, Any]:
    """The decoded DecisionBatch of these rows."""
    releases = _listed([_release(row) for row in rows])
    errors = _listed([row.error for row in rows if row.error])
    decisions = _listed([row.decision for row in rows if row.decision is not None])
    sets = _listed([tuple(row.attributes.items()) for row in rows if row.attributes])
    return {
        "topic": topic,
        "worker": worker,
        "answered_at": answered_at_us,
        "count": len(rows),
        "partition": np.array([row.partition for row in rows], "<i4").tobytes(),
        "offset": np.array([row.offset for row in rows], "<i8").tobytes(),
        "received_at": np.array([row.received_at_ms for row in rows], "<i8").tobytes(),
        "request_id": Texts.of(row.request_id for row in rows).to_record(),
        "subject": Texts.of(row.subject for row in rows).to_record(),
        "consent_id": Texts.of(row.consent_id for row in rows).to_record(),
        "purpose": Texts.of(row.purpose for row in rows).to_record(),
        "attributes": _index([tuple(row.attributes.items()) or None for row in rows], sets),
        "attribute_sets": [write_map(dict(item)) for item in sets],
        "release": np.array([releases.index(_release(row)) for row in rows], "<i4").tobytes(),
        "releases": [
            dict(zip(("model", "version", "variant", "certificate", "frozen"), each, strict=True)) for each in releases
        ],
        "status": bytes(row.status for row in rows),
        "error": _index([row.error for row in rows], errors),
        "errors": [{"code": code, "message": message} for code, message in errors],
        "score": np.array([np.nan if row.score is None else row.score for row in rows], "<f8").tobytes(),
        "decision": _index([row.decision for row in rows], decisions),
        "decisions": decisions,
        "queue_s": np.array([row.queue_s for row in rows], "<f4").tobytes(),
        "execution_s": np.array([row.execution_s for row in rows], "<f4").tobytes(),
        "rows": np.array([row.rows for row in rows], "<i4").tobytes(),
        "batch_rows": np.array([row.batch_rows for row in rows], "<i4").tobytes(),
    }


def ranges_of(
    *ranges: tuple[int, int, int, int], topic: str = TOPIC, worker: str = "coalesce-standard-node-0"
) -> dict[str, Any]:
    """The decoded SourceRanges of (partition, from, next, records)."""
    return {
        "topic": topic,
        "worker": worker,
        "ranges": [dict(zip(("partition", "from", "next", "records"), item, strict=True)) for item in ranges],
    }


def _release(row: Row) -> tuple[str | None, ...]:
    return row.model, row.version, row.variant, row.certificate, row.frozen


def _listed(items: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _index(items: Sequence[Any], listed: list[Any]) -> bytes:
    """The places of the items in the list, -1 for None; empty when there are none."""
    places = [-1 if item is None else listed.index(item) for item in items]
    return np.array(places, "<i4").tobytes() if listed else b""
