"""`lrai compile` and `lrai calibrate`: rows for the compiler from files or topics, and what it prints."""

from __future__ import annotations

import os
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from infra.commands import references, request_files
from infra.commands.reading import Reader
from infra.commands.request_files import BadFile
from kernels import devices, repository
from kernels.compile import compiler, ensemble, equity, rows
from kernels.compile.compiler import Compiled
from kernels.compile.proved import Proves
from kernels.manifest import Manifest
from kernels.spec import ModelSpec
from schemas import framing, requests
from schemas.errors import BadRecord, BadSetting, LraiError
from schemas.tensors import DTYPES, from_wire
from streams.settings import Settings

FROM_TOPIC = b"lrai calibrate --from-topic"  # comment of an NPZ file
ROWS_MAX = 100_000  # of a file
Inputs = dict[str, npt.NDArray[Any]]


def spec_of(folder: Path) -> ModelSpec:
    """The model at <models>/<model>/<version>, merged first where it names members. Raises BadSetting, BadEnsemble."""
    path = folder.resolve()
    if not path.is_dir():
        raise BadSetting(f"{folder}: is no folder; name MODELS/<model>/<version>, such as models/credit/1")
    ensemble.build(path)
    if not (path / "model.onnx").is_file():
        raise BadSetting(f"{folder}: holds no model.onnx; name MODELS/<model>/<version>, such as models/credit/1")
    return repository.load_model(path.parent.parent, path.parent.name, path.name)


def rows_of(path: Path, spec: ModelSpec, ignored: Sequence[str], attributes: Sequence[str] = ()) -> rows.Rows:
    """The rows of a file: CSV, JSONL, NPZ, or NPY for a model with one input. Raises BadFile, NotCompiled.

    With them go the attributes named, and the model's sensitive features where they are there.
    """
    if path.suffix.lower() == ".npy":
        if attributes:
            raise BadFile(f"{path}: an array names no attribute {attributes[0]!r}; give a CSV, JSONL or NPZ file")
        groups = [_npy(path, spec)]
    else:
        wanted = [name for name in spec.sensitive_features if name not in ignored]
        in_file = () if path.suffix.lower() in (".jsonl", ".ndjson") else tuple(attributes)
        columns = request_files.Columns(attributes=in_file, ignored=tuple(ignored), welcome=tuple(wanted))
        found = list(_bounded(request_files.read(path, spec.inputs, columns), path))
        groups = _attributed(found, path, attributes, wanted)
    if not groups:
        raise BadFile(f"{path}: has no rows; give at least {rows.ROWS_MIN}")
    return rows.given(groups, spec, str(path), _source(path))


def _attributed(
    found: list[request_files.FileRequest], path: Path, named: Sequence[str], welcome: Sequence[str]
) -> list[Inputs]:
    """Groups of equal shapes, each with the attributes that some row has."""
    there = {name for each in found for name in each.attributes}
    if missing := [name for name in named if found and name not in there]:
        raise BadFile(f"{path}: no row has an attribute {missing[0]!r}; name one that is there")
    names = [name for name in dict.fromkeys((*named, *welcome)) if name in there]

    def told(each: request_files.FileRequest) -> Inputs:
        n = rows.count([each.inputs])
        words = {name: np.full(n, each.attributes.get(name, ""), object) for name in names}
        return each.inputs | {rows.ATTRIBUTE + name: array for name, array in words.items()}

    return rows.grouped(told(each) for each in found)


def _bounded(found: Iterator[request_files.FileRequest], path: Path) -> Iterator[request_files.FileRequest]:
    for number, each in enumerate(found):
        if number >= ROWS_MAX:
            raise BadFile(f"{path}: has more than {ROWS_MAX} rows; a few hundred that are typical are enough")
        yield each


def _npy(path: Path, spec: ModelSpec) -> Inputs:
    if len(spec.inputs) != 1:
        names = ", ".join(each.name for each in spec.inputs)
        raise BadFile(f"{path}: the model has the inputs {names}; give an NPZ file with an array for each")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise BadFile(f"{path}: cannot be read as an NPY array ({err}); write it with numpy.save") from None
    tensor = spec.inputs[0]
    if not isinstance(array, np.ndarray) or not array.ndim or not len(array):
        raise BadFile(f"{path}: has no rows; give at least {rows.ROWS_MIN}")
    kinds = {"f": "fiu", "i": "iu", "u": "iu"}
    dtype = DTYPES[tensor.datatype]
    if array.dtype != dtype and array.dtype.kind in kinds.get(dtype.kind, ""):
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
    return {tensor.name: array}


def _source(path: Path) -> Literal["file", "topic"]:
    """What an NPZ file says of where its rows are from."""
    if not zipfile.is_zipfile(path):
        return "file"
    with zipfile.ZipFile(path) as archive:
        return "topic" if archive.comment == FROM_TOPIC else "file"


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Shows the step at hand, and how many are done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("step {task.completed}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=None)

        def step(what: str) -> None:
            bar.update(task, description=what)
            bar.advance(task)

        yield step


def show(
    console: Console, found: Compiled, spec: ModelSpec, certificates: Mapping[str, str] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """The table of variants, why others are not there, and what to know. `certificates`: verdicts by variant."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("variant", "bits", "file kB", "memory MB", "1 row us", "8 rows us", "best us/row", "rows",
                 "max error", "mean error", "labels", "certificate", "beats the original"):  # fmt: skip
        left = name in ("variant", "bits", "certificate", "beats the original")
        table.add_column(name, justify="left" if left else "right")
    table.add_row(*_cells(found.original), "-", "")
    for each in found.kept:
        if each.manifest is not None:
            table.add_row(*_cells(each.manifest), certificates.get(each.name, "none"), each.gains or "-")
    console.print(table)
    if found.original.disparity:
        console.print(_disparities([found.original, *(each.manifest for each in found.kept if each.manifest)]))
    for each in found.tried:
        if each.refused:
            console.print(f"not kept: {each.name}: {each.refused}", markup=False, highlight=False)
    if not found.kept:
        console.print(f"{spec.model} {spec.version} keeps its original", markup=False, highlight=False)
    for reason in found.reasons:
        where = " ".join(part for part in (reason.op, reason.node) if part)
        console.print(f"{where + ': ' if where else ''}{reason.why}", markup=False, highlight=False)
    for note in (*notes, *found.notes):
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def _disparities(variants: Sequence[Manifest]) -> Table:
    """How far apart groups are, and whose decisions flip."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("variant", "attribute", "gap before", "gap after", "widened", "flips by group", "p"):
        table.add_column(name, justify="left" if name in ("variant", "attribute", "flips by group") else "right")
    for each in variants:
        for found in each.disparity:
            gaps = (f"{100 * gap:.2f}" for gap in (found.before, found.after, found.widened))
            table.add_row(*map(Text, (each.name, found.attribute, *gaps, equity.flips(found), f"{found.p_value:.2g}")))
    return table


def _cells(each: Manifest) -> list[str]:
    at, best = each.profile.seconds, each.profile.best_rows
    agreement = each.error.label_agreement
    eight = 8 * at[1] if each.requests_per_run == 1 and 1 in at else at.get(8)
    return [
        each.name + (" (1 request a run)" if each.requests_per_run == 1 else ""),
        each.bits,
        f"{each.file_bytes / 1e3:.1f}",
        f"{each.memory_bytes / 1e6:.0f}",
        f"{1e6 * at[1]:.1f}" if 1 in at else "-",
        f"{1e6 * eight:.1f}" if eight else "-",
        f"{1e6 * at[best] / best:.2f}",
        str(best),
        f"{each.error.max:.1e}",
        f"{each.error.mean:.1e}",
        "-" if agreement is None else f"{agreement:.1%}",
    ]


def compile_folder(
    folder: Path, calibration: Path | None, ignored: Sequence[str], options: compiler.Options, console: Console,
    prover: Callable[[ModelSpec, rows.Rows], Proves] | None = None, attributes: Sequence[str] = (),
    device: str | None = None,
) -> tuple[Compiled, ModelSpec, rows.Rows | None]:  # fmt: skip
    """Compiles a version of a model for a device (or its own, or the CPU). Raises LraiError.

    With a prover, widths are searched by proof, too: on the CPU, whose arithmetic is what it knows.
    """
    if attributes and not calibration:
        raise BadSetting(f"--attribute {attributes[0]}: there are no rows; give --calibration FILE")
    with progress(console) as step:
        spec = spec_of(folder)
        step("reading the rows")
        given = rows_of(calibration, spec, ignored, attributes) if calibration else None
        options = replace(options, device=devices.device(device or spec.device or devices.CPU.name))
        if prover and given and options.device.provider == devices.CPU.provider:
            options = replace(options, proves=prover(spec, given))
        found = compiler.compile_model(spec, given, options, step)
    if given and (why := references.beside_compiled(spec, given)):
        console.print(f"note: {why}", style="yellow", markup=False, highlight=False)
    return found, spec, given


@dataclass(frozen=True, slots=True)
class Recorded:
    """Rows of recorded requests. `left_out`: those of other lengths, which do not fit into one array."""

    inputs: Inputs
    rows: int
    left_out: int


def recorded(settings: Settings, topics: Sequence[str], spec: ModelSpec, most: int) -> Recorded:
    """The newest requests of the model, at most `most` rows; what the model would not take is passed over.

    Raises LraiError where there is none.
    """
    newest: deque[Inputs] = deque(maxlen=most)
    with Reader(settings, topics, None) as reader:
        for message in reader.to_the_end():
            inputs = inputs_of(message.value() or b"", spec)
            if inputs is not None:
                newest.append(inputs)
    shapes = Counter(_shape(each) for each in newest)
    if not shapes:
        raise LraiError(f"{', '.join(topics)}: no request for model {spec.model!r} that it would take")
    common = shapes.most_common(1)[0][0]
    kept = [each for each in newest if _shape(each) == common]
    joined = {name: np.concatenate([each[name] for each in kept])[-most:] for name in kept[0]}
    return Recorded(joined, len(next(iter(joined.values()))), len(newest) - len(kept))


def _shape(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape[1:] for _, array in sorted(inputs.items()))


def inputs_of(value: bytes, spec: ModelSpec) -> Inputs | None:
    """The inputs of a request and its sensitive features, None where it is another model's or does not fit."""
    if value[:1] == b"\0":
        value = framing.header(requests.NAME) + value[framing.CONFLUENT_BYTES :]
    try:
        name, record = framing.decode(value)
        if name != requests.NAME or record["model"] != spec.model or record["version"] not in (None, spec.version):
            return None
        inputs = {each["name"]: from_wire(each["datatype"], tuple(each["shape"]), each["data"])
                  for each in record["inputs"]}  # fmt: skip
    except BadRecord:
        return None
    fits = set(inputs) == {each.name for each in spec.inputs} and all(_fits(inputs[t.name], t) for t in spec.inputs)
    if not fits or len({len(each) for each in inputs.values()}) != 1:
        return None
    told = {name: record["attributes"].get(name, "") for name in spec.sensitive_features}
    n = rows.count([inputs])
    return inputs | {rows.ATTRIBUTE + name: np.full(n, word, object) for name, word in told.items()}


def _fits(array: npt.NDArray[Any], tensor: repository.TensorSpec) -> bool:
    """Whether a request's tensor is what the model takes; NaN and infinities are no help to a calibration."""
    shape, wanted = array.shape[1:], tensor.shape
    if not array.ndim or not len(array) or len(shape) != len(wanted) or array.dtype != DTYPES[tensor.datatype]:
        return False
    if any(isinstance(size, int) and size != here for size, here in zip(wanted, shape, strict=True)):
        return False
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def save(path: Path, found: Recorded) -> None:
    """Writes an NPZ file that says that its rows come from a topic, attributes by their names. Raises LraiError."""
    told = {
        name.removeprefix(rows.ATTRIBUTE): array.astype(str)
        for name, array in found.inputs.items()
        if name.startswith(rows.ATTRIBUTE) and any(array)
    }
    arrays = told | rows.inputs_alone(found.inputs)
    aside = path.with_name(f".{path.name}.part.npz")
    try:
        np.savez(aside, **arrays)  # type: ignore[arg-type]
        with zipfile.ZipFile(aside, "a") as archive:
            archive.comment = FROM_TOPIC
        os.replace(aside, path)
    except OSError as err:
        raise LraiError(f"{path}: cannot be written ({err.strerror or err}); name another --out") from err
    finally:
        aside.unlink(missing_ok=True)
