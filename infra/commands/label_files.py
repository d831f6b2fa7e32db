"""`lrai label`: what really was so, from a CSV file to the topic of labels."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from audit.watched import watched
from infra.commands.options import Kafka, Prefix, errors, out
from infra.commands.producing import produce
from infra.commands.request_files import BadFile
from schemas import framing
from streams import topics
from streams.settings import load

NAME = "label"
COLUMNS = ("request_id", "outcome", "model", "at")
NEEDED = COLUMNS[:2]
SHOW_EVERY = 500


@dataclass(frozen=True, slots=True)
class FileLabel:
    """A label of a file; `where`: its place, for messages."""

    where: str
    record: dict[str, Any]


def label(
    file: Annotated[Path, typer.Argument(help="CSV with the columns request_id, outcome and, if wanted, model, at.")],
    by: Annotated[str | None, typer.Option("--by", help="Where the labels come from; stored with each.")] = None,
    kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Sends what really was so of requests that were answered; the audit writer joins it to the decisions."""
    settings = load(kafka=kafka, prefix=prefix)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as bars:
        total = sum(1 for _ in read(file, by))  # the whole file is checked before anything is sent
        task = bars.add_task("sent", total=total)

        def progress(number: int) -> None:
            if number % SHOW_EVERY == 0 or number == total:
                bars.update(task, completed=number)

        records = ((each.record["request_id"], framing.encode(NAME, each.record)) for each in read(file, by))
        number = produce(settings, topics.watched(settings.prefix, topics.LABELS), records, progress)
    out.print(f"{number} label(s) sent; audit.label says what becomes of them")


def read(path: Path, by: str | None) -> Iterator[FileLabel]:
    """The labels of a CSV file. `at`: a time in ISO 8601, UTC where it names no zone. Raises BadFile."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file, strict=True)
            header = next(table, [])
            _check(path, header)
            for cells in table:
                if cells:
                    yield _label(f"{path}, line {table.line_num}", header, cells, by)
    except OSError as err:
        raise BadFile(f"{path}: cannot be read ({err.strerror or err})") from err
    except UnicodeDecodeError as err:
        raise BadFile(f"{path}: is no UTF-8 text at byte {err.start}; save it as UTF-8") from err
    except csv.Error as err:
        raise BadFile(f"{path}, line {table.line_num}: is no CSV ({err})") from err


def _check(path: Path, header: list[str]) -> None:
    for name in NEEDED:
        if name not in header:
            raise BadFile(f"{path}, line 1: there is no column {name!r}; name {', '.join(NEEDED)}")
    for name in header:
        if name not in COLUMNS:
            raise BadFile(f"{path}, line 1: column {name!r} is not known; name {', '.join(COLUMNS)}")
        if header.count(name) > 1:
            raise BadFile(f"{path}, line 1: column {name!r} is there {header.count(name)} times; name it once")


def _label(where: str, header: list[str], cells: list[str], by: str | None) -> FileLabel:
    if len(cells) != len(header):
        raise BadFile(f"{where}: has {len(cells)} values, the header names {len(header)} columns")
    row = dict(zip(header, cells, strict=True))
    at = _moment_ms(where, row["at"]) if row.get("at") else time.time_ns() // 1_000_000
    record = {name: row[name] for name in NEEDED} | {"model": row.get("model") or None, "by": by, "at": at}
    # the store's own rules, so that nothing is sent that it refuses unseen
    content: Any = watched(("", 0, 0), 0, b"", (NAME, record), str).content
    if reason := content[0][1]["reason"]:
        raise BadFile(f"{where}: {reason}")
    return FileLabel(where, record)


def _moment_ms(where: str, text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as err:
        raise BadFile(f"{where}: at = {text!r} is no time; write it like 2026-01-31T12:00:00+00:00") from err
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
