"""What the kernel benchmarks share: contenders in turns on one thread, memory, and onnxruntime's own quantization."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime

from kernels.compile import measure
from kernels.manifest import RunOptions
from kernels.spec import ModelSpec
from tests.bench.report import Outcome, Target

FP32, ORT_STATIC, ORT_DYNAMIC = "fp32", "onnxruntime static", "onnxruntime dynamic"
MS, MB = "ms", "peak MB"
Tensors = dict[str, npt.NDArray[Any]]
Run = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """What every case needs."""

    quick: bool
    rounds: int
    say: Callable[[str], None]

    def outcome(self, name: str, title: str) -> Outcome:
        return Outcome(name, title, self.rounds, date=time.strftime("%Y-%m-%d"), quick=self.quick)


def in_turns(contenders: Mapping[str, Run], rounds: int, turn_s: float = 0.2) -> dict[str, list[float]]:
    """CPU milliseconds of a run of each, a value a round."""
    calls = {}
    for name, run in contenders.items():
        run()
        calls[name] = max(1, int(turn_s / max(seconds(run, 1), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            found[name].append(1e3 * seconds(run, calls[name]))
    return found


def seconds(run: Run, calls: int) -> float:
    began = time.thread_time()
    for _ in range(calls):
        run()
    return (time.thread_time() - began) / calls


def plain(path: Path) -> onnxruntime.InferenceSession:
    """A session as anybody would open it, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class _Feeds:
    """Calibration runs as onnxruntime.quantization takes them."""

    def __init__(self, feeds: Iterable[Tensors]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Tensors | None:
        return next(self._feeds, None)


def quantized(path: Path, feeds: Sequence[Tensors]) -> dict[str, Path]:
    """What onnxruntime.quantization makes of a model with its defaults; without what it cannot do."""
    from onnxruntime.quantization import quantize_dynamic, quantize_static

    found = {}
    logging.disable(logging.WARNING)
    for name, make in (
        (ORT_STATIC, lambda to: quantize_static(path, to, _Feeds(feeds))),
        (ORT_DYNAMIC, lambda to: quantize_dynamic(path, to)),
    ):
        target = path.with_name(f"{name.replace(' ', '-')}.onnx")
        try:
            make(target)
            plain(target)
        except Exception:  # whatever it raises, it takes no part
            continue
        found[name] = target
    logging.disable(logging.NOTSET)
    return found


def peak_mb(spec: ModelSpec, options: RunOptions, feed: Tensors) -> float:
    """Of a process that loads the model and runs the feed."""
    return measure.memory_bytes(spec, options, feed) / 1e6


def faster(out: Outcome, contender: str, goal: float) -> None:
    """Adds the target `goal` times as fast as fp32."""
    ours, theirs = out.median(contender, MS), out.median(FP32, MS)
    if ours and theirs:
        out.targets.append(Target(f"{contender}, speed over fp32", theirs / ours, goal))


def smaller(out: Outcome, contender: str, goal: float) -> None:
    """Adds the target `goal` of the peak memory of fp32."""
    ours, theirs = out.median(contender, MB), out.median(FP32, MB)
    if ours and theirs:
        out.targets.append(Target(f"{contender}, peak memory over fp32", ours / theirs, goal, at_most=True))
