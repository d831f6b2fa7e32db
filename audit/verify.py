"""Is the audit record complete? Every consumed record is there, and none is there twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

from audit import sql
from schemas.errors import StoreUnavailable

PROBLEMS_MAX = 1_000  # named one by one, a kind
_CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True)
class Problem:
    """Something wrong with the records at offsets first <= offset < following of a request partition."""

    kind: str  # hole, overlap, missing, surplus, outside, duplicate
    topic: str
    partition: int
    first: int
    following: int
    message: str

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.topic}/{self.partition} offsets {self.first} to {self.following - 1}: {self.message}"
        )


@dataclass(frozen=True)
class Report:
    """What the store holds, counted within the source ranges, and what is wrong with it.

    In flight: younger than the grace time, so their decisions may still come. `problems_omitted`: beyond PROBLEMS_MAX.
    """

    partitions: int
    ranges: int
    records: int
    decisions: int
    dead_letters: int
    refused: int
    ranges_in_flight: int
    records_in_flight: int
    decisions_in_flight: int
    problems: tuple[Problem, ...]
    problems_omitted: int

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(url: str, now: datetime, grace_s: float) -> Report:
    """Check one consistent state of the store; reads only, and needs no more than the role lrai_reader.

    `now` has a time zone. Raises StoreUnavailable.
    """
    limits = {"cutoff": now - timedelta(seconds=grace_s), "limit": PROBLEMS_MAX}
    try:
        with psycopg.connect(url, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            return _report(connection, limits)
    except psycopg.Error as err:
        raise StoreUnavailable(f"the audit store could not be verified: {err}") from err


def _report(connection: psycopg.Connection, limits: Mapping[str, Any]) -> Report:
    totals = connection.execute(sql.query("verify_totals"), limits).fetchone()
    if totals is None:
        raise psycopg.DataError("the totals of the source ranges are missing")
    *counts, bad_ranges = totals
    ranges = _rows(connection, "verify_ranges", limits) if bad_ranges else []
    outside = _rows(connection, "verify_outside", limits)
    duplicates = _rows(connection, "verify_duplicates", limits)
    problems = [
        *(problem for row in ranges for problem in _of_range(row)),
        *(_outside(row) for row in outside if not row["fresh"]),
    ]
    omitted = bad_ranges - len(ranges) + (duplicates[0]["sources"] - len(duplicates) if duplicates else 0)
    return Report(
        ranges=counts[0],
        partitions=counts[1],
        records=counts[2],
        decisions=counts[3],
        dead_letters=counts[4],
        refused=counts[5],
        ranges_in_flight=counts[6],
        records_in_flight=counts[7],
        decisions_in_flight=sum(row["decisions"] for row in outside if row["fresh"]),
        problems=(*problems, *map(_duplicate, duplicates)),
        problems_omitted=omitted,
    )


def _rows(connection: psycopg.Connection, name: str, limits: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(sql.query(name), limits).fetchall()


def _of_range(row: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a range; one that is fresh may still lack records, before it and in it."""
    topic, partition, first, following = row["topic"], row["partition"], row["from_offset"], row["next_offset"]
    before, stored = row["chained_to"], row["decisions"] + row["dead_letters"] + row["refused"]
    if before is not None and before < first and not row["fresh"]:
        yield Problem(
            "hole", topic, partition, before, first,
            "no source range covers them; look for them in Kafka before its retention ends and replay them",
        )  # fmt: skip
    if before is not None and before > first:
        yield Problem(
            "overlap", topic, partition, first, min(before, following),
            "two source ranges cover them; look for a coalescer that ran twice on this partition",
        )  # fmt: skip
    if stored < row["records"] and not row["fresh"]:
        yield Problem(
            "missing", topic, partition, first, following,
            f"{row['records']} records were consumed, {stored} are stored ({_found(row)}); read the lag of the audit "
            "writers and actors, and if it is 0 replay these offsets",
        )  # fmt: skip
    if stored > row["records"]:
        yield Problem(
            "surplus", topic, partition, first, following,
            f"{row['records']} records were consumed, {stored} are stored ({_found(row)}); compare them with the topic",
        )  # fmt: skip


def _found(row: Mapping[str, Any]) -> str:
    return f"{row['decisions']} decisions, {row['dead_letters']} dead letters, {row['refused']} refused"


def _outside(row: Mapping[str, Any]) -> Problem:
    return Problem(
        "outside", row["topic"] or "unknown topic", row["partition"], row["first"], row["last"] + 1,
        f"{row['decisions']} decisions lie outside every source range; look for the range's record in lrai.decisions",
    )  # fmt: skip


def _duplicate(row: Mapping[str, Any]) -> Problem:
    return Problem(
        "duplicate", row["topic"] or "unknown topic", row["request_partition"], row["request_offset"],
        row["request_offset"] + 1,
        f"stored {row['n']} times in decision_row, dead_letter and refused of schema audit; find who answered it twice",
    )  # fmt: skip
