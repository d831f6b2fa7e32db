"""Looks for an input on which the variant is far from its original: random points, corners, gradient steps."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

from kernels.proof.ir import F64
from kernels.proof.outputs import Quantity, measured, softmax
from kernels.proof.pair import Product

_POINTS_BYTES = 1 << 27


def inside(x: F64, low: F64, high: F64) -> npt.NDArray[np.float32]:
    """The nearest float32 within the box; where it holds none, the nearest at all."""
    low32, high32 = low.astype(np.float32), high.astype(np.float32)
    least = np.where(low32.astype(np.float64) < low, np.nextafter(low32, np.float32(np.inf)), low32)
    most = np.where(high32.astype(np.float64) > high, np.nextafter(high32, np.float32(-np.inf)), high32)
    return np.asarray(np.where(least > most, x.astype(np.float32), np.clip(x.astype(np.float32), least, most)))


def attack(product: Product, quantity: Quantity, low: F64, high: F64, rng: np.random.Generator, points: int = 12,
           steps: int = 8, deadline: float = math.inf) -> tuple[npt.NDArray[np.float32], F64]:  # fmt: skip
    """The worst input found in each box, float32[tasks, features], and what our own arithmetic says there.

    After the deadline of time.monotonic, the middles of the boxes.
    """
    tasks, features = low.shape
    widest = max(each.argument.size for each in product.original.unaries) if product.original.unaries else features
    chunk = max(1, _POINTS_BYTES // (8 * points * max(widest, features)))
    best = []
    for at in range(0, tasks, chunk):
        late = time.monotonic() > deadline
        many = (1, 0) if late else (points, steps)
        best.append(_attack(product, quantity, low[at : at + chunk], high[at : at + chunk], rng, *many))
    return np.concatenate([x for x, _ in best]), np.concatenate([value for _, value in best])


def _attack(product: Product, quantity: Quantity, low: F64, high: F64, rng: np.random.Generator, points: int,
            steps: int) -> tuple[npt.NDArray[np.float32], F64]:  # fmt: skip
    tasks, features = low.shape
    share = rng.random((tasks, points, features))
    share[:, points // 2 :] = np.rint(share[:, points // 2 :])  # corners
    share[:, 0] = 0.5
    x = low[:, None] + share * (high - low)[:, None]
    best_x, best = x[:, 0].copy(), np.full(tasks, -1.0)
    for step in range(steps + 1):
        flat = x.reshape(-1, features)
        value, gradient = _pushed(product, quantity, flat)
        value = value.reshape(tasks, points)
        at = value.argmax(1)
        better = value[np.arange(tasks), at] > best
        best[better], best_x[better] = value[better, at[better]], x[better, at[better]]
        size = (high - low)[:, None] * (0.6 / (1 + step))
        x = np.clip(x + size * np.sign(gradient.reshape(x.shape)), low[:, None], high[:, None])
    return inside(best_x, low, high), best


def _pushed(product: Product, quantity: Quantity, x: F64) -> tuple[F64, F64]:
    """The measure at each row and the direction in which it grows."""
    original, variant = product.original, product.variant
    a, b = original.run(x), variant.run(x)
    value = measured(original, quantity, a, b)
    rows = np.arange(len(x))
    if quantity == "label":
        top = a.argmax(1)
        others = b.copy()
        others[rows, top] = -np.inf
        weights = np.zeros_like(a)
        weights[rows, others.argmax(1)], weights[rows, top] = 1.0, -1.0
        return value + 1e-9 * (others.max(1) - b[rows, top]), variant.gradient(x, weights)
    if quantity == "softmax" and original.ending != "probabilities":
        p, q = softmax(a), softmax(b)
        at = np.abs(q - p).argmax(1)
        sign = np.sign(q - p)[rows, at]
        return value, variant.gradient(x, _slope(q, at, sign)) - original.gradient(x, _slope(p, at, sign))
    at = np.abs(b - a).argmax(1)
    weights = np.zeros_like(a)
    weights[rows, at] = np.sign(b - a)[rows, at]
    return value, variant.gradient(x, weights) - original.gradient(x, weights)


def _slope(p: F64, at: npt.NDArray[np.int64], sign: F64) -> F64:
    """The gradient of sign * softmax[at] by the logits."""
    rows = np.arange(len(p))
    chosen = p[rows, at][:, None]
    weights = -chosen * p
    weights[rows, at] += chosen[:, 0]
    return np.asarray(weights * sign[:, None])
