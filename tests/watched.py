"""Records of the watched topics, written to a store as the audit writer does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from audit.framed import Reading
from audit.store import AuditWindow, Store
from audit.watched import Watched, watched
from schemas import framing
from schemas.errors import BadRecord
from streams.coalesce import pseudonyms
from tests.decisions import RECEIVED_MS

KEY = b"a key of the tests"
READ = Reading("lrai")
TOPICS = {"tally": "tallies", "fairness": "fairness", "drift": "fairness", "alert": "alerts", "label": "labels",
          "complaint": "complaints", "control": "control"}  # fmt: skip


class Writing:
    """Writes records as they come from Kafka, each at the next offset of its topic."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.next: dict[str, int] = {}

    def value(self, topic: str, value: bytes) -> Watched:
        offset = self.next.get(topic, 0)
        self.next[topic] = offset + 1
        decoded: tuple[str, dict[str, Any]] | BadRecord
        try:
            decoded = READ(topic, value)
        except BadRecord as err:
            decoded = err
        return watched((topic, 0, offset), RECEIVED_MS, value, decoded, pseudonyms(KEY))

    def values(self, *values: tuple[str, bytes]) -> tuple[str, ...]:
        before = dict(self.next)
        found = [self.value(f"lrai.{topic}", value) for topic, value in values]
        offsets = [(topic, 0, before.get(topic), self.next[topic]) for topic in {each.topic for each in found}]
        return self.store.write(AuditWindow(offsets, [], [], [], found)).refused_of

    def records(self, *records: tuple[str, Mapping[str, Any]]) -> tuple[str, ...]:
        return self.values(*((TOPICS[name], framing.encode(name, record)) for name, record in records))


def fetch(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()
