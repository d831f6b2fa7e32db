"""Records of a command to a topic: all of them, or an error that says how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from confluent_kafka import KafkaError, Message, Producer

from infra.commands.reading import missing_topic
from streams import clients
from streams.admin import Admin, KafkaUnavailable
from streams.settings import Settings

FLUSH_S = 30.0
POLL_S = 0.1


def produce(
    settings: Settings, topic: str, records: Iterable[tuple[str, bytes]], progress: Callable[[int], None] | None = None
) -> int:
    """Sends (key, value) pairs and waits until Kafka has them; returns how many. Raises BadSetting, KafkaUnavailable.

    `progress` is told how many were handed over.
    """
    if topic not in Admin(settings).existing():
        raise missing_topic(settings, topic)
    options = {"linger.ms": 5, "message.max.bytes": settings.record_bytes_max, "enable.idempotence": True}
    producer = Producer({**clients.common(settings, f"{settings.prefix}-cli"), **options})
    refused: list[str] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error.str())

    number = 0
    for number, (key, value) in enumerate(records, 1):
        while True:
            try:
                producer.produce(topic, value, key, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(POLL_S)
        producer.poll(0)
        if progress:
            progress(number)
    left = producer.flush(FLUSH_S)
    if left or refused:
        why = refused[0] if refused else f"no answer within {FLUSH_S:.0f} s"
        raise KafkaUnavailable(f"kafka did not take {len(refused) + left} of {number} records for {topic}: {why}")
    return number
