"""Certificates written by the tests themselves, with any slopes: what is claimed is what the checker can show."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from math import nextafter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from kernels.proof.checker import identity
from kernels.proof.checker_bounds import Box, Pairing
from kernels.proof.checker_graph import Net, load, read
from kernels.proof.checker_lines import GRID
from kernels.proof.checker_outputs import Outputs
from tests.random_nets import Array, Pair, Rng

INFINITY = float("inf")
Choice = Callable[[Rng, int], Array]


def grid(values: Array) -> list[int]:
    """float32 numbers over 2^GRID."""
    return [int(Fraction(float(each)) * (1 << GRID)) for each in values.ravel()]


def paired(original: Net, variant: Net) -> dict[str, list[str] | None]:
    """Units in their order; a quantizer that the original has not with the tensor that it is of.

    A quantizer that took in its rectifier stands for both.
    """
    left = list(original.units)
    pairs: dict[str, list[str] | None] = {}
    source = "x"
    for unit in variant.units:
        n = len(unit.argument.items)
        node = variant.producers.get(unit.tensor)
        rectifies = node is not None and node.op_type == "QuantizeLinear" and node.input[0] not in variant.tensors
        if (unit.levels is None or rectifies) and left:
            source = left.pop(0).tensor
            pairs[unit.tensor] = ["unary", source]
        elif len(original.tensors[source].items) == n:
            pairs[unit.tensor] = ["tensor", source]
        else:
            pairs[unit.tensor] = None
    return pairs


def random_slopes(rng: Rng, pairing: Pairing) -> list[int]:
    """Any slopes: 0 to 1 for values and differences, a little of the original's value."""
    found: list[int] = []
    for unit in [*pairing.original.units, *pairing.variant.units]:
        n = len(unit.argument.items)
        found += rng.integers(0, 257, 2 * n).tolist()
        for most in (256, 16, 256, 16) if unit.node in pairing.mates else ():
            found += rng.integers(-16 if most == 16 else 0, most + 1, n).tolist()
    return found


def saved(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """Both models as files."""
    paths = folder / "original.onnx", folder / "variant.onnx"
    for path, model in zip(paths, (pair.original, pair.variant), strict=True):
        onnx.save(model, path)
    return paths


def hashes(paths: tuple[Path, Path]) -> dict[str, dict[str, str]]:
    """What a certificate says of both models."""
    digests = [hashlib.sha256(each.read_bytes()).hexdigest() for each in paths]
    return {
        which: {"path": path.name, "sha256": digest}
        for which, path, digest in zip(("original", "variant"), paths, digests, strict=True)
    }


def nets(paths: tuple[Path, Path], pair: Pair) -> tuple[Net, Net]:
    """Both as the checker reads them."""
    names = [each.graph.output[0].name for each in (pair.original, pair.variant)]
    original = read(load(paths[0])[0], names[0])
    return original, read(load(paths[1])[0], names[1], len(original.units) + 1, 2)


def hexed(value: Fraction) -> str:
    """A float at or above the number, as C99 hex."""
    near = float(value)
    return (near if Fraction(near) >= value else nextafter(near, INFINITY)).hex()


def written(folder: Path, pair: Pair, quantity: str = "raw", seed: int = 0, cuts: int = 0) -> Path:
    """certificate.json for the pair over its box, cut `cuts` times in the middle of feature 0."""
    paths = saved(folder, pair)
    original, variant = nets(paths, pair)
    pairs = paired(original, variant)
    pairing = Pairing(original, variant, pairs)
    outputs, rng = Outputs(pairing), np.random.default_rng(seed)
    bounds = [Fraction(0)]

    def tree(low: Array, high: Array, left: int) -> dict[str, Any]:
        if left:
            at = np.float32((low.flat[0] + high.flat[0]) / 2)
            below, above = high.copy(), low.copy()
            below.flat[0] = above.flat[0] = at
            sides = {"below": tree(low, below, left - 1), "above": tree(above, high, 0)}
            return {"split": 0, "at": float(at).hex(), **sides}
        slopes = random_slopes(rng, pairing)
        box = Box(pairing, grid(low), grid(high), slopes, floats=True)
        found = outputs.bound(box, quantity)
        if found is None:
            return {"open": "the label may change"}
        bounds.append(found[0])
        packed = base64.b64encode(zlib.compress(struct.pack(f"<{len(slopes)}h", *slopes))).decode()
        numbers = {"bound": hexed(found[0]), "bound_real": hexed(found[1])}
        return {"leaf": len(bounds) - 2, **numbers, "slopes": packed}

    root = tree(pair.low, pair.high, cuts)
    sides = {"low": pair.low, "high": pair.high}
    certificate: dict[str, Any] = {
        "format": 1,
        "created": "2026-01-01T00:00:00Z",
        "seconds": 0.0,
        **hashes(paths),
        "output": quantity,
        "outputs": [each.graph.output[0].name for each in (pair.original, pair.variant)],
        "epsilon": hexed(max(bounds)),
        "semantics": {
            "arithmetic": "float32",
            "session": {"graph_optimization_level": "all", "config": {"session.disable_quant_qdq": "1"}},
            "cpu_features": [],
        },
        "verdict": "PROVED",
        "pairs": pairs,
        "regions": [{**{name: [float(v).hex() for v in each.ravel()] for name, each in sides.items()}, "tree": root}],
        "coverage": {},
        "statistical": None,
        "counterexample": None,
    }
    return rewritten(folder / "certificate.json", certificate)


def rewritten(path: Path, certificate: dict[str, Any]) -> Path:
    """The certificate with an id that fits its content, as one who tampers with it would write it."""
    path.write_text(json.dumps({**certificate, "id": identity(certificate)}))
    return path
