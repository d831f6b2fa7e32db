"""Which lanes are scheduled, and towards what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kernels.spec import ModelSpec
from streams import clients, topics
from streams.coalesce import Coalesce
from streams.limits import LaneLimits
from streams.log import log
from streams.settings import Settings
from streams.steering import Adaptive, Reports
from streams.topics import PRIORITIES
from streams.window import Outcome, Window
from workers.variants import Loaded


def scheduled(settings: Settings, spec: ModelSpec) -> bool:
    return (spec.scheduler or settings.scheduler) == "adaptive"


@dataclass(frozen=True)
class Steered:
    """A stage whose windows also carry what its lane decided."""

    stage: Coalesce
    steering: Adaptive

    def __call__(self, window: Window, now_ms: int) -> Outcome:
        """As the stage does."""
        outcome = self.stage(window, now_ms)
        return replace(outcome, blocks=[*outcome.blocks, *self.steering.blocks(now_ms)])


def adaptive(
    settings: Settings, specs: Sequence[ModelSpec], priority: str, ids: clients.LaneIds, limits: LaneLimits,
    beat: Callable[[], None],
) -> Adaptive | None:  # fmt: skip
    """What steers the lane, where a model promises a latency on it or on a higher one; else it is static."""
    asked = [spec for spec in specs if scheduled(settings, spec)]
    own = {(spec.model, spec.version): each for spec in asked if (each := spec.objective_s(priority))}
    higher = PRIORITIES[: PRIORITIES.index(priority)]
    if not own and not any(spec.objective_s(each) for spec in asked for each in higher):
        return None
    reports = Reports(settings, f"{ids.member}-scheduler")
    steering = Adaptive(ids.group, ids.member, priority, limits, own, reports, topics.scheduler(settings.prefix))
    steering.begin(beat)
    return steering


def objective_s(spec: ModelSpec, priority: str, loaded: Mapping[str, Loaded]) -> float | None:
    """The model's objective on a lane, seconds; none where not even the kernel alone is as fast."""
    slo_s, least_s = spec.objective_s(priority), next(iter(loaded.values())).least_s
    if slo_s is None or slo_s > least_s:
        return slo_s
    log("error", "slo_p95_ms is refused: a run alone takes longer; the static settings serve", model=spec.path,
        priority=priority, slo_p95_ms=1000 * slo_s, smallest_ms=round(1000 * least_s + 1))  # fmt: skip
    return None
