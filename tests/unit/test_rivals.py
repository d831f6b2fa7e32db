"""Rules of other servers, each against a case worked out by hand; tuned static settings; the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bench import traces
from tests.bench.simulator import compare, fit, measured, scale
from tests.bench.simulator.machine import Arrivals, Machine, Model, Profile
from tests.bench.simulator.policy import LaneView, Observed, Plan, Policy, Static
from tests.bench.simulator.rivals import BentoML, Clipper, Triton
from tests.bench.simulator.run import simulate
from tests.bench.simulator.tuning import score, tune

VIEW = LaneView(
    stage="coalesce", lane="coalesce-standard-0", priority=1, model=None, lag=10, batches=0, rows=10, oldest_s=0.004,
    rate=1000.0, last=None, objective_s=0.1, ladder=(), reported={},
)  # fmt: skip


def observed(records: int, function_s: float, age_s: float = 0.03, at_s: float = 1.0) -> Observed:
    ages_s = np.full(records, age_s)
    return Observed(at_s, Plan(), records, records, 0, 0.0, function_s, 0.0, ages_s)


@pytest.mark.parametrize(
    ("lag", "oldest_s", "window_s", "records_max"),
    [(10, 0.004, 0.006, 64), (10, 0.5, 0.0, 64), (64, 0.0, 0.0, 64), (300, 0.0, 0.0, 256), (9000, 0.0, 0.0, 4000)],
)
def test_triton_takes_the_largest_preferred_size_or_waits_for_the_delay(
    lag: int, oldest_s: float, window_s: float, records_max: int
) -> None:
    plan = Triton().plan(replace(VIEW, lag=lag, oldest_s=oldest_s), 0.0)
    assert (plan.window_s, plan.records_max) == (pytest.approx(window_s), records_max)


def test_bentoml_fits_a_line_and_waits_by_its_rule() -> None:
    policy = BentoML()
    policy.plan(VIEW, 0.0)
    for number, n in enumerate((1, 1, 10, 20, 30, 40)):
        policy.observe(VIEW, observed(n, 0.01 + 1e-4 * n, age_s=0.05, at_s=float(6 * number)))
    waited_s = np.mean([0.05 - 0.01 - 1e-4 * n for n in (10, 20, 30, 40)])
    released = waited_s * 0.95 / (0.001 + 0.001 + 1e-4)  # records at which it lets go
    assert released > 10
    assert policy.plan(VIEW, 0.0).window_s == pytest.approx(np.ceil(released - 10) * 0.001, abs=1e-9)
    assert policy.plan(replace(VIEW, lag=100), 0.0).window_s == 0.0


@pytest.mark.parametrize(("oldest_s", "late_s"), [(0.01, np.inf), (0.09, 0.09 - 5 / 65 * 0.05), (9.0, 8.95)])
def test_bentoml_drops_the_oldest_until_the_next_would_end_in_time(oldest_s: float, late_s: float) -> None:
    """50 wait since 50 ms, a = 0.3 ms and b = 0 after the fit: 15 ms to run them, of 100 ms."""
    policy = BentoML()
    policy.plan(VIEW, 0.0)
    for number, n in enumerate((1, 1, 10, 20, 30, 40)):
        policy.observe(VIEW, observed(n, 3e-4 * n, at_s=float(6 * number)))
    plan = policy.plan(replace(VIEW, stage="work", lag=50, oldest_s=oldest_s), 0.0)
    assert plan.shed and plan.late_s == pytest.approx(late_s, rel=1e-6)


def test_clipper_grows_by_steps_and_shrinks_by_a_tenth() -> None:
    policy = Clipper()
    most = [policy.plan(VIEW, 0.0).records_max]
    for records, function_s in ((16, 0.05), (20, 0.05), (32, 0.05), (48, 0.2)):
        policy.observe(VIEW, observed(records, function_s))
        most.append(policy.plan(VIEW, 0.0).records_max)
    assert most == [16, 32, 32, 48, 43]


def bursts(n: int = 12_000) -> Arrivals:
    at_s = np.sort(np.random.default_rng(2).choice(4, n) + np.random.default_rng(3).random(n) / 2)
    return Arrivals.alike(at_s, "standard", "m")


MODEL = Model("m", (Profile.straight(1e-5, 1e-6, 256), Profile.straight(1e-5, 5e-7, 256)), (0.05, 0.05, 1.0))


@pytest.mark.parametrize("policy", [Triton(), BentoML(), Clipper()], ids=["triton", "bentoml", "clipper"])
def test_rivals_answer_everything(policy: Policy) -> None:
    result = simulate(bursts(4000), [MODEL], Machine(), policy)
    assert result.expired + result.late + int(result.in_time.sum()) == 4000


def test_tuned_settings_are_no_worse_than_the_defaults_or_any_window() -> None:
    def value(policy: Static) -> tuple[float, float]:
        return score(simulate(bursts(), [MODEL], Machine(), policy))

    best = value(tune(bursts(), [MODEL], Machine()))
    windows: Sequence[float] = (0.0, 0.005, 0.01, 0.02, 0.04)
    assert best >= max(value(Static((0.005, window_s, 0.1))) for window_s in windows)


def test_every_workload_has_a_trace_and_its_models() -> None:
    for each in compare.WORKLOADS:
        trace = each.trace(1000.0, 2.0, 1)
        assert [model.name for model in compare.models(trace.models)] == list(trace.models)
        assert each.generator in traces.GENERATORS


def test_the_table_of_policies() -> None:
    result = simulate(bursts(2000), [MODEL], Machine(), Static())
    lines = compare.table({"a": {"default": compare.figures(result), "tuned": compare.figures(result)}})
    assert lines[0] == "| trace | default | tuned |" and lines[2].startswith("| a | ")


def test_the_fitted_machine_is_near_what_was_measured() -> None:
    """All that is far off: windows of 0 and 5 ms, where single runs scatter the most."""
    calm = [each for each in measured.runs() if each.name.startswith("live") and each.windows_ms[1] >= 20]
    assert len(calm) == 4
    assert np.abs(fit.errors(calm, measured.machine(), 3.0)).max() < 0.5


def test_a_run_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text("[]")
    run = measured.Run("one", "mlp", "standard", 100.0, (5, 10, 100), p50_ms=9.0)
    for p50_ms in (8.0, 9.0):
        measured.keep(replace(run, p50_ms=p50_ms), path)
    (found,) = measured.runs(path)
    assert found.p50_ms == 9.0 and np.isnan(found.p95_ms) and found.windows_ms == (5, 10, 100)


def test_a_cluster_is_held_up_by_what_is_scarce() -> None:
    one = scale.point("heavy", 1, 1)
    assert one.limit == "kernels" and one.rate == pytest.approx(1 / measured.profile("heavy").row_s, rel=0.3)
    idle = scale.point("heavy", 4, 1)
    assert idle.limit == "partitions (kernels)" and idle.rate == pytest.approx(one.rate, rel=0.1)
