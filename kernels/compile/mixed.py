"""Variants whose layers differ in width: the smallest file whose error stays within the budget, verified as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kernels.compile import allocate, probe
from kernels.compile.candidates import Bench, Candidate, Step, described
from kernels.compile.layers import FLOAT, Plan, Width
from kernels.compile.net import Net
from kernels.manifest import RunOptions

EIGHT = (Width(4, 8), Width(8, 8), Width(16, 32))  # widths that keep 8 bits between layers where they can
STORED = (Width(4, 32), Width(8, 32), Width(16, 32))  # floats in memory, fewer bits in the file
_TRIES_MAX = 12
_TIGHTER = 0.9
_FAIRER = 0.5

Fair = Callable[[Net, RunOptions], bool]


def candidates(made: Bench, budget: float, step: Step, fair: Fair = lambda net, options: True) -> Iterator[Candidate]:
    """With activations in 8 bits, and with floats. `fair`: whether groups of people fare as with the original."""
    found = probe.measure(made, step)
    for name, widths, options in (("mixed", EIGHT, made.options()), ("weights-mixed", STORED, RunOptions())):
        step(f"{name}: allocating")
        plan, predicted, measured = allocated(found, widths, budget, options, fair)
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
    found: probe.Sensitivities, widths: tuple[Width, ...], budget: float, options: RunOptions,
    fair: Fair = lambda net, options: True,
) -> tuple[Plan, float, float]:  # fmt: skip
    """The plan, its predicted and its measured error; tightened until that is within the budget and the net is fair."""
    choices = found.choices(widths)
    target = budget / allocate.MARGIN
    for _ in range(_TRIES_MAX):
        plan = {name: each.width for name, each in allocate.under_error(choices, target).items()}
        net = found.made.written(plan)
        measured = found.made.error(net, options)
        if measured <= budget and fair(net, options):
            return plan, found.predicted(plan), measured
        target *= _TIGHTER * budget / measured if measured > budget else _FAIRER
    return dict.fromkeys(plan, FLOAT), 0.0, 0.0


def _summed(plan: Plan) -> str:
    """How many layers have which width, such as 3 w4a8 + 1 w8a8."""
    counts: dict[str, int] = {}
    for each in sorted(plan.values(), key=lambda one: (one.weight, one.activation)):
        counts[str(each)] = counts.get(str(each), 0) + 1
    return " + ".join(f"{n} {width}" for width, n in counts.items())
