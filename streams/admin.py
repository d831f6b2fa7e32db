"""Creates and checks topics, sets first offsets, asks for lag: what is done on Kafka outside the window loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType  # type: ignore[attr-defined]

from schemas.errors import BadSetting, LraiError
from streams import clients, topics
from streams.settings import Settings

CALL_S = 10.0
ASK_S = 1.0
CREATE_S_MAX = 60.0


class KafkaUnavailable(LraiError):
    """Kafka does not answer; check the setting kafka, and that the cluster is up."""


@dataclass(frozen=True, slots=True)
class Source:
    """A group and the topic that it reads."""

    group: str
    topic: str


def coalesce_sources(settings: Settings) -> list[Source]:
    """The groups of the coalescers."""
    prefix = settings.prefix
    return [Source(_group(settings, f"coalesce-{each}"), topics.requests(prefix, each)) for each in topics.PRIORITIES]


def work_sources(settings: Settings, releases: Iterable[tuple[str, str]]) -> list[Source]:
    """The groups of the actors."""
    return [
        Source(
            _group(settings, f"work-{model}-{version}-{each}"), topics.batches(settings.prefix, model, version, each)
        )
        for model, version in releases
        for each in topics.PRIORITIES
    ]


def monitor_sources(settings: Settings) -> list[Source]:
    """What the monitor reads."""
    group = _group(settings, topics.MONITOR)
    return [Source(group, topics.watched(settings.prefix, each)) for each in (topics.TALLIES, topics.COMPLAINTS)]


def _group(settings: Settings, role: str) -> str:
    return clients.LaneIds.of(settings, role, settings.slot).group


def all_topics(settings: Settings, releases: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """The configuration of every topic, in the order of the flow."""
    prefix, large = settings.prefix, {"max.message.bytes": str(settings.record_bytes_max)}
    plain = {"retention.ms": str(settings.retention_ms), **large}
    found = {topics.requests(prefix, each): {**plain, **REQUEST_TIMES} for each in topics.PRIORITIES}
    for model, version in releases:
        found.update({topics.batches(prefix, model, version, each): plain for each in topics.PRIORITIES})
    found.update({topics.results(prefix, each): plain for each in topics.PRIORITIES})
    found[topics.decisions(prefix)] = plain
    found[topics.deadletter(prefix)] = plain
    found.update({topics.watched(prefix, each): plain for each in topics.WATCHED})
    found[topics.control(prefix)] = {"cleanup.policy": "compact", **large}
    for name in (topics.monitor(prefix), topics.scheduler(prefix)):
        found[name] = {"cleanup.policy": "compact", **COMPACTED_SOON, **large}
    return found


# it is read from its beginning at each start, and its newest segment is never compacted
COMPACTED_SOON = {"segment.bytes": str(4 * 1024 * 1024), "min.cleanable.dirty.ratio": "0.1"}
REQUEST_TIMES = {"message.timestamp.type": "LogAppendTime"}


class Admin:
    """An administrator's client. Every call raises KafkaUnavailable when Kafka does not answer in time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = AdminClient(clients.common(settings, f"{settings.prefix}-admin"))

    def existing(self, timeout_s: float = CALL_S) -> dict[str, int]:
        """How many partitions each topic has."""
        try:
            found = self.client.list_topics(timeout=timeout_s).topics
        except KafkaException as err:
            raise KafkaUnavailable(f"kafka = {self.settings.kafka!r} does not answer: {err.args[0].str()}") from err
        return {name: len(each.partitions) for name, each in found.items()}

    def ensure_topics(self, wanted: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Creates those that are missing, and waits until they can be used; returns their names. Raises BadSetting."""
        settings, existing = self.settings, self.existing()
        missing = [name for name in wanted if name not in existing]
        stamped = [name for name, config in wanted.items() if config.items() >= REQUEST_TIMES.items()]
        self._check([name for name in stamped if name in existing])
        single = {f"{settings.prefix}.{each}" for each in topics.SINGLE}
        new = [
            NewTopic(
                name,
                1 if name in single else settings.partitions,
                settings.replication,
                config=dict(wanted[name]),
            )
            for name in missing
        ]
        for name, future in (self.client.create_topics(new, request_timeout=CALL_S) if new else {}).items():
            try:
                future.result()
            except KafkaException as err:
                if err.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BadSetting(f"topic {name!r} could not be created: {err.args[0].str()}") from err
        end = time.monotonic() + CREATE_S_MAX
        while missing and not set(missing) <= self.existing().keys():
            if time.monotonic() > end:
                raise KafkaUnavailable(f"topics were created but are not there after {CREATE_S_MAX:.0f} s: {missing}")
            time.sleep(0.05)
        return missing

    def _check(self, request_topics: list[str]) -> None:
        """Request topics must be stamped by the broker: a client's clock could abort or back-date a decision."""
        if not request_topics:
            return
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in request_topics]
        for resource, future in self.client.describe_configs(resources, request_timeout=CALL_S).items():
            found = _answer(future)["message.timestamp.type"].value
            if found != REQUEST_TIMES["message.timestamp.type"]:
                raise BadSetting(
                    f"topic {resource.name!r}: message.timestamp.type = {found}; set it to LogAppendTime (kafka-configs"
                    f" --alter --topic {resource.name} --add-config message.timestamp.type=LogAppendTime)"
                )

    def set_first_offsets(self, wanted: Iterable[Source]) -> list[str]:
        """For partitions that a group never read: its first offset is the first record. Returns what was set."""
        existing, done = self.existing(), []
        asked = [each for each in wanted if each.topic in existing]
        committed = self.committed(asked)
        for source in asked:
            group = source.group
            missing = [p for p in range(existing[source.topic]) if committed.get((group, source.topic, p)) is None]
            if not missing:
                continue
            lows = self._first([TopicPartition(source.topic, p) for p in missing])
            starts = [TopicPartition(source.topic, p, lows[source.topic, p]) for p in missing]
            request = [ConsumerGroupTopicPartitions(group, starts)]
            for future in self.client.alter_consumer_group_offsets(request, request_timeout=CALL_S).values():
                try:
                    _refused(_answer(future).topic_partitions)
                except KafkaUnavailable:  # a group with members refuses: another instance may have set them meanwhile
                    there = self.committed([source])
                    if any((group, source.topic, p) not in there for p in missing):
                        raise
            done.append(f"{group}: {source.topic} {missing}")
        return done

    def committed(self, wanted: Iterable[Source]) -> dict[tuple[str, str, int], int]:
        """The committed offset by group, topic and partition, where there is one."""
        asked = list(wanted)
        if asked:
            self._wait_for_coordinator(asked[0])
        futures: list[Any] = []
        for each in asked:
            request = [ConsumerGroupTopicPartitions(each.group)]
            futures += self.client.list_consumer_group_offsets(request, request_timeout=CALL_S).values()
        return {
            (answer.group_id, part.topic, part.partition): part.offset
            for answer in map(_answer, futures)
            for part in answer.topic_partitions
            if part.offset >= 0
        }

    def _wait_for_coordinator(self, source: Source) -> None:
        """The first question makes a new cluster create its offsets topic; the administrator's client does not survive
        asking it (confluent-kafka 2.16 crashes), a consumer does."""
        consumer = Consumer({**clients.common(self.settings, "lrai-admin"), "group.id": source.group})
        try:
            self._patiently(partial(_asked, consumer, TopicPartition(source.topic, 0)))
        finally:
            consumer.close()

    def _patiently(self, call: Callable[[], Any]) -> Any:
        end = time.monotonic() + CREATE_S_MAX
        while True:
            try:
                return call()
            except KafkaUnavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def ends(self, names: Iterable[str]) -> dict[tuple[str, int], int]:
        """The offset behind the last record, by topic and partition."""
        existing = self.existing()
        wanted = [TopicPartition(name, p) for name in names if name in existing for p in range(existing[name])]
        return self._edges(wanted, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def _first(self, wanted: list[TopicPartition]) -> dict[tuple[str, int], int]:
        """The offset of the first record; a topic that was made a moment ago has no leader yet."""
        earliest = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        found: dict[tuple[str, int], int] = self._patiently(lambda: self._edges(wanted, earliest))
        return found

    def _edges(self, wanted: list[TopicPartition], which: OffsetSpec) -> dict[tuple[str, int], int]:
        if not wanted:
            return {}
        request = dict.fromkeys(wanted, which)
        answers = self.client.list_offsets(request, request_timeout=CALL_S)
        return {(part.topic, part.partition): _answer(future).offset for part, future in answers.items()}


def _asked(consumer: Consumer, partition: TopicPartition) -> None:
    try:
        answers = consumer.committed([partition], ASK_S)
    except KafkaException as err:
        raise KafkaUnavailable(f"kafka refused: {err.args[0].str()}") from err
    if error := answers[0].error:
        raise KafkaUnavailable(f"kafka refused: {error.str()}")


def _refused(partitions: Iterable[TopicPartition]) -> None:
    """A refusal comes as the error of a partition."""
    if error := next((each.error for each in partitions if each.error), None):
        raise KafkaUnavailable(f"kafka refused: {error.str()}; stop the instances of the group with --leave first")


def _answer(future: Any) -> Any:
    try:
        return future.result(CALL_S)
    except KafkaException as err:
        raise KafkaUnavailable(f"kafka refused: {err.args[0].str()}") from err
    except TimeoutError as err:
        raise KafkaUnavailable(f"kafka did not answer within {CALL_S:.0f} s") from err
