"""What the early warnings ask of a release's days. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from audit.counts import DAY_MS, Day

REQUESTS_MIN = 20  # of a day, before its p95 means anything


def whole_days(days: Mapping[int, Day], today: int) -> dict[int, Day]:
    """The days between the first, which was not seen from its beginning, and `today`, which is not over; a day without
    a tally is a day without a request."""
    first = min(days, default=today)
    return {day: days.get(day, Day()) for day in range(first + 1, today)}


def latency_p95(days: Mapping[int, Day], edges: Sequence[float]) -> dict[int, float]:
    """Seconds by day. `edges`: of the latency histogram."""
    return {day: quantile(each.latency, edges, 0.95) for day, each in days.items() if each.requests >= REQUESTS_MIN}


def utilisation(days: Mapping[int, Day]) -> dict[int, float]:
    """The share of the day that kernels of the release ran, by actor."""
    return {day: each.execution_s / (DAY_MS / 1000 * max(1, len(each.workers))) for day, each in days.items()}


def quantile(counts: Sequence[int], edges: Sequence[float], share: float) -> float:
    """Of a histogram, evenly spread within a bin, as Prometheus' histogram_quantile; the last edge for what lies above.

    >>> quantile([0, 10, 10, 0], [0.1, 0.2, 0.4], 0.75)
    0.30000000000000004
    """
    wanted = share * sum(counts)
    below = 0.0
    for number, count in enumerate(counts[: len(edges)]):
        if count and below + count >= wanted:
            low = edges[number - 1] if number else 0.0
            return low + (edges[number] - low) * (wanted - below) / count
        below += count
    return edges[-1]
