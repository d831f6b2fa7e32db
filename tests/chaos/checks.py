"""What must hold after everything: one answer and one row for each request, ranges without a hole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import psycopg

from audit.verify import verify
from tests.chaos.harness import Answer, Client, Place, Reader, Source, read_all, until

DRAIN_S_MAX = 60.0
ROWS = """select request_topic, request_partition, request_offset from audit.decision
    union all select request_topic, request_partition, request_offset from audit.dead_letter"""


def stored(place: Place) -> int:
    """How many decisions and dead letters the store holds."""
    with psycopg.connect(place.store, connect_timeout=5) as connection:
        row = connection.execute(f"select count(*) from ({ROWS}) as found").fetchone()
    return int(row[0]) if row else 0


def drained(place: Place, client: Client, reader: Reader, limit_s: float = DRAIN_S_MAX) -> None:
    """Waits until every request is answered and stored."""
    client.flush()
    count = len(client.sent)
    until(lambda: len(reader.sources) >= count, limit_s, lambda: _missing(client, reader))
    until(lambda: stored(place) >= count, limit_s, lambda: f"{stored(place)} of {count} rows in the store")


def _missing(client: Client, reader: Reader) -> str:
    open_ones = [source for source in list(client.sent) if source not in reader.sources]
    return f"{len(open_ones)} of {len(client.sent)} requests have no answer, for example {sorted(open_ones)[:5]}"


def exactly_once(place: Place, client: Client) -> list[Answer]:
    """Reads everything again, from Kafka and from Postgres, and compares it with what was sent."""
    answers = read_all(place)
    _compare("answers and dead letters", Counter(each.source for each in answers), client)
    with psycopg.connect(place.store) as connection:
        rows = connection.execute(ROWS).fetchall()
        in_kafka = {each.source: each for each in answers}
        decided = connection.execute(
            "select request_topic, request_partition, request_offset, request_id, status from audit.decision"
        ).fetchall()
    _compare("rows", Counter((topic, partition, offset) for topic, partition, offset in rows), client)
    differ = [row for row in decided if (in_kafka[row[:3]].request_id, in_kafka[row[:3]].status) != tuple(row[3:])]
    assert not differ, f"{len(differ)} rows say something else than the answer: {differ[:3]}"
    wrong = [a for a in answers if a.status != "DEAD" and a.request_id != client.sent[a.source][0]]
    assert not wrong, f"{len(wrong)} answers carry another request's id: {wrong[:3]}"
    report = verify(place.store, datetime.now(UTC), 0.0)
    assert report.ok, [str(each) for each in report.problems[:5]]
    assert report.records == len(client.sent), report
    assert report.decisions_in_flight == report.refused == 0, report
    return answers


def _compare(what: str, found: Counter[Source], client: Client) -> None:
    lost = sorted(client.sent.keys() - found.keys())
    twice = sorted(source for source, times in found.items() if times > 1)
    unasked = sorted(found.keys() - client.sent.keys())
    assert not lost, f"{len(lost)} of {len(client.sent)} {what} are lost: {lost[:5]}"
    assert not twice, f"{len(twice)} of {len(client.sent)} {what} are there twice: {twice[:5]}"
    assert not unasked, f"{len(unasked)} {what} belong to no request: {unasked[:5]}"


def quantiles(seconds: Sequence[float]) -> str:
    """p50, p95 and the highest, in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, max {max(seconds) * 1000:.0f} ms ({len(seconds)} times)"
