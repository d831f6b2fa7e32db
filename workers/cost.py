"""What the process of an actor takes: seconds of CPU, joules, money. Every figure says where it comes from."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

SAMPLE_S = 1.0
ASK_S = 0.1
HOUR_S = 3600
ESTIMATE, RAPL, NVML = "estimate", "rapl", "nvml"
POWERCAP = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq: the columns of /proc/stat that are no waiting


@dataclass(frozen=True, slots=True)
class Prices:
    """Of an hour, and the watts that are assumed where nothing can be read."""

    currency: str
    cpu_hour_price: float
    gpu_hour_price: float
    watts_per_core: float
    watts_per_gpu: float


class Rapl:
    """Joules a second of CPU: what the processor packages took over what all processes of the machine were busy.

    So the power of an idle machine is shared by those who use it. Counters: Linux, power capping framework
    (Documentation/power/powercap) and proc_stat(5).
    """

    def __init__(self, powercap: Path = POWERCAP, stat: Path = STAT) -> None:
        zones = [each for each in sorted(powercap.glob("intel-rapl:*")) if each.name.count(":") == 1]
        self._zones = [each for each in zones if _text(each / "name").startswith("package")]
        self._stat = stat
        self._before = self._read()
        self._rate: float | None = None
        self._due_s = 0.0

    def joules_per_cpu_s(self, now_s: float) -> float | None:
        """By the last second or so; None where it cannot be read (since 2020 only root may) or not yet."""
        if self._before is None or now_s < self._due_s:
            return self._rate
        self._due_s = now_s + SAMPLE_S
        if (now := self._read()) is None:
            return self._rate
        packages = zip(now[0], self._before[0], strict=True)
        joules = sum((after - before) % (most + 1e-6) for (after, most), (before, _) in packages)
        busy_s = now[1] - self._before[1]
        if busy_s > 0 and joules > 0:
            self._rate, self._before = joules / busy_s, now
        return self._rate

    def _read(self) -> tuple[list[tuple[float, float]], float] | None:
        """By package, joules and where they begin again at 0; and busy seconds."""
        try:
            joules = [
                (int(_text(each / "energy_uj")) / 1e6, int(_text(each / "max_energy_range_uj")) / 1e6)
                for each in self._zones
            ]
            columns = _text(self._stat).split("\n", 1)[0].split()[1:]
            busy_s = sum(int(columns[place]) for place in _BUSY) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return None
        return (joules, busy_s) if joules else None


class Nvml:
    """Watts of the first GPU, by NVIDIA's management library where the package `pynvml` is there."""

    def __init__(self, library: Any = None) -> None:
        self._library: Any = None
        self._watts: float | None = None
        self._due_s = 0.0
        with suppress(Exception):  # not installed, no driver, no device: the library's errors share no base class
            self._library = library or importlib.import_module("pynvml")
            self._library.nvmlInit()
            self._device = self._library.nvmlDeviceGetHandleByIndex(0)

    def watts(self, now_s: float) -> float | None:
        if self._library is not None and now_s >= self._due_s:
            self._due_s = now_s + SAMPLE_S
            self._watts = None
            with suppress(Exception):
                self._watts = self._library.nvmlDeviceGetPowerUsage(self._device) / 1e3
        return self._watts


class Meter:
    """What the process took since the last question, whoever asked: the shares of all lanes add up to the whole.

    CPU is that of the process: threads of the runtime and of the Kafka client are in it, other processes are not. The
    clock is read every ASK_S, since that may take longer than a window: what comes in between has no share.
    """

    def __init__(
        self, prices: Prices, rapl: Rapl | None = None, nvml: Nvml | None = None,
        cpu_s: Callable[[], float] = time.process_time, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.prices = prices
        self._rapl, self._nvml = rapl, nvml
        self._cpu_s, self._clock = cpu_s, clock
        self._lock = Lock()
        self._taken_s = cpu_s()
        self._due_s = 0.0

    def take(self, gpu_s: float) -> dict[str, Any]:
        """The fields of a Tally that say what it took. `gpu_s`: seconds of kernel runs on a GPU."""
        now_s, cpu_s = self._clock(), 0.0
        with self._lock:
            if now_s >= self._due_s:
                self._due_s, total_s = now_s + ASK_S, self._cpu_s()
                cpu_s, self._taken_s = max(0.0, total_s - self._taken_s), total_s
            rate = self._rapl.joules_per_cpu_s(now_s) if self._rapl else None
            watts = self._nvml.watts(now_s) if self._nvml and gpu_s else None
        prices = self.prices
        joules = cpu_s * (prices.watts_per_core if rate is None else rate)
        sources = {ESTIMATE if rate is None else RAPL}
        if gpu_s:
            joules += gpu_s * (prices.watts_per_gpu if watts is None else watts)
            sources.add(ESTIMATE if watts is None else NVML)
        return {
            "cpu_s": cpu_s,
            "gpu_s": gpu_s,
            "energy_j": joules,
            "energy_source": "+".join(sorted(sources)),
            "cost": (cpu_s * prices.cpu_hour_price + gpu_s * prices.gpu_hour_price) / HOUR_S,
            "currency": prices.currency,
        }


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
