"""`python -m tests.bench.kernels`: what compiling gains, without Kafka; added to the report of `make bench`.

Contenders take turns on one thread; times are CPU time of that thread, so that other processes matter less.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from rich.console import Console

from kernels import loading, repository
from kernels.compile import allocate, candidates, compiler, ensemble, importing, judge, mixed, probe, rows
from kernels.compile.allocate import Choice
from kernels.compile.candidates import STATIC, Candidate
from kernels.compile.layers import Plan, Width
from kernels.manifest import RunOptions
from kernels.session import Session
from kernels.spec import ModelSpec
from tests import nets, transformers
from tests.bench import minilm, report, trained
from tests.bench.contenders import Failed
from tests.bench.report import Outcome, Target
from tests.bench.turns import FP32, MB, MS, Bench, Run, Tensors, faster, in_turns, peak_mb, plain, quantized, smaller

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "bench" / "kernels"
US, COSINE = "us", "least cosine to fp32"
TOKENS = 128
SENTENCES = 128
BUDGET = 0.01  # of the outputs' root mean square, as `lrai compile` has it


def written(candidate: Candidate, spec: ModelSpec, place: Path) -> tuple[Session, ModelSpec]:
    """A candidate of the compiler in a session of LRAI."""
    path = place / candidate.name / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(candidate.net.model, path)
    own = replace(spec, path=str(path), external=())
    return Session(own, 1, candidate.options), own


def cosines(wanted: Tensors, found: Tensors) -> npt.NDArray[np.float64]:
    """Of each row of the first output."""
    a, b = (next(iter(each.values())).astype(np.float64) for each in (wanted, found))
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def encoder(
    bench: Bench, spec: ModelSpec, calibrate: Sequence[Tensors], timed: Tensors, judged: Sequence[Tensors], out: Outcome
) -> None:
    """Times and cosines of a transformer: the compiler's 8-bit forms and onnxruntime's, against fp32."""
    place = Path(spec.path).parent
    net = importing.read(spec).net
    if net is None:
        raise Failed(f"{spec.path} cannot be compiled")
    made = candidates.base(spec, net, calibrate, bench.say)
    runs: dict[str, Callable[[Tensors], Tensors]] = {FP32: Session(spec).run}
    memory = {FP32: peak_mb(spec, RunOptions(), timed)}
    for label, each in (("LRAI", candidates.static(made)), ("LRAI dynamic", candidates.one_request(made))):
        for candidate in each:
            session, own = written(candidate, spec, place)
            runs[label], memory[label] = session.run, peak_mb(own, candidate.options, timed)
    for label, path in quantized(Path(spec.path), calibrate).items():
        session_ = plain(path)
        names = [each.name for each in session_.get_outputs()]
        runs[label] = lambda feed, s=session_, n=names: dict(zip(n, s.run(n, feed), strict=True))
        memory[label] = peak_mb(replace(spec, path=str(path)), RunOptions(), timed)
    found = in_turns({name: partial(run, timed) for name, run in runs.items()}, bench.rounds)
    for name, values in found.items():
        out.add(name, MS, values, 1)
        out.add(name, MB, [memory[name]])
        if name != FP32:
            least = min(float(cosines(runs[FP32](feed), runs[name](feed)).min()) for feed in judged)
            out.add(name, COSINE, [least], 4)


def bert(bench: Bench) -> Outcome:
    """BERT-base with random weights."""
    sizes = transformers.TINY if bench.quick else transformers.BERT_BASE
    seq = sizes.positions if bench.quick else TOKENS
    spec = built("bert", lambda path: transformers.bert(path, sizes))
    out = bench.outcome(
        "kernels-bert", f"BERT-base{', tiny' if bench.quick else ''}, {seq} tokens, one row, one thread"
    )
    feeds = [transformers.tokens(1, seq, sizes, seed) for seed in range(8)]
    encoder(bench, spec, feeds[:4], feeds[4], feeds[4:], out)
    faster(out, "LRAI", 2.5)
    faster(out, "LRAI dynamic", 3.3)
    smaller(out, "LRAI", 0.4)
    return out


def sentences(bench: Bench) -> Outcome:
    """A real encoder on real sentences."""
    source = minilm.download(ROOT / "build" / "bench" / "minilm")
    spec = built("minilm", lambda path: minilm.build(source, path))
    pieces = minilm.WordPiece(source / "vocab.txt")
    text = minilm.sentences()
    order = np.random.default_rng(0).permutation(len(text))
    held = [text[place] for place in order[: 16 if bench.quick else SENTENCES]]
    others = [text[place] for place in order[SENTENCES : SENTENCES + 64]]
    out = bench.outcome("kernels-minilm", f"{minilm.PACKAGE}, {len(held)} sentences of Python's language reference")
    calibrate = [pieces.batch(others[at : at + 8]) for at in range(0, 64, 8)]
    timed = transformers.tokens(1, TOKENS, transformers.MINILM_L6)
    encoder(bench, spec, calibrate, timed, [pieces.batch([each]) for each in held], out)
    faster(out, "LRAI", 2.0)
    out.limit("LRAI", COSINE, 0.99, at_most=False)
    out.notes.append(f"times: one row of {TOKENS} tokens; cosines: each sentence by itself, calibrated on 64 others")
    return out


def resnet(bench: Bench) -> Outcome:
    """ResNet-50 with random weights, compiled whole."""
    image = 64 if bench.quick else 224
    spec = built("resnet50", lambda path: nets.resnet50(path, 1, image))
    out = bench.outcome("kernels-resnet", f"ResNet-50, random weights, {image} x {image} pixels, one row, one thread")
    began = time.monotonic()
    compiled = compiler.compile_model(spec, None, compiler.Options(agreement_min=0.0), bench.say)
    out.add("LRAI", "compile s", [time.monotonic() - began], 1)
    spec = repository.load_model(Path(spec.path).parents[2], spec.model, spec.version)
    spec = replace(spec, require_certificate="none")
    pixels = np.random.default_rng(1).integers(0, 256, (5, image, image, 3), np.uint8)
    timed = {"pixels": pixels[:1]}
    runs: dict[str, Run] = {FP32: partial(Session(spec).run, timed)}
    out.add(FP32, MB, [compiled.original.memory_bytes / 1e6])
    for each in spec.variants:
        kept = next(one.manifest for one in compiled.kept if one.name == each.name)
        label = "LRAI" if each.name == "int8" else f"LRAI {each.name}"
        session = loading.load_variant(spec, each, 1).session
        runs[label] = partial(session.run, timed)
        if kept is not None:
            out.add(label, MB, [kept.memory_bytes / 1e6])
            out.add(label, "mean error %", [100 * kept.error.mean], 3)
    for label, path in quantized(Path(spec.path), [{"pixels": pixels[at : at + 1]} for at in range(1, 5)]).items():
        runs[label] = partial(plain(path).run, None, timed)
    for name, values in in_turns(runs, bench.rounds).items():
        out.add(name, MS, values, 1)
    faster(out, "LRAI", 3.3)
    smaller(out, "LRAI", 0.4)
    out.limit("LRAI", "compile s", 180)
    return out


def accuracy(bench: Bench) -> Outcome:
    """Every variant that is kept, on rows that neither training nor calibration saw."""
    out = bench.outcome("kernels-accuracy", "Trained models on held-out rows: the variants that the compiler keeps")
    losses, agreements, took = [0.0], [100.0], []
    for model in trained.models(HOME / "trained"):
        spec = repository.load_model(model.folder.parents[1], model.name, "1")
        began = time.process_time()
        given = rows.given([{"features": model.seen}], spec, model.name, "file")
        compiler.compile_model(spec, given, compiler.Options(), bench.say)
        took.append(time.process_time() - began)
        spec = repository.load_model(model.folder.parents[1], model.name, "1")
        spec = replace(spec, require_certificate="none")
        original = _decided(spec, Session(spec), model)
        out.add(FP32, f"{model.name}, % right", [_right(original, model)], 2)
        found = {
            each.name: _decided(spec, loading.load_variant(spec, each, 1).session, model) for each in spec.variants
        }
        if not found:
            out.notes.append(f"{model.name} keeps its original")
            continue
        right = {name: _right(decided, model) for name, decided in found.items()}
        same = {name: _agreement(original, decided) for name, decided in found.items()}
        out.add("LRAI, its worst variant", f"{model.name}, % right", [min(right.values())], 2)
        out.add("LRAI, its worst variant", f"{model.name}, % agreement", [min(same.values())], 2)
        out.notes.append(f"{model.name}: {len(found)} variants, {min(same, key=lambda name: same[name])} agrees least")
        losses.append(_right(original, model) - min(right.values()))
        agreements.append(min(same.values()))
    out.add("LRAI", "compile CPU s of a tabular model", took, 1)
    out.targets += [
        Target("largest loss of accuracy, points", max(losses), 1.0, at_most=True),
        Target("least label agreement %", min(agreements), 99.0),
        Target("longest compilation, CPU s", max(took), 10.0, at_most=True),
    ]
    return out


def _decided(spec: ModelSpec, session: Session, model: trained.Trained) -> list[str | None]:
    return judge.decisions(spec, session.run({"features": model.held_out}), len(model.held_out))


def _right(decided: list[str | None], model: trained.Trained) -> float:
    return 100 * float(np.mean([word == str(each) for word, each in zip(decided, model.classes, strict=True)]))


def _agreement(original: list[str | None], decided: list[str | None]) -> float:
    return 100 * float(np.mean([a == b for a, b in zip(original, decided, strict=True)]))


def widths(bench: Bench) -> Outcome:
    """Chosen widths against uniform ones and the reverse at the same size."""
    out = bench.outcome(
        "kernels-widths", "Bit widths a layer: error at the same file size (share of the outputs' root mean square)"
    )
    for model in trained.models(HOME / "trained"):
        if model.name.endswith("trees") or model.name.startswith("diabetes"):
            continue
        spec = repository.load_model(model.folder.parents[1], model.name, "1")
        net = importing.read(spec).net
        if net is None:
            raise Failed(f"{spec.path} cannot be compiled")
        made = candidates.base(spec, net, [{"features": model.seen[:256]}], bench.say)
        found = probe.measure(made, bench.say)
        choices = found.choices(mixed.EIGHT)
        mirrored = _mirrored(choices)
        for title, size, other in _rivals(choices, mirrored, [each.name for each in made.layers]):
            plan = {name: each.width for name, each in allocate.under_bytes(choices, size).items()}
            ours, theirs = (made.error(made.written(each), made.options()) for each in (plan, other))
            out.add("LRAI", f"{model.name}, as {title}, %", [100 * ours], 3)
            out.add(title, f"{model.name}, as {title}, %", [100 * theirs], 3)
            out.targets.append(Target(f"{model.name}: error over {title}", ours / theirs, 1.0, at_most=True))
        _, predicted, measured = mixed.allocated(found, mixed.EIGHT, BUDGET, made.options())
        ratio = max(measured / max(predicted, 1e-12), predicted / max(measured, 1e-12))
        out.add("LRAI", f"{model.name}, chosen within {BUDGET:.0%}: measured, %", [100 * measured], 3)
        out.add("LRAI", f"{model.name}, chosen within {BUDGET:.0%}: predicted, %", [100 * predicted], 3)
        out.targets.append(Target(f"{model.name}: predicted and measured error apart", ratio, 1.3, at_most=True))
    return out


def _mirrored(choices: Mapping[str, Sequence[Choice[Width]]]) -> dict[str, list[Choice[Width]]]:
    """The most sensitive layer taken for the least sensitive one, and so on."""
    four = {name: next(one.square for one in each if one.width == mixed.EIGHT[0]) for name, each in choices.items()}
    order = sorted(four, key=lambda name: four[name])
    other = dict(zip(order, reversed(order), strict=True))
    return {
        name: [replace(one, square=one.square * four[other[name]] / max(four[name], 1e-30)) for one in each]
        for name, each in choices.items()
    }


def _rivals(
    choices: Mapping[str, Sequence[Choice[Width]]], mirrored: Mapping[str, Sequence[Choice[Width]]], layers: list[str]
) -> list[tuple[str, int, Plan]]:
    """Title, bytes and widths by layer of what to beat."""
    size = {
        width: sum(one.file_bytes for each in choices.values() for one in each if one.width == width)
        for width in (mixed.EIGHT[0], STATIC)
    }
    between = (size[mixed.EIGHT[0]] + size[STATIC]) // 2
    reverse = {name: each.width for name, each in allocate.under_bytes(mirrored, between).items()}
    return [
        ("uniform 8 bits", size[STATIC], dict.fromkeys(layers, STATIC)),
        ("uniform 4-bit weights", size[mixed.EIGHT[0]], dict.fromkeys(layers, mixed.EIGHT[0])),
        ("reverse allocation", between, reverse),
    ]


def members(bench: Bench) -> Outcome:
    """One graph against a session for each member, at one row."""
    out = bench.outcome("kernels-ensemble", "Models on the same input: one graph against a session each, one row")
    mixed_sizes = [(30, 64, 2), (30, 32, 2), (30, 64, 32, 2), (30, 128, 64, 2)]
    for title, sizes, goal in (
        ("8 small MLPs of four shapes", mixed_sizes * 2, 2.0),
        ("8 equal MLPs 30-64-2", [(30, 64, 2)] * 8, 4.0),
        ("32 equal MLPs 30-64-2", [(30, 64, 2)] * 32, 4.0),
    ):
        models = HOME / f"members-{len(sizes)}-{len(set(sizes))}"
        folders = [nets.mlp(models / f"m{n}" / "1" / "model.onnx", each, n).parent for n, each in enumerate(sizes)]
        features = np.random.default_rng(0).standard_normal((1, 30), np.float32)
        sessions = [Session(repository.load_model(models, each.parent.name, "1")) for each in folders]
        runs: dict[str, Run] = {
            "a session each": lambda s=sessions, x=features: [each.run({"features": x}) for each in s],
        }
        forms = {"LRAI": (1, False), "LRAI, joined output": (1, True), "side by side": (64, False)}
        for label, form in forms.items():
            if form[1] and len(set(sizes)) > 1:
                continue
            path = models / label.replace(" ", "-").replace(",", "") / "model.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            onnx.save(ensemble.merge(folders, *form), path)
            spec = repository.load_model(models, _entry(models, path), "1")
            runs[label] = partial(Session(spec).run, {"features": features})
        for name, values in in_turns(runs, bench.rounds, 0.05).items():
            out.add(name, f"{title}, {US}", [1e3 * each for each in values], 1)
        theirs = out.median("a session each", f"{title}, {US}")
        for label in ("LRAI", "LRAI, joined output"):
            if theirs and (ours := out.median(label, f"{title}, {US}")):
                out.targets.append(Target(f"{title}: a session each over {label}", theirs / ours, goal))
    out.notes.append("an output a member costs a Gather and its fetch each; joined is one output of all members")
    return out


def _entry(models: Path, path: Path) -> str:
    """Moves the graph into a version of its own. Returns the model's name."""
    name = path.parent.name.lower()
    folder = models / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    path.replace(folder / "model.onnx")
    return name


def built(name: str, build: Callable[[Path], object]) -> ModelSpec:
    """Built when it is not there."""
    path = HOME / name / "1" / "model.onnx"
    if not path.exists():
        build(path)
    return repository.load_model(HOME, name, "1")


CASES: dict[str, Callable[[Bench], Outcome]] = {
    "ensemble": members,
    "accuracy": accuracy,
    "widths": widths,
    "minilm": sentences,
    "bert": bert,
    "resnet": resnet,
}


def main() -> int:
    """Runs the cases asked for. Returns 1 when a case could not be measured."""
    parser = argparse.ArgumentParser(prog="tests.bench.kernels", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small nets, into build/bench-quick.json")
    parser.add_argument("--document", action="store_true", help="writes docs/benchmarks.md anew, too")
    given = parser.parse_args()
    console = Console(width=140 if not sys.stdout.isatty() else None)
    results = ROOT / "build" / ("bench-quick.json" if given.quick else "bench.json")
    document = ROOT / "docs" / "benchmarks.md" if given.document and not given.quick else None
    failures = 0
    for name in given.only:
        console.print(f"{time.strftime('%H:%M:%S')}  {name} ...", highlight=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = CASES[name](Bench(given.quick, given.rounds, lambda what: None))
        except Failed as err:
            failures += 1
            console.print(f"{name} could not be measured: {err}", markup=False)
            continue
        report.show(console, outcome)
        report.save([outcome], report.machine({}), results, document)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
