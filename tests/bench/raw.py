"""Raw ONNX Runtime on all cores, without Kafka: what the hardware can do with a model."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime

from tests.bench.load import Requests

KINDS = {"UINT8": np.uint8, "FP32": np.float32}


class Raw:
    """`sessions` threads, each with a session of `threads` threads, each running `rows` rows at a time."""

    def __init__(self, model: Path, datatype: str, shape: tuple[int, ...], rows: int, sessions: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, (os.cpu_count() or 1) // sessions)
        self._sessions = [
            onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"]) for _ in range(sessions)
        ]
        pool = Requests("", "", datatype, (rows, *shape)).tensors()
        self._rows = pool[0].view(KINDS[datatype]).reshape(rows, *shape)

    def rate(self, seconds: float) -> float:
        """Rows a second over at least this long."""
        counts = [0] * len(self._sessions)
        end = time.monotonic() + seconds

        def work(i: int) -> None:
            session = self._sessions[i]
            feed = {session.get_inputs()[0].name: self._rows}
            while True:
                session.run(None, feed)
                counts[i] += len(self._rows)
                if time.monotonic() > end:
                    return

        start = time.monotonic()
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(counts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.monotonic() - start)


def main() -> None:
    """`python -m tests.bench.raw`: rows a second as JSON, for each `--rows` and `--sessions` given."""
    parser = argparse.ArgumentParser(prog="tests.bench.raw")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--datatype", choices=KINDS, required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--sessions", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    shape = tuple(int(size) for size in given.shape.split("x"))
    found = []
    for rows in given.rows:
        for sessions in given.sessions:
            raw = Raw(given.model, given.datatype, shape, rows, sessions)
            raw.rate(0)  # once, so that memory is there
            found.append({"rows": rows, "sessions": sessions, "rate": raw.rate(given.seconds)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
