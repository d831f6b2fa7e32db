"""How other servers choose their batches, each from its published rule, in the lanes of this pipeline.

Theirs have one queue, before the model. Here the rule decides a coalescer's window (how long it waits, how many it
takes) and the rows of an actor's runs; actors take what waits, as those servers do when a model instance is free.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from tests.bench.simulator.policy import LaneView, Observed, Plan


class Triton:
    """Preferred batch sizes and a longest delay.

    Where a preferred size can be formed, the largest such batch goes at once. Otherwise it waits for more, unless a
    request would be delayed for longer than `max_queue_delay_s`; then what is there goes. Source: Triton Inference
    Server user guide, "Batchers", sections Preferred Batch Sizes and Delayed Batching
    (docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/batcher.html).
    The delays by priority and the sizes are those that a user would state: the static settings and powers of four.
    """

    def __init__(
        self,
        preferred: Sequence[int] = (64, 256, 1024, 4000),
        max_queue_delay_s: Sequence[float] = (0.005, 0.01, 0.1),
    ) -> None:
        self._preferred, self._delay_s = sorted(preferred), max_queue_delay_s

    def plan(self, view: LaneView, now_s: float) -> Plan:
        if view.stage == "work":
            return Plan(rows_max=self._preferred[-1])
        formed = [size for size in self._preferred if size <= view.lag]
        if formed:
            return Plan(0.0, formed[-1])
        return Plan(max(0.0, self._delay_s[view.priority] - view.oldest_s), self._preferred[0])

    def observe(self, view: LaneView, observed: Observed) -> None:
        """Learns nothing."""


class _Fit:
    """BentoML's optimizer of one queue: duration = a * n + b over the last 50 batches, fitted every 5 seconds."""

    KEPT, SKIPPED, REFRESH_S = 50, 2, 5.0

    def __init__(self, max_latency_s: float) -> None:
        self.a, self.b = min(2.0, max_latency_s * 2 / 30), min(1.0, max_latency_s / 30)
        self.wait_s = 0.0
        self._seen: deque[tuple[int, float, float]] = deque(maxlen=self.KEPT)
        self._batches, self._refreshed_s = 0, -self.REFRESH_S

    def add(self, n: int, duration_s: float, wait_s: float, now_s: float) -> None:
        """`wait_s`: of the first request of the batch, until it was dispatched."""
        self._batches += 1
        if self._batches <= self.SKIPPED:
            return
        self._seen.append((n, duration_s, wait_s))
        if now_s - self._refreshed_s >= self.REFRESH_S or self._batches < 3 * self.SKIPPED:
            self._refreshed_s = now_s
            x = np.array([(count, 1.0) for count, _, _ in self._seen])
            a, b = np.linalg.lstsq(x, np.array([each for _, each, _ in self._seen]), rcond=None)[0].tolist()
            self.a, self.b = max(1e-6, a), max(0.0, b)
            self.wait_s = max(0.0, float(np.mean([each for _, _, each in self._seen])))


class BentoML:
    """The CORK dispatcher: waits for more while n * (w_n + dt + a) <= decay * wait.

    n requests wait, the youngest since w_n; dt is a tick of 1 ms, decay 0.95, `wait` how long first requests waited on
    average. A request whose expected end, its age + a * n + b, is beyond the longest latency is not run at all (503
    there, EXPIRED here). Source: bentoml/BentoML, src/bentoml/_internal/marshal/dispatcher.py. The ticks until the
    rule lets go are counted ahead from the arrival rate, as a window here is planned once.
    """

    TICK_S, DECAY = 0.001, 0.95

    def __init__(self, max_batch_size: int = 4000) -> None:
        self._max_batch_size = max_batch_size
        self._fits: dict[str, _Fit] = {}

    def plan(self, view: LaneView, now_s: float) -> Plan:
        fit = self._fits.setdefault(view.lane, _Fit(view.objective_s))
        if view.stage == "work":
            return Plan(rows_max=self._max_batch_size, shed=True, late_s=self._late_s(view, fit))
        youngest_s = 1 / max(view.rate, 1.0)
        released = fit.wait_s * self.DECAY / (youngest_s + self.TICK_S + fit.a)
        missing = min(released, self._max_batch_size) - view.lag
        window_s = 0.0 if missing <= 0 else self.TICK_S * np.ceil(missing * youngest_s / self.TICK_S)
        return Plan(min(float(window_s), view.objective_s), self._max_batch_size)

    @staticmethod
    def _late_s(view: LaneView, fit: _Fit) -> float:
        """The age from which on requests are dropped, oldest first, until the oldest one left would end in time.

        The n that wait came evenly over a span, so without a share f of them that one is oldest - f * span old.
        """
        span_s = min(view.oldest_s, view.lag / max(view.rate, 1.0))
        excess_s = view.oldest_s + fit.a * view.lag + fit.b - view.objective_s
        if excess_s <= 0 or view.lag <= 1:
            return math.inf
        return view.oldest_s - min(1.0, excess_s / (span_s + fit.a * view.lag)) * span_s

    def observe(self, view: LaneView, observed: Observed) -> None:
        duration_s = observed.function_s + observed.write_s
        wait_s = float(observed.age_s.max()) - duration_s if observed.records else 0.0
        self._fits[view.lane].add(observed.records, duration_s, wait_s, observed.at_s)


class Clipper:
    """AIMD on the largest batch: a fixed amount more until the latency to process a batch exceeds the objective, then
    a tenth less. Batches go as soon as the model is free.

    Source: Crankshaw et al., Clipper: A Low-Latency Online Prediction Serving System, NSDI 2017, section 4.3.1.
    The paper names no amount; STEP is ours. It grows only from batches that were full.
    """

    STEP, BACK_OFF = 16, 0.9

    def __init__(self) -> None:
        self._most: dict[str, float] = {}

    def plan(self, view: LaneView, now_s: float) -> Plan:
        most = int(self._most.setdefault(view.lane, float(self.STEP)))
        return Plan(0.0, most) if view.stage == "coalesce" else Plan(rows_max=most)

    def observe(self, view: LaneView, observed: Observed) -> None:
        most = self._most[view.lane]
        if observed.function_s + observed.write_s > view.objective_s:
            self._most[view.lane] = max(1.0, most * self.BACK_OFF)
        elif (observed.records if view.stage == "coalesce" else observed.rows) >= int(most):
            self._most[view.lane] = min(most + self.STEP, 4000.0)
