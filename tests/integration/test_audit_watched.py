"""What lies on the watched topics, on a real Postgres: stored once, or refused with a reason."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from audit.store import AuditWindow, Store
from schemas import framing
from streams.coalesce import pseudonyms
from tests.decisions import RECEIVED_MS, Row, batch_of
from tests.watched import KEY, TOPICS, Writing, fetch

AT = datetime.fromtimestamp(RECEIVED_MS / 1000, UTC)
TALLY = {
    "id": "t1", "kind": "decisions", "model": "m", "version": "1", "worker": "w", "priority": "bulk", "at": RECEIVED_MS,
    "received_at": RECEIVED_MS, "requests": 8, "outcomes": {"ok": 8}, "histograms": [], "latency": bytes(8),
    "groups": [{"attribute": "sex", "group": None, "decided": 8, "favourable": 3}], "releases": [],
    "cpu_s": 0.5, "gpu_s": 0.25, "energy_j": 2.0, "energy_source": "rapl", "cost": 0.125, "frozen": "f",
}  # fmt: skip
FAIRNESS = {
    "id": "f1", "model": "m", "version": "1", "attribute": "sex", "definition": "demographic_parity_difference",
    "epoch": 0, "since": RECEIVED_MS, "at": RECEIVED_MS, "decisions": 300, "coverage": 0.9, "value": 0.25, "ratio": 0.5,
    "limit": 0.05, "alpha": 0.01, "method": "sequence", "state": "warn",
}  # fmt: skip
DRIFT = {
    "id": "d1", "model": "m", "version": "1", "feature": "score", "edges": "e", "since": RECEIVED_MS, "at": RECEIVED_MS,
    "rows": 9, "reference_rows": 8, "psi": 0.5, "psi_limit": 1.0, "jensen_shannon": 0.1, "ks": 0.2, "wasserstein": 0.3,
    "adwin": 2, "state": "ok",
}  # fmt: skip
ALERT = {
    "id": "a1", "kind": "disparity", "severity": "warning", "model": "m", "version": "1", "message": "see",
    "action": "look", "taken": False, "evidence": '{"a": 1}', "at": RECEIVED_MS,
}  # fmt: skip
COMPLAINT = {"complaint_id": "c1", "request_id": "r1", "by": "person-17", "text": "unfair", "at": RECEIVED_MS}
LABEL = {"request_id": "r1", "outcome": "yes"}


@pytest.fixture
def write(store: Store) -> Writing:
    return Writing(store)


def decide(store: Store, *rows: Row) -> None:
    store.write(AuditWindow([("lrai.decisions", 0, None, 1)], [batch_of(rows)], [], []))


def control(kind: str, **given: Any) -> tuple[str, dict[str, Any]]:
    record = {"kind": kind, "model": "m", "version": "1", "by": "monitor", "reason": "why", "at": RECEIVED_MS}
    return "control", {**record, **given}


def group(name: str, decided: int, **given: Any) -> dict[str, Any]:
    return {
        "group": name, "decided": decided, "favourable": decided // 2, "rate": 0.5, "low": 0.25, "high": 0.75,
        "compared_with": "*", "difference": 0.0, "difference_low": -0.5, "difference_high": 0.5, "state": "ok", **given,
    }  # fmt: skip


def test_each_record_is_stored_once(url: str, write: Writing) -> None:
    fairness = {**FAIRNESS, "groups": [group("F", 100), group("M", 170)]}
    found = (("tally", TALLY), ("fairness", fairness), ("fairness", {**FAIRNESS, "id": "f2", "groups": []}),
             ("drift", DRIFT), ("alert", ALERT))  # fmt: skip
    assert write.records(*found) == ()
    assert write.records(*found) == ()
    columns = "id, at, requests, latency, outcomes, groups -> 0 -> 'decided', frozen"
    assert fetch(url, f"select {columns} from audit.tally_row") == [
        ("t1", AT, 8, [0, 0], {"ok": 8}, 8, "f")
    ]  # fmt: skip
    columns = 'id, "group", decided, favourable, rate, difference_low, group_state, state, value, "limit"'
    assert fetch(url, f"select {columns} from audit.fairness_window order by id, 2") == [
        ("f1", "F", 100, 50, 0.5, -0.5, "ok", "warn", 0.25, 0.05),
        ("f1", "M", 170, 85, 0.5, -0.5, "ok", "warn", 0.25, 0.05),
        ("f2", None, None, None, None, None, None, "warn", 0.25, 0.05),
    ]
    assert fetch(url, "select feature, psi, adwin, state from audit.drift_window") == [("score", 0.5, 2, "ok")]
    assert fetch(url, "select kind, evidence, taken from audit.alert") == [("disparity", {"a": 1}, False)]
    assert fetch(url, "select hour, requests, cost, cpu_s_per_request from audit.cost_by_model_hour") == [
        (AT, 8, 0.125, 0.0625)
    ]


def test_a_freeze_and_its_end_are_one_incident(url: str, write: Writing) -> None:
    freeze = control("freeze", id="z", evidence='{"rate": NaN, "name": "a\\u0000b"}')
    end = control("unfreeze", id="z", by="ann", reason="repaired", at=RECEIVED_MS + 1000)
    write.records(freeze, freeze)
    query = "select id, frozen_at, by, reason, evidence, unfrozen_at, unfrozen_by, unfreeze_reason from audit.incident"
    evidence = {"rate": "NaN", "name": "a\ufffdb"}
    assert fetch(url, query) == [("z", AT, "monitor", "why", evidence, None, None, None)]
    write.records(end, control("unfreeze", id="z", by="bob"), freeze)
    later = AT + timedelta(seconds=1)
    assert fetch(url, query) == [("z", AT, "monitor", "why", evidence, later, "ann", "repaired")]
    assert fetch(url, "select kind, control_id from audit.control_event order by \"offset\"") == [
        ("freeze", "z"), ("freeze", "z"), ("unfreeze", "z"), ("unfreeze", "z"), ("freeze", "z")
    ]  # fmt: skip


def test_an_unfreeze_without_id_or_without_its_freeze(url: str, write: Writing) -> None:
    write.records(control("freeze", id="z"), control("unfreeze", by="ann"))
    write.records(control("unfreeze", id="gone", by="bob"), control("freeze", id=None), control("variant"))
    query = "select id, by, unfrozen_by from audit.incident order by id"
    assert fetch(url, query) == [("gone", None, "bob"), ("lrai.control/0/3", "monitor", None), ("z", "monitor", "ann")]


def test_evidence_that_is_no_json_is_kept_as_text(url: str, write: Writing) -> None:
    deep = "[" * 100_000
    texts = ["no json", deep, '{"a": 1}', "", '"\\ud800"']
    write.records(*(("alert", {**ALERT, "id": str(i), "evidence": text}) for i, text in enumerate(texts)))
    found = fetch(url, "select id, evidence from audit.alert order by id")
    assert found == [("0", "no json"), ("1", deep), ("2", {"a": 1}), ("3", "")]
    assert fetch(url, 'select "offset" from audit.refused_record') == [(4,)]  # half a character


BAD = [
    ("labels", b"", "unknown_schema"),
    ("labels", b"no record", "unknown_schema"),
    ("labels", framing.header("label"), "undecodable"),
    ("labels", framing.header("label") + b"\xff" * 30, "undecodable"),
    ("labels", framing.encode("complaint", COMPLAINT), "wrong_topic"),
    ("labels", b"\0\0\0\0\x07abc", "unknown_schema"),
    ("labels", b"\0\0", "undecodable"),
    ("complaints", framing.encode("label", LABEL), "wrong_topic"),
    ("complaints", framing.encode("complaint", {**COMPLAINT, "action": "burned"}), "unknown_action"),
    ("complaints", framing.encode("complaint", {**COMPLAINT, "complaint_id": ""}), "text_out_of_bounds"),
    ("complaints", framing.encode("complaint", {**COMPLAINT, "complaint_id": "x" * 513}), "text_out_of_bounds"),
    ("complaints", framing.encode("complaint", {**COMPLAINT, "text": "a\0b"}), "text_out_of_bounds"),
    ("complaints", framing.encode("complaint", {**COMPLAINT, "text": "a" * 10_001}), "text_out_of_bounds"),
    ("tallies", framing.encode("tally", {**TALLY, "latency": b"abc"}), "wrong_length"),
    ("tallies", framing.encode("tally", {**TALLY, "at": 2**62}), "wrong_time"),
    ("tallies", framing.encode("tally", {**TALLY, "id": hashlib.shake_128(b"").hexdigest(9000)}), "54000"),
    ("alerts", framing.encode("tally", TALLY), "wrong_topic"),
    ("decisions", framing.encode("label", LABEL), "wrong_topic"),
    ("fairness", framing.encode("alert", ALERT), "wrong_topic"),
]


def test_what_is_no_row_is_refused_with_its_reason_and_its_neighbours_are_stored(url: str, write: Writing) -> None:
    for number, (topic, value, reason) in enumerate(BAD):
        good = [("tally", {**TALLY, "id": f"t{number}"}), ("alert", {**ALERT, "id": f"a{number}"})]
        first, last = [(TOPICS[name], framing.encode(name, record)) for name, record in good]
        assert write.values(first, (topic, value), last) == (f"lrai.{topic}",)
        newest = "select topic, reason, sha256, size, produced_at from audit.refused_record order by at desc limit 1"
        assert fetch(url, newest) == [(f"lrai.{topic}", reason, hashlib.sha256(value).digest(), len(value), AT)]
    stored = [(table, fetch(url, f"select count(*) from audit.{table}")) for table in ("tally_row", "alert")]
    assert stored == [("tally_row", [(len(BAD),)]), ("alert", [(len(BAD),)])]


def test_texts_that_postgres_cannot_hold_are_shown_as_replacement(url: str, write: Writing) -> None:
    alert, tally = {**ALERT, "message": "a\0b", "evidence": "\0"}, {**TALLY, "outcomes": {"\0": 1}}
    write.records(("alert", alert), ("tally", tally))
    assert fetch(url, "select message, evidence from audit.alert") == [("a\ufffdb", "\ufffd")]
    assert fetch(url, "select outcomes from audit.tally_row") == [({"\ufffd": 1},)]


def test_complaints_are_kept_with_the_answer_they_are_about(url: str, store: Store, write: Writing) -> None:
    decide(store, Row(0, request_id="r1", model="m", decision="no", subject=pseudonyms(KEY)("person-17")))
    unknown = {**COMPLAINT, "complaint_id": "c2", "request_id": "never", "model": "n", "by": None}
    acted = {"complaint_id": "c1", "action": "closed", "by": "ann", "text": "put right", "at": RECEIVED_MS + 5}
    noted = {**acted, "action": "noted", "at": None}
    write.records(("complaint", COMPLAINT), ("complaint", COMPLAINT), ("complaint", unknown))
    write.records(("complaint", acted), ("complaint", {**noted, "complaint_id": "c2"}))
    columns = "complaint_id, state, known, model, version, decision, text, opened_at, actions, closed_by, closing_text"
    assert fetch(url, f"select {columns} from audit.complaint_state order by 1") == [
        ("c1", "closed", True, "m", "1", "no", "unfair", AT, 1, "ann", "put right"),
        ("c2", "open", False, "n", None, None, "unfair", AT, 1, None, None),
    ]
    subject = "select d.request_id from audit.decision d join audit.complaint c on c.by_pseudonym = d.subject_pseudonym"
    assert fetch(url, subject) == [("r1",)]
    assert fetch(url, "select model, complaints, open, unknown_requests from audit.complaints_by_week order by 1") == [
        ("m", 1, 0, 0), ("n", 1, 1, 1)
    ]  # fmt: skip


def test_another_complaint_under_the_same_id_is_refused(url: str, write: Writing) -> None:
    write.records(("complaint", COMPLAINT), ("complaint", {**COMPLAINT, "text": "another"}))
    assert fetch(url, "select text from audit.complaint") == [("unfair",)]
    assert fetch(url, 'select "offset", reason from audit.refused_record') == [(1, "duplicate_id")]


def test_a_clock_that_is_ahead_does_not_date_a_complaint_or_label_into_the_future(url: str, write: Writing) -> None:
    ahead = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp() * 1000)
    for number, at in enumerate((ahead, 2**62, -(2**62), None)):
        complaint = {**COMPLAINT, "complaint_id": str(number), "at": at}
        write.records(("complaint", complaint), ("label", {**LABEL, "at": at}))
    for table in ("complaint", "label"):
        now = f"select count(*) from audit.{table} where at between now() - interval '1 minute' and now()"
        assert fetch(url, now) == [(4,)]
        stated = f'select extract(year from stated_at)::integer from audit.{table} order by "offset"'
        assert fetch(url, stated) == [(2200,), (None,), (None,), (None,)]


def test_what_people_say_cannot_be_changed(url: str, write: Writing) -> None:
    write.records(("label", LABEL), ("complaint", COMPLAINT), ("complaint", {**COMPLAINT, "action": "noted"}))
    for table in ("label", "complaint", "complaint_action"):
        for change in (f"update audit.{table} set at = now()", f"delete from audit.{table}"):
            with pytest.raises(psycopg.errors.RaiseException, match=rf"audit\.{table} is append-only"):
                fetch(url, change)
