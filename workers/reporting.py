"""What an actor's lane tells coalescers about once a second: how long its answers took, by the plan they came under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.spec import ModelSpec
from streams.limits import LaneLimits, Seen
from streams.steering import Report
from streams.window import Block

EVERY_MS = 500
PLANS_MAX = 1000  # of one report: as many as a thousand coalescers name


class Reporting:
    """Of one lane, which it steers by its static limits."""

    def __init__(
        self, spec: ModelSpec, priority: str, worker: str, topic: str, limits: LaneLimits, objective_s: float
    ) -> None:
        self.names = worker, priority, spec.model, spec.version
        self.topic, self.static, self.objective_s = topic, limits, objective_s
        self.write_s = 0.0
        self._told_ms = 0
        self._taken: dict[int, list[npt.NDArray[np.float64]]] = {}

    def limits(self) -> LaneLimits:
        return self.static

    def ended(self, seen: Seen) -> None:
        self.write_s = seen.write_s

    def blocks(self, records: Sequence[Mapping[str, Any]], now_ms: int) -> list[Block]:
        """Takes batch records whose answers are about to be written; the report, when one is due."""
        for record in records:
            if record["plan"] in self._taken or len(self._taken) < PLANS_MAX:
                received_at = np.frombuffer(record["received_at"], "<i8")
                self._taken.setdefault(record["plan"], []).append(now_ms + 1000 * self.write_s - received_at)
        if now_ms - self._told_ms < EVERY_MS or not self._taken:
            return []
        self._told_ms = now_ms
        objective_ms = 1000 * self.objective_s
        plans = {}
        for plan, parts in self._taken.items():
            taken = np.concatenate(parts)
            plans[plan] = len(taken), int((taken <= objective_ms).sum()), round(float(np.percentile(taken, 95)), 3)
        self._taken = {}
        return [Report(*self.names, now_ms, objective_ms, plans).block(self.topic)]
