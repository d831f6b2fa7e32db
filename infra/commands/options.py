"""Options and consoles that the commands share."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

errors = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 240)  # a pipe has no edge to wrap at

Models = Annotated[Path | None, typer.Option("--models", help="The model repository.")]
Kafka = Annotated[str | None, typer.Option("--kafka", help="HOST:PORT of the cluster.")]
Store = Annotated[str | None, typer.Option("--store", help="postgresql://... of the audit store.")]
Prefix = Annotated[str | None, typer.Option("--prefix", help="Begins every topic and group.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, tensorrt or openvino; cuda:1: another GPU.")]
Version = Annotated[str | None, typer.Option("--version", help="Version of the model; the newest without.")]


class Priority(StrEnum):
    """Who may write to which topic decides the priority of a request."""

    interactive = "interactive"
    standard = "standard"
    bulk = "bulk"


def group(about: str) -> typer.Typer:
    """A command with commands of its own."""
    return typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=about)
