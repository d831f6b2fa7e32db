"""The sink of every stage but the audit writer: records and offsets in one Kafka transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.errors import LraiError
from streams.log import log
from streams.loop import FENCED_CODES, Discarded, Fenced, Partition
from streams.window import Block, Outcome, Window

CALL_S = 2.0
OPEN_S_MAX = 300.0
COMMIT_S_MAX = 120.0
SAY_S = 5.0
SLICE = 256  # records between two chances for other threads
T = TypeVar("T")

# illegal generation, unknown member and the like say that the group moved on: the window belongs to another member
MOVED_ON = frozenset(
    {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS, KafkaError._STATE}
)


FINAL = FENCED_CODES | {KafkaError._FATAL}


class Overdue(LraiError):
    """A transaction took longer than transaction_timeout_ms, so the broker ended it; the process starts again."""


class KafkaSink:
    """Transactional producers that take turns. A transaction begins when the window's function has returned, never
    before: an open one hides everything behind it in a partition from those who read committed records.

    The broker writes the markers of a transaction after it has confirmed the commit; a producer that begins the next
    one before they are there is put off, and librdkafka then waits for 20 ms. So the next one is another producer's.
    The offsets of both are applied in the order of their commits (the broker keeps the later record).
    """

    patience_s = 6.0

    def __init__(self, configs: Sequence[Mapping[str, Any]], transaction_timeout_s: float) -> None:
        self.producers = [Producer(dict(each)) for each in configs]
        self.turn = 0
        self.timeout_s = transaction_timeout_s
        self.began = 0.0
        self.opened = False
        self.beat: Callable[[], None] = lambda: None
        self.calling = 0.0

    def open(self, beat: Callable[[], None]) -> None:
        """Fences and ends the transactions of a predecessor; a second call does nothing."""
        self.beat = beat
        if not self.opened:
            for _ in self.producers:
                self._until(lambda: self.producer.init_transactions(CALL_S), OPEN_S_MAX, beat)
                self.turn += 1
            self.opened = True

    @property
    def producer(self) -> Producer:
        """Whose turn it is."""
        return self.producers[self.turn % len(self.producers)]

    def positions(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> Mapping[Partition, int | None]:
        """The committed offsets of the group."""
        end = time.monotonic() + COMMIT_S_MAX
        while True:
            self.beat()
            try:
                found = consumer.committed(list(partitions), CALL_S)
                if error := next((each.error for each in found if each.error), None):
                    raise KafkaException(error)
            except KafkaException as err:  # this call's errors do not say whether they pass; most of them do
                error = err.args[0]
                if error.fatal() or error.code() in FINAL or time.monotonic() > end:
                    raise
                time.sleep(0.02)
                continue
            return {(each.topic, each.partition): each.offset if each.offset >= 0 else None for each in found}

    def write(self, member: Any, window: Window, outcome: Outcome, beat: Callable[[], None]) -> None:
        """Raises Discarded when the transaction had to be aborted, Overdue, Fenced, KafkaException."""
        offsets = [TopicPartition(each.topic, each.partition, each.stop) for each in window.ranges]
        self.began = time.monotonic()
        try:
            self.producer.begin_transaction()
            for block in outcome.blocks:
                self._produce(block)
            self._until(
                lambda: self.producer.send_offsets_to_transaction(offsets, member, CALL_S), COMMIT_S_MAX, beat
            )
            self._until(lambda: self.producer.commit_transaction(CALL_S), COMMIT_S_MAX, beat)
        except KafkaException as err:
            self._abort(err.args[0], beat, err)
        self.turn += 1

    def waits_s(self, now: float) -> float:
        """Of a call that is tried again and again, too."""
        calling = self.calling
        return now - calling if calling else 0.0

    def close(self) -> None:
        """Nothing is open between windows."""
        for each in self.producers:
            each.flush(1.0)

    def _produce(self, block: Block) -> None:
        produce: Any = self.producer.produce
        topic, partition = block.topic, block.partition
        nothing = [None] * len(block.values)
        keys, headers = block.keys or nothing, block.headers or nothing
        for start in range(0, len(block.values), SLICE):
            part = slice(start, start + SLICE)
            for value, key, header in zip(block.values[part], keys[part], headers[part], strict=True):
                try:
                    produce(topic, value, key, partition, headers=header)
                except BufferError:
                    self._wait_for_room()
                    produce(topic, value, key, partition, headers=header)

    def _wait_for_room(self) -> None:
        before = len(self.producer)
        end = time.monotonic() + self.timeout_s
        while len(self.producer) >= before and time.monotonic() < end:
            self.producer.poll(0.01)

    def _abort(self, error: KafkaError, beat: Callable[[], None], cause: KafkaException) -> None:
        if error.code() in FENCED_CODES:
            if time.monotonic() - self.began > self.timeout_s:
                raise Overdue() from cause
            raise Fenced() from cause
        if error.fatal() or not (error.txn_requires_abort() or error.code() in MOVED_ON):
            raise cause
        try:
            self._until(lambda: self.producer.abort_transaction(CALL_S), COMMIT_S_MAX, beat)
        except KafkaException as err:
            if err.args[0].code() in FENCED_CODES:
                self._abort(err.args[0], beat, err)
            raise
        raise Discarded(error.str()) from cause

    def _until(self, call: Callable[[], T], limit_s: float, beat: Callable[[], None]) -> T:
        """Calls again while the error is retriable: a timed-out commit may have happened, and the same call tells."""
        self.calling = time.monotonic()
        try:
            return self._tried(call, self.calling + limit_s, beat)
        finally:
            self.calling = 0.0

    @staticmethod
    def _tried(call: Callable[[], T], end: float, beat: Callable[[], None]) -> T:
        said = time.monotonic() + SAY_S
        while True:
            beat()
            try:
                return call()
            except KafkaException as err:
                error: KafkaError = err.args[0]
                if time.monotonic() > said:
                    said = end
                    what = {"error": error.str(), "code": error.name()}
                    log("warning", "kafka does not finish a transaction yet; trying on", **what)
                if (not error.retriable() and error.code() != KafkaError._TIMED_OUT) or time.monotonic() > end:
                    raise
                time.sleep(0.02)
