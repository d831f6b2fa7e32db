"""What a window comes to: one small record of counts, which add up to those of `audit.decision`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels import reference
from kernels.reference import SCORE, Columns, Reference
from kernels.spec import ModelSpec
from schemas.requests import read_map
from schemas.results import OK
from streams.window import Range

OTHER = "(other)"
KNOWN_MAX = 10_000  # attribute sets that are remembered; beyond, it starts anew
KNOWN_BYTES_MAX = 1024  # of one that is remembered
ROWS_MAX = 256  # of a window whose numbers are put into histograms, taken evenly
LOOK_MS = 50  # a window so soon after one whose numbers were looked at is not looked at
CONSENT, ATTRIBUTES = 1, 2  # what a request lacks, added
UNDECIDED, OTHERWISE, FAVOURABLE = range(3)
_EMPTY = b"\0"  # the map without entries
Codes = npt.NDArray[np.int32]
Names = tuple[str | None, ...]
Record = Mapping[str, Any]


class Groups:
    """The groups of a model's sensitive features and intersections: at most `groups_max` of each, whatever clients
    write; further ones are OTHER. None: the request did not say. Shared by the lanes of an actor."""

    def __init__(self, spec: ModelSpec) -> None:
        self.features = spec.sensitive_features
        self.together = [[self.features.index(each) for each in names] for names in spec.intersections]
        self.attributes = (*self.features, *("+".join(names) for names in spec.intersections))
        self._most = spec.groups_max
        stated = ({spec.reference_group[each]} if each in spec.reference_group else set() for each in self.attributes)
        self._named: list[set[str]] = list(stated)
        self._known: dict[bytes, Names] = {}
        self._lock = Lock()

    def of(self, encoded: bytes) -> Names:
        """The groups of an encoded attribute set, in the order of `attributes`."""
        found = self._known.get(encoded)
        if found is None:
            with self._lock:
                found = self._of(read_map(encoded))
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                if len(encoded) <= KNOWN_BYTES_MAX:
                    self._known[encoded] = found
        return found

    def lack(self, sets: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """bool[sets + 1]: which do not name every feature; the last one is for requests without attributes."""
        places = range(len(self.features))
        lacking = (any(groups[i] is None for i in places) for groups in map(self.of, [*sets, _EMPTY]))
        return np.fromiter(lacking, bool, len(sets) + 1)

    def _of(self, attributes: Mapping[str, str]) -> Names:
        values = [self._bounded(i, attributes.get(name) or None) for i, name in enumerate(self.features)]
        found: list[str | None] = list(values)
        for i, places in enumerate(self.together, len(values)):
            parts = [values[place] for place in places]
            found.append(self._bounded(i, None if None in parts else "+".join(map(str, parts))))
        return tuple(found)

    def _bounded(self, attribute: int, group: str | None) -> str | None:
        named = self._named[attribute]
        if group is None or group in named:
            return group
        if len(named) >= self._most:
            return OTHER
        named.add(group)
        return group


@dataclass(frozen=True, slots=True)
class Watch:
    """What is counted of a model, and by which edges. `latency_s`: the edges of lrai_latency_seconds."""

    spec: ModelSpec
    groups: Groups
    reference: Reference | None
    latency_s: Sequence[float]
    columns: Columns
    edges: list[npt.NDArray[np.float64]]

    @classmethod
    def of(cls, spec: ModelSpec, found: Reference | None, latency_s: Sequence[float]) -> Watch:
        edges = [np.array(each.edges) for each in found.histograms] if found else []
        return cls(spec, Groups(spec), found, latency_s, Columns(spec), edges)


@dataclass(slots=True)
class Ran:
    """Kernel runs of one variant in a window."""

    rows: int = 0
    execution_s: float = 0.0


@dataclass(frozen=True, slots=True)
class About:
    """What a window took, and who says so; `source`: its first range; `ran`: by variant and certificate."""

    source: Range
    worker: str
    priority: str
    ran: Mapping[tuple[str | None, str | None], Ran]
    took: Mapping[str, Any]  # cpu_s, gpu_s, energy_j, energy_source, cost, currency
    frozen: str | None = None


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    consent_missing: int = 0
    received_at: int = 2**62
    outcomes: dict[str, int] = field(default_factory=dict)
    groups: dict[tuple[str, str | None], list[int]] = field(default_factory=dict)
    ok: dict[tuple[str | None, str | None], int] = field(default_factory=dict)


def tally(
    watch: Watch, records: Sequence[Record], inputs: Sequence[Mapping[str, npt.NDArray[Any]]], about: About
) -> dict[str, Any]:
    """The Tally of a window from its DecisionBatch records, one release each.

    `inputs`: of the requests that were answered, rows first; none where they are not looked at.
    """
    counts = _Counts()
    latency = np.zeros(len(watch.latency_s) + 1, np.int64)
    for record in records:
        _count(counts, record)
        if watch.spec.favourable is not None and watch.groups.attributes:
            _groups(counts.groups, watch, record)
        seconds = record["answered_at"] / 1e6 - np.frombuffer(record["received_at"], "<i8") / 1e3
        latency += np.bincount(np.searchsorted(watch.latency_s, seconds), minlength=len(latency))
    first = about.source
    names = [*dict.fromkeys([*counts.ok, *about.ran])]
    return {
        "id": f"{about.worker}/{first.topic}/{first.partition}/{first.start}",
        "kind": "decisions",
        "model": watch.spec.model,
        "version": watch.spec.version,
        "worker": about.worker,
        "priority": about.priority,
        "at": max((record["answered_at"] for record in records), default=0) // 1000,
        "received_at": counts.received_at,
        "requests": counts.requests,
        "outcomes": counts.outcomes,
        "groups": [
            {"attribute": attribute, "group": group, "decided": decided, "favourable": favourable}
            for (attribute, group), (decided, favourable) in counts.groups.items()
        ],
        "consent_missing": counts.consent_missing,
        "histograms": _histograms(watch, records, inputs) if inputs else [],
        "latency": latency.astype("<i4").tobytes(),
        "releases": [_release(name, counts.ok.get(name, 0), about.ran.get(name, Ran())) for name in names],
        "frozen": about.frozen,
        **about.took,
    }


def decided(record: Record, favourable: str | None) -> tuple[int, int]:
    """How many requests of a DecisionBatch got a decision, and how many of these the favourable one."""
    states = np.bincount(_states(record, favourable), minlength=3)
    return int(states[OTHERWISE] + states[FAVOURABLE]), int(states[FAVOURABLE])


def lacks(groups: Groups, attributes: Codes, sets: Sequence[bytes], consent: Codes) -> Codes:
    """int32[n]: CONSENT + ATTRIBUTES of what each request lacks. `consent`: int32[n], bytes of the consent id."""
    lacking = groups.lack(sets)[attributes]  # -1, none, is the last
    found: Codes = (np.where(consent <= 0, CONSENT, 0) + np.where(lacking, ATTRIBUTES, 0)).astype(np.int32)
    return found


def _release(name: tuple[str | None, str | None], requests: int, ran: Ran) -> dict[str, Any]:
    variant, certificate = name
    return {"variant": variant, "certificate": certificate, "requests": requests, "rows": ran.rows,
            "execution_s": ran.execution_s}  # fmt: skip


def _count(counts: _Counts, record: Record) -> None:
    n = record["count"]
    counts.requests += n
    counts.received_at = min(counts.received_at, int(np.frombuffer(record["received_at"], "<i8").min()))
    consent = record["consent_id"]["lengths"]
    counts.consent_missing += int((np.frombuffer(consent, np.int32) <= 0).sum()) if consent else n
    codes = np.frombuffer(record["error"], "<i4") if record["error"] else np.full(n, -1)
    ended = np.bincount(codes + 1, minlength=len(record["errors"]) + 1).tolist()
    for code, count in zip(("ok", *(each["code"] for each in record["errors"])), ended, strict=True):
        if count:
            counts.outcomes[code] = counts.outcomes.get(code, 0) + count
    (release,) = record["releases"]
    name = release["variant"], release["certificate"]
    if ended[0]:
        counts.ok[name] = counts.ok.get(name, 0) + ended[0]


def _states(record: Record, favourable: str | None) -> npt.NDArray[np.int64]:
    """int64[n]: UNDECIDED, OTHERWISE or FAVOURABLE."""
    words = [FAVOURABLE if word == favourable else OTHERWISE for word in record["decisions"]]
    if not words:
        return np.full(record["count"], UNDECIDED)
    found: npt.NDArray[np.int64] = np.array([*words, UNDECIDED])[np.frombuffer(record["decision"], "<i4")]
    return found  # -1, none, is the last


def _groups(found: dict[tuple[str, str | None], list[int]], watch: Watch, record: Record) -> None:
    """Adds the decided and the favourable of each group: sets to their groups, then one count of all pairs."""
    index: dict[Names, int] = {}
    places = [index.setdefault(watch.groups.of(each), len(index)) for each in (*record["attribute_sets"], _EMPTY)]
    states = _states(record, watch.spec.favourable)
    if record["attributes"]:
        pairs = (np.array(places) * 3)[np.frombuffer(record["attributes"], "<i4")] + states  # -1, none, is the last
    else:
        pairs = states + 3 * places[-1]
    table = np.bincount(pairs, minlength=3 * len(index)).reshape(-1, 3).tolist()
    for names, (_, otherwise, favourable) in zip(index, table, strict=True):
        if otherwise or favourable:
            for attribute, group in zip(watch.groups.attributes, names, strict=True):
                sums = found.setdefault((attribute, group), [0, 0])
                sums[0] += otherwise + favourable
                sums[1] += favourable


def _histograms(
    watch: Watch, records: Sequence[Record], inputs: Sequence[Mapping[str, npt.NDArray[Any]]]
) -> list[dict[str, Any]]:
    """Of rows taken evenly, and of the scores of requests taken evenly."""
    if watch.reference is None:
        return []
    total = sum(len(next(iter(each.values()))) for each in inputs)
    step = max(1, -(-total // ROWS_MAX))
    values = np.concatenate([watch.columns.take(each, step) for each in inputs])
    places = watch.reference.histograms
    found = _counted(places[: len(watch.columns.names)], values, watch.edges) if watch.columns.names else []
    if places[-1].feature == SCORE:
        answered = [np.frombuffer(each["status"], "<u1") == OK for each in records]
        scores = [np.frombuffer(each["score"])[ok] for each, ok in zip(records, answered, strict=True)]
        step = max(1, -(-sum(map(len, scores)) // ROWS_MAX))
        column = np.concatenate([each[::step] for each in scores])[:, None]
        found += _counted(places[-1:], column, watch.edges[-1:])
    return found


def _counted(
    places: Sequence[reference.Histogram], values: npt.NDArray[np.float64], edges: Sequence[npt.NDArray[np.float64]]
) -> list[dict[str, Any]]:
    counts, missing, sums, squares = reference.count(values, edges[: len(places)])
    columns = zip(places, counts, missing.tolist(), sums.tolist(), squares.tolist(), strict=True)
    return [
        {"feature": place.feature, "edges": place.sha256, "counts": own.astype("<i4").tobytes(), "missing": missing,
         "sum": total, "sum_squares": square}
        for place, own, missing, total, square in columns
    ]  # fmt: skip
