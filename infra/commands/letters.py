"""`lrai deadletter list | show | replay`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from infra.commands import deadletters, shown
from infra.commands.options import AsJson, Kafka, Prefix, group, out
from schemas.errors import BadSetting, LraiError
from streams.settings import load

FILE_ROWS_MAX = 10_000  # dead letters looked at in one command
Reason = Annotated[str | None, typer.Option("--reason", help="Only those with this error code.")]
app = group("Records that are no request: look at them, send them again.")


@app.command("list")
def show_letters(
    most: Annotated[int, typer.Option("-n", min=1, max=FILE_ROWS_MAX, help="At most so many.")] = 100,
    reason: Reason = None, as_json: AsJson = False, kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Dead letters, the oldest first."""
    settings = load(kafka=kafka, prefix=prefix)
    shown.letters(out, list(deadletters.letters(settings, reason, most)), as_json)


@app.command("show")
def show_letter(partition: int, offset: int, kafka: Kafka = None, prefix: Prefix = None) -> None:
    """Headers and bytes of the dead letter at PARTITION OFFSET. They may hold a subject in the clear."""
    shown.letter(deadletters.letter_at(load(kafka=kafka, prefix=prefix), partition, offset))


@app.command("replay")
def replay_letters(
    partition: Annotated[int | None, typer.Argument()] = None,
    offset: Annotated[int | None, typer.Argument()] = None,
    reason: Reason = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    most: Annotated[int, typer.Option("-n", min=1, max=FILE_ROWS_MAX, help="At most so many.")] = 100,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Sends dead letters again, to the topics they came from: PARTITION OFFSET, or --reason, or --all."""
    settings = load(kafka=kafka, prefix=prefix)
    if partition is not None and offset is not None:
        chosen = [deadletters.letter_at(settings, partition, offset)]
    elif reason or every:
        chosen = list(deadletters.letters(settings, reason, most))
    else:
        raise BadSetting("name PARTITION OFFSET, or --reason CODE, or --all")
    if not chosen:
        raise LraiError("there is no such dead letter")
    shown.letters(out, chosen, as_json=False)
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Send {len(chosen)} record(s) again?")):
        raise LraiError("nothing was sent; confirm, or say --yes")
    out.print(f"{deadletters.replay(settings, chosen)} record(s) sent again")
