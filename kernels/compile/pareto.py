"""Which variants are worth having: those that no other one, nor the original, beats in everything. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WITHIN = 1.05  # times and sizes that differ less are equal: clocks are not exact
_SHOWN = 1.1  # what is worth saying


@dataclass(frozen=True, slots=True)
class Point:
    """A variant by what it costs: the error, the file's bytes, and the seconds at 1, 8 and the best number of rows."""

    name: str
    error: float
    file_bytes: int
    seconds: tuple[float, ...]


def beats(one: Point, other: Point) -> bool:
    """Whether `one` is as good in everything and better in something.

    >>> a, b = Point("a", 0.0, 100, (1.0,)), Point("b", 0.1, 101, (1.01,))
    >>> beats(a, b), beats(b, a)
    (True, False)
    """
    sizes = [(one.file_bytes, other.file_bytes), *zip(one.seconds, other.seconds, strict=True)]
    as_good = one.error <= other.error and all(ours <= WITHIN * theirs for ours, theirs in sizes)
    return as_good and (one.error < other.error or any(WITHIN * ours < theirs for ours, theirs in sizes))


def front(original: Point, points: Sequence[Point]) -> dict[str, str]:
    """Each point with the name of one that beats it, "" where none does: these stay."""
    found: dict[str, str] = {}
    for place, point in enumerate(points):
        others = [original, *points]
        by = next((each.name for each in others if each is not point and beats(each, point)), "")
        equal = [each for each in points[:place] if _equal(each, point) and not found[each.name]]
        found[point.name] = by or (equal[0].name if equal else "")
    return found


def gains(original: Point, point: Point) -> str:
    """What a variant is better in than the original, in words.

    >>> gains(Point("original", 0, 400, (1.0, 2.0, 9.0)), Point("int8", 0.1, 100, (1.2, 2.0, 3.0)))
    '4.0x smaller, 3.0x faster in the best batch'
    """
    said = []
    if original.file_bytes > _SHOWN * point.file_bytes:
        said.append(f"{original.file_bytes / point.file_bytes:.1f}x smaller")
    places = ("with 1 row", "with 8 rows", "in the best batch")
    for place, ours, theirs in zip(places, point.seconds, original.seconds, strict=True):
        if theirs > _SHOWN * ours:
            said.append(f"{theirs / ours:.1f}x faster {place}")
    return ", ".join(said)


def _equal(one: Point, other: Point) -> bool:
    """Within the clock's accuracy the same."""
    sizes = [(one.file_bytes, other.file_bytes), *zip(one.seconds, other.seconds, strict=True)]
    return one.error == other.error and all(max(a, b) <= WITHIN * min(a, b) for a, b in sizes)
