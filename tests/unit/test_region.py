"""Regions of certificates: the vectorised check of rows against a slow one, leaf by leaf."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.region import OPEN, read

Tree = dict[str, Any]
FLOATS = st.floats(-4, 4, width=32)


def box(*edges: tuple[float, float], tree: Tree) -> Tree:
    low, high = ([float(edge[side]).hex() for edge in edges] for side in (0, 1))
    return {"low": low, "high": high, "tree": tree}


def trees(features: int) -> st.SearchStrategy[Tree]:
    leaf: st.SearchStrategy[Tree] = st.sampled_from([{"leaf": 0}, {"open": "why"}])
    return st.recursive(
        leaf,
        lambda inner: st.fixed_dictionaries(
            {
                "split": st.integers(0, features - 1),
                "at": FLOATS.map(float.hex),
                "below": inner,
                "above": inner,
            }
        ),
        max_leaves=12,
    )


def slow(region: Tree, row: list[float]) -> bool:
    """In exact numbers, as the checker walks the tree; a row on a cut counts to the side below it."""
    exact = [Fraction(each) for each in row]
    for low, value, high in zip(region["low"], exact, region["high"], strict=True):
        if not Fraction(float.fromhex(low)) <= value <= Fraction(float.fromhex(high)):
            return False
    node = region["tree"]
    while "split" in node:
        above = exact[node["split"]] > Fraction(float.fromhex(node["at"]))
        node = node["above" if above else "below"]
    return "leaf" in node


@settings(max_examples=100, deadline=None)
@given(trees(3), st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=30), st.tuples(FLOATS, FLOATS))
def test_rows_are_where_the_tree_says(tree: Tree, rows: list[tuple[float, ...]], edge: tuple[float, float]) -> None:
    stated = box((-4, 4), (min(edge), max(edge)), (-2, 3), tree=tree)
    found = read(stated, whole=False).holds(np.array(rows, np.float32))
    assert found.tolist() == [slow(stated, list(row)) for row in rows]
    whole = read({**stated, "tree": {}}, whole=True).holds(np.array(rows, np.float32))
    assert (whole | ~found).all()


def test_edges_that_no_float32_is_are_rounded_inwards() -> None:
    low, high = 0.1, 0.3  # as float32: 0.100000001..., which is inside, and 0.300000012..., which is not
    region = read(box((low, high), tree={"leaf": 0}), whole=False)
    assert float(region.low[0]) >= low and float(region.high[0]) <= high
    near = np.nextafter(np.float32(0.3), np.float32([0, 1])).reshape(-1, 1)
    assert region.holds(near).tolist() == [True, False]


def test_what_no_proof_is_about_is_outside() -> None:
    region = read(box((-1, 1), (-1, 1), tree={"leaf": 0}), whole=False)
    rows = np.array([[0, 0], [0, np.nan], [np.inf, 0], [0.1, 0], [0.5, 0.25], [1e300, 0]])
    assert region.holds(rows).tolist() == [True, False, False, False, True, False]  # 0.1 is no float32
    assert region.holds(rows[:5].astype(np.float32)).tolist() == [True, False, False, True, True]
    assert region.holds(np.zeros((2, 1, 2), np.int64)).tolist() == [True, True]
    assert region.holds(np.zeros((0, 2), np.float32)).tolist() == []


def test_a_region_that_is_open_holds_nothing() -> None:
    region = read(box((-1, 1), tree={"open": "why", "leaf": 0}), whole=False)
    assert region.root == OPEN
    assert not region.holds(np.zeros((3, 1), np.float32)).any()


@pytest.mark.parametrize(
    "broken",
    [
        box(tree={"leaf": 0}),
        {**box((0, 1), tree={"leaf": 0}), "low": ["0x0p+0", "0x0p+0"]},
        box((0, 1), tree={"split": 1, "at": "0x0p+0", "below": {"leaf": 0}, "above": {"leaf": 1}}),
        box((0, 1), tree={"split": -1, "at": "0x0p+0", "below": {"leaf": 0}, "above": {"leaf": 1}}),
        box((0, 1), tree={"split": 0, "at": "0x0p+0", "below": {"leaf": 0}}),
        box((0, 1), tree={}),
        {"low": ["zero"], "high": ["0x1p+0"], "tree": {"leaf": 0}},
    ],
)
def test_what_is_no_region(broken: Tree) -> None:
    with pytest.raises((ValueError, KeyError)):
        read(broken, whole=False)
