"""Requests from a file: CSV, JSONL or NPZ. Every error names line, column and value."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.spec import TensorSpec
from schemas.errors import LraiError
from schemas.tensors import DTYPES

Array = npt.NDArray[Any]
WORDS = {"true": True, "1": True, "false": False, "0": False}
KEYS = ("inputs", "attributes", "subject", "request_id", "consent_id", "purpose", "parameters")


class BadFile(LraiError):
    """The file cannot be sent; correct it."""


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A request of a file. `inputs`: rows first; `where`: its place, for messages."""

    where: str
    inputs: dict[str, Array]
    attributes: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """request_id, subject, consent_id, purpose: those that are there"""
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a CSV file are no numbers for the model."""

    subject: str | None = None
    attributes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    welcome: tuple[str, ...] = ()
    """attributes where they are there"""

    def among(self, names: Sequence[str]) -> Columns:
        """Those of a file that has these columns."""
        there = [name for name in self.welcome if name in names and name not in (*self.named, *self.attributes)]
        return replace(self, attributes=(*self.attributes, *there), welcome=())

    @property
    def named(self) -> list[str]:
        return [*self.attributes, *self.ignored, *([self.subject] if self.subject else [])]


def read(path: Path, inputs: Sequence[TensorSpec], columns: Columns, rows: int = 1) -> Iterator[FileRequest]:
    """The requests of a file, `rows` of its rows each. `inputs` may be empty for NPZ alone. Raises BadFile."""
    readers = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise BadFile(f"{path}: the name must end with .csv, .jsonl or .npz, which tells how to read it")
    try:
        yield from grouped(readers[path.suffix.lower()](path, inputs, columns), rows)
    except OSError as err:
        raise BadFile(f"{path}: cannot be read ({err.strerror or err})") from err
    except UnicodeDecodeError as err:
        raise BadFile(f"{path}: is no UTF-8 text at byte {err.start}; save it as UTF-8") from err


def grouped(requests: Iterator[FileRequest], rows: int) -> Iterator[FileRequest]:
    """Each `rows` requests as one."""
    if rows == 1:
        yield from requests
        return
    while group := list(islice(requests, rows)):
        first = group[0]
        for each in group:
            if each.attributes or each.texts:
                raise BadFile(f"{each.where}: a request of {rows} rows has one subject and one set of attributes;"
                              " leave out --rows-per-request, or these columns")  # fmt: skip
            if [(name, array.shape[1:]) for name, array in each.inputs.items()] != [
                (name, array.shape[1:]) for name, array in first.inputs.items()
            ]:
                raise BadFile(f"{each.where}: has other inputs or shapes than {first.where}; send them apart")
        inputs = {name: np.concatenate([each.inputs[name] for each in group]) for name in first.inputs}
        yield replace(first, inputs=inputs)


def _csv(path: Path, inputs: Sequence[TensorSpec], columns: Columns) -> Iterator[FileRequest]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.reader(file)
        header = next(table, [])
        if not header:
            raise BadFile(f"{path}: is empty; its first line must name the columns")
        columns = columns.among(header)
        fields = _fields(path, header, inputs, columns)
        for cells in table:
            if not cells:
                continue
            where = f"{path}, line {table.line_num}"
            if len(cells) != len(header):
                raise BadFile(f"{where}: has {len(cells)} values, the header names {len(header)} columns")
            row = dict(zip(header, cells, strict=True))
            found = {spec.name: _csv_input(where, row, spec, names) for spec, names in fields}
            texts = {"subject": row[columns.subject]} if columns.subject and row[columns.subject] else {}
            yield FileRequest(where, found, {name: row[name] for name in columns.attributes}, texts)


def _fields(
    path: Path, header: list[str], inputs: Sequence[TensorSpec], columns: Columns
) -> list[tuple[TensorSpec, list[str]]]:
    """The columns of each input."""
    if not inputs:
        raise BadFile(f"{path}: the inputs of the model are not known; name its repository with --models, or --input")
    for name in header:
        if header.count(name) > 1:
            raise BadFile(f"{path}, line 1: column {name!r} is there {header.count(name)} times; name it once")
    for name in columns.named:
        if name not in header:
            raise BadFile(f"{path}, line 1: there is no column {name!r}; the columns are {_listing(header)}")
    if all(each.name in header and each.width in (1, None) for each in inputs):
        return [(each, [each.name]) for each in inputs]
    names = [name for name in header if name not in columns.named]
    if len(inputs) > 1:
        missing = [each.name for each in inputs if each.name not in header]
        fix = "a model with several inputs takes a column of one value for each; use .jsonl or .npz for more"
        raise BadFile(f"{path}, line 1: no column for the inputs {_listing(missing)}; {fix}")
    width = inputs[0].width
    if width is not None and len(names) < width:  # an attribute may be what the model looks at, too
        names = [name for name in header if name in columns.attributes or name not in columns.named]
    if width is not None and width != len(names):
        fix = "name the other columns with --attribute, --subject-column or --ignore"
        raise BadFile(
            f"{path}, line 1: {len(names)} columns ({_listing(names)}) for input {inputs[0].name!r} of {width}; {fix}"
        )
    return [(inputs[0], names)]


def _csv_input(where: str, row: dict[str, str], spec: TensorSpec, names: list[str]) -> Array:
    values = [_parse(f"{where}, column {name!r}", row[name], spec.datatype) for name in names]
    shape = tuple(size if isinstance(size, int) else -1 for size in spec.shape)
    shape = shape if shape.count(-1) <= 1 else (-1,) + (1,) * (len(shape) - 1)
    return _array(where, values, spec.datatype).reshape(1, *shape)


def _parse(where: str, text: str, datatype: str) -> Any:
    """The value of a cell."""
    if datatype == "BYTES":
        return text
    try:
        if datatype == "BOOL":
            return WORDS[text.strip().lower()]
        return float(text) if datatype.startswith("FP") else int(text)
    except (ValueError, KeyError):
        kind = {"B": "true or false", "F": "a number"}.get(datatype[0], "a whole number")
        raise BadFile(f"{where}: {text!r} is not {kind} ({datatype})") from None


def _array(where: str, values: Any, datatype: str) -> Array:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise BadFile(f"{where}: datatype {datatype!r} is not supported; use one of {', '.join(DTYPES)}")
    try:
        if dtype.kind in "iu":
            found = np.array(values, np.int64 if dtype.kind == "i" else np.uint64)
            limits = np.iinfo(dtype)
            if found.size and (int(found.max()) > limits.max or int(found.min()) < limits.min):
                raise OverflowError
            return found.astype(dtype)
        return np.array(values, dtype)
    except OverflowError:
        raise BadFile(f"{where}: a number is beyond {datatype}") from None
    except ValueError:
        raise BadFile(f"{where}: the lists have different lengths; each must be as long as its neighbours") from None


def _jsonl(path: Path, inputs: Sequence[TensorSpec], columns: Columns) -> Iterator[FileRequest]:
    if not inputs:
        raise BadFile(f"{path}: the inputs of the model are not known; name its repository with --models, or --input")
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield _json_request(f"{path}, line {number}", text, inputs)


def _json_request(where: str, text: str, inputs: Sequence[TensorSpec]) -> FileRequest:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as err:
        raise BadFile(f"{where}, column {err.colno}: is no JSON ({err.msg}); write one object a line") from None
    if not isinstance(record, dict) or not isinstance(record.get("inputs"), dict):
        raise BadFile(
            f'{where}: write {{"inputs": {{"{inputs[0].name}": [...]}}}}, with attributes and subject if wanted'
        )
    for key in record:
        if key not in KEYS:
            raise BadFile(f"{where}: {key!r} is no part of a request; use {_listing(KEYS)}")
    known = {each.name: each for each in inputs}
    for name in record["inputs"]:
        if name not in known:
            raise BadFile(f"{where}: inputs.{name}: the model has no such input; it has {_listing(list(known))}")
    found = {
        name: _json_input(f"{where}: inputs.{name}", value, known[name]) for name, value in record["inputs"].items()
    }
    maps = {key: _texts(f"{where}: {key}", record.get(key) or {}) for key in ("attributes", "parameters")}
    texts = {key: record[key] for key in KEYS[2:6] if record.get(key) is not None}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise BadFile(f"{where}: {key} = {value!r} is no text; put it into quotes")
    return FileRequest(where, found, maps["attributes"], texts, maps["parameters"])


def _json_input(where: str, value: Any, spec: TensorSpec) -> Array:
    _check_leaves(where, value, spec.datatype)
    array = _array(where, value, spec.datatype)
    # one row may be written without the brackets around it
    return array[None] if array.ndim == len(spec.shape) else array


def _check_leaves(where: str, value: Any, datatype: str) -> None:
    if isinstance(value, list):
        for place, each in enumerate(value):
            _check_leaves(f"{where}[{place}]", each, datatype)
        return
    wanted: dict[str, tuple[tuple[type, ...], str]] = {"B": ((str,), "a text"), "F": ((int, float), "a number")}
    types, kind = wanted.get(datatype[0], ((int,), "a whole number"))
    if datatype == "BOOL":
        types, kind = (bool,), "true or false"
    elif isinstance(value, bool):
        types = ()
    if not isinstance(value, types):
        raise BadFile(f"{where} = {json.dumps(value)[:80]} is not {kind} ({datatype})")


def _texts(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise BadFile(f'{where} = {json.dumps(value)[:80]}: write an object of texts, such as {{"sex": "f"}}')
    return value


def _npz(path: Path, inputs: Sequence[TensorSpec], columns: Columns) -> Iterator[FileRequest]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Array] = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile) as err:
        raise BadFile(
            f"{path}: is no NPZ of plain arrays ({err}); write it with numpy.savez(path, name=array)"
        ) from None
    columns = columns.among(list(arrays))
    attributes = {name: _npz_texts(path, arrays, name) for name in columns.attributes}
    for name in attributes:
        if name not in {each.name for each in inputs}:
            del arrays[name]
    if len(inputs) == 1 and len(arrays) == 1:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    lengths = {name: array.shape[0] if array.ndim else -1 for name, array in arrays.items()}
    if not lengths or len(set(lengths.values())) > 1 or -1 in lengths.values():
        raise BadFile(f"{path}: the arrays have {lengths} rows; give each input an array with as many rows")
    known = {each.name: each for each in inputs}
    for name in [*arrays, *known]:
        if known and (name not in known or name not in arrays):
            raise BadFile(f"{path}: holds {_listing(list(arrays))}; the model's inputs are {_listing(list(known))}")
    typed = {name: _typed(f"{path}: {name}", array, known.get(name)) for name, array in arrays.items()}
    for row in range(next(iter(lengths.values()))):
        told = {name: texts[row] for name, texts in attributes.items()}
        yield FileRequest(f"{path}, row {row}", {name: array[row : row + 1] for name, array in typed.items()}, told)


def _npz_texts(path: Path, arrays: dict[str, Array], name: str) -> list[str]:
    """A word a row."""
    if name not in arrays or arrays[name].ndim != 1:
        raise BadFile(f"{path}: attribute {name!r} is no array of one value a row; it holds {_listing(list(arrays))}")
    return [each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in arrays[name].tolist()]


def _typed(where: str, array: Array, spec: TensorSpec | None) -> Array:
    """The array in the input's datatype, where no value changes its meaning."""
    if spec is None or spec.datatype == "BYTES":
        return array
    dtype = DTYPES[spec.datatype]
    if not np.can_cast(array.dtype, dtype, "same_kind") and not (array.dtype.kind in "iu" and dtype.kind in "iuf"):
        raise BadFile(f"{where} is {array.dtype}, the input is {spec.datatype}; save it as numpy.{dtype.name}")
    return array if array.dtype == dtype else array.astype(dtype)


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
