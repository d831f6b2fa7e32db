"""When labels are joined to decisions, and how the monitor hears of the totals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaException, Producer

from audit.joining import LABELS_MAX
from audit.labels import Totals
from audit.store import Store
from kernels.spec import ModelSpec
from schemas import framing
from schemas.errors import StoreUnavailable
from streams.log import log
from streams.meters import LABELS, LABELS_PENDING

EVERY_S = 1.0
DELIVERY_MS = 30_000
FLUSH_S = 1.0
NAME = "tally"
PRODUCER: Mapping[str, Any] = {"enable.idempotence": True, "message.timeout.ms": DELIVERY_MS, "linger.ms": 5}
Release = tuple[str, str]


class Labelling:
    """Joins labels that came, and again and again those whose decision had not come; never holds decisions up."""

    def __init__(
        self, store: Store, specs: Sequence[ModelSpec], producer: Producer, topic: str, worker: str,
        now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._store = store
        self._specs = specs
        self._producer = producer
        self._topic = topic
        self._worker = worker
        self._now_ms = now_ms
        self._unsent: set[Release] = set()
        self._join_s = 0.0
        self._send_s = 0.0

    def start(self) -> None:
        """All totals are sent again: nobody knows what a predecessor sent. Raises StoreUnavailable."""
        self._unsent = set(self._store.keep_settings(self._specs))

    def step(self, now_s: float, came: bool) -> None:
        """`came`: whether labels were stored a moment ago; without, it joins once in EVERY_S."""
        self._producer.poll(0)
        try:
            if came or now_s >= self._join_s:
                self._join_s = now_s + EVERY_S
                self._join()
            if self._unsent and now_s >= self._send_s:
                self._send_s = now_s + EVERY_S
                self._send()
        except StoreUnavailable as err:
            log("warning", "labels wait to be joined", error=str(err))

    def close(self) -> None:
        """What is not sent by then the next start sends."""
        self._producer.flush(FLUSH_S)

    def _join(self) -> None:
        joined = self._store.join_labels()
        self._unsent |= joined.releases
        for state, number in joined.states.items():
            if state != "pending":
                LABELS.labels(state).inc(number)
        LABELS_PENDING.set(joined.waiting)
        if sum(joined.states.values()) >= LABELS_MAX:
            self._join_s = 0.0  # there are more

    def _send(self) -> None:
        sent, self._unsent = self._unsent, set()
        totals = self._store.label_totals(sent)
        for release in sorted(sent):
            value = framing.encode(NAME, tally(release, totals[release], self._worker, self._now_ms()))
            try:
                self._producer.produce(
                    self._topic, value, "/".join(release), on_delivery=partial(self._delivered, release)
                )
            except (BufferError, KafkaException):
                self._unsent.add(release)

    def _delivered(self, release: Release, error: Any, _: Any) -> None:
        if error is not None:
            self._unsent.add(release)


def tally(release: Release, totals: Totals, worker: str, now_ms: int) -> dict[str, Any]:
    """The Tally of kind labels; its id says of which epoch and of how many labels, so that the one with more wins."""
    model, version = release
    labelled: dict[str, int] = {}
    for key, number in totals.counts.items():
        labelled[key.attribute] = labelled.get(key.attribute, 0) + number.decided
    counts = totals.counts.items()
    groups = [{"attribute": key.attribute, "group": key.group, **number._asdict()} for key, number in counts]
    parts = (*release, *filter(None, [totals.ended]), str(max(labelled.values(), default=0)))
    return {
        "id": "/".join(parts), "kind": "labels", "model": model, "version": version, "worker": worker,
        "priority": "", "at": now_ms, "received_at": now_ms, "requests": 0, "outcomes": {}, "groups": groups,
        "histograms": [], "latency": b"", "releases": [], "ended": totals.ended,
    }  # fmt: skip
