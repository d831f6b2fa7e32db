"""A consumer of a log in memory, for tests of the window loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

TOPIC = "t"
Partition = tuple[str, int]


@dataclass(frozen=True)
class Record:
    """A record, or an error between records, as confluent-kafka hands them out."""

    where: int
    at: int
    content: bytes | None = b""
    problem: KafkaError | None = None
    name: str = TOPIC

    def error(self) -> KafkaError | None:
        return self.problem

    def topic(self) -> str:
        return self.name

    def partition(self) -> int:
        return self.where

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes | None:
        return self.content

    def key(self) -> bytes | None:
        return b"k"

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, 1000 + self.at)


@dataclass
class Log:
    """A consumer of a log in memory; `steps` run before the consume call of their number."""

    records: dict[Partition, list[Record]]
    steps: dict[int, Callable[[Log], None]] = field(default_factory=dict)
    positions: dict[Partition, int] = field(default_factory=dict)
    between: list[Record] = field(default_factory=list)
    calls: int = 0
    closed: bool = False
    member: str = "m"
    away: bool = False
    on_assign: Any = None
    on_revoke: Any = None

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke = on_assign, on_revoke
        self.steps.setdefault(1, lambda log: log.assign(*log.records))

    def assign(self, *partitions: Partition) -> None:
        self.on_assign(self, [TopicPartition(*each) for each in partitions])

    def revoke(self, *partitions: Partition) -> None:
        self.on_revoke(self, [TopicPartition(*each) for each in partitions])
        for each in partitions:
            self.positions.pop(each, None)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.positions.update({(each.topic, each.partition): each.offset for each in partitions})

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            del self.positions[each.topic, each.partition]

    def seek(self, where: TopicPartition) -> None:
        if (where.topic, where.partition) not in self.positions:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.positions[where.topic, where.partition] = where.offset

    def consume(self, most: int, wait_s: float) -> list[Record]:
        self.calls += 1
        if step := self.steps.pop(self.calls, None):
            step(self)
        found, self.between = self.between, []
        for key, start in list(self.positions.items()):
            got = [each for each in self.records[key] if each.at >= start][: most - len(found)]
            if got:
                self.positions[key] = got[-1].at + 1
            found += got
        return found

    def memberid(self) -> str:
        return self.member

    def consumer_group_metadata(self) -> str:
        return f"generation at call {self.calls}"

    def get_watermark_offsets(self, where: TopicPartition, timeout: float = 0, cached: bool = False) -> tuple[int, int]:
        records = self.records[where.topic, where.partition]
        return (records[0].at, records[-1].at + 1) if records else (0, 0)

    def list_topics(self, topic: str, timeout_s: float) -> None:
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def unsubscribe(self) -> None:
        self.member = ""

    def close(self) -> None:
        self.closed = True
