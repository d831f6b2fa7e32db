"""Static settings tuned for one very trace: the best that no change over time can beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tests.bench.simulator.machine import Machine, Model, Trace
from tests.bench.simulator.policy import Static
from tests.bench.simulator.run import Result, simulate

WINDOWS_S = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.4)  # none beyond the objective
BATCHES = (4, 16, 64)
RECORDS = (1000, 4000, 16_000)
PASSES = 3


def score(result: Result) -> tuple[float, float]:
    """Goodput first, in steps of 0.2 % of the requests, then the p95 of all."""
    share = float(result.in_time.mean())
    return round(share * 500) / 500, -float(result.quantiles_s()[1])


def tune(trace: Trace, models: Sequence[Model], machine: Machine, seed: int = 0) -> Static:
    """The static settings with the best score, by a grid along each setting in turn until none gets better.

    It begins at the defaults, so it is never worse than they are.
    """

    known: dict[Static, tuple[float, float]] = {}

    def value(policy: Static) -> tuple[float, float]:
        if policy not in known:
            known[policy] = score(simulate(trace, models, machine, policy, seed))
        return known[policy]

    best = Static()
    for _ in range(PASSES):
        before = best
        for along in _axes(trace, models):
            best = max([best, *along(best)], key=value)
        if best == before:
            break
    return best


def _axes(trace: Trace, models: Sequence[Model]) -> Iterator[Callable[[Static], Iterator[Static]]]:
    """Each yields the neighbours of a policy along one setting."""
    for lane in np.unique(trace.priority).tolist():
        most_s = max(each.objective_s[lane] for each in models)
        yield partial(_windows, lane, [window_s for window_s in WINDOWS_S if window_s <= most_s])
    yield lambda policy: (replace(policy, batches_max=most) for most in BATCHES)
    yield lambda policy: (replace(policy, records_max=most) for most in RECORDS)
    ladder = max(len(each.ladder) for each in models)
    if ladder > 1:
        yield lambda policy: (replace(policy, variant=variant) for variant in range(ladder))


def _windows(lane: int, choices: Sequence[float], policy: Static) -> Iterator[Static]:
    for window_s in choices:
        windows_s = [*policy.windows_s]
        windows_s[lane] = window_s
        yield replace(policy, windows_s=(windows_s[0], windows_s[1], windows_s[2]))
