"""`lrai report equity`: asks the store, draws, writes one HTML file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from infra.commands.options import Store, errors, group, out
from schemas.errors import LraiError
from streams.settings import load

app = group("Periodic reports from the audit store.")


class PackageMissing(LraiError):
    """A package that reports need is not installed."""


@app.command()
def equity(
    first: Annotated[str, typer.Option("--from", help="The first day, such as 2026-01-01, or a moment. UTC.")],
    last: Annotated[str, typer.Option("--to", help="The last day, or the moment at which it ends.")],
    file: Annotated[Path | None, typer.Option("--out", help="The HTML file; equity-<from>-<to>.html without.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model's; all without.")] = None,
    store: Store = None,
) -> None:
    """The equity audit of a period as one HTML file that prints well."""
    require("jinja2", "matplotlib")
    target = file or Path(f"equity-{first.strip()}-{last.strip()}.html".replace(":", ""))
    with errors.status("asking the store") as status:
        write(load(store=store).store, first, last, target, model, lambda title: status.update(f"report: {title}"))
    out.print(f"{target}", markup=False, highlight=False, soft_wrap=True)


def require(*packages: str) -> None:
    """Raises PackageMissing."""
    for name in packages:
        if find_spec(name) is None:
            raise PackageMissing(f"package {name} is missing: pip install 'lrai[report]'")


def write(
    url: str, first: str, last: str, target: Path, model: str | None, progress: Callable[[str], object]
) -> None:
    """Raises BadSetting (period or model), NothingToReport, StoreUnavailable, OSError; then there is no file."""
    from infra.report import asking, page, sections  # matplotlib: nothing that other commands need

    period = asking.period(first, last)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", errors="replace", dir=_folder(target), suffix=".html", delete=False
    ) as text:  # opened first: whoever cannot write learns so at once
        try:
            with asking.Asking(url) as store:
                scope = store.scope(model, period)
                shown = []
                for number, each in enumerate(sections.SECTIONS, 1):
                    progress(each.title)
                    shown.append(page.Shown.of(number, each, store.found(each.query, scope)))
            text.write(page.page(shown, scope, datetime.now(UTC)))
            text.close()
            os.chmod(text.name, 0o640)
            os.replace(text.name, target)
        except BaseException:
            os.unlink(text.name)
            raise


def _folder(target: Path) -> Path:
    if target.is_dir():
        raise LraiError(f"--out {target}: is a folder; name a file")
    if not target.parent.is_dir():
        raise LraiError(f"--out {target}: there is no folder {target.parent}; make it first")
    return target.parent
