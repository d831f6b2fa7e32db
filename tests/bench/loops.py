"""The loops that LRAI is compared with: records passed through, and the loop that a good engineer writes by hand.

At-least-once both, no audit. Each is a process of its own: it says `ready`, starts at a line on its standard input and
ends when that closes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas import framing
from tests.bench.load import CONSUMER, PRODUCER, partitions_of

WINDOW = 2000
COMMIT_S = 0.1  # flush and commit at most this often: an end in between repeats what was not committed

REQUEST = framing.schema("inference_request")
RESULT = framing.schema("inference_result")
FRAME = framing.header("inference_result")
DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "UINT8": np.uint8}
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


def _failed(error: KafkaError | None, message: Message) -> None:
    if error:
        raise KafkaException(error)


class Loop:
    """Consumer and producer of one process; the window is what the subclass says."""

    def __init__(self, kafka: str, source: str, target: str, group: str, live: bool) -> None:
        self.source, self.target = source, target
        self.consumer = Consumer({"bootstrap.servers": kafka, "group.id": group} | CONSUMER)
        producer = PRODUCER | {"on_delivery": _failed} | ({"linger.ms": 1} if live else {})
        self.producer = Producer({"bootstrap.servers": kafka} | producer)
        self.partitions = partitions_of(kafka, source)

    def answer(self, messages: list[Message]) -> None:
        """Produces one record for each message."""
        raise NotImplementedError

    def send(self, value: bytes, key: bytes | str | None) -> None:
        while True:
            try:
                return self.producer.produce(self.target, value, key)
            except BufferError:
                self.producer.poll(0.01)

    def run(self, share: int, shares: int) -> None:
        """Answers the records of its share of the partitions, for ever."""
        mine = [p for p in range(self.partitions) if p % shares == share]
        self.consumer.assign([TopicPartition(self.source, partition, 0) for partition in mine])
        done: dict[int, int] = {}
        committed = time.monotonic()
        while True:
            messages = self.consumer.consume(1, COMMIT_S)
            if messages:
                messages += self.consumer.consume(WINDOW - 1, 0)
                for message in messages:
                    if message.error():
                        raise KafkaException(message.error())
                    done[message.partition() or 0] = (message.offset() or 0) + 1
                self.answer(messages)
                self.producer.poll(0)
            if done and time.monotonic() - committed > COMMIT_S:
                self.producer.flush()
                offsets = [TopicPartition(self.source, partition, at) for partition, at in done.items()]
                self.consumer.commit(offsets=offsets, asynchronous=True)
                done, committed = {}, time.monotonic()


class PassThrough(Loop):
    """The bytes as they came."""

    def answer(self, messages: list[Message]) -> None:
        for message in messages:
            self.send(message.value() or b"", message.key())


class HandLoop(Loop):
    """fastavro, ONNX Runtime on whole windows, fastavro."""

    def __init__(self, models: Path, threads: int, *common: Any) -> None:
        super().__init__(*common)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.sessions = {
            path.parent.parent.name: onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            for path in models.glob("*/1/model.onnx")
        }
        self.outputs = {name: [o.name for o in s.get_outputs()] for name, s in self.sessions.items()}

    def answer(self, messages: list[Message]) -> None:
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for message in messages:
            body = io.BytesIO(message.value() or b"")
            body.seek(framing.SINGLE_OBJECT_BYTES)
            request: dict[str, Any] = fastavro.schemaless_reader(body, REQUEST, None)  # type: ignore[assignment]
            alike = [(tensor["name"], tensor["datatype"], *tensor["shape"][1:]) for tensor in request["inputs"]]
            groups.setdefault((request["model"], *alike), []).append(request)
        for (model, *_), requests in groups.items():
            self._run(model, requests)

    def _run(self, model: str, requests: Sequence[dict[str, Any]]) -> None:
        feed = {}
        for i, tensor in enumerate(requests[0]["inputs"]):
            joined = b"".join([request["inputs"][i]["data"] for request in requests])
            flat = np.frombuffer(joined, DTYPES[tensor["datatype"]])
            feed[tensor["name"]] = flat.reshape(-1, *tensor["shape"][1:])
        start = time.perf_counter()
        columns = self.sessions[model].run(None, feed)
        took = time.perf_counter() - start
        described = [
            (name, NAMES[column.dtype], list(column.shape[1:]), column.tobytes(), column.nbytes // len(column))
            for name, column in zip(self.outputs[model], columns, strict=True)
        ]
        at = 0
        for request in requests:
            rows = request["inputs"][0]["shape"][0]
            outputs = [
                {"name": n, "datatype": kind, "shape": [rows, *shape], "data": whole[at * each : (at + rows) * each]}
                for n, kind, shape, whole, each in described
            ]
            at += rows
            self._send_result(request["request_id"], model, outputs, took)

    def _send_result(self, request_id: str, model: str, outputs: list[dict[str, Any]], took: float) -> None:
        out = io.BytesIO()
        out.write(FRAME)
        result = {
            "request_id": request_id,
            "model": model,
            "version": "1",
            "variant": None,
            "certificate": None,
            "status": "OK",
            "outputs": outputs,
            "error_code": None,
            "error_message": None,
            "queue_s": 0.0,
            "execution_s": took,
        }
        fastavro.schemaless_writer(out, RESULT, result)
        self.send(out.getvalue(), request_id)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """`python -m tests.bench.loops pass|hand`."""
    parser = argparse.ArgumentParser(prog="tests.bench.loops")
    parser.add_argument("loop", choices=["pass", "hand"])
    for name in ("kafka", "source", "target", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--live", action="store_true", help="little linger")
    parser.add_argument("--share", type=int, default=0)
    parser.add_argument("--shares", type=int, default=1)
    given = parser.parse_args()
    common = (given.kafka, given.source, given.target, given.group, given.live)
    loop = PassThrough(*common) if given.loop == "pass" else HandLoop(given.models, given.threads, *common)
    print("ready", flush=True)
    sys.stdin.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loop.run(given.share, given.shares)


if __name__ == "__main__":
    main()
