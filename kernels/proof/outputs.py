"""From bounds of the outputs to the number that was asked for: raw values, probabilities or the label. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kernels.proof.bounds import Analysis
from kernels.proof.ir import F64, BadProblem, Net
from kernels.proof.trees import ForestAnalysis

Quantity = Literal["raw", "softmax", "label"]
PAIRS_MAX = 32  # classes up to which every pair is bounded for itself
MARGIN = 2.0**-16  # of logits, so that float32 probabilities keep the order
_OWN = 2.0**-40


@dataclass
class Worst:
    """float64[tasks]: the bound, its part without float rounding, and which features matter: float64[tasks, features].

    A bound of the label is 0 where it cannot change, else infinity.
    """

    bound: F64
    real: F64
    influence: F64


def bounded(analysis: Analysis | ForestAnalysis, quantity: Quantity) -> Worst:
    """The bound of |variant - original| over each box."""
    net = analysis.product.original
    outputs = net.tensors[net.output].size
    if quantity == "label":
        return _label(analysis, outputs)
    if quantity == "softmax" and net.ending != "probabilities":
        return _softmax(analysis, outputs)
    rows = analysis.outputs(np.concatenate([np.eye(outputs), -np.eye(outputs)]), "difference")
    bound, at = rows.total.max(1), rows.total.argmax(1)
    bound = bound * (1 + 2.0**-23) if analysis.floats else bound  # the answers themselves are float32
    return Worst(bound, rows.real.max(1), _of(rows.influence, at))


def sufficient(analysis: Analysis, quantity: Quantity, epsilon: float) -> tuple[F64, F64] | None:
    """Rows of the outputs' difference and limits, within which the quantity is within epsilon; None: not known here.

    A probability changes by tanh(d / 4) at most, when differences of pairs change by d at most.
    """
    net = analysis.product.original
    n = net.tensors[net.output].size
    if quantity == "raw" or (quantity == "softmax" and net.ending == "probabilities"):
        most = epsilon / (1 + 2.0**-22) if analysis.floats else epsilon
        return np.concatenate([np.eye(n), -np.eye(n)]), np.full(2 * n, most)
    if quantity == "label" or not 1 < n <= PAIRS_MAX:
        return None
    rows = np.concatenate([_differences(n, i) for i in range(n)])
    most = 4 * np.arctanh(np.clip(epsilon - (softmax_rounding(n) if analysis.floats else 0.0), 0.0, 0.5)) * (1 - _OWN)
    return rows, np.full(len(rows), most)


def measured(net: Net, quantity: Quantity, original: F64, variant: F64) -> F64:
    """The same of values: float64[rows] of float64[rows, outputs]. What is not finite is infinitely wrong."""
    with np.errstate(invalid="ignore", over="ignore"):
        if quantity == "label":
            wrong = (original.argmax(1) != variant.argmax(1)).astype(float)
        else:
            if quantity == "softmax" and net.ending != "probabilities":
                original, variant = softmax(original), softmax(variant)
            wrong = np.abs(variant - original).max(1)
    finite = np.isfinite(original).all(1) & np.isfinite(variant).all(1) & np.isfinite(wrong)
    return np.where(finite, wrong, np.inf)


def softmax(logits: F64) -> F64:
    """Probabilities of logits, by row."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def softmax_rounding(n: int) -> float:
    """How far float32 probabilities of n classes of both nets may be from the real ones, together.

    A sum of n powers is within g(n + 16) of the real one in any order, and so is each quotient, also when it is
    normalized once more.
    """
    return float((2 * n + 40) * 2.0**-23)


def _of(influence: F64, at: npt.NDArray[np.int64]) -> F64:
    if len(influence) == 1:
        return np.asarray(np.abs(influence[0][at]))
    return np.asarray(np.abs(influence[np.arange(len(influence)), at]))


def _differences(n: int, i: int) -> F64:
    """Rows e_j - e_i for the others j of one i."""
    return np.asarray(np.delete(np.eye(n), i, 0) - np.eye(n)[i])


def _label(analysis: Analysis | ForestAnalysis, n: int) -> Worst:
    if n < 2:
        raise BadProblem("--output label needs two or more outputs; use --output raw")
    product, box = analysis.product, analysis.ranges[0]
    middle = product.original.run(0.5 * (box.low + box.high))
    rows = np.stack([_differences(n, int(i)) for i in middle.argmax(1)])
    theirs = analysis.outputs(rows, "original")
    apart = analysis.outputs(rows, "difference")
    ours = np.minimum(analysis.outputs(rows, "variant").total, theirs.total + apart.total)
    worst = np.maximum(theirs.total, ours)
    least = MARGIN if analysis.floats and product.original.ending.startswith("softmax") else 0.0
    bound = np.where(worst.max(1) < -least, 0.0, np.inf)
    real = np.where(np.maximum(theirs.real, theirs.real + apart.real).max(1) < 0, 0.0, bound)
    return Worst(bound, real, _of(theirs.influence + apart.influence, worst.argmax(1)))


def _softmax(analysis: Analysis | ForestAnalysis, n: int) -> Worst:
    """p_i = 1 / (1 + R), R = sum_j exp(z_j - z_i); the variant's R is R k with ln k within the pairs' differences."""
    if n == 1:
        zero = np.zeros(analysis.tasks)
        return Worst(zero, zero, np.zeros_like(analysis.ranges[0].low))
    if n <= PAIRS_MAX:
        rows = np.concatenate([_differences(n, i) for i in range(n)])
        found = analysis.outputs(rows, "difference")
        shape = (analysis.tasks, n, n - 1)
        most, most_real = found.total.reshape(shape), found.real.reshape(shape)
        # the row of (i, j) is minus that of (j, i)
        other = [[j * (n - 1) + (i if i < j else i - 1) for j in range(n) if j != i] for i in range(n)]
        least, least_real = -found.total[:, other], -found.real[:, other]
        away = analysis.outputs(rows, "original").total
        high, low = away.reshape(shape), -away[:, other]
        influence = found.influence
    else:
        found = analysis.outputs(np.concatenate([np.eye(n), -np.eye(n)]), "difference")
        most, least, most_real, least_real = _apart(found.total, found.real, n)
        away = analysis.outputs(np.concatenate([np.eye(n), -np.eye(n)]), "original").total
        high, low, _, _ = _apart(away, away, n)
        influence = found.influence
    total = _changed(least, most, low, high)
    real = _changed(least_real, most_real, low, high)
    place = np.abs(found.total).argmax(1)
    return Worst(total.max(1) + (softmax_rounding(n) if analysis.floats else 0.0), real.max(1), _of(influence, place))


def _apart(total: F64, real: F64, n: int) -> tuple[F64, F64, F64, F64]:
    """Ranges of v_j - v_i from those of the single values, as one number a class."""
    found = []
    for each in (total, real):
        high, low = each[:, :n], -each[:, n:]
        found += [high.max(1)[:, None] - low, low.min(1)[:, None] - high]
    most, least, most_real, least_real = (each[:, :, None] for each in found)
    return most, least, most_real, least_real


def _changed(least: F64, most: F64, low: F64, high: F64) -> F64:
    """Largest change of each probability: float64[tasks, n] of float64[tasks, n, others]."""
    others = max(least.shape[1] - 1, 1) / least.shape[2]
    odds = [np.clip(_log_sum(each) + np.log(others), -700.0, 700.0) for each in (low, high)]
    bound = np.zeros(least.shape[:2])
    for shift in (np.minimum(least.min(2), 0.0), np.maximum(most.max(2), 0.0)):
        shift = np.clip(shift, -1500.0, 1500.0)  # from +-700 that is across all of the logistic function
        at = np.clip(-0.5 * shift, odds[0] - _OWN, odds[1] + _OWN)
        bound = np.maximum(bound, np.abs(_logistic(-at) - _logistic(-at - shift)))
    return bound * (1 + _OWN) + _OWN


def _log_sum(each: F64) -> F64:
    top = each.max(2, keepdims=True)
    return np.asarray((top + np.log(np.exp(each - top).sum(2, keepdims=True)))[:, :, 0])


def _logistic(t: F64) -> F64:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * t)))
