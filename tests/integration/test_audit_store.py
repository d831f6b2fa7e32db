"""audit.store on a real Postgres: windows, replays, second writers, refusals, restarts, partitions, roles."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from audit.store import AuditWindow, DeadLetter, SecondWriter, Store, Written, migrate
from infra.postgres import Postgres
from schemas.errors import StoreUnavailable
from tests.decisions import ANSWERED_US, RECEIVED_MS, TOPIC, Row, batch_of, ranges_of
from tests.watched import KEY

DECISIONS = "lrai.decisions"
WAIT_S = 20.0
FULL = Row(
    7, 3, "id-1", model="m", version="2", variant="int8", certificate="c", status=1, error=("code", "message"),
    score=0.1, decision="approve", attributes={"sex": "f", "age": "30"}, subject="s", consent_id="k", purpose="p",
    rows=2, batch_rows=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    with Postgres() as postgres:
        yield postgres


def window(
    *rows: Row, expected: int | None = None, following: int = 10, ranges: tuple[tuple[int, int, int, int], ...] = (),
    dead_letters: tuple[DeadLetter, ...] = (),
) -> AuditWindow:  # fmt: skip
    batches = [batch_of(rows)] if rows else []
    return AuditWindow(
        [(DECISIONS, 0, expected, following)], batches, [ranges_of(*ranges)] if ranges else [], dead_letters
    )


def dead_letter(offset: int, **headers: str) -> DeadLetter:
    named = {"original-topic": TOPIC, "original-partition": "3", "original-offset": "8", "reason": "undecodable"}
    return DeadLetter.of(
        "lrai.deadletter", 0, offset, RECEIVED_MS, b"value",
        [(f"lrai_dlt-{name.replace('_', '-')}", text.encode()) for name, text in {**named, **headers}.items()],
    )  # fmt: skip


def fetch(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def count(url: str, table: str) -> int:
    return int(fetch(url, f"select count(*) from audit.{table}")[0][0])


def wait_until(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < until, f"not within {WAIT_S} s: {what}"
        time.sleep(0.01)


@contextmanager
def held(url: str, table: str) -> Iterator[psycopg.Connection]:
    """The table locked by somebody else."""
    with psycopg.connect(url) as connection:
        connection.execute(f"lock table audit.{table} in access exclusive mode".encode())
        yield connection


def wait_for_lock(url: str, waiters: int = 1) -> None:
    waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    wait_until(lambda: len(fetch(url, waiting)) == waiters, "a writer waits for a lock")


def test_a_decision_comes_back_as_it_went_in(url: str, store: Store) -> None:
    assert store.write(window(FULL, ranges=((3, 7, 8, 1),))) == Written(1, 0, 1, 0)
    with psycopg.connect(url) as connection, connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        found = cursor.execute("select * from audit.decision").fetchall()
    received = datetime.fromtimestamp(RECEIVED_MS / 1000, UTC)
    answered = datetime.fromtimestamp(ANSWERED_US / 1e6, UTC)
    assert found == [
        {
            "request_id": "id-1", "model": "m", "version": "2", "variant": "int8", "status": "REJECTED",
            "error_code": "code", "error_message": "message", "score": 0.1, "decision": "approve",
            "attributes": {"sex": "f", "age": "30"}, "subject_pseudonym": "s", "request_topic": TOPIC,
            "request_partition": 3, "request_offset": 7, "received_at": received, "answered_at": answered,
            "queue_s": 0.25, "execution_s": 0.125, "rows": 2, "batch_rows": 64, "worker": "work-m-1-standard-node-0",
            "certificate": "c", "consent_id": "k", "purpose": "p", "frozen": None,
        }
    ]  # fmt: skip


def test_what_is_missing_is_null_and_attributes_are_empty(url: str, store: Store) -> None:
    store.write(window(Row(0, version=None, variant=None, score=None)))
    found = fetch(
        url, "select version, variant, certificate, score, decision, error_code, attributes from audit.decision"
    )
    assert found == [(None, None, None, None, None, None, {})]
    assert count(url, "decision_without_attributes") == 1


def test_offsets_go_on_from_what_was_stored(store: Store) -> None:
    assert store.source_offsets([DECISIONS]) == {}
    store.write(window(Row(0), following=10))
    store.write(window(Row(1), expected=10, following=25))
    assert store.source_offsets([DECISIONS, "other"]) == {(DECISIONS, 0): 25}


@pytest.mark.parametrize("expected", [None, 5, 25], ids=["absent", "behind", "ahead"])
def test_a_window_that_does_not_follow_writes_nothing(url: str, store: Store, expected: int | None) -> None:
    store.write(window(Row(0)))
    again = window(Row(1), expected=expected, ranges=((0, 0, 1, 1),), dead_letters=(dead_letter(1),))
    with pytest.raises(SecondWriter, match=f"{DECISIONS}/0"):
        store.write(again)
    assert [count(url, table) for table in ("decision_row", "source_range_row", "dead_letter")] == [1, 0, 0]
    assert store.source_offsets([DECISIONS]) == {(DECISIONS, 0): 10}


def test_a_replay_of_the_same_records_below_new_offsets_is_refused_as_duplicate(url: str, store: Store) -> None:
    store.write(window(Row(0), Row(1)))
    assert store.write(window(Row(1), Row(2), expected=10, following=20)) == Written(1, 1, 0, 0)
    assert fetch(url, "select request_topic, request_partition, request_offset, sqlstate from audit.refused") == [
        (TOPIC, 0, 1, "23505")
    ]


def test_of_two_writers_at_once_one_writes(url: str) -> None:
    with Store(url, KEY) as one, Store(url, KEY) as two, ThreadPoolExecutor(2) as pool:
        one.write(window(Row(0)))
        with held(url, "decision_row"):
            tries = [pool.submit(s.write, window(Row(1), expected=10, following=20)) for s in (one, two)]
            wait_for_lock(url, 2)
        outcomes = sorted(type(attempt.exception(WAIT_S)).__name__ for attempt in tries)
    assert outcomes == ["NoneType", "SecondWriter"]
    assert count(url, "decision_row") == 2


def test_writers_of_different_partitions_do_not_wait_for_each_other(url: str, store: Store) -> None:
    with Store(url, KEY, lock_timeout_s=0.2) as other, psycopg.connect(url) as held_up:
        store.write(window(Row(0)))
        held_up.execute("select 1 from audit.source_offset for update")
        there = AuditWindow([(DECISIONS, 1, None, 4)], [batch_of([Row(1)])], [], [])
        assert other.write(there).decisions == 1


def test_a_writer_that_never_ends_its_transaction_is_waited_for_within_bounds(url: str, store: Store) -> None:
    store.write(window(Row(0)))
    with Store(url, KEY, lock_timeout_s=0.1) as other, psycopg.connect(url) as stopped:
        stopped.execute("select 1 from audit.source_offset for update")
        with pytest.raises(StoreUnavailable, match="lock"):
            other.write(window(Row(1), expected=10, following=20))
        stopped.rollback()
        assert other.write(window(Row(1), expected=10, following=20)).decisions == 1


@pytest.mark.parametrize(
    ("bad", "sqlstate", "shown"),
    [
        (Row(1, request_id="a\0b"), "22021", "a\ufffdb"),
        (Row(1, request_id=b"\xff"), "22021", "\\xff"),
        (Row(1, received_at_ms=2**62), "22008", "r"),
        (Row(0), "23505", "r"),
    ],
    ids=["nul", "utf-8", "time", "duplicate"],
)
def test_a_row_that_copy_refuses_is_found_and_its_neighbours_are_stored(
    url: str, store: Store, bad: Row, sqlstate: str, shown: str
) -> None:
    rows = [*(Row(i) for i in range(37)), *(Row(i) for i in range(38, 60))]
    rows.insert(37, bad if bad.offset == 0 else replace(bad, offset=37))
    assert store.write(window(*rows)) == Written(59, 1, 0, 0)
    found = fetch(url, "select request_offset, sqlstate, row ->> 'request_id', row ->> 'model' from audit.refused")
    assert found == [(0 if bad.offset == 0 else 37, sqlstate, shown, "m")]
    assert count(url, "decision_row") == 59


def test_a_window_of_nothing_but_bad_rows_is_stored_as_refused(url: str, store: Store) -> None:
    assert store.write(window(*(Row(i, request_id="\0") for i in range(9)))) == Written(0, 9, 0, 0)
    assert count(url, "refused") == 9


def test_nul_in_dictionaries_and_attributes_is_shown_as_replacement(url: str, store: Store) -> None:
    store.write(window(Row(0, model="m\0", attributes={"a\0": "b\0"})))
    assert fetch(url, "select model, attributes from audit.decision") == [("m\ufffd", {"a\ufffd": "b\ufffd"})]


def test_long_texts_of_a_client_are_stored(url: str, store: Store) -> None:
    # longer than an entry of a btree, and of random bytes so that it cannot be compressed
    long = "".join(hashlib.sha512(bytes([i % 256, i // 256])).hexdigest() for i in range(400))
    store.write(window(Row(0, request_id=long, model=long, attributes={"a": long})))
    assert fetch(url, "select request_id, model, attributes ->> 'a' from audit.decision") == [(long, long, long)]


def test_equal_attributes_are_stored_once_under_a_keyed_id(url: str, store: Store) -> None:
    rows = [
        Row(0, attributes={"a": "1", "b": "2"}),
        Row(1, attributes={"b": "2", "a": "1"}),
        Row(2, attributes={"a": "1"}),
    ]
    store.write(window(*rows))
    with Store(url, KEY) as other:
        other.write(window(*(replace(row, offset=row.offset + 3) for row in rows), expected=10, following=20))
    assert count(url, "attribute_set") == 2
    assert fetch(url, "select count(*) from audit.decision where attributes ? 'b'") == [(4,)]


def test_ids_made_in_a_transaction_that_was_rolled_back_are_not_remembered(url: str, store: Store) -> None:
    store.write(window(Row(0)))
    fresh = window(replace(FULL, offset=1, model="new"), expected=10, following=20)
    with held(url, "dead_letter"), ThreadPoolExecutor(1) as pool:
        failing = pool.submit(store.write, replace(fresh, dead_letters=[dead_letter(0)]))
        wait_for_lock(url)
        fetch(url, "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'")
        assert isinstance(failing.exception(WAIT_S), StoreUnavailable)
    assert count(url, "release") == 1
    assert store.write(fresh).decisions == 1
    assert fetch(url, "select attributes from audit.decision where model = 'new'") == [(FULL.attributes,)]


def test_dead_letters_are_stored_with_their_hash_and_once(url: str, store: Store) -> None:
    odd = dead_letter(1, original_partition="x", original_offset=str(2**63), reason="a\0b", original_timestamp="9" * 18)
    found = store.write(window(dead_letters=(dead_letter(0, original_timestamp="1767225600000"), odd)))
    assert found == Written(0, 0, 0, 2)
    columns = "request_topic, request_partition, request_offset, received_at, sha256, size, reason, stage, at"
    received, digest = datetime.fromtimestamp(RECEIVED_MS / 1000, UTC), hashlib.sha256(b"value").digest()
    assert fetch(url, f"select {columns} from audit.dead_letter order by dlt_offset") == [
        (TOPIC, 3, 8, received, digest, 5, "undecodable", None, received),
        (TOPIC, None, None, None, digest, 5, "a\ufffdb", None, received),
    ]


def test_a_dead_letter_without_any_header_is_stored(url: str, store: Store) -> None:
    store.write(window(dead_letters=(DeadLetter.of("lrai.deadletter", 0, 5, -1, None, [("other", None)]),)))
    assert fetch(url, "select request_topic, size, dlt_offset from audit.dead_letter") == [(None, 0, 5)]


def test_a_killed_postgres_loses_the_window_whole_and_takes_it_again(own_postgres: Postgres) -> None:
    url = own_postgres.url
    migrate(url)
    whole = window(FULL, ranges=((3, 7, 9, 2),), dead_letters=(dead_letter(0),))
    with Store(url, KEY) as store, ThreadPoolExecutor(1) as pool:
        assert store.source_offsets([DECISIONS]) == {}
        with held(url, "dead_letter") as holder:
            writing: Future[Written] = pool.submit(store.write, whole)
            wait_for_lock(url)
            own_postgres.kill()
            assert isinstance(writing.exception(WAIT_S), StoreUnavailable)
            with pytest.raises(StoreUnavailable):
                store.write(whole)
            holder.close()
        own_postgres.start()
        assert store.source_offsets([DECISIONS]) == {}
        assert [count(url, table) for table in ("decision_row", "source_range_row", "release")] == [0, 0, 0]
        assert store.write(whole) == Written(1, 0, 1, 1)
        with pytest.raises(SecondWriter):  # the answer of a commit that was lost
            store.write(whole)


def test_a_store_that_may_not_make_roles_is_migrated_all_the_same(own_postgres: Postgres) -> None:
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        connection.execute("create role plain nologin")
        connection.execute("create database plain owner plain")
        connection.execute("drop schema if exists audit cascade")
        connection.execute("drop role if exists lrai_reader, lrai_attributes_reader")
    url = own_postgres.url.rpartition("/")[0] + "/plain"
    migrate(url + "?options=-c%20role%3Dplain")
    assert fetch(url, "select rolname from pg_roles where rolname like 'lrai\\_%'") == []
    with psycopg.connect(url) as connection:
        connection.execute("select audit.make_reader_roles(), audit.grant_readers()")
        connection.execute("set role lrai_reader")
        connection.execute("select * from audit.decision_without_attributes")


def test_migrating_in_many_processes_at_once_is_safe(store_url: str) -> None:
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(migrate, [store_url] * 4)) == [None] * 4
    assert fetch(store_url, "select version_num from audit.alembic_version") == [("0003",)]


def test_an_unreachable_store_is_said_without_a_traceback() -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
        migrate(nowhere)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
        Store(nowhere, KEY).source_offsets([DECISIONS])


def test_rows_without_a_partition_wait_in_the_default_one_and_move(url: str, store: Store) -> None:
    now_ms = int(time.time() * 1000)
    far_ms = now_ms + 100 * 86_400_000
    store.write(window(Row(0, received_at_ms=now_ms), Row(1, received_at_ms=far_ms), Row(2, received_at_ms=0)))
    assert count(url, "decision_row_default") == 2
    assert store.make_partitions(5) == 3
    assert store.make_partitions(5) == 0
    assert (count(url, "decision_row_default"), count(url, "decision_row")) == (1, 3)


def test_the_questions_of_the_store_are_answered_by_indexes(url: str, store: Store) -> None:
    now_ms = int(time.time() * 1000)
    store.write(window(*(Row(i, request_id=f"id-{i}", received_at_ms=now_ms) for i in range(3000))))
    questions = ["d.request_id = 'id-77'", "d.request_partition = 0 and d.request_offset = 77 and t.topic = 'x'"]
    with psycopg.connect(url) as connection:
        connection.execute("analyze audit.decision_row")
        for question in questions:
            plan = connection.execute(
                f"explain select 1 from audit.decision_row d join audit.topic t on t.id = d.topic_id where {question}"
                .encode()
            ).fetchall()  # fmt: skip
            lines = [line for (line,) in plan]
            month = f"decision_row_{datetime.now(UTC):%Y_%m}"
            assert any("Index" in line and month in line for line in lines), lines
            assert not any(f"Seq Scan on {month}" in line for line in lines), lines


def test_the_reader_sees_everything_but_attributes(url: str, store: Store) -> None:
    store.write(window(FULL))
    open_to_all = ["decision_without_attributes", "dead_letter", "refused", "source_range", "source_range_check",
                   "latency_by_model", "outcome_by_model_hour", "source_offset", "release"]  # fmt: skip
    closed = ["attribute_set", "decision", "selection_rate_by_attribute", "decision_row"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set role lrai_reader")
        for table in open_to_all:
            connection.execute(f"select * from audit.{table}".encode())
        for table in closed:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"select * from audit.{table}".encode())
        connection.execute("set role lrai_attributes_reader")
        for table in [*open_to_all, *closed]:
            connection.execute(f"select * from audit.{table}".encode())


def test_the_everyday_views(url: str, store: Store) -> None:
    women = [Row(i, decision="yes" if i < 3 else "no", attributes={"sex": "f"}) for i in range(4)]
    men = [Row(4 + i, decision="no", attributes={"sex": "m", "age": "old"}) for i in range(2)]
    failed = Row(6, status=3, error=("E", "m"), decision="yes", attributes={"sex": "f"}, queue_s=9.75, rows=5)
    store.write(window(*women, *men, failed))
    assert fetch(url, """select attribute, "group", decision, n, decided, selection_rate
        from audit.selection_rate_by_attribute order by 1, 2, 3""") == [
        ("age", "old", "no", 2, 2, 1.0),
        ("sex", "f", "no", 4, 1, 0.25),
        ("sex", "f", "yes", 4, 3, 0.75),
        ("sex", "m", "no", 2, 2, 1.0),
    ]  # fmt: skip
    assert fetch(url, "select status, error_code, requests, rows from audit.outcome_by_model_hour order by 1") == [
        ("FAILED", "E", 1, 5), ("OK", None, 6, 6),
    ]  # fmt: skip
    found = fetch(url, "select model, requests, inside_s_p50, inside_s_p99, total_s_p50 from audit.latency_by_model")
    assert found[0][:3] == ("m", 7, 0.375)
    assert found[0][3:] == pytest.approx((9.305, 0.02))
