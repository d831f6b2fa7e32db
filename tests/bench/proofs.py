"""Proof benchmarks of others: QEBVerif's MNIST tasks (CAV 2023) and the fp16 ACAS Xu tasks of ReluDiff and NeuroDiff.

python -m tests.bench.proofs FOLDER [--only qebverif|acas] [--timeout SECONDS]

FOLDER holds, at any depth, what is not ours to hand on: PTQ_mnist_*.h5 and RQ_2.csv of QEBVerif/Data,
t10k-images-idx3-ubyte.gz of MNIST, *.nnet, nnet.c and table_scripts/acas_cmds.sh of the NeuroDiff artifact.
Reading h5 needs h5py. A QEBVerif task is about integer pixels and the predicted class alone: it is refuted only by an
input of integers, replayed in QEBVerif's own integer arithmetic.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib
import itertools
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from kernels.proof.bounds import Analysis
from kernels.proof.neurons import decide as decide_rows
from kernels.proof.outputs import bounded
from kernels.proof.pair import Product
from kernels.proof.question import ask
from kernels.proof.split import batch_size, outward
from kernels.proof.verify import Verification, verify
from tests.bench.fixed_point import Attack, FixedPoint, Weights
from tests.random_nets import Builder, Layer, answering, build, model_of

Array = npt.NDArray[Any]
NETS = {"P1": "1blk_100", "P2": "2blk_100_100", "P4": "3blk_100_100_100"}
BITS = {"P1": (4, 6, 8, 10), "P2": (4, 6, 8, 10), "P4": (4, 8)}
ERRORS = (1.0, 2.0, 4.0, 6.0, 8.0)
RADIUS = 3
ROUNDS_BEFORE, ROUNDS_AFTER = 6, 60  # of the attack, before and after the proof has been tried
NEAR = 0.92  # of an error, from where on it is attacked again
PROCESSES, NICE = 2, 5
STRICT = 1 - 1e-7  # their property is |difference| < error
SAMPLES = """3236 5656 7219 7098 3825 521 9886 7389 3064 4544 7773 1340 7894 8463 6930 2898 2190 1866 914 5574
3770 3016 6395 2897 8541 5082 3712 150 2486 3986"""


def found(folder: Path, name: str) -> Path:
    """The file of this name, wherever it lies. Exits with a message without it."""
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        raise SystemExit(f"{folder} holds no {name}; see python -m tests.bench.proofs --help")
    return path


def keras(path: Path) -> Weights:
    """The layers of a Keras file, in order."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise SystemExit("reading QEBVerif's nets needs h5py: pip install h5py") from None
    arrays: dict[str, Array] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, each: arrays.update({name: np.asarray(each)}) if hasattr(each, "dtype") else None)
    kernels = sorted((name for name in arrays if "kernel" in name), key=lambda name: (name.islower(), name))
    return Weights([(arrays[name], arrays[name.replace("kernel", "bias")]) for name in kernels])


def floats(weights: Weights, label: int, scale: float) -> list[Layer]:
    """The float net on pixels, with one class as its output."""
    layers = [Layer("Mul", (np.float32(scale).reshape(1, 1),))]
    for place, (w, b) in enumerate(weights.layers):
        last = place == len(weights.layers) - 1
        w, b = (w[:, [label]], b[[label]]) if last else (w, b)
        layers += [Layer("Gemm", (w, b)), *([] if last else [Layer("Relu")])]
    return layers


def integers(net: FixedPoint, label: int) -> onnx.ModelProto:
    """The quantized net in ONNX: fixed-point numbers as float32, activations through Clip and a quantizer."""
    builder, step = Builder(), np.float32(2.0 ** -(net.bits - 2))
    wide = np.uint16 if net.bits > 8 else np.uint8
    value = builder.node("Mul", ["x", builder.constant(np.float32(2.0**-8).reshape(1, 1))])
    for place, (w, b) in enumerate(net.layers):
        last = place == len(net.layers) - 1
        w, b = (w[:, [label]], b[[label]]) if last else (w, b)
        numbers = (w / 2.0 ** (net.bits - 1)).astype(np.float32), (b / 2.0 ** (net.bits - 2)).astype(np.float32)
        value = builder.node("Gemm", [value, *map(builder.constant, numbers)])
        if not last:
            limits = np.float32(0), np.float32(step * (2**net.bits - 1))
            value = builder.node("Clip", [value, *(builder.constant(np.asarray(each)) for each in limits)])
            grid = [builder.constant(np.asarray(step)), builder.constant(np.asarray(wide(0)))]
            value = builder.node("DequantizeLinear", [builder.node("QuantizeLinear", [value, *grid]), *grid])
    return answering(builder, (784,))


@dataclass
class Group:
    """Tasks of one net, one width and one class: the boxes of its samples."""

    name: str
    weights: Weights
    net: FixedPoint
    label: int
    samples: list[int]
    low: Array
    high: Array


def groups(folder: Path) -> Iterator[Group]:
    """Those of QEBVerif's table 3."""
    raw = gzip.decompress(found(folder, "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784).astype(float)
    samples = [int(each) for each in SAMPLES.split()]
    for name, file in NETS.items():
        weights = keras(found(folder, f"PTQ_mnist_{file}_in_8_relu_0.h5"))
        for bits in BITS[name]:
            net = FixedPoint.of(weights, bits)
            labels = net.answers(images[samples]).argmax(1)
            for label in sorted(set(labels)):
                mine = [each for each, own in zip(samples, labels, strict=True) if own == label]
                middle = images[mine]
                low, high = np.clip(middle - RADIUS, 0, 255), np.clip(middle + RADIUS, 0, 255)
                yield Group(f"{name} {bits}", weights, net, int(label), mine, low, high)


def decide(group: Group, timeout_s: float) -> list[tuple[int, float, str]]:
    """(sample, error, verdict) for each error bound; a bound proves all errors above it, an input refutes those below.

    First bounds; then, where they leave a question, the attack; then the parts of nets, the largest error first.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(answering(build(floats(group.weights, group.label, 1 / 255), (784,)), (784,)), folder / "a.onnx")
        onnx.save(integers(group.net, group.label), folder / "b.onnx")
        question = ask(folder / "a.onnx", folder / "b.onnx", "raw")
        if question.product is None:
            raise SystemExit(question.reason)
        bound = bounds(question.product, group.low, group.high)
        found = [_sample(group, question.product, place, float(each), timeout_s) for place, each in enumerate(bound)]
    return [(sample, error, "REFUTED" if worst >= error else "PROVED" if bound < error * STRICT else "UNKNOWN")
            for sample, (worst, bound) in zip(group.samples, found, strict=True) for error in ERRORS]  # fmt: skip


def _sample(group: Group, product: Product, place: int, bound: float, timeout_s: float) -> tuple[float, float]:
    """The largest difference seen, and the bound."""
    low, high, errors = group.low[place], group.high[place], np.array(ERRORS) * STRICT
    attack = Attack(group.weights, group.net, group.label, low, high)
    if bound < errors[0]:
        return 0.0, bound
    enough = max(each for each in ERRORS if each * STRICT <= bound)
    attack.run(np.where(np.random.default_rng(place).random((12, 784)) < 0.5, low, high), enough, ROUNDS_BEFORE)
    analysis = Analysis(product, *outward(low[None], high[None]))
    rows = np.array([[1.0], [-1.0]])
    while len(asked := errors[(errors > attack.worst) & (errors <= bound)]):
        limits = np.full(2, asked[-1] * (1 - 2.0**-22))
        until_s = time.process_time() + timeout_s
        found, inputs = decide_rows(analysis, rows, limits, lambda until_s=until_s: until_s - time.process_time())
        for x in inputs:
            attack.climb(x)
        if (found > limits).any():
            break
        bound = min(bound, float(found.max()) * (1 + 2.0**-23))
    for _ in range(ROUNDS_AFTER):
        asked = errors[(errors > attack.worst) & (errors <= bound)]
        if not (asked[:1] * NEAR < attack.worst).any():
            break
        attack.anneal()
    return attack.worst, bound


def bounds(product: Product, low: Array, high: Array) -> Array:
    """float64[tasks]: of whole boxes, before any is cut."""
    size, (least, most) = batch_size(product), outward(low, high)
    parts = [slice(at, at + size) for at in range(0, len(low), size)]
    return np.concatenate([bounded(Analysis(product, least[i], most[i]), "raw").bound for i in parts])


def _verify(folder: Path, low: Array, high: Array, epsilon: float, timeout_s: float) -> Verification:
    return verify(folder / "a.onnx", folder / "b.onnx", low, high, epsilon, "raw", timeout_s, statistics=False)


def published(path: Path) -> dict[tuple[str, int, float], str]:
    """QEBVerif's own verdicts with its MILP solver, by (net and bits, sample, error)."""
    answers: dict[tuple[str, int, float], str] = {}
    name, error, samples = "", 0.0, [int(each) for each in SAMPLES.split()]
    for row in csv.reader(path.read_text(encoding="utf-8").splitlines(keepends=True)):
        text = ",".join(row)
        if match := re.search(r"(P\d): [\d_]+,Q bit: (\d+)", text):
            name = f"{match[1]} {match[2]}"
        if match := re.match(r"Error=([\d.]+)", text):
            error = float(match[1])
        if len(row) > 1 and row[1] == "DRA+MILP":
            for sample, cell in zip(samples, row[3::3], strict=False):
                if cell.strip() in ("True", "False"):
                    answers[name, sample, error] = "PROVED" if cell.strip() == "True" else "REFUTED"
    return answers


def qebverif(folder: Path, timeout_s: float) -> None:
    """Decides all tasks and compares with the published verdicts."""
    theirs = published(found(folder, "RQ_2.csv"))
    counts: dict[str, Counter[str]] = {}
    wrong, began = [], time.perf_counter()
    asked = list(groups(folder))
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # read when numpy is imported: hence spawn
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), os.nice, (NICE,)) as pool:
        for group, answers in zip(asked, pool.map(decide, asked, itertools.repeat(timeout_s)), strict=True):
            tally = counts.setdefault(group.name, Counter())
            for sample, error, verdict in answers:
                tally[verdict] += 1
                other = theirs.get((group.name, sample, error), "UNKNOWN")
                if "UNKNOWN" not in (verdict, other) and verdict != other:
                    wrong.append((group.name, sample, error, verdict, other))
            took = time.perf_counter() - began
            print(f"{group.name:6} class {group.label} {took:7.1f} s  {dict(tally)}", flush=True)
    total = sum(counts.values(), Counter())
    print(f"\n| net, bits | {' | '.join(ORDER)} |\n|---|---|---|---|")
    for name, tally in counts.items():
        print(f"| {name} | {' | '.join(str(tally[each]) for each in ORDER)} |")
    decided = total["PROVED"] + total["REFUTED"]
    print(f"| all | {' | '.join(str(total[each]) for each in ORDER)} |")
    print(f"\n{decided} of {sum(total.values())} decided in {time.perf_counter() - began:.0f} s;"
          f" QEBVerif with MILP: {len(theirs)}; contradictions: {len(wrong)} {wrong[:5]}")  # fmt: skip


ORDER = ("PROVED", "REFUTED", "UNKNOWN")


def nnet(path: Path) -> tuple[Weights, Array, Array]:
    """The layers of a .nnet file, and means and ranges of its inputs (and output)."""
    lines = [line.strip().rstrip(",").split(",") for line in path.read_text().splitlines() if not line.startswith("//")]
    sizes = [int(each) for each in lines[1]]
    means, ranges = (np.array([float(each) for each in lines[at]], np.float32) for at in (5, 6))
    rows = iter(lines[7:])
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        matrix = np.array([[float(each) for each in next(rows)[:inputs]] for _ in range(outputs)], np.float32)
        layers.append((matrix.T.copy(), np.array([float(next(rows)[0]) for _ in range(outputs)], np.float32)))
    return Weights(layers), means, ranges


def properties(path: Path) -> dict[int, tuple[Array, Array, int]]:
    """Input boxes and the output in question, from NeuroDiff's own source."""
    pattern = r"PROPERTY == (\d+)\) \{\s*float upper\[\] = \{(.*?)\};\s*float lower\[\] = \{(.*?)\};.*?target = (\d+)"
    answers = {}
    for number, upper, lower, target in re.findall(pattern, path.read_text(), re.S):
        sides = [np.array([_number(each) for each in side.split(",")]) for side in (lower, upper)]
        answers[int(number)] = (sides[0], sides[1], int(target))
    return answers


def _number(text: str) -> float:
    """Sums of products, as the source writes them."""
    return sum(math.prod(map(float, each.split("*"))) for each in text.split("+"))


def halved(weights: Weights) -> Weights:
    """Through float16, as their script rounds."""
    return Weights([(w.astype(np.float16).astype(np.float32), b.astype(np.float16).astype(np.float32))
                    for w, b in weights.layers])  # fmt: skip


def plain(weights: Weights, target: int) -> onnx.ModelProto:
    layers = floats(weights, target, 1.0)[1:]
    builder = build(layers, (5,))
    builder.nodes[-1].output[0] = "y"
    return model_of(builder, (5,), ["y"])


def acas(folder: Path, timeout_s: float) -> None:
    """The commands of their table, at two error bounds."""
    boxes = properties(found(folder, "nnet.c"))
    commands = found(folder, "table_scripts/acas_cmds.sh").read_text()
    tasks = sorted(set(re.findall(r"delta_network_test (\d+) nnet/(ACASXU\S+?)\.nnet", commands)))
    for epsilon in (0.05, 0.01):
        tally: Counter[str] = Counter()
        began = time.perf_counter()
        for number, name in tasks:
            weights, means, ranges = nnet(found(folder, f"{name}.nnet"))
            low, high, target = boxes[int(number)]
            low, high = ((each.astype(np.float32) - means[:5]) / ranges[:5] for each in (low, high))
            with tempfile.TemporaryDirectory() as here:
                onnx.save(plain(weights, target), Path(here) / "a.onnx")
                onnx.save(plain(halved(weights), target), Path(here) / "b.onnx")
                started = time.perf_counter()
                outcome = _verify(Path(here), low[None].astype(float), high[None].astype(float), epsilon, timeout_s)
            verdict, took = outcome.outcomes[0].verdict, time.perf_counter() - started
            tally[verdict] += 1
            print(f"property {number:3} {name} {verdict} {took:.1f} s", flush=True)
        print(f"epsilon {epsilon}: {dict(tally)} of {len(tasks)} in {time.perf_counter() - began:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("qebverif", "acas"))
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds of proof a task; QEBVerif: of CPU")
    chosen = parser.parse_args()
    for name, run in (("qebverif", qebverif), ("acas", acas)):
        if chosen.only in (None, name):
            run(chosen.folder, chosen.timeout)


if __name__ == "__main__":
    main()
