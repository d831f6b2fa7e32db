"""Which batches give way: as many as can be in time run, and none waits for nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.deferral import kept

BATCHES = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 0.5)), min_size=1, max_size=7)


@given(BATCHES, st.floats(0.01, 2), st.booleans())
def test_what_is_kept_is_in_time(batches: list[tuple[float, float]], objective_s: float, more: bool) -> None:
    age_s, run_s = np.array(batches).T
    now = kept(age_s, run_s, objective_s, more)
    in_time = age_s[now].max(initial=0) + run_s[now].sum() <= objective_s * (1 + 1e-12)
    assert in_time or (now.all() and not more)
    assert now.any() or more


@given(st.lists(st.floats(0, 2), min_size=1, max_size=7), st.floats(0.01, 0.5), st.floats(0.01, 2))
def test_of_equal_runs_as_many_are_kept_as_can_be(ages: list[float], run_s: float, objective_s: float) -> None:
    age_s = np.array(ages)
    most = max(
        (len(each) for n in range(len(ages) + 1) for each in itertools.combinations(ages, n)
         if not each or max(each) + n * run_s <= objective_s), default=0,
    )  # fmt: skip
    found = kept(age_s, np.full(len(ages), run_s), objective_s, True).sum()
    assert found == most or abs(age_s + run_s * np.arange(1, len(ages) + 1)[:, None] - objective_s).min() < 1e-9


@pytest.mark.parametrize(("more", "wanted"), [(False, [True, True]), (True, [False, False])])
def test_where_all_are_late(more: bool, wanted: list[bool]) -> None:
    """They give way to what waits behind them; to nothing they do not."""
    assert kept(np.array([3.0, 2.0]), np.array([0.1, 0.1]), 1.0, more).tolist() == wanted
