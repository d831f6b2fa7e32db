"""audit.verify finds each kind of damage and nothing in a sound store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from audit.store import AuditWindow, DeadLetter, Store, migrate
from audit.verify import Report, verify
from schemas.errors import StoreUnavailable
from tests.decisions import TOPIC, Row, batch_of, ranges_of

GRACE_S = 60.0
LATER = datetime.now(UTC) + timedelta(hours=1)
SOURCE = "(select id from audit.topic where topic = 'lrai.requests.standard')"


@pytest.fixture
def url(store_url: str) -> Iterator[str]:
    """Partition 0: 0-40 without 19 (a marker), two ranges, one dead letter (5), one refused (6). Partition 1: 0-10."""
    migrate(store_url)
    rows = [Row(i, request_id="\0" if i == 6 else "r") for i in range(40) if i not in (5, 19)]
    letter = DeadLetter.of(
        "lrai.deadletter", 0, 0, 0, b"",
        [("lrai_dlt-original-topic", TOPIC.encode()), ("lrai_dlt-original-partition", b"0"),
         ("lrai_dlt-original-offset", b"5")],
    )  # fmt: skip
    with Store(store_url, b"key") as store:
        answered = time.time_ns() // 1000
        ranges = [ranges_of((0, 0, 20, 19), (1, 0, 10, 10)), ranges_of((0, 20, 40, 20), worker="coalesce-2")]
        more = batch_of([Row(i, partition=1) for i in range(10)], answered_at_us=answered)
        offsets = [("lrai.decisions", 0, None, 9)]
        store.write(AuditWindow(offsets, [batch_of(rows, answered_at_us=answered), more], ranges, [letter]))
    yield store_url


def damaged(url: str, *statements: str, now: datetime = LATER) -> Report:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
    return verify(url, now, GRACE_S)


def copy_of_row(offset: int, new_offset: str = "request_offset", received_at: str = "received_at") -> str:
    """A statement that stores decision (0, offset) once more, elsewhere."""
    columns = "answered_at, request_partition, topic_id, release_id, worker_id, rows, batch_rows, queue_s, execution_s"
    return (
        f"insert into audit.decision_row (request_offset, received_at, status, request_id, {columns}) "
        f"select {new_offset}, {received_at}, status, request_id, {columns} from audit.decision_row "
        f"where request_partition = 0 and request_offset = {offset}"
    )


def found(report: Report) -> list[tuple[str, int, int, int]]:
    assert report.ok == (not report.problems)
    assert all(problem.topic == TOPIC and TOPIC in str(problem) for problem in report.problems)
    return [(problem.kind, problem.partition, problem.first, problem.following) for problem in report.problems]


def test_a_sound_store_has_no_problem(url: str) -> None:
    report = verify(url, LATER, GRACE_S)
    assert found(report) == []
    assert (report.partitions, report.ranges, report.records) == (2, 3, 49)
    assert (report.decisions, report.dead_letters, report.refused) == (47, 1, 1)
    assert (report.ranges_in_flight, report.records_in_flight, report.problems_omitted) == (0, 0, 0)


def test_an_empty_store_has_no_problem(store_url: str) -> None:
    migrate(store_url)
    assert verify(store_url, LATER, GRACE_S).ok


@pytest.mark.parametrize(
    ("statements", "problems"),
    [
        (
            ["delete from audit.decision_row where request_partition = 0 and request_offset = 25"],
            [("missing", 0, 20, 40)],
        ),
        (["delete from audit.dead_letter"], [("missing", 0, 0, 20)]),
        (["delete from audit.refused"], [("missing", 0, 0, 20)]),
        (
            ["delete from audit.source_range_row where partition = 0 and from_offset = 0"],
            [("outside", 0, 0, 19)],
        ),
        (
            ["delete from audit.source_range_row where partition = 1"],
            [("outside", 1, 0, 10)],
        ),
        (
            ["update audit.source_range_row set from_offset = 22, records = 18 where from_offset = 20"],
            [("hole", 0, 20, 22), ("outside", 0, 20, 22)],
        ),
        (
            ["update audit.source_range_row set from_offset = 18, records = 21 where from_offset = 20"],
            [("overlap", 0, 18, 20)],
        ),
        (
            ["update audit.source_range_row set records = 18 where partition = 0 and from_offset = 0"],
            [("surplus", 0, 0, 20)],
        ),
        ([copy_of_row(3, new_offset="19")], [("surplus", 0, 0, 20)]),
        ([copy_of_row(3, new_offset="77")], [("outside", 0, 77, 78)]),
        (
            [copy_of_row(3, received_at="received_at + interval '1 s'")],
            [("surplus", 0, 0, 20), ("duplicate", 0, 3, 4)],
        ),
        (
            [
                copy_of_row(3, received_at="received_at + interval '1 s'"),
                "delete from audit.decision_row where request_partition = 0 and request_offset = 4",
            ],
            [("duplicate", 0, 3, 4)],
        ),
        (
            [f"insert into audit.dead_letter select '{TOPIC}', 1, 2, null, 'd', 0, 1, '', 0, null, null, null, now()"],
            [("surplus", 1, 0, 10), ("duplicate", 1, 2, 3)],
        ),
        (
            [f"insert into audit.refused (request_topic, request_partition, request_offset, sqlstate, reason, row) "
             f"values ('{TOPIC}', 1, 2, '23505', 'again', '{{}}')"],
            [("duplicate", 1, 2, 3)],
        ),
    ],
    ids=["decision-gone", "dead-letter-gone", "refused-gone", "first-range-gone", "all-ranges-gone", "hole", "overlap",
         "miscounted", "invented", "outside", "twice", "twice-and-one-gone", "also-dead", "refused-twice"],
)  # fmt: skip
def test_damage_is_named(url: str, statements: list[str], problems: list[tuple[str, int, int, int]]) -> None:
    assert found(damaged(url, *statements)) == problems


def test_what_is_younger_than_the_grace_time_is_in_flight(url: str) -> None:
    now = datetime.now(UTC)
    gone = "delete from audit.decision_row where request_partition = 0 and request_offset in (25, 26)"
    unranged = "delete from audit.source_range_row where partition = 1"
    report = damaged(url, gone, unranged, now=now)
    assert found(report) == []
    assert (report.ranges_in_flight, report.records_in_flight, report.decisions_in_flight) == (1, 2, 10)


def test_a_young_hole_is_in_flight_and_a_young_surplus_is_not(url: str) -> None:
    later_range = "update audit.source_range_row set from_offset = 22, records = 18 where from_offset = 20"
    report = damaged(
        url, later_range, copy_of_row(30, received_at="received_at + interval '1 s'"), now=datetime.now(UTC)
    )
    assert found(report) == [("surplus", 0, 22, 40), ("duplicate", 0, 30, 31)]
    assert (report.ranges_in_flight, report.decisions_in_flight) == (1, 2)


def test_a_reader_without_attributes_may_verify(url: str) -> None:
    separator = "&" if "?" in url else "?"
    assert verify(f"{url}{separator}options=-c%20role%3Dlrai_reader", LATER, GRACE_S).ok


def test_problems_are_bounded_and_the_rest_is_counted(url: str) -> None:
    ranges = f"select 100 + 2 * i, 101 + 2 * i, 1, now(), {SOURCE}, 5, 1 from generate_series(0, 1499) i"
    report = damaged(url, f"insert into audit.source_range_row {ranges}")
    assert report.problems_omitted == 500
    assert len({(problem.kind, problem.first) for problem in report.problems}) == 1999  # no hole before the first


def test_an_unreachable_store_is_said() -> None:
    with pytest.raises(StoreUnavailable, match="verified"):
        verify("postgresql://nobody@127.0.0.1:1/none", LATER, GRACE_S)
