"""A burst above the capacity of a model's original, with and without a cheaper variant to change to."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests import nets
from tests.bench import load
from tests.bench.cases import RATE, Bench, race
from tests.bench.contenders import Lrai
from tests.bench.live import arrivals
from tests.bench.report import Outcome, Target

SIZES = (256, 4096, 4096, 10)  # so much to multiply that the kernel, not the pipeline, is what a burst overloads
SLO_MS = 300
DEADLINE_S = 1.0
CALM_S, BURST_S = 10.0, 6.0
CALM, BURST = 0.4, 2.0  # of the original's capacity
WARM_S = 3.0
PHASES = ("before", "burst", "after")


class Static(Lrai):
    """LRAI whose model has no variants."""

    name = "LRAI, original only"


def burst(bench: Bench) -> Outcome:
    plain = bench.model("wide-mlp", lambda path: nets.mlp(path, SIZES, 1))
    switching = bench.model("wide-mlp", lambda path: nets.mlp(path, SIZES, 1), "wide-mlp-int8")
    _compile(bench, switching / "wide-mlp" / "1")
    requests = load.Requests("wide-mlp", "features", "FP32", (1, SIZES[0]))
    n = 4_000 if bench.quick else 20_000
    capacity = float(np.median(race(bench, plain, lambda: requests.chunks(n), [Lrai()], bench.few)["LRAI"]))
    calm = CALM_S / 2 if bench.quick else CALM_S
    phases = [(CALM * capacity, calm), (BURST * capacity, BURST_S), (CALM * capacity, calm)]
    title = f"A burst of {BURST_S:.0f} s at {BURST:g} times the original's capacity"
    outcome = bench.outcome("burst", title, bench.few)
    outcome.add(Static.name, RATE, [capacity])
    found: dict[str, list[list[Answers]]] = {Lrai.name: [], Static.name: []}
    for number in range(bench.few):
        for contender, models in ((Lrai(), switching), (Static(), plain)):
            place = bench.place(models)
            with bench.started(contender, place, live=True) as up:
                if up:
                    sent, _, arrived = arrivals(place, contender.target, requests, phases)
                    found[contender.name].append(_by_phase(phases, arrived - sent))
                    bench.say(f"round {number + 1}/{bench.few} {contender.name}: {found[contender.name][-1]}")
            load.delete_topics(bench.kafka, place.prefix)
    for name, rounds in found.items():
        for phase, answers in zip(PHASES, zip(*rounds, strict=True), strict=True):
            outcome.add(name, f"{phase}: p95 ms", [each.p95_ms for each in answers], 1)
            outcome.add(name, f"{phase}: max ms", [each.max_ms for each in answers], 1)
            outcome.add(name, f"{phase}: % later than {DEADLINE_S:g} s", [each.late for each in answers], 2)
    if ours := [each.late for each in itertools.chain.from_iterable(found[Lrai.name])]:
        outcome.targets.append(Target(f"% later than {DEADLINE_S:g} s, worst phase and round", max(ours), 0.0, True))
    outcome.notes.append(
        f"MLP {'-'.join(map(str, SIZES))}, slo_p95_ms = {SLO_MS}, under_load = int8; {CALM:g} of the capacity for "
        f"{calm:g} s before and after; the first {WARM_S:g} s are not counted"
    )
    return outcome


def _compile(bench: Bench, folder: Path) -> None:
    if not (folder / "variants" / "int8").is_dir():
        bench.say("compiling the MLP")
        command = [Path(sys.executable).with_name("lrai"), "compile", folder, "--agreement-min", "0"]  # random weights
        subprocess.run(command, check=True, capture_output=True, timeout=900)
    stated = f'require_certificate = "none"\nslo_p95_ms = {SLO_MS}\n'
    (folder / "model.toml").write_text(stated + '[variants]\nunder_load = ["int8"]\n')


@dataclass
class Answers:
    """How long they took; `late`: the share later than DEADLINE_S, %."""

    p95_ms: float
    max_ms: float
    late: float

    def __str__(self) -> str:
        return f"p95 {self.p95_ms:.0f} max {self.max_ms:.0f} ms, {self.late:.2f} % late"


def _by_phase(phases: Sequence[tuple[float, float]], taken: npt.NDArray[np.float64]) -> list[Answers]:
    """`taken`: seconds from produce to the reader, NaN where nothing came."""
    waited = np.where(np.isnan(taken), np.inf, taken)
    parts = np.split(waited, np.cumsum([round(rate * seconds) for rate, seconds in phases])[:-1])
    parts[0] = parts[0][int(phases[0][0] * WARM_S) :]
    found = ((np.percentile(part, 95) * 1000, part.max() * 1000, np.mean(part > DEADLINE_S) * 100) for part in parts)
    return [Answers(float(p95), float(largest), float(late)) for p95, largest, late in found]
