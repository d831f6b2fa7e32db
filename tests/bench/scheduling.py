"""The adaptive scheduler against the static one, on traces replayed through the real pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from schemas.results import EXPIRED, OK
from streams.topics import PRIORITIES
from streams.trace import Trace
from tests.bench import load, traces
from tests.bench.cases import MIXED, Bench
from tests.bench.contenders import Failed, Lrai
from tests.bench.replay import Replayed, replay
from tests.bench.report import Outcome
from tests.bench.traces import TENSOR

RATE = 3_000.0  # requests a second, the mean
CROWDED_RATE = 4_500.0  # whose bursts are above what two cores answer
SEED = 7
SLO_MS = 100
OBJECTIVE_S: Mapping[str, float] = MappingProxyType({"interactive": 0.1, "standard": 0.1, "bulk": 1.0})
WARM_S = 4.0  # of a trace, not counted
TRACES = ("bursty", "steady", "flash_crowd")
GOALS: Mapping[str, float] = MappingProxyType({"bursty": 1.65})  # no loss on the others
GOODPUT, P95, LATE, ENDED = "goodput/s", "p95 ms", "% not within the objective", "% expired"


class Adaptive(Lrai):
    """LRAI that chooses windows and batches itself."""

    name = "LRAI"
    options = MappingProxyType({"LRAI_SCHEDULER": "adaptive"})


class Static(Lrai):
    """LRAI with the settings as they were tuned for the loads of the pipeline's own benchmark."""

    name = "LRAI, static"
    options = MappingProxyType(
        {
            "LRAI_SCHEDULER": "static",
            "LRAI_WINDOW_INTERACTIVE_MS": "5",
            "LRAI_WINDOW_STANDARD_MS": "10",
            "LRAI_WINDOW_BULK_MS": "100",
        }
    )


@dataclass(frozen=True)
class Score:
    """`goodput`: answers within the objective of their priority a second; `p95_ms` of all, an answer missing counts as
    never; `late`, `expired`: percent; `lost` answers; `behind_ms`: the load itself at p99."""

    goodput: float
    p95_ms: float
    late: float
    expired: float
    lost: int
    behind_ms: float

    def __str__(self) -> str:
        lost = f", {self.lost} LOST" if self.lost else ""
        return (
            f"goodput {self.goodput:,.0f}/s, p95 {self.p95_ms:.0f} ms, {self.late:.1f} % late, "
            f"{self.expired:.1f} % expired{lost} (load behind by {self.behind_ms:.1f} ms)"
        )


def score(found: Replayed, objective_s: Mapping[str, float] = OBJECTIVE_S, warm_s: float = WARM_S) -> Score:
    """Of what became of a trace from `warm_s` on."""
    counted = found.trace.at_s >= warm_s
    waited = np.where(np.isnan(found.arrived), np.inf, found.arrived - found.sent)[counted]
    status = found.status[counted]
    limit = np.array([objective_s[name] for name in PRIORITIES])[found.trace.priority[counted]]
    good = (status == OK) & (waited <= limit)
    seconds = found.trace.seconds - warm_s
    return Score(
        float(good.sum() / seconds),
        float(np.percentile(waited, 95, method="higher") * 1000),
        float(100 * (1 - good.mean())),
        float(100 * (status == EXPIRED).mean()),
        int((found.status < 0).sum()),
        float(np.percentile((found.sent - found.due)[counted] * 1000, 99)),
    )


def scheduler(bench: Bench) -> Outcome:
    """Traces with room above their mean."""
    return _compare(bench, "scheduler", RATE, TRACES[:2] if bench.quick else TRACES)


def crowded(bench: Bench) -> Outcome:
    """A trace without."""
    return _compare(bench, "scheduler-crowded", CROWDED_RATE, TRACES[:1])


def _compare(bench: Bench, case: str, rate: float, names: Sequence[str]) -> Outcome:
    """Both replay the same traces in turns, each on a pipeline started for it."""
    for name, sizes in MIXED:
        models = bench.mlp(name, sizes, "scheduler")
        (models / name / "1" / "model.toml").write_text(f"slo_p95_ms = {SLO_MS}\n")
    seconds = 15.0 if bench.quick else 30.0
    made = {name: traces.GENERATORS[name](rate, seconds, traces.MIXED, SEED) for name in names}
    outcome = bench.outcome(case, f"Adaptive against static, traces of {rate:,.0f}/s", bench.few)
    found: dict[tuple[str, str], list[Score]] = {}
    bench.say("warming up the broker for live load")
    _one(bench, Adaptive(), next(iter(made.values())))
    for number in range(bench.few):
        for trace_name, trace in made.items():
            both = bench.takes(Adaptive(), Static())
            for contender in both if number % 2 else both[::-1]:
                if isinstance(contender, Lrai) and (one := _one(bench, contender, trace)):
                    found.setdefault((contender.name, trace_name), []).append(one)
                    bench.say(f"round {number + 1}/{bench.few} {contender.name}, {trace_name}: {one}")
    for (name, trace_name), scores in found.items():
        _add(outcome, name, trace_name, scores)
    for trace_name in made:
        label, goal = f"{trace_name}: goodput, adaptive / static", GOALS.get(trace_name, 1.0)
        outcome.ratio(Static.name, f"{trace_name}: {GOODPUT}", goal, label=label)
    wanted = ", ".join(f"{name} {1000 * limit:.0f} ms" for name, limit in OBJECTIVE_S.items())
    outcome.notes.append(
        f"goodput: answers OK within the objective ({wanted}) a second, from second {WARM_S:g} of {seconds:g} on; three"
        " MLPs, 1 to 32 rows; static: windows of 5, 10 and 100 ms"
    )
    return outcome


def _one(bench: Bench, contender: Lrai, trace: Trace) -> Score | None:
    """None where the contender cannot be started. Raises Failed when answers are missing."""
    place = bench.place(bench.folder / "models" / "scheduler")
    inputs = {name: (TENSOR, sizes[0]) for name, sizes in MIXED}
    with bench.started(contender, place, live=True) as up:
        one = score(replay(place, trace, inputs)) if up else None
    load.delete_topics(bench.kafka, place.prefix)
    if one and one.lost:
        raise Failed(f"{contender.name}: {one.lost} of {len(trace)} requests have no answer")
    return one


def _add(outcome: Outcome, contender: str, trace_name: str, scores: list[Score]) -> None:
    outcome.add(contender, f"{trace_name}: {GOODPUT}", [each.goodput for each in scores])
    outcome.add(contender, f"{trace_name}: {P95}", [each.p95_ms for each in scores], 1)
    outcome.add(contender, f"{trace_name}: {LATE}", [each.late for each in scores], 1)
    outcome.add(contender, f"{trace_name}: {ENDED}", [each.expired for each in scores], 1)
    behind = max(each.behind_ms for each in scores)
    outcome.notes.append(f"{contender} on {trace_name}: the load was late by {behind:.1f} ms at p99")
