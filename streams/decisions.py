"""DecisionBatch records: the decisions of a window as columns. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.columns import Texts
from schemas.requests import write_map


@dataclass(frozen=True, slots=True)
class Decision:
    """A request that ended without a run."""

    request_id: str | None
    subject: str | None
    consent_id: str | None
    purpose: str | None
    attributes: dict[str, str]
    model: str
    version: str | None
    partition: int
    offset: int
    received_at: int
    status: int
    error: tuple[str, str]
    queue_s: float


def decision_batch(topic: str, worker: str, answered_at: int, decisions: Sequence[Decision]) -> dict[str, Any]:
    """The record `DecisionBatch` of requests that ended without a run. `answered_at`: microseconds since the epoch."""
    n = len(decisions)
    releases: dict[tuple[str, str | None], int] = {}
    errors: dict[tuple[str, str], int] = {}
    sets: dict[tuple[tuple[str, str], ...], int] = {}

    def numbers(values: list[int], dtype: str) -> bytes:
        return np.array(values, dtype).tobytes()

    def codes(dictionary: dict[Any, int], values: list[Any]) -> bytes:
        return numbers([dictionary.setdefault(value, len(dictionary)) for value in values], "<i4")

    return {
        "topic": topic,
        "worker": worker,
        "answered_at": answered_at,
        "count": n,
        "partition": numbers([each.partition for each in decisions], "<i4"),
        "offset": numbers([each.offset for each in decisions], "<i8"),
        "received_at": numbers([each.received_at for each in decisions], "<i8"),
        "request_id": Texts.of([each.request_id for each in decisions]).to_record(),
        "subject": Texts.of([each.subject for each in decisions]).to_record(),
        "consent_id": Texts.of([each.consent_id for each in decisions]).to_record(),
        "purpose": Texts.of([each.purpose for each in decisions]).to_record(),
        "attributes": codes(sets, [tuple(each.attributes.items()) for each in decisions]),
        "attribute_sets": [write_map(dict(each)) for each in sets],
        "release": codes(releases, [(each.model, each.version) for each in decisions]),
        "releases": [{"model": model, "version": version, "variant": None} for model, version in releases],
        "status": numbers([each.status for each in decisions], "<u1"),
        "error": codes(errors, [each.error for each in decisions]),
        "errors": [{"code": code, "message": message} for code, message in errors],
        "score": np.full(n, np.nan).tobytes(),
        "decision": b"",
        "decisions": [],
        "queue_s": np.array([each.queue_s for each in decisions], "<f4").tobytes(),
        "execution_s": np.zeros(n, "<f4").tobytes(),
        "rows": np.zeros(n, "<i4").tobytes(),
        "batch_rows": np.zeros(n, "<i4").tobytes(),
    }
