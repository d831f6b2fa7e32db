"""Kafka headers of requests and answers: what is passed on, where an answer goes. Pure."""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import fastavro

from schemas.errors import BadRecord
from streams.window import Headers

REPLY_TOPIC = "kafka_replyTopic"
REPLY_PARTITION = "kafka_replyPartition"
PASSED_BYTES_MAX = 8192  # of the headers that an answer repeats; with them it must still fit its topic
_PASSED = frozenset({"traceparent", "tracestate", "kafka_correlationId"})
_SCHEMA = fastavro.parse_schema(
    {
        "type": "array",
        "items": {
            "type": "record",
            "name": "Header",
            "fields": [{"name": "name", "type": "string"}, {"name": "value", "type": ["null", "bytes"]}],
        },
    }
)


class Reply(NamedTuple):
    """Where an answer goes; partition -1: its key decides."""

    topic: str
    partition: int


class ReplyTopics:
    """The allow-list of reply topics. `partitions`: how many each existing topic has; the shell keeps it fresh."""

    def __init__(self, prefix: str, patterns: Sequence[str]) -> None:
        self.prefix = prefix
        self.patterns = tuple(patterns)
        self.partitions: Mapping[str, int] = {}

    def allows(self, topic: str) -> bool:
        """On the list, and none of LRAI's own topics."""
        if topic == self.prefix or topic.startswith((self.prefix + ".", "__")):
            return False
        return any(fnmatch.fnmatchcase(topic, pattern) for pattern in self.patterns)


def is_passed(name: str) -> bool:
    """Trace, correlation and CloudEvents headers come back with the answer."""
    return name in _PASSED or name.startswith("ce_")


def header_bytes(headers: Headers) -> int:
    """About what they take in a record."""
    return sum(len(name.encode()) + len(value or b"") + 10 for name, value in headers)


def passed_on(headers: Headers) -> Headers:
    """The headers that come back with the answer. Raises BadRecord where they are too large for that."""
    found = [each for each in headers if is_passed(each[0])]
    if (size := header_bytes(found)) > PASSED_BYTES_MAX:
        text = f"the headers that come back with the answer have {size} bytes; send at most {PASSED_BYTES_MAX}"
        raise BadRecord("headers_too_large", text)
    return found


def reply_of(headers: Headers, allowed: ReplyTopics) -> Reply | None:
    """Where the request asks to be answered; None: on the result topic of its priority. Raises BadRecord."""
    asked = {name: value for name, value in headers if name in (REPLY_TOPIC, REPLY_PARTITION)}
    if REPLY_TOPIC not in asked:
        return None
    topic = (asked[REPLY_TOPIC] or b"").decode(errors="replace")
    if not allowed.allows(topic):
        raise BadRecord(
            "reply_topic_forbidden",
            f"{REPLY_TOPIC} = {topic[:250]!a}: not on the allow-list of this service (setting reply_topics)",
        )
    partitions = allowed.partitions.get(topic)
    if partitions is None:
        raise BadRecord("reply_topic_missing", f"{REPLY_TOPIC} = {topic!a}: there is no such topic; create it first")
    partition = _partition(asked.get(REPLY_PARTITION))
    if partition is not None and not 0 <= partition < partitions:
        raise BadRecord(
            "reply_partition_missing",
            f"{REPLY_PARTITION} = {partition}: topic {topic!r} has the partitions 0 to {partitions - 1}",
        )
    return Reply(topic, -1 if partition is None else partition)


def _partition(value: bytes | None) -> int | None:
    """Four bytes big-endian, as Spring writes it, or decimal digits."""
    if value is None:
        return None
    if value.isdigit():
        return int(value[:12])
    if len(value) == 4:
        return int.from_bytes(value, "big", signed=True)
    text = f"{REPLY_PARTITION} = {value[:20]!r}: send four bytes big-endian or digits"
    raise BadRecord("reply_partition_missing", text)


def source_headers(topic: bytes, partition: int, offset: int) -> Headers:
    """Which record an answer is for."""
    return [
        ("lrai_request-topic", topic),
        ("lrai_request-partition", b"%d" % partition),
        ("lrai_request-offset", b"%d" % offset),
    ]


def encode_headers(headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """Headers as one value of a column."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _SCHEMA, [{"name": name, "value": value} for name, value in headers])
    return out.getvalue()


def decode_headers(encoded: bytes) -> Headers:
    """The reverse of `encode_headers`."""
    found: Any = fastavro.schemaless_reader(io.BytesIO(encoded), _SCHEMA, None)
    return [(header["name"], header["value"]) for header in found]
