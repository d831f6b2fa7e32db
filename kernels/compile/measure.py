"""What a variant costs: seconds by rows, measured in turns with the others, and memory, in a process of its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kernels.compile.runtime import LEVELS, NotCompiled, Tensors
from kernels.devices import CPU, Device
from kernels.manifest import BatchProfile, RunOptions
from kernels.session import Session, best_rows
from kernels.spec import ModelSpec

ROWS_MAX = 1024
BYTES_MAX = 64 << 20  # of the inputs of one run
_ROUNDS = 5
_SLOW_ROUNDS = 2
_SLOW_S = 0.05  # of a run that is measured in few rounds
_LONG_S = 0.15  # no more rows than 8 where a run of these takes so long
_LONG_ROWS = 8
_TURN_S = 0.004  # a contender runs about so long before the next one does
_SIZE_S = 3.0  # no size larger than one whose run takes so long
_FIT_WITHIN = 1.15
_MEMORY_S_MAX = 300.0

Seconds = dict[int, float]


def seconds(
    contenders: Mapping[str, Session], pool: Tensors, rows_fixed: int | None, step: Callable[[str], None]
) -> dict[str, Seconds]:
    """CPU seconds of a run by rows and contender: the least of some rounds, in which the contenders take turns.

    On the CPU a contender runs on one thread, so the thread's CPU time is the run's, whatever else the machine does.
    Elsewhere the thread waits, and the time is that of the clock.
    """
    found: dict[str, Seconds] = {name: {} for name in contenders}
    if not contenders:
        return found
    for rows in _sizes(pool, rows_fixed):
        step(f"{rows} row(s)")
        feed = _feed(pool, rows)
        first = {name: _mean(each, feed, 1) for name, each in contenders.items()}
        slowest = max(first.values())
        rounds = _ROUNDS if slowest < _SLOW_S else _SLOW_ROUNDS
        for _ in range(rounds):
            for name, each in contenders.items():
                calls = max(1, int(_TURN_S / max(first[name], 1e-6)))
                first[name] = min(first[name], _mean(each, feed, calls))
        for name, took in first.items():
            found[name][rows] = took
        if slowest > _SIZE_S or (rows >= _LONG_ROWS and slowest > _LONG_S):
            break
    return found


def profile(by_rows: Seconds) -> BatchProfile:
    """The least squares fit of fixed + per row up to the knee, behind which rows cost more than it says."""
    best = best_rows(by_rows)
    sizes = sorted(by_rows)
    used = [rows for rows in sizes if rows <= best] if best > 1 else sizes[:2]
    fixed_s, row_s = fit({rows: by_rows[rows] for rows in used})
    knee = sizes[0]
    for rows in sizes:
        if rows > best and by_rows[rows] > _FIT_WITHIN * (fixed_s + row_s * rows):
            break
        knee = rows
    return BatchProfile(best, fixed_s, row_s, knee, {rows: by_rows[rows] for rows in sizes})


def fit(by_rows: Seconds) -> tuple[float, float]:
    """Seconds a run and seconds a row, both at least 0, by least squares of the relative errors.

    >>> fixed, row = fit({1: 3.0, 2: 4.0, 4: 6.0})
    >>> round(fixed, 9), round(row, 9)
    (2.0, 1.0)
    """
    rows = np.array(list(by_rows), np.float64)
    took = np.array(list(by_rows.values()), np.float64)
    if len(rows) == 1:
        return 0.0, float(took[0] / rows[0])
    weights = 1 / took
    terms = np.stack([weights, rows * weights], axis=1)
    (fixed_s, row_s), *_ = np.linalg.lstsq(terms, np.ones_like(took), rcond=None)
    if fixed_s < 0:
        return 0.0, float((terms[:, 1].sum()) / (terms[:, 1] ** 2).sum())
    return (float(fixed_s), float(row_s)) if row_s > 0 else (float(np.mean(took)), 0.0)


def at(by_rows: Seconds, rows: int) -> float:
    """Seconds of a run of that many rows, as measured; of the next larger size, or of several runs of the largest.

    >>> at({1: 1.0, 4: 2.0}, 8)
    4.0
    """
    sizes = sorted(by_rows)
    fitting = next((size for size in sizes if size >= rows), None)
    return by_rows[fitting] if fitting else by_rows[sizes[-1]] * -(-rows // sizes[-1])


def memory_bytes(spec: ModelSpec, options: RunOptions, feed: Tensors, device: Device = CPU) -> int:
    """Peak resident bytes (of the host) of a process that loads the model and runs the feed. Raises NotCompiled."""
    feeds = [_feed(feed, spec.rows_fixed or 1), feed]
    level = LEVELS[options.graph_optimization_level].name
    told = pickle.dumps((spec.path, level, options.disabled_optimizers, options.config, feeds, device.providers(1)))
    program = str(Path(__file__).with_name("resident.py"))
    try:
        done = subprocess.run(
            [sys.executable, program], input=told, capture_output=True, timeout=_MEMORY_S_MAX, check=True
        )
    except (subprocess.SubprocessError, OSError) as err:
        lines = (getattr(err, "stderr", b"") or b"").decode(errors="replace").strip().splitlines()
        raise NotCompiled(f"a process that loads the model ended: {(lines or [str(err)])[-1][:300]}") from None
    return int(done.stdout)


def _sizes(pool: Tensors, rows_fixed: int | None) -> Sequence[int]:
    if rows_fixed:
        return [rows_fixed]
    one = sum(array[:1].nbytes for array in pool.values())
    most = max(1, min(ROWS_MAX, BYTES_MAX // max(one, 1)))
    return [1 << power for power in range(most.bit_length())]


def _feed(pool: Tensors, rows: int) -> Tensors:
    """That many rows of the pool, again and again where it has fewer."""
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in pool.items()}


def _mean(session: Session, feed: Tensors, calls: int) -> float:
    clock = time.thread_time if session.device.provider == CPU.provider else time.perf_counter
    began = clock()
    for _ in range(calls):
        session.run(feed)
    return max((clock() - began) / calls, 1e-9)
