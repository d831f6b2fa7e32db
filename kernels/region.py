"""Where a certificate holds: a box of inputs, cut into parts that are proved and parts that are not. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

HOLDS, OPEN = -1, -2  # what a side of a cut is that is not cut again
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Region:
    """The box from `low` to `high`, float32[features], and its cuts, the first of them `root`.

    Cut k parts feature `axis[k]` at `at[k]` (float64); `sides[k]` (int64[2]) is what lies up to it and what lies above:
    another cut, HOLDS or OPEN.
    """

    low: Floats
    high: Floats
    root: int
    axis: npt.NDArray[np.int64]
    at: npt.NDArray[np.float64]
    sides: npt.NDArray[np.int64]

    def holds(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """bool[n] of numbers [n, ...]: which rows lie in a part that holds. NaN does not, nor what no float32 is.

        A row on a cut counts to the side below it.
        """
        flat = rows.reshape(len(rows), len(self.low))
        with np.errstate(over="ignore", invalid="ignore"):
            x = flat.astype(np.float32, copy=False)
            inside: npt.NDArray[np.bool_] = np.all((x >= self.low) & (x <= self.high), axis=1)
            if x is not flat:
                inside &= np.all(x == flat, axis=1)
        if self.root == HOLDS:
            return inside
        place = np.where(inside, self.root, OPEN)
        while len(left := np.flatnonzero(place >= 0)):
            cut = place[left]
            place[left] = self.sides[cut, (x[left, self.axis[cut]] > self.at[cut]).astype(np.int64)]
        return np.asarray(place == HOLDS)


def read(stated: dict[str, Any], whole: bool) -> Region:
    """A region of certificate.json: its closed leaves, or, if `whole`, its box. Raises what broken JSON raises."""
    low, high = ([float.fromhex(each) for each in stated[side]] for side in ("low", "high"))
    if not low or len(low) != len(high):
        raise ValueError(f"a region from {len(low)} to {len(high)} numbers")
    cuts: list[tuple[int, float, list[int]]] = []
    top = [HOLDS]
    waiting = [] if whole else [(stated["tree"], top, 0)]
    while waiting:
        node, sides, side = waiting.pop()
        if "open" in node or "leaf" in node:
            sides[side] = OPEN if "open" in node else HOLDS
            continue
        if not 0 <= node["split"] < len(low):
            raise ValueError(f"a cut of feature {node['split']}")
        sides[side], below_above = len(cuts), [OPEN, OPEN]
        cuts.append((node["split"], float.fromhex(node["at"]), below_above))
        waiting += [(node["below"], below_above, 0), (node["above"], below_above, 1)]
    return Region(
        _inward(low, 1.0), _inward(high, -1.0), top[0], np.array([cut[0] for cut in cuts], np.int64),
        np.array([cut[1] for cut in cuts]), np.array([cut[2] for cut in cuts], np.int64).reshape(-1, 2),
    )  # fmt: skip


def _inward(edge: list[float], direction: float) -> Floats:
    """float32[features], no lower than the lower edge (direction 1), no higher than the upper one (-1)."""
    exact = np.array(edge)
    with np.errstate(over="ignore"):
        near: Floats = exact.astype(np.float32)
    outside = (near - exact) * direction < 0
    moved: Floats = np.where(outside, np.nextafter(near, np.float32(direction * np.inf)), near)
    return moved
