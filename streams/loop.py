"""The window loop: collect a window -> pure function -> write what came out and the offsets, all or nothing.

Every stage runs this loop; a `Sink` is where a stage writes. All that makes LRAI exactly-once is here and in the sinks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Event
from typing import Any, Protocol

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import LraiError
from streams.limits import LaneLimits, Seen, Steering
from streams.log import log
from streams.meters import LaneMeters
from streams.window import Outcome, Range, Window

IDLE_S = 0.2
SLICE = 500  # records taken at a time, so that the bytes of a window are bounded
DISCARDS_MAX = 20
DISCARD_S = 0.005
DISCARD_S_MAX = 0.5
ADMIN_S = 5.0
ASK_S = 1.0
LEAVE_S_MAX = 5.0
TROUBLE_S = 60.0
BACK_S = 1.0  # what was fetched before is still handed out after the loss
Partition = tuple[str, int]
Function = Callable[[Window, int], Outcome]


class Discarded(LraiError):
    """The window was not written; its records are read again."""

    def __init__(self, message: str, positions: Mapping[Partition, int | None] | None = None) -> None:
        super().__init__(message)
        self.positions = positions or {}
        """where to go on, if not at the beginning of the window"""


class Fenced(LraiError):
    """Another process runs under the same id; give each instance its own --slot."""

    exit_code = 75


class Rejoins(LraiError):
    """The group took this member for its successor while Kafka was away; the process starts again."""


class Sink(Protocol):
    """Where a stage writes what its windows became, together with the offsets.

    `patience_s`: how long a call to Kafka or to the store may last while Kafka answers.
    """

    patience_s: float

    def open(self, beat: Callable[[], None]) -> None:
        """Ends what a predecessor left open."""

    def positions(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> Mapping[Partition, int | None]:
        """The offset to go on at; None where the stage never committed one."""
        ...

    def write(self, member: Any, window: Window, outcome: Outcome, beat: Callable[[], None]) -> None:
        """Writes all of it or nothing; `member`: the metadata of the group when the window's first record was taken.

        Raises Discarded, Fenced, or KafkaException when it cannot go on.
        """

    def waits_s(self, now: float) -> float:
        """Seconds that a call to Kafka or to the store lasts already; 0 when there is none."""
        ...

    def close(self) -> None: ...


class Lane:
    """One consumer, one sink, one window at a time.

    `beat` is called at least every second or so while the lane is alive; `assigned` when it first owns its partitions.
    `leaves`: whether the stop is a scale-down, so that the others get its partitions at once. `idle` is called when
    nothing came for IDLE_S.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        topics: Sequence[str],
        function: Function,
        sink: Sink,
        limits: LaneLimits,
        meters: LaneMeters,
        beat: Callable[[], None],
        assigned: Callable[[], None],
        leaves: bool = False,
        consumer: Consumer | None = None,
        idle: Callable[[], None] = lambda: None,
        steering: Steering | None = None,
    ) -> None:
        self.name = name
        self.topics = list(topics)
        self.function = function
        self.sink = sink
        self.limits = limits
        self.meters = meters
        self.beat = beat
        self.assigned = assigned
        self.leaves = leaves
        self.idle = idle
        self.steering = steering
        self.next: dict[Partition, int] = {}
        self.collected: list[Message] = []
        self.member: Any = None
        self.discards = 0
        self.away = False
        self.trouble_at = -TROUBLE_S
        self.lag_at = 0.0
        self.consumer = consumer or Consumer({**config, "error_cb": self._error})

    def run(self, stop: Event) -> None:
        """Until `stop`; then the window in hand is finished. Raises Fenced, IntegrityError, KafkaException."""
        self.sink.open(self.beat)
        self.consumer.subscribe(self.topics, on_assign=self._assign, on_revoke=self._drop, on_lost=self._drop)
        try:
            while not stop.is_set():
                self._turn()
            if self.leaves:
                self.leave()
        except KafkaException as err:  # a consumer that was fenced says so as a fatal error of whatever is called next
            if err.args[0].code() in FENCED_CODES:
                raise self._fenced() from err
            raise
        finally:
            for each in (self.consumer, self.sink):
                with suppress(KafkaException):  # a fatal error is told again; what ended the lane is known already
                    each.close()

    def _turn(self) -> None:
        self.beat()
        if self.steering:
            self.limits = self.steering.limits()
        try:
            if window := self.collect():
                self.process(window)
            else:
                self.idle()
        except Discarded as err:
            self._discard(err)

    def leave(self) -> None:
        """For scale-down: the group hands the partitions on at once; a mere close waits for the member to return."""
        self.consumer.unsubscribe()
        end = time.monotonic() + LEAVE_S_MAX
        # the revocation runs in consume; a close before the group is left would end a static member without leaving
        while self.consumer.memberid() and time.monotonic() < end:
            self.beat()
            self.consumer.consume(1, 0.05)

    def collect(self) -> Window | None:
        """The next window: open from its first record for `window_s`, or until it is full."""
        limits = self.limits
        if limits.rest_s:
            time.sleep(limits.rest_s)
        self.collected = self._take(1, IDLE_S)
        if not self.collected:
            self._measure_lag()
            return None
        if not self.consumer.memberid():
            raise Discarded("the group has put this member out; its records are read again by whoever has them now")
        self.member = self.consumer.consumer_group_metadata()
        closes = time.monotonic() + limits.window_s
        size = len(self.collected[0].value() or b"")
        wait = 0.0
        while len(self.collected) < limits.records_max and size < limits.bytes_max:
            mean = max(1, size // max(1, len(self.collected)))  # none where all of it was revoked meanwhile
            # no more than what is there, as the first records say little about the size of the next ones
            few = min(SLICE, max(1, len(self.collected)), limits.records_max - len(self.collected))
            most = max(1, min(few, (limits.bytes_max - size) // mean))
            got = self._take(most, wait)
            self.collected += got
            size += sum(map(len, (message.value() or b"" for message in got)))
            wait = closes - time.monotonic()
            if len(got) == most:
                wait = 0.0
            elif wait <= 0:
                break
        return self._window() if self.collected else None

    def _take(self, most: int, wait_s: float) -> list[Message]:
        """Records, without the errors that come between them. Rebalance callbacks run in here."""
        messages: list[Message] = self.consumer.consume(most, wait_s)
        if any(message.error() for message in messages):
            for message in messages:
                if error := message.error():
                    self._record_error(message, error)
            messages = [message for message in messages if not message.error()]
        if messages and self.away and time.monotonic() - self.trouble_at > BACK_S:
            self.away = False
            log("info", "kafka is back", lane=self.name)
        return messages

    def _window(self) -> Window | None:
        messages = [each for each in self.collected if (each.topic(), each.partition()) in self.next]
        self.collected = []
        if not messages:
            return None
        if len(self.topics) == 1:
            topics = self.topics * len(messages)
        else:
            topics = [message.topic() or "" for message in messages]
        partition = np.array([message.partition() for message in messages], np.int64)
        offset = np.array([message.offset() for message in messages], np.int64)
        window = Window(
            topics=topics,
            values=[message.value() for message in messages],
            keys=[message.key() for message in messages],
            headers=[message.headers() for message in messages],  # type: ignore[misc]  # values are bytes
            partition=partition,
            offset=offset,
            timestamp=np.array([message.timestamp()[1] for message in messages], np.int64),
            ranges=list(self._ranges(topics, partition, offset)),
        )
        return window

    def _ranges(self, topics: list[str], partition: Any, offset: Any) -> Iterable[Range]:
        """What the window consumed of each partition; offsets must rise from where the last window ended."""
        several = len(self.topics) > 1
        for topic, number in sorted(self.next):
            chosen = partition == number
            if several:
                chosen &= np.fromiter((each == topic for each in topics), bool, len(topics))
            mine = offset[chosen]
            if not len(mine):
                continue
            start = self.next[topic, number]
            if int(mine[0]) < start or (len(mine) > 1 and int(np.diff(mine).min()) <= 0):
                raise Discarded(f"{topic}-{number}: records came twice around a rebalance")
            yield Range(topic, number, start, int(mine[-1]) + 1, len(mine))

    def process(self, window: Window) -> None:
        """A window to its end. Raises Discarded."""
        began, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        outcome = self.function(window, now_ms)
        worked = time.monotonic()
        self.sink.write(self.member, window, outcome, self.beat)
        self.discards = 0
        for each in window.ranges:
            self.next[each.topic, each.partition] = each.stop
        ended = time.monotonic()
        self.meters.window(outcome.counts, len(window.values), worked - began, ended - worked)
        log(
            "debug", "window", lane=self.name, records=len(window.values), function_s=round(worked - began, 6),
            write_s=round(ended - worked, 6), **outcome.counts,
        )  # fmt: skip
        self._measure_lag()
        if self.steering:
            age_s = (now_ms - int(window.timestamp.min())) / 1000
            lag = sum(each for _, _, each in self._lags())
            self.steering.ended(Seen(began, len(window.values), age_s, worked - began, ended - worked, lag))

    def _discard(self, err: Discarded) -> None:
        """Back to where the window began, or to where another writer is. Raises the error after many in a row."""
        self.discards += 1
        self.meters.discarded()
        log("warning", "window discarded, reading again", lane=self.name, reason=str(err), times=self.discards)
        if self.discards > DISCARDS_MAX:
            raise err
        # the group may need a moment to settle: as many tries as there are would otherwise pass within it
        time.sleep(min(DISCARD_S_MAX, DISCARD_S * 2**self.discards))
        self.next.update({key: at for key, at in err.positions.items() if at is not None and key in self.next})
        self._rewind()

    def _rewind(self) -> None:
        """Back to the committed positions of what is still assigned."""
        self.collected = []
        for (topic, partition), offset in self.next.items():
            there = TopicPartition(topic, partition, offset)
            try:
                self.consumer.seek(there)
            except KafkaException:  # a partition that was assigned a moment ago cannot seek yet
                self.consumer.incremental_unassign([there])
                self.consumer.incremental_assign([there])

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        found = self.sink.positions(consumer, partitions) if partitions else {}
        starts = []
        for each in partitions:
            offset = found[each.topic, each.partition]
            if offset is None:
                message = "a partition without a first offset is not read: start lrai again, which sets it"
                log("error", message, lane=self.name, topic=each.topic, partition=each.partition)
                self.meters.stopped()
                continue
            starts.append(TopicPartition(each.topic, each.partition, offset))
            self.next[each.topic, each.partition] = offset
        consumer.incremental_assign(starts)
        log("info", "assigned", lane=self.name, partitions=[f"{each.topic}-{each.partition}" for each in partitions])
        self.assigned()

    def _drop(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Revoked or lost: what was collected of these partitions belongs to somebody else now."""
        gone = {(each.topic, each.partition) for each in partitions}
        for each in gone:
            self.next.pop(each, None)
        self.collected = [each for each in self.collected if (each.topic(), each.partition()) not in gone]
        log("info", "revoked", lane=self.name, partitions=[f"{topic}-{number}" for topic, number in sorted(gone)])

    def _record_error(self, message: Message, error: KafkaError) -> None:
        code = error.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._lost_range(message.topic() or "", message.partition() or 0, error)
        elif code in FENCED_CODES or (code == KafkaError._FATAL and "fenced" in error.str()):  # it wraps the reason
            raise self._fenced()
        elif error.fatal() or code == KafkaError._FATAL:
            raise KafkaException(error)
        elif code == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self.meters.stopped()
            log("error", "a topic is missing; lrai up creates it", lane=self.name, topic=message.topic())
        else:
            log("warning", "kafka", lane=self.name, error=error.str())

    def _lost_range(self, topic: str, partition: int, error: KafkaError) -> None:
        """Records expired before they were read: an operator must know which; the partition stands still."""
        try:
            low = self.consumer.get_watermark_offsets(TopicPartition(topic, partition), ADMIN_S)[0]
        except KafkaException:  # what matters is the alert
            low = None
        wanted = self.next.get((topic, partition))
        self.meters.stopped()
        what = "records were deleted before they were read; the partition is stopped"
        lost = {"topic": topic, "partition": partition, "lost_from": wanted, "lost_to": low}
        fix = "stop the role with --leave, set the offset of its group, start it again"
        log("error", what, lane=self.name, **lost, fix=fix, error=error.str())

    def _fenced(self) -> LraiError:
        """Somebody has this member's name: itself, if the answer to its own request to join was lost on the way."""
        return Rejoins() if time.monotonic() - self.trouble_at < TROUBLE_S else Fenced()

    def stuck(self, now: float) -> bool:
        """Whether a call of the sink does not come to its end though Kafka answers; beats for a lane that waits.

        librdkafka's send_offsets_to_transaction knows no end: it waits while Kafka is away, which is nothing to kill a
        process for, but also for a group coordinator that moved, or for a member that the group has replaced.
        A store may take its time, too, but a connection that is lost without a word must not hold the lane for ever.
        """
        if not self.sink.waits_s(now):
            return False
        self.beat()
        if self.sink.waits_s(now) < self.sink.patience_s:
            return False
        try:
            self.consumer.list_topics(self.topics[0], ASK_S)
        except KafkaException:
            return False
        return self.sink.waits_s(time.monotonic()) > self.sink.patience_s

    def _error(self, error: KafkaError) -> None:
        if error.code() in FENCED_CODES or (not error.retriable() and error.fatal()):
            return  # comes back from the call that it concerns
        self.trouble_at = time.monotonic()
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not self.away:
            self.away = True
            log("warning", "kafka is away; waiting for it", lane=self.name, error=error.str())

    def _measure_lag(self) -> None:
        """Records between what is committed and the end, as the consumer last heard; once a second."""
        now = time.monotonic()
        if now - self.lag_at < 1:
            return
        self.lag_at = now
        for topic, partition, records in self._lags():
            self.meters.lag(topic, partition, records)

    def _lags(self) -> Iterable[tuple[str, int, int]]:
        """By partition, records behind what is written, as the consumer last heard."""
        for (topic, partition), offset in self.next.items():
            high = self.consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)[1]
            if high >= 0:
                yield topic, partition, max(0, high - offset)


FENCED_CODES = frozenset(
    {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.FENCED_INSTANCE_ID}
)
