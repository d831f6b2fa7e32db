"""Graphs in memory on the runtime: run them, and see what it makes of them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

from kernels.compile.net import Array
from kernels.manifest import RunOptions
from schemas.errors import LraiError

Tensors = dict[str, Array]
LITERAL = RunOptions("disabled")  # each node as the file has it
LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SEVERITY_FATAL = 4
_PROVIDERS = ["CPUExecutionProvider"]


class NotCompiled(LraiError):
    """The model cannot be compiled."""


class NoRoom(LraiError):
    """There is no room for temporary files."""


class Runner:
    """A graph that runs on batches."""

    def __init__(self, model: ModelProto, options: RunOptions = LITERAL, threads: int = 0) -> None:
        """`threads` 0: every core. Raises NotCompiled."""
        self._outputs = [each.name for each in model.graph.output]
        self._session = _session(model.SerializeToString(), _options(options, threads), options)

    def run(self, feed: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """The outputs (those named) by name. Raises NotCompiled."""
        names = list(outputs or self._outputs)
        try:
            return dict(zip(names, self._session.run(names, feed), strict=True))
        except Exception as err:  # the runtime's own errors share no base class
            raise NotCompiled(f"the runtime cannot run the graph: {first_line(err)}") from None


def optimized(model: ModelProto | str, options: RunOptions) -> ModelProto:
    """The graph that the runtime executes instead of this one (or of this file) under these options."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        chosen = _options(options, 1)
        chosen.optimized_model_filepath = str(path)
        if (model.ByteSize() if isinstance(model, ModelProto) else _bytes(model)) > onnx.checker.MAXIMUM_PROTOBUF // 2:
            chosen.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "optimized.weights"
            )
        given = model if isinstance(model, str) else model.SerializeToString()
        try:
            _session(given, chosen, options)
        except NotCompiled:
            _session(given, _options(options, 1), options)  # raises what is wrong with the graph, if that it is
            raise NoRoom(f"{folder}: the runtime cannot write {len(given) if isinstance(given, bytes) else 'the'} bytes"
                         " of graph there; make room, or set TMPDIR to a folder that has it") from None  # fmt: skip
        return onnx.load(path)


def operators(model: ModelProto) -> Counter[str]:
    """How many nodes of each operator."""
    return Counter(node.op_type for node in model.graph.node)


def first_line(err: Exception) -> str:
    """Of the runtime's message, without its prefix."""
    text = (str(err).strip().splitlines() or [type(err).__name__])[0]
    parts = text.split(" : ", 3)
    return (parts[-1] if len(parts) == 4 and parts[0] == "[ONNXRuntimeError]" else text)[:300]


def joined(parts: Sequence[Tensors]) -> Tensors:
    """Batches one behind the other, flattened where their shapes differ."""
    if len(parts) == 1:
        return parts[0]
    found = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        same = len({each.shape[1:] for each in arrays}) == 1
        found[name] = np.concatenate(arrays if same else [each.reshape(-1) for each in arrays])
    return found


def _bytes(path: str) -> int:
    return sum(each.stat().st_size for each in Path(path).parent.iterdir() if each.is_file())


def _options(run: RunOptions, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[run.graph_optimization_level]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_FATAL
    options.enable_mem_pattern = False
    for key, value in {"session.intra_op.allow_spinning": "0", **run.config}.items():
        options.add_session_config_entry(key, value)
    return options


def _session(model: bytes | str, options: Any, run: RunOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(
            model, options, _PROVIDERS, disabled_optimizers=set(run.disabled_optimizers)
        )
    except Exception as err:  # the runtime's own errors share no base class
        raise NotCompiled(f"the runtime refuses the graph: {first_line(err)}") from None
