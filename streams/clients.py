"""The librdkafka settings of every client, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class LaneIds:
    """Stable over restarts: a restarted process gets its partitions back at once and ends what its predecessor left."""

    group: str
    member: str

    @property
    def transactional(self) -> tuple[str, str]:
        """The ids of the producers that take turns."""
        return f"{self.member}-a", f"{self.member}-b"

    @classmethod
    def of(cls, settings: Settings, role: str, slot: int) -> LaneIds:
        """`role`: `coalesce-<priority>`, `work-<model>-<version>-<priority>` or `audit`."""
        group = f"{settings.prefix}-{role}"
        return cls(group, f"{group}-{settings.node}-{slot}")


def common(settings: Settings, client_id: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka,
        "client.id": client_id,
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 2,  # each attempt to reconnect would be a line; the lanes say once that Kafka is away
        **settings.kafka_options,
    }


def consumer(settings: Settings, ids: LaneIds, bytes_ahead: int) -> dict[str, Any]:
    """A static member of its group that reads committed records only, and fetches so many bytes ahead."""
    return {
        **common(settings, ids.member),
        "group.id": ids.group,
        "group.instance.id": ids.member,
        "group.protocol": "classic",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": settings.session_timeout_ms,
        "heartbeat.interval.ms": settings.session_timeout_ms // 5,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",
        "allow.auto.create.topics": False,
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 20,
        "fetch.queue.backoff.ms": 2,
        "fetch.message.max.bytes": 2 * 1024 * 1024,
        "receive.message.max.bytes": max(100_000_000, settings.record_bytes_max + 1024),
        "queued.max.messages.kbytes": max(1, bytes_ahead // 1024),
    }


def producers(settings: Settings, ids: LaneIds) -> list[dict[str, Any]]:
    """Transactional."""
    return [_producer(settings, each) for each in ids.transactional]


def _producer(settings: Settings, transactional_id: str) -> dict[str, Any]:
    return {
        **common(settings, transactional_id),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": settings.transaction_timeout_ms,
        "linger.ms": 5,
        "batch.num.messages": 10_000,
        "batch.size": 1024 * 1024,
        "message.max.bytes": settings.record_bytes_max,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 128 * 1024,
        "delivery.report.only.error": True,
        "partitioner": "murmur2_random",
        "retry.backoff.ms": 20,
        "retry.backoff.max.ms": 500,
    }


def fencing_producer(settings: Settings, transactional_id: str) -> Mapping[str, Any]:
    """Ends what a dead process left open, by taking its transactional id."""
    return {
        **common(settings, f"{transactional_id}-fence"),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": settings.transaction_timeout_ms,
    }
