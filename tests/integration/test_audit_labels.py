"""Labels meet decisions on a real Postgres; the totals equal what SQL counts over the rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest
from confluent_kafka import KafkaError

from audit import sql
from audit.joining import LABELS_MAX
from audit.labelling import Labelling
from audit.store import AuditWindow, Store
from kernels.spec import ModelSpec
from schemas import framing
from schemas.errors import StoreUnavailable
from streams.control import FREEZE, UNFREEZE, Control
from tests.decisions import RECEIVED_MS, Row, batch_of
from tests.watched import KEY, Writing, fetch

SPEC = ModelSpec(
    "m", "1", "", "hash", (), (), labels=("no", "yes"), favourable="yes", sensitive_features=("sex", "age"),
    intersections=(("sex", "age"),),
)  # fmt: skip
AGREE = """
select count(*) from (
    (select model, version, attribute, "group", decided, favourable, positive, true_positive from audit.label_count
     except
     select model, version, attribute, "group", labelled, favourable, positive, true_positive from audit.labelled_group)
    union all
    (select model, version, attribute, "group", labelled, favourable, positive, true_positive from audit.labelled_group
     where labelled > 0
     except
     select model, version, attribute, "group", decided, favourable, positive, true_positive from audit.label_count)
) d"""


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url, KEY) as store:
        store.keep_settings([SPEC])
        yield store


class Decisions:
    """Stores decisions, each window behind the one before."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.next: int | None = None

    def __call__(self, *rows: Row, at_ms: int = RECEIVED_MS) -> None:
        following = (self.next or 0) + 1
        batch = batch_of(rows, answered_at_us=at_ms * 1000)
        self.store.write(AuditWindow([("lrai.decisions", 0, self.next, following)], [batch], [], []))
        self.next = following


class Producing:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.fails = False

    def produce(self, topic: str, value: bytes, key: str, on_delivery: Any) -> None:
        self.sent.append((topic, key, framing.decode(value)[1]))
        on_delivery(KafkaError(KafkaError._MSG_TIMED_OUT) if self.fails else None, None)

    def poll(self, _: float) -> int:
        return 0

    def flush(self, _: float) -> int:
        return 0


def label(request_id: str, outcome: str = "yes", **given: Any) -> tuple[str, dict[str, Any]]:
    return "label", {"request_id": request_id, "outcome": outcome, **given}


def states(url: str) -> list[tuple[Any, ...]]:
    return fetch(url, "select request_id, outcome, state from audit.label order by id")


def due(url: str) -> None:
    """As if the time of what waits had come."""
    with psycopg.connect(url) as connection:
        connection.execute("update audit.label set retry_at = now() where state = 'pending'")


def test_labels_are_joined_counted_and_refused(url: str, store: Store) -> None:
    women = [Row(i, request_id=f"w{i}", decision="yes", attributes={"sex": "F", "age": "old"}) for i in range(3)]
    men = [Row(3 + i, request_id=f"m{i}", decision="no", attributes={"sex": "M"}) for i in range(2)]
    Decisions(store)(*women, *men, Row(9, request_id="failed", status=3, decision="yes"), Row(10, request_id="none"))
    Writing(store).records(
        label("w0"), label("w0"), label("w0", "no"), label("w1", "no", model="m"), label("m0"), label("m1", "no"),
        label("w2", "perhaps"), label("failed"), label("none"), label("later"), label("w2", model="another"),
    )  # fmt: skip
    joined = store.join_labels()
    assert (joined.states, joined.releases) == ({"joined": 4, "duplicate": 1, "refused": 4, "pending": 2}, {("m", "1")})
    assert [state for *_, state in states(url)] == [
        "joined", "duplicate", "refused", "joined", "joined", "joined", "refused", "refused", "refused",
        "pending", "pending",
    ]  # fmt: skip
    assert store.join_labels().states == {}
    totals = store.label_totals([("m", "1")])["m", "1"].counts
    assert {(key.attribute, key.group): tuple(number) for key, number in totals.items()} == {
        ("sex", "F"): (2, 2, 1, 1), ("sex", "M"): (2, 0, 1, 0),
        ("age", "old"): (2, 2, 1, 1), ("age", None): (2, 0, 1, 0),
        ("sex+age", "F+old"): (2, 2, 1, 1), ("sex+age", None): (2, 0, 1, 0),
    }  # fmt: skip
    assert fetch(url, AGREE) == [(0,)]
    rates = "true_positive, false_positive, true_positive_rate, false_positive_rate"
    odds = f'select "group", labelled, positive, {rates}, coverage from audit.odds_by_group'
    assert fetch(url, f"{odds} where attribute = 'sex' order by 1") == [
        ("F", 2, 1, 1, 1, 1.0, 1.0, 2 / 3), ("M", 2, 1, 0, 0, 0.0, 0.0, 1.0)
    ]  # fmt: skip
    columns = '"group", labelled, correct, accuracy'
    accuracy = f"select {columns} from audit.accuracy_by_group where attribute = 'sex' order by 1"
    assert fetch(url, accuracy) == [("F", 2, 1, 0.5), ("M", 2, 1, 0.5)]
    assert fetch(url, "select * from audit.label_coverage") == [("m", "1", 5, 4, 0.8)]


def test_labels_that_came_before_their_decision_are_joined_later_and_the_first_holds(url: str, store: Store) -> None:
    write, decide = Writing(store), Decisions(store)
    write.records(label("a", "no"), label("b"))
    assert store.join_labels().waiting == 2
    decide(Row(0, request_id="a", decision="yes", attributes={"sex": "F"}))
    write.records(label("a", "yes"))  # due now, while the first one is not
    assert store.join_labels().states == {"joined": 1, "refused": 1}
    assert states(url) == [("a", "no", "joined"), ("b", "yes", "pending"), ("a", "yes", "refused")]
    decide(Row(1, request_id="b", decision="yes"))
    assert store.join_labels().states == {}
    due(url)
    assert store.join_labels().states == {"joined": 1}
    assert store.join_labels().waiting == 0
    assert fetch(url, AGREE) == [(0,)]


def test_what_waits_is_tried_ever_more_rarely(url: str, store: Store) -> None:
    Writing(store).records(label("never"))
    for tries, most_s in ((1, 1), (2, 2), (3, 4), (4, 8)):
        due(url)
        store.join_labels()
        (found,) = fetch(url, "select tries, extract(epoch from retry_at - now())::float from audit.label")
        assert found[0] == tries
        assert most_s / 2 - 1 < found[1] <= most_s


def test_a_label_that_names_its_model_and_one_that_has_to(url: str, store: Store) -> None:
    Decisions(store)(Row(0, request_id="a", decision="yes"), Row(1, request_id="a", decision="yes", model="n"))
    Writing(store).records(label("a"), label("a", model="n"))
    store.join_labels()
    assert [state for *_, state in states(url)] == ["refused", "joined"]
    assert fetch(url, "select model from audit.labelled_decision") == [("n",)]


def test_random_labels_agree_with_sql_whatever_their_order(url: str, store: Store) -> None:
    rng = np.random.default_rng(6)
    write, decide = Writing(store), Decisions(store)
    for step in range(8):
        rows = [
            Row(
                1000 * step + i, request_id=f"id{rng.integers(600)}", decision=str(rng.choice(["yes", "no"])),
                version=str(rng.choice(["1", "2"])),
                attributes={name: str(rng.choice(["", "a", "b"])) for name in ("sex", "age") if rng.random() < 0.7},
            )
            for i in range(100)
        ]  # fmt: skip
        decide(*rows)
        write.records(*(label(f"id{rng.integers(600)}", str(rng.choice(["yes", "no"]))) for _ in range(100)))
        store.keep_settings([replace(SPEC, version="2", favourable="no" if step % 2 else "yes")])
        due(url)
        store.join_labels()
    assert fetch(url, AGREE) == [(0,)]
    assert fetch(url, "select count(*) > 300, count(distinct version) from audit.labelled_decision") == [(True, 2)]


def test_other_settings_count_the_labels_anew(url: str, store: Store) -> None:
    Decisions(store)(*(Row(i, request_id=str(i), decision="yes", attributes={"sex": "F"}) for i in range(5)))
    Writing(store).records(*(label(str(i), "no") for i in range(5)))
    store.join_labels()
    assert store.keep_settings([SPEC]) == {("m", "1")}
    assert store.keep_settings([replace(SPEC, favourable="no", sensitive_features=("sex",), intersections=())])
    totals = store.label_totals([("m", "1")])["m", "1"].counts
    assert {(key.attribute, key.group): tuple(number) for key, number in totals.items()} == {("sex", "F"): (5, 0, 5, 0)}
    assert fetch(url, AGREE) == [(0,)]
    assert fetch(url, "select favourable from audit.model_setting order by id") == [("yes",), ("no",)]


def test_a_join_that_is_cut_off_is_done_again_and_counts_once(url: str, store: Store) -> None:
    Decisions(store)(*(Row(i, request_id=str(i), decision="yes", attributes={"sex": "F"}) for i in range(5)))
    Writing(store).records(*(label(str(i)) for i in range(5)))
    with psycopg.connect(url) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("lock table audit.label_count in access exclusive mode")
        joining = pool.submit(store.join_labels)
        waits = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock' and datname = "
        end = time.monotonic() + 20
        while not fetch(url, waits + "current_database()"):
            assert time.monotonic() < end, "nobody waits for the totals"
        assert isinstance(joining.exception(20), StoreUnavailable)
    assert {state for *_, state in states(url)} == {"pending"}
    assert store.join_labels().states == {"joined": 5}
    assert fetch(url, AGREE) == [(0,)]
    assert fetch(url, "select decided from audit.label_count where attribute = 'sex'") == [(5,)]


def test_settings_that_postgres_cannot_hold_are_stored_all_the_same(url: str, store: Store) -> None:
    store.keep_settings([replace(SPEC, version="2", threshold=float("nan"), favourable="a\0b", labels=("a\0b", "c"))])
    found = "select favourable, labels, stated -> 'threshold' from audit.model_setting_now where version = '2'"
    assert fetch(url, found) == [("a\ufffdb", ["a\ufffdb", "c"], None)]


def test_a_batch_of_labels_is_bounded_and_one_writer_joins_at_a_time(url: str, store: Store) -> None:
    Writing(store).records(*(label(f"never-{i}") for i in range(LABELS_MAX + 50)))
    with Store(url, KEY) as other, psycopg.connect(url) as holder:
        holder.execute("select pg_advisory_xact_lock(%s)", [0x6C6162656C])
        assert other.join_labels().states == {}
    with Store(url, KEY) as other, ThreadPoolExecutor(2) as pool:
        found = [each.states.get("pending", 0) for each in pool.map(lambda s: s.join_labels(), (store, other))]
    assert sum(found) in (LABELS_MAX, LABELS_MAX + 50)
    store.join_labels()
    assert fetch(url, "select count(*) from audit.label where tries = 1") == [(LABELS_MAX + 50,)]


def test_a_request_id_that_thousands_share_is_refused_within_bounds(url: str, store: Store) -> None:
    Decisions(store)(*(Row(i, request_id="same", decision="yes") for i in range(3000)))
    Writing(store).records(label("same"))
    assert store.join_labels().states == {"refused": 1}


def test_the_totals_go_to_the_monitor_and_again_after_a_restart(url: str, store: Store) -> None:
    producer = Producing()
    Decisions(store)(*(Row(i, request_id=str(i), decision="yes", attributes={"sex": "F"}) for i in range(3)))
    write, labelling = Writing(store), labeller(store, producer)
    labelling.start()
    labelling.step(0.0, came=False)
    assert producer.sent == []
    write.records(label("0"), label("1", "no"))
    labelling.step(0.1, came=True)
    (topic, key, record), = producer.sent
    assert (topic, key, record["id"], record["kind"]) == ("lrai.tallies", "m/1", "m/1/2", "labels")
    women = {"attribute": "sex", "group": "F", "decided": 2, "favourable": 2, "positive": 1, "true_positive": 1}
    assert women in record["groups"]
    producer.fails = True
    write.records(label("2"))
    labelling.step(0.2, came=True)  # joined, but the last record went out a moment ago
    assert len(producer.sent) == 1
    labelling.step(5.0, came=False)
    producer.fails = False
    labelling.step(10.0, came=False)
    labelling.step(15.0, came=False)
    assert [record["id"] for *_, record in producer.sent] == ["m/1/2", "m/1/3", "m/1/3"]
    again = labeller(store, producer)
    again.start()
    again.step(0.0, came=False)
    assert producer.sent[-1] == producer.sent[-2]
    assert len(producer.sent) == 4


def labeller(store: Store, producer: Producing) -> Labelling:
    return Labelling(store, [SPEC], producer, "lrai.tallies", "w", lambda: 0)  # type: ignore[arg-type]


def control(kind: str, at_ms: int, name: str | None = "f1") -> tuple[str, dict[str, Any]]:
    return "control", asdict(Control(kind, "m", "1", None, "ann", "a test", at_ms, name))


def told(producer: Producing) -> tuple[str | None, dict[str | None, int]]:
    """What the newest tally says of sex: the freeze that was ended, and decisions with a label by group."""
    record = producer.sent[-1][2]
    return record["ended"], {each["group"]: each["decided"] for each in record["groups"] if each["attribute"] == "sex"}


def test_after_an_unfreeze_the_totals_are_of_what_was_decided_since(url: str, store: Store) -> None:
    producer, decide, write = Producing(), Decisions(store), Writing(store)
    labelling = labeller(store, producer)
    frozen_ms, ended_ms = RECEIVED_MS + 1000, RECEIVED_MS + 2000
    woman, man = (Row(0, decision=said, attributes={"sex": sex}) for said, sex in (("yes", "F"), ("no", "M")))
    decide(*(replace(woman, offset=i, request_id=f"old{i}") for i in range(3)), at_ms=frozen_ms - 1)
    write.records(label("old0"), control(FREEZE, frozen_ms))
    labelling.step(0.0, came=True)
    assert told(producer) == (None, {"F": 1})
    write.records(control(UNFREEZE, ended_ms))
    labelling.step(10.0, came=False)
    assert (told(producer), producer.sent[-1][2]["id"]) == (("f1", {}), "m/1/f1/0")
    decide(replace(man, offset=10, request_id="flagged", frozen="f1"), at_ms=ended_ms + 50)
    decide(*(replace(man, offset=20 + i, request_id=f"new{i}") for i in range(2)), at_ms=ended_ms + 60)
    write.records(label("old1", "no"), label("flagged"))
    sent = len(producer.sent)
    labelling.step(20.0, came=True)
    assert len(producer.sent) == sent  # they change nothing
    write.records(label("old2"), label("new0"))
    labelling.step(30.0, came=True)
    assert told(producer) == ("f1", {"M": 1})
    assert store.keep_settings([replace(SPEC, groups_max=9)]) == {("m", "1")}  # counted anew
    assert store.label_totals([("m", "1")])["m", "1"].ended == "f1"
    labels = "select \"group\", labelled from audit.odds_by_group where attribute = 'sex' order by 1"
    assert fetch(url, labels) == [("F", 3), ("M", 2)]
    again = labeller(store, producer)
    again.start()
    again.step(0.0, came=False)
    assert told(producer) == ("f1", {"M": 1})


def test_an_unfreeze_that_is_stored_late_and_the_next_one_count_anew(url: str, store: Store) -> None:
    decide, write = Decisions(store), Writing(store)
    for number in range(4):
        row = Row(number, request_id=f"r{number}", decision="yes", attributes={"sex": "F"})
        decide(row, at_ms=RECEIVED_MS + 1000 * number)
    write.records(*(label(f"r{i}") for i in range(4)), control(UNFREEZE, RECEIVED_MS + 500, None))
    assert store.join_labels().states == {"joined": 4}

    def women() -> tuple[str | None, int]:
        found = store.label_totals([("m", "1")])["m", "1"]
        return found.ended, sum(each.decided for key, each in found.counts.items() if key[2:] == ("sex", "F"))

    assert women() == (None, 4)  # the monitor begins no epoch by one that names no freeze
    write.records(control(UNFREEZE, RECEIVED_MS + 500))
    assert (store.join_labels().releases, women()) == ({("m", "1")}, ("f1", 3))
    write.records(control(UNFREEZE, RECEIVED_MS + 2500))  # the same freeze ends once
    assert (store.join_labels().releases, women()) == (set(), ("f1", 3))
    write.records(control(FREEZE, RECEIVED_MS + 1500, "f2"), control(UNFREEZE, RECEIVED_MS + 2000, "f2"))
    assert (store.join_labels().releases, women()) == ({("m", "1")}, ("f2", 1))
    assert store.label_totals([("n", "1")]) == {("n", "1"): (None, {})}


def test_joining_uses_the_index_of_request_ids(url: str, store: Store) -> None:
    now_ms = int(time.time() * 1000)
    Decisions(store)(*(Row(i, request_id=f"id-{i}", received_at_ms=now_ms, decision="yes") for i in range(20_000)))
    given = {"ids": [1, 2], "request_ids": ["id-7", "never"], "models": [None, "m"], "most": 101}
    with psycopg.connect(url) as connection:
        plan = connection.execute(b"explain " + sql.query("labelled_requests").encode(), given).fetchall()
    lines = [line for (line,) in plan]
    month = f"decision_row_{datetime.now(UTC):%Y_%m}"
    assert any("Index" in line and month in line for line in lines), lines
    assert not any(f"Seq Scan on {month}" in line for line in lines), lines
