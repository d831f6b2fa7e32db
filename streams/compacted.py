"""A compacted topic of one partition, read from its beginning and followed: the newest record of a key counts."""

from __future__ import annotations

import threading
from collections.abc import Callable

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from streams import clients
from streams.log import log
from streams.settings import Settings

EVERY_S = 0.25
ASK_S = 0.05
RECORDS_MAX = 1000  # taken at a time


class Compacted:
    """Follows the topic. `look` may be called from several threads; Kafka being away changes nothing."""

    def __init__(self, settings: Settings, topic: str, client_id: str) -> None:
        self.topic = topic
        own = {"group.id": client_id, "enable.auto.commit": False, "enable.partition.eof": True,
               "isolation.level": "read_committed", "auto.offset.reset": "earliest",
               "fetch.wait.max.ms": 50}  # fmt: skip
        self._consumer = Consumer({**clients.common(settings, client_id), **own})  # the group is named, never joined
        self._consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        self._at_end = False
        self._lock = threading.Lock()
        self._due_s = 0.0

    def put(self, key: str, value: bytes | None) -> None:
        """Takes a record; a null value takes its key away."""
        raise NotImplementedError

    def to_the_end(self, beat: Callable[[], None]) -> None:
        """Reads all that is there; waits for Kafka as long as it takes, and beats meanwhile."""
        while not self._at_end:
            beat()
            self._take(ASK_S)

    def look(self, now_s: float) -> None:
        """Takes what came since; asks at most every EVERY_S and never waits. `now_s`: time.monotonic()."""
        if now_s >= self._due_s and self._lock.acquire(blocking=False):
            try:
                self._due_s = now_s + EVERY_S
                self._take(0)
            finally:
                self._lock.release()

    def close(self) -> None:
        self._consumer.close()

    def _take(self, wait_s: float) -> None:
        for message in self._consumer.consume(RECORDS_MAX, wait_s):
            error = message.error()
            if error is None:
                self.put((message.key() or b"").decode(errors="replace"), message.value())
            elif error.code() == KafkaError._PARTITION_EOF:
                self._at_end = True
            else:
                log("warning", f"{self.topic} cannot be read; what it said last holds", error=error.str())
