"""The simulator against what is known without it: laws of queues, the rule of turns, and counts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.topics import PRIORITIES
from tests.bench.simulator.calendar import Calendar, Cores
from tests.bench.simulator.machine import Arrivals, Floats, Machine, Model, Profile
from tests.bench.simulator.policy import LaneView, Observed, Plan, Static
from tests.bench.simulator.run import Result, simulate
from tests.bench.simulator.turns import SimulatedTurns
from tests.bench.simulator.world import EXPIRED, OK, BadSimulation, nothing
from workers.turns import PASSED_MAX

SMALL = Profile.straight(1e-5, 1e-6, 256)
FREE = Machine(
    cores=1e6, background_cores=0.0, tick_s=0.0, append_s=0.0, record_s=0.0, transaction_s=0.0, marker_s=0.0,
    after_s=0.0, commit_latency_s=0.0, jitter=0.0, coalesce_s=0.0, coalesce_record_s=0.0, actor_s=0.0,
    actor_record_s=0.0, load_record_s=0.0, reader_record_s=0.0, partitions=1, runs=1,
)  # fmt: skip
"""Nothing costs anything but the kernel."""


def poisson(rate: float, n: int, seed: int = 0) -> Floats:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


def mixed(n: int, seed: int, rate: float = 2000.0) -> Arrivals:
    """Two models, all priorities, several rows, some deadlines."""
    rng = np.random.default_rng(seed)
    return Arrivals(
        at_s=poisson(rate, n, seed),
        priority=rng.integers(0, len(PRIORITIES), n).astype(np.int8),
        model=rng.integers(0, 2, n).astype(np.int16),
        models=("a", "b"),
        rows=rng.integers(1, 5, n).astype(np.int32),
        bytes=np.full(n, 200, np.int32),
        deadline_s=np.where(rng.random(n) < 0.2, 0.03, np.nan),
    )


TWO = (Model("a", (SMALL, SMALL)), Model("b", (SMALL,), actors=3))


class Erratic:
    """Any plan at all."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def plan(self, view: LaneView, now_s: float) -> Plan:
        draw = self.rng.random(5)
        return Plan(
            window_s=0.02 * draw[0] * (draw[1] < 0.5), records_max=1 + int(20 * draw[1]),
            rows_max=1 + int(30 * draw[2]),
            variant=int(draw[3] * max(1, len(view.ladder))), defer=draw[4] < 0.3, shed=draw[4] > 0.9,
            pause_s=0.01 * (draw[0] < 0.1),
        )  # fmt: skip

    def observe(self, view: LaneView, observed: Observed) -> None:
        assert observed.records == len(observed.age_s)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]))
def test_every_request_is_answered_once_whatever_the_policy(seed: int, coalescers: int) -> None:
    trace = mixed(500, seed)
    result = simulate(trace, TWO, Machine(coalescers=coalescers), Erratic(seed), seed)
    assert set(np.unique(result.code)) <= {OK, EXPIRED}
    assert (result.latency_s > 0).all()
    assert result.late + result.expired + int(result.in_time.sum()) == 500


def test_a_seed_gives_one_result() -> None:
    def run(seed: int) -> Result:
        return simulate(mixed(2000, 1), TWO, Machine(), Static(), seed)

    assert (run(5).latency_s == run(5).latency_s).all()
    assert (run(5).latency_s != run(6).latency_s).any()


def lindley(at_s: Floats, service_s: float) -> list[float]:
    """Waits of a queue with one server: w' = max(0, w + service - gap)."""
    waits = [0.0]
    for gap_s in np.diff(at_s).tolist():
        waits.append(max(0.0, waits[-1] + service_s - gap_s))
    return waits


def test_waiting_for_one_kernel_is_as_lindley_and_pollaczek_and_khinchin_say() -> None:
    """M/D/1: the mean wait is load * service / (2 * (1 - load))."""
    service_s, load, n = 0.01, 0.5, 6_000
    model = Model("m", (Profile((1,), (service_s,), 1),))
    trace = Arrivals.alike(poisson(load / service_s, n), "standard", "m")
    result = simulate(trace, [model], replace(FREE, batches_max=1), Static((0.0,) * 3))
    waited_s = result.latency_s - service_s
    assert waited_s == pytest.approx(lindley(trace.at_s, service_s), abs=1e-9)
    assert waited_s.mean() == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.1)


def test_shared_cores_are_as_processor_sharing_says() -> None:
    """M/D/1 with processor sharing: the mean sojourn is service / (1 - load), whatever the distribution of service."""
    service_s, load, n = 0.01, 0.6, 20_000
    cores = Cores(1.0)
    calendar, sojourn_s = Calendar([cores]), []
    for at_s in poisson(load / service_s, n).tolist():

        def arrive(at_s: float = at_s) -> None:
            cores.submit(calendar.now_s, service_s, lambda: sojourn_s.append(calendar.now_s - at_s))

        calendar.at(at_s, arrive)
    calendar.run()
    assert len(sojourn_s) == n
    assert float(np.mean(sojourn_s)) == pytest.approx(service_s / (1 - load), rel=0.05)


def slow_sharing(jobs: list[tuple[float, float]], count: float, crowding: float, step_s: float = 1e-4) -> list[float]:
    """When each of (at, work) ends, by small steps of time."""
    left, ends, now_s = [work for _, work in jobs], [math.nan] * len(jobs), 0.0
    while any(map(math.isnan, ends)):
        active = [i for i, (at_s, _) in enumerate(jobs) if at_s <= now_s and math.isnan(ends[i])]
        for i in active:
            share = max(1.0, len(active) / count)
            left[i] -= step_s / (share + crowding * (share - 1))
            if left[i] <= 0:
                ends[i] = now_s + step_s
        now_s += step_s
    return ends


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.1), st.floats(0.001, 0.05)), min_size=1, max_size=8),
    st.sampled_from([1.0, 1.7, 3.0]),
)
def test_shared_cores_are_as_small_steps_of_time_say(jobs: list[tuple[float, float]], count: float) -> None:
    cores = Cores(count, 0.2)
    calendar, ends = Calendar([cores]), {}
    for i, (at_s, work_s) in enumerate(jobs):

        def arrive(i: int = i, work_s: float = work_s) -> None:
            cores.submit(calendar.now_s, work_s, lambda: ends.update({i: calendar.now_s}))

        calendar.at(at_s, arrive)
    calendar.run()
    assert [ends[i] for i in range(len(jobs))] == pytest.approx(slow_sharing(jobs, count, 0.2), abs=2e-3)


def test_little() -> None:
    """The requests inside at random moments are the rate times the mean latency."""
    trace = Arrivals.alike(poisson(4000, 40_000), "standard", "a")
    result = simulate(trace, TWO[:1], Machine(), Static())
    leaves = np.sort(trace.at_s + result.latency_s)
    moments = np.random.default_rng(3).uniform(0, leaves[-1], 20_000)
    inside = np.searchsorted(trace.at_s, moments) - np.searchsorted(leaves, moments)
    rate = len(leaves) / leaves[-1]
    assert inside.mean() == pytest.approx(rate * result.latency_s.mean(), rel=0.03)


def test_the_highest_waiting_lane_goes_first_and_none_starves() -> None:
    turns, order = SimulatedTurns(3), []
    turns.ask(2, nothing)
    for lane in (2, 1, 0, 0, *[0] * PASSED_MAX):
        turns.ask(lane, lambda lane=lane: order.append(lane))
    while len(order) < 4 + PASSED_MAX:
        turns.release()
    assert order[:2] == [0, 0]
    assert order.index(1) == PASSED_MAX and order.index(2) == PASSED_MAX + 1


def beside_backlog(stream: str, backlog: str) -> float:
    """p95 of 100 requests a second in one lane while the kernel works off 3,000 requests of another."""
    at_s = np.concatenate([np.zeros(3000), np.arange(200) / 100])
    trace = Arrivals.alike(at_s, stream, "m")
    trace.priority[:3000] = PRIORITIES.index(backlog)
    model = Model("m", (Profile.straight(1e-4, 9e-4, 16),))
    return float(simulate(trace, [model], Machine(runs=1), Static((0.005,) * 3)).quantiles_s(stream)[1])


def test_a_high_priority_waits_less_than_a_low_one_beside_the_same_backlog() -> None:
    assert beside_backlog("interactive", "bulk") < 0.5 * beside_backlog("bulk", "interactive")


def test_short_windows_saturate_the_broker_and_long_ones_wait() -> None:
    """p95 over windows has its least between the ends: the shape that was measured."""
    trace = Arrivals.alike(np.arange(8_000 * 3) / 8_000, "standard", "a")
    found = {
        window_ms: simulate(trace, TWO[:1], Machine(), Static((window_ms / 1e3,) * 3)) for window_ms in (0, 15, 80)
    }
    p95_s = {window_ms: result.quantiles_s(skip_s=0.5)[1] for window_ms, result in found.items()}
    assert p95_s[0] > 1.15 * p95_s[15] and p95_s[80] > 1.15 * p95_s[15]
    transactions = [result.spent.transactions for result in found.values()]
    assert transactions == sorted(transactions, reverse=True)


class Deferring(Static):
    def plan(self, view: LaneView, now_s: float) -> Plan:
        return replace(super().plan(view, now_s), defer=view.stage == "work", late_s=0.3)


def test_deferral_answers_fresh_requests_in_time() -> None:
    """After a burst that cannot be answered in time, those that come later can."""
    at_s = np.concatenate([np.zeros(4000), np.arange(6000) / 1000])
    model = Model("m", (Profile.straight(1e-4, 6e-4, 64),), (0.8, 0.8, 10.0))
    trace = Arrivals.alike(at_s, "standard", "m")
    first, second = (simulate(trace, [model], Machine(runs=1), policy) for policy in (Static(), Deferring()))
    assert second.spent.deferred > 0 and first.spent.deferred == 0
    assert second.goodput > 1.5 * max(100.0, first.goodput)
    assert set(second.code) == {OK}


def test_deadlines_expire() -> None:
    trace = replace(Arrivals.alike(np.zeros(3000), "standard", "a"), deadline_s=np.full(3000, 0.001))
    assert simulate(trace, TWO[:1], Machine(), Static()).expired == 3000


class Watching(Static):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, LaneView]]
        object.__setattr__(self, "seen", [])

    def plan(self, view: LaneView, now_s: float) -> Plan:
        self.seen.append((now_s, view))
        return super().plan(view, now_s)


def test_what_a_lane_sees() -> None:
    policy = Watching()
    simulate(Arrivals.alike(np.arange(9000) / 3000, "standard", "a"), TWO[:1], Machine(), policy)
    seen = policy.seen
    assert all(view.lag >= 1 and view.oldest_s >= 0 for _, view in seen)
    late = [view for now_s, view in seen if now_s > 2.5]
    assert all(view.rate == pytest.approx(3000, rel=0.2) for view in late)
    reported = late[-1].reported["a", 1]
    assert 0 < reported.p50_s <= reported.p95_s <= reported.p99_s and 0.5 < reported.at_s < 3.2
    assert not seen[0][1].reported
    assert {view.stage for view in late} == {"coalesce", "work"}


def test_what_cannot_be_simulated() -> None:
    trace = Arrivals.alike(np.arange(3.0), "standard", "m")
    with pytest.raises(BadSimulation, match="the trace asks for m; add it"):
        simulate(trace, TWO, Machine(), Static())
    with pytest.raises(BadSimulation, match="has no requests"):
        simulate(Arrivals.alike(np.zeros(0), "standard", "a"), TWO, Machine(), Static())
    with pytest.raises(BadSimulation, match="sort the requests"):
        simulate(Arrivals.alike(np.array([1.0, 0.0]), "standard", "a"), TWO, Machine(), Static())
    with pytest.raises(BadSimulation, match="give more than background_cores"):
        simulate(Arrivals.alike(np.zeros(1), "standard", "a"), TWO, Machine(cores=0.1), Static())


def test_a_profile_is_its_points_and_lines_between() -> None:
    profile = Profile((1, 4, 16), (1.0, 2.0, 8.0), 16)
    assert [profile.run_s(rows) for rows in (1, 4, 10, 16, 32)] == pytest.approx([1, 2, 5, 8, 16])
    assert Profile((8,), (4.0,), 8).run_s(2) == 1.0
