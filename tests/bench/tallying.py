"""What tallying costs an actor: decisions a second on one core, and its share of the actor's own time.

`python -m tests.bench.tallying`: attribute strings (of dictionary-encoded sets) to counts by group, hostile clients
too; then whole windows through an actor with a small net, with and without. The least of several rounds, in time of a
processor.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kernels import reference
from kernels.repository import load_model
from kernels.session import Session
from kernels.spec import ModelSpec
from schemas import framing
from schemas.requests import write_map
from streams.meters import SECONDS
from streams.window import Range
from tests import nets
from tests.samples import NOW_MS, window
from tests.stages import actor
from workers.tallies import About, Watch, tally

ROUNDS = 9
TOML = """
score = { output = "probabilities", index = 1 }
threshold = 0.5
labels = ["no", "yes"]
favourable = "yes"
sensitive_features = ["sex", "age"]
intersections = [["sex", "age"]]
"""
TOOK = {"cpu_s": 0.0, "gpu_s": 0.0, "energy_j": 0.0, "energy_source": "estimate", "cost": 0.0, "currency": "EUR"}


def seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The least time of a processor that a call took."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def sets(groups: int) -> list[bytes]:
    return [write_map({"sex": f"s{i % 2}", "age": f"a{i // 2}", "region": "north"}) for i in range(groups)]


def decisions(n: int, known: list[bytes]) -> dict[str, Any]:
    """A DecisionBatch of n answers, as far as it is tallied."""
    rng = np.random.default_rng(0)
    return {
        "answered_at": NOW_MS * 1000, "count": n, "received_at": np.full(n, NOW_MS - 9, "<i8").tobytes(),
        "consent_id": {"lengths": b"", "data": b""}, "attribute_sets": known,
        "attributes": (np.arange(n) % len(known)).astype("<i4").tobytes(), "error": b"", "errors": [],
        "releases": [{"variant": "original", "certificate": None}], "status": bytes(n),
        "score": rng.random(n).tobytes(), "decision": rng.integers(0, 2, n).astype("<i4").tobytes(),
        "decisions": ["no", "yes"],
    }  # fmt: skip


def model(folder: Path) -> tuple[ModelSpec, reference.Reference]:
    """A net 30-128-64-2 and its reference."""
    nets.mlp(folder / "net/1/model.onnx", (30, 128, 64, 2))
    spec = load_model(folder, "net", "1")
    toml = TOML.replace("probabilities", spec.outputs[0].name)
    (folder / "net/1/model.toml").write_text(toml)
    spec = load_model(folder, "net", "1")
    rows = np.random.default_rng(0).normal(size=(1000, 30)).astype("f4")
    return spec, reference.make(spec, [{spec.inputs[0].name: rows}], Session(spec).run)


def rates(spec: ModelSpec) -> None:
    about = About(Range("t", 0, 0, 1, 1), "w", "standard", {}, TOOK)
    for n, groups in ((1, 1), (16, 8), (256, 8), (4096, 16), (32768, 16)):
        watch, record = Watch.of(spec, None, SECONDS), decisions(n, sets(groups))
        took = seconds(lambda: [tally(watch, [record], [], about) for _ in range(20)]) / 20  # noqa: B023
        print(f"tally, {n:6} decisions, {groups:5} sets known  {1e6 * took:9.1f} us  {n / took / 1e6:7.2f} M/s")
    n = 4096
    fresh = iter([decisions(n, [write_map({"sex": f"{round_}-{i}"}) for i in range(n)]) for round_ in range(ROUNDS)])
    watch = Watch.of(spec, None, SECONDS)
    took = seconds(lambda: tally(watch, [next(fresh)], [], about))
    print(f"tally, {n:6} decisions, each a new set    {1e6 * took:9.1f} us  {n / took / 1e6:7.2f} M/s")


def batch(spec: ModelSpec, n: int, known: list[bytes], start: int) -> bytes:
    """An InferenceBatch of n requests of a row."""
    rng = np.random.default_rng(start)
    none = {"lengths": b"", "data": b""}
    ids = np.array([36] * n, "<i4").tobytes()
    return framing.encode("inference_batch", {
        "model": spec.model, "version": spec.version, "topic": "t.requests.standard", "count": n,
        "partition": np.zeros(n, "<i4").tobytes(), "offset": np.arange(start, start + n, dtype="<i8").tobytes(),
        "received_at": np.full(n, NOW_MS - 9, "<i8").tobytes(), "deadline": b"", "rows": np.ones(n, "<i4").tobytes(),
        "request_id": {"lengths": ids, "data": bytes(rng.integers(97, 123, 36 * n, np.uint8))}, "subject": none,
        "consent_id": none, "purpose": none, "attributes": (np.arange(n) % len(known)).astype("<i4").tobytes(),
        "attribute_sets": known, "reply": b"", "replies": [], "headers": none, "padded": b"",
        "tensors": [{"name": spec.inputs[0].name, "datatype": "FP32", "shape": [30],
                     "data": rng.normal(size=(n, 30)).astype("<f4").tobytes(), "sizes": b""}],
    })  # fmt: skip


def shares(spec: ModelSpec, found: reference.Reference) -> None:
    """Whole windows through an actor, in turn: without a tally, with one, and with one whose numbers are looked at,
    as those of one window in LOOK_MS are at most."""
    session, known = Session(spec), sets(16)
    print(f"an actor's function, ms a window {'without':>15} {'tallied':>15} {'looked at':>15}")
    for batches, n in ((1, 1), (1, 16), (1, 256), (4, 500), (16, 2000)):
        values = [batch(spec, n, known, each * n) for each in range(batches)]
        taken = window(values, topic="t.batches.net.1.standard")
        bare, plain, looked = (actor(spec, session, 1024, reference=found) for _ in range(3))
        bare.tallying = None
        calls = max(1, 1000 // max(batches * n, 20))

        def run(lane: Any, look_ms: int, calls: int = calls, taken: Any = taken) -> None:
            for _ in range(calls):
                if lane.tallying:
                    lane.tallying._look_ms = look_ms
                lane(taken, NOW_MS)

        ways = (bare, 0), (plain, 2**62), (looked, 0)
        took = [[seconds(lambda: run(*each), 1) / calls for each in ways] for _ in range(6 * ROUNDS)]  # noqa: B023
        least = [1e3 * min(column) for column in zip(*took, strict=True)]
        more = [f"{each:.3f} {100 * (each / least[0] - 1):+6.1f} %" for each in least]
        print(f"{batches:7} x {n:5} requests        {least[0]:15.3f} {more[1]:>15} {more[2]:>15}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec, found = model(Path(folder))
        rates(spec)
        shares(spec, found)


if __name__ == "__main__":
    main()
