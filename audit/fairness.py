"""Group fairness on counts: Fairlearn's definitions, and when a difference is established.

A group is compared with the reference group, or else with all the others. Its difference is *established* when the
anytime-valid confidence sequence (`audit.sequential`), corrected by Holm for the number of comparisons, excludes
equality and the groups so found are further apart than the limit. `excludes_limit` demands that the sequence (corrected
by Bonferroni) exclude every difference up to the limit. All that is kept is counts: merged counts, merged assessment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan

from audit.sequential import Count, half_width, holm, information, p_value, sufficient, wilson
from schemas.errors import BadSetting, IntegrityError

FREEZE_ON = ("established", "excludes_limit", "never")
STATES = ("insufficient", "ok", "warn", "alarm")  # from the least to the worst
OTHERS = "*"
RATES = ("; of true positive rates", "; of false positive rates")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Of one group, decisions with a known outcome."""

    decided: int
    favourable: int
    positive: int  # favourable outcomes
    true_positive: int  # of them with a favourable decision

    @property
    def positives(self) -> Count:
        return self.positive, self.true_positive

    @property
    def negatives(self) -> Count:
        return self.decided - self.positive, self.favourable - self.true_positive


@dataclass(frozen=True, slots=True)
class Group:
    """One group beside what it is compared with."""

    group: str
    decided: int
    favourable: int
    rate: float
    low: float  # Wilson interval of the rate, 95 % at one look
    high: float
    compared_with: str  # the reference group, or *: all the others
    difference: float  # own rate less the other's
    difference_low: float  # anytime-valid, at the level of Holm; -1 and 1 where the counts are too small
    difference_high: float
    state: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the counts say by one definition."""

    definition: str
    value: float  # largest rate less smallest, of groups with decisions
    ratio: float  # smallest over largest; 1 where no group has a favourable decision
    state: str  # the worst of the groups; insufficient where no group can be compared
    established: bool  # freeze
    method: str
    groups: tuple[Group, ...]  # by name


@dataclass(frozen=True, slots=True)
class _Comparison:
    group: str
    own: Count
    reference: str | None
    other: Count
    hypothesis: str  # what it tests: of two groups without a reference, either says the same about the other

    @property
    def is_reference(self) -> bool:
        return self.group == self.reference

    @property
    def difference(self) -> float:
        return _rate(self.own) - _rate(self.other)

    @property
    def information(self) -> float:
        return information(self.own, self.other) if sufficient(self.own, self.other) else 0.0


def selection_rate(counts: Mapping[str, Count]) -> dict[str, float]:
    """Favourable decisions over decisions by group; 0 for a group without decisions.

    >>> selection_rate({"F": (10, 3), "M": (10, 4)})
    {'F': 0.3, 'M': 0.4}
    """
    return {group: _rate(count) for group, count in counts.items()}


def demographic_parity_difference(counts: Mapping[str, Count]) -> float:
    """Largest less smallest selection rate.

    >>> round(demographic_parity_difference({"F": (10, 3), "M": (10, 4)}), 12)
    0.1
    """
    return _difference(counts)


def demographic_parity_ratio(counts: Mapping[str, Count]) -> float:
    """Smallest over largest selection rate; NaN where all are 0, as in Fairlearn.

    >>> demographic_parity_ratio({"F": (10, 2), "M": (10, 4)})
    0.5
    """
    rates = selection_rate(counts).values()
    return min(rates) / max(rates) if any(rates) else nan


def equalized_odds_difference(confusions: Mapping[str, Confusion]) -> float:
    """The greater of the differences of true positive and false positive rates."""
    return max(_difference(_positives(confusions)), _difference(_negatives(confusions)))


def equal_opportunity_difference(confusions: Mapping[str, Confusion]) -> float:
    """Largest less smallest true positive rate."""
    return _difference(_positives(confusions))


def impact_ratio(counts: Mapping[str, Count]) -> dict[str, float]:
    """Each selection rate over the largest (New York City Local Law 144); NaN where all are 0.

    >>> impact_ratio({"F": (10, 2), "M": (10, 4)})
    {'F': 0.5, 'M': 1.0}
    """
    rates = selection_rate(counts)
    largest = max(rates.values(), default=0.0)
    return {group: rate / largest if largest else nan for group, rate in rates.items()}


def demographic_parity(
    counts: Mapping[str, Count],
    limit: float,
    alpha: float,
    reference: str | None = None,
    freeze_on: str = "established",
) -> Assessment:
    """Assess selection rates; counts: group -> (decided, favourable), all since the epoch began.

    Raises BadSetting for a limit, level or freeze_on that makes no sense, IntegrityError for counts that cannot be.
    """
    return _assess("demographic_parity_difference", (counts,), limit, alpha, reference, freeze_on)


def odds(
    counts: Mapping[str, Confusion],
    limit: float,
    alpha: float,
    reference: str | None = None,
    freeze_on: str = "established",
) -> tuple[Assessment, ...]:
    """Assess equalized odds (Holm over both rates of all groups) and equal opportunity.

    The groups of equalized odds are those of the worse rate, true positive or false positive; `method` names it.
    """
    positives, negatives = _positives(counts), _negatives(counts)
    both = _assess("equalized_odds_difference", (positives, negatives), limit, alpha, reference, freeze_on)
    return both, _assess("equal_opportunity_difference", (positives,), limit, alpha, reference, freeze_on)


def _assess(
    definition: str,
    parts: tuple[Mapping[str, Count], ...],
    limit: float,
    alpha: float,
    reference: str | None,
    freeze_on: str,
) -> Assessment:
    _check(parts, limit, alpha, freeze_on)
    compared = [_comparisons(counts, reference) for counts in parts]
    levels = _levels(compared, alpha)
    strict = alpha / max(len(levels), 1) if freeze_on == "excludes_limit" else None
    judged = [
        _groups([(each, levels.get((part, each.hypothesis), alpha)) for each in comparisons], limit, strict)
        for part, comparisons in enumerate(compared)
    ]
    decided = [{group: count for group, count in counts.items() if count[0]} for counts in parts]
    values = [_difference(counts) for counts in decided]
    worst = [_worst(*each) for each in zip(compared, judged, strict=True)]
    shown = max(range(len(parts)), key=lambda part: (worst[part], values[part]))
    state = STATES[max(worst)]
    return Assessment(
        definition,
        max(values),
        min(map(_ratio, decided)),
        state,
        state == "alarm" and freeze_on != "never",
        f"normal-mixture confidence sequence, Holm over {len(levels)} at {alpha:g}"
        + ("", RATES[shown])[len(parts) > 1],
        judged[shown],
    )


def _check(parts: tuple[Mapping[str, Count], ...], limit: float, alpha: float, freeze_on: str) -> None:
    if not 0 < limit <= 1:
        raise BadSetting(f"disparity_limit is {limit}; it is a difference of rates: above 0, at most 1")
    if not 0 < alpha < 1:
        raise BadSetting(f"fairness_alpha is {alpha}; it is a probability: between 0 and 1")
    if freeze_on not in FREEZE_ON:
        raise BadSetting(f'freeze_on is "{freeze_on}"; give one of {", ".join(FREEZE_ON)}')
    for counts in parts:
        for group, (decided, favourable) in counts.items():
            if not 0 <= favourable <= decided:
                raise IntegrityError(f'group "{group}" has {favourable} favourable of {decided} decisions')


def _comparisons(counts: Mapping[str, Count], reference: str | None) -> list[_Comparison]:
    decided = sum(count[0] for count in counts.values())
    favourable = sum(count[1] for count in counts.values())
    seen = sorted(group for group, count in counts.items() if count[0])
    mirrored = len(seen) == 2 and reference is None
    found = []
    for group, own in sorted(counts.items()):
        others = (decided - own[0], favourable - own[1])
        other = others if reference is None else counts.get(reference, (0, 0))
        found.append(_Comparison(group, own, reference, other, seen[0] if mirrored else group))
    return found


def _levels(compared: list[list[_Comparison]], alpha: float) -> dict[tuple[int, str], float]:
    """By hypothesis. Groups too small to be tested count, too: a correction that grew later was too small before."""
    p_values = {
        (part, each.hypothesis): p_value(each.difference, each.information)
        for part, comparisons in enumerate(compared)
        for each in comparisons
        if each.own[0] and not each.is_reference
    }
    return dict(zip(p_values, holm(list(p_values.values()), alpha), strict=True))


def _groups(judged: list[tuple[_Comparison, float]], limit: float, strict: float | None) -> tuple[Group, ...]:
    """strict: the level at which the sequence must exclude the limit; None: equality is enough."""
    widths = [(each, half_width(each.information, level)) for each, level in judged]
    excluded = [(each.difference, _rate(each.own)) for each, half in widths if abs(each.difference) > half]
    found = []
    for each, half in widths:
        difference, rate = each.difference, _rate(each.own)
        state = "ok"
        if half == inf:
            state = "ok" if each.is_reference and each.own[0] else "insufficient"
        elif abs(difference) > half:
            beyond = _apart(each, excluded) > limit
            if strict is not None:
                beyond = abs(difference) - half_width(each.information, strict) > limit
            state = "alarm" if beyond else "warn"
        low, high = wilson(each.own)
        bounds = max(difference - half, -1.0), min(difference + half, 1.0)
        compared_with = OTHERS if each.reference is None else each.reference
        found.append(Group(each.group, *each.own, rate, low, high, compared_with, difference, *bounds, state))
    return tuple(found)


def _apart(comparison: _Comparison, excluded: list[tuple[float, float]]) -> float:
    """How far a group is from what it is compared with, or from a group that lies on the other side of it.

    excluded: difference and rate of the groups that are different.
    """
    rate, difference = _rate(comparison.own), comparison.difference
    gaps = [abs(rate - other) for apart, other in excluded if apart * difference < 0]
    return max(abs(difference), *gaps, 0.0)


def _worst(compared: list[_Comparison], groups: tuple[Group, ...]) -> int:
    pairs = zip(compared, groups, strict=True)
    return max((STATES.index(group.state) for each, group in pairs if not each.is_reference), default=0)


def _rate(count: Count) -> float:
    return count[1] / count[0] if count[0] else 0.0


def _difference(counts: Mapping[str, Count]) -> float:
    rates = [_rate(count) for count in counts.values()]
    return max(rates) - min(rates) if rates else 0.0


def _ratio(counts: Mapping[str, Count]) -> float:
    rates = [_rate(count) for count in counts.values()]
    return min(rates) / max(rates) if any(rates) else 1.0


def _positives(confusions: Mapping[str, Confusion]) -> dict[str, Count]:
    return {group: each.positives for group, each in confusions.items()}


def _negatives(confusions: Mapping[str, Confusion]) -> dict[str, Count]:
    return {group: each.negatives for group, each in confusions.items()}
