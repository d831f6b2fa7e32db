"""The reader of the results: a process of its own that counts committed records and stops the clock."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, Message, TopicPartition

from schemas import framing
from schemas.cursor import Cursors
from tests.bench.load import CONSUMER, partitions_of

SAMPLE = 100  # results that are decoded and checked at the end
POLL_S = 0.2
PROGRESS_S = 1.0


class Reading:
    """What was read so far. `arrived`: float64[expected], monotonic seconds, NaN where nothing came.

    `results`: where they are kept, windows of (numbers, values), for `statuses` when the clock has stopped.
    """

    def __init__(self, expected: int, keyed: bool, kept: bool = False) -> None:
        self.expected = expected
        self.read = 0
        self.first = self.last = 0.0
        self.arrived: npt.NDArray[np.float64] | None = np.full(expected, np.nan) if keyed else None
        self.sample: list[bytes] = []
        self.results: list[tuple[list[int], list[bytes]]] | None = [] if kept else None

    def add(self, messages: Sequence[Message], now: float) -> None:
        """Counts a window of results that was there at `now`."""
        self.first = self.first or now
        self.last = now
        self.read += len(messages)
        if len(self.sample) < SAMPLE:
            self.sample.append(messages[-1].value() or b"")
        if self.arrived is not None:
            numbers = [int(message.key() or b"") for message in messages]
            self.arrived[numbers] = now
            if self.results is not None:
                self.results.append((numbers, [message.value() or b"" for message in messages]))  # type: ignore[misc]

    def statuses(self) -> npt.NDArray[np.int8]:
        """int8[expected]: index into `schemas.results.STATUSES`, -1 where nothing came."""
        found = np.full(self.expected, -1, np.int8)
        for numbers, values in self.results or ():
            found[numbers] = statuses(values)
        return found

    def wrong(self) -> list[str]:
        """Status and error of those in the sample that are not OK; a record passed through counts as OK."""
        decoded = [framing.decode(value) for value in self.sample if value.startswith(framing.SINGLE_OBJECT)]
        results = [record for name, record in decoded if name == "inference_result"]
        return [f"{r['status']} {r['error_code']}: {r['error_message']}" for r in results if r["status"] != "OK"]


def statuses(values: Sequence[bytes]) -> npt.NDArray[np.int8]:
    """int8[n], the status of each framed InferenceResult, which lies behind its id, model, version and variant."""
    cursors = Cursors(values)
    cursors.at += framing.SINGLE_OBJECT_BYTES
    for _ in range(2):
        cursors.text()
    for _ in range(3):
        cursors.optional_text()
    return cursors.long().astype(np.int8)


def read(consumer: Consumer, reading: Reading, quiet_s: float) -> None:
    """Reads until all expected results are there, or none came for `quiet_s`."""
    reported = moved = time.monotonic()
    while reading.read < reading.expected:
        # consume(n, t) waits the whole t for n records: take one, then what is there
        messages = consumer.consume(1, POLL_S)
        now = time.monotonic()
        if not messages:
            if now - moved > quiet_s:
                return
            continue
        messages += consumer.consume(10_000, 0)
        if bad := next((m.error() for m in messages if m.error()), None):
            raise RuntimeError(f"cannot read the results: {bad}")
        moved = time.monotonic()
        reading.add(messages, moved)
        if moved - reported > PROGRESS_S:
            reported = moved
            print(json.dumps({"read": reading.read}), flush=True)


def main() -> None:
    """`python -m tests.bench.reader`: prints `ready`, progress, and at the end what it read, as JSON."""
    parser = argparse.ArgumentParser(prog="tests.bench.reader")
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--topic", required=True, nargs="+")
    parser.add_argument("--expected", type=int, required=True)
    parser.add_argument("--quiet-s", type=float, default=60.0)
    parser.add_argument("--arrived", help="file for the arrival times; needs keys that are numbers")
    parser.add_argument("--statuses", help="file for the statuses; with --arrived")
    given = parser.parse_args()
    consumer = Consumer({"bootstrap.servers": given.kafka, "group.id": "bench-reader"} | CONSUMER)
    consumer.assign(
        [TopicPartition(topic, p, 0) for topic in given.topic for p in range(partitions_of(given.kafka, topic))]
    )
    consumer.consume(1, 0.5)  # the first fetch is under way, so that connecting is outside the clock
    print("ready", flush=True)
    reading = Reading(given.expected, bool(given.arrived), bool(given.statuses))
    read(consumer, reading, given.quiet_s)
    if reading.arrived is not None:
        np.save(given.arrived, reading.arrived)
    if reading.results is not None:
        np.save(given.statuses, reading.statuses())
    outcome: dict[str, Any] = {"first": reading.first, "last": reading.last, "wrong": reading.wrong()}
    print(json.dumps({"read": reading.read, "end": outcome}), flush=True)
    consumer.close()


if __name__ == "__main__":
    main()
