"""certificate.json: what was proved of a variant, so that the checker can prove it again from the two files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from kernels.proof.bounds import Analysis
from kernels.proof.lines import GRID, Lines
from kernels.proof.outputs import bounded
from kernels.proof.question import Question
from kernels.proof.split import Box, Outcome
from kernels.proof.stat import Statistics
from kernels.proof.trees import Forest

FORMAT = 1
FILE = "certificate.json"
_ROOM = 1 + 2.0**-10  # above our bound: the checker rounds otherwise
_UNCOUNTED = ("id", "created", "seconds")


def certificate(
    question: Question, outcome: Outcome, epsilon: float, models: dict[str, dict[str, str]], now: datetime,
    verdict: str, statistics: Statistics | None = None, coverage: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The certificate of one region. `models`: path and sha256 of "original" and "variant"."""
    product = question.product
    region = {"low": _hexes(outcome.root.low), "high": _hexes(outcome.root.high)}
    tree = {"open": question.reason} if product is None else _tree(question, outcome.root, epsilon)
    found: dict[str, Any] = {
        "format": FORMAT,
        "created": now.isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 3),
        "tool": {"lrai": version("lrai"), "onnxruntime": onnxruntime.__version__, "numpy": np.__version__,
                 "onnx": onnx.__version__},
        **models,
        "output": question.quantity,
        "outputs": list(question.outputs),
        "epsilon": epsilon.hex(),
        "semantics": question.semantics,
        "verdict": verdict,
        "pairs": {} if product is None else {
            unary.tensor: list(mate.name) if mate else None
            for unary, mate in zip(product.variant.unaries, product.mates, strict=True)
        },
        "regions": [{**region, "tree": tree}],
        "coverage": coverage or {},
        "statistical": statistics.as_dict() if statistics else None,
        "counterexample": None if outcome.x is None else {"x": _hexes(outcome.x), "seen": float(outcome.seen).hex()},
    }  # fmt: skip
    return {**found, "id": identity(found)}


def identity(found: dict[str, Any]) -> str:
    """The SHA-256 of what a certificate says."""
    counted = {name: each for name, each in found.items() if name not in _UNCOUNTED}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write(path: Path, found: dict[str, Any]) -> None:
    """Writes beside its place, then renames. Raises OSError."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(json.dumps(found, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _tree(question: Question, root: Box, epsilon: float) -> dict[str, Any]:
    """The cuts and leaves, from the leaves up: trees may be deeper than Python's stack."""
    assert question.product is not None
    most = 0.0 if question.quantity == "label" else epsilon
    done: dict[int, dict[str, Any]] = {}
    leaves, waiting = 0, [root]
    while waiting:
        box = waiting[-1]
        if box.below is None or box.above is None:
            done[id(box)] = _leaf(question, box, most, leaves)
            leaves += "leaf" in done[id(box)]
        elif id(box.below) in done and id(box.above) in done:
            sides = {"below": done.pop(id(box.below)), "above": done.pop(id(box.above))}
            closed = any("open" not in each for each in sides.values())
            cut = {"split": box.axis, "at": box.at.hex(), **sides}
            done[id(box)] = cut if closed else {"open": sides["below"]["open"]}
        else:
            waiting += [box.below, box.above]
            continue
        waiting.pop()
    return done[id(root)]


def _leaf(question: Question, box: Box, most: float, number: int) -> dict[str, Any]:
    if box.open or not box.bound <= most:
        return {"open": box.open or "the bound is above epsilon"}
    assert question.product is not None
    if isinstance(question.product.original, Forest):
        return {"leaf": number, "bound": box.bound.hex(), "bound_real": max(box.real, 0.0).hex(), "slopes": None}
    analysis = Analysis(question.product, box.low[None], box.high[None])
    worst = bounded(analysis, question.quantity)
    bound, real = float(worst.bound[0]), float(worst.real[0])
    if not bound <= most:
        return {"open": "the bound is above epsilon when it is computed alone"}
    bound, real = (min(most, each * _ROOM) for each in (bound, real))
    return {"leaf": number, "bound": bound.hex(), "bound_real": max(real, 0.0).hex(), "slopes": _slopes(analysis)}


def _slopes(analysis: Analysis) -> str:
    """The slopes of all lines in units of 1/256: the original's, then the variant's, each with its difference's."""
    product, found = analysis.product, []
    for node in range(1, len(product.original.unaries) + 1):
        found += _sides(analysis.nodes[node].lines)
    for at in range(1, len(product.variant.unaries) + 1):
        found += _sides(analysis.nodes[product.value(at)].lines)
        if product.mates[at - 1] is not None:
            found += _sides(analysis.nodes[product.difference(at)].lines)
    units = np.concatenate([np.rint(each[0] * GRID) for each in found]) if found else np.zeros(0)
    return base64.b64encode(zlib.compress(units.astype("<i2").tobytes(), 9)).decode()


def _sides(lines: Lines) -> list[Any]:
    sides = (lines.lower.slope, lines.lower.second, lines.upper.slope, lines.upper.second)
    return [each for each in sides if each is not None]


def _hexes(array: Any) -> list[str]:
    return [float(each).hex() for each in array]
