"""Which decisions a label is about, and what the joined labels add up to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

DECISIONS_MAX = 100  # of one request id
OTHER = "(other)"  # the group of those beyond groups_max
State = Literal["pending", "joined", "duplicate", "refused"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a model's owner states of labels and groups; the keys of model.toml."""

    favourable: str | None
    labels: Sequence[str] | None
    sensitive_features: Sequence[str]
    intersections: Sequence[Sequence[str]]
    groups_max: int
    reference_group: Mapping[str, str]

    @property
    def attributes(self) -> list[list[str]]:
        """The sensitive features, each alone, and the intersections."""
        return [*([each] for each in self.sensitive_features), *map(list, self.intersections)]


Settings = Mapping[tuple[str, str], Setting]  # by model and version


class Label(NamedTuple):
    """A label that waits for its decision."""

    id: int
    request_id: str
    model: str | None
    outcome: str


class Decided(NamedTuple):
    """A request that has the id of a label. `source`: topic id, partition, offset; `decision`: None where it ended
    without one; `label`: the outcome that an earlier label gave it; `counts`: made since the last freeze was ended."""

    source: tuple[int, int, int]
    received_at: Any
    model: str
    version: str
    decision: str | None
    attributes: Mapping[str, str]
    label: str | None
    counts: bool = True


class Pair(NamedTuple):
    """n decisions of one release and attribute set, and what their labels say."""

    model: str
    version: str
    decision: str | None
    attributes: Mapping[str, str]
    outcome: str
    n: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a label, and the decisions that it joins."""

    state: State
    reason: str | None = None
    joins: tuple[Decided, ...] = ()


class GroupKey(NamedTuple):
    """Whose labels are counted together; `group` None: the request did not say."""

    model: str
    version: str
    attribute: str
    group: str | None


class LabelCount(NamedTuple):
    """decided: decisions with a label; favourable: favourable decisions among them; positive: favourable outcomes;
    true_positive: both."""

    decided: int
    favourable: int
    positive: int
    true_positive: int

    def __add__(self, other: Any) -> LabelCount:
        return LabelCount(*(a + b for a, b in zip(self, other, strict=True)))


class Totals(NamedTuple):
    """The counts of a release, of decisions made since the freeze `ended` was ended; None: of all, none was."""

    ended: str | None
    counts: dict[GroupKey, LabelCount]


def judge(labels: Sequence[Label], found: Mapping[int, Sequence[Decided]], settings: Settings) -> list[Verdict]:
    """The verdicts on the labels, in their order: the first label of a decision holds.

    `found`: by the label's id, at most DECISIONS_MAX + 1 requests with its request id (and model).
    """
    given: dict[tuple[int, int, int], str] = {}
    waiting: set[tuple[str, str | None, str]] = set()
    verdicts = []
    for label in labels:
        decisions = [each._replace(label=given.get(each.source, each.label)) for each in found.get(label.id, ())]
        verdict = _judge(label, decisions, settings)
        if verdict.state == "pending":
            said = (label.request_id, label.model, label.outcome)
            verdict = Verdict("duplicate", "the same label waits already") if said in waiting else verdict
            waiting.add(said)
        given.update({each.source: label.outcome for each in verdict.joins})
        verdicts.append(verdict)
    return verdicts


def _judge(label: Label, found: Sequence[Decided], settings: Settings) -> Verdict:
    if not found:
        return Verdict("pending")
    if len(found) > DECISIONS_MAX:
        return Verdict("refused", f"more than {DECISIONS_MAX} requests have this id; send ids that are unique")
    if len(models := sorted({each.model for each in found})) > 1:
        return Verdict("refused", f"models {', '.join(models[:10])} have this request id; name the model")
    decided = [each for each in found if each.decision is not None]
    if not decided:
        return Verdict("refused", "the request ended without a decision")
    known = [each for each in decided if _is_outcome(label.outcome, settings.get((each.model, each.version)))]
    if not known:
        return Verdict("refused", f"outcome is none of the labels of model {models[0]}")
    if any(each.label not in (None, label.outcome) for each in known):
        return Verdict("refused", "an earlier label says otherwise; the first holds")
    joins = tuple(each for each in known if each.label is None)
    return Verdict("joined", None, joins) if joins else Verdict("duplicate", "an earlier label says the same")


def _is_outcome(outcome: str, setting: Setting | None) -> bool:
    return setting is None or setting.labels is None or outcome in setting.labels


def count(
    joined: Iterable[Pair], settings: Settings, known: Mapping[tuple[str, str, str], set[str]]
) -> dict[GroupKey, LabelCount]:
    """What decisions with their labels add to the totals, of models that state a favourable decision.

    `known`: the groups that (model, version, attribute) has so far; beyond groups_max a new one is OTHER.
    """
    found: dict[GroupKey, LabelCount] = {}
    seen = {key: set(groups) for key, groups in known.items()}
    for pair in joined:
        release = (pair.model, pair.version)
        setting = settings.get(release)
        if setting is None or setting.favourable is None:
            continue
        favourable, positive = pair.decision == setting.favourable, pair.outcome == setting.favourable
        more = LabelCount(*(pair.n * each for each in (1, favourable, positive, favourable and positive)))
        for attribute, group in _groups(release, setting, pair.attributes, seen):
            key = GroupKey(*release, attribute, group)
            found[key] = found.get(key, LabelCount(0, 0, 0, 0)) + more
    return found


def _groups(
    release: tuple[str, str], setting: Setting, attributes: Mapping[str, str],
    seen: dict[tuple[str, str, str], set[str]],
) -> list[tuple[str, str | None]]:  # fmt: skip
    """The group of a request by attribute, as the actor counts it; an empty text is none."""

    def bounded(attribute: str, group: str | None) -> str | None:
        groups = seen.setdefault((*release, attribute), set())
        if attribute in setting.reference_group:
            groups.add(setting.reference_group[attribute])
        if group is None or group in groups:
            return group
        if len(groups - {OTHER}) >= setting.groups_max:
            return OTHER
        groups.add(group)
        return group

    values = {name: bounded(name, attributes.get(name) or None) for name in setting.sensitive_features}
    found = list(values.items())
    for parts in setting.intersections:
        stated = [each for each in map(values.get, parts) if each is not None]
        attribute = "+".join(parts)
        found.append((attribute, bounded(attribute, "+".join(stated) if len(stated) == len(parts) else None)))
    return found
