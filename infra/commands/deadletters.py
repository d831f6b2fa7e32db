"""`lrai deadletter`: looks at dead letters and sends them again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra.commands.reading import Reader, read_one
from schemas.errors import LraiError
from streams import clients, topics
from streams.settings import Settings
from streams.window import Headers

PREFIX = "lrai_dlt-"
REPLAYS = "lrai_dlt-replays"
FLUSH_S = 30.0
_CUT = re.compile(r"the value of \d+ bytes was cut to \d+$")


class NoReplay(LraiError):
    """The dead letter cannot be sent again."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A record of the dead letter topic; `named`: its lrai_dlt- headers without the prefix."""

    partition: int
    offset: int
    at: datetime
    key: bytes | None
    value: bytes
    headers: Headers
    named: dict[str, str]

    @classmethod
    def of(cls, message: Message) -> Letter:
        found: Any = message.headers() or []
        headers: Headers = [(name, _bytes(value)) for name, value in found]
        # LRAI's own come last, behind those that a client may have invented
        named = {
            name.removeprefix(PREFIX): (value or b"").decode(errors="backslashreplace")
            for name, value in headers
            if name.startswith(PREFIX)
        }
        at = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
        key, value = message.key(), message.value()
        return cls(
            message.partition() or 0, message.offset() or 0, at, _bytes(key), _bytes(value) or b"", headers, named
        )

    @property
    def origin(self) -> str:
        """Where the record lay, as text."""
        return "/".join(self.named.get(f"original-{part}", "?") for part in ("topic", "partition", "offset"))

    @property
    def reason(self) -> str:
        return self.named.get("reason", "")

    @property
    def replays(self) -> int:
        text = self.named.get("replays", "0")
        return int(text) if text.isdigit() else 0


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def letters(settings: Settings, reason: str | None, most: int) -> Iterator[Letter]:
    """From the first one that Kafka still has, at most so many."""
    if most < 1:
        return
    found = 0
    with Reader(settings, [topics.deadletter(settings.prefix)], None) as reader:
        for message in reader.to_the_end():
            letter = Letter.of(message)
            if reason is None or letter.reason == reason:
                yield letter
                found += 1
            if found >= most:
                return


def letter_at(settings: Settings, partition: int, offset: int) -> Letter:
    """Raises NoReplay when there is none."""
    topic = topics.deadletter(settings.prefix)
    found = read_one(settings, topic, partition, offset)
    if found is None:
        raise NoReplay(f"{topic} has no record at partition {partition}, offset {offset}; see `lrai deadletter list`")
    return Letter.of(found)


def hexdump(value: bytes) -> Iterator[str]:
    """Sixteen bytes a line.

    >>> list(hexdump(b"ab\\0"))
    ['00000000  61 62 00                                          |ab.|']
    """
    for start in range(0, len(value), 16):
        line = value[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        yield f"{start:08x}  {line.hex(' '):<48}  |{text}|"


def replay(settings: Settings, chosen: Sequence[Letter]) -> int:
    """Sends the original bytes, key and headers to the original topics. Raises NoReplay before anything is sent."""
    records = [_original(settings, each) for each in chosen]
    options = {"enable.idempotence": True, "message.max.bytes": settings.record_bytes_max}
    producer = Producer({**clients.common(settings, f"{settings.prefix}-replay"), **options})
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    for topic, partition, value, letter in records:
        headers: Any = [(name, each) for name, each in letter.headers if not name.startswith(PREFIX)]
        headers.append((REPLAYS, b"%d" % (letter.replays + 1)))
        producer.produce(topic, value, letter.key, partition, headers=headers, on_delivery=delivered)
        producer.poll(0)
    left = producer.flush(FLUSH_S)
    if failed:
        raise KafkaException(failed[0])
    if left:
        raise NoReplay(
            f"kafka = {settings.kafka!r} did not take {left} records within {FLUSH_S:.0f} s; look and repeat"
        )
    return len(records)


def _original(settings: Settings, letter: Letter) -> tuple[str, int, bytes | None, Letter]:
    """Where the record goes, and its value."""
    place = f"dead letter {letter.partition} {letter.offset}"
    topic, partition = letter.named.get("original-topic", ""), letter.named.get("original-partition", "")
    if topic not in {topics.requests(settings.prefix, each) for each in topics.PRIORITIES} or not partition.isdigit():
        raise NoReplay(f"{place}: came from {letter.origin}, which is no request topic of prefix {settings.prefix!r}")
    if _CUT.search(letter.named.get("message", "")):
        raise NoReplay(f"{place}: only the beginning of its bytes was kept; send the request itself again")
    return topic, int(partition), None if letter.reason == "empty_value" else letter.value, letter
