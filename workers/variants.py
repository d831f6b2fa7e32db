"""Which variant of a model answers a window: the forced one, else the one that policy and load ask for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kernels.region import Region
from workers.answers import Outputs, Release

SLO_SHARE = 0.5  # of the promised latency: so much may pass in the queue and the run before a cheaper variant answers
WAIT_S_MIN = 0.02  # Kafka's own time from stage to stage, which no variant makes up for
CALM_WINDOWS = 20
CALM_S = 5.0
BUSY_SHARE = 0.7  # of one core, that the costlier variant would have been busy
PATIENCE_MAX = 32


class Kernel(Protocol):
    """Runs a model."""

    def run(self, inputs: dict[str, Any]) -> Outputs:
        """Outputs, rows first. Raises KernelError."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A variant in memory. `apart`: the same, in a process that may die alone; `rows_max`: of a run, and `row_s`
    seconds a row in such runs; `alone`: a run holds one request; `region`: the inputs that it is certified for; `gpu`:
    it runs on one; `least_s`: of the shortest run that was measured."""

    release: Release
    kernel: Kernel
    apart: Kernel
    rows_max: int
    row_s: float = 0.0
    alone: bool = False
    region: Region | None = None
    gpu: bool = False
    least_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a window shows: when it was taken, how long its oldest record lay in the actor's topic, its rows, and
    whether it came full, so that more waits behind it."""

    at_s: float
    wait_s: float
    rows: int
    full: bool


class LoadPolicy:
    """A place in a list of variants that get cheaper, by the load that windows show.

    A window that came full, or whose wait and run would take over half of the promised latency, is answered by the
    next cheaper variant, and the windows after it too. The way back is one place, after `CALM_WINDOWS` calm windows in
    a row (or `CALM_S` seconds of them) in which the costlier variant would have been busy for at most `BUSY_SHARE`.
    Who goes back too early waits twice as long the next time, up to `PATIENCE_MAX` times.

    >>> policy = LoadPolicy([0.01, 0.001], slo_s=0.1)
    >>> [policy.choose(Load(at_s, wait_s, 1, False)) for at_s, wait_s in ((0, 0.0), (1, 0.06), (2, 0.0), (8, 0.0))]
    [0, 1, 1, 0]
    """

    def __init__(self, row_s: Sequence[float], slo_s: float | None) -> None:
        self.row_s = row_s
        self.limit_s = float("inf") if slo_s is None else max(WAIT_S_MIN, SLO_SHARE * slo_s)
        self.place = 0
        self.patience = 1
        self._longest_s = self._calm_from_s = 0.0
        self._windows = self._rows = 0
        self._since_back: float = float("inf")  # windows

    def choose(self, load: Load) -> int:
        """The place of the variant that answers this window."""
        self._since_back += 1
        if self._overloaded(load, self.place):
            self._cheaper(load)
        elif self.place:
            self._back(load)
        return self.place

    def _overloaded(self, load: Load, place: int) -> bool:
        return load.full or load.wait_s + load.rows * self.row_s[place] > self.limit_s

    def _cheaper(self, load: Load) -> None:
        """One place on; from there only while the wait still grows: a backlog takes some windows to go."""
        if self.place == 0:
            relapsed = self._since_back <= self.patience * CALM_WINDOWS
            self.patience = min(2 * self.patience, PATIENCE_MAX) if relapsed else 1
        if self.place == 0 or load.wait_s > self._longest_s:
            self.place = min(self.place + 1, len(self.row_s) - 1)
        self._longest_s = load.wait_s
        self._windows = 0

    def _back(self, load: Load) -> None:
        if self._overloaded(load, self.place - 1):
            self._windows = 0
            return
        if self._windows == 0:
            self._calm_from_s, self._rows = load.at_s, 0
        else:
            self._rows += load.rows
        self._windows += 1
        span_s = load.at_s - self._calm_from_s
        if self._windows <= self.patience * CALM_WINDOWS and span_s <= self.patience * CALM_S:
            return
        if self._rows * self.row_s[self.place - 1] <= BUSY_SHARE * span_s:
            self.place -= 1
            self._since_back = 0
        self._windows = 0


class Choice:
    """The variants of a model as one lane uses them: in calm times the first of `prefer` that is there, else the
    original, which is the first in `loaded`; under load those of `under_load`, in order, as far as each is cheaper
    than the one before."""

    def __init__(
        self, loaded: Mapping[str, Loaded], prefer: Sequence[str] = (), under_load: Sequence[str] = (),
        slo_s: float | None = None,
    ) -> None:  # fmt: skip
        self.loaded, self.original = loaded, next(iter(loaded.values()))
        self.ladder = [next((loaded[name] for name in prefer if name in loaded), self.original)]
        for name in under_load:
            if name in loaded and loaded[name].row_s < self.ladder[-1].row_s:
                self.ladder.append(loaded[name])
        self._policy = LoadPolicy([each.row_s for each in self.ladder], slo_s)

    def choose(self, load: Load, forced: str | None) -> Loaded:
        """What answers this window. The load is followed also while a variant is forced."""
        place = self._policy.choose(load)
        return self.loaded.get(forced or "", self.ladder[place])
