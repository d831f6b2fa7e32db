"""`lrai compile`: variants of a model, judged, measured and certified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.commands.options import Device, errors, out


def compile_(
    folder: Annotated[Path, typer.Argument(help="MODELS/<model>/<version>.")],
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="Rows as the model gets them: CSV, JSONL, NPZ or NPY.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="CSV: a column to leave out; repeat it.")] = None,
    agreement_min: Annotated[
        float, typer.Option(min=0, max=1, help="Share of decisions that a variant keeps; 0 takes any.")
    ] = 0.99,
    budget: Annotated[float, typer.Option(min=0, help="Error of mixed bit widths, as a share of the outputs.")] = 0.01,
    certify_s: Annotated[float, typer.Option(min=0, help="Seconds for certificates of what is kept; 0: none.")] = 30.0,
    device: Device = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Of the rows: whose groups a variant must treat alike; repeat it.")
    ] = None,
    disparity_max: Annotated[
        float, typer.Option(min=0, max=1, help="By how much a gap between groups may widen; 1 takes any.")
    ] = 0.01,
) -> None:  # fmt: skip
    """Makes smaller and faster variants of a model, and keeps those worth having beside it."""
    from infra.commands import certification, compiling  # onnx and the runtime: nothing that other commands need
    from kernels.compile.compiler import Options

    options = Options(agreement_min, budget, disparity_max=disparity_max)
    prover = certification.prover(certify_s)
    found, spec, rows = compiling.compile_folder(
        folder, calibration, ignore or [], options, errors, prover, attribute or [], device
    )
    with compiling.progress(errors) as step:
        certified = certification.certify(spec, found.kept, rows, certify_s, step)
    compiling.show(out, found, spec, certified.shown, certified.notes)
