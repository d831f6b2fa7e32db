"""Metrics of GPUs, with a small NVML in the place of NVIDIA's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

from prometheus_client import REGISTRY

from infra.gpus import watch


class Lost(Exception):
    """As NVML says of a GPU that fell off the bus."""


@dataclass
class Nvml:
    """Two GPUs."""

    NVMLError: type[Exception] = Lost
    busy: list[int] = field(default_factory=lambda: [25, 100])
    lost: bool = False

    def nvmlInit(self) -> None:
        if not self.busy:
            raise Lost("driver not loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.busy)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if self.lost:
            raise Lost
        return SimpleNamespace(gpu=self.busy[handle], memory=0)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=(handle + 1) << 30)


def value(name: str, gpu: str) -> float:
    found = REGISTRY.get_sample_value(name, {"gpu": gpu})
    assert found is not None
    return found


def test_each_scrape_asks_anew_and_a_lost_gpu_leaves_the_rest() -> None:
    nvml = Nvml()
    assert watch(nvml) == 2
    assert [value("lrai_gpu_utilisation_ratio", gpu) for gpu in "01"] == [0.25, 1.0]
    assert value("lrai_gpu_memory_bytes", "1") == 2 << 30
    nvml.busy[0] = 50
    assert value("lrai_gpu_utilisation_ratio", "0") == 0.5
    nvml.lost = True
    assert math.isnan(value("lrai_gpu_utilisation_ratio", "0"))
    assert value("lrai_gpu_memory_bytes", "0") == 1 << 30


def test_without_a_driver_there_are_no_metrics_and_no_error() -> None:
    assert watch(Nvml(busy=[])) == 0
