"""Which variant answers a window: the policy under load, its hysteresis, and what a forced one changes."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.spec import ModelSpec
from streams.limits import LaneLimits
from tests.samples import NOW_MS, encoded, request, spec, tensor, window
from tests.stages import Ends, Identity, Tensors, coalesce, through
from tests.stages import actor as lane_of
from workers.answers import Release
from workers.variants import CALM_S, CALM_WINDOWS, PATIENCE_MAX, WAIT_S_MIN, Choice, Load, Loaded, LoadPolicy

FP32_S, INT8_S = 0.010, 0.003  # seconds a row
SLO_S = 0.4


def calm(at_s: float, rows: int = 1) -> Load:
    return Load(at_s, 0.001, rows, False)


def policy(slo_s: float | None = SLO_S) -> LoadPolicy:
    return LoadPolicy([FP32_S, INT8_S], slo_s)


@pytest.mark.parametrize(
    ("slo_s", "load", "place"),
    [
        (SLO_S, Load(0, 0.0, 1, False), 0),
        (SLO_S, Load(0, 0.0, 1, True), 1),
        (None, Load(0, 100.0, 10_000, False), 0),
        (None, Load(0, 0.0, 1, True), 1),
        (SLO_S, Load(0, 0.19, 1, False), 0),
        (SLO_S, Load(0, 0.191, 1, False), 1),
        (SLO_S, Load(0, 0.0, 21, False), 1),
        (0.001, Load(0, WAIT_S_MIN - FP32_S, 1, False), 0),
        (0.001, Load(0, WAIT_S_MIN, 1, False), 1),
    ],
)
def test_the_window_that_shows_the_load_is_answered_by_the_cheaper_one(
    slo_s: float | None, load: Load, place: int
) -> None:
    assert policy(slo_s).choose(load) == place


def test_the_way_back_takes_calm_windows() -> None:
    found = policy()
    assert found.choose(Load(0, 1.0, 100, True)) == 1
    places = [found.choose(calm(0.1 + 0.05 * i)) for i in range(CALM_WINDOWS + 5)]
    assert places == [1] * CALM_WINDOWS + [0] * 5


def test_the_way_back_waits_while_the_costlier_one_would_be_busy() -> None:
    found = policy()
    found.choose(Load(0, 1.0, 100, True))
    busy = [found.choose(calm(0.1 * i, rows=8)) for i in range(1, 300)]  # 80 rows/s of 10 ms: 80 % of a core
    assert set(busy) == {1}
    assert found.choose(Load(30.1, 0.0, 1, True)) == 1


def test_after_a_pause_there_is_nothing_to_wait_for() -> None:
    found = policy()
    found.choose(Load(0, 1.0, 100, True))
    assert [found.choose(calm(at_s)) for at_s in (1.0, 1.0 + CALM_S + 0.1)] == [1, 0]


def test_it_goes_on_only_while_the_wait_grows() -> None:
    found = LoadPolicy([4.0, 2.0, 1.0, 0.5], SLO_S)
    waits = [1.0, 2.0, 1.5, 1.2, 1.0, 1.1]
    assert [found.choose(Load(at, wait, 1, False)) for at, wait in enumerate(waits)] == [1, 2, 2, 2, 2, 3]


Step = tuple[float, float, int, bool]
PAUSES, WAITS = st.sampled_from((0.0, 0.01, 0.3, 6.0)), st.sampled_from((0.0, 0.1, 0.3))
STEPS = st.lists(st.tuples(PAUSES, WAITS, st.integers(1, 40), st.booleans()), max_size=400)


@settings(max_examples=100, deadline=None)
@given(STEPS, st.integers(1, 4))
def test_no_load_makes_it_flap(steps: list[Step], places: int) -> None:
    """A way back is earned by calm windows or seconds since the last overload, and goes one place."""
    found = LoadPolicy([FP32_S / 2**i for i in range(places)], SLO_S)
    at_s, windows, calm_from_s, last, returns = 0.0, 0, 0.0, 0, 0
    for pause_s, wait_s, rows, full in steps:
        at_s += pause_s
        place = found.choose(Load(at_s, wait_s, rows, full))
        assert 0 <= place < places and abs(place - last) <= 1
        overloaded = full or wait_s + rows * FP32_S / 2**last > SLO_S / 2
        assert place >= last or not overloaded
        if overloaded and places > 1:
            assert place > 0
        if place < last:
            returns += 1
            assert windows >= CALM_WINDOWS or at_s - calm_from_s >= CALM_S
        if overloaded or place != last:
            windows = 0
        elif windows == 0:
            calm_from_s, windows = at_s, 1
        else:
            windows += 1
        last = place
    assert returns <= len(steps) / CALM_WINDOWS + at_s / CALM_S


def test_who_relapses_waits_longer_every_time_up_to_a_bound() -> None:
    """An adversary that overloads as soon as it went back."""
    found, stays, at_s = policy(), [], 0.0
    for _ in range(9):
        at_s += 0.01
        assert found.choose(Load(at_s, 1.0, 1, True)) == 1
        stay = 0
        while found.place:
            at_s += 0.02
            stay += 1
            found.choose(calm(at_s, rows=1))
        stays.append(stay)
    expected = [CALM_WINDOWS * min(2**i, PATIENCE_MAX) + 1 for i in range(9)]
    assert stays == expected
    for _ in range(PATIENCE_MAX * CALM_WINDOWS + 1):  # it kept calm that long: all is forgiven
        at_s += 0.02
        assert found.choose(calm(at_s)) == 0
    found.choose(Load(at_s, 1.0, 1, True))
    assert found.patience == 1


@dataclass
class Simulation:
    """A lane whose kernel takes `row_s` a row: requests arrive at a rate by phases, a window takes what waits."""

    row_s: list[float]
    policy: LoadPolicy
    window_max: int = 400
    latency: list[float] = field(default_factory=list)
    places: list[tuple[float, int]] = field(default_factory=list)

    def run(self, phases: list[tuple[float, float]]) -> None:
        """`phases`: (seconds, requests a second)."""
        arrivals, start = [], 0.0
        for seconds, rate in phases:
            arrivals += [start + i / rate for i in range(int(seconds * rate))]
            start += seconds
        now = 0.0
        while arrivals:
            now = max(now + 0.005, arrivals[0])  # a transaction takes its time, too
            n = min(self.window_max, bisect_right(arrivals, now))
            place = self.policy.choose(Load(now, now - arrivals[0], n, n == self.window_max))
            now += n * self.row_s[place]
            self.latency += [now - each for each in arrivals[:n]]
            self.places.append((now, place))
            del arrivals[:n]


def test_a_burst_at_twice_the_capacity_misses_no_deadline_and_leaves_nothing_behind() -> None:
    capacity = 1 / FP32_S
    phases = [(20.0, 0.4 * capacity), (30.0, 2 * capacity), (30.0, 0.4 * capacity)]
    with_variants = Simulation([FP32_S, INT8_S], policy())
    with_variants.run(phases)
    assert max(with_variants.latency) < SLO_S
    began, ended = [at_s for (_, before), (at_s, place) in pairwise(with_variants.places) if place != before]
    assert 20 < began < 20.5 and 50 < ended < 50 + CALM_S
    without = Simulation([FP32_S], LoadPolicy([FP32_S], SLO_S))
    without.run(phases)
    assert max(without.latency) > 10 * SLO_S
    before = int(20 * 0.4 * capacity)
    assert with_variants.latency[:before] == without.latency[:before]


def loaded(name: str, row_s: float) -> Loaded:
    kernel = Identity()
    return Loaded(Release("net", "1", name), kernel, kernel, 8, row_s)


def names(*prefer: str, under_load: tuple[str, ...] = (), without: str = "") -> list[str | None]:
    rows = {"original": 4.0, "int8": 2.0, "int4": 1.0, "slow": 5.0}
    found = {name: loaded(name, row_s) for name, row_s in rows.items() if name != without}
    return [each.release.variant for each in Choice(found, prefer, under_load).ladder]


def test_what_the_operator_prefers() -> None:
    assert names() == ["original"]
    assert names("int8", "int4") == ["int8"]
    assert names("int8", "int4", without="int8") == ["int4"]
    assert names("int8", without="int8") == ["original"]
    assert names(under_load=("int8", "int4")) == ["original", "int8", "int4"]
    assert names("int8", under_load=("int8", "int4")) == ["int8", "int4"]
    assert names(under_load=("slow", "int4", "int8")) == ["original", "int4"]
    assert names("int8", under_load=("original",)) == ["int8"]


def test_a_forced_variant_answers_whatever_the_load() -> None:
    choice = Choice({name: loaded(name, 1.0) for name in ("original", "int8")}, under_load=())
    assert choice.choose(Load(0, 9.0, 9, True), None).release.variant == "original"
    assert choice.choose(Load(0, 0.0, 1, False), "int8").release.variant == "int8"
    assert choice.choose(Load(0, 0.0, 1, False), "never compiled").release.variant == "original"


class Doubled(Identity):
    """Answers otherwise than the original."""

    def run(self, inputs: Tensors) -> Tensors:
        return {name: 2 * values for name, values in super().run(inputs).items()}


def value(rows: int) -> bytes:
    return encoded(request([tensor("features", np.ones((rows, 3), np.float32))]))


def test_results_and_decisions_name_the_variant_that_answered() -> None:
    net = spec()
    lane = lane_of(net, Identity())
    int8 = Doubled()
    lane.choice = Choice(
        {"original": loaded("original", 1.0), "int8": Loaded(Release("net", "1", "int8", "c-1"), int8, int8, 8)}
    )
    for forced, variant, certificate in ((None, "original", None), ("int8", "int8", "c-1"), ("gone", "original", None)):
        lane.forced = lambda forced=forced: forced
        ends = through([value(1)] * 3, coalesce([net]), [lane])
        ends.check(3)
        for results, decisions in zip(ends.results.values(), ends.decisions.values(), strict=True):
            assert (results[0]["variant"], decisions[0]["variant"]) == (variant, variant)
            assert (results[0]["certificate"], decisions[0]["certificate"]) == (certificate, certificate)
    assert int8.runs == [3]


def test_a_variant_whose_answers_depend_on_batch_mates_runs_requests_alone() -> None:
    net, kernel = spec(), Identity()
    lane = lane_of(net, kernel)
    lane.choice = Choice({"dynamic": Loaded(Release("net", "1", "dynamic"), kernel, kernel, 8, alone=True)})
    through([value(2), value(1), value(12)], coalesce([net]), [lane]).check(3)
    assert kernel.runs == [2, 1, 12]


@pytest.mark.parametrize(("age_ms", "records", "answers"), [(20, 1, "original"), (20, 4, "int8"), (300, 1, "int8")])
def test_what_a_window_shows_of_the_load(age_ms: int, records: int, answers: str) -> None:
    """Its oldest batch lay in the topic for too long, or it came full."""
    net = spec()
    lane = lane_of(net, Identity())
    lane.limits = LaneLimits(0.0, 4, 1 << 24)
    lane.choice = Choice({n: loaded(n, s) for n, s in (("original", 1e-3), ("int8", 1e-4))}, (), ("int8",), SLO_S)
    ends = Ends()
    window_of = window([each for _, each in batches(net, records)])
    ends.add(lane(window_of, int(window_of.timestamp[0]) + age_ms).blocks)
    assert {result["variant"] for results in ends.results.values() for result in results} == {answers}


def batches(net: ModelSpec, n: int) -> list[tuple[str, bytes]]:
    """So many batch records of one request each."""
    found = Ends()
    for offset in range(n):
        found.add(coalesce([net])(window([value(1)], start=offset), NOW_MS).blocks)
    return found.batches


class Deadly:
    """A journal after two deaths."""

    def begins(self, window: object) -> bool:
        return True

    def ended(self) -> None:
        pass


def test_what_killed_the_process_runs_apart_with_the_variant_of_its_window() -> None:
    net, kernel, apart, other = spec(), Identity(), Doubled(), Identity()
    lane = lane_of(net, kernel)
    original = Loaded(Release("net", "1", "original"), other, other, 8)
    int8 = Loaded(Release("net", "1", "int8"), kernel, apart, 8)
    lane.choice = Choice({"original": original, "int8": int8}, ["int8"])
    lane.journal = Deadly()
    ends = through([value(1)], coalesce([net]), [lane])
    assert ends.results[0][0]["variant"] == "int8"
    assert (kernel.runs, apart.runs, other.runs) == ([], [1], [])
