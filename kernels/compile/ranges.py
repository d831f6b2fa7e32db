"""From the values that tensors take to the scales that hold them in 8 bits.

q = saturate(round_half_even(x / scale) + zero_point), x' = (q - zero_point) * scale   (QuantizeLinear of ONNX)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto, helper

from kernels.compile.net import Array, Net
from kernels.compile.runtime import NotCompiled, Runner, Tensors

SAMPLE_MAX = 16_384  # values of a tensor that are kept
HELD_ROWS = 4  # whose tensors are looked at in one run
_SHRINKS = np.linspace(0.2, 1.0, 33)
_SHRINKS_4 = np.linspace(0.6, 1.0, 17)
METHODS = ("range", "percentile", "mse")
_PERCENTILE = 99.99


@dataclass(slots=True)
class Seen:
    """What a tensor held: the least and the greatest value of all, and a sample."""

    low: float = 0.0  # a range always holds 0, which padding and Relu need exactly
    high: float = 0.0
    parts: list[Array] = field(default_factory=list)
    largest: Array | None = None  # magnitudes by feature, where the last axis is one

    def update(self, values: Array, keep: int) -> None:
        """Takes in values, of which `keep` go into the sample."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        self.parts.append(flat[:: max(1, flat.size // max(keep, 1))][:keep].copy())
        if values.ndim > 1:
            rows = tuple(range(values.ndim - 1))
            here = np.maximum(values.max(axis=rows), -values.min(axis=rows))
            same = self.largest is not None and self.largest.shape == here.shape
            self.largest = np.maximum(self.largest, here) if same and self.largest is not None else here

    @property
    def sample(self) -> Array:
        return np.concatenate(self.parts) if self.parts else np.zeros(1, np.float32)


@dataclass(frozen=True, slots=True)
class Scale:
    """uint8 with one scale a tensor; `clipped`: the share of the values seen beyond it."""

    scale: np.float32
    zero: int
    clipped: float = 0.0


def observe(net: Net, tensors: Iterable[str], batches: Sequence[Tensors], finite: bool = True) -> dict[str, Seen]:
    """Runs the batches and looks at these tensors. Where one holds NaN or infinity it raises NotCompiled, or says that
    its greatest value is infinite, where they need not be `finite`."""
    names = list(tensors)
    computed = [name for name in names if name not in net.inputs]
    model = ModelProto()
    model.CopyFrom(net.model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in computed)
    seen = {name: Seen() for name in names}
    if not names or not batches:
        return seen
    runner = Runner(model) if computed else None
    parts = _parts(net, batches)
    for feed in parts:
        values = runner.run(feed, computed) if runner else {}
        for name in names:
            array = values[name] if name in values else feed[name]
            if not finite and not np.isfinite(array).all():
                seen[name].high = float("inf")
            elif not np.isfinite(array).all():
                raise NotCompiled(f"tensor {name!r} is NaN or infinite on the calibration rows; look at these")
            else:
                seen[name].update(array, max(64, SAMPLE_MAX // len(parts)))
    return seen


def _parts(net: Net, batches: Sequence[Tensors]) -> list[Tensors]:
    """The batches in runs of few rows, as all tensors are held at once; whole where the graph fixes its rows."""
    fixed = any(size.dim_value for each in net.model.graph.input for size in each.type.tensor_type.shape.dim[:1])
    return [
        {name: array[at : at + HELD_ROWS] for name, array in feed.items()} if not fixed else feed
        for feed in batches
        for at in range(0, 1 if fixed else len(next(iter(feed.values()))), HELD_ROWS)
    ]


def scale_of(seen: Seen, method: str) -> Scale:
    """By `method`: "range" holds all values, "percentile" all but 1 in 10,000 on each side, "mse" errs least."""
    sample = seen.sample
    low, high = seen.low, seen.high
    if method == "percentile":
        low, high = (float(each) for each in np.percentile(sample, [100 - _PERCENTILE, _PERCENTILE]))
    elif method == "mse":
        errors = [_mean_square(sample, _fit(low * shrink, high * shrink)) for shrink in _SHRINKS]
        shrink = float(_SHRINKS[int(np.argmin(errors[::-1])) * -1 - 1])
        low, high = low * shrink, high * shrink
    fitted = _fit(min(low, 0.0), max(high, 0.0))
    least, most = -fitted.zero * fitted.scale, (255 - fitted.zero) * fitted.scale
    clipped = float(np.mean((sample < least - fitted.scale / 2) | (sample > most + fitted.scale / 2)))
    return Scale(fitted.scale, fitted.zero, clipped)


def fake(values: Array, scale: Scale) -> Array:
    """The values as they come back from 8 bits."""
    steps = np.clip(np.rint(values / scale.scale) + scale.zero, 0, 255)
    held: Array = ((steps - scale.zero) * scale.scale).astype(np.float32)
    return held


def weights(
    array: Array, bits: int, axis: int, least: Array | None = None, clip: float | None = None
) -> tuple[Array, Array]:
    """Symmetric whole numbers (int8[...], within 4 or 8 bits) and their scales float32[channels].

    `least`: float[channels], scales not to go below (so that the bias fits 32 bits); `clip`: see `Width`.
    """
    most = 2 ** (bits - 1) - 1
    shape = [1] * array.ndim
    shape[axis] = -1
    others = tuple(each for each in range(array.ndim) if each != axis)
    largest = np.abs(array).max(axis=others)
    best = _scales(largest * (clip or 1.0) / most, least)
    if bits == 4 and clip is None:
        best_error = _channel_error(array, best.reshape(shape), most, others)
        for shrink in _SHRINKS_4[:-1]:
            tried = _scales(largest * shrink / most, least)
            error = _channel_error(array, tried.reshape(shape), most, others)
            best, best_error = np.where(error < best_error, tried, best), np.minimum(error, best_error)
    steps = np.clip(np.rint(array / best.reshape(shape)), -most, most)
    return steps.astype(np.int8), best


def _scales(scales: Array, least: Array | None) -> Array:
    if least is not None:
        scales = np.maximum(scales, least)
    found: Array = np.where(scales > 1e-30, scales, 1.0).astype(np.float32)
    return found


def _channel_error(array: Array, scales: Array, most: int, others: tuple[int, ...]) -> Array:
    held = np.clip(np.rint(array / scales), -most, most) * scales
    error: Array = ((array - held) ** 2).sum(axis=others)
    return error


def _fit(low: float, high: float) -> Scale:
    """The scale whose 256 steps reach from low to high, both moved so that 0 is a step."""
    scale = np.float32((high - low) / 255)
    if not scale > np.finfo(np.float32).tiny:
        return Scale(np.float32(1), 0)
    return Scale(scale, int(np.clip(np.rint(-low / float(scale)), 0, 255)))


def _mean_square(values: Array, scale: Scale) -> float:
    return float(np.mean((values - fake(values, scale)) ** 2))
