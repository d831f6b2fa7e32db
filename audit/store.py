"""The audit store: its migration, and windows written to it together with the offsets they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import psycopg.sql
import sqlalchemy
from alembic import command
from alembic.config import Config
from psycopg.types.json import Jsonb

from audit import joining, rows, sql
from audit.dictionaries import Dictionaries
from audit.joining import Joined, Releases
from audit.labels import Totals
from audit.watched import Refusal, Row, Statement, Watched, moment
from kernels.spec import ModelSpec
from schemas.errors import LraiError, StoreUnavailable

_CONNECT_TIMEOUT_S = 5
_LOCK_TIMEOUT_S = 5.0  # a second writer that is stopped inside its transaction
_IDLE_TRANSACTION_S_MAX = 10.0  # ends the session of such a writer
_MIGRATION_LOCK = 0x6C726169  # "lrai"
_INT4_MAX, _INT8_MAX = 2**31 - 1, 2**63 - 1
_HEADER_PREFIX = "lrai_dlt-"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXT_MAX = 10_000  # characters of a header that are kept
_TOPIC_MAX = 249  # characters; Kafka's limit
_ROW_ERRORS = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
_COPY = psycopg.sql.SQL("copy audit.decision_row ({}) from stdin (format binary)").format(
    psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, rows.COLUMNS))
)


class SecondWriter(LraiError):
    """Another writer has moved the offsets of these partitions: nothing was written; read the offsets and seek."""


@dataclass(frozen=True)
class DeadLetter:
    """A record of the dead letter topic: whose it was (null where its headers do not say), and why it is there."""

    topic: str | None
    partition: int | None
    offset: int | None
    received_at: datetime | None
    dlt_topic: str
    dlt_partition: int
    dlt_offset: int
    sha256: bytes
    size: int
    reason: str | None
    message: str | None
    stage: str | None
    at: datetime

    @classmethod
    def of(
        cls, topic: str, partition: int, offset: int, timestamp_ms: int, value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> DeadLetter:  # fmt: skip
        """From a record of the dead letter topic; whatever its headers hold, it can be stored."""
        named = {name: (item or b"").decode(errors="backslashreplace") for name, item in headers}

        def header(name: str, length_max: int = _TEXT_MAX) -> str | None:
            item = named.get(_HEADER_PREFIX + name)
            return None if item is None else rows.storable(item[:length_max])

        return cls(
            topic=header("original-topic", _TOPIC_MAX),
            partition=_number(header("original-partition"), _INT4_MAX),
            offset=_number(header("original-offset"), _INT8_MAX),
            received_at=moment(_number(header("original-timestamp"), _INT8_MAX)),
            dlt_topic=topic,
            dlt_partition=partition,
            dlt_offset=offset,
            sha256=hashlib.sha256(value or b"").digest(),
            size=len(value or b""),
            reason=header("reason"),
            message=header("message"),
            stage=header("stage"),
            at=moment(timestamp_ms) or _EPOCH,
        )


@dataclass(frozen=True)
class AuditWindow:
    """What one turn of the writer stores.

    `offsets`: (topic, partition, expected next offset or None where none is stored yet, new next offset);
    `decisions`, `ranges`: decoded DecisionBatch and SourceRanges records; `watched`: records of the other topics.
    """

    offsets: Sequence[tuple[str, int, int | None, int]]
    decisions: Sequence[Mapping[str, Any]]
    ranges: Sequence[Mapping[str, Any]]
    dead_letters: Sequence[DeadLetter]
    watched: Sequence[Watched] = ()

    def rows(self) -> Iterator[tuple[Statement, Row]]:
        """Of the watched records that have some."""
        return (each for item in self.watched if not isinstance(item.content, Refusal) for each in item.content)


@dataclass(frozen=True)
class Written:
    """Counts of a window: every decision is stored or refused. `refused_of`: the topics of other records refused."""

    decisions: int
    refused: int
    ranges: int
    dead_letters: int
    refused_of: tuple[str, ...] = ()


def migrate(url: str, months_ahead: int = 2) -> None:
    """Bring the store to the newest schema; any number of processes may call it at once.

    Raises StoreUnavailable.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url, connect_timeout=_CONNECT_TIMEOUT_S),
        poolclass=sqlalchemy.NullPool,
    )
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            connection.execute(sqlalchemy.text("create schema if not exists audit"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.execute(sqlalchemy.text("select audit.make_partitions(:n)"), {"n": months_ahead})
    except (sqlalchemy.exc.DBAPIError, psycopg.Error) as err:
        raise StoreUnavailable(f"the audit store could not be migrated: {err}") from err


class Store:
    """The Postgres side of an audit writer: one connection, made when first needed and again after a loss.

    `key`: the secret of the attribute ids; the same for every writer of a store.
    Every method raises StoreUnavailable; the caller tries again. Waits at most `lock_timeout_s` for another writer.
    """

    def __init__(self, url: str, key: bytes, lock_timeout_s: float = _LOCK_TIMEOUT_S) -> None:
        self._url = url
        self._lock_timeout_s = lock_timeout_s
        self._dictionaries = Dictionaries(key)
        self._connection: psycopg.Connection | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def source_offsets(self, topics: Sequence[str]) -> dict[tuple[str, int], int]:
        """The next offset of every (topic, partition) of these topics that was ever written."""
        with self._transaction() as connection:
            found = connection.execute(sql.query("source_offsets"), [list(topics)]).fetchall()
        return {(topic, partition): next_offset for topic, partition, next_offset in found}

    def make_partitions(self, months_ahead: int) -> int:
        """Make the monthly partitions that are not there yet; returns how many. To be called at start and daily."""
        with self._transaction() as connection:
            row = connection.execute("select audit.make_partitions(%s)", [months_ahead]).fetchone()
        return int(row[0]) if row else 0

    def write(self, window: AuditWindow) -> Written:
        """Store a window and its offsets in one transaction.

        Raises SecondWriter (nothing is stored) when an offset is not the expected one, also when a commit whose
        answer was lost had succeeded; IntegrityError when a record contradicts itself.
        """
        decisions = rows.gather(window.decisions) if window.decisions else None
        with self._transaction() as connection:
            _move_offsets(connection, window.offsets)
            refused = _copy(connection, decisions, self._dictionaries) if decisions else 0
            _write_ranges(connection, rows.merged_ranges(window.ranges), self._dictionaries)
            _write_dead_letters(connection, window.dead_letters)
            refused_of = _write_watched(connection, window.watched)
        self._dictionaries.committed()
        stored = len(decisions) - refused if decisions else 0
        ranges = sum(len(item["ranges"]) for item in window.ranges)
        return Written(stored, refused, ranges, len(window.dead_letters), refused_of)

    def keep_settings(self, specs: Iterable[ModelSpec]) -> Releases:
        """Stores what the models' owners state; returns the releases that have totals of labels."""
        with self._transaction() as connection:
            return joining.keep_settings(connection, specs)

    def join_labels(self) -> Joined:
        """Joins labels that are due to their decisions, a bounded number."""
        with self._transaction() as connection:
            return joining.join(connection)

    def label_totals(self, releases: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Totals]:
        """The totals of the labels of these releases."""
        with self._transaction() as connection:
            return joining.totals(connection, releases)

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection]:
        self._dictionaries.forget_uncommitted()
        try:
            if self._connection is None:
                self._connection = _connected(self._url, self._lock_timeout_s)
            with self._connection.transaction():
                yield self._connection
        except psycopg.Error as err:
            self.close()
            self._dictionaries.forget()  # a store that lost commits in its crash may have lost these entries
            raise StoreUnavailable(f"the audit store does not answer or cannot store: {err}") from err


def _connected(url: str, lock_timeout_s: float) -> psycopg.Connection:
    connection = psycopg.connect(url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S)
    limits_ms = [str(round(limit_s * 1000)) for limit_s in (lock_timeout_s, _IDLE_TRANSACTION_S_MAX)]
    connection.execute(sql.query("session"), limits_ms)
    return connection


def _move_offsets(connection: psycopg.Connection, offsets: Sequence[tuple[str, int, int | None, int]]) -> None:
    """In (topic, partition) order, so that two writers wait for each other at the first one that they share."""
    for topic, partition, expected, following in sorted(offsets, key=lambda item: item[:2]):
        if expected is None:
            moved = connection.execute(sql.query("insert_offset"), [topic, partition, following])
        else:
            moved = connection.execute(sql.query("update_offset"), [following, topic, partition, expected])
        if moved.rowcount != 1:
            raise SecondWriter(
                f"audit.source_offset of {topic}/{partition} is not {'absent' if expected is None else expected}: "
                "another writer moved it; read the offsets and seek there"
            )


def _copy(connection: psycopg.Connection, decisions: rows.Decisions, dictionaries: Dictionaries) -> int:
    """Store the decisions; what COPY refuses is halved down to the row, which goes to audit.refused. Returns those."""
    attribute_ids = dictionaries.attribute_ids(connection, decisions.attribute_sets)
    encoded = rows.encode(
        decisions,
        dictionaries.topic_ids(connection, decisions.topics),
        dictionaries.worker_ids(connection, decisions.workers),
        dictionaries.release_ids(connection, decisions.releases),
        attribute_ids,
    )
    ends = [0, *encoded.sizes.cumsum().tolist()]
    whole = memoryview(encoded.data.tobytes())
    refused, pending = 0, [(0, len(decisions))]
    while pending:
        first, end = pending.pop()
        try:
            with connection.transaction():
                _copy_bytes(connection, whole[ends[first] : ends[end]])
        except _ROW_ERRORS as err:
            if end - first == 1:
                _refuse(connection, decisions, first, attribute_ids, err)
                refused += 1
            else:
                middle = (first + end) // 2
                pending += [(middle, end), (first, middle)]
    return refused


def _copy_bytes(connection: psycopg.Connection, encoded: memoryview) -> None:
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.write(rows.COPY_HEADER)
        copy.write(encoded)
        copy.write(rows.COPY_TRAILER)


def _refuse(
    connection: psycopg.Connection, decisions: rows.Decisions, row: int, attribute_ids: Sequence[bytes | None],
    err: psycopg.Error,
) -> None:  # fmt: skip
    index = int(decisions.attributes[row])
    connection.execute(
        sql.query("insert_refused"),
        [
            rows.storable(decisions.topics[decisions.topic[row]]),
            int(decisions.partition[row]),
            int(decisions.offset[row]),
            err.sqlstate,
            rows.storable(err.diag.message_primary or str(err)),
            Jsonb(rows.as_json(decisions, row, attribute_ids[index] if index >= 0 else None)),
        ],
    )


def _write_ranges(
    connection: psycopg.Connection, ranges: Sequence[rows.SourceRange], dictionaries: Dictionaries
) -> None:
    if not ranges:
        return
    connection.execute(
        sql.query("insert_ranges"),
        [
            dictionaries.topic_ids(connection, [item.topic for item in ranges]),
            dictionaries.worker_ids(connection, [item.worker for item in ranges]),
            [item.partition for item in ranges],
            [item.first for item in ranges],
            [item.following for item in ranges],
            [item.records for item in ranges],
        ],
    )


def _write_dead_letters(connection: psycopg.Connection, dead_letters: Sequence[DeadLetter]) -> None:
    if dead_letters:
        with connection.cursor() as cursor:
            cursor.executemany(sql.query("insert_dead_letter"), [asdict(item) for item in dead_letters])


def _write_watched(connection: psycopg.Connection, watched: Sequence[Watched]) -> tuple[str, ...]:
    """Stores their rows, else why not, a statement after the other; returns the topics of those without rows."""
    refusals = {i: each.content for i, each in enumerate(watched) if isinstance(each.content, Refusal)}
    rows_of: dict[Statement, list[tuple[int, Row]]] = {}
    for i, each in enumerate(watched):
        for statement, row in () if isinstance(each.content, Refusal) else each.content:
            rows_of.setdefault(statement, []).append((i, row))
    for statement, found in rows_of.items():
        refusals |= _insert(connection, statement, found)
    with connection.cursor() as cursor:
        cursor.executemany(sql.query("insert_refused_record"), [watched[i].refusal(why) for i, why in refusals.items()])
    return tuple(watched[i].topic for i in refusals)


def _insert(
    connection: psycopg.Connection, statement: Statement, found: Sequence[tuple[int, Row]]
) -> dict[int, Refusal]:
    """Inserts the rows; what Postgres refuses is halved down to the row. Returns why, by the number of the record."""
    try:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(sql.query(statement), [row for _, row in found])
    except _ROW_ERRORS as err:
        if len(found) == 1:
            return {found[0][0]: Refusal(err.sqlstate or "not_storable", err.diag.message_primary or str(err))}
        middle = len(found) // 2
        return _insert(connection, statement, found[:middle]) | _insert(connection, statement, found[middle:])
    return {}


def _number(header: str | None, highest: int) -> int | None:
    """The header as a number from 0 to highest, None if it is no such number."""
    if header is None or not header.isascii() or not header.isdigit() or len(header) > len(str(highest)):
        return None
    return number if (number := int(header)) <= highest else None
