"""Counts of a release: they add up in any order, and replays, duplicates and former epochs change nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.complaint_counts import COMPLAINTS_MAX, WEEK_MS, Complaints
from audit.counts import DAY_MS, DAYS_KEPT, GROUPS_MAX, RECENT_IDS, Counts
from audit.daily import latency_p95, quantile, utilisation, whole_days
from schemas import framing
from schemas.errors import BadRecord
from tests.produced_tallies import AT_MS, histogram, tally

SCALES = {"score": (0.5, 0.25)}
COUNT = st.integers(0, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
WINDOWS = st.lists(st.dictionaries(st.sampled_from(["F", "M", "", None]), COUNT), max_size=20)


def counts() -> Counts:
    return Counts("net", "1", scales=SCALES)


def added(tallies: Sequence[tuple[int, int, dict[str, Any]]]) -> Counts:
    """Of (partition, offset, tally)."""
    found = counts()
    for partition, offset, each in tallies:
        found.add(each, f"t/{partition}", offset)
    return found


def plain(found: Counts) -> dict[str, Any]:
    """All but what says how it came to be."""
    said: dict[str, Any] = json.loads(found.encode())
    return {key: value for key, value in said.items() if key not in ("recent", "offsets")}


@given(WINDOWS, st.randoms(use_true_random=False))
def test_they_add_up_over_partitions_in_any_order(
    windows: list[dict[str | None, tuple[int, int]]], rng: random.Random
) -> None:
    tallies = [tally({"sex": each}, at=AT_MS + number) for number, each in enumerate(windows)]
    places = [rng.randrange(3) for _ in tallies]
    there = [
        (place, places[:number].count(place), each)
        for number, (place, each) in enumerate(zip(places, tallies, strict=True))
    ]
    other = sorted(there, key=lambda each: (each[0], each[1]))
    assert plain(added(there)) == plain(added(other))
    found = added(there)
    for group in ("F", "M", ""):
        sums = [sum(each.get(group, (0, 0))[k] for each in windows) for k in (0, 1)]
        assert found.groups.get("sex", {}).get(group, [0, 0]) == sums
    assert found.missing.get("sex", [0, 0]) == [sum(each.get(None, (0, 0))[k] for each in windows) for k in (0, 1)]


@settings(deadline=None)  # river is imported in the first
@given(WINDOWS, st.integers(0, 20), st.integers(0, 20))
def test_replays_and_restarts_change_nothing(
    windows: list[dict[str | None, tuple[int, int]]], cut: int, back: int
) -> None:
    """Killed after `cut` tallies; the last `back` of them are read again."""
    there = [
        (0, number, tally({"sex": each}, histograms=[histogram([1, 2, 3])])) for number, each in enumerate(windows)
    ]
    found = Counts.decode(added(there[:cut]).encode(), SCALES)
    for _, offset, each in there[max(0, cut - back) :]:
        found.add(each, "t/0", offset)
    assert found.encode() == added(there).encode()


def test_what_is_produced_twice_counts_once() -> None:
    found, once = counts(), tally({"sex": {"F": (10, 5)}})
    assert [found.add(once, "t/0", 0), found.add(once, "t/0", 1), found.add(once, "t/1", 0)] == [
        "",
        "repeated",
        "repeated",
    ]
    assert found.groups == {"sex": {"F": [10, 5]}}
    for offset in range(2, 2 + 2 * RECENT_IDS):
        found.add(tally({}), "t/0", offset)
    assert len(found.recent) == RECENT_IDS


def test_an_epoch_starts_anew_and_what_was_answered_under_its_freeze_is_not_its_own() -> None:
    found = counts()
    found.add(tally({"sex": {"F": (10, 5)}}), "t/0", 0)
    found.add(tally({"sex": {"F": (4, 2, 2, 1)}}, kind="labels"), "t/0", 1)
    for _ in range(2):
        found.begin_epoch("f1")
    assert (found.epoch, found.groups, found.labelled(), found.since) == (1, {}, {}, 0)
    assert found.add(tally({"sex": {"F": (1, 1)}}, frozen="f1"), "t/0", 2) == "former_epoch"
    found.add(tally({"sex": {"F": (7, 6)}}, at=AT_MS + 9), "t/0", 3)
    found.add(tally({"sex": {"F": (5, 3, 2, 1)}}, kind="labels", ended="f1"), "t/0", 4)
    assert (found.groups, found.labelled(), found.since) == (
        {"sex": {"F": [7, 6]}},
        {"sex": {"F": [5, 3, 2, 1]}},
        AT_MS + 9,
    )
    found.begin_epoch("f2")
    assert found.epoch == 2 and Counts.decode(found.encode(), SCALES).encode() == found.encode()


def test_label_totals_replace_and_the_one_with_more_wins() -> None:
    found = counts()
    for offset, total in enumerate((5, 9, 7, 9)):
        why = found.add(tally({"sex": {"F": (total, 3, 2, 1)}}, kind="labels"), "t/0", offset)
        assert why == ("older_labels" if total == 7 else "")
    assert found.labelled() == {"sex": {"F": [9, 3, 2, 1]}}


def labels(total: int, ended: str | None) -> dict[str, Any]:
    return tally({"sex": {"F": (total, 3, 2, 1)}}, kind="labels", ended=ended)


def test_totals_of_labels_count_in_the_epoch_that_they_name() -> None:
    found = counts()
    told = [(5, None), (4, "f1"), (9, None)]
    assert [found.add(labels(*each), "t/0", i) for i, each in enumerate(told)] == ["", "other_epoch", ""]
    assert found.labelled()["sex"]["F"][0] == 9
    found = Counts.decode(found.encode(), SCALES)
    found.begin_epoch("f1")  # the store knew of it earlier
    assert found.labelled() == {"sex": {"F": [4, 3, 2, 1]}}
    late = [(100, None), (6, "f1"), (5, "f1")]
    why = [found.add(labels(*each), "t/0", 3 + i) for i, each in enumerate(late)]
    assert why == ["other_epoch", "", "older_labels"]
    assert found.labelled()["sex"]["F"][0] == 6
    found.begin_epoch("f2")
    assert found.labelled() == {}


def test_what_other_epochs_say_of_labels_is_bounded_and_leaves_the_own() -> None:
    found = counts()
    found.add(labels(5, None), "t/0", 0)
    for number in range(100):
        found.add(labels(4, f"f{number}"), "t/0", 1 + number)
    assert list(found.labels) == ["", "f97", "f98", "f99"] and found.labelled()["sex"]["F"][0] == 5


@pytest.mark.parametrize("wrong", [
    {"kind": "guesses"}, {"latency": b"123"}, {"requests": -1}, {"at": -1},
    {"histograms": [histogram([1, -2])]}, {"histograms": [histogram([1]) | {"counts": b"1"}]},
    {"groups": tally({"sex": {"F": (3, 4)}})["groups"]}, {"groups": tally({"sex": {"F": (3, -1)}})["groups"]},
    {"kind": "labels", "groups": tally({"sex": {"F": (3, 2, 1, 2)}})["groups"]},
])  # fmt: skip
def test_what_cannot_be_is_refused_whole(wrong: dict[str, Any]) -> None:
    found, before = counts(), counts().encode()
    with pytest.raises(BadRecord):
        found.add({**tally({"sex": {"F": (3, 2)}}), **wrong}, "t/0", 0)
    assert found.encode() == before


def test_bounds_of_groups_and_days() -> None:
    found = counts()
    for offset in range(GROUPS_MAX + 5):
        found.add(tally({"sex": {f"g{offset}": (1, 0)}}, at=AT_MS + offset * DAY_MS), "t/0", offset)
    assert found.groups["sex"]["(other)"] == [5, 0] and len(found.groups["sex"]) == GROUPS_MAX + 1
    assert len(found.days) == DAYS_KEPT


def test_drift_is_of_the_newest_rows_and_other_edges_start_anew() -> None:
    found = counts()
    for offset in range(100):
        found.add(
            tally(
                {}, at=AT_MS + offset, histograms=[histogram([0, 60, 40] if offset < 50 else [100, 0, 0], missing=1)]
            ),
            "t/0",
            offset,
        )
    *newest, missing = found.features["score"].recent.counts.tolist()
    assert newest[1:] == [0, 0] and newest[0] >= 500 and missing == newest[0] // 100
    assert found.features["score"].begun > AT_MS + 50
    assert found.features["score"].means is not None
    found.add(tally({}, histograms=[histogram([1, 1], edges="other")]), "t/0", 100)
    assert found.features["score"].recent.counts.tolist() == [1, 1, 0]


def test_days() -> None:
    found = counts()
    for day in (0, 1, 3, 4):
        latency = np.array([0, 90 if day == 1 else 10, 10], "<i4").tobytes()
        found.add(tally({}, at=day * DAY_MS, requests=100, latency=latency), "t/0", day)
    whole = whole_days(found.days, 4)
    assert list(whole) == [1, 2, 3] and whole[2].requests == 0
    assert utilisation(whole) == {1: 1 / 1024 / 86400, 2: 0.0, 3: 1 / 1024 / 86400}
    p95 = latency_p95(whole, [1.0, 2.0])
    assert list(p95) == [1, 3] and p95[1] == 2.0  # the last edge for what lies above


@given(st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any), st.floats(0.01, 1))
def test_quantiles_lie_in_the_bin_that_holds_them(numbers: list[int], share: float) -> None:
    edges = [1.0, 2.0, 4.0]
    found = quantile(numbers, edges, share)
    bin_ = int(np.searchsorted(np.cumsum(numbers), share * sum(numbers) * (1 - 1e-12)))
    low, high = ([0.0, *edges, 4.0][bin_], [*edges, 4.0][bin_])
    assert low - 1e-9 <= found <= high + 1e-9


def complaint(name: str, at: int | None, model: str | None = "net", action: str = "opened") -> dict[str, Any]:
    record = {
        "complaint_id": name,
        "action": action,
        "request_id": "r",
        "model": model,
        "by": None,
        "text": "unfair",
        "at": at,
    }
    return framing.decode(framing.encode("complaint", record))[1]


def test_complaints_are_counted_once() -> None:
    found = Complaints()
    assert found.add(complaint("a", None), "c/0", 0, AT_MS) == ""
    assert found.add(complaint("a", None), "c/0", 0, AT_MS) == "repeated"
    assert found.add(complaint("a", None), "c/0", 1, AT_MS) == "repeated"
    assert found.add(complaint("a", None, action="closed"), "c/0", 2, AT_MS) == "action"
    assert found.add(complaint("b", AT_MS + 10**9, None), "c/0", 3, AT_MS + 5) == ""  # a clock that is ahead
    assert found.newest_ms == AT_MS + 5 and Complaints.decode(found.encode()) == found
    for number in range(COMPLAINTS_MAX + 10):
        found.add(complaint(f"n{number}", None), "c/0", 10 + number, AT_MS + 3 * WEEK_MS)
    assert len(found.opened["net"]) == COMPLAINTS_MAX
