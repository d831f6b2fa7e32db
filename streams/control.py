"""The live state: records of the compacted topic lrai.control, written by operators, read by every actor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from schemas import framing
from schemas.errors import BadRecord
from streams import clients, topics
from streams.log import log
from streams.settings import Settings

NAME = "control"
VARIANT = "variant"
FREEZE, UNFREEZE = "freeze", "unfreeze"
EVERY_S = 0.25
ASK_S = 0.05
RECORDS_MAX = 1000  # taken at a time


@dataclass(frozen=True, slots=True)
class Control:
    """A change. `variant`: the one that answers, None where policy and load choose; `at`: ms since the epoch;
    `id`, `evidence`: of a freeze, and of the unfreeze that names it."""

    kind: str
    model: str
    version: str
    variant: str | None
    by: str
    reason: str
    at: int
    id: str | None = None
    evidence: str | None = None

    @property
    def key(self) -> str:
        """The newest record of a key counts."""
        kind = FREEZE if self.kind == UNFREEZE else self.kind
        return f"{kind}/{self.model}/{self.version}"

    def encode(self) -> bytes:
        return framing.encode(NAME, asdict(self))

    @classmethod
    def decode(cls, value: bytes) -> Control:
        """Raises BadRecord."""
        name, record = framing.decode(value)
        if name != NAME:
            raise BadRecord("unknown_schema", f"a {name} is no control record")
        return cls(**record)


class ControlState:
    """What the topic says now, by key. `poll` may be called from several threads; Kafka being away changes nothing."""

    def __init__(self, settings: Settings, client_id: str) -> None:
        self.state: dict[str, Control] = {}
        own = {"group.id": client_id, "enable.auto.commit": False, "enable.partition.eof": True,
               "isolation.level": "read_committed", "auto.offset.reset": "earliest",
               "fetch.wait.max.ms": 50}  # fmt: skip
        self._consumer = Consumer({**clients.common(settings, client_id), **own})  # the group is named, never joined
        self._consumer.assign([TopicPartition(topics.control(settings.prefix), 0, OFFSET_BEGINNING)])
        self._at_end = False
        self._lock = threading.Lock()
        self._due_s = 0.0

    def to_the_end(self, beat: Callable[[], None]) -> None:
        """Reads all that is there; waits for Kafka as long as it takes, and beats meanwhile."""
        while not self._at_end:
            beat()
            self._take(ASK_S)

    def poll(self, now_s: float) -> dict[str, Control]:
        """The state, with what came since; asks at most every EVERY_S and never waits. `now_s`: time.monotonic()."""
        if now_s >= self._due_s and self._lock.acquire(blocking=False):
            try:
                self._due_s = now_s + EVERY_S
                self._take(0)
            finally:
                self._lock.release()
        return self.state

    def variant(self, model: str, version: str, now_s: float) -> str | None:
        """The variant that an operator asks for."""
        found = self.poll(now_s).get(f"{VARIANT}/{model}/{version}")
        return found.variant if found else None

    def frozen(self, model: str, version: str, now_s: float) -> Control | None:
        """The freeze that holds."""
        found = self.poll(now_s).get(f"{FREEZE}/{model}/{version}")
        return found if found and found.kind == FREEZE else None

    def close(self) -> None:
        self._consumer.close()

    def _take(self, wait_s: float) -> None:
        for message in self._consumer.consume(RECORDS_MAX, wait_s):
            error = message.error()
            if error is None:
                self._put(message.key(), message.value())
            elif error.code() == KafkaError._PARTITION_EOF:
                self._at_end = True
            else:
                log("warning", "lrai.control cannot be read; what it said last holds", error=error.str())

    def _put(self, key: Any, value: bytes | None) -> None:
        """One record; a null value takes its key away."""
        name = (key or b"").decode(errors="replace")
        if value is None:
            self.state.pop(name, None)
            return
        try:
            found = Control.decode(value)
        except BadRecord as err:
            log("error", "no record of LRAI's on lrai.control; passed over", key=name, error=str(err))
            return
        self.state[found.key] = found
        log("info", "control", record=asdict(found))
