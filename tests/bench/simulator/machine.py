"""What is simulated: the machine, the models and the requests."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streams.topics import PRIORITIES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Trace(Protocol):
    """n requests in the order of their time. `at_s` float64[n], `priority` int8[n] indices into PRIORITIES, `model`
    int16[n] indices into `models`, `rows` and `bytes` int32[n], `deadline_s` float64[n] from arrival, NaN is none."""

    @property
    def at_s(self) -> Floats: ...
    @property
    def priority(self) -> NDArray[np.int8]: ...
    @property
    def model(self) -> NDArray[np.int16]: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def rows(self) -> NDArray[np.int32]: ...
    @property
    def bytes(self) -> NDArray[np.int32]: ...
    @property
    def deadline_s(self) -> Floats: ...


@dataclass(frozen=True)
class Arrivals:
    """A trace in memory."""

    at_s: Floats
    priority: NDArray[np.int8]
    model: NDArray[np.int16]
    models: tuple[str, ...]
    rows: NDArray[np.int32]
    bytes: NDArray[np.int32]
    deadline_s: Floats

    @classmethod
    def alike(cls, at_s: Floats, priority: str, model: str, rows: int = 1, record_bytes: int = 173) -> Arrivals:
        """Requests of one model and one priority without deadlines."""
        n = len(at_s)
        return cls(
            at_s=at_s,
            priority=np.full(n, PRIORITIES.index(priority), np.int8),
            model=np.zeros(n, np.int16),
            models=(model,),
            rows=np.full(n, rows, np.int32),
            bytes=np.full(n, record_bytes, np.int32),
            deadline_s=np.full(n, np.nan),
        )


@dataclass(frozen=True)
class Profile:
    """Seconds of a kernel run by its rows, ascending; between them straight lines, beyond the last its slope."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    best_rows: int
    gpu: bool = False
    """a run takes no core of the machine"""

    @classmethod
    def straight(cls, fixed_s: float, row_s: float, best_rows: int, gpu: bool = False) -> Profile:
        """fixed_s + row_s * rows"""
        return cls((1, 2), (fixed_s + row_s, fixed_s + 2 * row_s), best_rows, gpu)

    def run_s(self, rows: int) -> float:
        """Of one run.

        >>> Profile((1, 3), (0.1, 0.3), 3).run_s(2)
        0.2
        """
        if len(self.rows) == 1:
            return self.seconds[0] * rows / self.rows[0]
        after = min(max(1, bisect_left(self.rows, rows)), len(self.rows) - 1)
        low, high = self.rows[after - 1], self.rows[after]
        slope = (self.seconds[after] - self.seconds[after - 1]) / (high - low)
        return self.seconds[after - 1] + slope * (rows - low)

    @property
    def row_s(self) -> float:
        """Seconds a row in runs of the best size."""
        return self.run_s(self.best_rows) / self.best_rows


@dataclass(frozen=True)
class Model:
    """`ladder`: what may answer, the costlier first; `objective_s` by priority; `actors`: processes of it."""

    name: str
    ladder: tuple[Profile, ...]
    objective_s: tuple[float, float, float] = (0.05, 0.1, 1.0)
    actors: int = 1


@dataclass(frozen=True)
class Machine:
    """Costs in seconds of one core, as `tests.bench.simulator.fit` finds them; see docs/scale.md.

    Of all costs, those of the broker hold the part of librdkafka too, which has no thread of the interpreter.
    """

    cores: float = 2.0
    broker_cores: float | None = None
    """of machines for the brokers alone; None: they share `cores` with everything else"""
    background_cores: float = 0.24
    """what the audit writer, the store and the monitor take"""
    crowding: float = 0.7
    """see Cores"""
    partitions: int = 4
    coalescers: int = 1
    """processes a priority"""
    runs: int = 2
    """kernel runs at once in an actor"""

    tick_s: float = 0.002
    """clients produce to a lane at most this often"""
    append_records_max: int = 10_000
    """of a produce request"""
    append_s: float = 0.00016
    """a produce request and the fetch that it wakes"""
    record_s: float = 6e-7
    """a record written and read once"""
    transaction_s: float = 0.0004
    """until a commit is confirmed"""
    marker_s: float = 0.0005
    """from there until who reads committed records next has been served"""
    after_s: float = 0.0042
    """of a transaction, and of those who follow it apart from answers; nobody waits for it"""
    commit_latency_s: float = 0.0025
    """of a transaction in which nobody works"""
    jitter: float = 0.8
    """sigma of the logarithm of what a transaction costs; its mean stays"""
    put_off_s: float = 0.02
    """a producer whose last but one transaction has no markers yet asks again"""

    coalesce_s: float = 0.0008
    coalesce_record_s: float = 2.5e-6
    actor_s: float = 0.0011
    actor_record_s: float = 3.5e-6
    load_record_s: float = 12e-6
    """the clients' processes that send"""
    reader_record_s: float = 5e-6
    """the clients' process that reads the answers"""

    records_max: int = 4000
    """of a window of a coalescer"""
    batches_max: int = 16
    """of a window of an actor"""
    batch_rows_max: int = 2048


@dataclass
class Spent:
    """Seconds of a core by role, and counts, of one run."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    busy: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    """by stage: when each of its windows was collected, when it was committed, and its requests"""
    transactions: int = 0
    windows: int = 0
    deferred: int = 0

    def add(self, role: str, work_s: float) -> None:
        self.cpu_s[role] = self.cpu_s.get(role, 0.0) + work_s
