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
from tests.bench.load import CONSUMER, partitions_of

SAMPLE = 100  # results that are decoded and checked at the end
POLL_S = 0.2
PROGRESS_S = 1.0


class Reading:
    """What was read so far. `arrived`: float64[expected], monotonic seconds, NaN where nothing came."""

    def __init__(self, expected: int, keyed: bool) -> None:
        self.expected = expected
        self.read = 0
        self.first = self.last = 0.0
        self.arrived: npt.NDArray[np.float64] | None = np.full(expected, np.nan) if keyed else None
        self.sample: list[bytes] = []

    def add(self, messages: Sequence[Message], now: float) -> None:
        """Counts a window of results that was there at `now`."""
        self.first = self.first or now
        self.last = now
        self.read += len(messages)
        if len(self.sample) < SAMPLE:
            self.sample.append(messages[-1].value() or b"")
        if self.arrived is not None:
            self.arrived[[int(message.key() or b"") for message in messages]] = now

    def wrong(self) -> list[str]:
        """Status and error of those in the sample that are not OK; a record passed through counts as OK."""
        decoded = [framing.decode(value) for value in self.sample if value.startswith(framing.SINGLE_OBJECT)]
        results = [record for name, record in decoded if name == "inference_result"]
        return [f"{r['status']} {r['error_code']}: {r['error_message']}" for r in results if r["status"] != "OK"]


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
    parser.add_argument("--topic", required=True)
    parser.add_argument("--expected", type=int, required=True)
    parser.add_argument("--quiet-s", type=float, default=60.0)
    parser.add_argument("--arrived", help="file for the arrival times; needs keys that are numbers")
    given = parser.parse_args()
    consumer = Consumer({"bootstrap.servers": given.kafka, "group.id": "bench-reader"} | CONSUMER)
    partitions = range(partitions_of(given.kafka, given.topic))
    consumer.assign([TopicPartition(given.topic, partition, 0) for partition in partitions])
    consumer.consume(1, 0.5)  # the first fetch is under way, so that connecting is outside the clock
    print("ready", flush=True)
    reading = Reading(given.expected, bool(given.arrived))
    read(consumer, reading, given.quiet_s)
    if reading.arrived is not None:
        np.save(given.arrived, reading.arrived)
    outcome: dict[str, Any] = {"first": reading.first, "last": reading.last, "wrong": reading.wrong()}
    print(json.dumps({"read": reading.read, "end": outcome}), flush=True)
    consumer.close()


if __name__ == "__main__":
    main()
