"""The audit writer's end of the window loop: its commit is a Postgres transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition

from audit.labelling import Labelling
from audit.store import AuditWindow, DeadLetter, SecondWriter, Store, Written
from audit.watched import watched
from schemas.errors import BadRecord, StoreUnavailable
from streams.log import log
from streams.loop import ADMIN_S, Discarded, Partition
from streams.meters import AUDIT_DELAY, LABELS, REFUSED_RECORDS
from streams.window import Outcome, Window

RETRY_S = 0.5
FIRST_S_MAX = 120.0
T = TypeVar("T")
PARTITIONS_EVERY_S = 24 * 3600.0
MONTHS_AHEAD = 2


def nothing_more(window: Window, now_ms: int) -> Outcome:
    """The audit writer's function: all that it does is write."""
    return Outcome([], {"stored": len(window.values)})


@dataclass(frozen=True, slots=True)
class Intake:
    """What the writer does beside decisions. `read` decodes a record by its topic; `pseudonym`: of who complains."""

    read: Callable[[str, bytes], tuple[str, dict[str, Any]]]
    pseudonym: Callable[[str], str]
    labelling: Labelling | None = None


class StoreSink:
    """Offsets and rows in one Postgres transaction; while Postgres is away, windows wait in Kafka."""

    patience_s = 60.0

    def __init__(self, store: Store, intake: Intake, deadletter: str, beat: Callable[[], None]) -> None:
        self.store = store
        self.intake = intake
        self.deadletter = deadletter
        self.beat = beat
        self.known: dict[Partition, int] = {}
        self.partitions_at = 0.0
        self.calling = 0.0

    def open(self, beat: Callable[[], None]) -> None:
        self._daily()
        if self.intake.labelling:
            self._patiently(self.intake.labelling.start)

    def positions(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> Mapping[Partition, int | None]:
        """From the store; the first record where it has none."""
        names = sorted({each.topic for each in partitions})
        stored = self._patiently(lambda: self.store.source_offsets(names))
        found: dict[Partition, int | None] = {}
        for each in partitions:
            key = (each.topic, each.partition)
            self.known.pop(key, None)
            if key in stored:
                found[key] = self.known[key] = stored[key]
            else:
                found[key] = self._first(consumer, each)
        return found

    def _first(self, consumer: Consumer, partition: TopicPartition) -> int:
        """The first record of a partition, as soon as Kafka says it."""
        end = time.monotonic() + FIRST_S_MAX
        while True:
            self.beat()
            try:
                return int(consumer.get_watermark_offsets(partition, ADMIN_S)[0])
            except KafkaException:
                if time.monotonic() > end:
                    raise
                time.sleep(RETRY_S)

    def write(self, member: Any, window: Window, outcome: Outcome, beat: Callable[[], None]) -> None:
        """Raises Discarded when another writer was faster: its offsets are read and this one seeks there."""
        offsets = [(r.topic, r.partition, self.known.get((r.topic, r.partition)), r.stop) for r in window.ranges]
        content = _sorted_out(window, self.intake, self.deadletter, offsets)
        try:
            written = self._patiently(lambda: self.store.write(content))
        except SecondWriter as err:
            raise Discarded(str(err), self._elsewhere(window)) from err
        if written.refused:
            log("error", "rows were refused; see audit.refused", rows=written.refused)
        self._count(content, written)
        for topic, partition, _, stop in offsets:
            self.known[topic, partition] = stop
        if content.decisions:
            newest = max(record["answered_at"] for record in content.decisions)
            AUDIT_DELAY.set(max(0.0, time.time() - newest / 1e6))
        self._daily()
        self._label(any(statement == "insert_label" for statement, _ in content.rows()))

    def idle(self) -> None:
        """Nothing came; a label may wait for a decision that is there by now."""
        self._label(False)

    def _label(self, came: bool) -> None:
        if self.intake.labelling:
            self.beat()
            self.calling = time.monotonic()
            try:
                self.intake.labelling.step(self.calling, came)
            finally:
                self.calling = 0.0

    def _count(self, content: AuditWindow, written: Written) -> None:
        for topic in written.refused_of:
            REFUSED_RECORDS.labels(topic).inc()
        if written.refused_of:
            log("error", "records were refused; see audit.refused_record", records=len(written.refused_of),
                topics=sorted(set(written.refused_of)))  # fmt: skip
        bad = sum(row["state"] == "refused" for statement, row in content.rows() if statement == "insert_label")
        LABELS.labels("refused").inc(bad)

    def _elsewhere(self, window: Window) -> Mapping[Partition, int | None]:
        """Where the other writer is; also where this one is when a commit succeeded whose answer was lost."""
        names = sorted({each.topic for each in window.ranges})
        stored = self._patiently(lambda: self.store.source_offsets(names))
        mine = {(each.topic, each.partition) for each in window.ranges}
        found = {key: offset for key, offset in stored.items() if key in mine}
        self.known.update(found)
        return found

    def waits_s(self, now: float) -> float:
        """Of one statement or transaction."""
        calling = self.calling
        return now - calling if calling else 0.0

    def close(self) -> None:
        if self.intake.labelling:
            self.intake.labelling.close()
        self.store.close()

    def _daily(self) -> None:
        now = time.monotonic()
        if now - self.partitions_at > PARTITIONS_EVERY_S or not self.partitions_at:
            self._patiently(lambda: self.store.make_partitions(MONTHS_AHEAD))
            self.partitions_at = now

    def _patiently(self, call: Callable[[], T]) -> T:
        """Until the store answers; says once that it is away and once that it is back."""
        said = False
        while True:
            self.beat()
            self.calling = time.monotonic()
            try:
                found = call()
            except StoreUnavailable as err:
                if not said:
                    log("warning", "the audit store is away; decisions wait in kafka", error=str(err))
                    said = True
                time.sleep(RETRY_S)
                continue
            finally:
                self.calling = 0.0
            if said:
                log("info", "the audit store is back")
            return found


def _sorted_out(
    window: Window, intake: Intake, deadletter: str, offsets: Sequence[tuple[str, int, int | None, int]]
) -> AuditWindow:
    """The records of a window by where they are stored."""
    found: dict[str, list[dict[str, Any]]] = {"decision_batch": [], "source_ranges": []}
    letters, others = [], []
    for i, (topic, value) in enumerate(zip(window.topics, window.values, strict=True)):
        place = topic, int(window.partition[i]), int(window.offset[i])
        produced_ms = int(window.timestamp[i])
        if topic == deadletter:
            letters.append(DeadLetter.of(*place, produced_ms, value, window.headers[i] or []))
            continue
        decoded: tuple[str, dict[str, Any]] | BadRecord
        try:
            decoded = intake.read(topic, value or b"")
        except BadRecord as err:
            decoded = err
        if not isinstance(decoded, BadRecord) and decoded[0] in found:
            found[decoded[0]].append(decoded[1])
        else:
            others.append(watched(place, produced_ms, value or b"", decoded, intake.pseudonym))
    return AuditWindow(offsets, found["decision_batch"], found["source_ranges"], letters, others)
