"""The window loop on a log in memory: nothing is lost or written twice, whatever the group and the sink do."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition

from streams.limits import LaneLimits
from streams.loop import DISCARDS_MAX, SLICE, Discarded, Fenced, Lane
from streams.meters import LaneMeters
from streams.window import Block, Outcome, Range, Window
from tests.unit.memory_log import TOPIC, Log, Partition, Record


@dataclass
class Written:
    """A sink that keeps what was written; `fails` are raised in turn before it works again."""

    committed: dict[Partition, int | None]
    fails: list[Exception] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    members: list[Any] = field(default_factory=list)
    closed: bool = False
    waited_s: float = 0.0
    patience_s: float = 6.0

    def open(self, beat: Callable[[], None]) -> None:
        beat()

    def positions(self, consumer: Any, partitions: Sequence[TopicPartition]) -> Mapping[Partition, int | None]:
        return {(each.topic, each.partition): self.committed[each.topic, each.partition] for each in partitions}

    def write(self, member: Any, window: Window, outcome: Outcome, beat: Callable[[], None]) -> None:
        if self.fails:
            raise self.fails.pop(0)
        assert outcome.blocks[0].values == window.values
        self.members.append(member)
        self.windows.append(window)
        for each in window.ranges:
            assert self.committed[each.topic, each.partition] == each.start  # ranges chain without a hole
            self.committed[each.topic, each.partition] = each.stop

    def waits_s(self, now: float) -> float:
        return self.waited_s

    def close(self) -> None:
        self.closed = True

    @property
    def places(self) -> list[tuple[int, int]]:
        return [place for w in self.windows for place in zip(w.partition.tolist(), w.offset.tolist(), strict=True)]


def log_of(*offsets: Sequence[int]) -> Log:
    """One partition each."""
    return Log({(TOPIC, p): [Record(p, at, b"%d" % at) for at in each] for p, each in enumerate(offsets)})


def echo(window: Window, now_ms: int) -> Outcome:
    return Outcome([Block("out", window.values)], {"n": len(window.values)})  # type: ignore[arg-type]


def run(log: Log, sink: Written, limits: LaneLimits | None = None, until: int = 40, **options: Any) -> Lane:
    """A lane until that many consume calls."""
    stop = Event()
    log.steps[until] = lambda _: stop.set()
    lane = Lane(
        name="test",
        config={},
        topics=sorted({topic for topic, _ in log.records}),
        function=echo,
        sink=sink,
        limits=limits or LaneLimits(0.0, 1000, 10_000),
        meters=LaneMeters("test"),
        beat=lambda: None,
        assigned=lambda: None,
        consumer=log,  # type: ignore[arg-type]
        **options,
    )
    lane.run(stop)
    assert log.closed
    assert sink.closed
    return lane


def start(log: Log, at: int | None = 0) -> Written:
    return Written(dict.fromkeys(log.records, at))


def all_places(log: Log) -> list[tuple[int, int]]:
    return sorted((each.where, each.at) for records in log.records.values() for each in records)


def test_windows_cover_everything_once() -> None:
    log = log_of(range(50), range(7))
    sink = start(log)
    run(log, sink)
    assert sorted(sink.places) == all_places(log)
    assert sink.windows[0].values[0] == b"0"
    assert sink.windows[0].timestamp.tolist()[0] == 1000


def test_gaps_of_transactions_are_inside_the_ranges() -> None:
    log = log_of([2, 3, 7, 20])
    sink = start(log)
    run(log, sink)
    assert [each for w in sink.windows for each in w.ranges] == [Range(TOPIC, 0, 0, 21, 4)]


def test_a_window_is_bounded_in_records_and_bytes() -> None:
    log = log_of(range(100))
    sink = start(log)
    run(log, sink, LaneLimits(0.0, 30, 10_000))
    assert [len(w.values) for w in sink.windows] == [30, 30, 30, 10]
    wide = Log({(TOPIC, 0): [Record(0, at, b"x" * 100) for at in range(20)]})
    sink = start(wide)
    run(wide, sink, LaneLimits(0.0, 1000, 450), until=80)
    assert max(len(w.values) for w in sink.windows) == 5
    assert sorted(sink.places) == all_places(wide)
    assert SLICE < 1000


def test_an_empty_value_counts_as_nothing() -> None:
    log = Log({(TOPIC, 0): [Record(0, 0, None), Record(0, 1, b"")]})
    sink = start(log)
    run(log, sink)
    assert [value for w in sink.windows for value in w.values] == [None, b""]


def test_a_discarded_window_is_read_again() -> None:
    log = log_of(range(10), range(5))
    sink = start(log)
    sink.fails = [Discarded("aborted")] * 3
    run(log, sink)
    assert sorted(sink.places) == all_places(log)


def test_many_discards_in_a_row_end_the_lane() -> None:
    log = log_of(range(3))
    sink = start(log)
    sink.fails = [Discarded("aborted")] * (DISCARDS_MAX + 1)
    with pytest.raises(Discarded):
        run(log, sink, until=1000)
    assert log.closed
    assert sink.closed


def test_another_writer_says_where_to_go_on() -> None:
    log = log_of(range(10))
    sink = start(log)
    sink.fails = [Discarded("a second writer", {(TOPIC, 0): 6, (TOPIC, 9): 3})]
    sink.committed[TOPIC, 0] = 0

    def taken(_: Log) -> None:
        sink.committed[TOPIC, 0] = 6

    log.steps[4] = taken
    run(log, sink)
    assert sink.places == [(0, at) for at in range(6, 10)]


def test_revoked_in_the_middle_of_a_window() -> None:
    """What was collected of the partition is dropped; when it comes back it is read again from what is committed."""
    log = log_of(range(600), range(600))
    sink = start(log)
    log.steps[3] = lambda it: it.revoke((TOPIC, 0))
    log.steps[9] = lambda it: it.assign((TOPIC, 0))
    run(log, sink, LaneLimits(0.0, 900, 100_000))
    assert sorted(sink.places) == all_places(log)


def test_revoked_whole_while_the_window_is_open() -> None:
    log = log_of(range(3))
    sink = start(log)
    log.steps[2] = lambda it: it.revoke((TOPIC, 0))
    log.steps[9] = lambda it: it.assign((TOPIC, 0))
    run(log, sink, LaneLimits(0.002, 900, 100_000))
    assert sorted(sink.places) == all_places(log)


def test_a_window_of_revoked_partitions_alone_is_none() -> None:
    log = log_of(range(3))
    sink = start(log)
    log.steps[2] = lambda it: it.revoke((TOPIC, 0))
    run(log, sink)
    assert sink.windows == []


def test_the_generation_is_that_of_the_first_record() -> None:
    log = log_of(range(10))
    sink = start(log)
    run(log, sink)
    assert sink.members == ["generation at call 1"]


def test_a_member_that_was_put_out_writes_nothing() -> None:
    log = log_of(range(3))
    log.member = ""
    sink = start(log)
    with pytest.raises(Discarded, match="put this member out"):
        run(log, sink, until=1000)
    assert sink.windows == []


def test_a_partition_without_a_first_offset_is_not_read() -> None:
    log = log_of(range(3), range(3))
    sink = start(log)
    sink.committed[TOPIC, 0] = None
    run(log, sink)
    assert sink.places == [(1, at) for at in range(3)]


def test_records_that_come_twice_are_read_again_from_the_start() -> None:
    log = log_of(range(6))
    sink = start(log)

    def back(it: Log) -> None:
        it.positions[TOPIC, 0] = 0

    log.steps[2] = back
    run(log, sink)
    assert sink.places == [(0, at) for at in range(6)]


@pytest.mark.parametrize("code", [KafkaError.FENCED_INSTANCE_ID, KafkaError._FENCED])
def test_fenced(code: int) -> None:
    log = log_of(range(3))
    log.between = [Record(0, -1, None, KafkaError(code))]
    with pytest.raises(Fenced, match="--slot"):
        run(log, start(log))
    assert Fenced.exit_code == 75


@pytest.mark.parametrize(
    "code", [KafkaError._TRANSPORT, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._AUTO_OFFSET_RESET]
)
def test_errors_between_records_lose_none(code: int) -> None:
    log = log_of(range(5))
    log.between = [Record(0, -1, None, KafkaError(code))]
    sink = start(log)
    run(log, sink)
    assert sink.places == [(0, at) for at in range(5)]


def test_a_lane_that_leaves_tells_the_group() -> None:
    log = log_of(range(3))
    run(log, start(log), leaves=True)
    assert log.member == ""
    stays = log_of(range(3))
    run(stays, start(stays))
    assert stays.member == "m"


def test_several_topics_have_ranges_of_their_own() -> None:
    log = Log({("a", 0): [Record(0, at, name="a") for at in range(4)], ("b", 0): [Record(0, 9, name="b")]})
    sink = start(log)
    run(log, sink)
    assert sorted(each for w in sink.windows for each in w.ranges) == [Range("a", 0, 0, 4, 4), Range("b", 0, 0, 10, 1)]


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_trouble_loses_and_doubles_nothing(seed: int) -> None:
    """Rebalances and aborted windows at random; the sink checks that its ranges chain."""
    rnd = random.Random(seed)
    log = log_of(*([at for at in range(200) if rnd.random() < 0.9] for _ in range(3)))
    sink = start(log)

    def trouble(it: Log) -> None:
        here = (TOPIC, rnd.randrange(3))
        if here in it.positions:
            it.revoke(here)
        elif rnd.random() < 0.7:
            it.assign(here)

    def everything_back(it: Log) -> None:
        it.assign(*(each for each in it.records if each not in it.positions))

    log.steps = {call: trouble for call in range(2, 200) if rnd.random() < 0.3}
    log.steps[1] = lambda it: it.assign(*it.records)
    log.steps[200] = everything_back
    sink.fails = [Discarded("aborted") for _ in range(5)]
    run(log, sink, LaneLimits(0.0, rnd.choice((5, 40, 1000)), 10_000), until=800)
    assert sorted(sink.places) == all_places(log)


@pytest.mark.parametrize(
    ("waited_s", "away", "stuck", "beats"), [(0.0, False, False, 0), (3.0, False, False, 1), (60.0, True, False, 1),
                                             (60.0, False, True, 1)],
)  # fmt: skip
def test_a_lane_that_waits_for_kafka_lives_unless_kafka_answers(
    waited_s: float, away: bool, stuck: bool, beats: int
) -> None:
    log = log_of([0])
    lane = run(log, start(log))
    lane.sink.waited_s, log.away = waited_s, away  # type: ignore[attr-defined]
    beaten: list[int] = []
    lane.beat = lambda: beaten.append(1)
    assert lane.stuck(0.0) == stuck
    assert len(beaten) == beats
