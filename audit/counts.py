"""What the monitor keeps of a release: counts, and up to where they were counted. Pure.

Counts add up, so windows, workers and partitions merge in any order; the last offset of each partition lies in the same
value, so what is read again changes nothing.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import Any

import numpy as np

from audit.drift import Means, Recent
from schemas.errors import BadRecord

DAY_MS = 86_400_000
DAYS_KEPT = 15
RECENT_IDS = 256  # a tally that is produced twice comes twice within these
WORKERS_MAX = 256  # of a day
EPOCHS_KEPT = 3  # other than the own, of which totals of labels came
RECENT_ROWS = 500  # drift is judged by at least as many of the newest: twice as many would find a shift too late
GROUPS_MAX = 1100  # the actor's bound is the model's groups_max, at most 1,024
FEATURES_MAX = 128
CONFUSION = ("decided", "favourable", "positive", "true_positive")
ERROR_SCALE = (0.0, 0.5)  # no share has a larger standard deviation
Scale = tuple[float, float]
"""Mean and standard deviation of a feature in the reference sample."""
Groups = dict[str, dict[str, list[int]]]
"""By attribute and group: decided, favourable; of labels: decided, favourable, positive, true positive."""


@dataclass(slots=True)
class Day:
    """A day of a release by the times of its tallies. `latency`: int[edges + 1] of lrai_latency_seconds."""

    requests: int = 0
    execution_s: float = 0.0
    latency: list[int] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Feature:
    """The newest rows of an input or the score, and ADWIN over the means of all. `edges`: the hash of the bins.

    The last cell of `recent` counts what was missing. `since`: the first tallies of its older and its newer half, ms.
    """

    edges: str
    recent: Recent
    means: Means | None
    since: list[int]
    at: int

    def add(self, at: int, counts: list[int], found: Mapping[str, Any]) -> None:
        """A histogram of a tally."""
        if self.recent.full:
            self.since = [self.since[-1], at]
        self.recent.add([*counts, found["missing"]])
        self.at = max(self.at, at)
        if self.means:
            self.means.add(sum(counts), found["sum"])

    @property
    def begun(self) -> int:
        """The first tally of the rows that `recent.counts` holds, ms."""
        return self.since[-1 if self.recent.full else 0]

    def encode(self) -> dict[str, Any]:
        own = {"edges": self.edges, "since": self.since, "at": self.at, "means": _encoded(self.means)}
        return {**self.recent.state(), **own}

    @classmethod
    def decode(cls, found: Mapping[str, Any], scale: Scale | None) -> Feature:
        """What `encode` wrote."""
        recent = Recent(RECENT_ROWS, found["before"], found["now"])
        means = _decoded(found["means"], scale) if scale else None
        return cls(found["edges"], recent, means, found["since"], found["at"])


@dataclass(slots=True)
class Counts:
    """One release.

    `offsets`: the last counted, by topic/partition; `recent`: hashes of the newest ids; `epoch`: how many freezes were
    ended; `ended`: the last of those; `since`, `at`: first and last tally of the epoch, ms; `missing`: decided and
    favourable of requests that did not say their group, by attribute; `labels`: totals by the `ended` that they are of,
    "" before any, for the store may see the end of a freeze before the monitor does; `judged`: of the same, labels and
    wrong decisions; `errors`: ADWIN over the share of wrong ones; `errors_at`: when that changed last, ms; `days`: by
    the number of the day since 1970.
    """

    model: str
    version: str
    offsets: dict[str, int] = field(default_factory=dict)
    recent: list[int] = field(default_factory=list)
    epoch: int = 0
    ended: str | None = None
    since: int = 0
    at: int = 0
    requests: int = 0
    groups: Groups = field(default_factory=dict)
    missing: dict[str, list[int]] = field(default_factory=dict)
    labels: dict[str, Groups] = field(default_factory=dict)
    judged: dict[str, list[int]] = field(default_factory=dict)
    errors: Means | None = None
    errors_at: int = 0
    days: dict[int, Day] = field(default_factory=dict)
    features: dict[str, Feature] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)

    def add(self, tally: Mapping[str, Any], place: str, offset: int) -> str:
        """Counts a tally of this release; why it was not counted, or "". `place`: topic/partition. Raises BadRecord."""
        if offset <= self.offsets.get(place, -1):
            return "repeated"
        latency, histograms = _checked(tally)
        self.offsets[place] = offset
        if self._seen(f"{tally['kind']} {tally['id']}"):
            return "repeated"
        if tally["kind"] == "labels":
            return self._label(tally)
        self._count_day(tally, latency)
        for counts, found in zip(histograms, tally["histograms"], strict=True):
            self._count_feature(found, counts, tally["at"])
        if self.ended and tally["frozen"] == self.ended:
            return "former_epoch"
        self.since = min(self.since or tally["at"], tally["at"])
        self.at = max(self.at, tally["at"])
        self.requests += tally["requests"]
        for each in tally["groups"]:
            self._count_group(each)
        return ""

    def begin_epoch(self, ended: str) -> None:
        """A freeze was ended: its evidence cannot count again. The same freeze ends once."""
        if ended == self.ended:
            return
        self.epoch, self.ended = self.epoch + 1, ended
        self.since = self.at = self.requests = 0
        self.groups, self.missing = {}, {}

    def labelled(self) -> Groups:
        """The totals of the labels of decisions that were made in this epoch, whenever the labels came."""
        return self.labels.get(self.ended or "", {})

    def coverage(self, attribute: str) -> tuple[int, float]:
        """All decisions, and the share of them that carry the attribute."""
        carried = sum(counts[0] for counts in self.groups.get(attribute, {}).values())
        decisions = carried + self.missing.get(attribute, [0])[0]
        return decisions, carried / decisions if decisions else 0.0

    def encode(self) -> bytes:
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "scales"}
        plain["days"] = {day: asdict(each) for day, each in self.days.items()}
        plain["features"] = {name: each.encode() for name, each in self.features.items()}
        plain["errors"] = _encoded(self.errors)
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes, scales: Mapping[str, Scale]) -> Counts:
        """What `encode` wrote."""
        found = json.loads(value)
        found["days"] = {int(day): Day(**each) for day, each in found["days"].items()}
        features = found["features"].items()
        found["features"] = {name: Feature.decode(each, scales.get(name)) for name, each in features}
        if state := found.get("errors"):
            found["errors"] = _decoded(state, ERROR_SCALE)
        return cls(**found, scales=scales)

    def _seen(self, name: str) -> bool:
        number = int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "big")
        if number in self.recent:
            return True
        self.recent.append(number)
        del self.recent[:-RECENT_IDS]
        return False

    def _label(self, tally: Mapping[str, Any]) -> str:
        """Totals replace the earlier ones of their epoch, unless those are of more labels; why not counted, or ""."""
        found: Groups = {}
        for each in tally["groups"]:
            if each["group"] is not None:
                counts = [each[name] for name in CONFUSION]
                found.setdefault(each["attribute"], {})[each["group"]] = counts
        epoch, own = tally["ended"] or "", self.ended or ""
        if _labels(found) < _labels(self.labels.get(epoch, {})):
            return "older_labels"
        self.labels.pop(epoch, None)  # the newest are the last
        self.labels[epoch] = found
        self._judge(epoch, _errors(tally["groups"]), tally["at"])
        others = [each for each in self.labels if each != own]
        for old in others[:-EPOCHS_KEPT]:
            del self.labels[old]
            self.judged.pop(old, None)
        return "" if epoch == own else "other_epoch"

    def _judge(self, epoch: str, now: list[int], at: int) -> None:
        """What the totals have more than before goes to ADWIN; where a recount changed the past, nothing does."""
        labels, wrong = (a - b for a, b in zip(now, self.judged.get(epoch, [0, 0]), strict=True))
        self.judged[epoch] = now
        if 0 <= wrong <= labels:
            self.errors = self.errors or Means(*ERROR_SCALE)
            if self.errors.add(labels, wrong):
                self.errors_at = at

    def _count_group(self, found: Mapping[str, Any]) -> None:
        attribute, group = found["attribute"], found["group"]
        if group is None:
            counts = self.missing.setdefault(attribute, [0, 0])
        else:
            groups = self.groups.setdefault(attribute, {})
            if group not in groups and len(groups) >= GROUPS_MAX:
                group = "(other)"
            counts = groups.setdefault(group, [0, 0])
        counts[0] += found["decided"]
        counts[1] += found["favourable"]

    def _count_feature(self, found: Mapping[str, Any], counts: list[int], at: int) -> None:
        """Other bins than before start the feature anew."""
        name, feature = found["feature"], self.features.get(found["feature"])
        if feature is None and len(self.features) >= FEATURES_MAX:
            return
        if feature is None or feature.edges != found["edges"] or len(feature.recent.now) != len(counts) + 1:
            scale = self.scales.get(name)
            means = Means(*scale) if scale else None
            feature = self.features[name] = Feature(found["edges"], Recent(RECENT_ROWS), means, [at], at)
        feature.add(at, counts, found)

    def _count_day(self, tally: Mapping[str, Any], latency: list[int]) -> None:
        day = self.days.setdefault(tally["at"] // DAY_MS, Day())
        day.requests += tally["requests"]
        day.execution_s += sum(each["execution_s"] for each in tally["releases"])
        if len(latency) == len(day.latency):
            day.latency = [a + b for a, b in zip(day.latency, latency, strict=True)]
        elif not day.latency:
            day.latency = latency
        if tally["worker"] not in day.workers and len(day.workers) < WORKERS_MAX:
            day.workers.append(tally["worker"])
        for old in sorted(self.days)[:-DAYS_KEPT]:
            del self.days[old]


def _checked(tally: Mapping[str, Any]) -> tuple[list[int], list[list[int]]]:
    """Latency and histograms; nothing is counted of a tally that cannot be."""
    try:
        latency = np.frombuffer(tally["latency"], "<i4").tolist()
        histograms = [np.frombuffer(each["counts"], "<i4").tolist() for each in tally["histograms"]]
    except ValueError as err:
        raise BadRecord("undecodable", f"tally {tally['id']}: counts are no int32: {err}") from err
    numbers = [tally["requests"], tally["at"], *(min(each, default=0) for each in (latency, *histograms))]
    for each in tally["groups"]:
        decided, favourable, positive, both = (each[name] for name in CONFUSION)
        numbers += [favourable, decided - favourable]
        if tally["kind"] == "labels":  # the four cells of the table
            numbers += [both, favourable - both, positive - both, decided - favourable - positive + both]
    if min(numbers) < 0 or tally["kind"] not in ("decisions", "labels"):
        raise BadRecord("undecodable", f"tally {tally['id']} of kind {tally['kind']}: its counts cannot be")
    return latency, histograms


def _labels(groups: Groups) -> int:
    """How many labels the totals are of: every attribute has them all, so the largest sum."""
    return max((sum(counts[0] for counts in each.values()) for each in groups.values()), default=0)


def _errors(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    """Labels and, of those, decisions that were favourable where the outcome was not, or the reverse. Every attribute
    has all labels, those of people who did not say their group among them: so the attribute with most."""
    found: dict[str, list[int]] = {}
    for each in groups:
        counts = found.setdefault(each["attribute"], [0, 0])
        counts[0] += each["decided"]
        counts[1] += each["favourable"] + each["positive"] - 2 * each["true_positive"]
    return max(found.values(), default=[0, 0])


def _encoded(means: Means | None) -> dict[str, Any] | None:
    if means is None:
        return None
    return {**means.state(), "blocks": b64encode(np.array(means.blocks, "<f4").tobytes()).decode()}


def _decoded(state: Mapping[str, Any] | None, scale: Scale) -> Means:
    if not state:
        return Means(*scale)
    return Means(*scale, **{**state, "blocks": np.frombuffer(b64decode(state["blocks"]), "<f4").tolist()})
