"""Labels: judged in their order, counted as an oracle counts them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from audit import labels
from audit.labelling import tally
from audit.labels import OTHER, Decided, GroupKey, Label, LabelCount, Pair, Setting, Totals, Verdict, count
from schemas import framing

RELEASE = ("m", "1")
SETTING = Setting("yes", ("no", "yes"), ("sex", "age"), (("sex", "age"),), 64, {})
SETTINGS = {RELEASE: SETTING}


def label(number: int = 1, request_id: str = "r", model: str | None = None, outcome: str = "yes") -> Label:
    return Label(number, request_id, model, outcome)


def decided(offset: int = 0, decision: str | None = "yes", **given: Any) -> Decided:
    fields = {"model": "m", "version": "1", "attributes": {}, "label": None, **given}
    return Decided((1, 0, offset), None, decision=decision, **fields)


def one(found: list[Decided], outcome: str = "yes") -> Verdict:
    return labels.judge([label(outcome=outcome)], {1: found}, SETTINGS)[0]


def test_a_label_joins_its_decisions() -> None:
    found = [decided(0), decided(1, None), decided(2, version="2")]
    assert one(found) == Verdict("joined", None, (found[0], found[2]))


def test_a_label_of_an_unknown_request_waits_and_its_repetition_does_not() -> None:
    found = [label(1), label(2), label(3, outcome="no"), label(4, model="m")]
    assert [each.state for each in labels.judge(found, {}, SETTINGS)] == ["pending", "duplicate", "pending", "pending"]


def test_why_labels_are_refused() -> None:
    assert "without a decision" in str(one([decided(decision=None)]).reason)
    assert "none of the labels" in str(one([decided()], "perhaps").reason)
    assert "name the model" in str(one([decided(), decided(1, model="n")]).reason)
    assert "says otherwise" in str(one([decided(label="no")]).reason)
    assert "unique" in str(one([decided(i) for i in range(labels.DECISIONS_MAX + 1)]).reason)
    assert one([decided(label="yes")]).state == "duplicate"


def test_the_first_label_holds_also_among_those_that_are_judged_together() -> None:
    given = [label(1), label(2, outcome="no"), label(3)]
    found = {each.id: [decided()] for each in given}
    assert [each.state for each in labels.judge(given, found, SETTINGS)] == ["joined", "refused", "duplicate"]


def test_a_label_joins_what_an_equal_one_left() -> None:
    free = decided(1)
    assert one([decided(0, label="yes"), free]) == Verdict("joined", None, (free,))


def test_any_outcome_will_do_where_no_labels_are_stated() -> None:
    assert labels.judge([label(outcome="7")], {1: [decided()]}, {})[0].state == "joined"


_TEXTS = st.sampled_from(["F", "M", "", "x"])
_PAIRS = st.builds(
    Pair,
    model=st.just("m"),
    version=st.sampled_from(["1", "unknown"]),
    decision=st.sampled_from(["yes", "no"]),
    attributes=st.dictionaries(st.sampled_from(["sex", "age", "other"]), _TEXTS),
    outcome=st.sampled_from(["yes", "no"]),
    n=st.integers(1, 3),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_PAIRS, max_size=20))
def test_the_totals_are_those_of_a_count_one_by_one(pairs: list[Pair]) -> None:
    expected: dict[str, Counter[GroupKey]] = {name: Counter() for name in LabelCount._fields}
    for pair in pairs:
        for attribute, group in _slowly(pair.attributes) if pair.version == "1" else []:
            key = GroupKey("m", "1", attribute, group)
            expected["decided"][key] += pair.n
            expected["favourable"][key] += pair.n * (pair.decision == "yes")
            expected["positive"][key] += pair.n * (pair.outcome == "yes")
            expected["true_positive"][key] += pair.n * (pair.decision == pair.outcome == "yes")
    found = count(pairs, SETTINGS, {})
    keys = expected["decided"]
    assert found == {key: LabelCount(*(expected[name][key] for name in LabelCount._fields)) for key in keys}


def _slowly(attributes: dict[str, str]) -> list[tuple[str, str | None]]:
    sex, age = attributes.get("sex") or None, attributes.get("age") or None
    return [("sex", sex), ("age", age), ("sex+age", f"{sex}+{age}" if sex and age else None)]


def test_groups_beyond_the_bound_are_counted_together() -> None:
    few = {RELEASE: Setting("yes", None, ("a",), (), 3, {"a": "reference"})}
    pairs = [Pair("m", "1", "yes", {"a": str(i)}, "yes") for i in range(5)]
    more = count(pairs, few, {("m", "1", "a"): {"known"}})
    assert {key.group: number.decided for key, number in more.items()} == {"0": 1, OTHER: 4}
    reference = [Pair("m", "1", "yes", {"a": each}, "yes") for each in ("reference", "known", "0")]
    assert {key.group for key in count(reference, few, {("m", "1", "a"): {"known", "0", OTHER}})} == {
        "reference", "known", "0"
    }  # fmt: skip


def test_a_model_without_a_favourable_decision_has_no_totals() -> None:
    assert count([Pair("m", "1", "yes", {}, "yes")], {RELEASE: Setting(None, None, ("a",), (), 3, {})}, {}) == {}


def test_the_tally_of_labels_can_be_written_and_its_id_says_how_many() -> None:
    women, all_of_them = LabelCount(3, 2, 1, 1), LabelCount(7, 2, 1, 1)
    totals = {
        GroupKey(*RELEASE, "sex", "F"): women,
        GroupKey(*RELEASE, "sex", None): LabelCount(4, 0, 0, 0),
        GroupKey(*RELEASE, "age", None): all_of_them,
    }
    name, record = framing.decode(framing.encode("tally", tally(RELEASE, Totals(None, totals), "w", 5)))
    assert (name, record["id"], record["kind"], record["ended"]) == ("tally", "m/1/7", "labels", None)
    assert record["groups"][0] == {
        "attribute": "sex", "group": "F", "decided": 3, "favourable": 2, "positive": 1, "true_positive": 1
    }  # fmt: skip


def test_the_tally_of_labels_names_the_freeze_that_was_ended_last() -> None:
    _, record = framing.decode(framing.encode("tally", tally(RELEASE, Totals("f1", {}), "w", 5)))
    assert (record["id"], record["ended"], record["groups"]) == ("m/1/f1/0", "f1", [])
