"""What the counts of a release say, and what is to be told because of it. Pure.

Nothing here has to survive a restart: ids follow from what was found, so what is told twice is ignored the second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from audit import actions, daily, drift, fairness, warnings
from audit.actions import MONITOR
from audit.complaint_counts import Complaints
from audit.counts import DAY_MS, Counts, Scale
from audit.fairness import Assessment, Confusion
from kernels.spec import ModelSpec

if TYPE_CHECKING:
    from streams.control import Control

OTHER = "(other)"
ALERTS_KEPT = 10_000
GROUP = tuple(each.name for each in fields(fairness.Group))  # asdict would copy them, and take half of a look
DECISIONS_MIN = 100  # before a missing attribute is worth an alert
Release = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reference:
    """The histogram of a feature in the model's reference sample; `sha256`: of the edges."""

    sha256: str
    edges: Sequence[float]
    counts: Sequence[int]
    missing: int
    scale: Scale


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for every model.

    `alpha`: of a release, shared by its attributes; `every_ms`: between two records of one test whose state is the
    same; `coverage_min`: share of decisions that carry an attribute; `latency_edges`: of the tallies' latency
    histograms, seconds; `actions_allowed`: kinds of early warnings that are acted on, not only told.
    """

    alpha: float = 0.01
    every_ms: int = 1000
    coverage_min: float = 0.5
    latency_edges: Sequence[float] = ()
    rules: warnings.Rules = warnings.DEFAULT
    actions_allowed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """A record to send. `kind`: its schema."""

    kind: str
    key: str
    record: Mapping[str, Any]


@dataclass(slots=True)
class _Said:
    """The last record of one test."""

    id: str
    state: str
    at_ms: int


@dataclass
class Watch:
    """The judgement over all releases. `features`: what each model's reference sample says of its features."""

    specs: Mapping[Release, ModelSpec]
    features: Mapping[Release, Mapping[str, Reference]]
    policy: Policy = field(default_factory=Policy)
    _said: dict[tuple[str, ...], _Said] = field(default_factory=dict)
    _alerts: dict[str, None] = field(default_factory=dict)
    _drift_ms: dict[Release, int] = field(default_factory=dict)
    _judged: dict[Release, int] = field(default_factory=dict)
    _today: int = 0

    def look(self, counts: Counts, frozen: bool, now_ms: int, forced: Control | None = None) -> list[Told]:
        """What the counts give reason to tell: a freeze first. `now_ms`: the clock, since the epoch; `forced`: the last
        change of which variant answers."""
        release = counts.model, counts.version
        spec = self.specs.get(release)
        if spec is None:
            return []
        found = [self._fairness(counts, spec, *each) for each in self._assessed(counts, spec)]
        told = [] if frozen else self._freeze(counts, [(a, r) for _, a, r in found if a.established], now_ms)
        for attribute, assessment, record in found:
            told += self._publish("fairness", (*release, attribute, assessment.definition), record, now_ms)
            for each in warnings.disparity(assessment, spec.disparity_limit, attribute):
                parts = (attribute, assessment.definition, counts.epoch, assessment.state)
                told += self._alert(release, each, parts, bool(told) and told[0].kind == "control", counts.at)
        told += self._coverage(counts, spec)
        if now_ms - self._drift_ms.get(release, 0) >= self.policy.every_ms:
            self._drift_ms[release] = now_ms
            told += self._drift(counts, now_ms) + self._errors(counts)
        return told + self._days(counts, spec, forced, now_ms)

    def complaints(self, counted: Complaints) -> list[Told]:
        """Too many in a week: of a model, else of all together."""
        now_s = counted.newest_ms / 1000
        told = []
        for model, opened in counted.opened.items():
            if model:
                told += self._complained(model, [at / 1000 for _, at in opened], now_s)
        everything = [at / 1000 for opened in counted.opened.values() for _, at in opened]
        return told or self._complained("", everything, now_s)

    def _complained(self, model: str, times: list[float], now_s: float) -> list[Told]:
        found, at = warnings.complaints(times, now_s, self.policy.rules), int(now_s * 1000)
        return [told for each in found for told in self._alert((model, ""), each, (at // DAY_MS,), False, at)]

    def _assessed(self, counts: Counts, spec: ModelSpec) -> Iterator[tuple[str, Assessment, float]]:
        """Attribute, assessment and level of each test."""
        watched = [*spec.sensitive_features, *("+".join(each) for each in spec.intersections)]
        alpha = self.policy.alpha / max(1, len(watched))
        labelled = counts.labelled()
        for attribute in watched:
            how = (spec.disparity_limit, alpha, spec.reference_group.get(attribute), spec.freeze_on)
            if groups := counts.groups.get(attribute):
                rates = {group: (decided, favourable) for group, (decided, favourable) in groups.items()}
                yield attribute, fairness.demographic_parity(rates, *how), alpha
            if labels := labelled.get(attribute):
                confusions = {group: Confusion(*each) for group, each in labels.items()}
                for assessment in fairness.odds(confusions, *how):
                    yield attribute, assessment, alpha

    def _fairness(
        self, counts: Counts, spec: ModelSpec, attribute: str, found: Assessment, alpha: float
    ) -> tuple[str, Assessment, dict[str, Any]]:
        decisions, coverage = counts.coverage(attribute)
        counted: Any = counts.groups.get(attribute)
        if not found.definition.startswith("demographic"):
            counted = counts.labelled()[attribute]
            labels = sum(each[0] for each in counted.values())
            coverage = min(1.0, labels / decisions) if decisions else 0.0
        what = (counts.model, counts.version, attribute, found.definition, counts.epoch)
        record = {
            "id": _id(*what, counted, decisions), "model": counts.model, "version": counts.version,
            "attribute": attribute, "definition": found.definition, "epoch": counts.epoch, "since": counts.since,
            "at": counts.at, "decisions": decisions, "coverage": coverage, "value": found.value, "ratio": found.ratio,
            "limit": spec.disparity_limit, "alpha": alpha, "method": found.method, "state": found.state,
            "groups": [{name: getattr(each, name) for name in GROUP} for each in found.groups],
        }  # fmt: skip
        return attribute, found, record

    def _freeze(self, counts: Counts, found: list[tuple[Assessment, dict[str, Any]]], now_ms: int) -> list[Told]:
        """The one that is furthest apart, with its alert."""
        if not found:
            return []
        assessment, record = max(found, key=lambda each: each[0].value)
        worst = max((g for g in assessment.groups if g.state == "alarm"), key=lambda g: abs(g.difference))
        evidence = json.dumps(record, ensure_ascii=False, sort_keys=True)
        model, version = counts.model, counts.version
        reason = (
            f"{assessment.definition} by {record['attribute']} is {assessment.value:.3f}, limit {record['limit']:g}; "
            f"{worst.group}: {worst.favourable} of {worst.decided}"
        )
        control = {
            "kind": "freeze", "model": model, "version": version, "variant": None, "by": MONITOR, "reason": reason,
            "at": now_ms, "id": _id(model, version, assessment.definition, worst.group, evidence), "evidence": evidence,
        }  # fmt: skip
        action = f"freeze; review it: lrai equity review {model} --version {version}; then lrai equity unfreeze"
        what = warnings.Warning("frozen", "critical", f"{model} {version} is frozen: {reason}", action, record)
        alert = self._alert((model, version), what, (control["id"],), True, now_ms)
        return [Told("control", f"freeze/{model}/{version}", control), *alert]

    def _coverage(self, counts: Counts, spec: ModelSpec) -> list[Told]:
        """Decisions that cannot be judged since the request did not say its group, or there are too many groups."""
        told: list[Told] = []
        for attribute in spec.sensitive_features:
            decisions, coverage = counts.coverage(attribute)
            evidence = {"attribute": attribute, "decisions": decisions, "coverage": coverage}
            if decisions >= DECISIONS_MIN and coverage < self.policy.coverage_min:
                text = f"{coverage:.0%} of {decisions} decisions carry the attribute {attribute}"
                told += self._missing(counts, text, "send it with every request", attribute, evidence)
            if OTHER in counts.groups.get(attribute, {}):
                text = f"{attribute} has more than {spec.groups_max} groups; further ones are counted as {OTHER}"
                action = "send fewer groups, or raise groups_max"
                told += self._missing(counts, text, action, f"{attribute} {OTHER}", evidence)
        return told

    def _missing(self, counts: Counts, text: str, action: str, what: str, evidence: Mapping[str, object]) -> list[Told]:
        found = warnings.Warning("attributes_missing", "warning", text, action, evidence)
        return self._alert((counts.model, counts.version), found, (what, counts.epoch), False, counts.at)

    def _drift(self, counts: Counts, now_ms: int) -> list[Told]:
        release, told = (counts.model, counts.version), list[Told]()
        for name, feature in counts.features.items():
            reference = self.features.get(release, {}).get(name)
            if reference is None or reference.sha256 != feature.edges:
                continue
            *recent, missing = feature.recent.counts.tolist()
            found = drift.assess(reference.counts, recent, reference.edges, reference.missing, missing)
            measures = {key: value for key, value in asdict(found).items() if key != "ks_limit"}
            record = {
                "id": _id(*release, name, feature.edges, feature.begun, recent, missing), "model": counts.model,
                "version": counts.version, "feature": name, "edges": feature.edges, "since": feature.begun,
                "at": feature.at, **measures, "adwin": feature.means.changes if feature.means else 0,
            }  # fmt: skip
            told += self._publish("drift", (*release, name), record, now_ms)
            if found.state in ("warn", "alarm"):
                text = f"{name} drifts: PSI {found.psi:.3f}, limit {found.psi_limit:.3f}; KS {found.ks:.3f}"
                severity = "critical" if found.state == "alarm" else "warning"
                action = "compare today's rows with the reference sample; retrain, or make a new reference"
                what = warnings.Warning("drift", severity, text, action, record)
                told += self._alert(release, what, (name, found.state, feature.at // DAY_MS), False, feature.at)
        return told

    def _errors(self, counts: Counts) -> list[Told]:
        """The newest change of the share of wrong decisions."""
        if not counts.errors or not counts.errors.last:
            return []
        before, after = counts.errors.last
        word, severity = ("rose", "warning") if after > before else ("fell", "info")
        text = f"the share of decisions that the outcome contradicts {word} from {before:.1%} to {after:.1%}"
        evidence = {"feature": "error", "before": before, "after": after, "changes": counts.errors.changes}
        action = "look at audit.accuracy_by_group; retrain where it stays so"
        found = warnings.Warning("drift", severity, text, action, evidence)
        parts = ("error", counts.errors.changes)
        return self._alert((counts.model, counts.version), found, parts, False, counts.errors_at)

    def _days(self, counts: Counts, spec: ModelSpec, forced: Control | None, now_ms: int) -> list[Told]:
        """The rules over whole days, once a day; today is the newest day of any release. An action goes first."""
        release = counts.model, counts.version
        self._today = max(self._today, max(counts.days, default=0))
        if self._judged.get(release) == self._today:
            return []
        self._judged[release] = self._today
        rules, whole = self.policy.rules, daily.whole_days(counts.days, self._today)
        found = warnings.latency(daily.latency_p95(whole, self.policy.latency_edges), rules)
        found += warnings.utilisation(daily.utilisation(whole), rules)
        at, told = self._today * DAY_MS, list[Told]()
        for each in found:
            variant, name = None, _id(each.kind, *release, self._today)
            if each.kind in self.policy.actions_allowed:
                variant = actions.variant(spec, forced, name, at)
            if variant:
                told += _force(release, variant, name, each.message, now_ms)
                each = replace(each, action=actions.taken(spec, variant, each.action))
            told += self._alert(release, each, (self._today,), variant is not None, at)
        return told

    def _publish(self, kind: str, what: tuple[str, ...], record: dict[str, Any], now_ms: int) -> list[Told]:
        """Always when the state is another one, else at most once in `every_ms`, and never twice the same."""
        before = self._said.get((kind, *what))
        if before and before.id == record["id"]:
            return []
        if before and before.state == record["state"] and now_ms - before.at_ms < self.policy.every_ms:
            return []
        self._said[kind, *what] = _Said(record["id"], record["state"], now_ms)
        return [Told(kind, "/".join(what), record)]

    def _alert(
        self, release: Release, found: warnings.Warning, parts: Sequence[object], taken: bool, at: int
    ) -> list[Told]:
        """The same finding is told once, by this process; its id is the same for all."""
        name = _id(found.kind, *release, *parts)
        if name in self._alerts:
            return []
        self._alerts[name] = None
        for old in list(self._alerts)[:-ALERTS_KEPT]:
            del self._alerts[old]
        model, version = release
        where = f"{model} {version}: " if model and not found.message.startswith(model) else ""
        record = {
            "id": name, "kind": found.kind, "severity": found.severity, "model": model or None,
            "version": version or None, "message": where + found.message,
            "action": f"{'taken' if taken else 'proposed'}: {found.action}", "taken": taken,
            "evidence": json.dumps(found.evidence, ensure_ascii=False, sort_keys=True), "at": at,
        }  # fmt: skip
        return [Told("alert", name, record)]


def _force(release: Release, variant: str, name: str, reason: str, now_ms: int) -> list[Told]:
    """That this variant answers from now on; what is told twice has the same id."""
    model, version = release
    control = {
        "kind": "variant", "model": model, "version": version, "variant": variant, "by": MONITOR, "reason": reason,
        "at": now_ms, "id": name, "evidence": None,
    }  # fmt: skip
    return [Told("control", f"variant/{model}/{version}", control)]


def _id(*parts: object) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
