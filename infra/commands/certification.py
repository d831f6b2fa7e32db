"""What `lrai compile` does at its end: certificates for what it kept, and how many bits could be proved."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx

from infra.commands import certifying
from kernels import gate, manifest
from kernels.compile import importing, layers
from kernels.compile.compiler import Tried
from kernels.compile.layers import WeightLayer
from kernels.compile.net import Array, Net
from kernels.compile.rows import Rows
from kernels.manifest import Manifest
from kernels.proof import verify
from kernels.proof.ir import BadProblem
from kernels.session import KernelError
from kernels.spec import ModelSpec
from schemas.errors import LraiError

TESTS = 20_000
BITS_MIN, BITS_MAX = 2, 16
LEAVES_MAX = 400  # more take an actor longer to check than it has
_SEARCH_SHARE = 0.3  # of the time, for the number of bits
_GRACE_S = 5.0  # beyond the time that is given, for its imports, before the process is killed

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Certified:
    """By variant what the table says of it; `notes`: what a person should know."""

    shown: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """The answer about a variant, or ("" as its name) about the bits."""

    name: str
    shown: str
    proved: bool = False
    note: str = ""


def certify(spec: ModelSpec, kept: Sequence[Tried], rows: Rows | None, budget_s: float, step: Progress) -> Certified:
    """Certificates over the range of the rows for what a compilation kept, in a process that ends with the time."""
    if not (kept and budget_s):
        return Certified({})
    again = "run `lrai verify VARIANT_FOLDER --data ROWS`"
    if rows is None:
        return Certified({}, (f"no certificates: without --calibration rows there is no range to prove; {again}",))
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    ours, theirs = context.Pipe()
    ordered = sorted((each.manifest for each in kept if each.manifest), key=lambda each: each.file_bytes)
    process = context.Process(target=_work, args=(theirs, spec, ordered, rows, budget_s), daemon=True)
    process.start()
    theirs.close()
    found: dict[str, _Found] = {}
    end = time.monotonic() + budget_s + _GRACE_S
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            each = ours.recv()
            if isinstance(each, str):
                step(each)
            else:
                found[each.name] = each
    except (EOFError, OSError):  # it has ended, well or not
        pass
    process.kill()
    process.join()
    shown = {each.name: found[each.name].shown if each.name in found else "none" for each in kept}
    return Certified(shown, tuple(_notes(ordered, found, again)))


def _notes(ordered: list[Manifest], found: dict[str, _Found], again: str) -> Iterator[str]:
    proved = [each for each in ordered if each.name in found and found[each.name].proved]
    if proved:
        yield f"{proved[0].name} is the smallest that is proved: {proved[0].file_bytes / 1e3:.1f} kB, {proved[0].bits}"
    yield from (each.note for each in found.values() if each.note)
    if missing := [each.name for each in ordered if each.name not in found]:
        yield f"{', '.join(missing)}: no certificate before the time was over; raise --certify-s, or {again}"


def _work(pipe: Connection, spec: ModelSpec, ordered: list[Manifest], rows: Rows, budget_s: float) -> None:
    """Sends a line for each step and what was found, until the end."""
    began = time.monotonic()
    proved: list[bool] = []
    for place, each in enumerate(ordered):
        pipe.send(f"{each.name}: certifying")
        left_s = began + (1 - _SEARCH_SHARE) * budget_s - time.monotonic()
        one = _variant(spec, each, rows, max(left_s, 0.1) / (len(ordered) - place))
        proved.append(one.proved)
        pipe.send(one)
    if not proved[0]:
        pipe.send("bits that can be proved")
        pipe.send(_Found("", "", note=fewest_bits(spec, rows, began + budget_s)))


def _variant(spec: ModelSpec, each: Manifest, rows: Rows, budget_s: float) -> _Found:
    folder = Path(spec.path).parent / manifest.FOLDER / each.name
    try:
        found, outcome = certifying.certify(
            folder, spec, None, rows, spec.epsilon_max, "softmax", budget_s, tests=TESTS, balls=0
        )
    except (LraiError, OSError, MemoryError) as err:
        return _Found(each.name, "none", note=f"{each.name} has no certificate: {err}")
    verdict = str(found["verdict"])
    try:
        gate.admit(spec, manifest.read(folder / manifest.MANIFEST), folder)
    except KernelError as err:
        where = f"such an input is in {folder / gate.FILE}"
        refuted = f"it is {outcome.seen:.2g} from the original, more than {spec.epsilon_max:g}; {where}"
        return _Found(each.name, verdict, note=f"{each.name}: {refuted if verdict == 'REFUTED' else err}")
    return _Found(each.name, verdict, verdict == "PROVED")


class Prover:
    """Proves of forms of a model that they stay within its epsilon over the range of the rows, until the time is over.

    Raises LraiError, OSError, MemoryError where nothing can be proved of the model.
    """

    def __init__(self, spec: ModelSpec, rows: Rows, deadline: float) -> None:
        if len(spec.inputs) != 1:
            raise BadProblem(f"{spec.path}: has {len(spec.inputs)} inputs; proofs are about one")
        self.spec, self.deadline = spec, deadline
        flat = np.concatenate([each[spec.inputs[0].name] for each in rows.calibrate]).astype(np.float64)
        self.range = flat.reshape(len(flat), -1)

    def proves(self, net: Net, share: float = 0.25) -> bool:
        """In at most this share of the time that is left."""
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            return False
        low, high = self.range.min(0), self.range.max(0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(net.model, path)
            found = verify.certify(Path(self.spec.path), path, low, high, self.spec.epsilon_max, share * left_s)
        return found.verdict == "PROVED" and len(list(found.root.leaves())) <= LEAVES_MAX


def prover(budget_s: float) -> Callable[[ModelSpec, Rows], Callable[[Net], bool]] | None:
    """For `lrai compile`: what finds the widths by proof, in a share of the time."""

    def of(spec: ModelSpec, rows: Rows) -> Callable[[Net], bool]:
        own: list[Prover] = []  # the time begins with the first proof

        def proves(net: Net) -> bool:
            try:
                if not own:
                    own.append(Prover(spec, rows, time.monotonic() + _SEARCH_SHARE * budget_s))
                return own[0].proves(net)
            except (LraiError, OSError, MemoryError, ValueError):  # its certificate says why
                return False

        return proves

    return of if budget_s else None


def fewest_bits(spec: ModelSpec, rows: Rows, deadline: float) -> str:
    """The fewest bits of weights alone, by halving, with which it is proved that the model stays within epsilon."""
    try:
        net = importing.read(spec).net
        found = [] if net is None else layers.find(net)[0]
        if net is None or not found:
            return ""
        own = Prover(spec, rows, deadline)
        least, most, proved = BITS_MIN, BITS_MAX, 0
        while least <= most and time.monotonic() < deadline:
            bits = (least + most) // 2
            is_proved = own.proves(_rounded(net, found, bits), 1 / (1 + (most - least).bit_length()))
            least, most, proved = (least, bits - 1, bits) if is_proved else (bits + 1, most, proved)
    except (LraiError, OSError, MemoryError, ValueError) as err:
        return f"how many bits could be proved is not known: {err}"
    if not proved:
        return f"nor would {least - 1} bits for each weight be proved in this time" if least > BITS_MIN else ""
    fewer = f"; {proved - 1} bits were not, in this time" if least == proved else ""
    return f"{proved} bits for each weight would be proved, with floats between the layers{fewer}"


def _rounded(net: Net, found: list[WeightLayer], bits: int) -> Net:
    """The net with weights that have so many bits and a scale a channel, written as floats."""
    weights: dict[str, Array] = {}
    for each in found:
        array = layers.weight_of(net, each).astype(np.float64)
        others = tuple(axis for axis in range(array.ndim) if axis != each.axis)
        scale = np.abs(array).max(axis=others, keepdims=True).astype(np.float32) / np.float32(2 ** (bits - 1) - 1)
        scale = np.where(scale > 0, scale, np.float32(1))
        weights[each.weight] = np.rint(array / scale).astype(np.float32) * scale
    return net.rebuilt(net.nodes, weights)
