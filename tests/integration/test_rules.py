"""The rules of the window loop, one by one, on a real Kafka: a lane is driven by hand, step by step."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams import clients
from streams.admin import Admin, Source
from streams.limits import LaneLimits
from streams.loop import Discarded, Fenced, Lane
from streams.meters import LaneMeters
from streams.settings import Settings, load
from streams.transaction import KafkaSink
from streams.window import Block, Outcome, Window

PARTITIONS = 2
WAIT_S = 30.0


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.01)
    return found


class Rig:
    """A topic in, a topic out, and lanes between them that copy."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self.settings: Settings = load(kafka=kafka, prefix=prefix, node="n", session_timeout_ms=6000)
        self.source, self.target, self.group = f"{prefix}.in", f"{prefix}.out", f"{prefix}-copy"
        self.admin = AdminClient({"bootstrap.servers": kafka})
        new = [NewTopic(name, PARTITIONS, 1) for name in (self.source, self.target)]
        for future in self.admin.create_topics(new).values():
            future.result(20)
        self.lanes: list[Lane] = []

    def first_offsets(self) -> None:
        Admin(self.settings).set_first_offsets([Source(self.group, self.source)])

    def lane(self, slot: int, function: Callable[[Window, int], Outcome] | None = None) -> Lane:
        ids = clients.LaneIds(self.group, f"{self.group}-n-{slot}")
        sink = KafkaSink(clients.producers(self.settings, ids), self.settings.transaction_timeout_ms / 1000)
        lane = Lane(
            f"copy-{slot}", clients.consumer(self.settings, ids, 1024 * 1024), [self.source], function or self.copy,
            sink, LaneLimits(0.02, 1000, 1024 * 1024), LaneMeters("copy"), lambda: None, lambda: None,
        )  # fmt: skip
        self.lanes.append(lane)
        return lane

    def begin(self, lane: Lane) -> Lane:
        """What `run` does before its first window."""
        lane.sink.open(lane.beat)
        lane.consumer.subscribe([self.source], on_assign=lane._assign, on_revoke=lane._drop, on_lost=lane._drop)
        return lane

    def copy(self, window: Window, now_ms: int) -> Outcome:
        return Outcome([Block(self.target, [value or b"" for value in window.values])], {})

    def send(self, count: int, first: int = 0) -> None:
        producer = Producer({"bootstrap.servers": self.settings.kafka})
        for number in range(first, first + count):
            producer.produce(self.source, b"%d" % number, partition=number % PARTITIONS)
        assert producer.flush(20) == 0

    def window(self, lane: Lane) -> Window:
        """The next window that reaches into every partition's records."""
        found: Window = until(lane.collect, "a window")
        return found

    def copied(self, isolation: str = "read_committed") -> list[bytes]:
        """What lies on the target, to the end of what such a reader may see."""
        settings = {"bootstrap.servers": self.settings.kafka, "group.id": "check", "enable.partition.eof": True}
        consumer = Consumer({**settings, "isolation.level": isolation, "auto.offset.reset": "error"})
        consumer.assign([TopicPartition(self.target, p, 0) for p in range(PARTITIONS)])
        found: list[Message] = []
        ends = 0
        while ends < PARTITIONS:
            messages = consumer.consume(100, 0.2)
            ends += sum(1 for m in messages if m.error() and m.error().code() == KafkaError._PARTITION_EOF)
            found += [m for m in messages if not m.error()]
        consumer.close()
        return [m.value() or b"" for m in found]

    def close(self) -> None:
        for each in self.lanes:
            with suppress(KafkaException):
                each.consumer.close()


@pytest.fixture
def rig(kafka: str, prefix: str) -> Iterator[Rig]:
    made = Rig(kafka, prefix)
    yield made
    made.close()


def numbers(values: list[bytes]) -> list[int]:
    return sorted(map(int, values))


def drive(lane: Lane, condition: Callable[[], Any], what: str) -> Any:
    """Lets the lane work until the condition holds."""

    def turn() -> Any:
        lane._turn()
        return condition()

    return until(turn, what)


def test_nothing_is_open_while_the_function_runs(rig: Rig) -> None:
    """Rule 2: the transaction begins when the function has returned."""
    open_ones: list[bool] = []

    def look(window: Window, now_ms: int) -> Outcome:
        open_ones.append(len(rig.copied("read_uncommitted")) != len(rig.copied()))
        return rig.copy(window, now_ms)

    rig.first_offsets()
    rig.send(20)
    lane = rig.begin(rig.lane(0, look))
    drive(lane, lambda: numbers(rig.copied()) == list(range(20)), "all are copied")
    assert open_ones and not any(open_ones)


def test_a_successor_ends_what_was_left_open(rig: Rig) -> None:
    """Rules 1 and 2: the same ids, so what the dead process wrote is never seen, and its records come again."""
    rig.first_offsets()
    rig.send(20)
    dead = rig.begin(rig.lane(0))
    window = rig.window(dead)
    assert isinstance(dead.sink, KafkaSink)
    dead.sink.producer.begin_transaction()
    for block in dead.function(window, 0).blocks:
        dead.sink._produce(block)
    dead.sink.producer.flush(10)
    assert rig.copied("read_uncommitted") and not rig.copied()
    successor = rig.begin(rig.lane(0))
    drive(successor, lambda: numbers(rig.copied()) == list(range(20)), "the successor copies all")
    with pytest.raises(Fenced):
        dead.process(window)
    assert numbers(rig.copied()) == list(range(20))


def test_a_window_from_before_a_rebalance_is_not_written(rig: Rig) -> None:
    """Rule 3: a second member came between the first record and the commit."""
    rig.first_offsets()
    rig.send(40)
    one = rig.begin(rig.lane(0))
    window = rig.window(one)
    two, stop = rig.begin(rig.lane(1)), threading.Event()
    joins = threading.Thread(target=lambda: until(lambda: two.collect() or stop.is_set(), "a window of the second"))
    joins.start()
    try:
        # the first one's client goes along with the rebalance on its own, in the background
        until(lambda: members(rig) == 2 and described(rig).state == ConsumerGroupState.STABLE, "two members")
        with pytest.raises(Discarded):
            one.process(window)
    finally:
        stop.set()
        joins.join(WAIT_S)
    two._rewind()
    one._rewind()
    end = time.monotonic() + WAIT_S
    while numbers(rig.copied()) != list(range(40)):
        assert time.monotonic() < end, numbers(rig.copied())
        one._turn()
        two._turn()


def described(rig: Rig) -> Any:
    (future,) = rig.admin.describe_consumer_groups([rig.group]).values()
    return future.result(10)


def members(rig: Rig) -> int:
    return len(described(rig).members)


def test_a_discarded_window_is_read_again(rig: Rig) -> None:
    """Rule 4: abortable; the sink says so once, the lane goes back to where the window began."""
    rig.first_offsets()
    rig.send(30)
    lane = rig.lane(0)
    lane.sink = Stumbling(lane.sink)
    rig.begin(lane)
    drive(lane, lambda: numbers(rig.copied()) == list(range(30)), "all are copied")
    assert lane.sink.stumbled == 1
    assert lane.discards == 0


class Stumbling:
    """A sink that writes the first window, then finds that it must not stay."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.stumbled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, member: Any, window: Window, outcome: Outcome, beat: Callable[[], None]) -> None:
        if not self.stumbled:
            self.stumbled += 1
            producer = self.inner.producer
            producer.begin_transaction()
            for block in outcome.blocks:
                self.inner._produce(block)
            producer.flush(10)
            producer.abort_transaction(10)
            raise Discarded("as if the group had moved on")
        self.inner.write(member, window, outcome, beat)


def test_offsets_come_from_the_windows_own_records(rig: Rig) -> None:
    """Rules 3 and 7: what was fetched beyond the window is not committed, and ranges chain over the gaps."""
    ranges: list[tuple[int, int, int]] = []

    def note(window: Window, now_ms: int) -> Outcome:
        ranges.extend((each.partition, each.start, each.stop) for each in window.ranges)
        return rig.copy(window, now_ms)

    rig.first_offsets()
    producer = Producer({"bootstrap.servers": rig.settings.kafka, "transactional.id": f"{rig.group}-client"})
    producer.init_transactions(20)
    for number in range(10):  # each transaction ends with a marker, which takes an offset
        producer.begin_transaction()
        producer.produce(rig.source, b"%d" % number, partition=number % PARTITIONS)
        producer.abort_transaction(20) if number % 3 == 2 else producer.commit_transaction(20)
    lane = rig.begin(rig.lane(0, note))
    drive(lane, lambda: len(rig.copied()) == 7, "the committed ones are copied")
    for partition in range(PARTITIONS):
        mine = [(start, stop) for number, start, stop in ranges if number == partition]
        assert mine[0][0] == 0
        assert all(before[1] == after[0] for before, after in itertools.pairwise(mine))
        assert lane.next[rig.source, partition] == mine[-1][1]
    (future,) = rig.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(rig.group)]).values()
    committed = {each.partition: each.offset for each in future.result(10).topic_partitions}
    assert committed == {partition: lane.next[rig.source, partition] for partition in range(PARTITIONS)}


def test_a_partition_without_a_first_offset_is_not_read(rig: Rig) -> None:
    """Rule 5: never a silent guess where to begin."""
    rig.send(10)
    lane = rig.begin(rig.lane(0))
    assert until(lambda: lane.collect() or (lane.consumer.assignment() == [] and lane.consumer.memberid()), "assigned")
    assert not lane.next and not rig.copied()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_member_leaves_its_group_only_when_told(rig: Rig, leaves: bool) -> None:
    """Rule 10: a close keeps the partitions for the restart, a scale-down hands them on."""
    rig.first_offsets()
    rig.send(4)
    lane = rig.lane(0)
    lane.leaves = leaves
    stop = threading.Event()
    thread = threading.Thread(target=lane.run, args=(stop,))
    thread.start()
    until(lambda: len(rig.copied()) == 4, "all are copied")
    stop.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert members(rig) == (0 if leaves else 1)
