"""`python -m tests.bench.kernel_peers`: NNCF and OpenVINO, in an environment of their own, on the same nets.

The same calibration rows for both; error and time of the 8-bit forms beside each other, in turns, one thread each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kernels.compile import candidates, importing
from kernels.session import Session
from kernels.spec import ModelSpec
from tests import nets, transformers
from tests.bench import kernels, minilm, report
from tests.bench.contenders import Failed
from tests.bench.report import Outcome, Target
from tests.bench.turns import FP32, MS, Tensors, seconds

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "kernel-peers"
REQUIRED = ("nncf==3.4.0", "openvino==2026.4.1", "onnx")
OPENVINO, NNCF = "OpenVINO, its default precision", "NNCF int8 in OpenVINO"
ERROR = "mean error, % of the largest output"

# Reads a request a line: a contender and how many calls; answers with CPU milliseconds a call.
PEER = """
import sys, json, time
import numpy as np, nncf, openvino as ov

model, feeds, answers, kind = sys.argv[1:]
stored = np.load(feeds)
groups = {}
for key in stored:
    side, number, name = key.split("/", 2)
    groups.setdefault(side, {}).setdefault(int(number), {})[name] = stored[key]
core = ov.Core()
plain = core.read_model(model)
told = {"model_type": nncf.ModelType.TRANSFORMER} if kind == "transformer" else {}
calibrate = list(groups["calibrate"].values())
small = nncf.quantize(plain, nncf.Dataset(calibrate), subset_size=len(calibrate), **told)
options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
plain = core.read_model(model)
ready = {"plain": core.compile_model(plain, "CPU", options), "small": core.compile_model(small, "CPU", options)}
found = {}
for name, each in ready.items():
    for number, feed in groups["judged"].items():
        found[f"{name}/{number}"] = each(feed)[0]
np.savez(answers, **found)
versions = {"nncf": nncf.__version__, "openvino": ov.__version__}
print(json.dumps(versions), flush=True)
timed = groups["timed"][0]
for line in sys.stdin:
    name, calls = line.split()
    request = ready[name].create_infer_request()
    request.infer(timed)
    began = time.process_time()
    for _ in range(int(calls)):
        request.infer(timed)
    print((time.process_time() - began) / int(calls) * 1e3, flush=True)
"""


def install() -> None:
    """Makes the environment of its own when it is not there. Raises Failed with what pip said."""
    if (HOME / "done").exists():
        return
    pip = [str(HOME / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *REQUIRED]
    for command in ([sys.executable, "-m", "venv", str(HOME)], pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"NNCF cannot be installed: {done.stderr.strip()[-500:]}")
    (HOME / "done").touch()


class Peer:
    """The process with the other toolkit; `versions` of its parts."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log
        self.versions: dict[str, str] = json.loads(self._line())

    def milliseconds(self, name: str, calls: int) -> float:
        """CPU time of a call of `plain` or `small`."""
        assert self._process.stdin
        print(name, calls, file=self._process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line[:1] in "{0123456789":  # the toolkits print of themselves, too
                return line
        raise Failed(f"NNCF ended: {self._log.read_text()[-500:]}")


@contextmanager
def peer(spec: ModelSpec, feeds: dict[str, Sequence[Tensors]], kind: str) -> Iterator[tuple[Peer, Path]]:
    """The process, ready, and the file with its answers to the judged feeds."""
    place = Path(spec.path).parent
    told, answers, log = place / "feeds.npz", place / "answers.npz", place / "peer.log"
    arrays: dict[str, Any] = {
        f"{side}/{number}/{name}": array
        for side, each in feeds.items()
        for number, feed in enumerate(each)
        for name, array in feed.items()
    }
    np.savez(told, **arrays)
    command = [str(HOME / "bin" / "python"), "-c", PEER, spec.path, str(told), str(answers), kind]
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True) as process,
    ):
        try:
            yield Peer(process, log), answers
        finally:
            process.kill()


def compare(
    out: Outcome, spec: ModelSpec, feeds: dict[str, Sequence[Tensors]], kind: str, rounds: int
) -> dict[str, str]:
    """Adds times and errors of both. Returns the versions of the other toolkit."""
    net = importing.read(spec).net
    if net is None:
        raise Failed(f"{spec.path} cannot be compiled")
    original = Session(spec)
    made = candidates.base(spec, net, list(feeds["calibrate"]), lambda what: None)
    ours, _ = kernels.written(next(candidates.static(made)), spec, Path(spec.path).parent)
    timed = feeds["timed"][0]
    wanted = [next(iter(original.run(feed).values())) for feed in feeds["judged"]]
    with peer(spec, feeds, kind) as (other, path):
        times: dict[str, list[float]] = {name: [] for name in (FP32, "LRAI", OPENVINO, NNCF)}
        for _ in range(rounds):
            for label, session in ((FP32, original), ("LRAI", ours)):
                times[label].append(1e3 * seconds(lambda run=session.run: run(timed), 5))
            for label, name in ((OPENVINO, "plain"), (NNCF, "small")):
                times[label].append(other.milliseconds(name, 5))
        answers = np.load(path)
    for name, values in times.items():
        out.add(name, f"{spec.model}, {MS}", values, 1)
    found = {"LRAI": [next(iter(ours.run(feed).values())) for feed in feeds["judged"]]}
    for label, name in ((OPENVINO, "plain"), (NNCF, "small")):
        found[label] = [answers[f"{name}/{number}"] for number in range(len(wanted))]
    largest = max(float(np.abs(each).max()) for each in wanted)
    for label, each in found.items():
        apart = [float(np.abs(a - b).mean()) for a, b in zip(wanted, each, strict=True)]
        out.add(label, f"{spec.model}, {ERROR}", [100 * float(np.mean(apart)) / largest], 4)
    _targets(out, spec.model)
    return other.versions


def _targets(out: Outcome, model: str) -> None:
    error, took = ([out.median(name, f"{model}, {what}") or 0.0 for name in ("LRAI", NNCF)] for what in (ERROR, MS))
    out.targets.append(Target(f"{model}: error over NNCF's", error[0] / error[1], 1.0, at_most=True))
    out.targets.append(Target(f"{model}: speed over NNCF's", took[1] / took[0], 1.0))


def _resnet(image: int = 224) -> tuple[ModelSpec, dict[str, Sequence[Tensors]], str]:
    spec = kernels.built("resnet50", lambda path: nets.resnet50(path, 1, image))
    pixels = np.random.default_rng(1).integers(0, 256, (17, image, image, 3), np.uint8)
    each = [{"pixels": pixels[at : at + 1]} for at in range(len(pixels))]
    return spec, {"calibrate": each[:8], "judged": each[8:16], "timed": each[16:]}, "plain"


def _bert() -> tuple[ModelSpec, dict[str, Sequence[Tensors]], str]:
    spec = kernels.built("bert", transformers.bert)
    each = [transformers.tokens(1, kernels.TOKENS, seed=seed) for seed in range(9)]
    return spec, {"calibrate": each[:4], "judged": each[4:8], "timed": each[8:]}, "transformer"


def _minilm() -> tuple[ModelSpec, dict[str, Sequence[Tensors]], str]:
    source = minilm.download(ROOT / "build" / "bench" / "minilm")
    spec = kernels.built("minilm", lambda path: minilm.build(source, path))
    pieces, text = minilm.WordPiece(source / "vocab.txt"), minilm.sentences()
    order = np.random.default_rng(0).permutation(len(text))
    each = [pieces.batch([text[place]]) for place in order[: 64 + kernels.SENTENCES]]
    timed = [transformers.tokens(1, kernels.TOKENS, transformers.MINILM_L6)]
    return spec, {"calibrate": each[:64], "judged": each[64:], "timed": timed}, "transformer"


NETS = {"resnet50": _resnet, "bert": _bert, "minilm": _minilm}


def main() -> int:
    """Runs it and adds it to the report. Returns 0 also when NNCF cannot be had: it says why."""
    parser = argparse.ArgumentParser(prog="tests.bench.kernel_peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="into build/bench-quick.json")
    parser.add_argument("--document", action="store_true", help="writes docs/benchmarks.md anew, too")
    given = parser.parse_args()
    console = Console(width=140 if not sys.stdout.isatty() else None)
    out = Outcome("kernel-peers", "8 bits by NNCF in OpenVINO and by LRAI, one row, one thread", given.rounds)
    out.date, out.quick = time.strftime("%Y-%m-%d"), given.quick
    versions: dict[str, str] = {}
    try:
        install()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in given.only:
                versions |= compare(out, *NETS[name](), given.rounds)
    except Failed as err:
        console.print(f"NNCF takes no part: {err}", markup=False)
        return 0
    results = ROOT / "build" / ("bench-quick.json" if given.quick else "bench.json")
    document = ROOT / "docs" / "benchmarks.md" if given.document and not given.quick else None
    report.show(console, out)
    report.save([out], report.machine(versions), results, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
