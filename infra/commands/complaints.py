"""`lrai complaint add | list | close`: people report harmful answers, somebody answers for them."""

from __future__ import annotations

import json
import time
import uuid
from datetime import datetime
from typing import Annotated, Any

import psycopg
import typer
from psycopg.rows import DictRow, dict_row
from rich.table import Table
from rich.text import Text

from audit.watched import Refusal, watched
from infra.commands.live_state import user
from infra.commands.options import AsJson, Kafka, Prefix, Store, errors, group, out
from infra.commands.producing import produce
from schemas import framing
from schemas.errors import BadSetting, LraiError
from streams import topics
from streams.settings import Settings, load

NAME = "complaint"
STORED_S_MAX = 10.0
CONNECT_S = 3
ASK_EVERY_S = 0.1
ROWS_MAX = 10_000
_ONE = "select state, known, model, version, closed_by, closed_at from audit.complaint_state where complaint_id = %s"
_LIST = """
select complaint_id, state, request_id, known, model, version, decision, opened_at, text, closed_by, closed_at,
       closing_text
from audit.complaint_state where state = 'open' or not %s order by opened_at desc, complaint_id limit %s"""
app = group("What people report of harmful answers.")
Words = Annotated[str, typer.Option("--text", help="In words.")]


@app.command("add")
def add(
    request_id: Annotated[str, typer.Argument(help="Of the answer that it is about.")], text: Words,
    by: Annotated[str | None, typer.Option("--by", help="The person, of whom a pseudonym is stored.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Where request ids repeat between models.")] = None,
    kafka: Kafka = None, store: Store = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Reports an answer. Prints the id of the complaint."""
    settings = load(kafka=kafka, store=store, prefix=prefix)
    number = str(uuid.uuid4())
    _send(settings, {"complaint_id": number, "request_id": request_id, "model": model, "by": by, "text": text})
    out.print(number, highlight=False)
    found = _stored(settings, _ONE, number)
    if found and not found["known"]:
        unknown = f"request {request_id!r} is not in the store (yet); the complaint is kept all the same"
        errors.print(unknown, markup=False, highlight=False)


@app.command("list")
def show(
    only_open: Annotated[bool, typer.Option("--open", help="Only those that nobody has closed.")] = False,
    most: Annotated[int, typer.Option("-n", min=1, max=ROWS_MAX, help="At most so many.")] = 100,
    as_json: AsJson = False, store: Store = None,
) -> None:  # fmt: skip
    """Complaints, the newest first."""
    with _connected(load(store=store)) as connection:
        found = connection.execute(_LIST, [only_open, most]).fetchall()
    if as_json:
        print(json.dumps(found, default=datetime.isoformat, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("complaint", "state", "opened", "request", "answer", "text", "closed by"):
        table.add_column(name)
    for row in found:
        answer = f"{row['model']} {row['version']}: {row['decision']}" if row["known"] else "unknown request"
        opened = f"{row['opened_at']:%Y-%m-%d %H:%M}"
        cells = (row["complaint_id"], row["state"], opened, row["request_id"], answer, row["text"], row["closed_by"])
        table.add_row(*(Text(each or "") for each in cells))  # people's words are no markup
    out.print(table)


@app.command("close")
def close(
    complaint_id: str, text: Words,
    by: Annotated[str | None, typer.Option("--by", help="Who answers for it; the user of this shell without.")] = None,
    kafka: Kafka = None, store: Store = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Says what was done about a complaint."""
    settings = load(kafka=kafka, store=store, prefix=prefix)
    with _connected(settings) as connection:
        found = connection.execute(_ONE, [complaint_id]).fetchone()
    if found is None:
        raise LraiError(f"the store has no complaint {complaint_id!r} (yet); `lrai complaint list` shows those it has")
    if found["state"] == "closed":
        raise LraiError(f"complaint {complaint_id!r} was closed by {found['closed_by']} at {found['closed_at']:%c}")
    _send(settings, {"complaint_id": complaint_id, "action": "closed", "by": by or user(), "text": text})
    closed = "select 1 as one from audit.complaint_action where complaint_id = %s and action = 'closed'"
    if _stored(settings, closed, complaint_id):
        out.print(f"{complaint_id} is closed", markup=False, highlight=False)


def _send(settings: Settings, record: dict[str, Any]) -> None:
    """Raises BadSetting for what the store would refuse."""
    topic = topics.watched(settings.prefix, topics.COMPLAINTS)
    value = framing.encode(NAME, {**record, "at": time.time_ns() // 1_000_000})
    found = watched((topic, 0, 0), 0, value, framing.decode(value), str)
    if isinstance(found.content, Refusal):
        raise BadSetting(found.content.message)
    produce(settings, topic, [(record["complaint_id"], value)])


def _stored(settings: Settings, question: str, complaint_id: str) -> DictRow | None:
    """The store's answer, as soon as it has the record; says so if that takes too long."""
    end_s = time.monotonic() + STORED_S_MAX
    try:
        with _connected(settings) as connection:
            while time.monotonic() < end_s:
                if found := connection.execute(question.encode(), [complaint_id]).fetchone():
                    return found
                time.sleep(ASK_EVERY_S)
    except psycopg.Error:
        pass
    errors.print("Kafka has it; it is on its way to the store, which does not show it yet")
    return None


def _connected(settings: Settings) -> psycopg.Connection[DictRow]:
    return psycopg.connect(settings.store, autocommit=True, connect_timeout=CONNECT_S, row_factory=dict_row)
