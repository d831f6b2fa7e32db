"""Compiles one version of a model: tries variants, keeps those worth having, writes them beside model.onnx."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from kernels import devices, manifest
from kernels.compile import (
    candidates,
    equity,
    halves,
    importing,
    judge,
    measure,
    mixed,
    pareto,
    proved,
    rows,
    runtime,
)
from kernels.compile.between import Between
from kernels.compile.candidates import Candidate
from kernels.compile.equity import Equity
from kernels.compile.importing import Imported, Reason
from kernels.compile.judge import AGREEMENT_MIN, Comparison, Refused
from kernels.compile.net import Net
from kernels.compile.rows import Rows
from kernels.compile.runtime import LITERAL, NotCompiled, Runner, Tensors
from kernels.devices import CPU, Device
from kernels.manifest import Calibration, Disparity, Golden, Manifest, RunOptions, VariantError
from kernels.session import KernelError, Session, best_rows
from kernels.spec import ModelSpec

LOG = "quantization.jsonl"
GOLDEN_ROWS = 16
_GOLDEN_BYTES_MAX = 8 << 20
_BENCH_ROWS = 256
_BENCH_S = 1.0
_JUDGE_S = 4.0  # of the original's runs on the rows that judge
_JUDGE_ROWS_MIN = 16
_SLOW_S = 0.02  # a row that takes longer
_FEW = 4  # rows of a slow model that checks look at
_DEVIATION_MAX = 1e-4  # where the variant itself errs less
_DEVICE_MAX = 1e-2  # of the original elsewhere from itself on the CPU
_ROUNDINGS = 4  # that kernels which add up in another order may make a difference of
_INTEGER = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger"}
_ROUNDING = {"MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLinear"}  # these round activations on the fly

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """`agreement_min`: the share of decisions that a variant must keep; 0 takes any, for nets without training.
    `proves`: whether a net is proved to be close enough to the original; `disparity_max`: by how much the gap of two
    groups may widen, 1 takes any."""

    agreement_min: float = AGREEMENT_MIN
    budget: float = 0.01  # of the outputs' root mean square: the error that the mixed widths may make
    proves: proved.Proves | None = None
    device: Device = CPU  # that the variants are for: they are judged and timed there
    disparity_max: float = equity.DISPARITY_MAX


@dataclass(frozen=True)
class Tried:
    """A variant that was tried: kept where `refused` is empty."""

    name: str
    refused: str
    manifest: Manifest | None = None
    gains: str = ""


@dataclass(frozen=True)
class Compiled:
    """What came out. `original`: its own record, with times and memory; `notes`: what a person should know."""

    folder: Path
    original: Manifest
    tried: tuple[Tried, ...]
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]

    @property
    def kept(self) -> list[Tried]:
        return [each for each in self.tried if not each.refused]


@dataclass
class _Written:
    """A candidate in its folder, loaded and judged."""

    candidate: Candidate
    folder: Path
    spec: ModelSpec
    session: Session
    error: VariantError
    external: tuple[str, ...] = ()
    disparity: tuple[Disparity, ...] = ()
    seconds: measure.Seconds = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.candidate.name


def compile_model(spec: ModelSpec, given: Rows | None, options: Options, progress: Progress) -> Compiled:
    """Compiles the model; its variants/ is replaced as a whole at the end. Raises NotCompiled, KernelError."""
    progress("reading the graph")
    imported = importing.read(spec)
    found = given or rows.made(spec, imported.net)
    with _aside(Path(spec.path).parent / manifest.FOLDER) as aside:
        return _Compilation(spec, imported, found, options, progress, aside).compiled()


class _Compilation:
    """One compilation, step by step."""

    def __init__(
        self, spec: ModelSpec, imported: Imported, found: Rows, options: Options, progress: Progress, aside: Path
    ) -> None:
        self.spec, self.imported, self.rows, self.options = spec, imported, found, options
        self.progress, self.aside = progress, aside
        self.original = Session(spec, device=options.device)
        self.refused: dict[str, str] = {}
        self.reasons = list(imported.reasons)
        self.row_s = self._row_s()
        self.few = _FEW if self.row_s > _SLOW_S else GOLDEN_ROWS
        judged = rows.first(found.judge, max(_JUDGE_ROWS_MIN, int(_JUDGE_S / self.row_s)))
        self.batches = list(rows.batches(judged, spec.rows_fixed))
        self.answers = [self.original.run(batch) for batch in self.batches]
        self.note = self._beside_the_cpu()
        self.between = Between(spec, self.batches, self.answers, self.row_s, options.agreement_min)
        self.equity = Equity(spec, found, self.original.run, self.row_s, options.disparity_max)
        self.written: list[_Written] = []

    def compiled(self) -> Compiled:
        """Everything, in order."""
        if self.imported.net is not None:
            for candidate in self._candidates(self.imported.net):
                self._try(candidate)
        by_rows = self._timed()
        self._choose(by_rows[manifest.ORIGINAL])
        original, kept = self._recorded(by_rows[manifest.ORIGINAL])
        self._log(kept)
        tried = [*kept, *(Tried(name, why) for name, why in self.refused.items())]
        notes = [f"opset {self.imported.opset}; {', '.join(self.imported.datatypes)}"]
        notes += [*(each for each in (self.rows.cost, self.note) if each), *self.equity.notes]
        return Compiled(self.aside, original, tuple(tried), tuple(self.reasons), tuple(notes))

    def _candidates(self, net: Net) -> Iterator[Candidate]:
        """Each is made when the one before is done with."""
        if moved := candidates.folded(net):
            yield moved
        yield from halves.candidates(moved.net if moved else net, self._feeds(), self.options.device.halves)
        made = candidates.base(self.spec, net, self._feeds(), self.progress)
        self.reasons += made.reasons
        if not made.layers:
            self.reasons.append(Reason("", "", "it has no Conv, Gemm or MatMul that could be quantized"))
            return
        yield from candidates.stored(made)
        yield from candidates.static(made)
        yield from candidates.one_request(made)
        yield from mixed.candidates(made, self.options.budget, self.progress, self._fair)
        if proves := self.options.proves:
            found = proved.candidate(made, lambda net: self._fair(net, RunOptions()) and proves(net), self.progress)
            if found:
                yield found

    def _fair(self, net: Net, options: RunOptions) -> bool:
        return self.equity.fair(Runner(net.model, options).run)

    def _beside_the_cpu(self) -> str:
        """How far the original is from itself on the CPU. Raises NotCompiled where that is too far."""
        if self.options.device.provider == CPU.provider:
            return ""
        name, wanted = self.options.device.name, Session(self.spec).run(self.batches[0])
        deviation = judge.literal_deviation(self.spec, self.answers[:1], [wanted])
        if deviation > _DEVICE_MAX:
            raise NotCompiled(f"{self.spec.path}: its answers on {name} are {deviation:.1e} away from those on the CPU")
        return f"the original's answers on {name} are {deviation:.1e} away from those on the CPU; memory is the host's"

    def _within(self, candidate: Candidate) -> float:
        """How far answers of the same rows may be apart, as a share of the largest: 0 is bit for bit."""
        within = self.options.device.within
        return max(within, _ROUNDINGS * candidate.rounding) if within else 0.0

    def _row_s(self) -> float:
        """Seconds a row of the original, roughly."""
        one = next(rows.batches(rows.first(self.rows.judge, self.spec.rows_fixed or 1), self.spec.rows_fixed), None)
        if one is None:
            raise NotCompiled(
                f"{self.spec.path}: takes {self.spec.rows_fixed} rows a run; give at least twice as many"
            )
        self.original.run(one)
        began = time.perf_counter()
        self.original.run(one)
        return max(time.perf_counter() - began, 1e-6) / (self.spec.rows_fixed or 1)

    def _feeds(self) -> list[Tensors]:
        """As many calibration rows as take about a second in one run: methods and widths are compared on them."""
        most = max(self.spec.rows_fixed or 1, rows.ROWS_MIN, min(_BENCH_ROWS, int(_BENCH_S / self.row_s)))
        return list(rows.batches(rows.first(self.rows.calibrate, most), self.spec.rows_fixed))

    def _try(self, candidate: Candidate) -> None:
        """Writes, loads and judges it; a reason where it must not serve."""
        self.progress(f"{candidate.name}: judging")
        folder = self.aside / candidate.name
        try:
            external = _save(candidate.net, folder)
            spec = replace(self.spec, path=str(folder / "model.onnx"), zipmap=False, external=external)
            session = Session(spec, 1, candidate.options, self.options.device.of(candidate.kind))
            if not candidate.requests_per_run:
                within = max(self._within(candidate), _ROUNDINGS * candidate.rounding)
                judge.batch_invariant(session, self.batches[0], self.few, within)
            apart = self.equity.measured(lambda feed: rows.answered(session, feed, candidate.requests_per_run))
            equity.check(apart)
            compared = self._compared(session, candidate)
            error = compared.error()
            judge.acceptable(error, self.options.agreement_min)
            self.between.check(self.original, session, candidate.requests_per_run, compared)
            self._executed(candidate, session, error)
        except (Refused, KernelError, NotCompiled) as err:
            self.refused[candidate.name] = str(err)
            shutil.rmtree(folder, ignore_errors=True)
            return
        kept = replace(candidate, net=Net(onnx.ModelProto()))  # it is in its file
        self.written.append(_Written(kept, folder, spec, session, error, external, apart))

    def _compared(self, session: Session, candidate: Candidate) -> Comparison:
        found = Comparison(self.spec)
        for batch, wanted in zip(self.batches, self.answers, strict=True):
            found.update(wanted, rows.answered(session, batch, candidate.requests_per_run))
        return found

    def _executed(self, candidate: Candidate, session: Session, error: VariantError) -> None:
        """Raises Refused where the runtime computes something else than the file says."""
        there = Counter[str]()
        if session.device.provider == CPU.provider:  # others keep their graphs to themselves
            there = runtime.operators(runtime.optimized(session.spec.path, candidate.options))
        if not candidate.requests_per_run and (hidden := sorted(_ROUNDING & set(there))):
            raise Refused(f"the runtime would round activations that the graph leaves alone, by {', '.join(hidden)}")
        whole = sum(there[op] for op in _INTEGER)
        if there and whole < candidate.integer_layers:
            self.reasons.append(
                Reason("", "", f"{candidate.name}: {whole} of {candidate.integer_layers} layers run in whole numbers")
            )
        literal = Session(session.spec, 0, LITERAL, session.device)
        feeds = [{name: array[: self.few] for name, array in self.batches[0].items()}]
        if self.spec.rows_fixed:
            feeds = self.batches[:1]
        executed = [session.run(feed) for feed in feeds]
        deviation = judge.literal_deviation(self.spec, executed, [literal.run(feed) for feed in feeds])
        if deviation > max(_DEVIATION_MAX, error.max):
            raise Refused(f"the runtime's answers are {deviation:.1e} away from what the graph says")

    def _timed(self) -> dict[str, measure.Seconds]:
        """Seconds by rows of the original and every variant."""
        sessions = {manifest.ORIGINAL: self.original, **{each.name: each.session for each in self.written}}
        found = measure.seconds(
            sessions, self.batches[0], self.spec.rows_fixed, lambda what: self.progress(f"measuring {what}")
        )
        for each in self.written:
            each.seconds = found[each.name]
        return found

    def _choose(self, original: measure.Seconds) -> None:
        """Only what nothing else beats stays; what is proved, if it beats the original."""
        first = _point(manifest.ORIGINAL, 0.0, _file_bytes(Path(self.spec.path).parent, self.spec.external), original)
        points = {
            each.name: _point(each.name, each.error.mean, _file_bytes(each.folder, each.external), each.seconds)
            for each in self.written
        }
        sampled = [points[each.name] for each in self.written if each.candidate.kind != "proved"]
        by = pareto.front(first, sampled)
        by |= pareto.front(first, [each for each in points.values() if each not in sampled])
        for each in self.written:
            if name := by[each.name]:
                self.refused[each.name] = f"{name} is as good in everything and better in something"
                shutil.rmtree(each.folder, ignore_errors=True)
        self.written = [each for each in self.written if each.folder.exists()]
        self.gains = {name: pareto.gains(first, point) for name, point in points.items()}

    def _recorded(self, original: measure.Seconds) -> tuple[Manifest, list[Tried]]:
        """Manifests and golden inputs of what stays."""
        none = VariantError(0.0, 0.0, 1.0 if self.spec.decision or self.spec.threshold is not None else None,
                            sum(rows.count([each]) for each in self.batches))  # fmt: skip
        folder = Path(self.spec.path).parent
        candidate = Candidate(manifest.ORIGINAL, manifest.ORIGINAL, "-", Net(onnx.ModelProto()))
        apart = self.equity.measured()
        itself = _Written(candidate, folder, self.spec, self.original, none, self.spec.external, apart, original)
        record = self._manifest(itself, None)
        self.aside.mkdir(parents=True, exist_ok=True)
        record.write(self.aside / manifest.ORIGINAL_FILE)
        kept = []
        for each in self.written:
            golden = self._golden(each)
            found = self._manifest(each, golden)
            found.write(each.folder / manifest.MANIFEST)
            kept.append(Tried(found.name, "", found, self.gains[found.name]))
        return record, kept

    def _manifest(self, each: _Written, golden: Golden | None) -> Manifest:
        candidate = each.candidate
        self.progress(f"{candidate.name}: measuring memory")
        alone = candidate.requests_per_run == 1
        found = measure.profile({1: each.seconds[1]} if alone else each.seconds)
        feed = {name: np.resize(array, (found.best_rows, *array.shape[1:])) for name, array in self.batches[0].items()}
        names, device = ("model.onnx", *each.external), each.session.device
        return Manifest(
            candidate.name, candidate.kind, candidate.bits, self.spec.sha256, manifest.sha256(each.folder, names),
            Calibration(self.rows.source, self.rows.sha256, self.rows.calibrate_rows),
            version("lrai"), onnxruntime.__version__, devices.cpu_features(), device.provider, device.options,
            session=candidate.options, requests_per_run=candidate.requests_per_run, profile=found,
            file_bytes=_file_bytes(each.folder, each.external),
            memory_bytes=measure.memory_bytes(each.spec, candidate.options, feed, device),
            error=each.error, layers=candidate.layers, golden=golden, disparity=each.disparity,
        )  # fmt: skip

    def _golden(self, each: _Written) -> Golden:
        """Some rows and the variant's own answers to them, in one run."""
        one = sum(array[:1].nbytes for array in self.batches[0].values())
        n = self.spec.rows_fixed or max(1, min(GOLDEN_ROWS, _GOLDEN_BYTES_MAX // max(one, 1)))
        feed = {name: array[:n] for name, array in self.batches[0].items()}
        answers = rows.answered(each.session, feed, each.candidate.requests_per_run)
        arrays = {f"input/{name}": array for name, array in feed.items()}
        arrays |= {f"output/{name}": array for name, array in answers.items()}
        plain = {name: array.astype(str) if array.dtype == object else array for name, array in arrays.items()}
        np.savez(each.folder / manifest.GOLDEN, **plain)  # type: ignore[arg-type]
        return Golden(manifest.GOLDEN, rows.count([feed]), self._within(each.candidate))

    def _log(self, kept: list[Tried]) -> None:
        """Which layer, how many bits, and why: a JSON object a line."""
        lines = [
            {"variant": each.name, **asdict(layer)} for each in kept if each.manifest for layer in each.manifest.layers
        ]
        lines += [{"variant": name, "refused": why} for name, why in self.refused.items()]
        lines += [{"variant": manifest.ORIGINAL, **asdict(each)} for each in self.reasons]
        for each in self.written:
            lines += [{"variant": each.name, "note": note} for note in each.candidate.notes]
        text = "".join(json.dumps(each) + "\n" for each in lines)
        (self.aside / LOG).write_text(text, encoding="utf-8")


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` when all went well, and is gone when not."""
    aside, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    try:
        for each in (aside, old):
            shutil.rmtree(each, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
    except OSError as err:
        what = f"{err.filename or aside}: {err.strerror or err}"
        fix = "make room or correct the permissions, then compile again"
        raise NotCompiled(f"nothing was changed: {what}; {fix}") from err
    finally:
        for each in (aside, old):
            shutil.rmtree(each, ignore_errors=True)


def _save(net: Net, folder: Path) -> tuple[str, ...]:
    """Writes model.onnx, weights beside it where one file cannot hold them. The names of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    large = net.model.ByteSize() > importing.BYTES_MAX
    if not large:
        importing.checked(net.model, str(path))
    onnx.save(net.model, path, save_as_external_data=large, location="weights")
    return ("weights",) if large else ()


def _file_bytes(folder: Path, external: tuple[str, ...]) -> int:
    return sum((folder / name).stat().st_size for name in ("model.onnx", *external))


def _point(name: str, error: float, file_bytes: int, by_rows: measure.Seconds) -> pareto.Point:
    best = best_rows(by_rows)
    times = (measure.at(by_rows, 1), measure.at(by_rows, 8), by_rows[best] / best)
    return pareto.Point(name, error, file_bytes, times)
