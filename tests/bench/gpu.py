"""`python -m tests.bench.gpu --device cuda`: what a device gains over the CPU, and a pipeline whose actor runs on it.

ResNet-50 and BERT-base with random weights are compiled for the device; then the CPU on all cores, the device and each
variant there take turns. Times are of the clock. Writes build/gpu.json and, with --document, docs/gpu.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console

from infra.parts import parts
from kernels import devices, repository
from kernels.compile.compiler import Options, compile_model
from kernels.devices import Device
from kernels.loading import load_variant
from kernels.session import Session
from tests import nets, transformers
from tests.bench import cases, load, report
from tests.bench.contenders import Lrai
from tests.bench.report import Outcome
from tests.bench.turns import Run, Tensors
from workers.template import BAD_SETTING

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 128
ROWS = (1, 8, 32)
SAMPLE_S = 0.1
BUSY = "% of samples in which the GPU was busy, mean"


class Utilisation:
    """Asks NVML ten times a second while it is open; no values without pynvml."""

    def __init__(self, number: int) -> None:
        self.values: list[float] = []
        try:
            self._nvml: Any = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(number)
        except Exception:  # no package, no driver, no GPU
            self._nvml = None

    @contextmanager
    def asked(self) -> Iterator[None]:
        done = threading.Event()
        thread = threading.Thread(target=self._ask, args=(done,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _ask(self, done: threading.Event) -> None:
        while self._nvml and not done.wait(SAMPLE_S):
            self.values.append(float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu))


def in_turns(contenders: dict[str, Run], rounds: int, turn_s: float = 0.3) -> dict[str, list[float]]:
    """Milliseconds of the clock a run of each, a value a round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    calls: dict[str, int] = {}
    for name, run in contenders.items():
        run()
        calls[name] = max(1, int(turn_s / _seconds(run, 1)))
    for _ in range(rounds):
        for name, run in contenders.items():
            found[name].append(1e3 * _seconds(run, calls[name]))
    return found


def _seconds(run: Run, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return max((time.perf_counter() - began) / calls, 1e-9)


def kernels(name: str, build: Callable[[Path], object], feed: Callable[[int], Tensors], bench: Bench) -> Outcome:
    """Compiles the net for the device, then times everything at 1, 8 and 32 rows."""
    device, rounds = bench.device, bench.rounds
    home = ROOT / "build/bench" / f"gpu-{device.name}{'-quick' if bench.quick else ''}"
    folder = home / name / "1"
    if not (folder / "model.onnx").exists():
        build(folder / "model.onnx")
    (folder / "model.toml").write_text(f'device = "{bench.name}"\nrequire_certificate = "none"\n')
    out = Outcome(f"{name}-{device.name}", f"{name}, random weights, {device.name} and the CPU", rounds,
                  date=time.strftime("%Y-%m-%d"), quick=bench.quick)  # fmt: skip
    began = time.monotonic()
    spec = repository.load_model(home, name, "1")
    done = compile_model(spec, None, Options(agreement_min=0.0, device=device), bench.say)
    out.add(f"LRAI on {device.name}", "compile s", [time.monotonic() - began], 1)
    out.notes += [f"not kept: {each.name}: {each.refused}" for each in done.tried if each.refused] + list(done.notes)
    spec = repository.load_model(home, name, "1")
    sessions = {"CPU fp32, all cores": Session(spec, 0), f"{device.name} fp32": Session(spec, device=device)}
    if device.pinned:
        sessions[f"{device.name} fp32, not pinned"] = Session(spec, device=replace(device, pinned=False))
    for variant in spec.variants:
        sessions[f"{device.name} {variant.name}"] = load_variant(spec, variant, 1, device=device).session
    for kept in done.kept:
        if kept.manifest is not None:
            out.add(f"{device.name} {kept.name}", "mean error %", [100 * kept.manifest.error.mean], 3)
    for rows in ROWS[:2] if bench.quick else ROWS:
        batch = feed(rows)
        runs: dict[str, Run] = {label: partial(each.run, batch) for label, each in sessions.items()}
        for label, values in in_turns(runs, rounds).items():
            out.add(label, f"{rows} rows, ms", values, 2)
    used = Utilisation(bench.number)
    with used.asked():
        in_turns({"": partial(sessions[f"{device.name} fp32"].run, feed(ROWS[-1]))}, 5)
    out.add(f"{device.name} fp32", BUSY, [statistics.mean(used.values)] if used.values else [])
    return out


def pipeline(bench: Bench) -> Outcome:
    """Requests of one image through Kafka: `lrai up` with the actor on the device, and on the CPU, in turns."""
    n = 200 if bench.quick else 5_000
    requests = load.Requests("resnet50", "pixels", "UINT8", (1, 224, 224, 3))
    title = f"ResNet-50 through Kafka, {n:,} requests of one image"
    out = Outcome(f"pipeline-{bench.device.name}", title, bench.rounds, date=time.strftime("%Y-%m-%d"),
                  quick=bench.quick)  # fmt: skip
    used = Utilisation(bench.number)
    with parts() as running:
        place = cases.Bench(
            running.kafka, running.store, ROOT / "build/bench/gpu-pipeline", bench.quick, 1, frozenset(), bench.say
        )
        models = place.model("resnet50", lambda path: nets.resnet50(path, 1), "gpu-resnet50")
        cases.warm_up(place)
        for _ in range(bench.rounds):
            for name in (bench.name, "cpu"):
                os.environ["LRAI_DEVICE"] = name  # the child's setting
                with used.asked() if name == bench.name else nullcontext():
                    rates = cases.race(place, models, lambda: requests.chunks(n), [Lrai()], 1)["LRAI"]
                out.add(f"actor on {name}", "requests/s", rates, 1)
    out.figures = merged(out)
    out.add(f"actor on {bench.name}", BUSY, [statistics.mean(used.values)] if used.values else [])
    return out


def merged(out: Outcome) -> list[report.Figure]:
    """A figure a contender, with the values of all rounds."""
    found: dict[str, report.Figure] = {}
    for each in out.figures:
        found.setdefault(each.contender, replace(each, values=[])).values.extend(each.values)
    return list(found.values())


class Bench:
    """What every case needs. `number`: the GPU's, as NVML counts."""

    def __init__(self, name: str, rounds: int, quick: bool, say: Callable[[str], None]) -> None:
        self.name, self.rounds, self.quick, self.say = name, rounds, quick, say
        self.device: Device = devices.device(name, ROOT / "build/bench/engines")
        number = name.partition(":")[2]
        self.number = int(number) if number.isdigit() else 0


def resnet(bench: Bench) -> Outcome:
    image = 64 if bench.quick else 224
    rng = np.random.default_rng(1)
    return kernels(
        "resnet50", lambda path: nets.resnet50(path, 1, image),
        lambda rows: {"pixels": rng.integers(0, 256, (rows, image, image, 3), np.uint8)}, bench,
    )  # fmt: skip


def bert(bench: Bench) -> Outcome:
    sizes, length = (transformers.TINY, 32) if bench.quick else (transformers.BERT_BASE, TOKENS)
    return kernels(
        "bert-base", lambda path: transformers.bert(path, sizes),
        lambda rows: transformers.tokens(rows, length, sizes), bench,
    )  # fmt: skip


CASES: dict[str, Callable[[Bench], Outcome]] = {"bert": bert, "resnet": resnet, "pipeline": pipeline}


def machine(name: str) -> dict[str, str]:
    """What it ran on; the runtime goes by several package names."""
    there = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
    found = next((each for each in there if any(d.name == each for d in metadata.distributions())), there[0])
    return {"device": name, "runtime": f"{found} {onnxruntime.__version__}", "cores": str(os.cpu_count())}


def main() -> int:
    """Runs the cases asked for."""
    parser = argparse.ArgumentParser(prog="tests.bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small nets, into build/gpu-quick.json")
    parser.add_argument("--document", action="store_true", help="writes docs/gpu.md, too")
    given = parser.parse_args()
    console = Console(width=140 if not sys.stdout.isatty() else None)
    try:
        bench = Bench(given.device, given.rounds, given.quick, lambda what: None)
    except devices.NoDevice as err:
        console.print(str(err), markup=False, highlight=False)
        return BAD_SETTING
    for name in given.only:
        console.print(f"{time.strftime('%H:%M:%S')}  {name} ...", highlight=False)
        outcome = CASES[name](bench)
        report.show(console, outcome)
        results = ROOT / "build" / ("gpu-quick.json" if given.quick else "gpu.json")
        document = ROOT / "docs/gpu.md" if given.document and not given.quick else None
        report.save([outcome], machine(given.device), results, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
