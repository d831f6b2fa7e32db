"""What the counts give reason to tell: records of each test, a freeze, alerts; nothing twice, nothing while frozen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from audit.complaint_counts import WEEK_MS, Complaints
from audit.counts import DAY_MS, Counts
from audit.warnings import Rules
from audit.watching import Policy, Reference, Told, Watch
from kernels.spec import ModelSpec
from schemas import framing
from streams.meters import SECONDS
from tests.produced_tallies import AT_MS, histogram, tally
from tests.unit.test_counts import complaint

SPEC = ModelSpec("net", "1", "", "", (), (), favourable="yes", sensitive_features=("sex",), disparity_limit=0.05)
POLICY = Policy(latency_edges=SECONDS)
EQUAL = {"sex": {"F": (1000, 300), "M": (1000, 305)}}
UNEQUAL = {"sex": {"F": (1000, 300), "M": (1000, 450)}}


def watch(spec: ModelSpec = SPEC, policy: Policy = POLICY) -> Watch:
    score = Reference("e", (0.0, 1.0), (0, 1000, 0), 0, (0.5, 0.1))
    return Watch({("net", "1"): spec}, {("net", "1"): {"score": score}}, policy)


def counted(*tallies: dict[str, Any]) -> Counts:
    found = Counts("net", "1", scales={"score": (0.5, 0.1)})
    for offset, each in enumerate(tallies):
        assert found.add(each, "t/0", offset) == ""
    return found


def kinds(told: list[Told]) -> list[str]:
    for each in told:
        name, record = framing.decode(framing.encode(each.kind, each.record))
        assert (name, record["id"]) == (each.kind, each.record["id"])
    return [each.kind if each.kind != "alert" else each.record["kind"] for each in told]


def test_equal_rates_are_told_once_a_second() -> None:
    watching, counts = watch(), counted(tally(EQUAL))
    (told,) = watching.look(counts, False, 0)
    record = told.record
    assert (told.key, record["state"], record["decisions"]) == ("net/1/sex/demographic_parity_difference", "ok", 2000)
    assert [(each["group"], each["decided"], each["favourable"]) for each in record["groups"]] == [
        ("F", 1000, 300), ("M", 1000, 305)]  # fmt: skip
    assert watching.look(counts, False, 2000) == []  # nothing new
    counts.add(tally(EQUAL), "t/0", 1)
    assert watching.look(counts, False, 999) == []
    (later,) = watching.look(counts, False, 1000)
    assert later.record["decisions"] == 4000 and later.record["id"] != record["id"]


def test_an_established_disparity_freezes_first_and_at_once() -> None:
    watching, counts = watch(), counted(tally(EQUAL))
    watching.look(counts, False, 0)
    counts.add(tally(UNEQUAL), "t/0", 1)
    counts.add(tally(UNEQUAL), "t/0", 2)
    told = watching.look(counts, False, 1)
    assert kinds(told) == ["control", "frozen", "fairness", "disparity"]
    control, fairness = told[0].record, told[2].record
    assert (told[0].key, control["kind"], control["by"], fairness["state"]) == (
        "freeze/net/1",
        "freeze",
        "monitor",
        "alarm",
    )
    assert json.loads(control["evidence"]) == fairness
    again = watch().look(counts, False, 5)[0].record
    assert again == control | {"at": 5}  # another process, or the same after a crash, freezes under the same id
    assert kinds(watch().look(counts, True, 5)) == ["fairness", "disparity"]


@pytest.mark.parametrize("frozen", [False, True])
def test_never_freezes_where_the_owner_says_so(frozen: bool) -> None:
    spec = replace(SPEC, freeze_on="never")
    assert kinds(watch(spec).look(counted(tally(UNEQUAL)), frozen, 0)) == ["fairness", "disparity"]


def test_the_same_evidence_cannot_freeze_again_after_an_unfreeze() -> None:
    watching, counts = watch(), counted(tally(UNEQUAL))
    first = watching.look(counts, False, 0)[0].record
    counts.begin_epoch(first["id"])
    assert watching.look(counts, False, 1) == []
    counts.add(tally(UNEQUAL), "t/0", 1)
    second = watching.look(counts, False, 2)[0].record
    assert second["kind"] == "freeze" and second["id"] != first["id"]
    assert json.loads(second["evidence"])["epoch"] == 1


def test_labels_give_odds_with_their_coverage() -> None:
    labels = tally({"sex": {"F": (500, 250, 250, 240), "M": (500, 250, 250, 60)}}, kind="labels")
    told = watch().look(counted(tally(EQUAL), labels), True, 0)
    found = {each.record["definition"]: each.record for each in told if each.kind == "fairness"}
    odds = found["equal_opportunity_difference"]
    assert (odds["coverage"], odds["state"], odds["value"]) == (0.5, "alarm", pytest.approx(0.72))
    assert found["equalized_odds_difference"]["state"] == "alarm"


def test_labels_of_decisions_before_an_unfreeze_do_not_freeze_again_nor_cover() -> None:
    biased = {"sex": {"F": (500, 250, 250, 240), "M": (500, 250, 250, 60)}}
    counts = counted(tally(EQUAL), tally(biased, kind="labels"))
    first = watch().look(counts, False, 0)[0].record
    assert (first["kind"], json.loads(first["evidence"])["definition"]) == ("freeze", "equalized_odds_difference")
    counts.begin_epoch(first["id"])
    counts.add(tally({"sex": {"F": (10, 3), "M": (10, 3)}}), "t/0", 2)
    more = {"sex": {"F": (900, 450, 450, 440), "M": (900, 450, 450, 60)}}  # came after it
    assert counts.add(tally(more, kind="labels"), "t/0", 3) == "other_epoch"
    few = {"sex": {"F": (2, 1, 1, 1), "M": (3, 1, 1, 1)}}
    counts.add(tally(few, kind="labels", ended=first["id"]), "t/0", 4)
    told = [each.record for each in watch().look(counts, False, 1)]
    odds = [each for each in told if each.get("definition", "").startswith("equal")]
    assert [(each["state"], each["epoch"], each["coverage"]) for each in odds] == [("insufficient", 1, 0.25)] * 2
    assert not any(each.get("kind") == "freeze" for each in told)


def test_the_level_is_shared_by_the_attributes_and_each_has_its_reference() -> None:
    spec = replace(
        SPEC, sensitive_features=("sex", "age"), intersections=(("sex", "age"),), reference_group={"sex": "M"}
    )
    groups = {**EQUAL, "age": {"old": (9, 1)}, "sex+age": {"F+old": (9, 1)}, "shoe": {"big": (1, 1)}}
    found = {told.record["attribute"]: told.record for told in watch(spec).look(counted(tally(groups)), False, 0)}
    assert set(found) == {"sex", "age", "sex+age"}  # what the owner does not name is not judged
    assert {each["alpha"] for each in found.values()} == {0.01 / 3}
    assert {each["compared_with"] for each in found["sex"]["groups"]} == {"M"}
    assert found["age"]["state"] == "insufficient"


def test_missing_and_too_many_groups_are_alerts() -> None:
    groups = {"sex": {"F": (10, 3), None: (90, 30), "(other)": (1, 0)}}
    watching, counts = watch(), counted(tally(groups))
    alerts = [told.record for told in watching.look(counts, False, 0) if told.kind == "alert"]
    assert [each["kind"] for each in alerts] == ["attributes_missing"] * 2
    assert "11% of 101 decisions carry the attribute sex" in alerts[0]["message"]
    assert kinds(watching.look(counts, False, 9999)) == []


def test_drift() -> None:
    stable = [tally({}, histograms=[histogram([0, 500, 0])]) for _ in range(4)]
    watching, counts = watch(), counted(*stable)
    (told,) = watching.look(counts, False, AT_MS)
    assert (told.kind, told.key, told.record["state"], told.record["rows"]) == ("drift", "net/1/score", "ok", 500)
    for offset in range(4, 8):
        counts.add(tally({}, histograms=[histogram([500, 0, 0])]), "t/0", offset)
    assert kinds(watching.look(counts, False, AT_MS + 1)) == []  # once a second
    told, alert = watching.look(counts, False, AT_MS + 1000)
    assert (told.record["state"], alert.record["severity"]) == ("alarm", "critical")


def test_early_warnings_over_days() -> None:
    slow, fast = [[0] * 15, [0] * 15]
    slow[8], fast[3] = 100, 100
    days = [fast] * 4 + [slow] * 3 + [fast]
    tallies = [
        tally({}, at=AT_MS + day * DAY_MS, requests=100, latency=np.array(each, "<i4").tobytes())
        for day, each in enumerate(days)
    ]
    watching = watch()
    counts = counted(*tallies)
    told = watching.look(counts, False, 0)
    assert sorted(each.record["kind"] for each in told) == ["latency"]  # six whole days are not seven
    assert "re-tune" in told[0].record["action"]
    counts.add(tally({}, at=AT_MS + 9 * DAY_MS), "t/0", 99)
    assert [each.record["kind"] for each in watching.look(counts, False, 0)] == ["utilisation"]


def test_complaints_in_a_week() -> None:
    watching, found = watch(policy=Policy(rules=Rules(complaints_max=3))), Complaints()
    for number in range(3):
        found.add(complaint(f"c{number}", AT_MS), "c/0", number, AT_MS)
    assert watching.complaints(found) == []
    found.add(complaint("last", AT_MS + 1, None), "c/0", 3, AT_MS + 1)
    (told,) = watching.complaints(found)
    assert (told.record["kind"], told.record["model"]) == ("complaints", None)
    assert watching.complaints(found) == []
    for number in range(4):
        found.add(complaint(f"d{number}", AT_MS + WEEK_MS, "net"), "c/0", 4 + number, AT_MS + WEEK_MS)
    (told,) = watching.complaints(found)
    assert told.record["model"] == "net"


def test_an_unknown_release_is_not_judged() -> None:
    other = Counts("net", "2")
    other.add(tally(UNEQUAL, version="2"), "t/0", 0)
    assert watch().look(other, False, 0) == []
