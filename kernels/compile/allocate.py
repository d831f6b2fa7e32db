"""Which layer gets how many bits: greedy, by bytes saved for each unit of squared error. Pure.

Errors of layers are taken as independent, so a joint error is the root of the sum of their squares; measured joint
errors were 0.86 to 1.27 times that (../shared/reference/kernels.md), hence the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W")
MARGIN = 1.3


@dataclass(frozen=True, slots=True)
class Choice(Generic[W]):
    """A width that a layer may have: its bytes in the file, and the square of its error alone."""

    width: W
    file_bytes: int
    square: float


Choices = Mapping[str, Sequence[Choice[W]]]


def under_error(choices: Choices[W], error_max: float) -> dict[str, Choice[W]]:
    """The smallest file that was found with the root of the sum of squares within `error_max`.

    Starts with the least error everywhere, and takes the move that saves most bytes for its squared error, while one
    fits.

    >>> two = [Choice(8, 100, 1.0), Choice(32, 400, 0.0)]
    >>> {name: each.width for name, each in under_error({"a": two, "b": two}, 1.0).items()}
    {'a': 8, 'b': 32}
    """
    return _greedy(choices, lambda one: one.file_bytes, lambda one: one.square, error_max**2)


def under_bytes(choices: Choices[W], bytes_max: int) -> dict[str, Choice[W]]:
    """The least error that was found within so many bytes: no worse than any choice that is uniform, where that fits.

    >>> a = [Choice(4, 50, 4.0), Choice(8, 100, 1.0), Choice(32, 400, 0.0)]
    >>> b = [Choice(4, 50, 400.0), Choice(8, 100, 100.0), Choice(32, 400, 0.0)]
    >>> {name: each.width for name, each in under_bytes({"a": a, "b": b}, 450).items()}
    {'a': 4, 'b': 32}
    """
    found = _greedy(choices, lambda one: one.square, lambda one: one.file_bytes, bytes_max)
    return min([found, *_uniform(choices, bytes_max)], key=_square)


def joint(chosen: Mapping[str, Choice[W]]) -> float:
    """The error predicted for all together."""
    return float(_square(chosen) ** 0.5)


def _greedy(
    choices: Choices[W], gained: Callable[[Choice[W]], float], cost: Callable[[Choice[W]], float], cost_max: float
) -> dict[str, Choice[W]]:
    """From the least cost everywhere, always the move that lowers `gained` most for its cost, while one fits."""
    chosen = {name: min(each, key=lambda one: (cost(one), gained(one))) for name, each in choices.items()}
    spent = sum(map(cost, chosen.values()))
    while True:
        moves = [
            (_ratio(gained(chosen[name]) - gained(one), cost(one) - cost(chosen[name])), name, one)
            for name, each in choices.items()
            for one in each
            if gained(one) < gained(chosen[name]) and spent + cost(one) - cost(chosen[name]) <= cost_max
        ]
        if not moves:
            return chosen
        _, name, one = max(moves, key=lambda move: move[0])
        spent += cost(one) - cost(chosen[name])
        chosen[name] = one


def _uniform(choices: Choices[W], bytes_max: int) -> list[dict[str, Choice[W]]]:
    """The choices that are one width everywhere and fit."""
    widths = {repr(one.width) for each in choices.values() for one in each}
    found = []
    for width in sorted(widths):
        alike = {name: [one for one in each if repr(one.width) == width] for name, each in choices.items()}
        if all(alike.values()):
            plan = {name: each[0] for name, each in alike.items()}
            if sum(each.file_bytes for each in plan.values()) <= bytes_max:
                found.append(plan)
    return found


def _square(chosen: Mapping[str, Choice[W]]) -> float:
    return sum(each.square for each in chosen.values())


def _ratio(gain: float, cost: float) -> float:
    return gain / cost if cost > 0 else float("inf") if gain > 0 else 0.0
