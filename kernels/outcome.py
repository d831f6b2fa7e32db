"""What the outputs of a run mean for each request: its score and its decision. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.spec import ModelSpec
from schemas.columns import spans
from schemas.tensors import FLOATS

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]


def outcome(
    spec: ModelSpec, outputs: dict[str, npt.NDArray[Any]], starts: Ints, rows: Codes
) -> tuple[Floats, Codes, list[str]]:
    """The score of n requests (float64[n], NaN is none), their decision (int32[n], -1 is none) and its words.

    `outputs`: rows first, those of request i are starts[i] to starts[i] + rows[i] (at least one), in ascending order.
    The score is the mean over the rows; the decision is the one that all rows share, else none.
    """
    total = len(next(iter(outputs.values()))) if outputs else 0
    scores = _scores(spec, outputs, total)
    codes, words = _decisions(spec, outputs, scores, total)
    n = len(starts)
    if n == 0:
        return np.empty(0), np.empty(0, np.int32), []
    whole = int(rows.sum(dtype=np.int64)) == total and int(starts[0]) == 0
    if not whole or np.any(starts[1:] != np.cumsum(rows[:-1], dtype=np.int64)):
        taken = spans(starts.astype(np.int64), rows.astype(np.int64))
        scores, codes = scores[taken], codes[taken]
        starts = np.cumsum(rows, dtype=np.int64) - rows
    if len(scores) == n:
        return scores, codes, words
    low, high = np.minimum.reduceat(codes, starts), np.maximum.reduceat(codes, starts)
    return np.add.reduceat(scores, starts) / rows, np.where(low == high, low, -1).astype(np.int32), words


def words(spec: ModelSpec) -> tuple[str, ...] | None:
    """The decisions that the model can come to, () where it decides nothing, None where that is not known."""
    if spec.threshold is not None and spec.score is not None:
        return spec.labels or ("0", "1")
    if spec.decision is None:
        return ()
    output = next((each for each in spec.outputs if each.name == spec.decision), None)
    if output is None or output.datatype == "BYTES":
        return spec.labels
    if output.datatype in FLOATS:
        stated = spec.labels or ()
        return None if output.width is None else (*stated, *map(str, range(len(stated), output.width)))
    return None if spec.classes is None else tuple(_label(spec, each) for each in spec.classes)


def _scores(spec: ModelSpec, outputs: dict[str, npt.NDArray[Any]], total: int) -> Floats:
    """float64[rows]."""
    if spec.score is None or not total:
        return np.full(total, np.nan)
    name, index = spec.score
    columns = outputs[name].reshape(total, -1)
    if columns.shape[1] == 0:
        return np.full(total, np.nan)
    if index is None and columns.shape[1] > 1:
        columns = columns.max(axis=1, keepdims=True)
    scores: Floats = columns[:, index or 0].astype(np.float64)
    return scores


def _decisions(
    spec: ModelSpec, outputs: dict[str, npt.NDArray[Any]], scores: Floats, total: int
) -> tuple[Codes, list[str]]:
    """int32[rows] and the words that they stand for."""
    if spec.threshold is not None and spec.score is not None:
        codes = np.where(np.isnan(scores), -1, scores >= spec.threshold).astype(np.int32)
        return codes, list(spec.labels or ("0", "1"))
    if spec.decision is None or not total:
        return np.full(total, -1, np.int32), []
    values = outputs[spec.decision].reshape(total, -1)
    if values.shape[1] == 0:
        return np.full(total, -1, np.int32), []
    if values.dtype.kind == "f":
        return _largest(spec, values)
    return _values(spec, values[:, 0])


def _largest(spec: ModelSpec, values: npt.NDArray[Any]) -> tuple[Codes, list[str]]:
    """The column of the largest number; none where one is NaN."""
    codes = values.argmax(axis=1).astype(np.int32)
    codes[np.isnan(values[np.arange(len(values)), codes])] = -1
    words = list(spec.labels or ())
    return codes, words + [str(each) for each in range(len(words), values.shape[1])]


def _values(spec: ModelSpec, values: npt.NDArray[Any]) -> tuple[Codes, list[str]]:
    """Labels as they are, integers by their place among the classes."""
    if values.dtype.kind in "OUS":
        index: dict[Any, int] = {}
        codes = np.fromiter((index.setdefault(each, len(index)) for each in values.tolist()), np.int32, len(values))
        return codes, [_word(each) for each in index]
    found, inverse = np.unique(values, return_inverse=True)
    return inverse.astype(np.int32), [_label(spec, int(each)) for each in found]


def _word(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _label(spec: ModelSpec, value: int) -> str:
    """The word for an integer class; the number where no label is stated for it."""
    labels = spec.labels or ()
    classes = spec.classes or range(len(labels))
    place = classes.index(value) if value in classes else len(labels)
    return labels[place] if place < len(labels) else str(value)
