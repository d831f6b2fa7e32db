"""What an actor takes: CPU, joules and money, and where the figures come from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.stages import PRICES
from workers.cost import Meter, Nvml, Rapl

TICKS = 100  # a second, of /proc/stat on every Linux that we know


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def machine(folder: Path, joules: float, busy_s: float, most: float = 1000.0) -> None:
    """Counters of one package and its core, and of an idle time that does not count."""
    for name, what in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys")):
        zone = folder / "powercap" / name
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(f"{what}\n")
        (zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        (zone / "max_energy_range_uj").write_text(f"{round(most * 1e6)}\n")
    (folder / "stat").write_text(f"cpu  {round(busy_s * TICKS)} 0 0 987654 77 0 0 0 0 0\ncpu0 1 2 3\n")


def test_without_counters_energy_is_an_estimate_that_says_so(tmp_path: Path) -> None:
    cpu, now = Clock(), Clock()
    meter = Meter(PRICES, Rapl(tmp_path, tmp_path / "stat"), cpu_s=cpu, clock=now)
    cpu.s = 2.0
    assert meter.take(0.0) == {
        "cpu_s": 2.0, "gpu_s": 0.0, "energy_j": 20.0, "energy_source": "estimate", "cost": 2.0, "currency": "EUR",
    }  # fmt: skip
    assert meter.take(0.0)["cpu_s"] == 0.0


def test_shares_of_lanes_add_up_to_what_the_process_took() -> None:
    cpu = Clock()
    now = Clock()
    meter = Meter(PRICES, cpu_s=cpu, clock=now)
    shares = []
    for step in range(20):
        cpu.s += 0.1 * step
        now.s += 0.03
        shares.append(meter.take(0.0)["cpu_s"])
    assert 0 < shares.count(0.0) < 18, "the clock is not read for every window"
    now.s += 1
    assert sum(shares) + meter.take(0.0)["cpu_s"] == pytest.approx(cpu.s)


def test_rapl_gives_the_packages_joules_to_those_who_were_busy(tmp_path: Path) -> None:
    machine(tmp_path, joules=10, busy_s=100)
    cpu, now = Clock(), Clock()
    meter = Meter(PRICES, Rapl(tmp_path / "powercap", tmp_path / "stat"), cpu_s=cpu, clock=now)
    machine(tmp_path, joules=70, busy_s=104)  # 60 J for 4 busy seconds
    now.s, cpu.s = 1.0, 1.0
    found = meter.take(0.0)
    assert (found["energy_j"], found["energy_source"]) == (pytest.approx(15.0), "rapl")
    machine(tmp_path, joules=20, busy_s=109)  # past the end of the counter: 950 J for 5 s
    now.s, cpu.s = 1.5, 2.0
    assert meter.take(0.0)["energy_j"] == pytest.approx(15.0), "within a second the last figure holds"
    now.s, cpu.s = 3.0, 3.0
    assert meter.take(0.0)["energy_j"] == pytest.approx(190.0)


def test_counters_that_may_not_be_read_are_not(tmp_path: Path) -> None:
    machine(tmp_path, joules=10, busy_s=100)
    (tmp_path / "powercap/intel-rapl:0/energy_uj").write_text("not a number")
    meter = Meter(PRICES, Rapl(tmp_path / "powercap", tmp_path / "stat"))
    assert meter.take(0.0)["energy_source"] == "estimate"


def library(watts: float) -> SimpleNamespace:
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPowerUsage=lambda handle: watts * 1e3,
    )


def test_a_gpu_is_read_or_estimated() -> None:
    cpu = Clock()
    meter = Meter(PRICES, nvml=Nvml(library(250.0)), cpu_s=cpu)
    cpu.s = 1.0
    found = meter.take(2.0)
    assert (found["energy_j"], found["energy_source"]) == (510.0, "estimate+nvml")
    assert found["cost"] == 1.0 + 4.0
    broken = Nvml(SimpleNamespace(nvmlInit=lambda: 1 / 0))
    assert broken.watts(9.0) is None
    found = Meter(PRICES, nvml=broken, cpu_s=lambda: 0.0).take(2.0)
    assert (found["energy_j"], found["energy_source"]) == (200.0, "estimate")
