"""A store as a quarter of watching leaves it, and what is in it by plain counting."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from audit.fairness import demographic_parity
from audit.store import AuditWindow, Store
from tests.decisions import Row, batch_of

MODEL, VERSION = "loans", "2"
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
WEEKS = 13
FAVOURABLE = "grant"
LIMIT = 0.05
INJECTION = "<script>alert('x')</script> & \"quoted\" $x_1$ \N{SNOWMAN}"
GROUPS = (("F", "young", 0.42), ("F", "old", 0.36), ("M", "young", 0.44), ("M", "old", 0.41), ("X", "young", 0.4))


@dataclass
class Stored:
    """By (sex, age), "" where not stated; `labelled`: decided, favourable, positive and both of those with a label."""

    decided: Counter[tuple[str, str]] = field(default_factory=Counter)
    favourable: Counter[tuple[str, str]] = field(default_factory=Counter)
    labelled: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    correct: Counter[tuple[str, str]] = field(default_factory=Counter)

    def by(self, place: int) -> dict[str, tuple[int, int]]:
        """Counts of the sexes (0) or ages (1)."""
        found: dict[str, tuple[int, int]] = {}
        for key, decided in self.decided.items():
            before = found.get(key[place], (0, 0))
            found[key[place]] = (before[0] + decided, before[1] + self.favourable[key])
        return found


def fill(url: str, rows_a_week: int = 300, first: datetime = FIRST) -> Stored:
    """Fill a migrated store; the same numbers each time."""
    stored = Stored()
    with Store(url, b"key") as store, psycopg.connect(url) as connection:
        _settings(connection)
        for week in range(WEEKS):
            at = first + timedelta(weeks=week, hours=3)
            _decisions(store, connection, stored, week, at, rows_a_week)
            _tests(connection, stored, first, at)
            _drift(connection, first, at, week)
        _events(connection, first)
    return stored


def _settings(connection: psycopg.Connection) -> None:
    stated = {"risk_class": "high", "disparity_limit": LIMIT, "freeze_on": "established"}
    connection.execute(
        "insert into audit.model_setting (model, version, sha256, favourable, labels, attributes, stated) "
        "values (%s, %s, %s, %s, %s, %s, %s)",
        [MODEL, VERSION, "ab" * 32, FAVOURABLE, ["refuse", FAVOURABLE], Jsonb([["sex"], ["age"], ["sex", "age"]]),
         Jsonb(stated)],
    )  # fmt: skip


def _decisions(
    store: Store, connection: psycopg.Connection, stored: Stored, week: int, at: datetime, count: int
) -> None:
    rng = np.random.default_rng(week)
    labels, rows = [], []
    for i in range(count):
        group = int(rng.choice(5, p=[0.3, 0.2, 0.3, 0.197, 0.003]))
        sex, age, rate = GROUPS[group]
        sex = "" if rng.random() < 0.05 else INJECTION if sex == "X" else sex
        granted = bool(rng.random() < rate - (0.08 if sex == "F" and week >= 8 else 0))
        outcome = FAVOURABLE if rng.random() < (0.75 if granted else 0.2) else "refuse"
        key, offset = (sex, age), week * count + i
        stored.decided[key] += 1
        stored.favourable[key] += granted
        if rng.random() < 0.6 and week < 10:
            labels.append((f"r{offset}", outcome, offset))
            counts = stored.labelled.setdefault(key, [0, 0, 0, 0])
            for place, each in enumerate((True, granted, outcome == FAVOURABLE, granted and outcome == FAVOURABLE)):
                counts[place] += each
            stored.correct[key] += granted == (outcome == FAVOURABLE)
        rows.append(Row(
            offset, request_id=f"r{offset}", model=MODEL, version=VERSION,
            received_at_ms=_ms(at + timedelta(minutes=10 * i)),
            variant="int8" if week > 5 else "original", certificate="c0ffee" if week > 5 else None,
            score=round(float(rng.random()), 4), decision=FAVOURABLE if granted else "refuse",
            attributes={**({"sex": sex} if sex else {}), "age": age}, consent_id="c" if i % 2 else None,
        ))  # fmt: skip
    rejected = [Row(10**9 + week, request_id=f"x{week}", model=MODEL, version=VERSION, status=1, score=None,
                    error=("nan_input", "NaN"), received_at_ms=_ms(at))]  # fmt: skip
    expected = None if week == 0 else week
    answered_us = 1000 * _ms(at + timedelta(days=3))
    batch = batch_of(rows + rejected, answered_at_us=answered_us)
    store.write(AuditWindow([("lrai.decisions", 0, expected, week + 1)], [batch], [], []))
    _labels(connection, labels)


def _labels(connection: psycopg.Connection, labels: list[tuple[str, str, int]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            """with stored as (
                insert into audit.label (topic, partition, "offset", request_id, model, outcome, at, state)
                values ('lrai.labels', 0, %(offset)s, %(id)s, %(model)s, %(outcome)s, now(), 'joined') returning id
            )
            insert into audit.label_join (topic_id, request_partition, request_offset, received_at, label_id)
            select d.topic_id, d.request_partition, d.request_offset, d.received_at, stored.id
            from stored, audit.decision_row d where d.request_id = %(id)s""",
            [
                {"offset": offset, "id": request_id, "model": MODEL, "outcome": outcome}
                for request_id, outcome, offset in labels
            ],
        )


def _tests(connection: psycopg.Connection, stored: Stored, first: datetime, at: datetime) -> None:
    """What the monitor would have said of all decisions so far."""
    for attribute, place in (("sex", 0), ("age", 1)):
        counts = stored.by(place)
        decided = sum(each[0] for each in counts.values())
        missing = counts.pop("", (0, 0))[0]
        found = demographic_parity(counts, LIMIT, 0.01)
        named = f"{attribute}{at}"
        record = {
            "id": hashlib.sha256(named.encode()).hexdigest(), "model": MODEL, "version": VERSION,
            "attribute": attribute, "definition": found.definition, "epoch": 0, "since": first, "at": at,
            "decisions": decided, "coverage": 1 - missing / decided, "value": found.value, "ratio": found.ratio,
            "limit": LIMIT, "alpha": 0.01, "method": found.method, "state": found.state,
        }  # fmt: skip
        for index, group in enumerate(found.groups):
            own = asdict(group)
            own["group_state"] = own.pop("state")
            _insert(connection, "fairness_row", {**record, "place": index, **own})


def _drift(connection: psycopg.Connection, first: datetime, at: datetime, week: int) -> None:
    for index, feature in enumerate(("score", "X[0]", "X[1]")):
        psi = 0.01 * (index + 1) * (1 + (week if index == 2 else 0))
        _insert(connection, "drift_window", {
            "id": f"{feature}{at}", "model": MODEL, "version": VERSION, "feature": feature, "edges": "e",
            "since": first, "at": at, "rows": 4000, "reference_rows": 1000, "psi": psi, "psi_limit": 0.2,
            "jensen_shannon": psi / 8, "ks": psi / 2, "wasserstein": psi, "adwin": int(psi > 0.2),
            "state": "alarm" if psi > 0.2 else "ok",
        })  # fmt: skip


def _events(connection: psycopg.Connection, first: datetime) -> None:
    frozen = first + timedelta(weeks=11)
    evidence = {"attribute": "sex", "definition": "demographic_parity_difference", "value": 0.094, "limit": LIMIT}
    release = {"model": MODEL, "version": VERSION}
    _insert(connection, "incident", {
        "id": "f1", **release, "frozen_at": frozen, "by": "monitor", "reason": "demographic_parity_difference of sex",
        "evidence": Jsonb(evidence), "unfrozen_at": frozen + timedelta(days=2), "unfrozen_by": "ann <ann@example.org>",
        "unfreeze_reason": INJECTION,
    })  # fmt: skip
    _insert(connection, "alert", {
        "id": "a1", "kind": "frozen", "severity": "critical", **release, "message": f"frozen: {INJECTION}",
        "action": "lrai equity review loans", "taken": True, "evidence": Jsonb(json.loads("{}")), "at": frozen,
    })  # fmt: skip
    for number, (request, text) in enumerate((("r17", INJECTION), ("unknown", "I was\nrefused"), ("r900", "why?"))):
        _insert(connection, "complaint", {
            "complaint_id": f"c{number}", "request_id": request, "model": MODEL, "text": text,
            "at": first + timedelta(weeks=3 * number + 1), "topic": "lrai.complaints", "partition": 0, "offset": number,
        })  # fmt: skip
    _insert(connection, "complaint_action", {
        "topic": "lrai.complaints", "partition": 0, "offset": 9, "complaint_id": "c2", "action": "closed", "by": "ann",
        "text": "explained", "at": first + timedelta(weeks=8),
    })  # fmt: skip


def _insert(connection: psycopg.Connection, table: str, row: dict[str, Any]) -> None:
    columns = psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, row))
    values = psycopg.sql.SQL(", ").join([psycopg.sql.Placeholder()] * len(row))
    statement = psycopg.sql.SQL("insert into audit.{} ({}) values ({})")
    connection.execute(statement.format(psycopg.sql.Identifier(table), columns, values), list(row.values()))


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
