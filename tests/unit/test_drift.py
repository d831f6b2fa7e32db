"""audit.drift: against plain oracles, silent for a million rows, and quick."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial import distance
from scipy.stats import chi2, wasserstein_distance

from audit import drift
from audit.drift import Means, Recent, assess
from schemas.errors import IntegrityError
from tests.simulated import counted

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
TALLY = 50  # rows
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, rows: rng.standard_normal(rows),
    "exponential": lambda rng, rows: rng.exponential(size=rows),
    "score": lambda rng, rows: rng.beta(2.0, 5.0, rows),
}
CELLS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=3, max_size=12)


@given(CELLS)
def test_psi_by_a_loop_and_jensen_shannon_by_scipy(cells: list[tuple[int, int]]) -> None:
    reference, counts = map(list, zip(*cells, strict=True))
    p = [(each + 0.5) / (sum(reference) + len(cells) / 2) for each in reference]
    q = [(each + 0.5) / (sum(counts) + len(cells) / 2) for each in counts]
    expected = sum((b - a) * log(b / a) for a, b in zip(p, q, strict=True))
    assert drift.psi(reference, counts) == pytest.approx(expected, abs=1e-12) == drift.psi(counts, reference)
    assert drift.jensen_shannon(reference, counts) == pytest.approx(distance.jensenshannon(p, q, 2), abs=1e-7)


@given(CELLS)
def test_wasserstein_and_ks_of_what_lies_on_the_edges(cells: list[tuple[int, int]]) -> None:
    reference, counts = map(list, zip(*cells, strict=True))
    if not sum(reference) or not sum(counts):
        return
    edges = [float(each) ** 2 for each in range(len(cells) - 1)]
    at = [*edges, edges[-1]]  # a cell lies at its upper edge; the last beyond the last
    assert drift.wasserstein(reference, counts, edges) == pytest.approx(wasserstein_distance(at, at, reference, counts))
    below = [(sum(reference[: i + 1]) / sum(reference), sum(counts[: i + 1]) / sum(counts)) for i in range(len(edges))]
    assert drift.ks(reference, counts) == pytest.approx(max(abs(a - b) for a, b in below))


@pytest.mark.parametrize("cells", [2, 5, 12, 40])
def test_the_limit_of_psi_is_chi_squares_quantile(cells: int) -> None:
    expected = chi2(cells - 1).isf(drift.ALPHA) * (1 / 500 + 1 / 10_000)
    found = drift.psi_limit(500, 10_000, cells) - drift.PSI_FLOOR
    assert expected * 0.99 <= found <= expected * (1.16 if cells == 2 else 1.06)
    assert drift.psi_limit(200, 10_000, cells) > drift.psi_limit(2_000, 10_000, cells) > drift.PSI_FLOOR


@pytest.mark.parametrize("name", DRAWS)
def test_a_million_stable_rows_give_no_alarm_and_a_shift_is_found(name: str) -> None:
    """Every tally of 50 rows is judged; the shift is half a standard deviation."""
    rng, draw = np.random.default_rng(11), DRAWS[name]
    sample = draw(rng, 10_000)
    edges = np.quantile(sample, np.linspace(0, 1, 11))
    reference, recent, means = counted(sample, edges), Recent(), Means(sample.mean(), sample.std())
    values = draw(rng, 1_000_000).reshape(-1, TALLY)
    states = set()
    for cells, total in zip(counted(values, edges), values.sum(axis=1).tolist(), strict=True):
        recent.add(cells)
        means.add(TALLY, total)
        states.add(assess(reference, recent.counts, edges).state)
    assert states == {"insufficient", "ok"} and means.changes == 0
    found: dict[str, int] = {}
    shifted = draw(rng, 3_000).reshape(-1, TALLY) + sample.std() / 2
    for number, (cells, total) in enumerate(zip(counted(shifted, edges), shifted.sum(axis=1).tolist(), strict=True)):
        recent.add(cells)
        if means.add(TALLY, total):
            found.setdefault("adwin", (number + 1) * TALLY)
        if assess(reference, recent.counts, edges).state == "alarm":
            found.setdefault("histogram", (number + 1) * TALLY)
    assert max(found["adwin"], found["histogram"]) <= 2_000


@pytest.mark.parametrize("tally", [10, 64, 300, 499, 501, 999, 2_000])
def test_a_shift_is_found_in_time_by_tallies_of_any_size(tally: int) -> None:
    rng = np.random.default_rng(tally)
    sample = rng.standard_normal(10_000)
    edges = np.quantile(sample, np.linspace(0, 1, 11))
    reference, recent = counted(sample, edges), Recent()
    for cells in counted(rng.standard_normal((2 + 3_000 // tally, tally)), edges):
        recent.add(cells)
        assert assess(reference, recent.counts, edges).state != "alarm"
    for cells in counted(rng.standard_normal((2_000 // tally, tally)) + 0.5, edges):
        recent.add(cells)
        if assess(reference, recent.counts, edges).state == "alarm":
            return
    pytest.fail("2,000 rows were not enough")


def test_a_trivial_shift_of_many_rows_is_none() -> None:
    rng = np.random.default_rng(2)
    edges = np.linspace(-3, 3, 13)
    reference, counts = (
        counted(rng.standard_normal(100_000), edges),
        counted(rng.standard_normal(100_000) + 0.02, edges),
    )
    assert assess(reference, counts, edges).state == "ok"


def test_few_rows_are_insufficient() -> None:
    assert assess([0, 5_000, 5_000, 0], [0, 199, 0, 0], [0, 1, 2]).state == "insufficient"
    assert assess([0, 5_000, 5_000, 0], [0, 200, 0, 0], [0, 1, 2]).state == "alarm"
    assert assess([0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2]).state == "insufficient"


def test_missing_values_drift_too() -> None:
    found = assess([0, 500, 500, 0], [0, 300, 300, 0], [0, 1, 2], 0, 400)
    assert (found.state, found.rows, found.ks) == ("alarm", 1_000, 0.0)


@given(CELLS, st.integers(0, 5))
def test_histograms_add_up(cells: list[tuple[int, int]], missing: int) -> None:
    reference, counts = map(list, zip(*cells, strict=True))
    edges = list(range(len(cells) - 1))
    parts = [each // 2 for each in counts], [each - each // 2 for each in counts]
    merged = [a + b for a, b in zip(*parts, strict=True)]
    assert assess(reference, merged, edges, 0, missing) == assess(reference, counts, edges, 0, missing)


@pytest.mark.parametrize(
    ("reference", "counts", "message"),
    [([1, 2, 3], [1, 2], "3 and 2 counts"), ([1, 2], [1, 2], "2 and 2 counts"), ([1, -2, 3], [1, 2, 3], "negative")],
)
def test_histograms_that_do_not_belong_together(reference: list[int], counts: list[int], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        assess(reference, counts, [0.0, 1.0])


def test_means_go_on_from_their_plain_state() -> None:
    rng = np.random.default_rng(9)
    means, again = Means(0.0, 1.0), Means(0.0, 1.0)
    for number in range(400):
        rows = int(rng.integers(0, 200))
        total = float(rng.normal(0.5 * rows if number > 200 else 0, max(rows, 1) ** 0.5))
        assert means.add(rows, total) == again.add(rows, total)
        again = Means(0.0, 1.0, **json.loads(json.dumps(again.state())))
        assert means.state() == again.state()
    assert means.changes == 1


@pytest.mark.parametrize("total", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out_of_means(total: float) -> None:
    means = Means(0.0, 0.0)
    assert not means.add(100, total) and not means.add(0, 5.0)
    assert means.state() == Means(0.0, 0.0).state()


def test_the_recent_rows_are_kept_apart_and_restored() -> None:
    recent = Recent(100)
    for number in range(20):
        recent.add([number, 30 - number])
        assert min(100, 30 * (number + 1)) <= recent.counts.sum() <= 230
        recent = Recent(100, **json.loads(json.dumps(recent.state())))
    recent.add([0, 5_000])
    assert recent.counts.sum() >= 5_000
