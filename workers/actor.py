"""The stage of an actor: batches of one model in, results and decisions out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from kernels.session import KernelError
from kernels.spec import ModelSpec
from schemas import framing
from schemas.columns import Ints
from schemas.errors import IntegrityError
from schemas.results import EXPIRED, FAILED, OK, REJECTED
from streams import meters
from streams.batching import cuts
from streams.control import Control
from streams.limits import LaneLimits
from streams.log import log
from streams.topics import PRIORITIES
from streams.window import Block, Outcome, Window
from workers.answers import Answered, Home, Outputs, Release, blocks
from workers.merge import Merged, merge
from workers.reporting import Reporting
from workers.tallies import ATTRIBUTES, CONSENT, About, Groups, Ran, lacks
from workers.tallying import Tallying
from workers.turns import Turns
from workers.variants import Choice, Load, Loaded

LATENCIES_MAX = 64
TOGETHER_S_MIN = 5e-4  # shorter runs do not pay for going to another thread and back
REASON_MAX = 500  # characters of what an operator wrote, in a message
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
    operator asks for; `runs`: how many at once, on the threads of `pool`; `frozen`: the freeze of a version that holds;
    `fallback`: the original of the version that answers then; `reporting`: for the coalescers' scheduler; `ran`: what
    ran for the window at hand."""

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
    frozen: Callable[[str], Control | None] = lambda version: None
    fallback: Loaded | None = None
    tallying: Tallying | None = None
    reporting: Reporting | None = None
    ran: dict[Release, Ran] = field(default_factory=dict)
    gpu_s: float = 0.0
    groups: Groups = field(init=False)

    def __post_init__(self) -> None:
        self.groups = self.tallying.watches[self.spec.version].groups if self.tallying else Groups(self.spec)

    def __call__(self, window: Window, now_ms: int) -> Outcome:
        """Answers for every request of the window, with one variant, and the original outside of what it is certified
        for. Raises IntegrityError."""
        records = [_record(value) for value in window.values]
        count = sum(record["count"] for record in records)
        served = self._served(self.choice.choose(self._load(window, now_ms, records), self.forced()))
        if served.loaded.release != self.serving:
            self._switched(served.loaded.release)
        self.ran, self.gpu_s = {}, 0.0
        apart = self.journal.begins(window)
        parts: list[tuple[Release, list[Answered]]] = []
        for part in cuts(_beside_tensors(window.values, records), DECISIONS_BYTES_MAX):
            ends: dict[Release, list[Answered]] = {}
            together = merge(records[part])
            for by, requests in (pair for merged in together for pair in self._split(merged, served.loaded)):
                runs = replace(by, kernel=by.apart) if apart else by
                release = replace(by.release, frozen=served.id) if served.id else by.release
                ends.setdefault(release, []).extend(self._admitted(requests, runs, served, now_ms))
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
        found = self._blocks(window, served, parts, now_us)
        if self.reporting:
            found += self.reporting.blocks(records, now_us // 1000)
        return Outcome(found, dict(counts))

    def _blocks(
        self, window: Window, served: Served, parts: Sequence[tuple[Release, list[Answered]]], now_us: int
    ) -> list[Block]:
        """Results, decisions, and the tally of both."""
        found: list[Block] = []
        decisions: list[dict[str, Any]] = []
        for by, part in parts:
            own, record = blocks(served.spec, by, part, self.home, now_us)
            found += own
            decisions += [record] if record else []
        if self.tallying and decisions:
            ran = {(by.variant, by.certificate): each for by, each in self.ran.items()}
            took = self.tallying.meter.take(self.gpu_s)
            about = About(window.ranges[0], self.home.worker, PRIORITIES[self.lane], ran, took, served.id)
            answered = [each for _, part in parts for each in part]
            found.append(self.tallying.block(served.spec.version, decisions, answered, about, now_us // 1000))
        return found

    def _served(self, chosen: Loaded) -> Served:
        """What answers a window: while the version is frozen, what its policy says."""
        freeze = self.frozen(self.spec.version)
        if freeze is None or self.spec.on_freeze == "flag":
            return Served(self.spec, chosen, freeze)
        other = self.spec.fallback
        if other is None or self.fallback is None or self.frozen(other.version):
            return Served(self.spec, chosen, freeze, rejects=True)
        return Served(other, self.fallback, freeze)

    def _admitted(self, requests: Merged, loaded: Loaded, served: Served, now_ms: int) -> list[Answered]:
        """Answers for those that the model's owner lets through; rejections for the others."""
        if served.rejects and served.freeze:
            return [Answered.failed(requests, REJECTED, "frozen", frozen_message(served.freeze))]
        if self.spec.on_missing == "count":
            return self._answer(requests, loaded, now_ms)
        missing = lacks(self.groups, requests.attributes, requests.attribute_sets, requests.consent_id.lengths)
        if self.spec.on_missing == "flag" or not missing.any():
            return self._answer(replace(requests, missing=missing), loaded, now_ms)
        found = []
        for chosen, code in ((missing & CONSENT > 0, "consent_missing"), (missing == ATTRIBUTES, "attributes_missing")):
            if chosen.any():
                message = missing_message(self.spec, code)
                found.append(Answered.failed(requests.take(chosen), REJECTED, code, message))
        return found if missing.all() else found + self._answer(requests.take(missing == 0), loaded, now_ms)

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
        took_s = sum(float(seconds[start]) for start, _ in places)
        ran = self.ran.setdefault(release, Ran())
        ran.rows, ran.execution_s = ran.rows + total, ran.execution_s + took_s
        self.gpu_s += took_s if loaded.gpu else 0.0
        if len(parts) == 1:
            return parts[0], seconds, sizes
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, seconds, sizes

    def _measure(self, answered: Sequence[Answered], now_us: int) -> None:
        """A thinned sample of latencies: a histogram needs no more, a window has no time for more."""
        for each in answered:
            received = each.requests.received_at
            sample = received[:: max(1, len(received) // LATENCIES_MAX)]
            meters.observe_latency(str(self.lane), self.spec.model, (now_us / 1e6 - sample / 1e3).tolist())


@dataclass(frozen=True, slots=True)
class Served:
    """What answers a window, and the freeze that holds; with `rejects` nothing does."""

    spec: ModelSpec
    loaded: Loaded
    freeze: Control | None = None
    rejects: bool = False

    @property
    def id(self) -> str | None:
        return None if self.freeze is None else self.freeze.id or f"{self.freeze.model}/{self.freeze.at}"


def frozen_message(freeze: Control) -> str:
    """Since when, why, and whom to ask."""
    since = datetime.fromtimestamp(freeze.at / 1e3, UTC).isoformat(timespec="seconds")
    why = freeze.reason[:REASON_MAX] or "no reason was given"
    return (
        f"{freeze.model} {freeze.version} is frozen by {freeze.by[:REASON_MAX]} since {since}: {why}; ask the operator "
        f"of this service, who sees the evidence with `lrai equity review {freeze.model}`"
    )


def missing_message(spec: ModelSpec, code: str) -> str:
    if code == "consent_missing":
        return f"{spec.model} answers only with a consent_id; send the id of the consent under which you ask"
    return f"{spec.model} answers only with the attributes {', '.join(spec.sensitive_features)}; send each of them"


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
