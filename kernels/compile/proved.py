"""The smallest file that is proved to stay close to the original: widths and clips are searched by proof.

What errs least on the mean is not what is bounded best: a weight that is cut off is wrong for every input. So where the
clip that errs least is not proved, others are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from kernels.compile import layers
from kernels.compile.candidates import Bench, Candidate, Step, described
from kernels.compile.layers import Plan, Width
from kernels.compile.net import Net

Proves = Callable[[Net], bool]
WIDTHS = (Width(16, 32), Width(8, 32), Width(4, 32))  # floats in memory: bounds of 8-bit activations are far wider
CLIPS = (None, 1.0, 0.9, 0.8)  # of 4 bits; more bits reach the largest weight


def candidate(made: Bench, proves: Proves, step: Step) -> Candidate | None:
    """All layers as narrow as is proved of them alike, then one by one, the largest first.

    None where nothing is proved, or where all layers end up alike and unclipped: another variant is that.
    """
    plan: Plan = {}
    for bits in WIDTHS:
        step(f"proved: {bits.weight} bits")
        found = _proved(made, ({each.name: width for each in made.layers} for width in _clips(bits)), proves)
        if found is None:
            break
        plan = found
    size = made.written(plan).model.ByteSize()
    for each in sorted(made.layers, key=lambda one: -layers.weight_of(made.net, one).size) if plan else ():
        wide = next(at for at, width in enumerate(WIDTHS) if width.weight == plan[each.name].weight)
        for bits in WIDTHS[wide + 1 :]:
            step(f"proved: {each.name} in {bits.weight} bits")
            found = _proved(made, ({**plan, each.name: width} for width in _clips(bits)), proves)
            if found is None:
                break
            if (smaller := made.written(found).model.ByteSize()) < size:  # scales may be more than the bits save
                plan, size = found, smaller
    if len(set(plan.values())) < 2 and all(width.clip is None for width in plan.values()):
        return None
    bits_said = " + ".join(f"w{weight}" for weight in dict.fromkeys(width.weight for width in plan.values()))
    listed = described(made, plan, "as few bits as were proved")
    return Candidate("proved", "proved", bits_said, made.written(plan), listed)


def _clips(width: Width) -> list[Width]:
    return [replace(width, clip=clip) for clip in CLIPS] if width.weight == 4 else [width]


def _proved(made: Bench, plans: Iterable[Plan], proves: Proves) -> Plan | None:
    """The first that is."""
    return next((plan for plan in plans if proves(made.written(plan))), None)
