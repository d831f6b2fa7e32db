"""How busy the GPUs of this host are: from NVML, where the module pynvml (of nvidia-ml-py) and a driver are there."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from streams import meters
from streams.log import log

_ASKED = (
    (meters.GPU_BUSY, "nvmlDeviceGetUtilizationRates", "gpu", 0.01),
    (meters.GPU_BYTES, "nvmlDeviceGetMemoryInfo", "used", 1.0),
)


def watch(nvml: Any = None) -> int:
    """Adds the GPUs to this process's metrics, which ask at each scrape. How many there are, 0 without NVML."""
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    except Exception as err:  # the package is no dependency, and its errors share no base class with others
        log("warning", "no metrics of GPUs; install nvidia-ml-py beside the driver", error=str(err))
        return 0
    for number, handle in enumerate(handles):
        for gauge, call, name, unit in _ASKED:
            gauge.labels(str(number)).set_function(partial(_read, nvml, call, name, unit, handle))
    return len(handles)


def _read(nvml: Any, call: str, name: str, unit: float, handle: Any) -> float:
    """NaN where the GPU is lost, which must not take the other metrics with it."""
    try:
        return float(unit * getattr(getattr(nvml, call)(handle), name))
    except nvml.NVMLError:
        return float("nan")
