"""Whether a variant may serve: only with a certificate of these very files and of how this machine computes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from kernels import devices
from kernels.manifest import Manifest
from kernels.region import OPEN, Region, read
from kernels.session import KernelError
from kernels.spec import ModelSpec
from schemas.tensors import FLOATS

FILE = "certificate.json"
FILE_BYTES_MAX = 64 << 20
CHECK_S_MAX = 5  # of a processor
_CHECK_WALL_S_MAX = 30.0
TESTS_MIN = 1_000  # without a hit they leave a share of at most 0.5 % with 99 % confidence
_UNCOUNTED = ("id", "created", "seconds")
_INTEGERS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"}  # what decides how they are multiplied
_BROKEN = (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
_CHECK = f"""import dataclasses, json, pathlib, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({CHECK_S_MAX}, {CHECK_S_MAX}))
from kernels.proof.checker import check
print(json.dumps(dataclasses.asdict(check(pathlib.Path(sys.argv[1])))))"""


@dataclass(frozen=True, slots=True)
class Admission:
    """`kind` is "proved" or "statistical", for the inputs of `region`, or "none"; `checked_s`: what checking took."""

    kind: str = "none"
    certificate: str | None = None
    region: Region | None = None
    checked_s: float = 0.0


UNCERTIFIED = Admission()


def admit(spec: ModelSpec, found: Manifest, folder: Path) -> Admission:
    """What the variant in this folder is certified for. Raises KernelError that says why it must not serve."""
    if spec.require_certificate == "none":
        return UNCERTIFIED
    path = folder / FILE
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
        stated = json.loads(path.read_bytes())
        _is_of(stated, spec, found)
        return _admitted(stated, spec, path)
    except FileNotFoundError:
        why = "it has no certificate"
    except _BROKEN as err:
        why = f"{path} cannot be read ({type(err).__name__}: {err})"
    except _Refused as err:
        why = str(err)
    required = f'require_certificate = "{spec.require_certificate}"'
    raise KernelError(f"{why}; model.toml has {required}: run `lrai verify {folder}`")


class _Refused(Exception):
    """A certificate that does not do."""


def _is_of(stated: dict[str, Any], spec: ModelSpec, found: Manifest) -> None:
    """Raises _Refused where the certificate is about something else than what would serve."""
    counted = {name: each for name, each in stated.items() if name not in _UNCOUNTED}
    digest = hashlib.sha256(json.dumps(counted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    how, own, here = stated["semantics"], asdict(found.session), set(devices.cpu_features())
    own["disabled_optimizers"] = list(found.session.disabled_optimizers)
    listed = set(how["cpu_features"])
    for what, says, is_so in (
        ("format", stated["format"], 1),
        ("id", stated["id"], digest),
        ("original", stated["original"]["sha256"], spec.sha256),
        ("variant", stated["variant"]["sha256"], found.model_sha256),
        ("arithmetic", how["arithmetic"], "float32"),
        ("runtime", how["runtime"], onnxruntime.__version__),
        ("provider", how["provider"], found.provider),
        ("provider_options", how.get("provider_options", {}), found.provider_options),
        ("session", how["session"], own),
        ("cpu_features", sorted(listed), sorted(here & (_INTEGERS | listed))),
        ("requests_per_run", 0, found.requests_per_run),
    ):
        if says != is_so:
            raise _Refused(f"its certificate states {what} = {says!r}, here it is {is_so!r}")
    numbers = [each.name for each in spec.outputs if each.datatype in FLOATS]
    if len(spec.inputs) != 1 or spec.inputs[0].datatype == "BYTES" or len(numbers) > 1:
        raise _Refused("a certificate is about one input and one output of numbers, the model has others")
    if stated["output"] == "label" and spec.score:
        raise _Refused(f"its certificate is about the label alone, the score is {spec.score[0]!r}")
    if stated["output"] != "label" and not 0 <= float.fromhex(stated["epsilon"]) <= spec.epsilon_max:
        raise _Refused(f"its certificate allows {float.fromhex(stated['epsilon'])}, epsilon_max is {spec.epsilon_max}")


def _admitted(stated: dict[str, Any], spec: ModelSpec, path: Path) -> Admission:
    """Raises _Refused where it certifies too little."""
    (entry,) = stated["regions"]
    leaves, box = read(entry, whole=False), read(entry, whole=True)
    if len(box.low) != spec.inputs[0].width:
        raise _Refused(f"its region has {len(box.low)} features, the input {spec.inputs[0].width}")
    verdict, reason, took_s = "", "no part of the region is proved", 0.0
    if leaves.root != OPEN:
        verdict, reason, took_s = _checked(path, stated["id"])
    if verdict == "REJECTED":
        raise _Refused(f"its certificate is wrong: {reason}")
    tests, coverage = stated["statistical"] or {"tests": 0}, stated["coverage"]
    tested = stated["verdict"] != "REFUTED" and tests["tests"] >= TESTS_MIN and tests["hits"] == 0
    if verdict != "PROVED" and tested and spec.require_certificate == "statistical":
        kind, region, share = "statistical", box, coverage.get("box")
    elif verdict in ("PROVED", "PARTIAL"):
        kind, region, share = "proved", leaves, coverage.get("held_out")
    else:
        raise _Refused(f"its certificate says {stated['verdict']}, and is no proof here: {reason}")
    if spec.coverage_min and (share is None or not share >= spec.coverage_min):
        shown = "an unknown share" if share is None else f"{share:.1%}"
        raise _Refused(f"its region holds {shown} of held-out rows, coverage_min is {spec.coverage_min}")
    return Admission(kind, stated["id"], region, took_s)


def _checked(path: Path, certificate: str) -> tuple[str, str, float]:
    """The independent checker's verdict and reason, and the seconds it took, in a process of its own."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHECK, str(path)], capture_output=True, text=True, check=True,
            timeout=_CHECK_WALL_S_MAX,
        )
        report = json.loads(done.stdout)
        if report["id"] != certificate:
            raise ValueError("the file was replaced meanwhile")
        verdict, reason = str(report["verdict"]), str(report["reason"])
    except (subprocess.SubprocessError, *_BROKEN) as err:
        killed = isinstance(err, subprocess.TimeoutExpired) or getattr(err, "returncode", 0) < 0
        why = f"takes more than {CHECK_S_MAX} s" if killed else f"did not end well ({err})"
        verdict, reason = "UNKNOWN", f"its check {why}"
    return verdict, reason, time.monotonic() - began
