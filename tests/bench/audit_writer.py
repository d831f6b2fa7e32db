"""Rows a second that one audit writer stores, alone, with the real table and indexes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from audit.store import AuditWindow, Store, migrate
from schemas.columns import Texts
from schemas.requests import write_map

WINDOW_ROWS = 16_384
BATCH_ROWS = 512
ROUNDS = 7
TOPIC = "lrai.requests.standard"
PARTITIONS = 4
_KEY = b"audit writer benchmark"
_SETS = [write_map({"sex": sex, "age": f"{age}-{age + 9}"}) for sex in "fm" for age in range(20, 90, 10)]
_RELEASE = {"model": "mlp", "version": "1", "variant": "original", "certificate": None}


def run(store_url: str, rows: int) -> dict[str, Any]:
    """Store `rows` decisions in ROUNDS rounds a kind, the kinds in turn; medians and spread of rows a second.

    Kinds: `plain`, ids of one length and no attributes; `mixed`, UUIDs, attributes, labels and some refusals of the
    request. The clock includes encoding and the commit of every window, not the making of the records.
    """
    migrate(store_url)
    rng = np.random.default_rng(7)
    rates: dict[str, list[float]] = {"plain": [], "mixed": []}
    run_id = time.time_ns()
    with Store(store_url, _KEY) as store:
        first = 0
        for turn in range(-1, ROUNDS):
            for kind, found in rates.items():
                windows = list(_windows(rng, kind, f"bench.{kind}.{run_id}", first, rows // ROUNDS))
                began = time.perf_counter()
                stored = sum(store.write(window).decisions for window in windows)
                if turn >= 0:  # the first turn warms up
                    found.append(stored / (time.perf_counter() - began))
            first += rows // ROUNDS
    return {
        kind: {"rows_per_s": statistics.median(found), "low": min(found), "high": max(found), "rounds": len(found)}
        for kind, found in rates.items()
    }


def _windows(rng: np.random.Generator, kind: str, source: str, first: int, rows: int) -> list[AuditWindow]:
    windows = []
    for start in range(first, first + rows, WINDOW_ROWS):
        end = min(start + WINDOW_ROWS, first + rows)
        batches = [batch(rng, kind, at, min(BATCH_ROWS, end - at)) for at in range(start, end, BATCH_ROWS)]
        windows.append(AuditWindow([(source, 0, start or None, end)], batches, [], []))
    return windows


def batch(rng: np.random.Generator, kind: str, first: int, n: int) -> dict[str, Any]:
    """A decoded DecisionBatch of n rows at the offsets from first / PARTITIONS on."""
    now_ms = time.time_ns() // 1_000_000
    order = np.arange(first, first + n)
    mixed = kind == "mixed"
    some = rng.random(n) < 0.02
    return {
        "topic": f"{TOPIC}.{kind}",
        "worker": "work-mlp-1-standard-node-0",
        "answered_at": now_ms * 1000,
        "count": n,
        "partition": (order % PARTITIONS).astype("<i4").tobytes(),
        "offset": (order // PARTITIONS).astype("<i8").tobytes(),
        "received_at": (now_ms - rng.integers(5, 50, n)).astype("<i8").tobytes(),
        "request_id": _uuids(rng, n).to_record() if mixed else _numbered(order).to_record(),
        "subject": _uuids(rng, n).take(np.arange(n)).to_record() if mixed else _NONE,
        "consent_id": _NONE,
        "purpose": _NONE,
        "attributes": rng.integers(0, len(_SETS), n).astype("<i4").tobytes() if mixed else b"",
        "attribute_sets": _SETS if mixed else [],
        "release": bytes(4 * n),
        "releases": [_RELEASE],
        "status": (some if mixed else np.zeros(n)).astype(np.uint8).tobytes(),
        "error": np.where(some, 0, -1).astype("<i4").tobytes() if mixed else b"",
        "errors": [{"code": "unknown_input", "message": "input `x` is not an input of model mlp; send `features`"}],
        "score": np.where(some & mixed, np.nan, rng.random(n)).tobytes(),
        "decision": np.where(some, -1, rng.integers(0, 2, n)).astype("<i4").tobytes() if mixed else bytes(4 * n),
        "decisions": ["approve", "decline"],
        "queue_s": rng.random(n).astype("<f4").tobytes(),
        "execution_s": rng.random(n).astype("<f4").tobytes(),
        "rows": np.ones(n, "<i4").tobytes(),
        "batch_rows": np.full(n, n, "<i4").tobytes(),
    }


_NONE = {"lengths": b"", "data": b""}


def _uuids(rng: np.random.Generator, n: int) -> Texts:
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[rng.integers(0, 16, (n, 36))]
    digits[:, [8, 13, 18, 23]] = ord("-")
    return Texts(digits.reshape(-1), np.full(n, 36, np.int32))


def _numbered(order: np.ndarray[Any, np.dtype[np.int64]]) -> Texts:
    return Texts.of(f"request-{number:012d}" for number in order.tolist())
