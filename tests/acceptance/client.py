"""A client as somebody else would write it: kafka-python and the reference `avro` package, nothing of LRAI's."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import avro.io
import avro.schema

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its own use of importlib.resources
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.admin import KafkaAdminClient, NewTopic

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
PRIORITIES = ("interactive", "standard", "bulk")
Source = tuple[str, int, int]
Headers = list[tuple[str, bytes | None]]
Record = dict[str, Any]


def until(condition: Callable[[], bool], limit_s: float, what: Callable[[], object]) -> None:
    """Waits for a condition, with a bound."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.02)


@dataclass(frozen=True)
class Answer:
    """A record of a result or reply topic, or a dead letter."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def source(self) -> Source:
        named = dict(self.headers)
        start = "lrai_dlt-original-" if "lrai_dlt-reason" in named else "lrai_request-"
        topic, partition, offset = (named[start + part] or b"" for part in ("topic", "partition", "offset"))
        return topic.decode(), int(partition), int(offset)

    def record(self) -> Record:
        """The result."""
        assert self.value is not None
        assert self.value[:10] == RESULT.header
        return RESULT.decode(self.value[10:])


class Codec:
    """One schema, through the reference package."""

    def __init__(self, text: str) -> None:
        self.schema = avro.schema.parse(text)
        self.header = b"\xc3\x01" + self.schema.fingerprint("CRC-64-AVRO")

    @classmethod
    def published(cls, name: str) -> Codec:
        return cls((SCHEMAS / f"{name}.avsc").read_text())

    def encode(self, record: Record) -> bytes:
        """Without a frame."""
        out = io.BytesIO()
        avro.io.DatumWriter(self.schema).write(record, avro.io.BinaryEncoder(out))
        return out.getvalue()

    def decode(self, body: bytes) -> Record:
        found: Record = avro.io.DatumReader(self.schema).read(avro.io.BinaryDecoder(io.BytesIO(body)))
        return found


REQUEST = Codec.published("inference_request")
RESULT = Codec.published("inference_result")


def request(model: str, inputs: Sequence[Record], request_id: str = "r", **fields: Any) -> Record:
    """A request; what is not given has its default."""
    defaults: Record = {
        "version": None,
        "deadline": None,
        "subject": None,
        "attributes": {},
        "consent_id": None,
        "purpose": None,
        "parameters": {},
    }
    return {"request_id": request_id, "model": model, "inputs": list(inputs), **defaults, **fields}


def framed(record: Record) -> bytes:
    return REQUEST.header + REQUEST.encode(record)


def create_topics(kafka: str, names: Iterable[str], partitions: int) -> None:
    """Topics of the client's own."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1) for name in names])
    admin.close()


class Client:
    """Sends requests and reads what was committed."""

    def __init__(self, kafka: str, prefix: str, more_topics: Iterable[str] = ()) -> None:
        self.prefix = prefix
        self.producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5, max_request_size=8_000_000)
        self.consumer = KafkaConsumer(
            bootstrap_servers=kafka,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
        )
        names = [f"{prefix}.results.{each}" for each in PRIORITIES] + [f"{prefix}.deadletter", *more_topics]
        parts = [TopicPartition(name, p) for name in names for p in self.consumer.partitions_for_topic(name) or ()]
        self.consumer.assign(parts)
        self.consumer.seek_to_beginning(*parts)
        self.answers: dict[Source, list[Answer]] = {}

    def send(
        self, values: Sequence[bytes | None], priority: str = "standard", headers: Sequence[Headers] | None = None
    ) -> list[Source]:
        """Produces them under the keys k0, k1, ...; returns where they lie."""
        topic = f"{self.prefix}.requests.{priority}"
        futures = [
            self.producer.send(topic, value, key=b"k%d" % i, headers=headers[i] if headers else [])
            for i, value in enumerate(values)
        ]
        self.producer.flush(30)
        found = [future.get(30) for future in futures]
        return [(each.topic, each.partition, each.offset) for each in found]

    def wait(self, sources: Sequence[Source], limit_s: float = 30) -> list[Answer]:
        """The one answer (or dead letter) of each, read until all are there."""

        def missing() -> list[Source]:
            return [source for source in sources if source not in self.answers]

        end = time.monotonic() + limit_s
        while missing():
            assert time.monotonic() < end, f"{len(missing())} of {len(sources)} lack an answer, as {missing()[:3]}"
            self.read(200)
        found = [self.answers[source] for source in sources]
        assert {len(each) for each in found} <= {1}
        return [each[0] for each in found]

    def read(self, timeout_ms: int) -> int:
        """What has come; how many records."""
        batches = self.consumer.poll(timeout_ms, max_records=5000)
        for records in batches.values():
            for each in records:
                answer = Answer(each.topic, each.partition, each.key, each.value, list(each.headers))
                self.answers.setdefault(answer.source, []).append(answer)
        return sum(map(len, batches.values()))

    def ask(self, records: Sequence[Record], priority: str = "standard", **options: Any) -> list[Record]:
        """Sends requests and returns their results."""
        return [each.record() for each in self.wait(self.send([framed(each) for each in records], priority), **options)]

    def close(self) -> None:
        self.producer.close()
        self.consumer.close()
