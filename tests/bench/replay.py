"""A trace replayed against a running LRAI: its requests on its schedule, and what became of each."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra.commands.traces import load_file
from schemas.columns import assemble, varints
from streams import topics
from streams.trace import GAP_S_MAX, Trace, write
from tests.bench import load
from tests.bench.contenders import Place, Reader
from tests.bench.traces import ID_WIDTH

DISTINCT = 64  # tensors of a shape
CHUNK_BYTES = 100_000_000
FINISH_S_EACH = 3e-6  # between when deadlines are known and the first request, for each record
QUIET_S = 20.0  # without an answer, before what is missing is lost
Inputs = Mapping[str, tuple[str, int]]
"""by model: its input, FP32[rows, features]"""


@dataclass(frozen=True, eq=False)
class Replayed:
    """`sent`, `due`, `arrived`: float64[n], monotonic seconds, arrived NaN where no answer came.

    `status`: int8[n], index into `schemas.results.STATUSES`, -1 without an answer.
    """

    trace: Trace
    sent: npt.NDArray[np.float64]
    due: npt.NDArray[np.float64]
    arrived: npt.NDArray[np.float64]
    status: npt.NDArray[np.int8]


def replay(place: Place, trace: Trace, inputs: Inputs, quiet_s: float = QUIET_S) -> Replayed:
    """Sends the trace to the pipeline that is up at `place`; reads until all is answered, or nothing for `quiet_s`."""
    scratch = place.logs.parent / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    files = {
        name: scratch / f"{place.prefix}-{name}" for name in ("trace.csv", "sent.npy", "arrived.npy", "status.npy")
    }
    with files["trace.csv"].open("w") as file:
        file.writelines(write(trace))
    names = [topics.PRIORITIES[rank] for rank in np.unique(trace.priority).tolist()]
    targets = ",".join(topics.results(place.prefix, name) for name in names)
    silence = float(np.diff(trace.at_s, prepend=0).max())
    reader = Reader(
        place.kafka, targets, len(trace), place.logs, files["arrived.npy"], quiet_s + silence, files["status.npy"]
    )
    try:
        command = [sys.executable, "-m", "tests.bench.replay", "--kafka", place.kafka, "--prefix", place.prefix]
        command += ["--trace", str(files["trace.csv"]), "--sent", str(files["sent.npy"])]
        command += ["--gap-s-max", str(max(GAP_S_MAX, silence + 1))]
        command += ["--inputs", *(f"{model}:{name}:{width}" for model, (name, width) in inputs.items())]
        subprocess.run(command, check=True, timeout=trace.seconds + 120 + len(trace) * 1e-4)
        while reader.progress()[1] is None:
            pass
    finally:
        reader.stop()
    sent, due = np.load(files["sent.npy"])
    found = Replayed(trace, sent, due, np.load(files["arrived.npy"]), np.load(files["status.npy"]))
    for path in files.values():
        path.unlink()
    return found


def records(trace: Trace, inputs: Inputs) -> list[bytes]:
    """n framed requests but for what follows their inputs; the id is the request's number."""
    widths = {model: inputs[model][1] for model in trace.models}
    values = np.empty(len(trace), object)
    numbers = np.random.default_rng(1).standard_normal(
        DISTINCT * max(widths.values()) * int(trace.rows.max()), np.float32
    )
    shapes, which = np.unique(np.stack([trace.model, trace.rows]), axis=1, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(which.reshape(-1)))
    for (model, rows), begin, end in zip(shapes.T.tolist(), [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        name = trace.models[model]
        size = rows * widths[name]
        pool = numbers[: DISTINCT * size].reshape(DISTINCT, size).view(np.uint8)
        alike = load.Requests(name, inputs[name][0], "FP32", (rows, widths[name]), ID_WIDTH)
        most = max(1, CHUNK_BYTES // pool.shape[1])
        for first in range(begin, end, most):
            chosen = order[first : min(end, first + most)]
            values[chosen] = np.array(alike.alike(chosen, pool, b""), object)
    found: list[bytes] = values.tolist()
    return found


def finished(heads: Sequence[bytes], trace: Trace, start_ms: float) -> list[bytes]:
    """The records with their deadlines; `start_ms`: when the trace begins, since 1970."""
    stated = np.flatnonzero(~np.isnan(trace.deadline_s))
    ends = [load.NOTHING_ELSE] * len(heads)
    deadlines = np.rint(start_ms + 1e3 * (trace.at_s[stated] + trace.deadline_s[stated])).astype(np.int64)
    pieces = assemble(len(stated), [b"\2", varints(deadlines), load.NOTHING_ELSE[1:]]).to_list() if len(stated) else []
    for number, piece in zip(stated.tolist(), pieces, strict=True):
        ends[number] = piece or b""
    return [head + end for head, end in zip(heads, ends, strict=True)]


def play(kafka: str, prefix: str, trace: Trace, inputs: Inputs, sent_file: str) -> None:
    """Sends the trace on its schedule and saves float64[2, n]: sent, due. Raises TimeoutError."""
    heads = records(trace, inputs)
    names = [topics.requests(prefix, priority) for priority in topics.PRIORITIES]
    lead_s = load.LEAD_S + FINISH_S_EACH * len(trace)
    start = time.monotonic() + lead_s
    values = finished(heads, trace, 1000 * (time.time() + lead_s))
    load.on_schedule(kafka, start + trace.at_s, [names[rank] for rank in trace.priority.tolist()], values, sent_file)


def inputs_of(texts: Sequence[str], models: Sequence[str]) -> dict[str, tuple[str, int]]:
    """From MODEL:INPUT:FEATURES, one for each model. Raises ValueError."""
    parts = [text.split(":") for text in texts]
    for text, part in zip(texts, parts, strict=True):
        if len(part) != 3 or not part[2].isdigit() or not int(part[2]):
            raise ValueError(f"--inputs {text!r}: write MODEL:INPUT:FEATURES, such as mlp:features:30")
    found = {model: (name, int(width)) for model, name, width in parts}
    if missing := [model for model in models if model not in found]:
        raise ValueError(f"--inputs: the trace asks {', '.join(missing)} too; add MODEL:INPUT:FEATURES of each")
    return found


def main() -> None:
    """`python -m tests.bench.replay`: the load as a process of its own."""
    parser = argparse.ArgumentParser(prog="tests.bench.replay")
    for name in ("kafka", "prefix", "sent"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--trace", required=True, type=Path)
    parser.add_argument("--inputs", required=True, nargs="+", help="MODEL:INPUT:FEATURES of each model")
    parser.add_argument("--gap-s-max", type=float, default=GAP_S_MAX)
    given = parser.parse_args()
    trace = load_file(given.trace, given.gap_s_max)
    try:
        inputs = inputs_of(given.inputs, trace.models)
    except ValueError as err:
        parser.error(str(err))
    play(given.kafka, given.prefix, trace, inputs, given.sent)


if __name__ == "__main__":
    main()
