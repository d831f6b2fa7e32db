"""Where a model runs: execution providers of the runtime under short names, and what this processor can do."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from schemas.errors import LraiError

# those that change what integer and float kernels the runtime picks
_FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "amx_tile", "asimd", "asimddp", "asimdhp", "i8mm", "sve",
)  # fmt: skip


class NoDevice(LraiError):
    """The execution provider is not there."""


@dataclass(frozen=True, slots=True)
class Device:
    """An execution provider with its options. `package`: what brings it."""

    name: str
    provider: str
    options: dict[str, str]
    package: str


_ALL = (
    Device("cpu", "CPUExecutionProvider", {}, "onnxruntime"),
    Device("cuda", "CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"},
           "onnxruntime-gpu, with CUDA and cuDNN"),
    Device("tensorrt", "TensorrtExecutionProvider", {"trt_fp16_enable": "0", "trt_int8_enable": "0"},
           "onnxruntime-gpu, with TensorRT"),
    Device("openvino", "OpenVINOExecutionProvider", {"device_type": "CPU"}, "onnxruntime-openvino"),
)  # fmt: skip
DEVICES = {each.name: each for each in _ALL}


def device(name: str) -> Device:
    """The device of that name. Raises NoDevice: an unknown name, or a provider that this runtime does not have."""
    found = DEVICES.get(name)
    if found is None:
        raise NoDevice(f"device = {name!r}: use one of {', '.join(DEVICES)}")
    there = onnxruntime.get_available_providers()
    if found.provider not in there:
        raise NoDevice(
            f"device = {name!r}: this runtime has {', '.join(there)}, not {found.provider}; install {found.package}"
            " in place of onnxruntime (only one of these packages may be there)"
        )
    return found


def check_provider(found: Device, providers: list[str]) -> None:
    """`providers`: of a session that asked for the device. Raises NoDevice where it fell back, as the runtime hides."""
    if not providers or providers[0] != found.provider:
        raise NoDevice(
            f"device = {found.name!r}: the runtime fell back to {', '.join(providers) or 'nothing'};"
            f" install {found.package}, and see that its libraries load"
        )


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Of this processor, those that kernels depend on; the machine's name alone where the system does not tell."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (platform.machine(),)
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    there = set(flags.partition(":")[2].split())
    return (platform.machine(), *(each for each in _FEATURES if each in there))
