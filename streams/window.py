"""What goes into a stage's pure function and what comes out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Headers = list[tuple[str, bytes | None]]


class Range(NamedTuple):
    """Records consumed: of those at offsets from start up to stop (exclusive), `records` were there."""

    topic: str
    partition: int
    start: int
    stop: int
    records: int


@dataclass(frozen=True, slots=True)
class Window:
    """n records; `partition`, `offset`, `timestamp` (milliseconds since the epoch): int64[n]."""

    topics: Sequence[str]
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    headers: Sequence[Headers | None]
    partition: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    timestamp: npt.NDArray[np.int64]
    ranges: Sequence[Range]


@dataclass(frozen=True, slots=True)
class Block:
    """Records for one topic; `partition` -1 lets the key decide. Without keys or headers the lists are None."""

    topic: str
    values: Sequence[bytes]
    keys: Sequence[bytes | None] | None = None
    headers: Sequence[Headers | None] | None = None
    partition: int = -1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a window became. `counts`: how many requests ended how, by code; for metrics."""

    blocks: list[Block]
    counts: dict[str, int] = field(default_factory=dict)
