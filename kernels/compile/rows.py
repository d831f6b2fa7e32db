"""The rows that a compilation looks at: half of them set the ranges, the other half judge the variants."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kernels.compile.net import Array, Net
from kernels.compile.runtime import NotCompiled, Tensors, joined
from kernels.session import Session
from kernels.spec import ModelSpec, TensorSpec
from schemas.tensors import DTYPES, FLOATS

ROWS_MIN = 8
CALIBRATE_ROWS_MAX = 1024
JUDGE_ROWS_MAX = 4096
BYTES_MAX = 64 << 20  # of the rows on each side
BATCH_BYTES_MAX = 1 << 20  # of the inputs of one run
MADE_ROWS = 512
_MADE_BYTES_MAX = 16 << 20
ATTRIBUTED_ROWS_MAX = 16_384
ATTRIBUTE = "attribute/"  # before the name of what is no input: object[rows] of texts, "" where not said
_LENGTH = 32  # of a size that varies and has no buckets
_SIGMAS = 3.0  # as far as made-up rows go from the mean that a scaler states


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as groups of equal shapes, each an array a name, rows first. `cost`: what guessing them costs, if so.

    `attributed`: rows of both halves with the attributes of the people they are about, where these are known.
    """

    calibrate: list[Tensors]
    judge: list[Tensors]
    source: Literal["file", "ranges", "topic", "none"]
    sha256: str
    cost: str = ""
    attributed: tuple[Tensors, ...] = ()

    @property
    def calibrate_rows(self) -> int:
        return count(self.calibrate)


def count(groups: Sequence[Tensors]) -> int:
    """Rows in all groups."""
    return sum(len(next(iter(each.values()))) for each in groups)


def grouped(requests: Iterator[Tensors]) -> list[Tensors]:
    """Requests with equal shapes one behind the other."""
    found: dict[tuple[tuple[str, tuple[int, ...]], ...], list[Tensors]] = {}
    for each in requests:
        key = tuple((name, array.shape[1:]) for name, array in sorted(each.items()))
        found.setdefault(key, []).append(each)
    return [{name: np.concatenate([each[name] for each in group]) for name in group[0]} for group in found.values()]


def given(groups: list[Tensors], spec: ModelSpec, where: str, source: Literal["file", "topic"]) -> Rows:
    """Rows of a file, checked and split. `where` names it in messages. Raises NotCompiled.

    A group may hold attributes, as `ATTRIBUTE` says, beside its inputs.
    """
    attributed = _attributed(groups) if any(name.startswith(ATTRIBUTE) for name in groups[0]) else ()
    groups = [inputs_alone(each) for each in groups]
    _check(groups, spec, where)
    digest = hashlib.sha256()
    for group in groups:
        for name in sorted(group):
            digest.update(name.encode() + repr(group[name].shape).encode())
            digest.update(_bytes(group[name]))
    return replace(_split(groups, source, digest.hexdigest()), attributed=attributed)


def made(spec: ModelSpec, net: Net | None) -> Rows:
    """Rows made up from what the graph says of its inputs: the mean and spread of a scaler, the size of a table."""
    rng = np.random.default_rng(0)
    size = sum(each.nbytes for each in (_one(spec, tensor, net, rng, 1) for tensor in spec.inputs))
    rows = int(np.clip(_MADE_BYTES_MAX // max(size, 1), 2 * ROWS_MIN, MADE_ROWS))
    group = {each.name: _one(spec, each, net, rng, rows) for each in spec.inputs}
    cost = (
        "no calibration rows: ranges and errors come from made-up inputs, so they hold only for inputs like these;"
        " give --calibration FILE for the rows that the model really gets"
    )
    return _split([group], "ranges", "", cost)


def batches(groups: Sequence[Tensors], rows_fixed: int | None = None) -> Iterator[Tensors]:
    """Runs of a bounded size; where the graph fixes the rows, whole runs of these only."""
    for group in groups:
        total, step = count([group]), run_rows(group, rows_fixed)
        end = total - total % step if rows_fixed else total
        for at in range(0, end, step):
            yield {name: array[at : at + step] for name, array in group.items()}


def run_rows(group: Tensors, rows_fixed: int | None) -> int:
    """Rows of a run of a bounded size."""
    one = sum(array[:1].nbytes for array in group.values())
    return rows_fixed or max(1, min(256, BATCH_BYTES_MAX // max(one, 1)))


def answered(session: Session, feed: Tensors, requests_per_run: int) -> Tensors:
    """All at once, or row by row where a run holds one request."""
    if not requests_per_run:
        return session.run(feed)
    alone = [{name: array[at : at + 1] for name, array in feed.items()} for at in range(count([feed]))]
    return joined([session.run(each) for each in alone])


def first(groups: Sequence[Tensors], rows: int) -> list[Tensors]:
    """The first `rows` rows, taken evenly from the groups, at least one of each while they last."""
    taken, left = [], rows
    for place, group in enumerate(groups):
        share = max(1, left // (len(groups) - place))
        part = {name: array[:share] for name, array in group.items()}
        taken.append(part)
        left -= count([part])
        if left <= 0:
            break
    return taken


def inputs_alone(group: Tensors) -> Tensors:
    """Without the attributes."""
    return {name: array for name, array in group.items() if not name.startswith(ATTRIBUTE)}


def _attributed(groups: Sequence[Tensors]) -> tuple[Tensors, ...]:
    """As many as are judged at most, in a fixed random order."""
    rng = np.random.default_rng(1)
    found = []
    for group in groups:
        one = sum(array[:1].nbytes for array in group.values())
        most = max(1, min(ATTRIBUTED_ROWS_MAX, BYTES_MAX // max(one, 1)) // len(groups))
        order = rng.permutation(count([group]))[:most]
        found.append({name: array[order] for name, array in group.items()})
    return tuple(found)


def _check(groups: list[Tensors], spec: ModelSpec, where: str) -> None:
    rows = count(groups)
    if rows < ROWS_MIN:
        raise NotCompiled(f"{where}: has {rows} rows; give at least {ROWS_MIN}, a few hundred are better")
    constant = True
    for group in groups:
        for tensor in spec.inputs:
            array = group.get(tensor.name)
            if array is None:
                raise NotCompiled(f"{where}: input {tensor.name!r} is missing; it has {', '.join(sorted(group))}")
            _check_array(array, tensor, spec, where)
            constant = constant and len(group[tensor.name]) > 0 and bool((array == array[:1]).all())
    if constant and len(groups) == 1:
        raise NotCompiled(f"{where}: all {rows} rows are equal; give rows that differ, as the model really gets them")


def _check_array(array: Array, tensor: TensorSpec, spec: ModelSpec, where: str) -> None:
    shape = array.shape[1:]
    fits = len(shape) == len(tensor.shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ["rows", *tensor.shape]
        raise NotCompiled(f"{where}: {tensor.name!r} has shape {['rows', *shape]}; the model takes {wanted}")
    if array.dtype != DTYPES[tensor.datatype] and tensor.datatype != "BYTES":
        raise NotCompiled(f"{where}: {tensor.name!r} is {array.dtype}; the model takes {tensor.datatype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
        if not (spec.allow_nan and not np.isinf(array).any()):
            raise NotCompiled(f"{where}: {tensor.name!r} holds NaN or infinity in row {bad}; take the row out")


def _split(groups: list[Tensors], source: Literal["file", "ranges", "topic"], digest: str, cost: str = "") -> Rows:
    """Every other row in a fixed random order, so that sorted files do no harm."""
    rng = np.random.default_rng(0)
    calibrate: list[Tensors] = []
    judge: list[Tensors] = []
    for group in groups:
        order = rng.permutation(count([group]))
        half = (len(order) + 1) // 2
        for side, places, most in (
            (calibrate, order[:half], CALIBRATE_ROWS_MAX),
            (judge, order[half:], JUDGE_ROWS_MAX),
        ):
            one = sum(array[:1].nbytes for array in group.values())
            kept = places[: max(1, min(most, BYTES_MAX // max(one, 1)) // len(groups))]
            if len(kept):
                side.append({name: array[kept] for name, array in group.items()})
    return Rows(calibrate, judge or calibrate, source, digest, cost)


def _bytes(array: Array) -> bytes:
    if array.dtype.kind in "OUS":
        return "\0".join(str(each) for each in array.reshape(-1)).encode()
    return array.tobytes()


def _one(spec: ModelSpec, tensor: TensorSpec, net: Net | None, rng: np.random.Generator, rows: int) -> Array:
    """Made-up values of one input."""
    sizes = {size: spec.buckets[-1] if size == spec.padded else _LENGTH for size in tensor.varying}
    shape = tensor.concrete(rows, sizes)
    dtype = DTYPES[tensor.datatype]
    if tensor.datatype == "BYTES":
        raise NotCompiled(f"{spec.path}: input {tensor.name!r} is text; give --calibration FILE with real rows")
    if tensor.datatype == "BOOL":
        return rng.random(shape) < 0.5
    if tensor.datatype in FLOATS:
        mean, spread = _stated(tensor.name, net)
        values = np.clip(rng.standard_normal(shape), -_SIGMAS, _SIGMAS) * spread + mean
        return values.astype(dtype)
    if tensor.datatype in ("UINT8", "INT8"):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return rng.integers(0, _table(tensor.name, net), shape).astype(dtype)


def _stated(name: str, net: Net | None) -> tuple[Array, Array]:
    """Mean and spread of an input as the Scaler behind it states them: (x - mean) * (1 / spread)."""
    node = next((each for each in (net.consumers.get(name, []) if net else [])), None)
    one, zero = np.ones(1), np.zeros(1)
    if net is None or node is None or node.op_type != "Sub":
        return zero, one
    offset = net.weight(node.input[1])
    following = net.only_consumer(node.output[0])
    if offset is None:
        return zero, one
    scale = net.weight(following.input[1]) if following is not None and following.op_type in ("Mul", "Div") else None
    if following is None or scale is None or not np.all(scale):
        return offset.astype(np.float64), one
    spread = 1 / np.abs(scale.astype(np.float64)) if following.op_type == "Mul" else np.abs(scale.astype(np.float64))
    return offset.astype(np.float64), spread


def _table(name: str, net: Net | None) -> int:
    """The rows of the table that whole numbers look up, 2 where they look up nothing."""
    names, sizes = [name], []
    for each in names:
        for node in net.consumers.get(each, []) if net else []:
            table = net.weight(node.input[0]) if net and node.op_type == "Gather" else None
            if table is not None and node.input[1] == each:
                sizes.append(len(table))
            elif node.op_type == "Cast":
                names.append(node.output[0])
    return min(sizes, default=2)
