"""Simulated streams of decisions of groups, and a second, vectorised reading of the sequential test as an oracle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy

from audit.fairness import Assessment, demographic_parity
from audit.sequential import EXPECTED_MIN, RHO

Counts = NDArray[np.int64]  # [streams, windows, groups], cumulated
Floats = NDArray[np.float64]


def streams(seed: int, rates: list[float], step: list[int], windows: int, count: int) -> tuple[Counts, Counts]:
    """Decided and favourable of `count` streams; `step`: decisions of each group in a window."""
    rng = np.random.default_rng(seed)
    favourable = rng.binomial(step, rates, (count, windows, len(rates))).cumsum(axis=1)
    decided = np.broadcast_to(np.cumsum([step] * windows, axis=0), favourable.shape)
    return decided, favourable


def p_values(decided: Counts, favourable: Counts) -> Floats:
    """Of each group against all the others; 1 where counts are insufficient."""
    others, their = decided.sum(-1, keepdims=True) - decided, favourable.sum(-1, keepdims=True) - favourable
    own, other, pooled = favourable / decided, their / others, (favourable + their) / (decided + others)
    variance = np.maximum(
        own * (1 - own) / decided + other * (1 - other) / others,
        pooled * (1 - pooled) * (1 / decided + 1 / others),
    )
    enough = np.minimum(decided, others) * np.minimum(pooled, 1 - pooled) >= EXPECTED_MIN
    seen = 1 / np.where(enough, variance, 1.0)
    log_wealth = ((own - other) * seen) ** 2 / (2 * (seen + RHO)) - np.log1p(seen / RHO) / 2
    return np.where(enough, np.exp(-np.maximum(log_wealth, 0.0)), 1.0)


def betting(decided: Counts, favourable: Counts) -> Floats:
    """Log wealth of the betting test of two groups, [streams, windows]."""
    mixed = gammaln(favourable + 0.5) + gammaln(decided - favourable + 0.5) - gammaln(decided + 1) - np.log(np.pi)
    all_, good = decided.sum(-1), favourable.sum(-1)
    result: Floats = mixed.sum(-1) - xlogy(good, good / all_) - xlogy(all_ - good, 1 - good / all_)
    return result


def assessed(decided: Counts, favourable: Counts, limit: float, alpha: float, freeze_on: str) -> Assessment:
    """By the code itself, of one window: int64[groups]."""
    counts = {f"g{i}": (int(n), int(k)) for i, (n, k) in enumerate(zip(decided, favourable, strict=True))}
    return demographic_parity(counts, limit, alpha, freeze_on=freeze_on)


def counted(values: Floats, edges: Floats) -> Counts:
    """Histograms int[..., bins + 2] of values [..., rows]."""
    cells = np.searchsorted(edges, values, side="right")
    result: Counts = (cells[..., None] == np.arange(len(edges) + 1)).sum(axis=-2)
    return result


def first_freeze(
    decided: Counts, favourable: Counts, limit: float = 0.05, alpha: float = 0.01, freeze_on: str = "established"
) -> list[int | None]:
    """The window in which each stream is frozen by the code; asked only where the oracle's p-value lets it be."""
    possible = p_values(decided, favourable).min(-1) <= alpha * 1.0001
    found: list[int | None] = []
    for stream in range(len(possible)):
        windows = np.flatnonzero(possible[stream])
        frozen = (
            int(window)
            for window in windows
            if assessed(decided[stream, window], favourable[stream, window], limit, alpha, freeze_on).established
        )
        found.append(next(frozen, None))
    return found


def false_freezes(seed: int, rates: list[float], step: list[int], count: int = 1_000, windows: int = 100) -> float:
    """Share of streams that are frozen within the windows."""
    frozen = first_freeze(*streams(seed, rates, step, windows, count))
    return sum(window is not None for window in frozen) / count


def median_detection(
    seed: int, rates: list[float], step: int, windows: int, count: int = 200, freeze_on: str = "established"
) -> float:
    """Median decisions a group until the freeze; those never frozen count as the last window."""
    found = first_freeze(*streams(seed, rates, [step] * len(rates), windows, count), freeze_on=freeze_on)
    return float(np.median([((window if window is not None else windows) + 1) * step for window in found]))
