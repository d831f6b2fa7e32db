"""Tallies and complaints made by hand, produced as actors and clients do, and what the monitor made of them."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from audit.counts import Counts
from schemas import framing
from streams import topics
from streams.meters import SECONDS

AT_MS = 1_767_225_600_000
Groups = Mapping[str, Mapping[str | None, tuple[int, ...]]]
_NUMBERS = itertools.count()


def tally(
    groups: Groups, kind: str = "decisions", model: str = "net", version: str = "1", at: int = AT_MS, **more: Any
) -> dict[str, Any]:
    """`groups`: decided, favourable and, of labels, positive and true positive, by attribute and group."""
    names = ("decided", "favourable", "positive", "true_positive")
    counted = [
        {"attribute": attribute, "group": group, **dict.fromkeys(names, 0), **dict(zip(names, counts, strict=False))}
        for attribute, by_group in groups.items()
        for group, counts in by_group.items()
    ]
    requests = max((sum(c[0] for c in by_group.values()) for by_group in groups.values()), default=1)
    return {
        "id": f"work-{model}-{version}/b/0/{next(_NUMBERS)}", "kind": kind, "model": model, "version": version,
        "worker": "work-0", "priority": "standard", "at": at, "received_at": at - 5, "requests": requests,
        "outcomes": {"ok": requests}, "groups": counted, "consent_missing": 0, "histograms": [],
        "latency": np.array([requests, *[0] * len(SECONDS)], "<i4").tobytes(),
        "releases": [{"variant": None, "certificate": None, "requests": requests, "rows": requests,
                      "execution_s": requests / 1024}],
        "cpu_s": 0.0, "gpu_s": 0.0, "energy_j": 0.0, "energy_source": "estimate", "cost": 0.0, "currency": "EUR",
        "frozen": None, "ended": None, **more,
    }  # fmt: skip


def histogram(counts: list[int], feature: str = "score", edges: str = "e", missing: int = 0) -> dict[str, Any]:
    total = float(sum(counts))
    return {"feature": feature, "edges": edges, "counts": np.array(counts, "<i4").tobytes(), "missing": missing,
            "sum": total, "sum_squares": total}  # fmt: skip


class Tallies:
    """Produces in transactions, of which some are aborted after the broker has their records; counts the others."""

    def __init__(self, kafka: str, prefix: str, seed: int = 0) -> None:
        own = {"transactional.id": f"{prefix}-test", "transaction.timeout.ms": 10_000, "linger.ms": 0, "log_level": 2}
        self.producer = Producer({"bootstrap.servers": kafka, **own})
        self.producer.init_transactions(30)
        self.topic = topics.watched(prefix, topics.TALLIES)
        self.rng = random.Random(seed)
        self.counted: Counter[tuple[str, str, str | None, str]] = Counter()
        self.committed = self.aborted = 0

    def transaction(self, records: list[dict[str, Any]], abort: bool = False) -> None:
        self.producer.begin_transaction()
        for each in records:
            key = f"{each['model']}/{each['version']}"
            self.producer.produce(self.topic, framing.encode("tally", each), key)
        self.producer.flush(30)
        if abort:
            self.producer.abort_transaction(30)
            self.aborted += len(records)
            return
        self.producer.commit_transaction(30)
        self.committed += len(records)
        for each in records:
            for group in each["groups"]:
                for what in ("decided", "favourable"):
                    self.counted[each["model"], group["attribute"], group["group"], what] += group[what]

    def some(self, models: tuple[str, ...], count: int, at: int) -> list[dict[str, Any]]:
        """Windows of equal rates."""
        found = []
        for _ in range(count):
            sizes = [self.rng.randint(0, 20) for _ in range(3)]
            favourable = [sum(self.rng.random() < 0.4 for _ in range(n)) for n in sizes]
            groups = {"sex": dict(zip(("F", "M", None), zip(sizes, favourable, strict=True), strict=True))}
            found.append(tally(groups, model=self.rng.choice(models), at=at))
        return found


def kept(kafka: str, prefix: str) -> dict[str, Counts]:
    """What the monitor has on its compacted topic, by model/version."""
    return {
        key: Counts.decode(value, {})
        for key, value in read(kafka, topics.monitor(prefix)).items()
        if key != "complaints"
    }


def read(kafka: str, topic: str) -> dict[str, bytes]:
    """The newest value of each key of a topic, of committed records."""
    own = {"group.id": "test", "isolation.level": "read_committed", "enable.partition.eof": True, "log_level": 2}
    consumer = Consumer({"bootstrap.servers": kafka, "enable.auto.commit": False, "fetch.wait.max.ms": 20, **own})
    partitions = [TopicPartition(topic, p, 0) for p in consumer.list_topics(topic, 20).topics[topic].partitions]
    ends = [consumer.get_watermark_offsets(each, 20)[1] for each in partitions]  # a topic may grow without an end
    consumer.assign(partitions)
    found: dict[str, bytes] = {}
    done: set[int] = set()
    while len(done) < len(partitions):
        for message in consumer.consume(1000, 0.1):
            error = message.error()
            assert error is None or error.code() == KafkaError._PARTITION_EOF, error
            if error is None:
                found[(message.key() or b"").decode()] = message.value() or b""
            if error or message.offset() + 1 >= ends[message.partition()]:
                done.add(message.partition())
    consumer.close()
    return found


def sums(found: Mapping[str, Counts]) -> Counter[tuple[str, str, str | None, str]]:
    """As `Tallies.counted`, of what the monitor kept."""
    counted: Counter[tuple[str, str, str | None, str]] = Counter()
    for counts in found.values():
        for attribute, groups in counts.groups.items():
            for group, (decided, favourable) in groups.items():
                counted[counts.model, attribute, group, "decided"] += decided
                counted[counts.model, attribute, group, "favourable"] += favourable
        for attribute, (decided, favourable) in counts.missing.items():
            counted[counts.model, attribute, None, "decided"] += decided
            counted[counts.model, attribute, None, "favourable"] += favourable
    return counted
