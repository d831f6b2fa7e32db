"""The smallest file that is proved to stay close to the original: widths are searched by proof, not by samples."""

from __future__ import annotations

from collections.abc import Callable

from kernels.compile import layers
from kernels.compile.candidates import Bench, Candidate, Step, described
from kernels.compile.layers import Plan, Width
from kernels.compile.net import Net

Proves = Callable[[Net], bool]
WIDTHS = (Width(16, 32), Width(8, 32), Width(4, 32))  # floats in memory: bounds of 8-bit activations are far wider


def candidate(made: Bench, proves: Proves, step: Step) -> Candidate | None:
    """All layers as narrow as is proved of them alike, then one by one, the largest first.

    None where nothing is proved, or where all layers end up alike: another variant is that.
    """
    plan: Plan = {}
    for width in WIDTHS:
        step(f"proved: {width.weight} bits")
        trial = {each.name: width for each in made.layers}
        if not proves(made.written(trial)):
            break
        plan = trial
    size = made.written(plan).model.ByteSize()
    for each in sorted(made.layers, key=lambda one: -layers.weight_of(made.net, one).size) if plan else ():
        for width in WIDTHS[WIDTHS.index(plan[each.name]) + 1 :]:
            step(f"proved: {each.name} in {width.weight} bits")
            trial = {**plan, each.name: width}
            net = made.written(trial)
            if not proves(net):
                break
            if net.model.ByteSize() < size:  # the scales of a small layer may be more than its bits save
                plan, size = trial, net.model.ByteSize()
    if len(set(plan.values())) < 2:
        return None
    bits = " + ".join(f"w{width.weight}" for width in dict.fromkeys(plan.values()))
    listed = described(made, plan, "as few bits as were proved")
    return Candidate("proved", "proved", bits, made.written(plan), listed)
