"""`python -m tests.bench.simulator.compare`: every policy on every trace, in the simulator.

Prints goodput and p95, and saves them to build/simulator.json. The static settings are tuned for each very trace; what
was found is kept in build/tuned.json, since it takes the longest. `POLICIES` is where another policy is added.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from streams.topics import PRIORITIES
from tests.bench import traces
from tests.bench.simulator import measured
from tests.bench.simulator.machine import Arrivals, Floats, Machine, Model, Profile, Trace
from tests.bench.simulator.policy import Policy, Static
from tests.bench.simulator.rivals import BentoML, Clipper, Triton
from tests.bench.simulator.run import Result, simulate
from tests.bench.simulator.tuning import tune

BUILD = Path(__file__).resolve().parents[3] / "build"
OBJECTIVE_S = (0.1, 0.15, 2.0)
INT8_SPEED = 3.32  # of ResNet-50's int8 variant over fp32, as in docs/benchmarks.md; the cheaper one of `heavy`
CAPACITY_N = 100_000
POLICIES: dict[str, Callable[[], Policy]] = {
    "default": Static,
    "triton": Triton,
    "bentoml": BentoML,
    "clipper": Clipper,
}
"""By name; a new object for each run. `tuned` comes on top, as it depends on the trace."""
TUNED = "tuned"

HEAVY = (traces.Kind("heavy", 256, 0.3, "interactive"), traces.Kind("heavy", 256, 0.7, "standard", (1, 1, 2, 4)))


@dataclass(frozen=True)
class Workload:
    """A generator of tests.bench.traces, its kinds, and the mean load as a share of the capacity."""

    name: str
    generator: str
    kinds: Sequence[traces.Kind]
    load: float

    def trace(self, capacity: float, seconds: float, seed: int) -> Trace:
        """Requests for `seconds`, and around them what the overload has."""
        return traces.GENERATORS[self.generator](self.load * capacity, seconds, self.kinds, seed)


WORKLOADS = (
    Workload("steady", "steady", traces.MLP, 0.4),
    Workload("steady, near capacity", "steady", traces.MLP, 0.8),
    Workload("diurnal", "diurnal", traces.MIXED, 0.6),
    Workload("bursty", "bursty", traces.MIXED, 0.8),
    Workload("flash crowd", "flash_crowd", traces.MIXED, 0.35),
    Workload("heavy-tailed", "heavy_tailed", traces.MLP, 0.6),
    Workload("mixed", "mixed", traces.MIXED, 0.5),
    Workload("drifted", "drifted", traces.MIXED, 0.9),
    Workload("heavy model, bursty", "bursty", HEAVY, 1.0),
    Workload("overload", "overload", traces.MIXED, 0.5),
)


def models(names: Sequence[str]) -> list[Model]:
    """With measured profiles; `heavy` may also answer by an int8 variant."""
    found = []
    for name in names:
        profile = measured.profile(name)
        int8 = Profile(profile.rows, tuple(s / INT8_SPEED for s in profile.seconds), profile.best_rows)
        found.append(Model(name, (profile, int8) if name == "heavy" else (profile,), OBJECTIVE_S))
    return found


def capacity(kinds: Sequence[traces.Kind], machine: Machine) -> float:
    """Answers a second with the default settings where more requests come than can be answered."""
    backlog = traces.steady(CAPACITY_N, 1.0, kinds, 1)
    at_once = simulate(at_times(backlog, np.zeros(len(backlog))), models(backlog.models), machine, Static())
    live = at_times(backlog, np.arange(len(backlog)) / at_once.throughput)
    return simulate(live, models(live.models), machine, Static()).throughput


def at_times(trace: Trace, at_s: Floats) -> Arrivals:
    """The same requests at other times, without deadlines."""
    return Arrivals(
        at_s=at_s, priority=trace.priority, model=trace.model, models=trace.models, rows=trace.rows, bytes=trace.bytes,
        deadline_s=np.full(len(at_s), np.nan),
    )  # fmt: skip


def tuned(trace: Trace, of: Sequence[Model], machine: Machine) -> Static:
    """Static settings for this very trace, from build/tuned.json where they are known."""
    kept = BUILD / "tuned.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    columns = (trace.at_s, trace.priority, trace.model, trace.rows, trace.deadline_s)
    digest = hashlib.sha256(repr((machine, of)).encode() + b"".join(each.tobytes() for each in columns)).hexdigest()
    if digest not in known:
        known[digest] = asdict(tune(trace, of, machine))
        BUILD.mkdir(exist_ok=True)
        kept.write_text(json.dumps(known, indent=1) + "\n")
    stated = known[digest]
    return Static(**{**stated, "windows_s": tuple(stated["windows_s"])})


def figures(result: Result) -> dict[str, float]:
    """What is told of a run."""
    p50_s, p95_s, p99_s = result.quantiles_s().tolist()
    found = {"goodput": result.goodput, "share in time": float(result.in_time.mean()), "late": float(result.late)}
    found |= {"p50 ms": p50_s * 1e3, "p95 ms": p95_s * 1e3, "p99 ms": p99_s * 1e3, "expired": float(result.expired)}
    for priority in PRIORITIES:
        found[f"{priority} p95 ms"] = float(result.quantiles_s(priority)[1]) * 1e3
    return found | {"transactions/s": result.spent.transactions / result.span_s}


def compare(
    machine: Machine,
    workloads: Sequence[Workload],
    policies: Mapping[str, Callable[[], Policy]],
    seconds: float,
    seed: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """By workload and policy."""
    capacities = {kinds: capacity(kinds, machine) for kinds in {tuple(each.kinds) for each in workloads}}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for each in workloads:
        trace = each.trace(capacities[tuple(each.kinds)], seconds, seed)
        of = models(trace.models)
        best = tuned(trace, of, machine)
        found[each.name] = {}
        for name in (*policies, TUNED):
            began = time.process_time()
            policy = best if name == TUNED else policies[name]()
            found[each.name][name] = figures(simulate(trace, of, machine, policy, seed))
            said = {
                key: round(value, 1) for key, value in found[each.name][name].items() if key in ("goodput", "p95 ms")
            }
            print(
                f"{each.name}, {len(trace.at_s)} requests, {name}: {said}, {time.process_time() - began:.1f} s",
                flush=True,
            )
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Goodput (share in time) and p95, a row a trace."""
    names = list(next(iter(found.values())))
    lines = ["| trace | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for workload, by_policy in found.items():
        cells = [
            f"{each['goodput']:,.0f}/s ({each['share in time']:.1%}), {each['p95 ms']:,.0f} ms"
            for each in by_policy.values()
        ]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(prog="tests.bench.simulator.compare")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=[each.name for each in WORKLOADS])
    given = parser.parse_args()
    workloads = [each for each in WORKLOADS if not given.only or each.name in given.only]
    found = compare(measured.machine(), workloads, POLICIES, given.seconds, given.seed)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "simulator.json").write_text(json.dumps(found, indent=1) + "\n")
    print(*table(found), sep="\n")


if __name__ == "__main__":
    main()
