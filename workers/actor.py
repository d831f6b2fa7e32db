"""The stage of an actor: batches of one model in, results and decisions out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import pairwise
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
from streams.log import log
from streams.loop import LaneLimits
from streams.window import Outcome, Window
from workers.answers import Answered, Home, Outputs, Release, blocks
from workers.merge import Merged, merge
from workers.turns import Turns
from workers.variants import Choice, Load, Loaded

LATENCIES_MAX = 64
TOGETHER_S_MIN = 5e-4  # shorter runs do not pay for going to another thread and back
DECISIONS_BYTES_MAX = 1024 * 1024  # of batches, without tensors, whose decisions lie in one record


class Journal(Protocol):
    """What a lane is about to run, written down so that a successor knows what killed it."""

    def begins(self, window: Window) -> bool:
        """Whether this window is to run apart, in a process that may die alone."""
        ...

    def ended(self) -> None: ...


@dataclass
class Actor:
    """One lane of an actor. `lane` orders the lanes by priority, 0 is the highest; `forced`: the variant that an
    operator asks for; `runs`: how many at once, on the threads of `pool`."""

    spec: ModelSpec
    choice: Choice
    forced: Callable[[], str | None]
    home: Home
    journal: Journal
    turns: Turns
    lane: int
    limits: LaneLimits
    beat: Callable[[], None]
    runs: int = 1
    pool: ThreadPoolExecutor | None = None
    serving: Release | None = None

    def __call__(self, window: Window, now_ms: int) -> Outcome:
        """Answers for every request of the window, with one variant, and the original outside of what it is certified
        for. Raises IntegrityError."""
        records = [_record(value) for value in window.values]
        count = sum(record["count"] for record in records)
        loaded = self.choice.choose(self._load(window, now_ms, records), self.forced())
        if loaded.release != self.serving:
            self._switched(loaded.release)
        apart = self.journal.begins(window)
        parts: list[tuple[Release, list[Answered]]] = []
        for part in cuts(_beside_tensors(window.values, records), DECISIONS_BYTES_MAX):
            ends: dict[Release, list[Answered]] = {}
            for by, requests in (pair for merged in merge(records[part]) for pair in self._split(merged, loaded)):
                runs = replace(by, kernel=by.apart) if apart else by
                ends.setdefault(by.release, []).extend(self._answer(requests, runs, now_ms))
            parts += ends.items()
        self.journal.ended()
        answered = [each for _, part in parts for each in part]
        if sum(len(each.requests) for each in answered) != count:
            raise IntegrityError(f"{count} requests came in, {sum(len(each.requests) for each in answered)} went out")
        now_us = time.time_ns() // 1000
        self._measure(answered, now_us)
        counts: Counter[str] = Counter()
        for each in answered:
            counts["ok" if each.error is None else each.error[0]] += len(each.requests)
        found = [block for by, part in parts for block in blocks(self.spec, by, part, self.home, now_us)]
        return Outcome(found, dict(counts))

    def _switched(self, release: Release) -> None:
        """Said once a switch, not once a window."""
        if self.serving:
            log("info", "variant", model=release.model, lane=self.lane, now=release.variant, was=self.serving.variant)
            meters.SWITCHES.labels(release.model, release.version, release.variant or "").inc()
        self.serving = release

    def _split(self, requests: Merged, loaded: Loaded) -> list[tuple[Loaded, Merged]]:
        """The variant with the requests whose every row it is certified for, the original with the others."""
        if loaded.region is None:
            return [(loaded, requests)]
        inside = np.logical_and.reduceat(loaded.region.holds(requests.tensors[0].values), requests.starts)
        if inside.all():
            return [(loaded, requests)]
        names = loaded.release.model, loaded.release.version, loaded.release.variant or ""
        meters.OUTSIDE.labels(*names).inc(int((~inside).sum()))
        shares = ((loaded, inside), (self.choice.original, ~inside))
        return [(by, requests.take(chosen)) for by, chosen in shares if chosen.any()]

    def _load(self, window: Window, now_ms: int, records: Sequence[dict[str, Any]]) -> Load:
        size = sum(len(value or b"") for value in window.values)
        full = len(records) >= max(2, self.limits.records_max) or size >= self.limits.bytes_max
        rows = int(sum(np.frombuffer(record["rows"], "<i4").sum() for record in records))
        return Load(now_ms / 1e3, (now_ms - int(window.timestamp.min())) / 1e3, rows, full)

    def _answer(self, requests: Merged, loaded: Loaded, now_ms: int) -> list[Answered]:
        late = requests.deadline < now_ms
        if not late.any():
            return self._run(requests, loaded)
        expired = requests.take(late)
        message = f"the deadline was over before the run, at {now_ms} ms; ask earlier or with more time"
        found = [Answered.failed(expired, EXPIRED, "deadline_expired", message)]
        return found if late.all() else found + self._run(requests.take(~late), loaded)

    def _run(self, requests: Merged, loaded: Loaded) -> list[Answered]:
        """Runs, and finds by halving the requests that make a run fail."""
        try:
            outputs, execution_s, batch_rows = self._runs(requests, loaded)
        except ModelUnavailable as err:
            return [Answered.failed(requests, FAILED, "model_unavailable", str(err))]
        except KernelError as err:
            if len(requests) == 1:
                message = f"the model failed on this input: {err}"
                return [Answered.failed(requests, FAILED, "kernel_failed", message)]
            half = len(requests) // 2
            order = np.arange(len(requests))
            return self._run(requests.take(order[:half]), loaded) + self._run(requests.take(order[half:]), loaded)
        first = requests.starts
        return [Answered(requests, OK, outputs, None, execution_s[first], batch_rows[first])]

    def _runs(self, requests: Merged, loaded: Loaded) -> tuple[Outputs, Any, Ints]:
        """The outputs of all rows; and by row the seconds and the rows of its run."""
        total = int(requests.rows.sum())
        release = loaded.release
        seconds, sizes = np.empty(total), np.empty(total, np.int64)
        step = min(loaded.rows_max, total)
        together = self.pool if loaded.kernel is not loaded.apart and loaded.row_s * step > TOGETHER_S_MIN else None
        if together:
            step = min(step, -(-total // self.runs))
        starts = requests.starts.tolist() if loaded.alone else range(0, total, step)

        def run(start: int, stop: int, waiting: Callable[[], None]) -> Outputs:
            inputs = {each.name: each.values[start:stop] for each in requests.tensors}
            with self.turns.turn(self.lane, waiting):
                self.beat()
                began = time.perf_counter()
                outputs = loaded.kernel.run(inputs)
                seconds[start:stop] = time.perf_counter() - began
            sizes[start:stop] = stop - start
            meters.EXECUTION_S.labels(release.model, release.version).observe(seconds[start])
            return outputs

        places = list(pairwise([*starts, total]))
        if together and len(places) > 1:
            # nothing beats while it waits: all of them may wait for runs that hang
            futures = [together.submit(run, start, stop, _nothing) for start, stop in places]
            wait(futures)  # of a failed one, too: no run may go on while its rows are run again
            parts = [each.result() for each in futures]
        else:
            parts = [run(start, stop, self.beat) for start, stop in places]
        variant = release.variant or ""
        meters.ROWS.labels(release.model, release.version, variant).inc(total)
        meters.EXECUTIONS.labels(release.model, release.version, variant).inc(len(parts))
        if len(parts) == 1:
            return parts[0], seconds, sizes
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, seconds, sizes

    def _measure(self, answered: Sequence[Answered], now_us: int) -> None:
        """A thinned sample of latencies: a histogram needs no more, a window has no time for more."""
        for each in answered:
            received = each.requests.received_at
            sample = received[:: max(1, len(received) // LATENCIES_MAX)]
            meters.observe_latency(str(self.lane), self.spec.model, (now_us / 1e6 - sample / 1e3).tolist())


def _nothing() -> None:
    pass


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
