"""`lrai verify` and `lrai certificate check`: reads boxes, runs the prover, prints what it found."""

from __future__ import annotations

import json
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kernels.proof.ir import F64, BadProblem
from schemas.errors import LraiError

if TYPE_CHECKING:
    from kernels.proof.verify import Verification

_BYTES_MAX = 1 << 31  # of a box file
_SHOWN_MAX = 50
certificate_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Certificates of variants.")


def _number(text: str | float) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadProblem(f"{text!r} is no number") from None


def verify(
    folder: Annotated[Path | None, typer.Argument(help="MODELS/<model>/<version>/variants/<name>.")] = None,
    original: Annotated[Path | None, typer.Option(help="ONNX file; with --variant instead of a folder.")] = None,
    variant: Annotated[Path | None, typer.Option(help="ONNX file.")] = None,
    box: Annotated[Path | None, typer.Option(help="NPZ: low and high, or center and radius; a row a task.")] = None,
    rows: Annotated[Path | None, typer.Option("--data", help="Rows of the model: their range is the box.")] = None,
    epsilon: Annotated[float, typer.Option(parser=_number, help="The largest difference allowed.")] = 0.01,
    output: Annotated[str, typer.Option(help="raw, softmax or label.")] = "softmax",
    arithmetic: Annotated[str, typer.Option(help="float32, or real: a proof without rounding says so.")] = "float32",
    timeout: Annotated[float, typer.Option(parser=_number, help="Seconds for all of it.")] = 60.0,
    resume: Annotated[
        Path | None, typer.Option(help="Where to keep unfinished work, and to go on from; with --original.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Does a variant stay within epsilon of its original on these inputs? Exit code 0 proved, 1 refuted, 2 neither."""
    _check(output, timeout, arithmetic)
    try:
        code = _verified(folder, original, variant, box, rows, epsilon, output, timeout, arithmetic, resume, as_json)
    except BadProblem:
        raise
    except (LraiError, OSError, MemoryError) as err:  # 1 and 2 are verdicts
        raise BadProblem(str(err) or "the memory is not enough") from err
    raise SystemExit(code)


def _verified(
    folder: Path | None, original: Path | None, variant: Path | None, box: Path | None, rows: Path | None,
    epsilon: float, output: Any, timeout: float, arithmetic: str, resume: Path | None, as_json: bool,
) -> int:  # fmt: skip
    if folder is not None:
        if resume is not None:
            raise BadProblem("--resume goes with --original, --variant and --box, not with a variant's folder")
        from infra.commands.certifying import certified

        return certified(folder, box, rows, epsilon, output, timeout, as_json)
    if original is None or variant is None or box is None:
        raise BadProblem("name a variant's folder, or --original, --variant and --box")
    from kernels.proof.lower import features
    from kernels.proof.verify import verify as ask

    low, high = read_box(box, features(original))
    with bar(as_json) as progress:
        floats = arithmetic == "float32"
        found = ask(
            original, variant, low, high, epsilon, output, timeout, on_progress=progress, floats=floats, state=resume
        )
    if found.question.empty:
        raise BadProblem("--output softmax: of one output it is always 1; use --output raw or label")
    if as_json:
        print(json.dumps(found.as_dict(), allow_nan=False))
    else:
        _show(found)
    return found.exit_code


@certificate_app.command("check")
def check(file: Annotated[Path, typer.Argument(help="certificate.json.")]) -> None:
    """Checks a certificate again, in exact arithmetic and with nothing of the prover. Exit code 0 when it holds."""
    from kernels.proof import checker

    if not file.is_file():
        raise BadProblem(f"{file}: there is no such certificate")
    report = checker.check(file)
    print(json.dumps(asdict(report), default=str))
    raise SystemExit({"PROVED": 0, "PARTIAL": 0, "REJECTED": 1}.get(report.verdict, 2))


def _check(output: str, timeout: float, arithmetic: str) -> None:
    if arithmetic not in ("float32", "real"):
        raise BadProblem(f"--arithmetic {arithmetic!r}: it must be float32 or real")
    if output not in ("raw", "softmax", "label"):
        raise BadProblem(f"--output {output!r}: it must be raw, softmax or label")
    if not 0 < timeout < 1e7:
        raise BadProblem(f"--timeout {timeout}: it must be above zero seconds")


def read_box(path: Path, features: int) -> tuple[F64, F64]:
    """low and high float64[tasks, features] of an NPZ. Raises BadProblem."""
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise BadProblem(f"{path}: larger than {_BYTES_MAX >> 20} MiB")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise BadProblem(f"{path}: there is no such file") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as err:
        raise BadProblem(f"{path}: no NPZ file ({err})") from None
    names = ("low", "high") if "low" in arrays else ("center", "radius")
    if any(name not in arrays for name in names):
        raise BadProblem(f"{path}: holds {sorted(arrays)}; it must hold low and high, or center and radius")
    first = _rows(arrays[names[0]], features, f"{path}: {names[0]}")
    second = _rows(arrays[names[1]], features, f"{path}: {names[1]}", first)
    if names[0] == "low":
        return first, second
    if (second < 0).any():
        raise BadProblem(f"{path}: radius holds a negative number")
    return first - second, first + second


def _rows(array: npt.NDArray[Any], features: int, name: str, like: F64 | None = None) -> F64:
    """float64[tasks, features]; a number or a number a task for all features where `like` gives the shape."""
    if array.dtype.kind not in "fiu":
        raise BadProblem(f"{name} holds {array.dtype}, not numbers")
    wide = np.asarray(array, np.float64)
    if like is not None and wide.size == 1:
        return np.full_like(like, wide.reshape(()))
    if like is not None and wide.size == len(like) and (features > 1 or wide.ndim == 1):
        return np.broadcast_to(wide.reshape(-1, 1), like.shape).copy()
    if wide.size == features and (wide.ndim == 1 or wide.shape[0] != features):
        wide = wide.reshape(1, -1)
    elif wide.ndim < 2 or not len(wide) or wide.size != len(wide) * features:
        raise BadProblem(f"{name} has shape {list(array.shape)}; it must have a row of {features} numbers a task")
    wide = wide.reshape(-1, features)
    return np.repeat(wide, len(like), 0) if like is not None and len(wide) == 1 < len(like) else wide


class bar:
    """A progress bar on the terminal's error stream; silent where nobody looks."""

    def __init__(self, silent: bool) -> None:
        self._shown = not silent and sys.stderr.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not self._shown)
        self._task = self._progress.add_task("tasks decided", total=None)

    def __enter__(self) -> bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


def _show(found: Verification) -> None:
    out = Console()
    table = Table("task", "verdict", "bound", "in reals", "largest seen", "boxes", "seconds", "reason")
    listed = found.as_dict()
    for place, task in enumerate(listed["tasks"][:_SHOWN_MAX]):
        numbers = ["-" if task[key] is None else f"{task[key]:.4g}" for key in ("bound", "bound_real", "seen")]
        table.add_row(str(place), task["verdict"], *numbers, str(task["boxes"]), f"{task['seconds']:.2f}",
                      task.get("reason", ""))  # fmt: skip
    out.print(table)
    out.print(", ".join(f"{count} {name}" for name, count in listed["counts"].items()))
    for note in listed["semantics"]["notes"]:
        out.print(f"note: {note}; the verdict is about sessions with session.disable_quant_qdq=1")
