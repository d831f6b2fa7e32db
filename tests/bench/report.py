"""Figures, targets, and the report: a table on the terminal, JSON for programs, Markdown for people."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
from rich.console import Console
from rich.table import Table

PACKAGES = ("confluent-kafka", "fastavro", "numpy", "onnxruntime", "psycopg", "lrai")
KEPT = "<!-- kept: what follows is written by hand and stays when the benchmark runs again -->"


@dataclass
class Figure:
    """One figure of one contender, a value a round."""

    contender: str
    what: str
    values: list[float]
    digits: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"

    @property
    def spread(self) -> str:
        return f"{self.text(min(self.values))} .. {self.text(max(self.values))}"


@dataclass
class Target:
    """What was to be reached; `goal` is a minimum, or a maximum when `at_most`."""

    what: str
    value: float
    goal: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    @property
    def text(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{self.what} {self.value:,.3g} (to reach: {sign} {self.goal:,.3g})"


@dataclass
class Outcome:
    """A row of the table of targets, measured."""

    name: str
    title: str
    rounds: int
    figures: list[Figure] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    date: str = ""
    quick: bool = False

    def add(self, contender: str, what: str, values: Iterable[float], digits: int = 0) -> None:
        """Adds a figure unless the contender took no part."""
        if rounds := list(values):
            self.figures.append(Figure(contender, what, rounds, digits))

    def median(self, contender: str, what: str) -> float | None:
        return next((f.median for f in self.figures if (f.contender, f.what) == (contender, what)), None)

    def ratio(self, over: str, what: str, *goals: float, label: str | None = None, of: str = "LRAI") -> None:
        """Adds a target of `of` to `over` for each goal, when both took part."""
        ours, theirs = self.median(of, what), self.median(over, what)
        if ours is not None and theirs:
            self.targets += [Target(label or f"{of} / {over}", ours / theirs, goal) for goal in goals]

    def limit(self, contender: str, what: str, goal: float, at_most: bool = True) -> None:
        """Adds a target of a figure itself, when it was measured."""
        if (value := self.median(contender, what)) is not None:
            self.targets.append(Target(what, value, goal, at_most))

    @classmethod
    def of(cls, record: dict[str, Any]) -> Outcome:
        """From its JSON."""
        figures = [Figure(**figure) for figure in record["figures"]]
        targets = [Target(**target) for target in record["targets"]]
        return cls(**{**record, "figures": figures, "targets": targets})


def show(console: Console, outcome: Outcome) -> None:
    """Prints one outcome."""
    table = Table(title=outcome.title, title_justify="left")
    table.add_column("contender")
    for column in ("figure", "median", "min .. max", "LRAI is"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure in outcome.figures:
        ratio = _lrai_is(outcome, figure)
        table.add_row(figure.contender, figure.what, figure.text(figure.median), figure.spread, ratio)
    console.print(table)
    for target in outcome.targets:
        console.print(("[green]reached[/] " if target.reached else "[red]missed[/]  ") + target.text)
    for note in outcome.notes:
        console.print(f"  {note}")


def _lrai_is(outcome: Outcome, figure: Figure) -> str:
    ours = outcome.median("LRAI", figure.what)
    return "" if figure.contender == "LRAI" or ours is None or not figure.median else f"{ours / figure.median:.2f}x"


def machine(versions: dict[str, str]) -> dict[str, str]:
    """What it ran on; `versions` of the parts that are no packages."""
    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
        **versions,
        **packages,
    }


def save(outcomes: list[Outcome], place: dict[str, str], results: Path, document: Path | None) -> None:
    """Merges the outcomes into the JSON file, one a name, and writes the document from all of them."""
    before = json.loads(results.read_text()) if results.exists() else {"machine": {}, "outcomes": []}
    place = before["machine"] | place
    merged = {record["name"]: Outcome.of(record) for record in before["outcomes"]}
    merged |= {outcome.name: outcome for outcome in outcomes}
    results.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": place, "outcomes": [asdict(outcome) for outcome in merged.values()]}
    results.write_text(json.dumps(whole, indent=1) + "\n")
    if document:
        kept = document.read_text().partition(KEPT)[2] if document.exists() else "\n"
        document.write_text(_markdown(list(merged.values()), place) + KEPT + kept)


def _markdown(outcomes: list[Outcome], place: dict[str, str]) -> str:
    lines = ["# Benchmarks", "", "Written by `make bench`; every figure was measured by it.", ""]
    lines += ["| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in place.items()), ""]
    lines += [
        "Broker, store, load, contenders and the reader of the results share these cores. The contenders take turns in",
        "each round and read the same records. A backlog is produced beforehand in one transaction; the clock starts",
        "when that is committed (for the others: when they are told to go, warm) and stops when the last result is",
        "read, for LRAI when the last `audit.decision` row is committed too. Live latency is from produce to reader,",
        "without the first four seconds.",
        "",
    ]
    lines += ["| work | target | |", "|---|---|---|"]
    lines += [_target_row(outcome, target) for outcome in outcomes for target in outcome.targets]
    for outcome in outcomes:
        lines += ["", *_section(outcome)]
    return "\n".join([*lines, "", ""])


def _target_row(outcome: Outcome, target: Target) -> str:
    return f"| {outcome.name} | {target.text} | {'reached' if target.reached else '**missed**'} |"


def _section(outcome: Outcome) -> list[str]:
    when = f"{outcome.date}, {outcome.rounds} rounds{', quick' if outcome.quick else ''}"
    lines = [f"## {outcome.title}", "", f"`{outcome.name}`, {when}", ""]
    lines += ["| contender | figure | median | min .. max | LRAI is |", "|---|---|--:|--:|--:|"]
    for f in outcome.figures:
        lines.append(f"| {f.contender} | {f.what} | {f.text(f.median)} | {f.spread} | {_lrai_is(outcome, f)} |")
    return [*lines, "", *(f"- {note}" for note in outcome.notes)]
