"""The dictionaries of the audit store: ids given out by the database, remembered by the writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal
from uuid import UUID

import psycopg

from audit import rows, sql
from schemas.requests import read_map

_ENTRIES_MAX = 100_000  # entries a cache; beyond, it starts anew

Entry = tuple[str | None, ...]


class _Dictionary:
    """One table of (id, key, texts...): its ids, looked up and made in the transaction at hand."""

    def __init__(self, table: Literal["topic", "worker", "release"]) -> None:
        self._table = table
        self._committed: dict[Entry, int] = {}
        self._found: dict[Entry, int] = {}

    def ids(self, connection: psycopg.Connection, entries: Sequence[Entry]) -> list[int]:
        """The ids of the entries, in their order."""
        if unknown := {entry for entry in entries if entry not in self._committed and entry not in self._found}:
            self._find(connection, {UUID(bytes=rows.dictionary_key(entry)): entry for entry in unknown})
        return [self._committed.get(entry) or self._found[entry] for entry in entries]

    def _find(self, connection: psycopg.Connection, wanted: Mapping[UUID, Entry]) -> None:
        found = self._select(connection, wanted)
        # In the order of the keys, so that two writers with the same new entries do not wait for each other in a ring.
        if missing := sorted(set(wanted) - set(found)):
            columns = zip(*([text and rows.storable(text) for text in wanted[key]] for key in missing), strict=True)
            connection.execute(sql.query(f"insert_{self._table}"), [missing, *(list(column) for column in columns)])
            found = self._select(connection, wanted)
        self._found.update({wanted[key]: number for key, number in found.items()})

    def _select(self, connection: psycopg.Connection, wanted: Mapping[UUID, Entry]) -> dict[UUID, int]:
        return dict(connection.execute(sql.query(f"select_{self._table}"), [list(wanted)]).fetchall())

    def committed(self) -> None:
        if len(self._committed) + len(self._found) > _ENTRIES_MAX:
            self._committed.clear()
        self._committed.update(self._found)
        self._found.clear()

    def forget(self, committed: bool) -> None:
        self._found.clear()
        if committed:
            self._committed.clear()


class Dictionaries:
    """Topics, workers, releases and attribute sets of a store; what a transaction adds counts once it is committed."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._topics = _Dictionary("topic")
        self._workers = _Dictionary("worker")
        self._releases = _Dictionary("release")
        self._set_ids: dict[bytes, bytes] = {}
        self._stored: set[bytes] = set()
        self._new: dict[bytes, str] = {}

    def topic_ids(self, connection: psycopg.Connection, topics: Sequence[str]) -> list[int]:
        return self._topics.ids(connection, [(topic,) for topic in topics])

    def worker_ids(self, connection: psycopg.Connection, workers: Sequence[str]) -> list[int]:
        return self._workers.ids(connection, [(worker,) for worker in workers])

    def release_ids(self, connection: psycopg.Connection, releases: Sequence[rows.Release]) -> list[int]:
        return self._releases.ids(connection, releases)

    def attribute_ids(self, connection: psycopg.Connection, sets: Sequence[bytes]) -> list[bytes | None]:
        """The ids of the attribute sets, each an Avro map (None for an empty one); those not yet stored are stored."""
        ids = [self._attribute_id(item) for item in sets]
        if new := sorted(self._new.items()):
            found = [UUID(bytes=key) for key, _ in new], [canonical for _, canonical in new]
            connection.execute(sql.query("insert_attribute_sets"), found)
        return ids

    def _attribute_id(self, encoded: bytes) -> bytes | None:
        found = self._set_ids.get(encoded)
        if found is None or found not in self._stored:
            attributes = read_map(encoded)
            if not attributes:
                return None
            canonical = rows.attributes_json(attributes)
            found = rows.attributes_id(self._key, canonical)
            self._set_ids[encoded] = found
            if found not in self._stored:
                self._new[found] = canonical
        return found

    def committed(self) -> None:
        """The transaction is committed: what it found may be remembered."""
        for dictionary in (self._topics, self._workers, self._releases):
            dictionary.committed()
        if len(self._set_ids) > _ENTRIES_MAX:
            self._set_ids.clear()
            self._stored.clear()
        self._stored.update(self._new)
        self._new.clear()

    def forget_uncommitted(self) -> None:
        """A transaction begins; an earlier one may have been rolled back."""
        self._forget(committed=False)

    def forget(self) -> None:
        """Nothing is known of the store any more."""
        self._forget(committed=True)

    def _forget(self, committed: bool) -> None:
        for dictionary in (self._topics, self._workers, self._releases):
            dictionary.forget(committed)
        self._new.clear()
        if committed:
            self._set_ids.clear()
            self._stored.clear()
