"""What the audit store says of a release's fairness: for `lrai equity review`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

CONNECT_S = 5
STATEMENT_MS = 15_000
ROWS_MAX = 10
EXAMPLES = 5
TESTS = """
select f.* from audit.fairness_window f
join (select distinct on (attribute, definition) id from audit.fairness_window
      where model = %(model)s and version = %(version)s
      order by attribute, definition, epoch desc, decisions desc, at desc) newest using (id)
where model = %(model)s and version = %(version)s
order by f.attribute, f.definition, f."group" nulls last"""
EXAMPLE = """
select request_id, %(attribute)s as attribute, %(group)s as "group", decision, score, answered_at
from audit.decision
where model = %(model)s and version = %(version)s and status = 'OK' and attributes @> %(attributes)s
order by received_at desc limit %(limit)s"""
ALERTS = """
select at, kind, severity, message, action from audit.alert
where model = %(model)s and version = %(version)s order by at desc limit %(limit)s"""
COMPLAINTS = """
select opened_at, complaint_id, request_id, decision, text from audit.complaint_state
where state = 'open' and model = %(model)s and (version is null or version = %(version)s)
order by opened_at desc limit %(limit)s"""
INCIDENTS = """
select frozen_at, by, reason, unfrozen_at, unfrozen_by, unfreeze_reason from audit.incident
where model = %(model)s and version = %(version)s order by frozen_at desc nulls last limit %(limit)s"""
Rows = list[dict[str, Any]]


@dataclass
class Evidence:
    """Rows as the store has them; what the reader's role may not see is not in them. `problem`: why something is
    missing."""

    tests: Rows = field(default_factory=list)
    examples: Rows = field(default_factory=list)
    alerts: Rows = field(default_factory=list)
    complaints: Rows = field(default_factory=list)
    incidents: Rows = field(default_factory=list)
    problem: str = ""


def gather(store: str, model: str, version: str, about: tuple[str, list[str]] | None) -> Evidence:
    """`about`: attribute and groups to show examples of; without it the newest test that is not ok says which."""
    found = Evidence()
    names = {"model": model, "version": version, "limit": ROWS_MAX}
    options = f"-c statement_timeout={STATEMENT_MS}"
    try:
        with psycopg.connect(
            store, autocommit=True, connect_timeout=CONNECT_S, row_factory=dict_row, options=options
        ) as connection:
            found.tests = list(connection.execute(TESTS, names))
            found.alerts = list(connection.execute(ALERTS, names))
            found.complaints = list(connection.execute(COMPLAINTS, names))
            found.incidents = list(connection.execute(INCIDENTS, names))
            found.examples = _examples(connection, names, about or _worst(found.tests))
    except psycopg.errors.InsufficientPrivilege as err:
        found.problem = f"the store's role may not see everything: {str(err).strip()}"
    except psycopg.Error as err:
        found.problem = f"the audit store does not answer: {str(err).strip()}"
    return found


def _worst(tests: Rows) -> tuple[str, list[str]] | None:
    far = [row for row in tests if row["group_state"] in ("warn", "alarm") and row["difference"] is not None]
    if not far:
        return None
    attribute = max(far, key=lambda row: abs(row["difference"]))["attribute"]
    return attribute, list(dict.fromkeys(row["group"] for row in far if row["attribute"] == attribute))


def _examples(
    connection: psycopg.Connection[DictRow], names: dict[str, Any], about: tuple[str, list[str]] | None
) -> Rows:
    """The newest answers to each group; an intersection is several attributes."""
    attribute, groups = about or ("", [])
    found: Rows = []
    parts = attribute.split("+")
    for group in groups[:EXAMPLES]:
        values = group.split("+") if len(parts) > 1 else [group]
        if len(values) == len(parts):  # else a value has a + itself
            wanted = Jsonb(dict(zip(parts, values, strict=True)))
            asked = {**names, "attribute": attribute, "group": group, "attributes": wanted, "limit": EXAMPLES}
            found += connection.execute(EXAMPLE, asked)
    return found
