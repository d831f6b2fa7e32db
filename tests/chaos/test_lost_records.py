"""Records that were deleted before they were read: that partition stops with an alert, the others go on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from audit.verify import verify
from streams import topics
from tests.chaos.harness import Client, Place, Reader, request, until, up

COUNT = 40
DELETED = 15


def send(client: Client, name: str, count: int) -> None:
    for number in range(count):
        client.send("standard", f"{name}{number}", request(f"{name}{number}", "steady"))
    client.flush()


def test_deleted_records_stop_their_partition(make_place: Callable[..., Place]) -> None:
    place = make_place("steady")
    topic, client = topics.requests(place.prefix, "standard"), Client(place)
    with up(place) as running, Reader(place) as reader:
        send(client, "a", COUNT)
        until(lambda: len(reader.sources) == COUNT, 30, running.tail)
        assert running.stop() == 0
    first = max(offset for _, partition, offset in client.sent if partition == 0) + 1
    send(client, "b", COUNT)
    admin = AdminClient({"bootstrap.servers": place.kafka})
    lost_to = first + DELETED
    admin.delete_records([TopicPartition(topic, 0, lost_to)])[TopicPartition(topic, 0)].result(20)
    alive = {source for source in client.sent if source[1] == 1}
    stopped = "records were deleted before they were read; the partition is stopped"
    with up(place, session_timeout_ms=6000) as running, Reader(place) as reader:
        alert = until(lambda: running.named(stopped), 30, running.tail)[0]
        until(lambda: alive <= reader.sources.keys(), 30, running.tail)
        assert (alert["partition"], alert["lost_from"], alert["lost_to"]) == (0, first, lost_to)
        assert max(offset for _, partition, offset in reader.sources if partition == 0) == first - 1
        assert len(running.named(stopped)) == 1
        assert running.stop() == 0
    # what the alert says to do: from then on it goes on, and the audit record keeps the hole
    wanted = [TopicPartition(topic, 0, lost_to)]
    group = f"{place.prefix}-coalesce-standard"

    def moved() -> bool:
        """Kafka refuses while the group waits for its member to return, which is for the session timeout."""
        (future,) = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, wanted)]).values()
        return not any(each.error for each in future.result(10).topic_partitions)

    until(moved, 20, "kafka does not set the offset of the group")
    with up(place) as running, Reader(place) as reader:
        until(lambda: len(reader.sources) == 2 * COUNT - DELETED, 30, running.tail)
        assert running.stop() == 0
    problems = verify(place.store, datetime.now(UTC), 0.0).problems
    assert [(each.kind, each.partition, each.first, each.following) for each in problems] == [
        ("hole", 0, first, lost_to)
    ]
