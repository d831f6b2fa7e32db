"""`lrai send`: the requests of a file to a request topic, and the answers to them."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra.commands.reading import Reader, decode_answer, missing_topic, readable, source_of
from infra.commands.request_files import BadFile, FileRequest
from kernels.repository import load_model
from kernels.spec import TensorSpec
from schemas import framing, requests
from schemas.errors import BadRecord, BadSetting
from schemas.tensors import DTYPES, to_wire
from streams import clients, topics
from streams.admin import Admin
from streams.settings import Settings

FIRST_MAX = 3
ANSWERS_EVERY = 200  # requests between two looks at the answers
FLUSH_S = 30.0
EARLY_MAX = 20_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sending:
    """What all requests have in common. `wait_s`: None sends only; else how long no answer may come before it ends."""

    model: str
    version: str | None
    priority: str
    deadline_ms: int | None
    wait_s: float | None


@dataclass
class Sent:
    """What came of it. `latency_s`: from produce to the reader of the answer, of those that were answered."""

    sent: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    latency_s: list[float] = field(default_factory=list)
    first: list[dict[str, Any]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return self.outcomes.total()

    @property
    def all_ok(self) -> bool:
        return self.outcomes[("OK", "")] == self.sent

    def percentile_s(self, q: float) -> float:
        return float(np.percentile(self.latency_s, q)) if self.latency_s else float("nan")


def inputs_of(settings: Settings, model: str, version: str | None, stated: Iterable[str]) -> list[TensorSpec]:
    """The model's inputs: as stated (NAME:DATATYPE[:SIZE,SIZE]), else from the repository; empty if it has no such
    model. Raises BadSetting."""
    if found := [_stated(each) for each in stated]:
        return found
    folder = settings.models / model
    versions = [each.name for each in folder.iterdir() if each.name.isdigit()] if folder.is_dir() else []
    if not versions:
        return []
    return list(load_model(settings.models, model, version or max(versions, key=int)).inputs)


def _stated(text: str) -> TensorSpec:
    name, datatype, sizes = [*text.split(":"), "", ""][:3]
    if datatype not in DTYPES or not all(size.isdigit() or not size for size in sizes.split(",")):
        raise BadSetting(f"--input {text!r}: write NAME:DATATYPE:SIZES, such as features:FP32:30")
    return TensorSpec(name, datatype, tuple(int(size) for size in sizes.split(",") if size))


class Sender:
    """Produces requests and matches answers with them by topic, partition and offset."""

    def __init__(self, settings: Settings, how: Sending) -> None:
        self.how = how
        self.settings = settings
        self.topic = topics.requests(settings.prefix, how.priority)
        if self.topic not in Admin(settings).existing():
            raise missing_topic(settings, self.topic)
        options = {"linger.ms": 5, "message.max.bytes": settings.record_bytes_max, "enable.idempotence": True}
        self.producer = Producer({**clients.common(settings, f"{settings.prefix}-send"), **options})
        self.run = secrets.token_hex(4)
        self.result = Sent()
        self.pending: dict[tuple[int, int], float] = {}
        self.early: dict[tuple[int, int], tuple[float, dict[str, Any]]] = {}
        self.failed: list[tuple[str, KafkaError]] = []

    def send(self, found: Iterable[FileRequest], progress: Progress) -> Sent:
        """Raises BadFile, KafkaException."""
        if self.how.wait_s is None:
            self._send(found, None, progress)
            return self.result
        with Reader(self.settings, [topics.results(self.settings.prefix, self.how.priority)], 0) as reader:
            self._send(found, reader, progress)
            self._wait(reader, self.how.wait_s, progress)
        return self.result

    def _send(self, found: Iterable[FileRequest], reader: Reader | None, progress: Progress) -> None:
        for request in found:
            self._produce(request)
            if self.result.sent % ANSWERS_EVERY == 0:
                self._take(reader, 0)
                progress(self.result.sent, self.result.answered)
        left = self.producer.flush(FLUSH_S)
        self._take(reader, 0)
        if left:
            raise BadSetting(f"kafka = {self.settings.kafka!r} did not take {left} requests within {FLUSH_S:.0f} s")
        progress(self.result.sent, self.result.answered)

    def _produce(self, request: FileRequest) -> None:
        record = encode(request, self.how, f"{self.run}-{self.result.sent}", time.time())
        began = time.monotonic()

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.failed.append((request.where, error))
                return
            place = (message.partition() or 0, message.offset() or 0)
            if place in self.early:
                self._answered(began, *self.early.pop(place))
            elif self.how.wait_s is not None:
                self.pending[place] = began

        try:
            self._enqueue(record, delivered)
        except KafkaException as err:
            if err.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            raise BadFile(f"{request.where}: a request of {len(record)} bytes is too large; send fewer rows") from err
        self.result.sent += 1

    def _enqueue(self, record: bytes, delivered: Callable[[KafkaError | None, Message], None]) -> None:
        while True:
            try:
                self.producer.produce(self.topic, record, on_delivery=delivered)
            except BufferError:
                self.producer.poll(0.1)
                continue
            self.producer.poll(0)
            return

    def _take(self, reader: Reader | None, wait_s: float) -> int:
        """Takes the answers that came; returns how many."""
        self.producer.poll(0)
        if self.failed:
            where, error = self.failed[0]
            raise BadFile(f"{where}: kafka refused the request: {error.str()}")
        messages = reader.take(wait_s) if reader else []
        now = time.monotonic()
        return sum(self._match(each, now) for each in messages)

    def _match(self, message: Message, now: float) -> bool:
        source = source_of(message)
        if source is None or source[0] != self.topic:
            return False
        try:
            record = decode_answer(message.value() or b"")
        except BadRecord:
            return False
        place = source[1:]
        if place in self.pending:
            self._answered(self.pending.pop(place), now, record)
        else:  # another client's, or it came before the broker's word that it has the request
            self.early[place] = (now, record)
            if len(self.early) > EARLY_MAX:
                self.early.pop(next(iter(self.early)))
        return True

    def _answered(self, began: float, at: float, record: dict[str, Any]) -> None:
        result = self.result
        result.outcomes[record["status"], record["error_code"] or ""] += 1
        result.latency_s.append(at - began)
        if len(result.first) < FIRST_MAX:
            result.first.append(readable(record))

    def _wait(self, reader: Reader, wait_s: float, progress: Progress) -> None:
        last = time.monotonic()
        while self.result.answered < self.result.sent and time.monotonic() - last < wait_s:
            if self._take(reader, 0.1):
                last = time.monotonic()
                progress(self.result.sent, self.result.answered)


def encode(request: FileRequest, how: Sending, request_id: str, now: float) -> bytes:
    """The framed record. Raises BadFile."""
    tensors = []
    for name, array in request.inputs.items():
        try:
            datatype, content = to_wire(array)
        except BadRecord as err:
            raise BadFile(f"{request.where}: input {name!r}: {err}") from err
        tensors.append({"name": name, "datatype": datatype, "shape": list(array.shape), "data": content})
    record = {
        "request_id": request_id,
        "model": how.model,
        "version": how.version,
        "inputs": tensors,
        "deadline": None if how.deadline_ms is None else int(now * 1000) + how.deadline_ms,
        "attributes": request.attributes,
        "parameters": request.parameters,
        **request.texts,
    }
    return framing.encode(requests.NAME, record)
