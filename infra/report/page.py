"""The report as one HTML text. Pure: what a client may have written is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from infra.report.asking import Found, Scope
from infra.report.sections import Section

TEXT_MAX = 2_000  # characters of a cell
SHARES = ("rate", "ratio", "share", "coverage", "difference", "accuracy", "value", "low", "high", "limit")
SMALLEST = 30


@dataclass(frozen=True)
class Shown:
    """A section with its answer; `number`: of its statement in the appendix."""

    number: int
    section: Section
    found: Found
    plots: tuple[markupsafe.Markup, ...]

    @classmethod
    def of(cls, number: int, section: Section, found: Found) -> Shown:
        drawn = section.plot(found.dicts()) if section.plot and found.rows else []
        return cls(number, section, found, tuple(map(markupsafe.Markup, drawn)))

    @property
    def headings(self) -> list[tuple[str, str]]:
        """Names of the columns and how they are aligned."""
        named = {name: [row[i] for row in self.found.rows] for i, name in enumerate(self.found.columns)}
        kinds = {name: {type(each) for each in values} for name, values in named.items()}
        return [(name, "number" if found & {int, float} else "text") for name, found in kinds.items()]


def cell(name: str, value: Any) -> str:
    """A value as the report shows it.

    >>> cell("selection_rate", 0.25), cell("requests", 345), cell("text", None)
    ('0.250', '345', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if isinstance(value, float):
        return f"{value:.3f}" if name.endswith(SHARES) else f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d\N{NO-BREAK SPACE}%H:%M}"
    text = str(value)
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + "…"


def page(shown: Sequence[Shown], scope: Scope, at: datetime) -> str:
    """The whole file. `at`: when it was made."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(cell=cell, zip=zip)
    template = environment.get_template("page.html")
    return template.render(shown=shown, scope=scope, at=at, smallest=SMALLEST)
