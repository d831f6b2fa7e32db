"""Labels meet decisions: joined, judged and counted in one Postgres transaction, apart from the writer's windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from audit import labels, sql
from audit.labels import Decided, GroupKey, Label, LabelCount, Pair, Setting, Settings, Totals
from audit.watched import clean
from kernels.spec import ModelSpec

LABELS_MAX = 1000  # that are looked up in a transaction
WAITING_MAX = 100_000  # that are counted
_JOINER = 0x6C6162656C  # "label": one writer joins at a time, so that the first label is the first for all
_COUNTED = tuple(each.name for each in fields(Setting))
_STATED = (*_COUNTED, "threshold", "risk_class", "disparity_limit", "freeze_on", "on_freeze", "on_missing")
Releases = set[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of the labels that were looked up, by state; the releases whose totals changed; how many labels wait,
    at most WAITING_MAX."""

    states: Mapping[str, int]
    releases: frozenset[tuple[str, str]]
    waiting: int


def join(connection: psycopg.Connection) -> Joined:
    """Looks up the labels that are due, about LABELS_MAX; none while another writer does so. First come the freezes
    that were ended: from then on the totals are of what was decided since."""
    waiting = _number(connection, "count_waiting_labels", [WAITING_MAX])
    if not _number(connection, "try_lock", [_JOINER]):
        return Joined({}, frozenset(), waiting)
    begun = _begin_epochs(connection)
    due = [Label(*row) for row in connection.execute(sql.query("due_labels"), {"labels": LABELS_MAX})]
    if not due:
        return Joined({}, frozenset(begun), waiting)
    settings = _settings(connection)
    verdicts = labels.judge(due, _found(connection, due), settings)
    connection.execute(
        sql.query("update_labels"),
        {
            "ids": [label.id for label in due],
            "states": [verdict.state for verdict in verdicts],
            "reasons": [verdict.reason for verdict in verdicts],
        },
    )
    pairs = [(each, label) for label, verdict in zip(due, verdicts, strict=True) for each in verdict.joins]
    _insert_joins(connection, pairs)
    counted = [Pair(*each[2:6], label.outcome) for each, label in pairs if each.counts]
    changed = begun | _add(connection, counted, settings)
    states: dict[str, int] = {}
    for verdict in verdicts:
        states[verdict.state] = states.get(verdict.state, 0) + 1
    return Joined(states, frozenset(changed), waiting)


def keep_settings(connection: psycopg.Connection, specs: Iterable[ModelSpec]) -> Releases:
    """Stores what the models' owners state, where it changed; recounts the labels of those that count otherwise now.

    Returns the releases that have totals.
    """
    connection.execute("select pg_advisory_xact_lock(%s)", [_JOINER])
    before = _settings(connection)
    for spec in specs:
        connection.execute(sql.query("insert_model_setting"), clean(_row(spec)))
    for release, setting in _settings(connection).items():
        if before.get(release, setting) != setting:
            _recount(connection, release, setting)
    return {(row[0], row[1]) for row in connection.execute("select distinct model, version from audit.label_count")}


def totals(connection: psycopg.Connection, releases: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Totals]:
    """The totals of each of these releases; one statement, so that they are of the epoch that they say."""
    found: dict[tuple[str, str], Totals] = {}
    for ended, *row in connection.execute(sql.query("label_totals"), _columns(sorted(releases), 2)):
        counts = found.setdefault((row[0], row[1]), Totals(ended, {})).counts
        if row[2] is not None:
            counts[GroupKey(*row[:4])] = LabelCount(*row[4:])
    return found


def _number(connection: psycopg.Connection, query: str, given: Sequence[Any]) -> int:
    row = connection.execute(sql.query(query), given).fetchone()
    return int(row[0]) if row else 0


def _found(connection: psycopg.Connection, due: Sequence[Label]) -> dict[int, list[Decided]]:
    given = {
        "ids": [label.id for label in due],
        "request_ids": [label.request_id for label in due],
        "models": [label.model for label in due],
        "most": labels.DECISIONS_MAX + 1,
    }
    found: dict[int, list[Decided]] = {}
    for number, *row in connection.execute(sql.query("labelled_requests"), given):
        topic_id, partition, offset, *rest = row
        found.setdefault(number, []).append(Decided((topic_id, partition, offset), *rest))
    return found


def _insert_joins(connection: psycopg.Connection, pairs: Sequence[tuple[Decided, Label]]) -> None:
    if pairs:
        rows = [(*each.source, each.received_at, label.id) for each, label in pairs]
        connection.execute(sql.query("insert_label_joins"), _columns(rows, 5))


def _add(connection: psycopg.Connection, joined: Sequence[Pair], settings: Settings) -> Releases:
    """Adds them to the totals; returns the releases whose totals changed."""
    releases = sorted({(each.model, each.version) for each in joined})
    if not releases:
        return set()
    known: dict[tuple[str, str, str], set[str]] = {}
    for model, version, attribute, group in connection.execute(sql.query("label_groups"), _columns(releases, 2)):
        if group is not None:
            known.setdefault((model, version, attribute), set()).add(group)
    counts = labels.count(joined, settings, known)
    if counts:
        rows = [(*key, *number) for key, number in counts.items()]
        connection.execute(sql.query("add_label_counts"), _columns(rows, 8))
    return {(key.model, key.version) for key in counts}


def _begin_epochs(connection: psycopg.Connection) -> Releases:
    """Counts anew the releases of which a freeze was ended, and returns them."""
    begun = {(row[0], row[1]) for row in connection.execute(sql.query("begin_label_epochs"))}
    settings = _settings(connection) if begun else {}
    for release in begun:
        _recount(connection, release, settings[release])
    return begun


def _recount(connection: psycopg.Connection, release: tuple[str, str], setting: Setting) -> None:
    connection.execute("delete from audit.label_count where model = %s and version = %s", release)
    found = connection.execute(sql.query("joined_of_release"), release).fetchall()
    _add(connection, [Pair(*row) for row in found], {release: setting})


def _settings(connection: psycopg.Connection) -> Settings:
    """Of all releases that there ever were: labels come late, and a writer may run without a repository."""
    found = connection.execute("select model, version, stated from audit.model_setting_now")
    return {(row[0], row[1]): Setting(**{name: row[2].get(name) for name in _COUNTED}) for row in found}


def _row(spec: ModelSpec) -> dict[str, Any]:
    setting = Setting(**{name: getattr(spec, name) for name in _COUNTED})
    return {
        "model": spec.model, "version": spec.version, "sha256": spec.sha256, "favourable": spec.favourable,
        "labels": spec.labels and list(spec.labels), "attributes": Jsonb(setting.attributes),
        "stated": Jsonb({name: getattr(spec, name) for name in _STATED}),
    }  # fmt: skip


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """The columns of the rows, of no rows too."""
    return [[row[i] for row in rows] for i in range(width)]
