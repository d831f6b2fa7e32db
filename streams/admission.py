"""May this request run, and in which shape? Pure: every rejection has a code, and a message with field, value and fix.

What requests of one signature have in common is checked once (`plan`); what differs by request is checked as columns.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.spec import ModelSpec, TensorSpec
from schemas.columns import Ints, pick
from schemas.errors import BadRecord
from schemas.requests import Requests
from schemas.tensors import DTYPES, FLOATS, itemsize, split_bytes

ELEMENTS_MAX = 2**31  # of a row; far above any record, far below an overflow


@dataclass(frozen=True, slots=True)
class InputPlan:
    """One input of a batch: `position` among the request's inputs; `shape` as sent and `padded_shape`, without rows."""

    spec: TensorSpec
    position: int
    shape: tuple[int, ...]
    padded_shape: tuple[int, ...]
    row_bytes: int | None
    """None for BYTES"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests of one signature run; `length` is theirs along the padded dimension, None without padding."""

    spec: ModelSpec
    inputs: tuple[InputPlan, ...]
    length: int | None


class Catalog:
    """The models that serve. `specs`: by model and version."""

    def __init__(self, specs: Mapping[tuple[str, str], ModelSpec]) -> None:
        self.specs = dict(specs)
        self.newest: dict[str, str] = {}
        for model, version in sorted(specs, key=lambda key: int(key[1])):
            self.newest[model] = version

    def find(self, model: str, version: str | None) -> ModelSpec:
        """Raises BadRecord unknown_model or unknown_version."""
        if model not in self.newest:
            near = difflib.get_close_matches(model, self.newest, n=1)
            known = f"did you mean {near[0]!r}?" if near else "known: " + _listing(sorted(self.newest))
            raise BadRecord("unknown_model", f"model = {clip(model)}: no such model; {known}")
        spec = self.specs.get((model, version or self.newest[model]))
        if spec is None:
            versions = sorted((v for m, v in self.specs if m == model), key=int)
            raise BadRecord(
                "unknown_version",
                f"version = {clip(version or '')}: model {model!r} has {_listing(versions)}; null asks for the newest",
            )
        return spec


def clip(value: object, most: int = 80) -> str:
    """A value for a message: quoted, bounded, printable, without U+0000."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= most else text[:most] + "...'"


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def plan(record: Mapping[str, Any], catalog: Catalog) -> Plan:
    """The plan of a request's signature. Raises BadRecord."""
    for field in ("model", "version"):
        if "\0" in (record[field] or ""):
            raise BadRecord("nul_character", f"{field} = {clip(record[field])}: holds U+0000; remove it")
    spec = catalog.find(record["model"], record["version"])
    names = [tensor["name"] for tensor in record["inputs"]]
    wanted = [each.name for each in spec.inputs]
    for name in names:
        if names.count(name) > 1:
            raise BadRecord("duplicate_input", f"inputs: {clip(name)} is there {names.count(name)} times; send it once")
        if name not in wanted:
            text = f"inputs: {clip(name)} is no input of {spec.model!r}; it has {_listing(wanted)}"
            raise BadRecord("unknown_input", text)
    for name in wanted:
        if name not in names:
            raise BadRecord("missing_input", f"inputs: {name!r} is missing; {spec.model!r} needs {_listing(wanted)}")
    lengths: dict[str, int] = {}
    inputs = tuple(_input(spec, each, names.index(each.name), record["inputs"], lengths) for each in spec.inputs)
    return Plan(spec, inputs, lengths.get(spec.padded) if spec.padded and spec.buckets else None)


def _input(
    spec: ModelSpec, each: TensorSpec, position: int, tensors: list[dict[str, Any]], lengths: dict[str, int]
) -> InputPlan:
    """`lengths` collects the varying sizes; inputs that share one must agree."""
    tensor = tensors[position]
    field = f"inputs[{each.name!r}]"
    if tensor["datatype"] != each.datatype:
        fix = f"send {each.datatype}" if tensor["datatype"] in DTYPES else f"{each.datatype} is expected"
        raise BadRecord("wrong_datatype", f"{field}.datatype = {clip(tensor['datatype'])}: {fix}")
    shape = tuple(tensor["shape"])
    template = _with_rows(each.shape)
    # the verdict is for every request of the signature, which leaves out the rows: no word of them here
    sent = _with_rows(shape[1:]) if shape else "[]"
    if any(size < 0 for size in shape[1:]):
        raise BadRecord("negative_shape", f"{field}.shape = {sent}: a size is negative; send {template}")
    if len(shape) != 1 + len(each.shape):
        raise BadRecord("wrong_rank", f"{field}.shape = {sent}: has {len(shape)} dimensions; send {template}")
    padded = []
    for size, expected in zip(shape[1:], each.shape, strict=True):
        if isinstance(expected, int):
            if size != expected:
                raise BadRecord("wrong_shape", f"{field}.shape = {sent}: send {template}")
            padded.append(size)
            continue
        if lengths.setdefault(expected, size) != size:
            raise BadRecord(
                "wrong_shape", f"{field}.shape = {sent}: {expected} is {lengths[expected]} in another input"
            )
        padded.append(_bucket(spec, field, expected, size))
    width = itemsize(each.datatype)
    elements = math.prod(shape[1:])
    if elements > ELEMENTS_MAX:
        text = f"{field}.shape = {sent}: {elements} numbers a row; send at most {ELEMENTS_MAX}"
        raise BadRecord("wrong_shape", text)
    return InputPlan(each, position, shape[1:], tuple(padded), None if width is None else width * elements)


def _with_rows(shape: Iterable[int | str]) -> str:
    return "[rows" + "".join(f", {size}" for size in shape) + "]"


def _bucket(spec: ModelSpec, field: str, name: str, size: int) -> int:
    """The smallest bucket that holds the size."""
    if name != spec.padded or not spec.buckets:
        return size
    for bucket in spec.buckets:
        if size <= bucket:
            return bucket
    raise BadRecord("wrong_shape", f"{field}.shape: {name} = {size}; the longest of this model is {spec.buckets[-1]}")


def check_rows(requests: Requests, rows: Ints, plan: Plan) -> dict[int, BadRecord]:
    """What is wrong with requests of this plan: their index -> the error. `rows`: int64[m], indices of the requests."""
    errors: dict[int, BadRecord] = {}
    first = requests.tensors[plan.inputs[0].position].first[rows]
    most = plan.spec.request_rows_max
    name = plan.inputs[0].spec.name
    for i in np.flatnonzero((first < 1) | (first > most)).tolist():
        code, fix = _rows_fix(int(first[i]), most)
        errors[int(rows[i])] = BadRecord(code, f"inputs[{name!r}].shape[0] = {first[i]} rows: {fix}")
    for each in plan.inputs:
        tensor = requests.tensors[each.position]
        field = f"inputs[{each.spec.name!r}]"
        for i in np.flatnonzero(tensor.first[rows] != first).tolist():
            size = tensor.first[rows[i]]
            fix = f"input {name!r} has {first[i]}; send as many" if size >= 0 else "a size is negative"
            code = "rows_differ" if size >= 0 else "negative_shape"
            errors.setdefault(int(rows[i]), BadRecord(code, f"{field}.shape[0] = {size} rows: {fix}"))
        _check_data(requests, rows, first, each, plan, errors)
    return errors


def _rows_fix(rows: int, most: int) -> tuple[str, str]:
    if rows < 0:
        return "negative_shape", "a size is negative; send at least one row"
    return ("zero_rows", "send at least one row") if rows == 0 else ("too_many_rows", f"send at most {most}")


def _check_data(
    requests: Requests, rows: Ints, first: Ints, each: InputPlan, plan: Plan, errors: dict[int, BadRecord]
) -> None:
    tensor = requests.tensors[each.position]
    field = f"inputs[{each.spec.name!r}].data"
    if each.row_bytes is None:
        for i in rows.tolist():
            if i not in errors and (error := _bad_elements(requests, i, each, field)):
                errors[i] = error
        return
    length = tensor.data.length[rows]
    for i in np.flatnonzero(length != first * each.row_bytes).tolist():
        row = int(rows[i])
        wanted = int(first[i]) * each.row_bytes
        text = f"{field} has {length[i]} bytes; rows and shape need {wanted} ({each.spec.datatype})"
        errors.setdefault(row, BadRecord("wrong_byte_count", text))
    if plan.spec.allow_nan or each.spec.datatype not in FLOATS or each.row_bytes == 0:
        return
    good = np.array([int(row) not in errors for row in rows]) if errors else np.ones(len(rows), bool)
    for row in _with_nan(requests, rows[good], each):
        errors.setdefault(row, BadRecord("nan_input", f"{field} holds NaN; this model does not take it: send numbers"))


def _with_nan(requests: Requests, rows: Ints, each: InputPlan) -> list[int]:
    if not len(rows):
        return []
    values, sizes = gather(requests, rows, each.position)
    numbers = values.view(DTYPES[each.spec.datatype])
    # a sum is NaN when a number is (or when infinities meet): one pass tells that nearly every window is clean
    with np.errstate(invalid="ignore", over="ignore"):
        if not np.isnan(numbers.sum(dtype=np.float32)):
            return []
    ends = np.cumsum(sizes // numbers.itemsize)
    found: list[int] = rows[np.unique(np.searchsorted(ends, np.flatnonzero(np.isnan(numbers)), "right"))].tolist()
    return found


def gather(requests: Requests, rows: Ints, position: int) -> tuple[Any, Ints]:
    """The contents of an input of these requests, end to end: uint8[sum], and their sizes int64[m]."""
    data = requests.tensors[position].data
    starts, lengths = data.start[rows], data.length[rows]
    return pick(requests.buffer, starts, lengths), lengths


def _bad_elements(requests: Requests, row: int, each: InputPlan, field: str) -> BadRecord | None:
    tensor = requests.tensors[each.position]
    start, length = int(tensor.data.start[row]), int(tensor.data.length[row])
    try:
        elements = split_bytes(requests.buffer[start : start + length].tobytes())
    except BadRecord as err:
        return BadRecord(err.code, f"{field}: {err}")
    wanted = int(tensor.first[row]) * math.prod(each.shape)
    if len(elements) != wanted:
        return BadRecord("wrong_byte_count", f"{field} has {len(elements)} elements; rows and shape need {wanted}")
    for element in elements:
        try:
            element.decode()
        except UnicodeDecodeError:
            return BadRecord("invalid_utf8", f"{field}: {clip(element)} is no UTF-8; send text")
    return None
