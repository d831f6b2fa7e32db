"""The live state from the command line: reads lrai.control to its end, and changes it."""

from __future__ import annotations

import getpass
import time
from typing import TypeVar

from confluent_kafka import Producer

from infra.commands.reading import missing_topic
from schemas.errors import BadSetting
from streams import clients, topics
from streams.admin import Admin, KafkaUnavailable
from streams.compacted import Compacted
from streams.control import Control, ControlState
from streams.log import set_level
from streams.settings import Settings

KAFKA_S_MAX = 10.0
TEXT_MAX = 1000


def read(settings: Settings) -> dict[str, Control]:
    """What lrai.control says now, by key. Raises BadSetting, KafkaUnavailable."""
    set_level("error")  # a command has its own words for what it reads
    return whole(settings, ControlState(settings, f"{settings.prefix}-cli")).state


State = TypeVar("State", bound=Compacted)


def whole(settings: Settings, state: State) -> State:
    """The state, read to its end. Raises BadSetting, KafkaUnavailable."""
    end_s = time.monotonic() + KAFKA_S_MAX

    def waits() -> None:
        if time.monotonic() > end_s:
            raise KafkaUnavailable(f"{state.topic} was not read within {KAFKA_S_MAX:.0f} s")

    try:
        _exists(settings, state.topic)
        state.to_the_end(waits)
        return state
    finally:
        state.close()


def write(settings: Settings, record: Control) -> None:
    """Writes a change and waits until Kafka has it. Raises BadSetting, KafkaUnavailable."""
    topic = _exists(settings, topics.control(settings.prefix))
    for option, text in (("--by", record.by), ("--reason", record.reason)):
        if len(text) > TEXT_MAX:
            raise BadSetting(f"{option} has {len(text)} characters; say it in {TEXT_MAX}")
        if "\0" in text:
            raise BadSetting(f"{option} has a character U+0000, which the audit store cannot keep; leave it out")
    producer = Producer({**clients.common(settings, f"{settings.prefix}-cli"), "enable.idempotence": True})
    refused: list[str] = []
    producer.produce(
        topic, record.encode(), record.key, on_delivery=lambda err, _: refused.append(err.str()) if err else None
    )
    if producer.flush(KAFKA_S_MAX) or refused:
        raise KafkaUnavailable(f"kafka did not take the change: {', '.join(refused) or 'no answer'}")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def user() -> str:
    """Who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return "unknown"


def _exists(settings: Settings, topic: str) -> str:
    if topic not in Admin(settings).existing():
        raise missing_topic(settings, topic)
    return topic
