"""How far a feature moved from its reference sample, from two histograms with the same edges.

`bins + 1` edges give `bins + 2` counts: below the first edge, the bins, above the last. Counts add: merged histograms
give the merged result. Values that were missing are one more category of PSI and Jensen-Shannon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import IntegrityError

PSI_FLOOR = 0.1  # below it, the convention of credit scoring sees no shift
KS_FLOOR = 0.05  # an effect too small to matter, however many rows show it
ALPHA = 1e-6  # of one look: there are many looks and features
ROWS_MIN = 200
SMOOTHING = 0.5  # added to each cell, so that an empty one gives no infinity
BLOCK_ROWS = 64  # whose mean is one value for ADWIN
BLOCKS_KEPT = 256  # from which ADWIN is built again
ADWIN_DELTA = 1e-5

Counts = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Drift:
    """The measures, as in drift.avsc, and what they mean together."""

    rows: int
    reference_rows: int
    psi: float
    psi_limit: float
    jensen_shannon: float
    ks: float
    ks_limit: float
    wasserstein: float
    state: str  # alarm: PSI beyond its limit; warn: KS beyond its own; insufficient: too few rows


def psi(reference: Counts, counts: Counts) -> float:
    """Population stability index: sum (q - p) log(q / p)."""
    p, q = _shares(reference), _shares(counts)
    return float(((q - p) * np.log(q / p)).sum())


def psi_limit(rows: int, reference_rows: int, cells: int, alpha: float = ALPHA) -> float:
    """What PSI exceeds with probability alpha without drift, above the conventional 0.1.

    Without drift PSI / (1/n + 1/m) is about chi-square with cells - 1 degrees of freedom (Yurdakul & Naranjo, J. Risk
    Model Validation 14, 2020); its quantile by Wilson & Hilferty (PNAS 17, 1931).
    >>> [round(psi_limit(rows, 10_000, 12), 3) for rows in (200, 1_000, 100_000)]
    [0.354, 0.155, 0.105]
    """
    freedom = max(cells - 1, 1)
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + NormalDist().inv_cdf(1 - alpha) * sqrt(spread)) ** 3
    return PSI_FLOOR + quantile * (1 / max(rows, 1) + 1 / max(reference_rows, 1))


def jensen_shannon(reference: Counts, counts: Counts) -> float:
    """Distance in [0, 1]: the root of the divergence to base 2 (Lin, IEEE Trans. Inf. Theory 37, 1991)."""
    p, q = _shares(reference), _shares(counts)
    middle = (p + q) / 2
    divergence = float((p * np.log2(p / middle) + q * np.log2(q / middle)).sum()) / 2
    return sqrt(max(divergence, 0.0))


def ks(reference: Counts, counts: Counts) -> float:
    """The largest difference of the two distribution functions at an edge."""
    return float(np.abs(_cumulated(counts) - _cumulated(reference)).max(initial=0.0))


def ks_limit(rows: int, reference_rows: int, alpha: float = ALPHA) -> float:
    """What it exceeds with probability about alpha without drift (Kolmogorov & Smirnov's tail), above a floor."""
    return KS_FLOOR + sqrt(log(2 / alpha) / 2 * (1 / max(rows, 1) + 1 / max(reference_rows, 1)))


def wasserstein(reference: Counts, counts: Counts, edges: Sequence[float]) -> float:
    """The area between the two distribution functions, in units of the feature; what lies outside is at the edge."""
    apart = np.abs(_cumulated(counts) - _cumulated(reference))[:-1]
    return float((apart * np.diff(np.asarray(edges, np.float64))).sum())


def assess(
    reference: Counts,
    counts: Counts,
    edges: Sequence[float],
    reference_missing: int = 0,
    missing: int = 0,
) -> Drift:
    """Compare int[bins + 2] counts of recent rows with those of the reference sample.

    Raises IntegrityError where counts and edges do not belong together.
    """
    _check(reference, counts, edges)
    before, now = [*map(int, reference), int(reference_missing)], [*map(int, counts), int(missing)]
    rows, reference_rows = sum(now), sum(before)
    cells = sum(a + b > 0 for a, b in zip(before, now, strict=True))
    found = psi(before, now), psi_limit(rows, reference_rows, cells)
    distance, distance_max = ks(reference, counts), ks_limit(sum(now[:-1]), sum(before[:-1]))
    state = "alarm" if found[0] > found[1] else "warn" if distance > distance_max else "ok"
    if min(rows, reference_rows) < ROWS_MIN:
        state = "insufficient"
    apart = wasserstein(reference, counts, edges)
    return Drift(rows, reference_rows, *found, jensen_shannon(before, now), distance, distance_max, apart, state)


class Means:
    """ADWIN (Bifet & Gavaldà, SDM 2007; river's) on means of blocks of rows, in standard deviations of the reference.

    Fed with tallies: `add(count, sum)`. `last`: the means before and after the newest change. Its plain state is
    `state()`; `Means(mean, sd, **state)` goes on from it, with the last 256 blocks in the window instead of all.
    """

    def __init__(
        self,
        mean: float,
        sd: float,
        blocks: Iterable[float] = (),
        changes: int = 0,
        rows: int = 0,
        total: float = 0.0,
        last: Sequence[float] = (),
    ) -> None:
        self.mean, self.sd = mean, sd if sd > 0 and isfinite(sd) else 1.0
        self.changes, self.rows, self.total, self.last = changes, rows, total, list(last)
        self.blocks: deque[float] = deque(maxlen=BLOCKS_KEPT)
        self._adwin = _adwin()
        for block in blocks:
            self.blocks.append(block)
            self._adwin.update(block)

    def add(self, count: int, total: float) -> bool:
        """Take a tally; True when it shows a change of the mean. What is not finite is left out."""
        if count <= 0 or not isfinite(total):
            return False
        self.rows, self.total = self.rows + count, self.total + total
        if self.rows < BLOCK_ROWS:
            return False
        block = (self.total / self.rows - self.mean) / self.sd * sqrt(BLOCK_ROWS)
        self.rows, self.total = 0, 0.0
        self.blocks.append(block)
        self._adwin.update(block)
        if not self._adwin.drift_detected:
            return False
        self.changes += 1
        self.last = [each * self.sd / sqrt(BLOCK_ROWS) + self.mean for each in _parted(self.blocks)]
        self.blocks, self._adwin = deque([block], BLOCKS_KEPT), _adwin()
        self._adwin.update(block)
        return True

    def state(self) -> dict[str, object]:
        plain = {name: getattr(self, name) for name in ("changes", "rows", "total", "last")}
        return {"blocks": list(self.blocks), **plain}


class Recent:
    """The histogram of the last rows, at least `rows` and few more: what `assess` compares with the reference.

    >>> recent = Recent(100)
    >>> for _ in range(5):
    ...     recent.add([30, 30])
    >>> recent.counts.tolist(), recent.state()
    ([90, 90], {'before': [60, 60], 'now': [30, 30]})
    """

    def __init__(self, rows: int = 500, before: Counts = (), now: Counts = ()) -> None:
        self.rows = rows
        self.before, self.now = _plain(before), _plain(now)
        self._there = sum(self.now)

    @property
    def full(self) -> bool:
        """Whether the newer half is enough by itself."""
        return self._there >= self.rows

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.array(self.now if self.full or not self.before else _added(self.before, self.now), np.int64)

    def add(self, counts: Counts) -> None:
        """Plain lists: arrays as short as these cost more."""
        if self.full:
            self.before, self.now, self._there = self.now, [], 0
        self.now = _added(self.now, _plain(counts))
        self._there = sum(self.now)

    def state(self) -> dict[str, list[int]]:
        return {"before": self.before, "now": self.now}


def _adwin() -> Any:
    from river.drift import ADWIN  # a second of imports, scikit-learn among them: where there is a reference only

    return ADWIN(delta=ADWIN_DELTA, clock=1)  # type: ignore[no-untyped-call]


def preload() -> None:
    """Imports what ADWIN needs, so that the first tally that needs it is not held up."""
    _adwin()


def _parted(blocks: Sequence[float]) -> list[float]:
    """The means of the two parts that fit best (least squares): ADWIN's own cut is as coarse as its buckets.

    >>> _parted([1.0, 1.5, 1.0, 4.0, 5.0])
    [1.1666666666666667, 4.5]
    """
    found = np.array(blocks)
    before = np.arange(1, len(found))
    sums = found.cumsum()[:-1]
    cut = int(before[np.argmax((sums - before * found.mean()) ** 2 / (before * (len(found) - before)))])
    return [float(found[:cut].mean()), float(found[cut:].mean())]


def _plain(counts: Counts) -> list[int]:
    return counts.tolist() if isinstance(counts, np.ndarray) else list(counts)


def _added(a: list[int], b: list[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)] if a and b else a or b


def _shares(counts: Counts) -> NDArray[np.float64]:
    smoothed = np.asarray(counts, np.float64) + SMOOTHING
    shares: NDArray[np.float64] = smoothed / smoothed.sum()
    return shares


def _cumulated(counts: Counts) -> NDArray[np.float64]:
    """The distribution function at each edge: without the last cell."""
    cumulated = np.cumsum(np.asarray(counts, np.float64))
    below: NDArray[np.float64] = cumulated[:-1] / cumulated[-1] if cumulated.size and cumulated[-1] else cumulated[:-1]
    return below


def _check(reference: Counts, counts: Counts, edges: Sequence[float]) -> None:
    if not len(reference) == len(counts) == len(edges) + 1:
        sizes = f"{len(reference)} and {len(counts)} counts for {len(edges)} edges"
        raise IntegrityError(f"histograms have {sizes}; both must have one count more than there are edges")
    if min(*reference, *counts) < 0:
        raise IntegrityError("a histogram has a negative count; counts only grow")
