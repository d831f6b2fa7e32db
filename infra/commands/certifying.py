"""`lrai verify MODELS/<model>/<version>/variants/<name>`: over the range of real rows, into certificate.json."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from infra.commands import compiling
from infra.commands.proving import bar, read_box
from kernels import manifest as manifests
from kernels.compile.rows import Rows
from kernels.proof import certificate
from kernels.proof.ir import F64, BadProblem
from kernels.proof.question import Question, ask
from kernels.proof.runtime import Options
from kernels.proof.split import Box, Outcome, Progress, Search, outward
from kernels.proof.stat import Statistics, tested
from kernels.proof.verify import check_box
from kernels.spec import ModelSpec

TESTS = 10_000_000
BALL = 0.03  # of the range of each feature
_BALLS_MAX = 200
_ROWS_FILE = "rows.npy"


def certified(
    folder: Path, box: Path | None, rows: Path | None, epsilon: float, quantity: Any, timeout_s: float, as_json: bool
) -> int:
    """Proves, writes the certificate and its id into the manifest, prints; the exit code. Raises LraiError."""
    began = time.monotonic()
    original = folder.resolve().parent.parent
    if folder.resolve().parent.name != manifests.FOLDER or not (folder / "model.onnx").is_file():
        raise BadProblem(f"{folder}: is no variant; name MODELS/<model>/<version>/variants/<name>")
    spec = compiling.spec_of(original)
    if rows is None and (original / _ROWS_FILE).is_file():
        rows = original / _ROWS_FILE
    if rows is None and box is None:
        raise BadProblem(f"{original}: name the inputs with --box FILE.npz or --data FILE; there is no {_ROWS_FILE}")
    given = compiling.rows_of(rows, spec, ()) if rows else None
    with bar(as_json) as progress:
        left_s = timeout_s - (time.monotonic() - began)
        found, outcome = certify(folder, spec, box, given, epsilon, quantity, left_s, progress)
    _show(found, outcome, as_json, folder)
    return {"PROVED": 0, "REFUTED": 1}.get(found["verdict"], 2)


def certify(
    folder: Path, spec: ModelSpec, box: Path | None, given: Rows | None, epsilon: float, quantity: Any,
    timeout_s: float, on_progress: Progress = lambda done, total: None, tests: int = TESTS, balls: int = _BALLS_MAX,
) -> tuple[dict[str, Any], Outcome]:  # fmt: skip
    """Writes the certificate of the variant in this folder, and its id into the manifest. Raises LraiError.

    About the box of that file, else the range of the rows. At most `tests` random tests, and `balls` around rows.
    """
    began = time.monotonic()
    original = folder.resolve().parent.parent
    manifest = manifests.read(folder / manifests.MANIFEST)
    question = _question(original, folder, manifest, quantity)
    low, high, held = _region(question, spec, box, given)
    outward_low, outward_high = outward(low, high)
    search = Search(question, low[None], high[None], epsilon, began + 0.55 * timeout_s, keep_going=True)
    outcome = search.run(on_progress)[0]
    left_s = began + 0.9 * timeout_s - time.monotonic()
    statistics = tested(question, low, high, epsilon, tests, min(0.8 * left_s, 60.0))
    verdict = _verdict(outcome, statistics)
    coverage: dict[str, Any] = {"held_out": _share(outcome.root, held, epsilon, question), "rows": len(held)}
    if len(held):
        coverage["box"] = float(((held >= outward_low) & (held <= outward_high)).all(1).mean())
    coverage["balls"] = _balls(question, held[:balls], outward_low, outward_high, epsilon, began + 0.97 * timeout_s)
    models = {
        name: {"path": os.path.relpath(place / "model.onnx", folder), "sha256": digest}
        for name, place, digest in (("original", original, spec.sha256), ("variant", folder, manifest.model_sha256))
    }
    found = certificate.certificate(
        question, outcome, epsilon, models, datetime.now(UTC), verdict, statistics, coverage
    )  # fmt: skip
    certificate.write(folder / certificate.FILE, found)
    replace(manifest, certificate=found["id"]).write(folder / manifests.MANIFEST)
    return found, outcome


def _question(original: Path, folder: Path, manifest: manifests.Manifest, quantity: Any) -> Question:
    if manifest.requests_per_run == 1:
        raise BadProblem(f"{folder}: its answers depend on the other rows of a run; such a variant has no certificate")
    if manifest.provider != "CPUExecutionProvider":
        raise BadProblem(f"{folder}: is made for {manifest.provider}, whose arithmetic the proof does not model")
    run = manifest.session
    options = Options(run.graph_optimization_level, tuple(run.disabled_optimizers), dict(run.config))
    return ask(original / "model.onnx", folder / "model.onnx", quantity, options)


def _region(question: Question, spec: ModelSpec, box: Path | None, given: Rows | None) -> tuple[F64, F64, F64]:
    """low, high and held-out rows. Raises BadProblem."""
    held = np.zeros((0, question.features))
    low = high = held
    if given is not None:
        name = spec.inputs[0].name
        parts = [np.concatenate([each[name].reshape(-1, question.features) for each in group]).astype(np.float64)
                 for group in (given.calibrate, given.judge)]  # fmt: skip
        held, low, high = parts[1], parts[0].min(0), parts[0].max(0)
    if box is not None:
        lows, highs = read_box(box, question.features)
        if len(lows) != 1:
            raise BadProblem(f"{box}: holds {len(lows)} boxes; a certificate is about one")
        low, high = lows[0], highs[0]
    check_box(low[None], high[None], question.features)
    return low, high, held


def _verdict(outcome: Outcome, statistics: Statistics) -> str:
    if statistics.x is not None and outcome.verdict != "REFUTED":
        outcome.verdict, outcome.x, outcome.seen = "REFUTED", statistics.x, statistics.seen
    if outcome.verdict == "UNKNOWN" and statistics.tests and not statistics.hits:
        return "STATISTICAL"
    return outcome.verdict


def _share(root: Box, rows: F64, epsilon: float, question: Question) -> float | None:
    """The share of rows inside proved leaves."""
    if not len(rows):
        return None
    inside = np.zeros(len(rows), bool)
    most = 0.0 if question.quantity == "label" else epsilon
    for box in root.leaves():
        if not box.open and box.bound <= most:
            inside |= ((rows >= box.low) & (rows <= box.high)).all(1)
    return float(inside.mean())


def _balls(question: Question, rows: F64, low: F64, high: F64, epsilon: float, deadline: float) -> dict[str, Any]:
    """How many balls around held-out rows are proved: reported, never a gate."""
    if not len(rows) or question.product is None:
        return {}
    radius = BALL * (high - low)
    outcomes = Search(question, rows - radius, rows + radius, epsilon, deadline).run()
    verdicts = [each.verdict for each in outcomes]
    return {"radius": BALL, "rows": len(rows), "proved": verdicts.count("PROVED"), "refuted": verdicts.count("REFUTED")}


def _show(found: dict[str, Any], outcome: Outcome, as_json: bool, folder: Path) -> None:
    size = (folder / certificate.FILE).stat().st_size
    leaves = list(outcome.root.leaves())
    facts = {
        "verdict": found["verdict"], "epsilon": float.fromhex(found["epsilon"]), "id": found["id"],
        "bound": outcome.bound if np.isfinite(outcome.bound) else None, "seen": outcome.seen,
        "reason": outcome.reason, "boxes": len(leaves), "coverage": found["coverage"],
        "statistical": found["statistical"], "semantics": found["semantics"], "certificate_bytes": size,
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts))
        return
    out = Console()
    out.print(f"[bold]{facts['verdict']}[/] within {facts['epsilon']:g} ({found['output']}): bound {facts['bound']},"
              f" largest seen {facts['seen']:.4g}, {len(leaves)} boxes. {outcome.reason}")  # fmt: skip
    share = found["coverage"]["held_out"]
    if share is not None:
        out.print(f"{share:.1%} of {found['coverage']['rows']} held-out rows are inside proved boxes,"
                  f" {found['coverage']['box']:.1%} inside the whole box")  # fmt: skip
    if balls := found["coverage"]["balls"]:
        out.print(f"balls of {BALL} of the range around {balls['rows']} held-out rows: {balls['proved']} proved,"
                  f" {balls['refuted']} refuted")  # fmt: skip
    tests = found["statistical"]
    out.print(f"{tests['hits']} of {tests['tests']} random tests were further apart: a share of at most"
              f" {tests['share_upper']:.2g} with {tests['confidence']:.0%} confidence; this is no proof")  # fmt: skip
    out.print(f"{folder / certificate.FILE}: {size} bytes")
