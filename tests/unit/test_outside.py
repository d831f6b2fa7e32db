"""Requests outside of what a variant is certified for: the original answers them, and every row says so."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.region import read
from streams import meters
from streams.window import Window
from tests.samples import NOW_MS, encoded, request, spec, tensor
from tests.stages import Ends, Identity, Plain, Tensors, actor, coalesce, outputs, through
from workers.actor import Actor
from workers.answers import Release
from workers.variants import Choice, Loaded

NET = spec()
EDGES = {"low": [(0.0).hex()] * 3, "high": [(2.0).hex()] * 3}
REGION = read({**EDGES, "tree": {}}, whole=True)


class Negated(Identity):
    """A variant whose answers show that it answered."""

    def run(self, inputs: Tensors) -> Tensors:
        return {name: -each for name, each in super().run(inputs).items()}


def lane(original: Identity, variant: Identity, rows_max: int = 4) -> Actor:
    """A lane that prefers a variant which is certified from 0 to 2."""
    found = actor(NET, original, rows_max)
    certified = Loaded(Release("net", "1", "int8", "c-1"), variant, variant, rows_max, region=REGION)
    found.choice = Choice({"original": found.choice.original, "int8": certified}, ("int8",))
    return found


def value(rows: list[float], deadline: int | None = None) -> bytes:
    values = np.repeat(np.array(rows, np.float32)[:, None], 3, axis=1)
    return encoded(request([tensor("features", values)], deadline=deadline))


def check(rows: list[list[float]], ends: Ends) -> None:
    ends.check(len(rows))
    for place, each in enumerate(rows):
        inside = all(0 <= number <= 2 for number in each)
        (result,), (decision,) = ends.results[place], ends.decisions[place]
        names = ("int8", "c-1") if inside else ("original", None)
        assert (result["variant"], result["certificate"]) == names
        assert (decision["variant"], decision["certificate"]) == names
        expected = [-number for number in each] if inside else each
        assert outputs(result)["value"][:, 0].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from((0.0, 1.0, 2.0, 2.5, -1.0)), min_size=1, max_size=3), min_size=1, max_size=20),
    st.integers(1, 9),
)
def test_a_request_is_answered_by_what_is_certified_for_all_its_rows(rows: list[list[float]], rows_max: int) -> None:
    original, variant = Identity(), Negated()
    check(rows, through([value(each) for each in rows], coalesce([NET]), [lane(original, variant, rows_max)]))
    inside = [each for each in rows if all(0 <= number <= 2 for number in each)]
    assert sum(variant.runs) == sum(map(len, inside))
    assert sum(original.runs) == sum(map(len, rows)) - sum(variant.runs)


def test_they_are_counted() -> None:
    counter = meters.OUTSIDE.labels("net", "1", "int8")
    before = counter._value.get()
    rows = [[1.0], [3.0], [1.0, 3.0], [2.0]]
    check(rows, through([value(each) for each in rows], coalesce([NET]), [lane(Identity(), Negated())]))
    assert counter._value.get() == before + 2


def test_those_that_come_late_are_counted_once() -> None:
    rows = [1.0, 3.0]
    values = [value([each], deadline=NOW_MS + 1000) for each in rows] + [value([each]) for each in rows]
    ends = through(values, coalesce([NET]), [lane(Identity(), Negated())], later_ms=NOW_MS + 2000)
    ends.check(4)
    assert [ends.results[place][0]["status"] for place in range(4)] == ["EXPIRED", "EXPIRED", "OK", "OK"]


class Again(Plain):
    """A journal that knows that this window killed the process before."""

    def begins(self, window: Window) -> bool:
        return True


def test_a_window_that_runs_apart_is_split_too() -> None:
    found = lane(Identity(), Negated())
    apart = Identity(), Negated()
    (original, variant), found.journal = found.choice.loaded.values(), Again()
    found.choice = Choice(
        {
            "original": Loaded(original.release, Identity(), apart[0], 4),
            "int8": Loaded(variant.release, Negated(), apart[1], 4, region=REGION),
        },
        ("int8",),
    )
    rows = [[1.0], [3.0], [0.0, 2.0]]
    check(rows, through([value(each) for each in rows], coalesce([NET]), [found]))
    assert (apart[0].runs, apart[1].runs) == ([1], [3])
