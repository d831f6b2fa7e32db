"""`lrai reference`: what later rows of a model are compared with, from a file of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.commands.options import errors, out
from kernels import reference
from kernels.reference import BadReference, Reference
from kernels.spec import ModelSpec

if TYPE_CHECKING:
    from kernels.compile.rows import Rows


def make(spec: ModelSpec, given: Rows) -> Reference:
    """The reference of these rows, written beside the model. Raises BadReference, KernelError."""
    from kernels.compile import rows  # onnx and the runtime: nothing that other commands need
    from kernels.session import Session

    halves = [given.calibrate] if given.judge is given.calibrate else [given.calibrate, given.judge]
    runs = [run for half in halves for run in rows.batches(half)]
    found = reference.make(spec, runs, Session(spec).run)
    reference.write(Path(spec.path).parent, found)
    return found


def beside_compiled(spec: ModelSpec, given: Rows) -> str:
    """The same for `lrai compile`, which does not fail for it: why there is none."""
    try:
        make(spec, given)
    except BadReference as err:
        return f"no {reference.FILE}, so drift is not watched: {err}"
    return ""


def make_reference(
    folder: Annotated[Path, typer.Argument(help="MODELS/<model>/<version>.")],
    file: Annotated[Path, typer.Option("--from", help="Rows as the model gets them: CSV, JSONL, NPZ or NPY.")],
    ignore: Annotated[list[str] | None, typer.Option(help="CSV: a column to leave out; repeat it.")] = None,
) -> None:
    """Fixes what inputs and score of a model look like now: drift is measured against it."""
    from infra.commands import compiling  # onnx and the compiler: nothing that other commands need

    with errors.status("reading the rows and running the model"):
        spec = compiling.spec_of(folder)
        found = make(spec, compiling.rows_of(file, spec, ignore or []))
    path = Path(spec.path).parent / reference.FILE
    shown = f"{path}: {len(found.histograms)} histogram(s) of {found.rows} rows: {', '.join(found.features[:8])}"
    out.print(shown + (", ..." if len(found.features) > 8 else ""), markup=False, highlight=False)
