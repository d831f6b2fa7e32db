"""What the runtime answers: both models in ONNX Runtime, under the options whose answers a verdict is about."""

from __future__ import annotations

import copy
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from kernels.proof.ir import F64, BadProblem
from schemas.errors import LraiError

_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
AS_WRITTEN = {"session.disable_quant_qdq": "1"}  # floats between QuantizeLinear and DequantizeLinear, as the graph says
_ROWS_MAX = 8192


class RunError(LraiError):
    """The runtime could not run a model."""

    exit_code = 3


@dataclass(frozen=True)
class Options:
    """Session options, as in a variant's manifest."""

    level: str = "all"
    disabled: tuple[str, ...] = ()
    config: dict[str, str] = field(default_factory=dict)
    threads: int = 1


class Model:
    """A model in the runtime that answers with one tensor of numbers."""

    def __init__(self, proto: onnx.ModelProto, output: str, options: Options) -> None:
        """`output` need not be an output of the graph. Raises BadProblem when the runtime does not load it."""
        chosen = onnxruntime.SessionOptions()
        chosen.graph_optimization_level = _LEVELS[options.level]
        chosen.intra_op_num_threads = options.threads
        chosen.inter_op_num_threads = 1
        chosen.log_severity_level = 4
        for key, value in options.config.items():
            chosen.add_session_config_entry(key, value)
        try:
            self._session = onnxruntime.InferenceSession(
                _with_output(proto, output), chosen, providers=["CPUExecutionProvider"],
                disabled_optimizers=list(options.disabled),
            )  # fmt: skip
        except Exception as err:  # the runtime's own errors share no base class
            raise BadProblem(f"the runtime cannot load the model: {str(err).strip().splitlines()[0][:200]}") from None
        source = self._session.get_inputs()[0]
        self._input, self._shape, self._output = source.name, source.shape[1:], output
        self._rows = source.shape[0] if isinstance(source.shape[0], int) else None
        self._type = np.float64 if source.type == "tensor(double)" else np.float32

    def run(self, x: npt.NDArray[np.float32]) -> F64:
        """float64[rows, outputs] of float32[rows, features]. Raises RunError."""
        fixed = self._rows
        pieces = []
        for at in range(0, len(x), fixed or _ROWS_MAX):
            part = x[at : at + (fixed or _ROWS_MAX)]
            kept = len(part)
            if fixed and kept < fixed:
                part = np.concatenate([part, np.repeat(part[-1:], fixed - kept, 0)])
            feed = {self._input: part.reshape(len(part), *self._shape).astype(self._type)}
            try:
                found = self._session.run([self._output], feed)[0]
            except Exception as err:  # the runtime's own errors share no base class
                raise RunError(f"the runtime failed: {str(err).strip().splitlines()[0][:200]}") from None
            pieces.append(np.asarray(found, np.float64).reshape(len(part), -1)[:kept])
        return np.concatenate(pieces)


def _with_output(proto: onnx.ModelProto, output: str) -> bytes:
    """The model, answering with this tensor too."""
    if any(each.name == output for each in proto.graph.output):
        return bytes(proto.SerializeToString())
    changed = copy.deepcopy(proto)
    changed.graph.output.append(onnx.ValueInfoProto(name=output))
    return bytes(changed.SerializeToString())


def cpu_features() -> list[str]:
    """Instruction sets that decide how integers are multiplied, as the kernel names them."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return [each for each in wanted if each in flags.split()]


def saturates(features: list[str]) -> bool:
    """Whether products of uint8 and int8 may saturate in 16 bits: x86 without VNNI."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "")
    return x86 and not {"avx512_vnni", "avx_vnni"} & set(features)


def semantics(options: Options, odd: list[str]) -> dict[str, Any]:
    """What a verdict is about, for its report and certificate."""
    return {
        "arithmetic": "float32",
        "accumulation": "any order",
        "runtime": onnxruntime.__version__,
        "provider": "CPUExecutionProvider",
        "session": {
            "graph_optimization_level": options.level,
            "disabled_optimizers": list(options.disabled),
            "config": dict(options.config),
        },
        "cpu_features": cpu_features(),
        "notes": odd,
    }
