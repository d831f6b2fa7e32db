"""The monitor is killed, its tallies are aborted: it counts each committed one once, and freezes in time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from onnx import TensorProto

from audit.counts import DAY_MS
from infra.commands import live_state
from schemas import framing
from streams import topics
from streams.admin import Admin, all_topics, monitor_sources
from streams.control import FREEZE, UNFREEZE, Control
from streams.meters import SECONDS
from streams.settings import Settings
from tests import nets
from tests.chaos.checks import drained, quantiles
from tests.chaos.harness import LONG, Client, Place, Reader, Running, Show, alone, over, until, up
from tests.produced_tallies import AT_MS, Tallies, kept, read, sums, tally
from tests.variants import quantize
from workers.backoff import BackoffLimits

KILLS = 50 if LONG else 10
TOGETHER = 5
QUIET_S = BackoffLimits().quiet_s + 1
MODELS = ("steady", "other")


class Stream:
    """Transactions of tallies, a third of them aborted, on a thread while it is entered."""

    def __init__(self, place: Place) -> None:
        self.tallies = Tallies(place.kafka, place.prefix)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            records = self.tallies.some(MODELS, self.tallies.rng.randint(1, 5), time.time_ns() // 1_000_000)
            self.tallies.transaction(records, abort=self.tallies.rng.random() < 1 / 3)

    def __enter__(self) -> Tallies:
        self._thread.start()
        return self.tallies

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the stream did not end"


def deaths(running: Running) -> int:
    return len(running.named("died", child="-monitor-"))


def readies(running: Running) -> int:
    return len(running.named("ready", child="-monitor-"))


def kill(running: Running) -> None:
    """The monitor itself, wherever it is in its work; while the supervisor waits to start it, it is waited for."""

    def pid() -> int:
        return next((pid for name, pid in running.children().items() if "-monitor-" in name), 0)

    before = deaths(running)
    os.kill(until(pid, 30, running.tail), signal.SIGKILL)
    until(lambda: deaths(running) > before, 10, running.tail)


def test_kills_under_requests_count_what_the_store_counts(make_place: Callable[..., Place], show: Show) -> None:
    place, rng, back = make_place(), random.Random(1), list[float]()
    scored(place.models, "counted", 'freeze_on = "never"\n')
    with up(place) as running, Reader(place, ("interactive",)) as reader:
        with Unequal(place, ("counted",), 300) as load, Stream(place) as tallies:
            for number in range(KILLS):
                if number and number % TOGETHER == 0:  # a supervisor waits longer after each death that follows soon
                    until(over(QUIET_S), 2 * QUIET_S, "the monitor works for a while")
                back += killed(running, rng, number)
        assert deaths(running) == KILLS, running.tail()
        tallies.transaction(tallies.some(MODELS, 1, time.time_ns() // 1_000_000))
        drained(place, load, reader)
        until(lambda: recounted(place) == counted(place), 20, lambda: f"{recounted(place)} {counted(place)}")
        until(lambda: streamed(place) == tallies.counted, 20, lambda: differs(place, tallies))
        assert running.stop() == 0, running.tail()
    behind_the_last(place)
    tallies.transaction(tallies.some(MODELS, 5, time.time_ns() // 1_000_000))
    with alone(place, "monitor", partitions=2) as running:
        until(lambda: streamed(place) == tallies.counted, 60, lambda: differs(place, tallies))
        assert running.stop() == 0, running.tail()
    assert recounted(place) == counted(place)
    decided = sum(n for (_, what), n in recounted(place).items() if what == "decided")
    show(f"{KILLS} kills: {decided} decisions counted as SQL counts them, {tallies.committed} other tallies once, "
         f"{tallies.aborted} aborted ones not; ready again after {max(back):.1f} s at most")  # fmt: skip


def killed(running: Running, rng: random.Random, number: int) -> list[float]:
    """Kills it; the seconds until it is ready again, where it is waited for: else the next kill meets it starting."""
    until(over(rng.uniform(0, 1.0)), 5, "a moment")
    began, count = time.monotonic(), readies(running)
    kill(running)
    if number % TOGETHER in (0, 2):
        return []
    until(lambda: readies(running) > count, 60, running.tail)
    return [time.monotonic() - began]


def behind_the_last(place: Place) -> None:
    """A restart reads nothing again: the group is behind the last record, before the marker of its transaction."""
    admin = Admin(Settings(kafka=place.kafka, prefix=place.prefix))
    source = monitor_sources(admin.settings)[0]
    committed, ends = admin.committed([source]), admin.ends([source.topic])
    assert committed[source.group, source.topic, 0] == ends[source.topic, 0] - 1


def streamed(place: Place) -> Counter[tuple[str, str, str | None, str]]:
    """What the monitor counted of the tallies that no actor sent."""
    found = sums(kept(place.kafka, place.prefix))
    return Counter({key: n for key, n in found.items() if key[0] in MODELS})


def differs(place: Place, tallies: Tallies) -> str:
    found = streamed(place)
    return f"counted {found - tallies.counted} too much, {tallies.counted - found} too little"


FREEZES = 20 if LONG else 3
SCORED = """sensitive_features = ["sex"]
score = { output = "score", index = 0 }
threshold = 0.5
labels = ["no", "yes"]
favourable = "yes"
"""
RECOUNT = """select attributes ->> 'sex', count(*), count(*) filter (where decision = 'yes') from audit.decision
    where model = %s and status = 'OK' group by 1"""


def scored(models: Path, name: str, more: str = "") -> None:
    """value float32[rows, 1] -> score: the request decides what is decided about it."""
    net = nets.Builder()
    net.node("Identity", "value", out="score")
    shape = (TensorProto.FLOAT, ["rows", 1])
    path = net.save(models / name / "1" / "model.onnx", {"value": shape}, {"score": shape})
    path.with_name("model.toml").write_text(SCORED + more)


class Unequal(Client):
    """A stream of which women get the favourable decision in one of five, men in four of five."""

    def __init__(self, place: Place, models: tuple[str, ...], rate: float) -> None:
        super().__init__(place)
        self.models, self.rate, self.rng = models, rate, random.Random(5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(1 / self.rate):
            self._one(f"u{number}", self.models[number % len(self.models)])
            number += 1
        self.flush()

    def _one(self, request_id: str, model: str) -> None:
        sex = self.rng.choice(("F", "M", ""))
        score = np.float32(self.rng.random() < {"F": 0.2, "M": 0.8, "": 0.5}[sex])
        tensor = {"name": "value", "datatype": "FP32", "shape": [1, 1], "data": score.tobytes()}
        record = {
            "request_id": request_id, "model": model, "version": None, "inputs": [tensor], "deadline": None,
            "subject": None, "attributes": {"sex": sex} if sex else {}, "consent_id": None, "purpose": None,
            "parameters": {},
        }  # fmt: skip
        self.send("interactive", request_id, framing.encode("inference_request", record))

    def __enter__(self) -> Unequal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the stream did not end"


def freeze_of(place: Place, model: str) -> Control | None:
    """The freeze that holds."""
    found = read(place.kafka, topics.control(place.prefix)).get(f"freeze/{model}/1")
    record = Control.decode(found) if found else None
    return record if record and record.kind == FREEZE else None


def test_freezes_in_time_and_counts_what_the_store_counts(make_place: Callable[..., Place], show: Show) -> None:
    place, waited = make_place(), list[float]()
    scored(place.models, "freezing")
    scored(place.models, "counted", 'freeze_on = "never"\n')
    settings = Settings(kafka=place.kafka, prefix=place.prefix)
    with up(place) as running, Reader(place, ("interactive",)) as reader:
        with Unequal(place, ("freezing", "freezing", "counted"), 300) as load:
            for number in range(FREEZES):
                control = until(lambda: freeze_of(place, "freezing"), 40, running.tail)
                record = json.loads(control.evidence)
                assert (record["epoch"], record["state"], control.by) == (number, "alarm", "monitor")
                first = until(lambda c=control, r=record: refused(reader, r["at"] / 1000), 20, running.tail)
                waited.append(first - record["at"] / 1000)
                if number == 0:
                    reviewed(place, control)
                    lrai(place, "equity", "unfreeze", "freezing", "--by", "ann", "--reason", "a test")
                    continue
                ended = Control(UNFREEZE, "freezing", "1", None, "ann", "a test", live_state.now_ms(), control.id)
                live_state.write(settings, ended)
            count = readies(running)
            kill(running)
            until(lambda: readies(running) > count, 40, running.tail)
        drained(place, load, reader)
        until(lambda: recounted(place) == counted(place), 20, lambda: f"{recounted(place)} {counted(place)}")
        assert running.stop() == 0, running.tail()
    show(f"from the last decision of the evidence to the first frozen answer: {quantiles(waited)}")


def lrai(place: Place, *arguments: str) -> str:
    """The command line's answer."""
    command = [sys.executable, "-c", "from lrai import main; main()", *arguments]
    done = subprocess.run(command, env=place.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reviewed(place: Place, freeze: Control) -> None:
    """The evidence as an auditor sees it."""

    def review() -> dict[str, Any]:
        return json.loads(lrai(place, "equity", "review", "freezing", "--json"))  # type: ignore[no-any-return]

    until(lambda: review()["examples"] and review()["alerts"][1:], 30, "the store has examples and both alerts")
    found = review()
    assert (found["version"], found["frozen"]["id"], found["problem"]) == ("1", freeze.id, "")
    assert {(row["group"], row["group_state"]) for row in found["tests"]} == {("F", "alarm"), ("M", "alarm")}
    assert {row["group"] for row in found["examples"]} == {"F", "M"}
    assert {row["kind"] for row in found["alerts"]} == {"frozen", "disparity"}
    assert "FROZEN since" in lrai(place, "equity", "review", "freezing")


def refused(reader: Reader, since: float) -> float | None:
    """When the first answer came that the model is frozen, after a time."""
    return next((each.at for each in reader.of("freezing", since) if each.code == "frozen"), None)


def recounted(place: Place) -> Counter[tuple[str | None, str]]:
    """By SQL over audit.decision."""
    with psycopg.connect(place.store) as connection:
        rows = connection.execute(RECOUNT, ["counted"]).fetchall()
    return Counter(
        {(sex, what): n for sex, *both in rows for what, n in zip(("decided", "favourable"), both, strict=True)}
    )


def counted(place: Place) -> Counter[tuple[str | None, str]]:
    """By the monitor."""
    found = sums({"counted/1": kept(place.kafka, place.prefix)["counted/1"]})
    return Counter({(group, what): n for (_, _, group, what), n in found.items()})


def alerts(place: Place) -> dict[str, dict[str, Any]]:
    """One of each kind."""
    found = read(place.kafka, topics.watched(place.prefix, topics.ALERTS)).values()
    return {each["kind"]: each for each in (framing.decode(value)[1] for value in found)}


def test_a_risen_latency_forces_a_cheaper_variant_where_that_is_allowed(make_place: Callable[..., Place]) -> None:
    place = make_place("slow")
    folder = place.models / "slow" / "1"
    quantize(folder / "model.onnx", folder / "variants" / "int8" / "model.onnx")
    (folder / "model.toml").write_text('[variants]\nunder_load = ["int8"]\n')
    settings = Settings(kafka=place.kafka, prefix=place.prefix, partitions=2)
    Admin(settings).ensure_topics(all_topics(settings, [("slow", "1")]))
    usual, slow = ([100 * (number == peak) for number in range(len(SECONDS) + 1)] for peak in (3, 8))
    days = [tally({}, model="slow", at=AT_MS + day * DAY_MS, requests=100, latency=np.array(each, "<i4").tobytes())
            for day, each in enumerate([usual] * 8 + [slow] * 4)]  # fmt: skip
    Tallies(place.kafka, place.prefix).transaction(days)
    with alone(place, "monitor", partitions=2, actions_allowed='["latency"]') as running:
        alert = until(lambda: alerts(place).get("latency"), 60, running.tail)
        control = Control.decode(read(place.kafka, topics.control(place.prefix))["variant/slow/1"])
        assert (control.variant, control.by, control.id) == ("int8", "monitor", alert["id"])
        assert alert["taken"] and alert["action"].startswith("taken: int8 answers")
        kill(running)
        until(lambda: readies(running) == 2, 60, running.tail)
        assert running.stop() == 0, running.tail()
    again = Control.decode(read(place.kafka, topics.control(place.prefix))["variant/slow/1"])
    assert (again.variant, again.id) == ("int8", control.id)  # no further down the ladder after a restart
