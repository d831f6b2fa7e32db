"""What a policy sees before a window, what it answers, and what it learns after it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from tests.bench.simulator.machine import Floats, Profile

Stage = Literal["coalesce", "work"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one window; None leaves what the settings say.

    `window_s`: how long it stays open after its first record; `records_max`: requests of a coalescer's window, batch
    records of an actor's; `rows_max` of a kernel run; `variant`: a place in the model's ladder; `defer`: requests that
    are late already go to the actor's lowest lane; `shed`: they are answered EXPIRED without a run (what BentoML does;
    LRAI itself never); `late_s`: from which age on they are, None is the objective; `pause_s`: after the transaction.
    """

    window_s: float = 0.0
    records_max: int | None = None
    rows_max: int | None = None
    variant: int = 0
    defer: bool = False
    shed: bool = False
    late_s: float | None = None
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reported:
    """What the actors of a model published last about one priority: end-to-end latencies of about a second."""

    at_s: float
    answers: int
    p50_s: float
    p95_s: float
    p99_s: float
    late: int


@dataclass(frozen=True, slots=True)
class Observed:
    """One window, after its transaction. Records are requests; `age_s` float64[records]: since their arrival."""

    at_s: float
    plan: Plan
    records: int
    rows: int
    batches: int
    open_s: float
    function_s: float
    write_s: float
    age_s: Floats


@dataclass(frozen=True, slots=True)
class LaneView:
    """What the process of a lane sees by itself, and `reported`, by (model, priority).

    `lag` and `batches`: requests and, for actors, batch records that wait; `oldest_s`: age of the oldest of them;
    `rate`: requests a second, smoothed over about a second; `objective_s`: the strictest of those it serves.
    """

    stage: Stage
    lane: str
    priority: int
    model: str | None
    lag: int
    batches: int
    rows: int
    oldest_s: float
    rate: float
    last: Observed | None
    objective_s: float
    ladder: tuple[Profile, ...]
    reported: Mapping[tuple[str, int], Reported]


class Policy(Protocol):
    """Decides for all lanes of a run. A real process runs one of its own; keep the state by `view.lane`."""

    def plan(self, view: LaneView, now_s: float) -> Plan: ...

    def observe(self, view: LaneView, observed: Observed) -> None: ...


@dataclass(frozen=True)
class Static:
    """The settings: a window a priority, limits, one variant. The defaults are those of streams/settings.py."""

    windows_s: tuple[float, float, float] = (0.005, 0.01, 0.1)
    records_max: int | None = None
    batches_max: int | None = None
    rows_max: int | None = None
    variant: int = 0

    def plan(self, view: LaneView, now_s: float) -> Plan:
        if view.stage == "coalesce":
            return Plan(self.windows_s[view.priority], self.records_max)
        return Plan(0.0, self.batches_max, self.rows_max, min(self.variant, len(view.ladder) - 1))

    def observe(self, view: LaneView, observed: Observed) -> None:
        """Learns nothing."""
