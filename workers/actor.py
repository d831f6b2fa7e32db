"""The stage of an actor: batches of one model in, results and decisions out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kernels.session import KernelError
from kernels.spec import ModelSpec
from schemas import framing
from schemas.columns import Ints
from schemas.errors import IntegrityError
from schemas.results import EXPIRED, FAILED, OK
from streams import meters
from streams.batching import cuts
from streams.window import Outcome, Window
from workers.answers import Answered, Home, Outputs, Release, blocks
from workers.merge import Merged, merge
from workers.turns import Turns

LATENCIES_MAX = 64
DECISIONS_BYTES_MAX = 2 * 1024 * 1024  # of batches, without tensors, whose decisions lie in one record


class Kernel(Protocol):
    """Runs a model."""

    def run(self, inputs: dict[str, Any]) -> Outputs:
        """Outputs, rows first. Raises KernelError."""
        ...


class Journal(Protocol):
    """What a lane is about to run, written down so that a successor knows what killed it."""

    def begins(self, window: Window) -> Kernel:
        """The kernel for this window: the loaded one, or one that may die alone."""
        ...

    def ended(self) -> None: ...


@dataclass
class Actor:
    """One lane of an actor. `lane` orders the lanes by priority, 0 is the highest; `rows_max`: of a run."""

    spec: ModelSpec
    release: Release
    home: Home
    journal: Journal
    turns: Turns
    lane: int
    rows_max: int
    beat: Callable[[], None]

    def __call__(self, window: Window, now_ms: int) -> Outcome:
        """Answers for every request of the window. Raises IntegrityError."""
        records = [_record(value) for value in window.values]
        kernel = self.journal.begins(window)
        parts: list[list[Answered]] = []
        for part in cuts(_beside_tensors(window.values, records), DECISIONS_BYTES_MAX):
            merged = merge(records[part])
            parts.append([each for requests in merged for each in self._answer(requests, kernel, now_ms)])
        self.journal.ended()
        answered = [each for part in parts for each in part]
        count = sum(record["count"] for record in records)
        if sum(len(each.requests) for each in answered) != count:
            raise IntegrityError(f"{count} requests came in, {sum(len(each.requests) for each in answered)} went out")
        now_us = time.time_ns() // 1000
        self._measure(answered, now_us)
        counts: Counter[str] = Counter()
        for each in answered:
            counts["ok" if each.error is None else each.error[0]] += len(each.requests)
        found = [block for part in parts for block in blocks(self.spec, self.release, part, self.home, now_us)]
        return Outcome(found, dict(counts))

    def _answer(self, requests: Merged, kernel: Kernel, now_ms: int) -> list[Answered]:
        late = requests.deadline < now_ms
        if not late.any():
            return self._run(requests, kernel)
        expired = requests.take(late)
        message = f"the deadline was over before the run, at {now_ms} ms; ask earlier or with more time"
        found = [Answered.failed(expired, EXPIRED, "deadline_expired", message)]
        return found if late.all() else found + self._run(requests.take(~late), kernel)

    def _run(self, requests: Merged, kernel: Kernel) -> list[Answered]:
        """Runs, and finds by halving the requests that make a run fail."""
        try:
            outputs, execution_s, batch_rows = self._runs(requests, kernel)
        except ModelUnavailable as err:
            return [Answered.failed(requests, FAILED, "model_unavailable", str(err))]
        except KernelError as err:
            if len(requests) == 1:
                message = f"the model failed on this input: {err}"
                return [Answered.failed(requests, FAILED, "kernel_failed", message)]
            half = len(requests) // 2
            order = np.arange(len(requests))
            return self._run(requests.take(order[:half]), kernel) + self._run(requests.take(order[half:]), kernel)
        first = requests.starts
        return [Answered(requests, OK, outputs, None, execution_s[first], batch_rows[first])]

    def _runs(self, requests: Merged, kernel: Kernel) -> tuple[Outputs, Any, Ints]:
        """The outputs of all rows; and by row the seconds and the rows of its run."""
        total = int(requests.rows.sum())
        parts: list[Outputs] = []
        seconds, sizes = np.empty(total), np.empty(total, np.int64)
        for start in range(0, total, self.rows_max):
            stop = min(total, start + self.rows_max)
            inputs = {each.name: each.values[start:stop] for each in requests.tensors}
            with self.turns.turn(self.lane, self.beat):
                self.beat()
                began = time.perf_counter()
                parts.append(kernel.run(inputs))
                seconds[start:stop] = time.perf_counter() - began
            sizes[start:stop] = stop - start
            meters.EXECUTION_S.labels(self.release.model, self.release.version).observe(seconds[start])
        variant = self.release.variant or ""
        meters.ROWS.labels(self.release.model, self.release.version, variant).inc(total)
        meters.EXECUTIONS.labels(self.release.model, self.release.version, variant).inc(len(parts))
        if len(parts) == 1:
            return parts[0], seconds, sizes
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, seconds, sizes

    def _measure(self, answered: Sequence[Answered], now_us: int) -> None:
        """A thinned sample of latencies: a histogram needs no more, a window has no time for more."""
        for each in answered:
            received = each.requests.received_at
            sample = received[:: max(1, len(received) // LATENCIES_MAX)]
            meters.observe_latency(str(self.lane), self.release.model, (now_us / 1e6 - sample / 1e3).tolist())


def _record(value: bytes | None) -> dict[str, Any]:
    name, record = framing.decode(value or b"")
    if name != "inference_batch":
        raise IntegrityError(f"a {name} lies on a batch topic; only coalesce may write there")
    return record


def _beside_tensors(values: Sequence[bytes | None], records: Sequence[dict[str, Any]]) -> Ints:
    """int64[n]: the bytes of batch records without their tensors, about what their decisions will take."""
    sizes = [
        len(value or b"") - sum(len(each["data"]) for each in record["tensors"])
        for value, record in zip(values, records, strict=True)
    ]
    return np.array(sizes, np.int64)


class Unavailable:
    """Stands in for a model that keeps crashing: every request is answered FAILED."""

    def __init__(self, why: str) -> None:
        self.why = why

    def run(self, inputs: dict[str, Any]) -> Outputs:
        raise ModelUnavailable(self.why)


class ModelUnavailable(KernelError):
    """The model keeps crashing and is tried again later; send the request again then, or name another version."""
