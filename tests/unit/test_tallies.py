"""A window's tally: what a plain count over its decisions gives, whatever clients send."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.reference import Columns, Histogram, Reference, digest, make
from kernels.spec import ModelSpec
from schemas.requests import write_map
from streams.meters import SECONDS
from tests.samples import NOW_MS, encoded, request, spec, tensor, window
from tests.stages import Ends, Identity, actor, coalesce, through, topic_of
from workers.tallies import KNOWN_MAX, OTHER, ROWS_MAX, Groups

FAIR = spec(
    score=("value", 0), threshold=0.5, labels=("no", "yes"), favourable="yes", sensitive_features=("sex", "age"),
    intersections=(("sex", "age"),), groups_max=3,
)  # fmt: skip
Sent = tuple[dict[str, str], list[float], str | None]


def value(attributes: dict[str, str], scores: list[float], consent: str | None = None, **fields: Any) -> bytes:
    rows = np.repeat(np.array(scores, np.float32)[:, None], 3, axis=1)
    return encoded(request([tensor("features", rows)], attributes=attributes, consent_id=consent, **fields))


def tallied(sent: list[Sent], model: ModelSpec = FAIR, **given: Any) -> tuple[dict[str, Any], Ends]:
    ends = through([value(*each) for each in sent], coalesce([model]), [actor(model, Identity(), **given)])
    ends.check(len(sent))
    (found,) = ends.tallies
    return found, ends


def groups(found: dict[str, Any]) -> dict[tuple[str, str | None], tuple[int, int]]:
    return {(each["attribute"], each["group"]): (each["decided"], each["favourable"]) for each in found["groups"]}


def counted(ends: Ends, named: Groups) -> dict[tuple[str, str | None], tuple[int, int]]:
    """The same from the rows of `audit.decision`, one by one."""
    decided: Counter[tuple[str, str | None]] = Counter()
    favourable: Counter[tuple[str, str | None]] = Counter()
    for (row,) in ends.decisions.values():
        if row["decision"] is None:
            continue
        own = {name: row["attributes"].get(name) or None for name in ("sex", "age")}
        bounded = {name: own[name] if own[name] in (None, *seen(named, name)) else OTHER for name in own}
        both = None if None in bounded.values() else f"{bounded['sex']}+{bounded['age']}"
        bounded["sex+age"] = both if both in (None, *seen(named, "sex+age")) else OTHER
        for key in bounded.items():
            decided[key] += 1
            favourable[key] += row["decision"] == "yes"
    return {key: (decided[key], favourable[key]) for key in decided}


def seen(named: Groups, attribute: str) -> set[str]:
    return named._named[named.attributes.index(attribute)]


ATTRIBUTES = st.dictionaries(st.sampled_from(("sex", "age", "other")), st.sampled_from(("F", "M", "x", "y", "", "ü")))
SENT = st.tuples(
    ATTRIBUTES, st.lists(st.sampled_from((0.1, 0.9)), min_size=1, max_size=2), st.sampled_from((None, "c"))
)


@settings(max_examples=80, deadline=None)
@given(st.lists(SENT, min_size=1, max_size=30))
def test_groups_are_those_of_a_plain_count(sent: list[Sent]) -> None:
    lane = actor(FAIR, Identity())
    ends = through([value(*each) for each in sent], coalesce([FAIR]), [lane])
    (found,) = ends.tallies
    assert groups(found) == counted(ends, lane.groups)
    assert all(len(each) <= FAIR.groups_max for each in lane.groups._named)
    assert found["requests"] == sum(found["outcomes"].values()) == len(sent)
    assert found["consent_missing"] == sum(consent is None for _, _, consent in sent)
    for attribute in lane.groups.attributes:
        rows = [counts for (name, _), counts in groups(found).items() if name == attribute]
        assert sum(decided for decided, _ in rows) == sum(len(set(scores)) == 1 for _, scores, _ in sent)


def test_what_is_in_a_tally() -> None:
    sent: list[Sent] = [({"sex": "F", "age": "old"}, [0.9], "c"), ({"sex": "M"}, [0.1], None), ({}, [0.9, 0.1], None)]
    found, _ = tallied(sent)
    assert (found["kind"], found["model"], found["version"]) == ("decisions", "net", "1")
    assert found["id"] == f"work-net-0/{topic_of(FAIR)}/0/0"
    assert (found["worker"], found["priority"]) == ("work-net-0", "standard")
    assert found["received_at"] == NOW_MS - 20
    assert groups(found) == {
        ("sex", "F"): (1, 1), ("age", "old"): (1, 1), ("sex+age", "F+old"): (1, 1),
        ("sex", "M"): (1, 0), ("age", None): (1, 0), ("sex+age", None): (1, 0),
    }  # fmt: skip
    (release,) = found["releases"]
    assert (release["variant"], release["certificate"], release["requests"], release["rows"]) == (
        "original",
        None,
        3,
        4,
    )
    assert release["execution_s"] > 0
    assert (found["frozen"], found["histograms"], found["outcomes"]) == (None, [], {"ok": 3})
    latency = np.frombuffer(found["latency"], "<i4")
    assert len(latency) == len(SECONDS) + 1
    assert latency.sum() == 3


def test_a_threshold_without_labels_decides_0_or_1() -> None:
    bare = replace(FAIR, labels=None, favourable="0", intersections=())
    found, _ = tallied([({"sex": "F"}, [0.1], None), ({"sex": "F"}, [0.9], None)], bare)
    assert groups(found)["sex", "F"] == (2, 1)


def test_without_sensitive_features_or_favourable_there_are_no_groups() -> None:
    for model in (replace(FAIR, sensitive_features=(), intersections=()), replace(FAIR, favourable=None)):
        found, _ = tallied([({"sex": "F"}, [0.9], None)], model)
        assert (found["groups"], found["requests"], found["outcomes"]) == ([], 1, {"ok": 1})
        assert found["cpu_s"] >= 0


def test_the_groups_of_clients_are_bounded_and_the_reference_group_has_its_place() -> None:
    model = replace(FAIR, reference_group={"sex": "M"}, intersections=())
    named = Groups(model)
    sent = [named.of(write_map({"sex": f"invented {i}"}))[0] for i in range(3 * KNOWN_MAX // 2)]
    assert sent[:3] == ["invented 0", "invented 1", OTHER]
    assert set(sent[3:]) == {OTHER}
    assert named.of(write_map({"sex": "M"}))[0] == "M"
    assert len(named._known) <= KNOWN_MAX
    named.of(write_map({"sex": "M", "x": "long" * 400}))
    assert not any(len(each) > 1600 for each in named._known)


def test_those_that_failed_are_outcomes_and_not_decisions() -> None:
    values = [value({"sex": "F"}, [0.9]), value({"sex": "F"}, [0.9], deadline=NOW_MS + 1)]
    ends = through(values, coalesce([FAIR]), [actor(FAIR, Identity())], later_ms=NOW_MS + 10)
    (found,) = ends.tallies
    assert found["outcomes"] == {"ok": 1, "deadline_expired": 1}
    assert groups(found)["sex", "F"] == (1, 1)
    assert found["releases"][0]["requests"] == 1


REFERENCE = make(FAIR, [{"features": np.random.default_rng(1).normal(size=(500, 3)).astype("f4")}],
                 lambda group: {"value": group["features"]})  # fmt: skip


def plain(histogram: Histogram, values: np.ndarray[Any, Any]) -> list[int]:
    """Histogram, number by number."""
    counts = [0] * (len(histogram.edges) + 1)
    for each in values.tolist():
        if each == each:
            counts[sum(edge <= each for edge in histogram.edges)] += 1
    return counts


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from((-9.0, -0.3, 0.0, 0.2, float("nan"), 9.0)), min_size=1, max_size=40))
def test_histograms_are_those_of_a_plain_count(scores: list[float]) -> None:
    model = replace(FAIR, allow_nan=True)
    found, _ = tallied([({}, [each], None) for each in scores], model, reference=REFERENCE)
    values = np.array(scores, np.float32).astype(float)
    assert [each["feature"] for each in found["histograms"]] == ["features[0]", "features[1]", "features[2]", "score"]
    for each, stated in zip(found["histograms"], REFERENCE.histograms, strict=True):
        assert each["edges"] == stated.sha256 == digest(stated.edges)
        assert np.frombuffer(each["counts"], "<i4").tolist() == plain(stated, values)
        assert each["missing"] == np.isnan(values).sum()
        assert np.isclose(each["sum"], np.nansum(values))
        assert np.isclose(each["sum_squares"], np.nansum(values**2))


def test_a_large_window_is_sampled_evenly_and_windows_close_behind_are_not_looked_at() -> None:
    lane = actor(FAIR, Identity(), reference=REFERENCE)
    stage = coalesce([FAIR])
    n = 3 * ROWS_MAX
    ends = through([value({}, [i / n]) for i in range(n)], stage, [lane])
    (found,) = ends.tallies
    for each in found["histograms"]:
        assert np.frombuffer(each["counts"], "<i4").sum() == ROWS_MAX
        assert abs(each["sum"] / ROWS_MAX - 0.5) < 0.01
    lane.tallying._look_ms = 2**62  # type: ignore[union-attr]
    again = [each for topic, each in ends.batches if topic == topic_of(FAIR)]
    more = Ends()
    more.add(lane(window(again, topic=topic_of(FAIR), start=9), NOW_MS).blocks)
    assert more.tallies[0]["histograms"] == []
    assert more.tallies[0]["requests"] == n


def test_columns_are_taken_evenly_from_wide_inputs() -> None:
    names = Columns(spec(features=784)).names
    assert len(names) <= 64
    assert names[:2] == ("features[0]", "features[13]")
    wide = spec(features=784)
    taken = Columns(wide).take({"features": np.arange(2 * 784, dtype="f4").reshape(2, 784)})
    assert taken[0, 1] == 13
    assert Reference(1, "", 0, ()).features == ()
