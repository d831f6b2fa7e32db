"""A model's original and variants, brought into memory; a variant that is not what was compiled is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from kernels import devices, gate
from kernels import manifest as manifests
from kernels.devices import Device
from kernels.gate import UNCERTIFIED, Admission
from kernels.manifest import Manifest
from kernels.session import DEFAULT, KernelError, Profile, Session
from kernels.spec import ModelSpec, VariantSpec


@dataclass(frozen=True, slots=True)
class InMemory:
    """A loaded, warm variant. `how`: the arguments of its Session; `alone`: a run holds one request."""

    name: str
    session: Session
    how: tuple[Any, ...]
    rows: int  # of a run
    row_s: float  # seconds a row in such runs
    alone: bool = False
    admission: Admission = UNCERTIFIED
    least_s: float = 0.0  # of the shortest run that was measured


def load_all(
    spec: ModelSpec, threads: int, cache: Path, mark: Path, device: Device = devices.CPU
) -> tuple[list[InMemory], dict[str, str]]:
    """The original, then its variants; and why the others are refused. Raises KernelError for the original."""
    found, refused = [load_original(spec, threads, cache, device)], {}
    for variant in spec.variants:
        try:
            found.append(load_variant(spec, variant, threads, mark, device))
        except KernelError as err:
            refused[variant.name] = str(err)
    return found, refused


def load_original(spec: ModelSpec, threads: int, cache: Path, device: Device = devices.CPU) -> InMemory:
    """The model itself. Its profile comes from the compiler, else from `cache`, else it is measured and kept there.

    Raises KernelError.
    """
    how = spec, threads, DEFAULT, device
    session = Session(*how)
    session.warm()
    profile = _compiled(spec, device) or _cached(session, threads, cache)
    least_s = min(profile.seconds.values(), default=0.0)
    return _warm(InMemory(manifests.ORIGINAL, session, how, *_rows(spec, profile), least_s=least_s))


def load_variant(
    spec: ModelSpec, variant: VariantSpec, threads: int, mark: Path | None = None, device: Device = devices.CPU
) -> InMemory:
    """A variant that is certified, and has shown that it is the one that was compiled and answers here as it did there.

    `mark`: a file beside it says which variant is being loaded; where one is left over, the variant killed the process.
    Raises KernelError that says why it is refused.
    """
    if variant.problem:
        raise KernelError(variant.problem)
    own = spec.of(variant)
    folder = Path(own.path).parent
    try:
        found = manifests.read(folder / manifests.MANIFEST)
        _same_files(found, spec, variant, folder)
        _same_device(found, device)
        admission = gate.admit(spec, found, folder)
        alone = found.requests_per_run == 1
        own = replace(own, batch_rows=1) if alone else own
        options = found.session, device.of(found.kind)
        with _marked(mark and mark.with_suffix(f".{found.model_sha256[:16]}.loading")):
            session = Session(own, threads, *options)
            session.warm()
            _replay(session, found, folder)
    except (OSError, manifests.BadManifest) as err:
        raise KernelError(str(err)) from err
    rows, row_s = _rows(own, Profile(found.profile.best_rows, found.profile.seconds))
    return _warm(InMemory(variant.name, session, (own, threads, *options), rows, row_s, alone, admission))


@contextmanager
def _marked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    if path.exists():
        raise KernelError(f"it killed the process that loaded it; compile it again, or delete {path} to try again")
    path.touch()
    try:
        yield
    finally:
        path.unlink()


def _warm(loaded: InMemory) -> InMemory:
    loaded.session.warm(loaded.rows)
    return loaded


def _rows(spec: ModelSpec, profile: Profile) -> tuple[int, float]:
    """Rows of a run, as the operator states or as is fastest, and the seconds a row in runs of about that size."""
    rows = spec.batch_rows or profile.best_rows
    near = min(profile.seconds, key=lambda size: abs(size - rows), default=0)
    return rows, profile.seconds[near] / near if near else 0.0


def _compiled(spec: ModelSpec, device: Device) -> Profile | None:
    """The profile that the compiler measured of this original with this runtime."""
    try:
        found = manifests.read_original(Path(spec.path).parent)
    except manifests.BadManifest:
        return None
    here = spec.sha256, onnxruntime.__version__, device.provider, device.options
    if found is None or (found.original_sha256, found.runtime, found.provider, found.provider_options) != here:
        return None
    return Profile(found.profile.best_rows, found.profile.seconds)


def _cached(session: Session, threads: int, cache: Path) -> Profile:
    """Measured once a model, runtime, device and number of threads, so that a restart does not measure again."""
    spec = session.spec
    where = session.device.name, session.device.options, session.device.placed
    key = repr((spec.sha256, onnxruntime.__version__, threads, spec.batch_rows, spec.buckets, where))
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        stated = json.loads(path.read_bytes())
        return Profile(int(stated["best_rows"]), {int(rows): float(s) for rows, s in stated["seconds"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or torn
        profile = session.profile()
    aside = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # it is measured again next time
        cache.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(asdict(profile)))
        aside.replace(path)
    return profile


def _same_files(found: Manifest, spec: ModelSpec, variant: VariantSpec, folder: Path) -> None:
    for what, stated, here in (
        ("name", found.name, variant.name),
        ("original_sha256", found.original_sha256, spec.sha256),
        ("model_sha256", found.model_sha256, manifests.sha256(folder, ("model.onnx", *variant.external))),
        ("runtime", found.runtime, onnxruntime.__version__),
    ):
        if stated != here:
            raise KernelError(f"its manifest states {what} = {stated!r}, here it is {here!r}; run `lrai compile` again")


def _same_device(found: Manifest, device: Device) -> None:
    """Raises KernelError where the variant was made, judged and timed for something else than this actor runs on."""
    made, here = (found.provider, found.provider_options), (device.provider, device.of(found.kind).options)
    if made != here:
        again = f"run `lrai compile --device {device.name}` again"
        raise KernelError(f"it was compiled for {made[0]} {made[1]}, the actor runs on {here[0]} {here[1]}; {again}")


def _replay(session: Session, found: Manifest, folder: Path) -> None:
    """Golden inputs must give their golden answers: another processor or runtime may compute otherwise.

    Bit for bit on the CPU; elsewhere as close as the manifest says, as kernels are chosen anew on each device.
    """
    if found.golden is None:
        raise KernelError("its manifest names no golden inputs; run `lrai compile` again")
    try:
        with (folder / found.golden.file).open("rb") as file, np.load(file) as stored:
            arrays = {tuple(name.split("/", 1)): stored[name] for name in stored}
    except Exception as err:  # whatever lies in a torn file
        raise KernelError(f"{found.golden.file} cannot be read ({err}); run `lrai compile` again") from err
    inputs, wanted = [{k[1]: v for k, v in arrays.items() if k[0] == kind} for kind in ("input", "output")]
    rows = min(map(len, inputs.values()), default=0)
    if not rows or not wanted:
        raise KernelError(f"{found.golden.file} holds no golden rows; run `lrai compile` again")
    step = 1 if found.requests_per_run == 1 else rows
    within = found.golden.within if session.device.within else 0.0
    runs = [session.run({k: v[at : at + step] for k, v in inputs.items()}) for at in range(0, rows, step)]
    for name, each in wanted.items():
        if name not in runs[0]:
            raise KernelError(f"{found.golden.file} has answers of an output {name!r} that the graph does not have")
        if not _equal(each, np.concatenate([run[name] for run in runs]), within):
            raise KernelError(
                f"it answers golden inputs otherwise than where it was compiled (output {name!r}); run `lrai compile` "
                "on a machine like this one"
            )


def _equal(wanted: npt.NDArray[Any], found: npt.NDArray[Any], within: float) -> bool:
    """`within`: a share of the largest number that is wanted; 0 is bit for bit."""
    if found.dtype == object:
        return bool(wanted.tolist() == found.tolist())
    if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
        return False
    if not within or wanted.dtype.kind != "f":
        return wanted.tobytes() == found.tobytes()
    largest = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0))
    return bool(np.allclose(wanted, found, rtol=0, atol=within * largest, equal_nan=True))
