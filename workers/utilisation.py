"""How busy the GPUs of this host are: from NVML, where the module pynvml (of nvidia-ml-py) and a driver are there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from streams import meters
from streams.log import log


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
        for gauge, ask in ((meters.GPU_BUSY, _busy), (meters.GPU_BYTES, _used)):
            gauge.labels(str(number)).set_function(partial(_read, nvml, ask, handle))
    return len(handles)


def _busy(nvml: Any, handle: Any) -> float:
    return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)


def _used(nvml: Any, handle: Any) -> float:
    return float(nvml.nvmlDeviceGetMemoryInfo(handle).used)


def _read(nvml: Any, ask: Callable[[Any, Any], float], handle: Any) -> float:
    """NaN where the GPU is lost, which must not take the other metrics with it."""
    try:
        return ask(nvml, handle)
    except nvml.NVMLError:
        return float("nan")
