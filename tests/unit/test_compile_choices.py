"""Who gets how many bits, what stays, how long a run takes: pure choices with their laws."""

from __future__ import annotations

import doctest
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.compile import allocate, measure, pareto
from kernels.compile.allocate import Choice
from kernels.compile.pareto import Point

WIDTHS = (4, 8, 16, 32)


@pytest.mark.parametrize("module", [allocate, measure, pareto])
def test_examples_in_docstrings_are_true(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert (found.failed, found.attempted > 0) == (0, True)


@st.composite
def choices(draw: st.DrawFn) -> dict[str, list[Choice[int]]]:
    """Layers whose error falls with the bits, most of them as quantization's does."""
    found = {}
    for place in range(draw(st.integers(1, 4))):
        elements, error = draw(st.integers(1, 1000)), draw(st.floats(1e-6, 1.0))
        squares = [(error * 16.0 ** (1 - width / 4)) ** 2 for width in WIDTHS[:3]]
        found[f"l{place}"] = [
            Choice(width, elements * width, square) for width, square in zip(WIDTHS, [*squares, 0.0], strict=True)
        ]
    return found


def size(chosen: dict[str, Choice[int]]) -> int:
    return sum(each.file_bytes for each in chosen.values())


@settings(max_examples=40, deadline=None)
@given(choices(), st.floats(1e-6, 2.0))
def test_the_error_stays_in_its_budget(found: dict[str, list[Choice[int]]], budget: float) -> None:
    chosen = allocate.under_error(found, budget)
    assert allocate.joint(chosen) <= budget * (1 + 1e-9)
    # no single layer could be narrower still
    for name, each in found.items():
        for one in each:
            if one.file_bytes < chosen[name].file_bytes:
                assert allocate.joint({**chosen, name: one}) > budget * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(choices(), st.sampled_from(WIDTHS))
def test_at_the_size_of_a_uniform_width_the_error_is_no_larger(found: dict[str, list[Choice[int]]], width: int) -> None:
    uniform = {name: each[WIDTHS.index(width)] for name, each in found.items()}
    chosen = allocate.under_bytes(found, size(uniform))
    assert size(chosen) <= size(uniform)
    assert allocate.joint(chosen) <= allocate.joint(uniform) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(choices(), st.integers(0, 20_000))
def test_greedy_is_near_the_best_of_all(found: dict[str, list[Choice[int]]], more: int) -> None:
    """Against every allocation of these few layers: within a factor of 20 of the least error, as errors fall by 16."""
    least = sum(each[0].file_bytes for each in found.values())
    chosen = allocate.under_bytes(found, least + more)
    every = [dict(zip(found, each, strict=True)) for each in itertools.product(*found.values())]
    best = min(allocate.joint(each) for each in every if size(each) <= least + more)
    assert allocate.joint(chosen) <= 20 * best + 1e-12


POINTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), max_size=5
)


@settings(max_examples=40, deadline=None)
@given(POINTS)
def test_what_stays_is_not_beaten_and_what_goes_is(drawn: list[tuple[float, int, int, int]]) -> None:
    points = [
        Point(f"p{place}", error, 100 * size, (float(one), float(best)))
        for place, (error, size, one, best) in enumerate(drawn)
    ]
    original = Point("original", 0.0, 200, (2.0, 2.0))
    by = pareto.front(original, points)
    kept = [original, *(each for each in points if not by[each.name])]
    for each in points:
        others = [one for one in kept if one is not each]
        covered = any(
            one.error <= each.error
            and one.file_bytes <= each.file_bytes
            and all(a <= b for a, b in zip(one.seconds, each.seconds, strict=True))
            for one in others
        )
        assert covered or not by[each.name]
        if not by[each.name]:
            assert not any(pareto.beats(one, each) for one in [original, *points] if one is not each)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-7, 1e-3), st.floats(1e-9, 1e-4))
def test_a_profile_finds_the_line_that_times_follow(fixed: float, row: float) -> None:
    by_rows = {rows: fixed + row * rows for rows in (1, 2, 4, 8, 16, 32, 64)}
    found = measure.profile(by_rows)
    assert found.fixed_s + found.row_s * 64 == pytest.approx(by_rows[64], rel=0.06)
    assert found.knee_rows == 64
    assert found.seconds == by_rows


def test_a_profile_finds_the_knee() -> None:
    """Boosted trees: a row costs more from 32 on."""
    by_rows = {rows: 4e-6 + 3e-6 * rows if rows <= 16 else 7e-6 * rows for rows in (1, 2, 4, 8, 16, 32, 64, 128)}
    found = measure.profile(by_rows)
    assert (found.best_rows, found.knee_rows) == (16, 16)
    assert found.row_s == pytest.approx(3e-6, rel=0.01)
    assert found.fixed_s == pytest.approx(4e-6, rel=0.01)
