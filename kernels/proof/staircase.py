"""What a function leaves of itself over a range: a piecewise linear one above it, and one below. Pure.

A quantizer is a staircase. Above it runs a line from where the range begins to the first jump, then one through the
corners of the jumps, then the last level: half a step closer at both ends than the clipped argument with half a step of
error, and exact where there is at most one jump.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.proof.ir import F64, Function


@dataclass
class Steps:
    """Of a quantizer over a range: its begin, the first jump, and the first and the last level. For sign -1 of -f(-z).

    slack: how far places may be off where it is asked.
    """

    low: F64
    start: F64
    first: F64
    last: F64
    slack: F64


@dataclass
class Side:
    """A function from above (sign 1) or from below (-1): linear between `knots` and the ends of the range."""

    f: Function
    sign: float
    knots: tuple[F64, ...]
    steps: Steps | None = None

    def at(self, z: F64) -> F64:
        """Its value at z, or on the safe side of it: as at a place that is farther by the slack."""
        steps = self.steps
        if steps is None:
            return self.f.at(z)
        t = self.sign * z + steps.slack
        width = steps.start - steps.low
        rise = np.divide(t - steps.low, width, out=np.ones_like(t), where=width > 0)
        before = steps.first + self.f.step * np.clip(rise, 0.0, 1.0)
        behind = t + (self.f.step / 2 + self.f.noise[1])
        return self.sign * np.clip(np.where(t >= steps.start, behind, before), steps.first, steps.last)


def side(f: Function, low: F64, high: F64, sign: float, slack: F64, levels: F64 | None = None) -> Side:
    """`f` over low..high from above or below; `levels`: a quantizer's value is known to lie between these two."""
    if not f.step:
        return Side(f, sign, tuple(np.full(low.shape, each) for each in f.breaks))
    room = f.noise[1]  # of its division: a jump may come so much earlier, or later
    begin, end = (low, high) if sign > 0 else (-high, -low)
    first, last = (sign * f.run(sign * (each + room)) for each in (begin, end))
    if levels is not None:
        least, most = (levels[0], levels[1]) if sign > 0 else (-levels[1], -levels[0])
        first, last = np.clip(first, least, most), np.clip(last, least, most)
    jumps = last > first
    start = np.where(jumps, first + (f.step / 2 - room), end)
    final = np.where(jumps, last - (f.step / 2 + room), end)
    return Side(f, sign, (sign * start, sign * final), Steps(begin, start, first, last, slack))
