"""Variants whose layers differ in width: the smallest file whose error stays within the budget, verified as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.compile import allocate, probe
from kernels.compile.candidates import Bench, Candidate, Step, described
from kernels.compile.layers import FLOAT, Plan, Width
from kernels.manifest import RunOptions

EIGHT = (Width(4, 8), Width(8, 8), Width(16, 32))  # widths that keep 8 bits between layers where they can
STORED = (Width(4, 32), Width(8, 32), Width(16, 32))  # floats in memory, fewer bits in the file
_TRIES_MAX = 4
_TIGHTER = 0.9


def candidates(made: Bench, budget: float, step: Step) -> Iterator[Candidate]:
    """With activations in 8 bits, and with floats."""
    found = probe.measure(made, step)
    for name, widths, options in (("mixed", EIGHT, made.options()), ("weights-mixed", STORED, RunOptions())):
        step(f"{name}: allocating")
        plan, predicted, measured = allocated(found, widths, budget, options)
        if len(set(plan.values())) < 2:  # uniform: another variant is that already
            continue
        alone = {layer: found.weights[layer].get(width.weight, 0.0) for layer, width in plan.items()}
        why = f"joint error {measured:.2e}, predicted {predicted:.2e}, budget {budget:g}"
        yield Candidate(
            name, "mixed", _summed(plan), made.written(plan), described(made, plan, why, alone), options,
            integer_layers=sum(each.activation == 8 for each in plan.values()),
            notes=(f"predicted error {predicted:.3e}, measured {measured:.3e}",),
        )  # fmt: skip


def allocated(
    found: probe.Sensitivities, widths: tuple[Width, ...], budget: float, options: RunOptions
) -> tuple[Plan, float, float]:
    """The plan, its predicted and its measured error; tightened until the measured one is within the budget."""
    choices = found.choices(widths)
    target = budget / allocate.MARGIN
    for _ in range(_TRIES_MAX):
        plan = {name: each.width for name, each in allocate.under_error(choices, target).items()}
        measured = found.made.error(found.made.written(plan), options)
        if measured <= budget:
            return plan, found.predicted(plan), measured
        target *= _TIGHTER * budget / measured
    return dict.fromkeys(plan, FLOAT), 0.0, 0.0


def _summed(plan: Plan) -> str:
    """How many layers have which width, such as 3 w4a8 + 1 w8a8."""
    counts: dict[str, int] = {}
    for each in sorted(plan.values(), key=lambda one: (one.weight, one.activation)):
        counts[str(each)] = counts.get(str(each), 0) + 1
    return " + ".join(f"{n} {width}" for width, n in counts.items())
