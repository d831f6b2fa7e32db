"""The pipeline as processes of its own, a load, a reader of committed answers, and the check that nothing is amiss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from schemas import framing
from streams import topics
from streams.topics import PRIORITIES

NODE = "chaos"
LONG = bool(os.environ.get("LRAI_CHAOS_LONG"))
READY_S_MAX = 60.0
TICK_S = 0.01
Source = tuple[str, int, int]
Show = Callable[[str], None]


def until(condition: Callable[[], Any], limit_s: float, what: str | Callable[[], object]) -> Any:
    """Waits for the condition; AssertionError after `limit_s`."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        said = what if isinstance(what, str) else what()
        assert time.monotonic() < end, f"not within {limit_s:.0f} s: {said}"
        time.sleep(TICK_S)
    return found


def over(seconds: float) -> Callable[[], bool]:
    """A condition that comes true after some seconds."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@dataclass(frozen=True)
class Place:
    """Where a pipeline of a test's own is."""

    kafka: str
    store: str
    prefix: str
    state: Path
    models: Path

    def environment(self, **more: object) -> dict[str, str]:
        """LRAI's settings; nothing is taken over from the caller's LRAI_*."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("LRAI_")}
        given = {**self.__dict__, "node": NODE, "partitions": 2, "log_level": "debug", **more}
        return own | {f"LRAI_{name.upper()}": str(value) for name, value in given.items()}


class Running:
    """A process of LRAI: `lrai up`, or roles of their own. `events`: its log lines as they came."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.arguments, self.environment = list(arguments), environment
        self.events: list[dict[str, Any]] = []
        self.other: list[str] = []
        self.printed: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Running:
        self.process = subprocess.Popen(
            self.arguments, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.printed.clear()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stderr, self._event), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stdout, self.printed.append), daemon=True),
        ]
        for each in self._readers:
            each.start()
        return self

    @staticmethod
    def _read(stream: Any, take: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                take(line.rstrip("\n"))

    def _event(self, line: str) -> None:
        if line.startswith("{"):
            self.events.append(json.loads(line))
        else:
            self.other.append(line)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def ready(self) -> Running:
        """Waits for the line `lrai ready`."""

        def is_ready() -> bool:
            assert self.process
            if self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.ended(5)}\n{self.tail()}")
            return "lrai ready" in self.printed

        until(is_ready, READY_S_MAX, self.tail)
        return self

    def named(self, *kinds: str, child: str = "", since: int = 0) -> list[dict[str, Any]]:
        """The events of these kinds, from the `since`-th on."""
        return [e for e in self.events[since:] if e["event"] in kinds and child in str(e.get("child", ""))]

    def died(self, child: str = "") -> str:
        """How processes ended that nobody killed, and their last words; empty when none did.

        Not those that ended themselves because librdkafka did not return from a call (docs/exactly-once.md).
        """
        ends = [
            f"{e['child']}: {e['event']} {e['exit_code']} {e['error']}"
            for e in self.named("died", "hung", child=child)
            if not e["error"].startswith("Stuck")
        ]
        return "\n".join([*ends, *self.other]) if ends else ""

    def children(self) -> dict[str, int]:
        """The pids of the children that live, by name."""
        found: dict[str, int] = {}
        for event in list(self.events):
            if event["event"] in ("started", "restarted", "stand_in"):
                found[event["child"]] = event["pid"]
            elif event["event"] in ("died", "stopped", "fenced"):
                found.pop(event["child"], None)
        return found

    def template(self) -> int | None:
        """The pid of the process that the children are forked from."""
        for each in psutil.Process(self.pid).children():
            if "workers.template" in " ".join(each.cmdline()):
                return int(each.pid)
        return None

    def kill(self) -> None:
        """SIGKILL, and the end of what it started."""
        assert self.process
        below = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(below, timeout=5)

    def stop(self, limit_s: float = 40) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.ended(limit_s)

    def ended(self, limit_s: float) -> int:
        assert self.process
        code = self.process.wait(limit_s)
        for each in self._readers:
            each.join(5)
        return code

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.kill()

    def tail(self) -> str:
        lines = [json.dumps(e) for e in self.events if e["level"] != "debug"][-25:]
        return "\n".join([*lines, *self.other[-25:]])


@contextmanager
def up(place: Place, **settings: object) -> Iterator[Running]:
    """`lrai up`, ready; killed at the end if it still runs."""
    command = [sys.executable, "-c", "from lrai import main; main()", "up"]
    running = Running(command, place.environment(**settings)).start()
    try:
        yield running.ready()
    finally:
        running.close()


@contextmanager
def alone(place: Place, *role: str, **settings: object) -> Iterator[Running]:
    """`lrai run ROLE ...`, started."""
    command = [sys.executable, "-c", "from lrai import main; main()", "run", *role]
    running = Running(command, place.environment(**settings)).start()
    try:
        yield running
    finally:
        running.close()


def request(request_id: str, model: str, value: int | None = None, **more: object) -> bytes:
    """A framed request: `value` for the models of tests.chaos.models, else 30 features."""
    if value is None:
        features = np.full((1, 30), len(request_id), "<f4")
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": features.tobytes()}
    else:
        tensor = {"name": "value", "datatype": "INT64", "shape": [1, 1], "data": np.int64(value).tobytes()}
    record: dict[str, Any] = {
        "request_id": request_id, "model": model, "version": None, "inputs": [tensor], "deadline": None,
        "subject": None, "attributes": {"sex": "f"}, "consent_id": None, "purpose": None, "parameters": {}, **more,
    }  # fmt: skip
    return framing.encode("inference_request", record)


class Client:
    """Produces requests and remembers where each one lies. `sent`: (request id, seconds) by source."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.sent: dict[Source, tuple[str, float]] = {}
        self.failed: list[str] = []
        settings = {"bootstrap.servers": place.kafka, "enable.idempotence": True, "linger.ms": 0, "log_level": 2}
        self.producer = Producer(settings)

    def send(self, priority: str, request_id: str, value: bytes) -> None:
        at = time.time()

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error:
                self.failed.append(error.str())
            else:
                self.sent[message.topic() or "", message.partition() or 0, message.offset() or 0] = (request_id, at)

        topic = topics.requests(self.place.prefix, priority)
        while True:
            try:
                self.producer.produce(topic, value, key=request_id.encode(), on_delivery=delivered)
                break
            except BufferError:
                self.producer.poll(0.05)
        self.producer.poll(0)

    def flush(self) -> None:
        assert self.producer.flush(60) == 0, "the broker did not take all requests"
        assert not self.failed, self.failed[:3]


class Load(Client):
    """A steady stream over priorities and models, with a few requests that end as rejections and dead letters."""

    def __init__(self, place: Place, rate: float, models: Sequence[tuple[str, int | None]]) -> None:
        super().__init__(place)
        self.rate, self.models = rate, models
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(max(0.0, began + self.count / self.rate - time.monotonic())):
            self._one(self.count)
            self.count += 1
        self.flush()

    def _one(self, number: int) -> None:
        model, value = self.models[number % len(self.models)]
        request_id = f"r{number}"
        framed = request(request_id, model, value)
        if number % 50 == 49:
            framed = request(request_id, "no-such-model", value)
        elif number % 50 == 24:
            framed = b"no request " + request_id.encode()
        self.send(PRIORITIES[number // len(self.models) % len(PRIORITIES)], request_id, framed)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(90)
        assert not self._thread.is_alive(), "the load did not end"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a committed reader saw."""

    source: Source
    request_id: str
    at: float
    model: str
    status: str
    code: str | None


class Reader:
    """Reads what is committed on the result topics and the dead letter topic, on a thread while it is entered."""

    def __init__(self, place: Place, priorities: Sequence[str] = PRIORITIES) -> None:
        self.place, self.priorities = place, priorities
        self.answers: list[Answer] = []
        self.sources: Counter[Source] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        consumer, _ = _committed_reader(self.place, self.priorities)
        while not self._stop.is_set():
            messages = consumer.consume(1, 0.1) or []
            messages += consumer.consume(1000, 0) if messages else []
            at = time.time()
            for message in messages:
                if not message.error():
                    self._take(_answer(message, at))
        consumer.close()

    def _take(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.sources[answer.source] += 1

    def of(self, model: str = "", since: float = 0.0) -> list[Answer]:
        """The answers of a model that came after a time."""
        return [each for each in list(self.answers) if each.at >= since and model in ("", each.model)]


def read_all(place: Place) -> list[Answer]:
    """Every committed answer and dead letter, from the first record to the end of what is committed."""
    consumer, partitions = _committed_reader(place, PRIORITIES)
    answers, missing = [], {(each.topic, each.partition) for each in partitions}
    end = time.monotonic() + 60
    while missing:
        assert time.monotonic() < end, f"the end of {missing} was not reached: something holds it up"
        for message in consumer.consume(2000, 0.2):
            error = message.error()
            if error is None:
                answers.append(_answer(message, 0.0))
            elif error.code() == KafkaError._PARTITION_EOF:
                missing.discard((message.topic() or "", message.partition() or 0))
    consumer.close()
    return answers


def _committed_reader(place: Place, priorities: Sequence[str]) -> tuple[Consumer, list[TopicPartition]]:
    settings = {"bootstrap.servers": place.kafka, "group.id": f"{place.prefix}-check", "enable.auto.commit": False}
    how = {"isolation.level": "read_committed", "enable.partition.eof": True, "log_level": 2, "fetch.wait.max.ms": 50}
    consumer = Consumer({**settings, **how, "auto.offset.reset": "error", "fetch.error.backoff.ms": 50})
    names = [*(topics.results(place.prefix, each) for each in priorities), topics.deadletter(place.prefix)]
    known = consumer.list_topics(timeout=20).topics
    partitions = [TopicPartition(name, p, 0) for name in names for p in known[name].partitions]
    consumer.assign(partitions)
    return consumer, partitions


def _answer(message: Message, at: float) -> Answer:
    headers: dict[str, bytes] = dict(message.headers() or [])  # type: ignore[arg-type]
    dead = "lrai_dlt-reason" in headers
    names = ["lrai_dlt-original-" if dead else "lrai_request-"]
    topic, partition, offset = (headers[names[0] + each] for each in ("topic", "partition", "offset"))
    source = (topic.decode(), int(partition), int(offset))
    if dead:
        return Answer(source, "", at, "", "DEAD", headers["lrai_dlt-reason"].decode())
    _, record = framing.decode(message.value() or b"")
    return Answer(source, record["request_id"], at, record["model"], record["status"], record["error_code"])
