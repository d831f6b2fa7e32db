"""Reads topics from outside the pipeline: committed records, no group, nothing committed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas import framing
from schemas.errors import BadRecord, BadSetting
from schemas.results import NAME
from schemas.tensors import from_wire
from streams import clients
from streams.admin import CALL_S, Admin
from streams.settings import Settings

POLL_S = 0.1
POLL_RECORDS = 1000
SOURCE_HEADERS = ("lrai_request-topic", "lrai_request-partition", "lrai_request-offset")


class Reader:
    """Reads whole topics. `newest`: None from the first record, 0 from now on, n from about n records before the end.

    `since_ms`: instead from the first record stamped then or later, ms since 1970. `behind`: the partitions that are
    not at their end. Raises BadSetting when a topic is missing, KafkaUnavailable.
    """

    def __init__(
        self, settings: Settings, topics: Sequence[str], newest: int | None, since_ms: int | None = None
    ) -> None:
        ends = Admin(settings).ends(topics)
        for topic in topics:
            if not any(topic == each for each, _ in ends):
                raise missing_topic(settings, topic)
        # each transaction ends with a marker, which takes an offset
        back = 2 * newest + 2 if newest else 0
        starts = [
            TopicPartition(*place, 0 if newest is None else max(0, end - back)) for place, end in sorted(ends.items())
        ]
        self.consumer = _consumer(settings)
        if since_ms is not None:
            asked = [TopicPartition(*place, since_ms) for place in sorted(ends)]
            starts = _known(self.consumer.offsets_for_times(asked, timeout=CALL_S))
        self.consumer.assign(starts)
        self._unread = {(each.topic, each.partition) for each in starts}
        self.behind = set(self._unread)

    def take(self, wait_s: float = POLL_S) -> list[Message]:
        """Records that have come, at most POLL_RECORDS; waits for the first. Raises KafkaException."""
        found: list[Message] = self.consumer.consume(1, wait_s)
        found += self.consumer.consume(POLL_RECORDS, 0) if found else []
        messages = []
        for each in found:
            error, place = each.error(), (each.topic() or "", each.partition() or 0)
            if error is None:
                messages.append(each)
                self.behind.add(place)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._unread.discard(place)
                self.behind.discard(place)
            elif error.fatal() or not error.retriable():
                raise KafkaException(error)
        return messages

    def to_the_end(self) -> Iterator[Message]:
        """Every record up to the end of each partition."""
        while self._unread:
            yield from self.take()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.consumer.close()


def read_one(settings: Settings, topic: str, partition: int, offset: int) -> Message | None:
    """The record at this place; None where there is none (any more)."""
    if not 0 <= offset < Admin(settings).ends([topic]).get((topic, partition), 0):
        return None
    consumer = _consumer(settings)
    consumer.assign([TopicPartition(topic, partition, offset)])
    end = time.monotonic() + 10
    try:
        while time.monotonic() < end:
            found = consumer.poll(POLL_S)
            if found is None:
                continue
            if error := found.error():
                if error.code() == KafkaError._PARTITION_EOF:
                    return None
                raise KafkaException(error)
            return found if found.offset() == offset else None
        return None
    finally:
        consumer.close()


def _known(partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Raises KafkaException with the error of the first that has one."""
    if error := next((each.error for each in partitions if each.error), None):
        raise KafkaException(error)
    return partitions


def missing_topic(settings: Settings, topic: str) -> BadSetting:
    return BadSetting(
        f"kafka = {settings.kafka!r} has no topic {topic!r}: start `lrai up`, which creates it, or correct --prefix"
    )


def _consumer(settings: Settings) -> Consumer:
    options = {
        "group.id": f"{settings.prefix}-cli",  # asked for by the client, never joined
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 50,
        "receive.message.max.bytes": max(100_000_000, settings.record_bytes_max + 1024),
    }
    return Consumer({**clients.common(settings, f"{settings.prefix}-cli"), **options})


def decode_answer(value: bytes) -> dict[str, Any]:
    """An InferenceResult in either framing. Raises BadRecord."""
    if value[:1] == b"\0":
        value = framing.header(NAME) + value[framing.CONFLUENT_BYTES :]
    name, record = framing.decode(value)
    if name != NAME:
        raise BadRecord("unknown_schema", f"a {name} is no answer")
    return record


def source_of(message: Message) -> tuple[str, int, int] | None:
    """Topic, partition and offset of the request that this record answers."""
    headers = dict(message.headers() or [])
    values = [headers.get(name) for name in SOURCE_HEADERS]
    topic, partition, offset = [each.decode() if isinstance(each, bytes) else "" for each in values]
    return (topic, int(partition), int(offset)) if partition and offset else None


def readable(record: dict[str, Any]) -> dict[str, Any]:
    """An answer with its tensors as nested lists; numbers that JSON cannot write (NaN, infinities) become null."""
    outputs = {}
    for each in record["outputs"]:
        array = from_wire(each["datatype"], tuple(each["shape"]), each["data"])
        finite = np.isfinite(array) if array.dtype.kind == "f" else np.True_
        if not finite.all():
            array = array.astype(object)
            array[~finite] = None
        outputs[each["name"]] = array.tolist()
    return {**record, "outputs": outputs}


def line(message: Message) -> str:
    """An answer and the request that it is for, as one line of JSON."""
    try:
        record = readable(decode_answer(message.value() or b""))
    except BadRecord as err:
        record = {"undecodable": str(err)}
    source = source_of(message)
    if source:
        record["request"] = dict(zip(("topic", "partition", "offset"), source, strict=True))
    return json.dumps(record, ensure_ascii=False)


def answers(
    settings: Settings, topics: Sequence[str], model: str | None, most: int | None, follow: bool
) -> Iterator[str]:
    """Lines of answers: the newest `most` (10), or with `follow` those that come from now on, at most `most`."""
    newest = 0 if follow else most or 10
    with Reader(settings, topics, newest) as reader:
        if not follow:
            # a model's answers may lie far back: what is read is bounded, what is kept too
            found = [each for each in reader.to_the_end() if _of_model(each, model)]
            found.sort(key=lambda each: each.timestamp()[1])
            yield from map(line, found[-newest:])
            return
        written = 0
        while most is None or written < most:
            for each in [each for each in reader.take() if _of_model(each, model)][: most and most - written]:
                yield line(each)
                written += 1


def _of_model(message: Message, model: str | None) -> bool:
    if model is None:
        return True
    try:
        return bool(decode_answer(message.value() or b"")["model"] == model)
    except BadRecord:
        return False
