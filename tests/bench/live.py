"""The cases that go on for a while: latency at a steady rate, and memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, TopicPartition

from streams import topics
from tests.bench import contenders as who
from tests.bench import load
from tests.bench.cases import HAND, Bench
from tests.bench.contenders import Failed, Lrai, Place, Reader
from tests.bench.report import Outcome, Target

WARM_S = 4.0  # of a live run, not counted
GROWTH_MB_MAX = 10.0
ABOVE_MODEL_MB_MAX = 200.0


def live(bench: Bench) -> Outcome:
    rounds = bench.few
    outcome = bench.outcome("live", "MLP 30-128-64-2 live, standard lane", rounds)
    seconds = 8.0 if bench.quick else 16.0
    rates = (8_000, 20_000)
    found: dict[tuple[str, int], list[Latency]] = {}
    for number in range(rounds):
        for contender in bench.takes(Lrai(), HAND):
            for rate in rates:
                place = bench.place(bench.mlp())
                load.create_topics(place.kafka, [] if contender.name == Lrai.name else [place.source])
                with bench.started(contender, place, live=True) as up:
                    if up:
                        contender.go()
                        latency = _live(place, contender.target, rate, seconds)
                        found.setdefault((contender.name, rate), []).append(latency)
                        bench.say(f"round {number + 1}/{rounds} {contender.name} {rate}/s: {latency}")
                load.delete_topics(bench.kafka, place.prefix)
    for (name, rate), latencies in found.items():
        _add_latencies(outcome, name, f"{rate:,}/s", latencies)
    for rate, goal in zip(rates, (35.0, 50.0), strict=True):
        outcome.limit("LRAI", f"{rate:,}/s p95 ms", goal)
        outcome.limit("LRAI", f"{rate:,}/s p99 ms", 100.0)
    return outcome


@dataclass
class Latency:
    """Milliseconds from produce to the reader; `late`: how far the load itself was behind at p99; `lost` results."""

    p50: float
    p95: float
    p99: float
    late: float
    lost: int

    def __str__(self) -> str:
        lost = f", {self.lost} LOST" if self.lost else ""
        return f"p50 {self.p50:.1f} p95 {self.p95:.1f} p99 {self.p99:.1f} ms (load late by {self.late:.1f} ms{lost})"


def _add_latencies(outcome: Outcome, contender: str, what: str, latencies: list[Latency]) -> None:
    for name in ("p50", "p95", "p99"):
        outcome.add(contender, f"{what} {name} ms", [getattr(latency, name) for latency in latencies], 1)
    late = max(latency.late for latency in latencies)
    lost = sum(latency.lost for latency in latencies)
    outcome.notes.append(f"{contender} at {what}: {lost} results missing; the load was late by {late:.1f} ms at p99")


def _load(place: Place, requests: load.Requests) -> list[str]:
    command = [sys.executable, "-m", "tests.bench.load", "--kafka", place.kafka, "--topic", place.source]
    command += ["--model", requests.model, "--tensor", requests.tensor, "--shape", "x".join(map(str, requests.shape))]
    return [*command, "--id-width", str(requests.id_width)]


def arrivals(
    place: Place, target: str, requests: load.Requests, phases: Sequence[tuple[float, float]]
) -> npt.NDArray[np.float64]:
    """Sends requests in phases of (rate, seconds); float64[3, n]: sent, due, and arrived or NaN (monotonic, s)."""
    n = len(load.schedule(phases))
    scratch = place.logs.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    sent_file, arrived_file = scratch / f"{place.prefix}-sent.npy", scratch / f"{place.prefix}-arrived.npy"
    reader = Reader(place.kafka, target, n, place.logs, arrived_file)
    try:
        told = [f"{rate}:{seconds}" for rate, seconds in phases]
        command = [*_load(place, requests), "--sent", str(sent_file), "--phases", *told]
        subprocess.run(command, check=True, timeout=sum(seconds for _, seconds in phases) + 120)
        reader.finish()
    finally:
        reader.stop()
    found = np.vstack([np.load(sent_file), np.load(arrived_file)])
    sent_file.unlink()
    arrived_file.unlink()
    return found


def _live(place: Place, target: str, rate: int, seconds: float) -> Latency:
    """Sends MLP requests at the rate and reads their results."""
    requests = load.mlp_requests("mlp", "features", (1, 30))
    sent, due, arrived = arrivals(place, target, requests, [(rate, seconds)])
    counted = slice(int(rate * WARM_S), None)
    taken = (arrived - sent)[counted] * 1000
    p50, p95, p99 = np.nanpercentile(taken, [50, 95, 99])
    late = np.percentile((sent - due)[counted] * 1000, 99)
    return Latency(float(p50), float(p95), float(p99), float(late), int(np.isnan(arrived).sum()))


def interactive(bench: Bench) -> Outcome:
    rounds = bench.few
    outcome = bench.outcome("interactive", "Interactive at 500/s, alone and while bulk is saturated", rounds)
    seconds, bulk_rows = (8.0, 600_000) if bench.quick else (14.0, 1_200_000)
    found: dict[str, list[Latency]] = {"alone": [], "beside bulk": []}
    bulk_requests = load.mlp_requests("mlp", "features", (1, 30))
    for number in range(rounds):
        place = bench.place(bench.mlp(), "interactive")
        for lrai in bench.takes(Lrai()):
            with bench.started(lrai, place, live=True) as up:
                if not up:
                    continue
                found["alone"].append(_live(place, lrai.target, 500, seconds))
                bench.say(f"round {number + 1}/{rounds} alone: {found['alone'][-1]}")
            load.delete_topics(bench.kafka, place.prefix)
            place = bench.place(bench.mlp(), "interactive")
            with bench.started(lrai, place, live=True):
                bulk = load.Backlog(place.kafka, topics.requests(place.prefix, "bulk"), bulk_requests.chunks(bulk_rows))
                bulk.release()
                found["beside bulk"].append(_live(place, lrai.target, 500, seconds))
                left = bulk_rows - _produced(bench.kafka, topics.results(place.prefix, "bulk"))
                bench.say(f"round {number + 1}/{rounds} beside bulk: {found['beside bulk'][-1]}, {left:,} of bulk left")
                if left <= 0:
                    outcome.notes.append("bulk was drained before the end: the figure beside bulk is too good")
            load.delete_topics(bench.kafka, place.prefix)
    for what, goal in (("alone", 25.0), ("beside bulk", 50.0)):
        if found[what]:
            _add_latencies(outcome, "LRAI", what, found[what])
        outcome.limit("LRAI", f"{what} p95 ms", goal)
    return outcome


def _produced(kafka: str, topic: str) -> int:
    """Records (and transaction markers) in a topic."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "bench-look"})
    partitions = range(load.partitions_of(kafka, topic))
    total = sum(consumer.get_watermark_offsets(TopicPartition(topic, p), 30)[1] for p in partitions)
    consumer.close()
    return total


def memory(bench: Bench) -> Outcome:
    n = 500_000 if bench.quick else 5_000_000
    outcome = bench.outcome("memory", f"Resident memory of each process of LRAI over {n:,} requests", 1)
    lrai, place = Lrai(), bench.place(bench.mlp())
    if not bench.takes(lrai):
        return outcome
    model_mb = (place.models / "mlp" / "1" / "model.onnx").stat().st_size / 2**20
    with bench.started(lrai, place) as up:
        if not up:
            return outcome
        at_fifth, at_end = _sizes_over(place, lrai, n)
    load.delete_topics(bench.kafka, place.prefix)
    sizes = {name: size / 2**20 for name, size in at_end.items()}
    growth = {name: size - at_fifth.get(name, 0) / 2**20 for name, size in sizes.items()}
    for name, size in sizes.items():
        outcome.add(name, "RSS MB at the end", [size], 1)
        outcome.add(name, "growth MB from 20 % on", [growth[name]], 1)
    outcome.targets = [
        Target("largest process, MB beside its model", max(sizes.values()) - model_mb, ABOVE_MODEL_MB_MAX, True),
        Target("largest growth from 20 % on, MB", max(growth.values()), GROWTH_MB_MAX, True),
    ]
    return outcome


def _sizes_over(place: Place, lrai: Lrai, n: int) -> tuple[dict[str, int], dict[str, int]]:
    """Resident bytes of each process at a fifth of n requests, and when the last was answered."""
    requests = load.mlp_requests("mlp", "features", (1, 30))
    reader = Reader(place.kafka, lrai.target, n, place.logs)
    feed = who.Child([*_load(place, requests), "--flood", str(n)], place.logs / "load.log")
    at_fifth: dict[str, int] = {}
    try:
        while True:
            read, end = reader.progress()
            if read >= n / 5 and not at_fifth:
                at_fifth = lrai.resident_bytes()
            if end is not None:
                break
    finally:
        feed.stop()
        reader.stop()
    if read < n:
        raise Failed(f"{read} of {n} results came")
    return at_fifth, lrai.resident_bytes()
