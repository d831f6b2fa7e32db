"""`python -m tests.bench.peers`: MLServer over Kafka, in its own environment, on the same broker, model and load.

What it answers live without losing a request, and what becomes of a backlog that comes at once. It has no exactly-once
and no audit, and joins no consumer group: it reads what is produced while it is up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from rich.console import Console

from infra.parts import parts
from infra.server import free_port
from tests import nets
from tests.bench import load, report
from tests.bench.contenders import Child, Failed, Place, Reader
from tests.bench.report import Outcome, Target

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "peers"
REQUIRED = ("mlserver==1.7.1", "onnxruntime")
RATES = (500, 1000, 1500, 2000, 3000, 4000, 6000, 8000)
SECONDS = 10.0
LATE_S = 2.0  # results that come later than this after the last request do not count as held
AT_ONCE = 20_000
FASTER = 30.0

RUNTIME = """
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload):
        feed = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        outputs = self.session.run(None, feed)
        named = zip(self.session.get_outputs(), outputs)
        encoded = [NumpyCodec.encode_output(output.name, np.asarray(column)) for output, column in named]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=encoded)
"""


def install() -> None:
    """Makes the environment of its own when it is not there. Raises Failed with what pip said."""
    if (HOME / "bin" / "mlserver").exists():
        return
    for command in ([sys.executable, "-m", "venv", str(HOME)], [str(HOME / "bin" / "pip"), "install", "-q", *REQUIRED]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"MLServer cannot be installed: {done.stderr.strip()[-500:]}")


class MLServer:
    """MLServer serving the MLP in one process, with its adaptive batching when `batch` is more than 0."""

    def __init__(self, place: Place, batch: int) -> None:
        self.target = f"{place.prefix}.out"
        load.create_topics(place.kafka, [place.source, self.target])
        folder = ROOT / "build" / "bench" / "mlserver"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "runtime.py").write_text(RUNTIME)
        http = free_port()
        settings = {
            "kafka_enabled": True,
            "kafka_servers": place.kafka,
            "kafka_topic_input": place.source,
            "kafka_topic_output": self.target,
            "parallel_workers": 0,
            "debug": False,
            "http_port": http,
            "grpc_port": free_port(),
            "metrics_endpoint": None,
            "logging_settings": {"version": 1, "disable_existing_loggers": True},
        }
        model = {
            "name": "mlp",
            "implementation": "runtime.Onnx",
            "max_batch_size": batch,
            "max_batch_time": 0.005 if batch else 0,
            "parameters": {"uri": str(place.models / "mlp" / "1" / "model.onnx")},
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        self._child = Child([str(HOME / "bin" / "mlserver"), "start", str(folder)], place.logs / "mlserver.log")
        try:
            self._ready(f"http://127.0.0.1:{http}/v2/health/ready")
        except Failed:
            self.stop()
            raise

    def _ready(self, url: str) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and self._child.process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise Failed(f"MLServer is not ready{self._child.tail()}")

    def stop(self) -> None:
        self._child.stop()


def held(place: Place, target: str, rate: int, n: int) -> tuple[int, float]:
    """Sends n requests at the rate (0: at once). Returns results that came, and seconds from first send to the last."""
    requests = load.JsonRequests("mlp", "features", "FP32", (1, 30))
    reader = Reader(place.kafka, target, n, place.logs, quiet_s=10.0)
    try:
        start = time.monotonic()
        sent = place.logs / "sent.npy"
        load.live(place.kafka, place.source, requests, [(rate or 1e6, n / (rate or 1e6))], str(sent))
        end = None
        while end is None:
            count, end = reader.progress()
        return count, max(end["last"] - start, 0.0)
    finally:
        reader.stop()


def measure(place: Place, batch: int, console: Console) -> tuple[float, int]:
    """The highest rate held, and how many of `AT_ONCE` requests that came at once were answered."""
    server = MLServer(place, batch)
    best = 0.0
    try:
        held(place, server.target, 500, 2_000)  # warm
    finally:
        server.stop()
    for rate in RATES:
        once = Place(place.kafka, place.store, place.models, f"bench-{uuid.uuid4().hex[:8]}", place.logs)
        server = MLServer(once, batch)
        try:
            n = round(rate * SECONDS)
            count, took = held(once, server.target, rate, n)
        finally:
            server.stop()
            load.delete_topics(once.kafka, once.prefix)
        console.print(f"batch {batch}, {rate}/s: {count} of {n} answered in {took:.1f} s")
        if count < n or took > SECONDS + LATE_S:
            break
        best = rate
    once = Place(place.kafka, place.store, place.models, f"bench-{uuid.uuid4().hex[:8]}", place.logs)
    server = MLServer(once, batch)
    try:
        count, took = held(once, server.target, 0, AT_ONCE)
    finally:
        server.stop()
        load.delete_topics(once.kafka, once.prefix)
    console.print(f"batch {batch}, at once: {count} of {AT_ONCE} answered in {took:.1f} s")
    return best, count


def main() -> int:
    """Runs it and adds it to the report. Returns 0 also when MLServer cannot be had: it says why."""
    console = Console()
    results, document = ROOT / "build" / "bench.json", ROOT / "docs" / "benchmarks.md"
    models = ROOT / "build" / "bench" / "models" / "mlp"
    path = models / "mlp" / "1" / "model.onnx"
    try:
        install()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            nets.mlp(path, (30, 128, 64, 2), 1)
        with parts() as running:
            place = Place(running.kafka, running.store, models, "bench-peers", ROOT / "build" / "bench" / "logs")
            found = {batch: measure(place, batch, console) for batch in (0, 64)}
            machine = report.machine({"MLServer": REQUIRED[0]})
    except Failed as err:
        console.print(f"MLServer takes no part: {err}")
        return 0
    outcome = Outcome("peers", "MLServer over Kafka, the same MLP, live", 1, date=time.strftime("%Y-%m-%d"))
    for batch, (rate, answered) in found.items():
        name = f"MLServer, {f'batches of {batch}' if batch else 'no batching'}"
        outcome.add(name, "highest rate held, events/s", [rate])
        outcome.add(name, f"answered of {AT_ONCE:,} that came at once", [answered])
    if results.exists():
        known = [Outcome.of(one) for one in json.loads(results.read_text())["outcomes"]]
        ours = next((one.median("LRAI", "events/s") for one in known if one.name == "mlp"), None)
        best = max(rate for rate, _ in found.values())
        if ours and best:
            outcome.targets.append(Target("LRAI (backlog) / MLServer", ours / best, FASTER))
    report.show(console, outcome)
    report.save([outcome], machine, results, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
