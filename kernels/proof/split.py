"""Proves or refutes many boxes at once: bounds first, then attacks, then the boxes are cut where it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from kernels.proof.attack import attack, inside
from kernels.proof.bounds import Analysis
from kernels.proof.ir import F64, Unsupported
from kernels.proof.neurons import decide
from kernels.proof.outputs import Quantity, Worst, bounded, sufficient
from kernels.proof.pair import Product
from kernels.proof.question import Question
from kernels.proof.trees import Forest, ForestAnalysis
from schemas.errors import LraiError

BOXES_MAX = 20_000  # of one task
_BATCH_MAX = 256
_BATCH_BYTES = 1 << 28
_BATCH_FLOPS = 3e10
_CUT_BEFORE = 0.25  # measured on ACAS Xu, where 0 is best, and on tabular nets, where 1 is
_CACHE_BYTES = 1 << 23
_ROWS_READ = 256  # on which our reading of the models is compared with the runtime
_ATTACKED_MAX = 16  # boxes of a batch that are attacked again
_FIRST_ROUND = 64  # boxes of one task before the others have had theirs
_NEURONS_FROM = 9  # features; boxes of fewer are better cut
_NEURONS_SHARE = 0.8  # of the time that is left

Progress = Callable[[int, int], None]


class TimeOver(LraiError):
    """The time of a search is over."""


@dataclass
class Box:
    """A leaf or a cut of a region. bound is infinite before it is computed."""

    low: F64
    high: F64
    bound: float = np.inf
    real: float = np.inf
    open: str = ""  # why it is not proved
    axis: int = -1
    at: float = 0.0
    below: Box | None = None
    above: Box | None = None

    def halved(self, axis: int, at: float) -> tuple[Box, Box]:
        """Cuts the box; its sides have its bounds until their own are computed."""
        below, above = self.high.copy(), self.low.copy()
        below[axis] = above[axis] = at
        self.axis, self.at = axis, at
        self.below = Box(self.low, below, self.bound, self.real)
        self.above = Box(above, self.high, self.bound, self.real)
        return self.below, self.above

    def leaves(self) -> Iterable[Box]:
        """Boxes that are not cut."""
        left = [self]
        while left:
            box = left.pop()
            if box.below is None or box.above is None:
                yield box
            else:
                left += [box.below, box.above]


@dataclass
class Outcome:
    """What is known of one task. `x`: float32[features], refutes it in the runtime."""

    verdict: str
    bound: float
    real: float
    seen: float
    seconds: float
    root: Box
    x: npt.NDArray[np.float32] | None = None
    reason: str = ""


@dataclass
class _Task:
    root: Box
    keep_going: bool = False
    waiting: list[Box] = field(default_factory=list)
    boxes: int = 1
    seen: float = 0.0
    x: npt.NDArray[np.float32] | None = None
    refuted: bool = False
    reason: str = ""
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        return (self.refuted and not self.keep_going) or not self.waiting


def limit(quantity: Quantity, epsilon: float) -> float:
    """What a measured difference must exceed to refute, with room for who computes it again."""
    if quantity == "label":
        return 0.5
    return epsilon * (1 + 2.0**-20) + (2.0**-21 if quantity == "softmax" else 0.0)


class Search:
    """Decides tasks until the deadline. All boxes: float64[tasks, features]."""

    def __init__(
        self, question: Question, low: F64, high: F64, epsilon: float, deadline: float, seed: int = 0,
        keep_going: bool = False, floats: bool = True, neurons: bool = False,
    ) -> None:  # fmt: skip
        """`deadline` of time.monotonic; `keep_going`: a refuted task is cut further, to know where it holds.

        floats: with float32 rounding; without, a proof is about real arithmetic alone.
        neurons: where cuts of boxes do not help, functions inside the nets are split, too; no certificate holds that.
        """
        self.floats, self.neurons = floats, neurons
        self.question, self.epsilon, self.deadline = question, epsilon, deadline
        self.rng = np.random.default_rng(seed)
        self.tasks = [_Task(Box(a, b), keep_going) for a, b in zip(*outward(low, high), strict=True)]
        for task in self.tasks:
            task.waiting.append(task.root)
        self.low, self.high = low, high
        self.limit = limit(question.quantity, epsilon)

    def run(self, on_progress: Progress = lambda done, total: None) -> list[Outcome]:
        """Attacks, bounds, cuts."""
        self._attack_all()
        points = self.low + self.rng.random(self.low.shape) * (self.high - self.low)
        if wrong := self.question.misread(inside(points, self.low, self.high)[:_ROWS_READ]):
            self.question.reason, self.question.product = wrong, None
        if self.question.product is not None:
            first = True
            while (chosen := self._chosen(first)) and time.monotonic() < self.deadline:
                self._step(chosen)
                on_progress(sum(each.done for each in self.tasks), len(self.tasks))
                if first and self.neurons and self.low.shape[1] >= _NEURONS_FROM:
                    self._split_neurons(on_progress)
                first = False
        return [self._outcome(each) for each in self.tasks]

    def _split_neurons(self, on_progress: Progress) -> None:
        """Whole boxes, each for its share of the time, those first that lack least."""
        open_ = sorted((each for each in self.tasks if not each.done), key=lambda task: task.root.bound)
        until = time.monotonic() + _NEURONS_SHARE * (self.deadline - time.monotonic())
        for done, task in enumerate(open_):
            began = time.monotonic()
            self._decide(task, began + (until - began) / (len(open_) - done))
            task.seconds += time.monotonic() - began
            on_progress(sum(each.done for each in self.tasks), len(self.tasks))

    def _decide(self, task: _Task, deadline: float) -> None:
        """Splits functions over the whole box of a task. Inputs that seemed bad on the way are tried in the runtime."""
        root, product = task.root, self.question.product
        smooth = product and any(each.function.smooth for each in (*product.original.unaries, *product.variant.unaries))
        if product is None or smooth or isinstance(product.original, Forest) or root.open:
            return
        try:
            analysis = Analysis(product, root.low[None], root.high[None], self.floats, self._tick)
            if (asked := sufficient(analysis, self.question.quantity, self.epsilon)) is None:
                return
            bounds, x = decide(analysis, *asked, lambda: deadline - time.monotonic())
        except TimeOver:
            return
        self.replay([self.tasks.index(task)] * len(x), inside(x, root.low, root.high))
        if (bounds <= asked[1]).all() and not task.refuted:
            bound = self.epsilon if self.question.quantity == "softmax" else float(bounds.max()) * (1 + 2.0**-23)
            task.root = Box(root.low, root.high, min(bound, self.epsilon), min(bound, root.real))
            task.waiting.clear()

    def _half(self) -> float:
        return 0.5 * (time.monotonic() + self.deadline)

    def _tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeOver

    def _attack_all(self) -> None:
        began = time.monotonic()
        product = self.question.product
        if product is not None:
            x, _ = attack(product, self.question.quantity, self.low, self.high, self.rng, deadline=self._half())
        else:
            x = inside(self.low + self.rng.random(self.low.shape) * (self.high - self.low), self.low, self.high)
        self.replay(list(range(len(self.tasks))), x)
        for task in self.tasks:
            task.seconds += (time.monotonic() - began) / len(self.tasks)

    def replay(self, places: list[int], x: npt.NDArray[np.float32]) -> None:
        """Runs the inputs in the runtime; a hit is confirmed alone and in a batch."""
        seen = self.question.replay(x)
        for place, row, value in zip(places, x, seen, strict=True):
            task = self.tasks[place]
            if value > self.limit:
                value = self.question.confirmed(row)
                task.refuted = task.refuted or bool(value > self.limit)
            if value > task.seen or task.x is None:
                task.seen, task.x = float(value), row

    def _chosen(self, first: bool) -> list[tuple[int, Box]]:
        """The next boxes: each task's worst ones, small tasks before those that have had many."""
        size = batch_size(self.question.product) if self.question.product else 1
        open_ = [place for place, task in enumerate(self.tasks) if not task.done]
        if first:
            return [(place, self.tasks[place].waiting.pop()) for place in open_]
        early = [place for place in open_ if self.tasks[place].boxes < _FIRST_ROUND]
        found: list[tuple[int, Box]] = []
        share = max(1, size // max(len(early or open_), 1))
        for place in sorted(early or open_, key=lambda each: self.tasks[each].boxes):
            task = self.tasks[place]
            task.waiting.sort(key=lambda box: box.bound)
            found += [(place, task.waiting.pop()) for _ in range(min(share, len(task.waiting)))]
            if len(found) >= size:
                break
        return found

    def _step(self, chosen: list[tuple[int, Box]]) -> None:
        assert self.question.product is not None
        size = batch_size(self.question.product)
        for start in range(0, len(chosen), size):
            part, began = chosen[start : start + size], time.monotonic()
            low, high = np.stack([box.low for _, box in part]), np.stack([box.high for _, box in part])
            try:
                worst, reasons = self._bounded(low, high)
            except TimeOver:
                for place, box in chosen[start:]:
                    self.tasks[place].waiting.append(box)
                return
            self._settle(part, worst, reasons)
            for place, _ in part:
                self.tasks[place].seconds += (time.monotonic() - began) / len(part)

    def _bounded(self, low: F64, high: F64) -> tuple[Worst, list[str]]:
        """Bounds of the boxes; where a box cannot be analysed, an infinite one and the reason."""
        assert self.question.product is not None
        try:
            kind = ForestAnalysis if isinstance(self.question.product.original, Forest) else Analysis
            analysis = kind(self.question.product, low, high, self.floats, self._tick)
            return bounded(analysis, self.question.quantity), [""] * len(low)
        except Unsupported as err:
            if len(low) == 1:
                nothing = np.full(1, np.inf)
                return Worst(nothing, nothing, np.ones_like(low)), [str(err)]
        parts = [self._bounded(low[at : at + 1], high[at : at + 1]) for at in range(len(low))]
        fields = [[each.bound, each.real, each.influence] for each, _ in parts]
        return Worst(*map(np.concatenate, zip(*fields, strict=True))), [reason for _, (reason,) in parts]

    def _settle(self, part: list[tuple[int, Box]], worst: Worst, reasons: list[str]) -> None:
        left = []
        for row, (place, box) in enumerate(part):
            bound = float(worst.bound[row])
            box.bound, box.real = min(box.bound, bound), min(box.real, float(worst.real[row]))
            if np.isnan(bound) or reasons[row]:
                box.bound, box.open = np.inf, reasons[row] or "the bound is not a number"
            elif not bound <= self.closed and (self.tasks[place].keep_going or not self.tasks[place].refuted):
                left.append(row)
        for row in left:
            self._cut(*part[row], worst.influence[row])
        left = sorted(left, key=lambda row: -worst.bound[row])[:_ATTACKED_MAX]
        if left and self.question.product is not None:
            low, high = (np.stack([getattr(part[row][1], side) for row in left]) for side in ("low", "high"))
            x, value = attack(self.question.product, self.question.quantity, low, high, self.rng, 4, 4)
            hits = np.flatnonzero(value > 0.98 * self.limit)
            if len(hits):
                self.replay([part[left[hit]][0] for hit in hits], x[hits])

    @property
    def closed(self) -> float:
        """The bound up to which a box is proved."""
        return 0.0 if self.question.quantity == "label" else self.epsilon

    def _cut(self, place: int, box: Box, influence: F64) -> None:
        """Halves the box along the axis that counts most for its bound, a little less where it was cut before.

        Influences are those of today's lines, and change once a box is small.
        """
        task = self.tasks[place]
        share = (box.high - box.low) / np.maximum(task.root.high - task.root.low, 1e-300)
        gain = influence * (box.high - box.low) * share**_CUT_BEFORE
        gain = np.where(np.isfinite(gain), gain, 0.0)
        if not gain.any():
            gain = box.high - box.low
        axis = int(gain.argmax())
        at = float(np.float32(0.5 * (box.low[axis] + box.high[axis])))
        if task.boxes >= BOXES_MAX or not box.low[axis] < at < box.high[axis]:
            box.open = "the box cannot be cut further" if task.boxes < BOXES_MAX else f"more than {BOXES_MAX} boxes"
            return
        task.waiting += box.halved(axis, at)
        task.boxes += 2

    def _outcome(self, task: _Task) -> Outcome:
        leaves = list(task.root.leaves())
        bound, real = max(each.bound for each in leaves), max(each.real for each in leaves)
        proved = all(not each.open and each.bound <= self.closed for each in leaves)
        reason = self.question.reason or next((each.open for each in leaves if each.open), "")
        if task.refuted:
            return Outcome("REFUTED", bound, real, task.seen, task.seconds, task.root, task.x)
        if proved and not task.waiting:
            return Outcome("PROVED", bound, real, task.seen, task.seconds, task.root)
        reason = reason or ("the time is over" if task.waiting else "the bound is above epsilon")
        return Outcome("UNKNOWN", bound, real, task.seen, task.seconds, task.root, None, reason)


def outward(low: F64, high: F64) -> tuple[F64, F64]:
    """The box with its bounds rounded outwards to float32: a runtime that is given one of its points rounds it."""
    least, most = low.astype(np.float32), high.astype(np.float32)
    least = np.where(least > low, np.nextafter(least, np.float32(-np.inf)), least)
    most = np.where(most < high, np.nextafter(most, np.float32(np.inf)), most)
    return least.astype(np.float64), most.astype(np.float64)


def batch_size(product: Product) -> int:
    """Boxes that are analysed together, bounded by memory and time."""
    sizes = [product.original.features, *(each.argument.size for each in product.variant.unaries)]
    outputs = product.original.tensors[product.original.output].size
    products = list(accumulate(x * y for x, y in pairwise(sizes)))
    flops = sum(12.0 * rows * work for rows, work in zip([*sizes[2:], min(outputs**2, 1000)], products, strict=False))
    widest, rows = max(sizes), 2 * max([*sizes[1:], min(outputs**2, 1000)])
    most = min(_BATCH_MAX, _BATCH_BYTES / (24.0 * rows * widest), _BATCH_FLOPS / (flops + 1))
    return int(max(1, min(most, max(16, _CACHE_BYTES / (24.0 * rows * widest)))))
