"""How far a lane's windows reach, and what sets that. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How far a window reaches: seconds from its first record, records, bytes of values; `rest_s`: before it opens."""

    window_s: float
    records_max: int
    bytes_max: int
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a window showed: when its function began (time.monotonic()), its records, seconds that its oldest record had
    waited by then, seconds that its function and that writing took, and records that waited behind it."""

    began_s: float
    records: int
    age_s: float
    function_s: float
    write_s: float
    lag: int

    @property
    def busy_s(self) -> float:
        return self.function_s + self.write_s


class Steering(Protocol):
    """What sets a lane's limits from window to window; it never raises."""

    def limits(self) -> LaneLimits:
        """Of the next window."""
        ...

    def ended(self, seen: Seen) -> None:
        """A window was written."""
        ...
