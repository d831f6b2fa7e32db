"""What every case needs, and the cases that are about rates: who answers a backlog fastest."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tests import nets
from tests.bench import contenders as who
from tests.bench import load
from tests.bench.contenders import Contender, Failed, Loops, Lrai, Place, Reader
from tests.bench.report import Outcome

RATE = "events/s"
FALLBACK = "lrai_decode_fallback_records_total"
PASS = Loops("pass-through", "pass")
HAND = Loops("hand loop", "hand")
HAND_2 = Loops("hand loop, 2 processes", "hand", shares=2)
MLP_SIZES = (30, 128, 64, 2)
MIXED = (("mlp-a", (30, 128, 64, 2)), ("mlp-b", (12, 64, 32, 2)), ("risk-scorer", (64, 128, 3)))

WATCHED = """\
decision = "probabilities"
favourable = "1"
sensitive_features = ["sex", "age", "country"]
intersections = [["sex", "age"]]
freeze_on = "never"
"""

Chunks = Callable[[], Iterator[list[bytes]]]


@dataclass
class Bench:
    """What every case needs."""

    kafka: str
    store: str
    folder: Path
    quick: bool
    rounds: int
    only: frozenset[str]
    """contenders that take part, empty: all"""
    say: Callable[[str], None]
    absent: dict[str, str] = field(default_factory=dict)
    """contenders that could not start in this case, and why"""

    @property
    def few(self) -> int:
        """Rounds of a case whose rounds are long."""
        return 1 if self.quick else min(self.rounds, 3)

    def takes(self, *asked: Contender) -> list[Contender]:
        return [c for c in asked if c.name not in self.absent and (not self.only or c.name in self.only)]

    def place(self, models: Path, priority: str = "standard") -> Place:
        prefix = f"bench-{uuid.uuid4().hex[:8]}"
        return Place(self.kafka, self.store, models, prefix, self.folder / "logs", priority)

    def model(self, name: str, build: Callable[[Path], object], case: str | None = None) -> Path:
        """A model repository with the model in it, built when it is not there."""
        models = self.folder / "models" / (case or name)
        path = models / name / "1" / "model.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            build(path)
        return models

    def mlp(self, name: str = "mlp", sizes: Sequence[int] = MLP_SIZES, case: str | None = None) -> Path:
        return self.model(name, lambda path: nets.mlp(path, sizes, 1), case)

    def outcome(self, name: str, title: str, rounds: int) -> Outcome:
        return Outcome(name, title, rounds, date=time.strftime("%Y-%m-%d"), quick=self.quick)

    @contextmanager
    def started(self, contender: Contender, place: Place, live: bool = False) -> Iterator[bool]:
        """The contender, up and warm, or False when it cannot be started: said once, and it takes no further part."""
        try:
            contender.start(place, live)
        except Failed as err:
            self.absent[contender.name] = str(err)
            self.say(f"{contender.name} takes no part: {err}")
            contender.stop()
            yield False
            return
        try:
            yield True
        finally:
            contender.stop()


def race(bench: Bench, models: Path, chunks: Chunks, asked: Sequence[Contender], rounds: int) -> dict[str, list[float]]:
    """Events a second of each contender on the same backlog, a value a round."""
    rates: dict[str, list[float]] = {contender.name: [] for contender in asked}
    for number in range(rounds):
        place = bench.place(models)
        backlog: load.Backlog | None = None
        # LRAI first: its own request topic is the backlog that the others read after it
        for contender in sorted(bench.takes(*asked), key=lambda c: not isinstance(c, Lrai)):
            if not isinstance(contender, Lrai) and backlog is None:
                backlog = _backlog(place, chunks)
                backlog.release()
            with bench.started(contender, place) as up:
                if not up:
                    continue
                backlog = backlog or _backlog(place, chunks)
                release = backlog.release if isinstance(contender, Lrai) else contender.go
                rates[contender.name].append(_clocked(place, contender, backlog.records, release))
            bench.say(f"round {number + 1}/{rounds} {contender.name}: {rates[contender.name][-1]:,.0f}/s")
        load.delete_topics(bench.kafka, place.prefix)
    return rates


def _backlog(place: Place, chunks: Chunks) -> load.Backlog:
    load.create_topics(place.kafka, [place.source])
    return load.Backlog(place.kafka, place.source, chunks())


def _clocked(place: Place, contender: Contender, records: int, release: Callable[[], float]) -> float:
    reader = Reader(place.kafka, contender.target, records, place.logs)
    try:
        start = release()
        last = reader.finish()
    finally:
        reader.stop()
    return records / (max(last, contender.settled(records)) - start)


def warm_up(bench: Bench) -> None:
    """A round that does not count: a fresh broker's JVM runs its first few hundred thousand records at half speed."""
    requests = load.mlp_requests("mlp", "features", (1, 30))
    n = 100_000 if bench.quick else 300_000
    race(bench, bench.mlp(), lambda: requests.chunks(n), [Lrai(), PASS, HAND], 1)


def mlp(bench: Bench) -> Outcome:
    n = 100_000 if bench.quick else 500_000
    requests = load.mlp_requests("mlp", "features", (1, 30))
    title = f"MLP 30-128-64-2, {requests.record_bytes}-byte requests, a backlog of {n:,}"
    rates = race(bench, bench.mlp(), lambda: requests.chunks(n), [Lrai(), PASS, HAND, HAND_2], bench.rounds)
    outcome = bench.outcome("mlp", title, bench.rounds)
    for name, values in rates.items():
        outcome.add(name, RATE, values)
    outcome.ratio(HAND.name, RATE, 2.0, 2.5)
    outcome.ratio(PASS.name, RATE, 0.6, 0.7)
    return outcome


def mix(bench: Bench) -> Outcome:
    n = 50_000 if bench.quick else 200_000
    for name, sizes in MIXED:
        models = bench.mlp(name, sizes, "mix")
    chunks = list(load.mixed([(name, "features", sizes[0]) for name, sizes in MIXED], n))
    title = f"Realistic mix of {len(MIXED)} models and 9 shapes, a backlog of {n:,}"
    lrai = Measured()
    rates = race(bench, models, lambda: iter(chunks), [lrai, PASS, HAND], bench.few)
    outcome = bench.outcome("mix", title, bench.few)
    for name, values in rates.items():
        outcome.add(name, RATE, values)
    known = [100 * share for share in lrai.fallback if not math.isnan(share)]
    outcome.add("LRAI", "% decoded by fastavro", known, 2)
    if lrai.fallback and not known:
        outcome.notes.append(f"LRAI has no metric {FALLBACK}: the share decoded by fastavro is unknown")
    outcome.ratio(HAND.name, RATE, 1.8)
    size = sum(len(value) for chunk in chunks for value in chunk) / n
    outcome.notes.append(f"UUID ids, 3-4 attributes of varying length, 1-4 rows, deadlines on 40 %; {size:.0f} bytes")
    return outcome


class Unwatched(Lrai):
    """LRAI that counts nothing by group and runs no monitor."""

    name = "LRAI with watch = false"
    options = MappingProxyType({"LRAI_WATCH": "false"})


def watch(bench: Bench) -> Outcome:
    """What watching costs: models that state three sensitive features and an intersection, on the mix."""
    n = 50_000 if bench.quick else 200_000
    for name, sizes in MIXED:
        models = bench.mlp(name, sizes, "watch")
        (models / name / "1" / "model.toml").write_text(WATCHED)
    chunks = list(load.mixed([(name, "features", sizes[0]) for name, sizes in MIXED], n))
    both: tuple[Contender, Contender] = (Lrai(), Unwatched())
    rates: dict[str, list[float]] = {each.name: [] for each in both}
    for number in range(bench.rounds):
        for each in both if number % 2 else both[::-1]:
            rates[each.name] += race(bench, models, lambda: iter(chunks), [each], 1)[each.name]
    outcome = bench.outcome("watch", f"What watching costs: the mix, a backlog of {n:,}", bench.rounds)
    for name, values in rates.items():
        outcome.add(name, RATE, values)
    outcome.ratio(Unwatched.name, RATE, 0.97)
    return outcome


class Measured(Lrai):
    """LRAI that notes before each stop which share of the records went through fastavro; NaN without such a metric."""

    def __init__(self) -> None:
        super().__init__()
        self.fallback: list[float] = []

    def settled(self, records: int) -> float:
        at = super().settled(records)
        self.fallback.append(self.metric(FALLBACK) / records)
        return at


def wide(bench: Bench) -> Outcome:
    n = 30_000 if bench.quick else 100_000
    requests = load.Requests("wide", "features", "FP32", (1, 784))
    models = bench.mlp("wide", (784, 32, 32, 32, 10))
    title = f"Net 784-32-32-32-10, {requests.record_bytes}-byte requests, a backlog of {n:,}"
    rates = race(bench, models, lambda: requests.chunks(n), [Lrai(), PASS, HAND], bench.few)
    outcome = bench.outcome("wide", title, bench.few)
    for name, values in rates.items():
        outcome.add(name, RATE, values)
    outcome.ratio(HAND.name, RATE, 1.6)
    return outcome


def _raw(
    model: Path, datatype: str, shape: str, rows: list[int], sessions: list[int], seconds: float
) -> list[dict[str, float]]:
    """Rows a second of raw ONNX Runtime in each combination of rows a run and sessions, the fastest first."""
    command = [sys.executable, "-m", "tests.bench.raw", "--model", str(model), "--datatype", datatype, "--shape", shape]
    command += ["--rows", *map(str, rows), "--sessions", *map(str, sessions), "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    found: list[dict[str, float]] = json.loads(done.stdout)
    return sorted(found, key=lambda one: -one["rate"])


def _against_raw(
    bench: Bench, outcome: Outcome, requests: load.Requests, models: Path, rows: list[int], goal: float,
    variant: str = "",
) -> None:  # fmt: skip
    """LRAI and raw ONNX Runtime in turns; raw in the combination that was fastest in a first try."""
    model = models / requests.model / "1" / variant / "model.onnx"
    shape = "x".join(map(str, requests.shape[1:]))
    seconds = 4.0 if bench.quick else 10.0
    best = _raw(model, requests.datatype, shape, rows, [1, 2], 1.0 if bench.quick else 2.0)[0]
    each = requests.shape[0]
    n = max(50, min(60_000, int(best["rate"] * seconds / each)))
    combination = [int(best["rows"])], [int(best["sessions"])]
    raw: list[float] = []
    ours: list[float] = []
    for number in range(outcome.rounds):
        ours += [each * r for r in race(bench, models, lambda: requests.chunks(n), [Lrai()], 1)["LRAI"]]
        raw.append(_raw(model, requests.datatype, shape, *combination, seconds)[0]["rate"])
        bench.say(f"round {number + 1}/{outcome.rounds} raw ONNX Runtime: {raw[-1]:,.1f} rows/s")
    outcome.add("LRAI", "rows/s", ours, 1)
    outcome.add("raw ONNX Runtime", "rows/s", raw, 1)
    outcome.ratio("raw ONNX Runtime", "rows/s", goal)
    outcome.notes.append(
        f"raw: {best['rows']:.0f} rows a run, {best['sessions']:.0f} session(s) on all cores, the best of {rows} rows"
        f" and 1 or 2 sessions; {n:,} requests of {each} row(s), {requests.record_bytes:,} bytes"
    )


def resnet(bench: Bench) -> Outcome:
    models = bench.model("resnet50", lambda path: nets.resnet50(path, 1))
    title = "ResNet-50, random weights, uint8 pixels, pre-processing inside the graph"
    outcome = bench.outcome("resnet", title, bench.few)
    requests = load.Requests("resnet50", "pixels", "UINT8", (1, 224, 224, 3))
    _against_raw(bench, outcome, requests, models, [1, 4, 8, 16], 0.92)
    return outcome


def resnet_int8(bench: Bench) -> Outcome:
    models = bench.model("resnet50", lambda path: nets.resnet50(path, 1), "resnet50-int8")
    folder = models / "resnet50" / "1"
    if not (folder / "variants" / "int8").is_dir():
        bench.say("compiling ResNet-50")
        lrai = Path(sys.executable).with_name("lrai")
        command = [lrai, "compile", folder, "--agreement-min", "0"]  # of random weights nothing agrees
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        (folder / "model.toml").write_text('require_certificate = "none"\n[variants]\nprefer = ["int8"]\n')
    outcome = bench.outcome("resnet-int8", "The same compiled to int8, served by `prefer`", bench.few)
    requests = load.Requests("resnet50", "pixels", "UINT8", (1, 224, 224, 3))
    _against_raw(bench, outcome, requests, models, [1, 4, 8, 16], 0.92, "variants/int8")
    return outcome


def trees(bench: Bench) -> Outcome:
    models = bench.model("trees", lambda path: nets.boosted_trees(path, 500, 6, 30))
    outcome = bench.outcome("trees", "Boosted trees, 500 x depth 6, requests of 64 rows", bench.few)
    requests = load.Requests("trees", "features", "FP32", (64, 30))
    _against_raw(bench, outcome, requests, models, [64, 128, 256, 512, 1024, 4096], 0.9)
    return outcome


def audit(bench: Bench) -> Outcome:
    n = 200_000 if bench.quick else 700_000
    outcome = bench.outcome("audit", f"Audit writer alone, {n:,} rows, the real table and indexes", bench.rounds)
    try:
        from tests.bench import audit_writer
    except ImportError as err:
        bench.say(f"audit writer takes no part: {err}")
        return outcome
    store = who.new_database(bench.store)
    found = audit_writer.run(store, n)
    who.drop_database(bench.store, store)
    for kind, rates in found.items():
        outcome.rounds = rates["rounds"]
        outcome.add("LRAI", f"rows/s, {kind} rows", [rates["low"], rates["rows_per_s"], rates["high"]])
        outcome.limit("LRAI", f"rows/s, {kind} rows", 60_000, at_most=False)
    return outcome
