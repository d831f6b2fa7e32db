"""The load: requests encoded beforehand, a backlog that becomes visible at one moment, and a live stream at a rate."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from schemas import framing
from schemas.columns import Bytes, Piece, assemble, strings, varints
from schemas.columns import Texts as Column

Headers = dict[str, str | bytes | None]

PARTITIONS = 4
CHUNK = 10_000  # records encoded at a time
RUN = 500  # records in a row to one partition of a backlog, as the sticky partitioner of a busy client does
LEAD_S = 0.5  # from when all is encoded to the first record
TICK_S = 0.002  # of the live load; one partition a tick, so that its own requests to the broker stay few
DISTINCT = 2_000  # tensors; more would only fill memory
REQUEST_BYTES = 173
NOTHING_ELSE = bytes(6)  # no deadline, subject, attributes, consent, purpose, parameters
TOPIC_S_MAX = 30.0

PRODUCER: dict[str, Any] = {
    "acks": "all",
    "compression.type": "none",
    "linger.ms": 5,
    "batch.num.messages": 10_000,
    "batch.size": 1_000_000,
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 1_000_000,
    "delivery.report.only.error": True,
}
CONSUMER: dict[str, Any] = {
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 65_536,
    "fetch.queue.backoff.ms": 10,
    "enable.partition.eof": False,
}


@dataclass(frozen=True)
class Requests:
    """Requests that are alike but for id and numbers; the id is the request's number, zero-padded to `id_width`."""

    model: str
    tensor: str
    datatype: str
    shape: tuple[int, ...]
    id_width: int = 12

    def tensors(self) -> Bytes:
        """uint8[distinct, bytes of a tensor]"""
        distinct = min(DISTINCT, max(16, 50_000_000 // (4 * int(np.prod(self.shape)))))
        rng = np.random.default_rng(1)
        if self.datatype == "UINT8":
            return rng.integers(0, 256, (distinct, int(np.prod(self.shape))), np.uint8)
        return rng.standard_normal((distinct, int(np.prod(self.shape))), np.float32).view(np.uint8)

    def chunks(self, n: int, chunk: int = CHUNK) -> Iterator[list[bytes]]:
        """n framed records, a list of at most `chunk` at a time."""
        pool = self.tensors()
        chunk = max(1, min(chunk, 100_000_000 // pool.shape[1]))
        for first in range(0, n, chunk):
            seq = np.arange(first, min(n, first + chunk))
            yield self.alike(seq, pool)

    def alike(self, seq: npt.NDArray[np.int64], pool: Bytes, after_inputs: bytes = NOTHING_ELSE) -> list[bytes]:
        """The framed records of these numbers; their tensors from the pool, uint8[tensors, bytes of a tensor]."""
        whole = assemble(len(seq), self._pieces(seq, pool, after_inputs)).data.tobytes()
        width = len(whole) // len(seq)
        return [whole[at : at + width] for at in range(0, len(whole), width)]

    def _pieces(self, seq: npt.NDArray[np.int64], pool: Bytes, after_inputs: bytes) -> list[Piece]:
        one = np.ones(1, np.int64)
        shape = varints(np.array([len(self.shape), *self.shape, 0])).data.tobytes()
        return [
            framing.header("inference_request"),
            varints(one * self.id_width).data.tobytes(),
            numbers(seq, self.id_width),
            _text(self.model) + b"\0" + varints(one).data.tobytes() + _text(self.tensor) + _text(self.datatype) + shape,
            varints(one * pool.shape[1]).data.tobytes(),
            pool[seq % len(pool)],
            b"\0" + after_inputs,
        ]

    @property
    def headers(self) -> Headers | None:
        return None

    @property
    def record_bytes(self) -> int:
        return len(next(self.chunks(1))[0])


class JsonRequests(Requests):
    """The same requests for MLServer: Open Inference Protocol as JSON, the model in a header."""

    def chunks(self, n: int, chunk: int = CHUNK) -> Iterator[list[bytes]]:
        """n records."""
        pool = self.tensors().view(np.float32).tolist()
        tensor = {"name": self.tensor, "datatype": self.datatype, "shape": list(self.shape)}
        for first in range(0, n, chunk):
            each = range(first, min(n, first + chunk))
            yield [
                json.dumps(
                    {"id": f"{i:0{self.id_width}d}", "inputs": [tensor | {"data": pool[i % len(pool)]}]}
                ).encode()
                for i in each
            ]

    @property
    def headers(self) -> Headers | None:
        return {"mlserver-model": self.model.encode()}


def _text(text: str) -> bytes:
    return b"".join(piece.data.tobytes() for piece in strings(Column.of([text])))


def numbers(seq: npt.NDArray[np.int64], width: int) -> Bytes:
    """Decimal digits, uint8[n, width].

    >>> numbers(np.array([42]), 4).tobytes()
    b'0042'
    """
    places = 10 ** np.arange(width - 1, -1, -1, dtype=np.int64)
    return (seq[:, None] // places % 10 + ord("0")).astype(np.uint8)


def mlp_requests(model: str, tensor: str, shape: tuple[int, ...]) -> Requests:
    """FP32 requests whose id is as wide as makes them 173 bytes, or 12 digits where that cannot be."""
    requests = Requests(model, tensor, "FP32", shape)
    width = requests.id_width + REQUEST_BYTES - requests.record_bytes
    return Requests(model, tensor, "FP32", shape, width if 8 <= width <= 18 else 12)


AGES = ("under 18", "18-24", "25-34", "35-49", "50-64", "65 or older")
COUNTRIES = ("Chad", "Peru", "Italy", "Norway", "Germany", "Slovenia", "Argentina", "South Africa", "New Zealand")
REGIONS = ("north", "north-west", "centre", "coast", "capital and surroundings", "islands")
PURPOSES = (None, "credit", "fraud screening", "triage")


def mixed(models: Sequence[tuple[str, str, int]], n: int, seed: int = 7) -> Iterator[list[bytes]]:
    """n framed records of (model, input, features) as they come in real life: nothing but the schema is alike."""
    rng, numbers_rng = random.Random(seed), np.random.default_rng(seed)
    pool = numbers_rng.standard_normal(1_000_000, np.float32)
    later = int(time.time() * 1000) + 86_400_000
    for first in range(0, n, CHUNK):
        yield [_mixed_one(models, rng, pool, later) for _ in range(first, min(n, first + CHUNK))]


def _mixed_one(
    models: Sequence[tuple[str, str, int]], rng: random.Random, pool: npt.NDArray[np.float32], later: int
) -> bytes:
    model, tensor, width = rng.choice(models)
    rows = rng.choice((1, 1, 1, 2, 4))
    start = rng.randrange(len(pool) - rows * width)
    attributes = {"sex": rng.choice(("female", "male")), "age": rng.choice(AGES), "country": rng.choice(COUNTRIES)}
    if rng.random() < 0.5:
        attributes["region"] = rng.choice(REGIONS)
    record = {
        "request_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "model": model,
        "version": rng.choice((None, None, "1")),
        "inputs": [
            {
                "name": tensor,
                "datatype": "FP32",
                "shape": [rows, width],
                "data": pool[start : start + rows * width].tobytes(),
            }
        ],
        "deadline": later + rng.randrange(1_000_000) if rng.random() < 0.4 else None,
        "subject": f"customer-{rng.randrange(1_000_000)}" if rng.random() < 0.6 else None,
        "attributes": attributes,
        "consent_id": f"c{rng.getrandbits(40):x}" if rng.random() < 0.3 else None,
        "purpose": rng.choice(PURPOSES),
        "parameters": {},
    }
    return framing.encode("inference_request", record)


def create_topics(kafka: str, names: Sequence[str], partitions: int = PARTITIONS) -> None:
    """Creates topics that do not exist yet; a request topic stamps records as LRAI asks for."""
    admin = AdminClient({"bootstrap.servers": kafka})
    known = admin.list_topics(timeout=30).topics
    wanted = [name for name in names if name not in known]
    stamped = {"message.timestamp.type": "LogAppendTime"}
    topics = [NewTopic(name, partitions, 1, config=stamped if ".requests." in name else {}) for name in wanted]
    for future in admin.create_topics(topics).values() if topics else ():
        future.result(30)


def delete_topics(kafka: str, prefix: str) -> None:
    """Deletes every topic whose name begins with the prefix."""
    admin = AdminClient({"bootstrap.servers": kafka})
    names = [name for name in admin.list_topics(timeout=30).topics if name.startswith(prefix)]
    for future in admin.delete_topics(names).values() if names else ():
        future.result(30)


def partitions_of(kafka: str, topic: str) -> int:
    """Partitions of a topic; waits for one that was created a moment ago. Raises TimeoutError."""
    admin = AdminClient({"bootstrap.servers": kafka})
    end = time.monotonic() + TOPIC_S_MAX
    while time.monotonic() < end:
        if found := len(admin.list_topics(topic, timeout=30).topics[topic].partitions):
            return found
        time.sleep(0.05)
    raise TimeoutError(f"the topic {topic} is not there after {TOPIC_S_MAX:.0f} s")


def send(producer: Producer, topic: str, value: bytes, partition: int, headers: Headers | None = None) -> None:
    """Produces, waiting while the queue is full."""
    while True:
        try:
            return producer.produce(topic, value, partition=partition, headers=headers)
        except BufferError:
            producer.poll(0.05)


class Backlog:
    """Records in one open transaction: nobody who reads committed records sees them before `release()`.

    So a contender can be up and warm on an empty topic, and the whole backlog is there at one moment: the start.
    """

    def __init__(self, kafka: str, topic: str, chunks: Iterator[list[bytes]]) -> None:
        self.records = self.record_bytes = 0
        settings = {"transactional.id": f"bench-{uuid.uuid4().hex}", "transaction.timeout.ms": 600_000, "log_level": 3}
        self._producer = Producer({"bootstrap.servers": kafka} | PRODUCER | settings)
        partitions = partitions_of(kafka, topic)
        self._producer.init_transactions(30)
        self._producer.begin_transaction()
        for value in itertools.chain.from_iterable(chunks):
            send(self._producer, topic, value, self.records // RUN % partitions)
            self.records += 1
            self.record_bytes += len(value)
        if self._producer.flush(300):
            raise TimeoutError(f"the broker did not take the backlog for {topic} within 300 s")

    def release(self) -> float:
        """Makes the records visible. Returns time.monotonic() just before."""
        at = time.monotonic()
        self._producer.commit_transaction(60)
        return at


def flood(kafka: str, topic: str, requests: Requests, n: int) -> None:
    """Produces n records as fast as the broker takes them."""
    partitions = partitions_of(kafka, topic)
    producer = Producer({"bootstrap.servers": kafka} | PRODUCER)
    for number, value in enumerate(itertools.chain.from_iterable(requests.chunks(n))):
        send(producer, topic, value, number // RUN % partitions)
        if number % RUN == 0:
            producer.poll(0)
    producer.flush(300)


def schedule(phases: Sequence[tuple[float, float]]) -> npt.NDArray[np.float64]:
    """float64[n]: seconds from the start at which records are due, in phases of (records a second, seconds)."""
    starts = np.cumsum([0.0, *(seconds for _, seconds in phases)])
    return np.concatenate([
        start + np.arange(round(rate * seconds)) / rate
        for start, (rate, seconds) in zip(starts[:-1], phases, strict=True)
    ])  # fmt: skip


def live(kafka: str, topic: str, requests: Requests, phases: Sequence[tuple[float, float]], sent_file: str) -> None:
    """Produces on schedule and saves float64[2, n]: when each was produced, and when it was due (monotonic, s)."""
    due = schedule(phases)
    values = list(itertools.chain.from_iterable(requests.chunks(len(due))))
    start = time.monotonic() + LEAD_S
    on_schedule(kafka, start + due, [topic] * len(due), values, sent_file, requests.headers)


def on_schedule(
    kafka: str, due: npt.NDArray[np.float64], topics: Sequence[str], values: Sequence[bytes], sent_file: str,
    headers: Headers | None = None,
) -> None:  # fmt: skip
    """Produces each value to its topic when it is due (monotonic, s); saves float64[2, n]: sent, due."""
    partitions = {topic: partitions_of(kafka, topic) for topic in set(topics)}
    producer = Producer({"bootstrap.servers": kafka} | PRODUCER | {"linger.ms": 0})
    n = len(due)
    sent = np.empty(n)
    done = tick = 0
    while done < n:
        now = time.monotonic()
        until = int(np.searchsorted(due, now))
        for number in range(done, until):
            sent[number] = time.monotonic()
            send(producer, topics[number], values[number], tick % partitions[topics[number]], headers)
        done = max(done, until)
        tick += 1
        producer.poll(0)
        time.sleep(max(0.0, TICK_S - (time.monotonic() - now)))
    if left := producer.flush(60):
        raise TimeoutError(f"the broker did not take {left} of {n} requests within 60 s")
    np.save(sent_file, np.stack([sent, due]))


def main() -> None:
    """`python -m tests.bench.load`: the live load as a process of its own."""
    parser = argparse.ArgumentParser(prog="tests.bench.load")
    for name in ("kafka", "topic", "model", "tensor", "shape"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sent", default="")
    parser.add_argument("--phases", nargs="*", default=[], help="RATE:SECONDS, one after the other")
    parser.add_argument("--flood", type=int, help="so many records as fast as possible instead")
    parser.add_argument("--id-width", type=int, required=True)
    parser.add_argument("--json", action="store_true", help="for MLServer")
    given = parser.parse_args()
    shape = tuple(int(size) for size in given.shape.split("x"))
    kind = JsonRequests if given.json else Requests
    requests = kind(given.model, given.tensor, "FP32", shape, given.id_width)
    if given.flood:
        flood(given.kafka, given.topic, requests, given.flood)
        return
    phases = [(float(rate), float(seconds)) for rate, seconds in (each.split(":") for each in given.phases)]
    live(given.kafka, given.topic, requests, phases, given.sent)


if __name__ == "__main__":
    main()
