"""Traces that are made up have the statistics that they are made for. 5 sigma: one false alarm in 1.7 million."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from schemas import framing, requests
from streams.registry import Registry
from streams.topics import PRIORITIES
from streams.trace import Trace, dispersion, read, write
from tests.bench import traces
from tests.bench.traces import GENERATORS, MIXED, MLP, Kind

RATE, SECONDS = 400.0, 200.0


def near(value: float, mean: float, sigma: float) -> None:
    assert abs(value - mean) < 5 * sigma, f"{value} is {abs(value - mean) / sigma:.1f} sigma from {mean}"


def counts(trace: Trace) -> npt.NDArray[np.int64]:
    return np.bincount(trace.at_s.astype(np.int64))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_gives_the_same_requests_and_another_one_others(name: str) -> None:
    one, same, other = (GENERATORS[name](100.0, 10.0, MIXED, seed) for seed in (3, 3, 4))
    for field in ("at_s", "priority", "model", "rows", "bytes", "deadline_s"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
    assert len(one) != len(other) or not np.array_equal(one.at_s, other.at_s)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_trace_survives_its_file(name: str) -> None:
    trace = GENERATORS[name](50.0, 10.0, MIXED, 1)
    found = read(write(trace))
    for field in ("at_s", "priority", "rows", "bytes", "deadline_s"):
        np.testing.assert_array_equal(getattr(found, field), getattr(trace, field))
    assert found.at_s[0] == 0 and (np.diff(found.at_s) >= 0).all()


def test_steady_is_poisson() -> None:
    trace = traces.steady(RATE, SECONDS)
    near(len(trace), RATE * SECONDS, (RATE * SECONDS) ** 0.5)
    # the variance of a sample variance over its mean: 2 / (n - 1) for counts that are nearly normal
    near(dispersion(counts(trace)), 1.0, (2 / SECONDS) ** 0.5)


def test_diurnal_keeps_its_mean_and_swings() -> None:
    trace = traces.diurnal(RATE, SECONDS)
    near(len(trace), RATE * SECONDS, (RATE * SECONDS) ** 0.5)
    night, noon = (int(((trace.at_s >= a) & (trace.at_s < a + 20)).sum()) for a in (0, SECONDS / 2 - 10))
    lowest, highest = RATE * 20 * (1 - traces.DIURNAL_DEPTH), RATE * 20 * (1 + traces.DIURNAL_DEPTH)
    assert lowest < night < 1.5 * lowest and 0.95 * highest < noon < 1.05 * highest


def test_bursty_has_the_moments_of_its_process() -> None:
    """Index of dispersion of counts of a two-state process (Fischer and Meier-Hellstern 1993, section 3)."""
    seconds = 4000.0
    trace = traces.bursty(100.0, seconds)
    switches = 1 / traces.CALM_S + 1 / traces.BURST_S
    share = traces.BURST_S / (traces.CALM_S + traces.BURST_S)
    calm = 100 / (1 - share + share * traces.BURST)
    spread = 2 * (calm * (traces.BURST - 1)) ** 2 * share * (1 - share) / (switches * 100)
    near(len(trace), 100 * seconds, (100 * seconds * (1 + spread)) ** 0.5)
    a_second = 1 + spread * (1 - (1 - np.exp(-switches)) / switches)
    assert a_second > 10
    assert 0.8 * a_second < dispersion(counts(trace)) < 1.2 * a_second


def test_a_flash_crowd_comes_at_once_and_decays() -> None:
    trace = traces.flash_crowd(RATE, SECONDS)
    start = traces.CROWD_AT * SECONDS
    mean = RATE * (SECONDS + (traces.CROWD - 1) * traces.CROWD_DECAY_S)
    near(len(trace), mean, mean**0.5)
    before, after = (int(((trace.at_s >= a) & (trace.at_s < a + 1)).sum()) for a in (start - 1.5, start))
    near(before, RATE, RATE**0.5)
    assert after > 0.8 * traces.CROWD * RATE
    late = int((trace.at_s >= SECONDS - 50).sum())
    near(late, RATE * 50, (RATE * 50) ** 0.5)


def test_heavy_tails_have_the_mean_of_their_distribution() -> None:
    trace = traces.heavy_tailed(RATE, SECONDS)
    shape, most = traces.PARETO_SHAPE, traces.PARETO_ROWS_MAX
    sizes = np.arange(1, most + 1)
    at_least = (sizes**-shape - (most + 1) ** -shape) / (1 - (most + 1) ** -shape)
    mean, square = at_least.sum(), ((2 * sizes - 1) * at_least).sum()
    near(trace.rows.mean(), mean, ((square - mean**2) / len(trace)) ** 0.5)
    assert trace.rows.min() == 1 and 100 < trace.rows.max() <= most
    near((trace.rows >= 10).mean(), at_least[9], (at_least[9] / len(trace)) ** 0.5)


def test_mixed_keeps_the_shares_of_its_kinds() -> None:
    trace = traces.mixed(RATE, SECONDS)
    n = len(trace)
    assert trace.models == ("mlp-a", "mlp-b", "risk-scorer")
    for kind in MIXED:
        chosen = (trace.model == trace.models.index(kind.model)) & (trace.priority == PRIORITIES.index(kind.priority))
        near(int(chosen.sum()), n * kind.share, (n * kind.share) ** 0.5)
        assert set(trace.rows[chosen]) == set(kind.rows)
        np.testing.assert_array_equal(trace.deadline_s[chosen], kind.deadline_s)


def test_drifted_ends_with_the_shares_in_reverse() -> None:
    kinds = (Kind("a", 3, 0.9), Kind("b", 3, 0.1))
    trace = traces.drifted(RATE, SECONDS, kinds)
    for begin, share in ((0, 0.1 + 0.8 * 0.05), (0.9 * SECONDS, 0.9 - 0.8 * 0.05)):
        part = trace.model[(trace.at_s >= begin) & (trace.at_s < begin + 0.1 * SECONDS)]
        near(part.mean(), share, (share * (1 - share) / len(part)) ** 0.5)


def test_overload_leaves_interactive_as_it_was() -> None:
    trace = traces.overload(100.0, 20.0)
    calm, over, after = (
        np.flatnonzero((trace.at_s >= begin) & (trace.at_s < end)) for begin, end in ((0, 10), (10, 30), (30, 50))
    )
    near(len(over), 20 * 1000, 20_000**0.5)
    near(len(calm), 10 * 50, 500**0.5)
    near(len(after), 20 * 50, 1000**0.5)
    interactive = int((trace.priority[over] == 0).sum())
    near(interactive, 20 * 50 * 0.15, (20 * 50 * 0.15) ** 0.5)
    with pytest.raises(ValueError, match="all interactive"):
        traces.overload(100.0, kinds=[Kind("a", 3, priority="interactive")])


def test_no_request_at_all_is_no_trace() -> None:
    with pytest.raises(ValueError, match="higher rate"):
        traces.steady(1e-9, 1.0, MLP)


def test_sizes_are_those_of_records() -> None:
    kind = Kind("mlp-a", 30, rows=(4,), deadline_s=0.5)
    data = bytes(4 * 30 * 4)
    tensor = {"name": "features", "datatype": "FP32", "shape": [4, 30], "data": data}
    record = {"request_id": "0" * 12, "model": "mlp-a", "inputs": [tensor], "deadline": 1_760_000_000_000}
    value = framing.encode("inference_request", record)
    assert set(traces.steady(10.0, 5.0, [kind]).bytes) == {len(value)}
    assert len(requests.decode([value], Registry(None, lambda: None)).requests.row) == 1
