"""Random tests in the runtime. Never a proof: a bound on how often, with a confidence."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.proof.attack import inside
from kernels.proof.ir import F64
from kernels.proof.question import Question
from kernels.proof.split import limit

_ROWS = 8192
CONFIDENCE = 0.99


@dataclass
class Statistics:
    """`hits` of `tests` uniform points of the box were further apart than epsilon; `x` one of them."""

    tests: int
    hits: int
    seen: float
    x: npt.NDArray[np.float32] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tests": self.tests,
            "hits": self.hits,
            "share_upper": upper(self.hits, self.tests),
            "confidence": CONFIDENCE,
            "distribution": "uniform over the box",
        }


def upper(hits: int, tests: int, confidence: float = CONFIDENCE) -> float:
    """The upper Clopper-Pearson bound on a share, one-sided.

    >>> f"{upper(0, 10_000_000):.2g}"
    '4.6e-07'
    """
    if not tests or hits >= tests:
        return 1.0
    if not hits:
        return -math.expm1(math.log1p(-confidence) / tests)
    low, high = hits / tests, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _at_most(hits, tests, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(hits: int, tests: int, share: float) -> float:
    """P(Binomial(tests, share) <= hits)."""
    if share >= 1:
        return 0.0
    logs = [
        math.lgamma(tests + 1) - math.lgamma(k + 1) - math.lgamma(tests - k + 1)
        + k * math.log(share) + (tests - k) * math.log1p(-share)
        for k in range(hits + 1)
    ]  # fmt: skip
    top = max(logs)
    return min(1.0, math.exp(top) * sum(math.exp(each - top) for each in logs))


def tested(question: Question, low: F64, high: F64, epsilon: float, tests: int, budget_s: float, seed: int = 1
           ) -> Statistics:  # fmt: skip
    """Runs up to `tests` random points of one box, as long as the budget lasts."""
    rng, began = np.random.default_rng(seed), time.monotonic()
    found, most = Statistics(0, 0, 0.0), limit(question.quantity, epsilon)
    edges = inside(low, low, high), inside(high, low, high)
    width = edges[1] - edges[0]
    while found.tests < tests and time.monotonic() - began < budget_s:
        rows = min(_ROWS, tests - found.tests)
        share = rng.random((rows, len(low)), np.float32)
        x = np.clip(edges[0] + share * width, edges[0], edges[1])
        value = question.replay(x)
        worst = int(value.argmax())
        found.tests, found.hits = found.tests + rows, found.hits + int((value > most).sum())
        found.seen = max(found.seen, float(value[worst]))
        if found.x is None and value[worst] > most and question.confirmed(x[worst]) > most:
            found.x = x[worst]
    return found
