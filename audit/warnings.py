"""Early warnings: rules over days that tell a person what to do before harm or waste grows.

Days are numbered since 1970 in UTC; a rule of successive days speaks only of days that follow without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from audit.fairness import Assessment

DAY_S = 86_400
BASELINE_DAYS_MAX = 7  # of latency, before the days that are judged
_SCALE = "prune models that nobody calls, or scale down: LRAI does neither by itself"


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits, each of them a setting."""

    latency_rise: float = 0.20  # of the p95 over the median of the days before
    latency_days: int = 3
    utilisation_min: float = 0.20  # of the device
    utilisation_days: int = 7
    complaints_max: int = 15
    complaints_days: int = 7


DEFAULT = Rules()


@dataclass(frozen=True, slots=True)
class Warning:
    """Something that a person should look at, as in alert.avsc."""

    kind: str  # latency | utilisation | complaints | disparity
    severity: str  # info | warning | critical
    message: str
    action: str
    evidence: Mapping[str, object] = field(default_factory=dict)  # plain values, for JSON


def latency(days: Mapping[int, float], rules: Rules = DEFAULT) -> list[Warning]:
    """days: day -> p95 latency in s. Warns when the last days all exceed the median of those before by the rise."""
    last = _last(days, rules.latency_days)
    before = sorted(day for day in days if last and day < last[0])[-BASELINE_DAYS_MAX:]
    baseline = median([days[day] for day in before]) if before else 0.0
    rise = min(days[day] for day in last) / baseline - 1 if baseline else 0.0
    if not last or not baseline or rise < rules.latency_rise - 1e-9:
        return []
    message = f"p95 latency at least {rise:.0%} above {baseline * 1e3:.3g} ms on {len(last)} successive days"
    evidence = {"baseline_s": baseline, "days": {day: days[day] for day in last}}
    return [Warning("latency", "warning", message, "re-tune quantization: lrai compile on the rows of today", evidence)]


def utilisation(days: Mapping[int, float], rules: Rules = DEFAULT) -> list[Warning]:
    """days: day -> share of the device's time in use, in [0, 1]. Warns when all the last days are below the minimum."""
    last = _last(days, rules.utilisation_days)
    if not last or any(days[day] >= rules.utilisation_min for day in last):
        return []
    highest = max(days[day] for day in last)
    message = f"device utilisation at most {highest:.0%} on {len(last)} successive days"
    evidence = {"days": {day: days[day] for day in last}}
    return [Warning("utilisation", "info", message, _SCALE, evidence)]


def complaints(times: Sequence[float], now: float, rules: Rules = DEFAULT) -> list[Warning]:
    """times, now: seconds since 1970. Warns when more than the bound came in the days before now."""
    since = now - rules.complaints_days * DAY_S
    recent = sum(since < time <= now for time in times)
    if recent <= rules.complaints_max:
        return []
    message = f"{recent} complaints in {rules.complaints_days} days (at most {rules.complaints_max} are usual)"
    evidence = {"complaints": recent, "since": since, "until": now}
    return [
        Warning("complaints", "critical", message, "review the decisions complained of: lrai complaint list", evidence)
    ]


def disparity(assessment: Assessment, limit: float, attribute: str) -> list[Warning]:
    """critical when the test established a disparity beyond the limit; warning while a real difference is within it."""
    if assessment.state not in ("warn", "alarm"):
        return []
    severity = "critical" if assessment.state == "alarm" else "warning"
    said = "established" if severity == "critical" else "a difference is established, that it exceeds the limit is not"
    message = f"{assessment.definition} by {attribute} is {assessment.value:.3f}, limit {limit:g}: {said}"
    action = "freeze and review: lrai equity review" if severity == "critical" else "watch: lrai equity review"
    groups = {each.group: [each.decided, each.favourable] for each in assessment.groups}
    evidence = {"definition": assessment.definition, "value": assessment.value, "limit": limit, "groups": groups}
    return [Warning("disparity", severity, message, action, evidence)]


def _last(days: Mapping[int, float], count: int) -> list[int]:
    """The newest days, oldest first, if that many follow each other; else none."""
    newest = max(days, default=0)
    last = list(range(newest - count + 1, newest + 1))
    return last if all(day in days for day in last) else []
