"""QEBVerif's nets in their own exact arithmetic, and an attack on how far a net is from its fixed point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = Callable[[Array], tuple[Array, Array]]
GRADIENT_STEPS = 4
CLIMBED = 2  # the best so many are improved pixel by pixel
CLIMBS = 30
ROUNDS = 40  # from beside the best
SHARES = (0.05, 0.15, 0.3, 0.6, 1.0)  # of the pixels that are drawn anew
ANNEALED, ANNEALING_STEPS = 16, 80
WIDTHS = 0.1, 0.02  # of smoothed jumps, in the begin and in the end
RATES = (0.15, 0.4)  # of a pixel's range
FLIPS = (1, 2, 3, 5, 8, 13, 21, 34, 55)


@dataclass(frozen=True)
class Weights:
    """float32[inputs, outputs] and float32[outputs] of each layer."""

    layers: list[tuple[Array, Array]]

    def answers(self, pixels: Array) -> Array:
        """The float net on integer pixels, in double precision."""
        return self.behind(self.first(pixels) + self.layers[0][1])

    def first(self, pixels: Array) -> Array:
        """What pixels, or changes of them, add to the sums of the first layer."""
        return np.asarray((pixels / 255.0) @ self.layers[0][0].astype(float))

    def behind(self, x: Array) -> Array:
        """The answers for sums of the first layer."""
        for w, b in self.layers[1:]:
            x = np.maximum(x, 0) @ w.astype(float) + b.astype(float)
        return np.asarray(x)


def rectified(z: Array) -> tuple[Array, Array]:
    """A rectifier's values and slopes."""
    return np.maximum(z, 0), z > 0


def gradient(weights: Weights, x: Array, label: int, function: Function = rectified) -> Array:
    """Of one output, by the inputs: [rows, inputs] for x[rows, inputs]. function: values and slopes behind a layer."""
    slopes = []
    for w, b in weights.layers[:-1]:
        x, slope = function(x @ w + b)
        slopes.append(slope)
    back = np.repeat(weights.layers[-1][0][:, label][None], len(x), 0)
    for (w, _), slope in zip(weights.layers[-2::-1], slopes[::-1], strict=True):
        back = (back * slope) @ w.T
    return np.asarray(back)


def quantized(values: Array, bits: int, fraction: int) -> Array:
    """int64: QEBVerif's fixed point, saturated and rounded half away from zero."""
    most = 2 ** (bits - 1)
    scaled = np.clip(values.astype(float), -most / 2**fraction, (most - 1) / 2**fraction) * 2**fraction
    return np.asarray(np.sign(scaled) * np.floor(np.abs(scaled) + 0.5), np.int64)


@dataclass(frozen=True)
class FixedPoint:
    """QEBVerif's quantized net: weights of bits - 1 fraction bits, biases and activations of bits - 2."""

    bits: int
    layers: list[tuple[Array, Array]]  # integers

    @classmethod
    def of(cls, weights: Weights, bits: int) -> FixedPoint:
        return cls(bits, [(quantized(w, bits, bits - 1), quantized(b, bits, bits - 2)) for w, b in weights.layers])

    def answers(self, pixels: Array) -> Array:
        """Exact integer arithmetic on integer pixels: float64[rows, outputs], which hold the result exactly."""
        return self.behind(self.first(np.rint(pixels)) + (self.layers[0][1] << 9))

    def first(self, pixels: Array) -> Array:
        """What integer pixels, or changes of them, add to the sums of the first layer: integers below 2^53."""
        return np.asarray(np.asarray(pixels, float) @ self.layers[0][0].astype(float))

    def behind(self, sums: Array) -> Array:
        """The answers for sums of the first layer, exactly: all numbers stay below 2^53."""
        fraction = 8 + self.bits - 1
        for w, b in self.layers[1:]:
            excess = fraction - (self.bits - 2)
            x = np.clip(np.floor((sums + 2.0 ** (excess - 1)) / 2.0**excess), 0, 2**self.bits - 1)
            fraction = 2 * self.bits - 3
            sums = x @ w.astype(float) + (b << (self.bits - 1)).astype(float)
        return np.asarray(sums / 2.0**fraction)

    def floats(self) -> Weights:
        """The same weights as float32: without rounding and saturation they compute nearly the same."""
        step = np.float32(2.0 ** (self.bits - 1))
        return Weights([(w.astype(np.float32) / step, 2 * b.astype(np.float32) / step) for w, b in self.layers])

    def smoothed(self, width: float) -> Function:
        """The quantizer behind a layer, with a sigmoid of so many steps in the place of each jump."""
        step, soft = np.float32(2.0 ** -(self.bits - 2)), np.float32(width)

        def function(z: Array) -> tuple[Array, Array]:
            below = np.floor(z / step)
            rise = 1 / (1 + np.exp(np.clip((below + np.float32(0.5) - z / step) / soft, -9, 9)))
            levels = np.clip(below + rise, 0, 2**self.bits - 1)
            return step * levels, np.where(levels == below + rise, rise * (1 - rise) / soft, 0)

        return function


class Attack:
    """Looks for integer pixels of a box on which both nets are far apart; changes of pixels are computed as such."""

    def __init__(self, weights: Weights, net: FixedPoint, label: int, low: Array, high: Array) -> None:
        self.weights, self.net, self.label = weights, net, label
        self.low, self.high = low, high
        self.near = net.floats()
        self.rng = np.random.default_rng(0)
        self.worst, self.best = 0.0, low

    def differences(self, x: Array) -> Array:
        return np.abs(self.net.answers(x)[:, self.label] - self.weights.answers(x)[:, self.label])

    def run(self, starts: Array, enough: float, rounds: int = ROUNDS) -> float:
        """The largest difference found: from corners of the gradient, pixel by pixel, then from beside the best."""
        near, x = self.near, np.clip(np.rint(starts), self.low, self.high)
        kept = x
        for _ in range(GRADIENT_STEPS):
            slope = gradient(near, x / 256, self.label) / 256 - gradient(self.weights, x / 255, self.label) / 255
            x = np.concatenate([np.where(sign * slope > 0, self.high, self.low) for sign in (1, -1)])
            x = x[np.argsort(self.differences(x))[-len(starts) :]]
            kept = np.concatenate([kept, x])
        for each in kept[np.argsort(self.differences(kept))[::-1][:CLIMBED]]:
            if self.worst < enough:
                self.climb(each)
        for _ in range(rounds):
            if self.worst >= enough:
                break
            self.anneal()
        return self.worst

    def anneal(self) -> None:
        """Gradient steps (Adam) from beside the best while smoothed jumps become steep; then pixel by pixel."""
        anew = self.rng.random((ANNEALED, len(self.low))) < self.rng.choice(SHARES, (ANNEALED, 1))
        x = np.where(anew, self.rng.uniform(self.low, self.high, anew.shape), self.best).astype(np.float32)
        sign = np.sign(self.net.answers(self.best[None]) - self.weights.answers(self.best[None]))[0, self.label]
        first, second = np.zeros_like(x), np.zeros_like(x)
        rates = (self.rng.choice(RATES, (ANNEALED, 1)) * (self.high - self.low)).astype(np.float32)
        for done in range(1, ANNEALING_STEPS + 1):
            share = done / ANNEALING_STEPS
            function = self.net.smoothed(WIDTHS[0] * (WIDTHS[1] / WIDTHS[0]) ** share)
            slope = gradient(self.near, x / np.float32(256), self.label, function) / np.float32(256)
            slope -= gradient(self.weights, x / np.float32(255), self.label) / np.float32(255)
            first += np.float32(0.1) * (np.float32(sign) * slope - first)
            second += np.float32(0.02) * (slope**2 - second)
            decay = np.float32((1 - 0.95 * share) / (1 - 0.9**done) * np.sqrt(1 - 0.98**done))
            x = x + decay * rates * first / (np.sqrt(second) + np.float32(1e-9))
            x = np.clip(x, self.low, self.high).astype(np.float32)
        for each in x[np.argsort(-self.differences(np.rint(x)))[:2]]:
            self.climb(each)

    def climb(self, x: Array) -> None:
        """Changes the pixels that help most alone, as many as help together, until none does."""
        x = np.clip(np.rint(x), self.low, self.high)
        worst = float(self.differences(x[None])[0])
        for _ in range(CLIMBS):
            sums = self.sums(x)
            moves = np.where(x == self.high, self.low, self.high) - x
            steps = moves[:, None] / 255 * self.weights.layers[0][0], moves[:, None] * self.net.layers[0][0]
            alone = self.apart(*(a + b for a, b in zip(sums, steps, strict=True)))
            order = np.argsort(-alone)[: FLIPS[-1]]
            counts = np.array([each for each in FLIPS if each <= len(x)]) - 1
            seen = self.apart(*(a + b[order].cumsum(0)[counts] for a, b in zip(sums, steps, strict=True)))
            if seen.max() <= worst * (1 + 1e-9):
                break
            worst, chosen = float(seen.max()), order[: FLIPS[int(seen.argmax())]]
            x[chosen] += moves[chosen]
        found = float(self.differences(x[None])[0])
        if found > self.worst:
            self.worst, self.best = found, x

    def sums(self, x: Array) -> tuple[Array, Array]:
        """Of both first layers."""
        return (self.weights.first(x) + self.weights.layers[0][1], self.net.first(x) + (self.net.layers[0][1] << 9))

    def apart(self, ours: Array, theirs: Array) -> Array:
        """The differences that sums of the first layers lead to."""
        return np.abs(self.weights.behind(ours)[:, self.label] - self.net.behind(theirs)[:, self.label])
