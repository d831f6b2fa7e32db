"""A model in memory, ready to run: the only module that knows the runtime."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from kernels import devices
from kernels.binding import Batches
from kernels.devices import Device, NoDevice
from kernels.devices import KernelError as KernelError
from kernels.manifest import RunOptions
from kernels.spec import ModelSpec, TensorSpec
from schemas.tensors import DTYPES, FLOATS

Tensors = dict[str, npt.NDArray[Any]]

DEFAULT = RunOptions()
_LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED",
           "all": "ORT_ENABLE_ALL"}  # fmt: skip
_SEVERITY_FATAL = 4  # errors are raised, and reported by who catches them
_MESSAGE_LENGTH_MAX = 300
_PROFILE_ROWS_MAX = 1024
_PROFILE_BYTES_MAX = 64 << 20  # of the inputs of one trial run
_PROFILE_CALLS = 64  # timed together, on different rows: one row again and again flatters the branch predictor
_SLOW_S = 0.05  # a model whose single row takes longer is tried at few sizes
_SLOW_ROWS_MAX = 4
_NEAR_BEST = 0.95


@dataclass(frozen=True, slots=True)
class Profile:
    """`best_rows` a run, and the seconds of a run by its rows."""

    best_rows: int
    seconds: dict[int, float]


class Session:
    """A loaded model. `run` may be called from several threads."""

    def __init__(
        self, spec: ModelSpec, threads: int = 1, options: RunOptions = DEFAULT, device: Device = devices.CPU
    ) -> None:
        """Loads the model with `threads` threads a run. Raises KernelError, NoDevice where it would run elsewhere."""
        self.spec, self.device = spec, device
        if device.provider not in (there := onnxruntime.get_available_providers()):
            raise NoDevice(f"the runtime has no {device.provider}, only {', '.join(there)}; install {device.package}")
        elsewhere = device.provider != devices.CPU.provider
        if elsewhere:
            with redirect_stdout(sys.stderr):  # where it says what is missing
                onnxruntime.preload_dlls()  # those of pip packages; the system's need no help
        try:
            how = _options(spec, threads, options, elsewhere)
            self._session = onnxruntime.InferenceSession(
                _model(spec), how, device.providers(threads), disabled_optimizers=set(options.disabled_optimizers),
                enable_fallback=0,
            )  # fmt: skip
        except Exception as err:  # the runtime's own errors share no base class
            needs = f"; {device.name} needs {device.package}" if elsewhere else ""
            raise KernelError(_short(err) + needs) from None
        gc.collect()  # the bytes of a graph whose ZipMap was taken out
        devices.check_provider(device, self._session.get_providers())
        if elsewhere:
            parts = self._session.get_provider_graph_assignment_info()
            nodes = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
            devices.check_placement(device, nodes)
        self._outputs = [each.name for each in spec.outputs]
        self._strings = frozenset(each.name for each in spec.inputs if each.datatype == "BYTES")
        words = self._strings or any(each.datatype == "BYTES" for each in spec.outputs)
        self.batches = Batches(self._session, self._outputs) if device.pinned and not words else None

    def run(self, inputs: Tensors) -> Tensors:
        """The outputs by name, rows first, as many as the inputs have.

        `inputs`: by name, rows first; BYTES as object arrays of str (or of UTF-8 bytes). Raises KernelError.
        """
        rows = len(next(iter(inputs.values())))
        if self._strings:
            inputs = {name: _text(each) if name in self._strings else each for name, each in inputs.items()}
        fixed = self.spec.rows_fixed
        if fixed is None or fixed == rows:
            return self._run(inputs, rows)
        parts = [self._run_part(inputs, at, min(at + fixed, rows), fixed) for at in range(0, rows, fixed)]
        if not parts:
            raise KernelError("a run needs at least one row")
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def warm(self, batch_rows: int | None = None) -> None:
        """Runs one row and a batch of zeros (or empty strings), so that the first request is not slow."""
        batch = batch_rows or self.spec.batch_rows or 2
        for rows in sorted({1, batch}):
            self.run({each.name: _zeros(each, rows, self.spec.smallest) for each in self.spec.inputs})

    def profile(self, budget_s: float = 0.3) -> Profile:
        """Measures runs of 1, 2, 4, ... rows for about `budget_s` in all. Raises KernelError."""
        stated = self.spec.rows_fixed or self.spec.batch_rows
        sizes = [stated] if stated else _sizes(self.spec)
        rng = np.random.default_rng(0)
        pool = {each.name: _trial(each, sizes[-1], self.spec.smallest, rng) for each in self.spec.inputs}
        began = time.perf_counter()
        seconds: dict[int, float] = {}
        for place, rows in enumerate(sizes):
            batches = itertools.cycle(
                {name: each[at : at + rows] for name, each in pool.items()}
                for at in range(0, min(sizes[-1], _PROFILE_CALLS * rows), rows)
            )
            first = self._seconds(batches, 1)
            left_s = budget_s - (time.perf_counter() - began)
            seconds[rows] = self._least(batches, rows, first, left_s / (len(sizes) - place))
            left_s = budget_s - (time.perf_counter() - began)
            slow = seconds.get(1, 0.0) > _SLOW_S
            if rows >= _SLOW_ROWS_MAX if slow else left_s < 2 * seconds[rows]:
                break
        return Profile(best_rows(seconds), seconds)

    def _least(self, batches: Iterator[Tensors], rows: int, first: float, budget_s: float) -> float:
        """Seconds of a call: the least mean over some calls on different rows, as often as they fit."""
        if first > _SLOW_S:
            return first
        calls = max(1, min(-(-_PROFILE_CALLS // rows), int(budget_s / (4 * first))))
        began, least = time.perf_counter(), self._seconds(batches, calls)
        while time.perf_counter() - began + least * calls < budget_s:
            least = min(least, self._seconds(batches, calls))
        return least

    def _seconds(self, batches: Iterator[Tensors], calls: int) -> float:
        began = time.perf_counter()
        for batch in itertools.islice(batches, calls):
            self.run(batch)
        return (time.perf_counter() - began) / calls

    def _run_part(self, inputs: Tensors, start: int, end: int, fixed: int) -> Tensors:
        """The rows from start to end, filled up with the last one to the size that the graph fixes."""
        part = {name: each[start:end] for name, each in inputs.items()}
        if end - start < fixed:
            part = {
                name: np.concatenate([each, np.repeat(each[-1:], fixed - len(each), axis=0)])
                for name, each in part.items()
            }
        return {name: each[: end - start] for name, each in self._run(part, fixed).items()}

    def _run(self, inputs: Tensors, rows: int) -> Tensors:
        try:
            values = self.batches.run(inputs) if self.batches else self._session.run(self._outputs, inputs)
        except Exception as err:  # the runtime's own errors share no base class
            raise KernelError(_short(err)) from None
        for name, value in zip(self._outputs, values, strict=True):
            if not value.ndim or len(value) != rows:
                raise KernelError(f"output {name!r} has shape {list(value.shape)} for {rows} rows of input")
        return dict(zip(self._outputs, values, strict=True))


def best_rows(seconds: dict[int, float]) -> int:
    """The smallest size within 5 % of the best throughput.

    >>> best_rows({1: 1.0, 2: 1.1, 4: 2.15, 8: 8.0})
    2
    """
    best = max(rows / took for rows, took in seconds.items())
    return min(rows for rows, took in seconds.items() if rows / took >= _NEAR_BEST * best)


def _model(spec: ModelSpec) -> str | bytes:
    """The path, so that the runtime maps weights itself; the changed graph where there is a ZipMap."""
    if not spec.zipmap:
        return spec.path
    from kernels.graph import without_zipmap  # only here: onnx costs an actor 20 MB

    return without_zipmap(spec.path)


def _options(spec: ModelSpec, threads: int, run: RunOptions, elsewhere: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    level = _LEVELS[run.graph_optimization_level]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_FATAL
    # the runtime keeps a memory pattern for each shape that it ever saw
    varies = spec.rows_fixed is None or any(each.varying for each in spec.inputs)
    options.enable_mem_pattern = not varies
    placement = {"session.record_ep_graph_assignment_info": "1"} if elsewhere else {}
    for key, value in {"session.intra_op.allow_spinning": "0", **placement, **run.config}.items():
        options.add_session_config_entry(key, value)
    return options


def _text(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Strings as the runtime takes them: an object array of str."""
    if array.dtype.kind == "U" or all(isinstance(each, str) for each in array.flat):
        return array
    text = np.empty(array.size, object)
    try:
        text[:] = [each.decode() if isinstance(each, bytes) else str(each) for each in array.flat]
    except UnicodeDecodeError as err:
        raise KernelError(f"a string input is not UTF-8 ({err.reason}); encode it as UTF-8") from None
    return text.reshape(array.shape)


def _zeros(tensor: TensorSpec, rows: int, sizes: dict[str, int]) -> npt.NDArray[Any]:
    shape = tensor.concrete(rows, sizes)
    if tensor.datatype == "BYTES":
        return np.full(shape, "", object)
    return np.zeros(shape, DTYPES[tensor.datatype])


def _trial(tensor: TensorSpec, rows: int, sizes: dict[str, int], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Random floats, as a tree takes a way for each row; zeros for the rest, which may be places in a table."""
    array = _zeros(tensor, rows, sizes)
    if tensor.datatype not in FLOATS:
        return array
    return rng.standard_normal(array.shape, np.float32).astype(array.dtype)


def _sizes(spec: ModelSpec) -> list[int]:
    one = sum(_zeros(each, 1, spec.smallest).nbytes for each in spec.inputs)
    rows_max = max(1, min(_PROFILE_ROWS_MAX, _PROFILE_BYTES_MAX // max(one, 1)))
    return [1 << power for power in range(rows_max.bit_length())]


def _short(err: Exception) -> str:
    """The runtime's message without its prefix, on one line."""
    lines = str(err).strip().splitlines() or [type(err).__name__]
    parts = lines[0].split(" : ", 3)
    message = parts[-1] if len(parts) == 4 and parts[0] == "[ONNXRuntimeError]" else lines[0]
    return message[:_MESSAGE_LENGTH_MAX]
