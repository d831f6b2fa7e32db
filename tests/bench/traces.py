"""Traces made up: seeded, so that the same arguments give the same requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas import framing
from streams.topics import PRIORITIES
from streams.trace import Trace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TENSOR = "features"
ID_WIDTH = 12
DIURNAL_DEPTH = 0.8  # of the mean, up and down
BURST = 6.0  # times the calm rate
CALM_S, BURST_S = 4.0, 1.0  # mean stay in each state
CROWD = 8.0  # times the rate, at once
CROWD_DECAY_S = 5.0
CROWD_AT = 0.25  # of the trace
PARETO_SHAPE = 1.2  # finite mean, infinite variance if it had no bound
PARETO_ROWS_MAX = 256
OVERLOAD = 10.0  # times the capacity
CALM_LOAD = 0.5  # of the capacity
OVERLOAD_BEFORE_S, OVERLOAD_AFTER_S = 10.0, 20.0


@dataclass(frozen=True)
class Kind:
    """Requests that are alike: FP32[rows, features] for one model; each of `rows` as likely as the others."""

    model: str
    features: int
    share: float = 1.0
    priority: str = "standard"
    rows: tuple[int, ...] = (1,)
    deadline_s: float = float("nan")


MLP = (Kind("mlp", 30),)
MIXED = (
    Kind("mlp-a", 30, 0.15, "interactive", (1,), 0.5),
    Kind("mlp-a", 30, 0.30, "standard", (1, 1, 1, 2, 4)),
    Kind("mlp-b", 12, 0.25, "standard", (1, 1, 2)),
    Kind("risk-scorer", 64, 0.15, "standard", (1, 4, 16)),
    Kind("risk-scorer", 64, 0.15, "bulk", (16, 32), 60.0),
)


def steady(rate: float, seconds: float, kinds: Sequence[Kind] = MLP, seed: int = 0) -> Trace:
    """A Poisson process of `rate` requests a second."""
    rng = np.random.default_rng(seed)
    return _of(rng, _poisson(rng, rate, 0.0, seconds), kinds)


def diurnal(rate: float, seconds: float, kinds: Sequence[Kind] = MLP, seed: int = 0) -> Trace:
    """A day squeezed into `seconds`: a sine around the mean `rate`, from a low over a high to a low."""
    rng = np.random.default_rng(seed)
    at = _thinned(rng, lambda t: rate * (1 - DIURNAL_DEPTH * np.cos(2 * np.pi * t / seconds)), 2 * rate, seconds)
    return _of(rng, at, kinds)


def bursty(rate: float, seconds: float, kinds: Sequence[Kind] = MLP, seed: int = 0) -> Trace:
    """A Markov-modulated Poisson process of two states with the mean `rate`; it begins in either as in the long run.

    Source: Fischer and Meier-Hellstern, The Markov-modulated Poisson process cookbook, Performance Evaluation 18, 1993.
    """
    rng = np.random.default_rng(seed)
    calm = rate * (CALM_S + BURST_S) / (CALM_S + BURST * BURST_S)
    begin, pieces, bursts = 0.0, [], rng.random() < BURST_S / (CALM_S + BURST_S)
    while begin < seconds:
        end = min(seconds, begin + rng.exponential(BURST_S if bursts else CALM_S))
        pieces.append(_poisson(rng, calm * BURST if bursts else calm, begin, end))
        begin, bursts = end, not bursts
    return _of(rng, np.concatenate(pieces), kinds)


def flash_crowd(rate: float, seconds: float, kinds: Sequence[Kind] = MLP, seed: int = 0) -> Trace:
    """`rate`, at CROWD_AT of the time suddenly CROWD times as much, which decays exponentially."""
    rng = np.random.default_rng(seed)

    def at_time(t: Floats) -> Floats:
        since = t - CROWD_AT * seconds
        return np.where(since < 0, rate, rate * (1 + (CROWD - 1) * np.exp(-np.maximum(since, 0) / CROWD_DECAY_S)))

    return _of(rng, _thinned(rng, at_time, CROWD * rate, seconds), kinds)


def heavy_tailed(rate: float, seconds: float, kinds: Sequence[Kind] = MLP, seed: int = 0) -> Trace:
    """Poisson arrivals whose rows are drawn from a Pareto distribution, bounded by PARETO_ROWS_MAX."""
    rng = np.random.default_rng(seed)
    at = _poisson(rng, rate, 0.0, seconds)
    # the inverse of the distribution function of a Pareto distribution cut off at PARETO_ROWS_MAX + 1
    tail = 1 - rng.random(len(at)) * (1 - (PARETO_ROWS_MAX + 1) ** -PARETO_SHAPE)
    return _of(rng, at, kinds, rows=(tail ** (-1 / PARETO_SHAPE)).astype(np.int64))


def mixed(rate: float, seconds: float, kinds: Sequence[Kind] = MIXED, seed: int = 0) -> Trace:
    """Several models, shapes and priorities, each a Poisson process of its own."""
    return steady(rate, seconds, kinds, seed)


def drifted(rate: float, seconds: float, kinds: Sequence[Kind] = MIXED, seed: int = 0) -> Trace:
    """Poisson arrivals whose mixture of kinds moves from the shares, in even steps, to the shares in reverse order."""
    rng = np.random.default_rng(seed)
    at = _poisson(rng, rate, 0.0, seconds)
    moved = rng.random(len(at)) < at / seconds
    before, after = _drawn(rng, len(at), kinds), _drawn(rng, len(at), [*kinds][::-1])
    return _of(rng, at, kinds, np.where(moved, after, before))


def overload(rate: float, seconds: float = 60.0, kinds: Sequence[Kind] = MIXED, seed: int = 0) -> Trace:
    """For `seconds` OVERLOAD times the capacity `rate`, before and after it CALM_LOAD times.

    What is above the calm load is not interactive: nobody could answer that in time.
    """
    rng = np.random.default_rng(seed)
    end = OVERLOAD_BEFORE_S + seconds
    calm = _poisson(rng, CALM_LOAD * rate, 0.0, end + OVERLOAD_AFTER_S)
    above = _poisson(rng, (OVERLOAD - CALM_LOAD) * rate, OVERLOAD_BEFORE_S, end)
    patient = [index for index, kind in enumerate(kinds) if kind.priority != "interactive"]
    if not patient:
        raise ValueError("kinds are all interactive; an overload needs others")
    which = np.concatenate(
        [_drawn(rng, len(calm), kinds), np.array(patient)[_drawn(rng, len(above), [kinds[each] for each in patient])]]
    )
    at = np.concatenate([calm, above])
    order = np.argsort(at, kind="stable")
    return _of(rng, at[order], kinds, which[order])


GENERATORS: Mapping[str, Callable[..., Trace]] = MappingProxyType(
    {
        each.__name__: each
        for each in (steady, diurnal, bursty, flash_crowd, heavy_tailed, mixed, drifted, overload)
    }
)  # fmt: skip


def _poisson(rng: np.random.Generator, rate: float, begin: float, end: float) -> Floats:
    """Arrivals in order: given how many, they are independent and uniform."""
    return np.sort(rng.uniform(begin, end, rng.poisson(rate * (end - begin))))


def _thinned(rng: np.random.Generator, rate: Callable[[Floats], Floats], top: float, seconds: float) -> Floats:
    """A Poisson process whose rate changes, never above `top` (Lewis and Shedler 1979)."""
    at = _poisson(rng, top, 0.0, seconds)
    return at[rng.random(len(at)) * top < rate(at)]


def _drawn(rng: np.random.Generator, n: int, kinds: Sequence[Kind]) -> Ints:
    """int64[n]: indices of kinds, by their shares."""
    shares = np.array([kind.share for kind in kinds])
    return rng.choice(len(kinds), n, p=shares / shares.sum())


def _of(
    rng: np.random.Generator, at: Floats, kinds: Sequence[Kind], which: Ints | None = None, rows: Ints | None = None
) -> Trace:
    """Arrivals with what is asked; times are whole microseconds, as in a file, and count from the first."""
    n = len(at)
    if not n:
        raise ValueError("there is no request; give a higher rate or more seconds")
    which = _drawn(rng, n, kinds) if which is None else which
    models = tuple(dict.fromkeys(kind.model for kind in kinds))
    if rows is None:
        rows = np.empty(n, np.int64)
        for index, kind in enumerate(kinds):
            rows[which == index] = rng.choice(kind.rows, int((which == index).sum()))
    return Trace(
        np.rint((at - at[0]) * 1e6) / 1e6,
        np.array([PRIORITIES.index(kind.priority) for kind in kinds], np.int8)[which],
        np.array([models.index(kind.model) for kind in kinds], np.int16)[which],
        models,
        rows.astype(np.int32),
        _bytes(kinds, which, rows),
        np.array([kind.deadline_s for kind in kinds])[which],
    )


def _bytes(kinds: Sequence[Kind], which: Ints, rows: Ints) -> npt.NDArray[np.int32]:
    """int32[n]: the size of each record, as `tests.bench.replay` sends it."""
    pairs, inverse = np.unique(np.stack([which, rows]), axis=1, return_inverse=True)
    sizes = [record_bytes(kinds[index], count) for index, count in pairs.T.tolist()]
    return np.array(sizes, np.int32)[inverse.reshape(-1)]


def record_bytes(kind: Kind, rows: int) -> int:
    """Of a request of that kind with a numbered id."""
    shape = [rows, kind.features]
    tensor = {"name": TENSOR, "datatype": "FP32", "shape": shape, "data": bytes(4 * rows * kind.features)}
    record: dict[str, Any] = {"request_id": "0" * ID_WIDTH, "model": kind.model, "inputs": [tensor]}
    if not np.isnan(kind.deadline_s):
        record["deadline"] = 2**40  # any time from 2004 to 2039 takes as many bytes
    return len(framing.encode("inference_request", record))
