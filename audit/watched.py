"""Records of the watched topics as rows of the store: whatever lies there becomes rows or a refusal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from psycopg.types.json import Jsonb

from audit.rows import storable
from schemas.errors import BadRecord
from streams.control import FREEZE, UNFREEZE

TEXT_MAX = 10_000  # characters that are kept of what a client writes
ID_MAX = 512  # characters of an id that is a key of a table
REQUEST_ID_MAX = 10_000  # what request_id_bytes_max allows at most
NAME_MAX = 256  # characters of a model's name, an outcome, a person
ACTIONS = ("opened", "noted", "closed")
Row = dict[str, Any]
Statement = Literal[
    "insert_control_event", "insert_incident", "insert_tally", "insert_fairness", "insert_drift", "insert_alert",
    "insert_label", "insert_complaint", "insert_complaint_action",
]  # fmt: skip
_ODD = ("\\u0000", "NaN", "Infinity")  # as JSON's text shows what Postgres cannot hold; a word of a text does no harm
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record has no rows."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Watched:
    """A record and its rows, each with the statement that stores it."""

    topic: str
    partition: int
    offset: int
    produced_ms: int
    value: bytes
    content: tuple[tuple[Statement, Row], ...] | Refusal

    def refusal(self, why: Refusal) -> Row:
        """The row that says why it has none."""
        return {
            "topic": self.topic, "partition": self.partition, "offset": self.offset, "reason": why.reason,
            "message": storable(why.message[:TEXT_MAX]), "sha256": hashlib.sha256(self.value).digest(),
            "size": len(self.value), "produced_at": moment(self.produced_ms),
        }  # fmt: skip


def watched(
    place: tuple[str, int, int], produced_ms: int, value: bytes, decoded: tuple[str, Mapping[str, Any]] | BadRecord,
    pseudonym: Callable[[str], str],
) -> Watched:  # fmt: skip
    """`decoded`: the name of the schema and the record, or why there is none; `pseudonym`: of who complains."""
    content: tuple[tuple[Statement, Row], ...] | Refusal
    if isinstance(decoded, BadRecord):
        content = Refusal(decoded.code, str(decoded))
    else:
        name, record = decoded
        topic, partition, offset = place
        try:
            found = _ROWS[name]({**record, "topic": topic, "partition": partition, "offset": offset}, pseudonym)
            content = tuple((statement, clean(row)) for statement, row in found)
        except BadRecord as err:
            content = Refusal(err.code, str(err))
    return Watched(*place, produced_ms, value, content)


def moment(ms: int | None) -> datetime | None:
    """Milliseconds since the epoch as a time, None where the calendar has none."""
    try:
        return None if ms is None else _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        return None


def as_json(text: str | None) -> Jsonb | None:
    """Text that should be JSON; what is not is kept as a string.

    >>> as_json('{"a": 1}').obj, as_json("no json").obj
    ({'a': 1}, 'no json')
    """
    if text is None:
        return None
    try:
        return Jsonb(json.loads(text, parse_constant=str))
    except (ValueError, RecursionError):
        return Jsonb(text)


def clean(row: Row) -> Row:
    """What Postgres can hold: no U+0000, and in JSON no NaN and no infinity."""
    return {name: _cleaned(value) for name, value in row.items()}


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return _cleaned_json(value) if isinstance(value, Jsonb) else value


def _cleaned_json(value: Jsonb) -> Jsonb:
    """Looked at as text first, which is then what is stored: few values hold anything odd, and a walk takes longer."""
    text = json.dumps(value.obj)
    if any(odd in text for odd in _ODD):
        return Jsonb(_storable_json(value.obj))
    return Jsonb(value.obj, lambda _: text)


def _storable_json(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(name): _storable_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable_json(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _control(record: Row, _: Callable[[str], str]) -> list[tuple[Statement, Row]]:
    at = moment(record["at"]) or _EPOCH
    found: list[tuple[Statement, Row]] = [("insert_control_event", {**record, "at": at})]
    if record["kind"] in (FREEZE, UNFREEZE):
        begins = record["kind"] == FREEZE
        place = f"{record['topic']}/{record['partition']}/{record['offset']}"
        start = (at, record["by"], record["reason"], as_json(record["evidence"]))
        first, last = (start, (None,) * 3) if begins else ((None,) * 4, start[:3])
        names = ("frozen_at", "by", "reason", "evidence", "unfrozen_at", "unfrozen_by", "unfreeze_reason")
        row = {"id": record["id"], "place": place, "model": record["model"], "version": record["version"]}
        found.append(("insert_incident", {**row, "begins": begins, **dict(zip(names, first + last, strict=True))}))
    return found


def _tally(record: Row, _: Callable[[str], str]) -> list[tuple[Statement, Row]]:
    if len(record["latency"]) % 4:
        raise BadRecord("wrong_length", f"latency has {len(record['latency'])} bytes, no int32 column")
    latency = np.frombuffer(record["latency"], "<i4").tolist()
    parts = {name: Jsonb(record[name]) for name in ("outcomes", "releases", "groups")}
    return [("insert_tally", {**record, **_times(record, "at", "received_at"), **parts, "latency": latency})]


def _fairness(record: Row, _: Callable[[str], str]) -> list[tuple[Statement, Row]]:
    whole = {**record, **_times(record, "at", "since")}
    groups = record["groups"] or [dict.fromkeys(_GROUP)]
    return [
        ("insert_fairness", {**whole, **each, "state": record["state"], "group_state": each["state"], "place": place})
        for place, each in enumerate(groups)
    ]


_GROUP = ("group", "decided", "favourable", "rate", "low", "high", "compared_with", "difference", "difference_low",
          "difference_high", "state")  # fmt: skip


def _drift(record: Row, _: Callable[[str], str]) -> list[tuple[Statement, Row]]:
    return [("insert_drift", {**record, **_times(record, "at", "since")})]


def _alert(record: Row, _: Callable[[str], str]) -> list[tuple[Statement, Row]]:
    return [("insert_alert", {**record, **_times(record, "at"), "evidence": as_json(record["evidence"])})]


def _times(record: Row, *names: str) -> Row:
    """Raises BadRecord for a time that no calendar has."""
    found = {name: moment(record[name]) for name in names}
    for name, at in found.items():
        if at is None:
            raise BadRecord("wrong_time", f"{name} = {record[name]} ms lies outside the years 1 to 9999")
    return found


def _label(record: Row, _: Callable[[str], str]) -> list[tuple[Statement, Row]]:
    """A label with ids or texts out of bounds is stored as refused; one that says nothing of its time is of now."""
    names = {"request_id": REQUEST_ID_MAX, "outcome": NAME_MAX, "model": NAME_MAX, "by": NAME_MAX}
    reason = _out_of_bounds(record, names)
    kept = {name: record[name] and record[name][:most] for name, most in names.items()}
    state = "refused" if reason else "pending"
    return [
        ("insert_label", {**record, **kept, "stated_at": moment(record["at"]), "state": state, "reason": reason}),
    ]


def _complaint(record: Row, pseudonym: Callable[[str], str]) -> list[tuple[Statement, Row]]:
    """Raises BadRecord for what nobody could find again."""
    if record["action"] not in ACTIONS:
        raise BadRecord("unknown_action", f"action = {record['action'][:NAME_MAX]!r}; send {', '.join(ACTIONS)}")
    bounds = {"complaint_id": ID_MAX, "request_id": REQUEST_ID_MAX, "model": NAME_MAX, "by": NAME_MAX, "text": TEXT_MAX}
    if reason := _out_of_bounds(record, bounds):
        raise BadRecord("text_out_of_bounds", reason)
    row = {**record, "stated_at": moment(record["at"])}
    if record["action"] != "opened":
        return [("insert_complaint_action", row)]
    return [("insert_complaint", {**row, "by": record["by"] and pseudonym(record["by"])})]


def _out_of_bounds(record: Row, bounds: Mapping[str, int]) -> str | None:
    for name, most in bounds.items():
        text = record[name]
        if text is not None and not 1 <= len(text) <= most:
            return f"{name} has {len(text)} characters; send 1 to {most}"
        if text is not None and "\0" in text:
            return f"{name} holds U+0000; remove it"
    return None


_ROWS: dict[str, Callable[[Row, Callable[[str], str]], list[tuple[Statement, Row]]]] = {
    "control": _control, "tally": _tally, "fairness": _fairness, "drift": _drift, "alert": _alert, "label": _label,
    "complaint": _complaint,
}  # fmt: skip
