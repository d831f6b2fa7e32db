"""`python -m tests.bench.simulator.fit`: the machine's costs that make simulated runs most like the measured ones.

Least squares on logarithms of p50, p95, events a second and the broker's cores, over the runs in runs.json that are
marked for it, weighted by their rounds. A weak pull keeps each cost near its first guess, as some of them can hardly
be told apart. The other runs are compared afterwards. Writes fitted.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.optimize import least_squares

from streams.topics import PRIORITIES
from tests.bench.simulator import measured
from tests.bench.simulator.machine import Arrivals, Floats, Machine, Model
from tests.bench.simulator.measured import Run
from tests.bench.simulator.policy import Static
from tests.bench.simulator.run import simulate

FREE = (
    *("append_s", "record_s", "transaction_s", "marker_s", "after_s", "commit_latency_s", "jitter"),
    *("coalesce_s", "coalesce_record_s", "actor_s", "actor_record_s", "crowding"),
)
FIGURES = ("p50_ms", "p95_ms", "broker_cores", "events_s")
SECONDS = 6.0
WARM_S = 1.0
PULL = 0.15  # of a cost off its first guess by a factor of e, beside a figure off by as much
ROBUST = 0.15  # from where on a figure that is far off counts less: single measured runs hold outliers


@dataclass(frozen=True)
class Simulated:
    """The figures of a Run."""

    p50_ms: float
    p95_ms: float
    broker_cores: float
    events_s: float


def trace_of(run: Run, seconds: float) -> Arrivals:
    """Its requests, evenly spaced as the live load sends them."""
    at_s = np.concatenate([np.zeros(run.backlog), np.arange(round(run.rate * seconds)) / max(run.rate, 1.0)])
    found = Arrivals.alike(at_s, run.priority, run.model)
    found.priority[: run.backlog] = PRIORITIES.index(run.backlog_priority)
    return found


def simulated(run: Run, machine: Machine, seconds: float = SECONDS, seed: int = 0) -> Simulated:
    """The run in the simulator."""
    model = Model(run.model, (measured.profile(run.model),))
    windows_s = (run.windows_ms[0] / 1e3, run.windows_ms[1] / 1e3, run.windows_ms[2] / 1e3)
    result = simulate(trace_of(run, seconds), [model], machine, Static(windows_s), seed)
    p50_s, p95_s, _ = result.quantiles_s(run.priority, skip_s=WARM_S if run.rate else 0.0)
    broker = result.broker_s / max(result.ended_s, seconds if run.rate else 0.0)
    return Simulated(float(p50_s) * 1e3, float(p95_s) * 1e3, float(broker), result.throughput)


def errors(runs: Sequence[Run], machine: Machine, seconds: float = SECONDS) -> Floats:
    """log(simulated / measured) of every figure that was measured."""
    found = []
    for run in runs:
        mine = simulated(run, machine, seconds)
        found += [math.log(getattr(mine, name) / getattr(run, name)) for name in _stated(run)]
    return np.array(found)


def _stated(run: Run) -> list[str]:
    """The figures that were measured."""
    return [name for name in FIGURES if not math.isnan(getattr(run, name))]


def fitted(runs: Sequence[Run], guess: Machine, evaluations: int) -> Machine:
    """The machine whose runs are the most like the measured ones."""

    weights = np.concatenate([[math.sqrt(run.rounds)] * len(_stated(run)) for run in runs])

    def machine(at: Floats) -> Machine:
        return replace(
            guess, **{name: getattr(guess, name) * math.exp(x - 1) for name, x in zip(FREE, at, strict=True)}
        )

    def cost(at: Floats) -> Floats:
        off = errors(runs, machine(at))
        off = weights * np.sqrt(2 * ROBUST * (np.sqrt(off**2 + ROBUST**2) - ROBUST))
        return np.concatenate([off, PULL * (at - 1)])

    # from 1 on, not from 0: steps are relative, and must be coarse, as a cost changes a run by jumps
    found = least_squares(cost, np.ones(len(FREE)), diff_step=0.15, max_nfev=evaluations, bounds=(-2, 4))
    return machine(found.x)


def table(runs: Sequence[Run], machine: Machine) -> list[str]:
    """Measured and simulated side by side."""
    lines = [
        "| run | fitted | p50 ms | simulated | p95 ms | simulated | broker cores | simulated | events/s | simulated |"
    ]
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for run in runs:
        mine, cells = simulated(run, machine), [run.name, "yes" if run.fit else "no"]
        for name in FIGURES:
            real = getattr(run, name)
            cells += ["", ""] if math.isnan(real) else [f"{real:,.4g}", f"{getattr(mine, name):,.3g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Fits, says how well, and writes."""
    parser = argparse.ArgumentParser(prog="tests.bench.simulator.fit")
    parser.add_argument("--evaluations", type=int, default=8, help="of the gradient")
    parser.add_argument("--show", action="store_true", help="compare what was fitted before; fit nothing")
    given = parser.parse_args()
    runs = measured.runs()
    machine = (
        measured.machine() if given.show else fitted([each for each in runs if each.fit], Machine(), given.evaluations)
    )
    if not given.show:
        stated = {each.name: getattr(machine, each.name) for each in fields(machine)}
        rounded = {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in stated.items()}
        measured.FITTED.write_text(json.dumps({"machine": rounded}, indent=1) + "\n")
    print(*table(runs, machine), sep="\n")


if __name__ == "__main__":
    main()
