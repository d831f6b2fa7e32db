"""What a model's inputs and score looked like when it was made: reference.json beside model.onnx.

Edges are fixed once on a sample, so that histograms of later rows add up and compare with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from kernels.outcome import outcome
from kernels.spec import ModelSpec
from schemas.errors import LraiError

FILE = "reference.json"
SCORE = "score"
BINS = 20
FEATURES_MAX = 64
ROWS_MIN = 30
FILE_BYTES_MAX = 4 << 20
MAKE = "make it with `lrai reference MODELS/<model>/<version> --from FILE`"
Floats = npt.NDArray[np.float64]
Tensors = Mapping[str, npt.NDArray[Any]]


class BadReference(LraiError):
    """A reference cannot be used; make it again."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts`: one more than edges: below the first, from each edge to before the next, from the last on.

    `missing`: NaN; `sum`, `sum_squares`: of what is finite; `sha256`: of the edges as little-endian float64.
    """

    feature: str
    edges: tuple[float, ...]
    sha256: str
    counts: tuple[int, ...]
    missing: int
    sum: float
    sum_squares: float


@dataclass(frozen=True, slots=True)
class Reference:
    """`model_sha256`: of the model whose scores these are; `rows`: of the sample."""

    format: Literal[1]
    model_sha256: str
    rows: int
    histograms: tuple[Histogram, ...]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(each.feature for each in self.histograms)


_READER = TypeAdapter(Reference)


class Columns:
    """The numbers of a model's inputs that are watched: at most FEATURES_MAX, evenly over all columns of numeric inputs
    of a fixed width. `names`: input[column]."""

    def __init__(self, spec: ModelSpec) -> None:
        widths = [(each.name, each.width or 0) for each in spec.inputs if each.datatype != "BYTES"]
        places = [(name, column) for name, width in widths for column in range(width)]
        chosen = places[:: max(1, -(-len(places) // FEATURES_MAX))]
        self.names = tuple(f"{name}[{column}]" for name, column in chosen)
        self._of = {
            name: [column for of, column in chosen if of == name] for name in dict.fromkeys(each[0] for each in chosen)
        }

    def take(self, inputs: Tensors, step: int = 1) -> Floats:
        """float64[rows, names], of every step-th row."""
        parts = []
        for name, columns in self._of.items():
            rows = inputs[name][::step]
            parts.append(rows.reshape(len(rows), -1)[:, columns].astype(np.float64))
        return np.concatenate(parts, axis=1) if parts else np.empty((0, 0))


def make(spec: ModelSpec, groups: Sequence[Tensors], run: Callable[[Any], Tensors]) -> Reference:
    """The reference of rows in groups of equal shapes, answered by `run`. Raises BadReference."""
    columns = Columns(spec)
    rows = sum(len(next(iter(group.values()))) for group in groups)
    if rows < ROWS_MIN:
        raise BadReference(f"{rows} rows are too few for a reference; give at least {ROWS_MIN}, better some thousand")
    values = dict(zip(columns.names, np.concatenate([columns.take(each) for each in groups]).T, strict=True))
    if spec.score is not None:
        values[SCORE] = np.concatenate([_scores(spec, run(group)) for group in groups])
    found = tuple(_histogram(name, each) for name, each in values.items())
    if not found:
        raise BadReference(f"{spec.path}: has neither numeric inputs of a fixed width nor a score: nothing to watch")
    return Reference(1, spec.sha256, rows, found)


def _scores(spec: ModelSpec, outputs: Tensors) -> Floats:
    n = len(next(iter(outputs.values())))
    return outcome(spec, dict(outputs), np.arange(n), np.ones(n, np.int32))[0]


def _histogram(feature: str, values: Floats) -> Histogram:
    edges = edges_of(values)
    counts, missing, total, squares = count(values[:, None], [edges])
    return Histogram(
        feature, tuple(edges.tolist()), digest(edges), tuple(counts[0].tolist()), int(missing[0]), float(total[0]),
        float(squares[0]),
    )  # fmt: skip


def edges_of(values: Floats) -> Floats:
    """Ascending edges: quantiles that cut the sample into BINS bins of about equal counts; where there are at most BINS
    different values each of them, and the next number after the largest, so that a larger one shows.

    >>> edges_of(np.array([0.0, 1.0, 1.0, np.nan]))[:2].tolist()
    [0.0, 1.0]
    """
    finite = values[np.isfinite(values)]
    different = np.unique(finite)
    if not len(different):
        return np.zeros(1)
    if len(different) <= BINS:
        return np.append(different, np.nextafter(different[-1], np.inf))
    return np.unique(np.quantile(finite, np.arange(1, BINS) / BINS))


def digest(edges: npt.ArrayLike) -> str:
    """SHA-256 of the edges as little-endian float64."""
    return hashlib.sha256(np.asarray(edges, "<f8").tobytes()).hexdigest()


def count(values: Floats, edges: Sequence[Floats]) -> tuple[list[npt.NDArray[np.int32]], Any, Floats, Floats]:
    """Histograms of the columns of float64[rows, columns], by their edges.

    The counts of each column, and by column how many are NaN, the sum and the sum of squares of what is finite.
    Infinities are counted below the first edge and from the last on.
    """
    ordered = np.sort(values, axis=0).T  # NaN last: numbers below an edge are found by halving
    missing = np.isnan(values).sum(axis=0)
    whole = (len(values) - missing).tolist()
    below, at, places = np.zeros(sum(map(len, edges)) + 2 * len(edges), np.int32), 0, []
    for column, own, there in zip(ordered, edges, whole, strict=True):
        below[at + 1 : at + 1 + len(own)] = column[:there].searchsorted(own)
        below[at + 1 + len(own)] = there
        places.append(slice(at, at + 1 + len(own)))
        at += len(own) + 2
    steps = np.diff(below)
    counts = [steps[place] for place in places]
    finite = np.where(np.isfinite(values), values, 0.0)
    with np.errstate(over="ignore"):
        sums, squares = np.nan_to_num(finite.sum(axis=0)), np.nan_to_num((finite * finite).sum(axis=0))
    return counts, missing, sums, squares


def write(folder: Path, reference: Reference) -> None:
    """Puts it beside the model, whole or not at all."""
    path, aside = folder / FILE, folder / f".{FILE}.part"
    aside.write_bytes(_READER.dump_json(reference, indent=1))
    aside.replace(path)


def read(folder: Path, spec: ModelSpec) -> Reference | None:
    """The reference of a model, None where there is no file. Raises BadReference that says what is wrong with it."""
    path = folder / FILE
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise BadReference(f"{path}: is larger than {FILE_BYTES_MAX} bytes; {MAKE}")
        found = _READER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadReference(f"{path}: {where}: {first['msg']}; {MAKE}") from None
    except OSError as err:
        raise BadReference(f"{path}: cannot be read ({err.strerror or err}); {MAKE}") from err
    if wrong := _wrong(found, spec):
        raise BadReference(f"{path}: {wrong}; {MAKE}")
    return found


def _wrong(found: Reference, spec: ModelSpec) -> str:
    wanted = (*Columns(spec).names, *([SCORE] if spec.score is not None else []))
    if found.features != wanted:
        return f"it is about {', '.join(found.features[:5])}..., the model has {', '.join(wanted[:5])}..."
    if found.model_sha256 != spec.sha256:
        return "it was made for another model.onnx"
    for each in found.histograms:
        edges = np.array(each.edges)
        if not len(edges) or not np.isfinite(edges).all() or np.any(np.diff(edges) <= 0):
            return f"the edges of {each.feature} are not finite and ascending"
        if digest(edges) != each.sha256:
            return f"the edges of {each.feature} are not those of its SHA-256"
        if len(each.counts) != len(edges) + 1 or min(each.counts) < 0 or sum(each.counts) + each.missing != found.rows:
            return f"the counts of {each.feature} are not those of {found.rows} rows"
    return ""
