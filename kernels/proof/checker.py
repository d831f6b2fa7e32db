"""Re-checks a certificate from the two model files alone, in exact numbers; shares nothing with the prover.

Of the certificate it takes the region, the tree, the pairs and the slopes of lines, none of which can make a wrong
bound: constants, errors and bounds are computed here. Statistics, coverage and counterexamples are not checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import onnx

from kernels.proof.checker_bounds import Box, Mate, Pairing
from kernels.proof.checker_graph import read
from kernels.proof.checker_lines import GRID, Slopes
from kernels.proof.checker_outputs import Outputs
from kernels.proof.checker_rows import Lacks, Net, Wrong

FORMAT = 1
FILE_BYTES_MAX = 64 << 20
DEPTH_MAX = 2_000
SLOPES_MAX = 10_000_000
AS_WRITTEN = "session.disable_quant_qdq"  # floats between QuantizeLinear and DequantizeLinear, as the graph says
_UNCOUNTED = ("id", "created", "seconds")
_BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, ArithmeticError, struct.error,
           zlib.error)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What is left of a certificate's claim. verdict: "PROVED" | "PARTIAL" | "UNKNOWN" | "REJECTED"."""

    verdict: str
    reason: str
    claimed: str = ""
    id: str = ""
    output: str = ""
    epsilon: float = 0.0
    bound: float | None = None  # the largest one computed of the closed leaves
    leaves: int = 0
    open: int = 0


def check(path: Path) -> Report:
    """The report of a certificate file. Never raises for what a file holds.

    PROVED: each leaf is closed and its bound holds. PARTIAL: so do the closed ones, others are open. UNKNOWN: the
    checker lacks something, or nothing is claimed that it could check. REJECTED: `reason` says what is wrong.
    """
    facts: dict[str, Any] = {}
    try:
        certificate = _load(path)
        facts = {name: str(certificate.get(name, "")) for name in ("id", "output")}
        facts["claimed"] = str(certificate.get("verdict", ""))
        return _checked(certificate, path.parent, facts)
    except Lacks as err:
        return Report("UNKNOWN", f"the checker lacks: {err}", **facts)
    except Wrong as err:
        return Report("REJECTED", str(err), **facts)
    except _BROKEN as err:
        return Report("REJECTED", f"{path}: no certificate of format {FORMAT} ({type(err).__name__}: {err})", **facts)


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise Wrong(f"{path}: more than {FILE_BYTES_MAX} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise Wrong(f"{path}: cannot be read ({err}); copy it again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Wrong(f"{path}: no certificate of format {FORMAT}")
    return found


def identity(certificate: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON without what differs between equal certificates."""
    kept = {key: each for key, each in certificate.items() if key not in _UNCOUNTED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _checked(certificate: dict[str, Any], folder: Path, facts: dict[str, Any]) -> Report:
    if identity(certificate) != certificate["id"]:
        raise Wrong("the id is not that of the content: something was changed")
    quantity, epsilon = certificate["output"], number(certificate["epsilon"])
    arithmetic = certificate["semantics"]["arithmetic"]
    if quantity not in ("raw", "softmax", "label") or arithmetic not in ("float32", "real") or epsilon < 0:
        raise Wrong(f"output {quantity!r}, arithmetic {arithmetic!r} or epsilon {float(epsilon)} is not one there is")
    facts["epsilon"] = float(epsilon)
    paths = [_model(certificate[which], folder, which) for which in ("original", "variant")]
    original, variant = (read(each, name) for each, name in zip(paths, certificate["outputs"], strict=True))
    ends = [(net.features, net.softmax, bool(net.sigmoid)) for net in (original, variant)]
    if ends[0] != ends[1]:
        raise Wrong("the models take different inputs or end in different ways")
    _runtime(certificate["semantics"], original, variant)
    n = len(variant.tensors[variant.output].rows) if variant.sigmoid else 0
    skipped = 2 * n, (6 if certificate["pairs"].get(variant.sigmoid) else 2) * n
    pairing = Pairing(original, variant, _mates(certificate["pairs"], original, variant), skipped)
    claim = _Claim(pairing, Outputs(pairing), quantity, epsilon, arithmetic == "float32")
    for region in certificate["regions"]:
        low, high = ([grid(each) for each in region[side]] for side in ("low", "high"))
        if len(low) != original.features or len(high) != len(low) or any(a > b for a, b in zip(low, high, strict=True)):
            raise Wrong("a region is empty, or has other features than the models")
        claim.tree(region["tree"], low, high)
    bound = None if claim.bound is None else float(claim.bound)
    counts: dict[str, Any] = {"bound": bound, "leaves": claim.closed, "open": claim.left}
    if claim.closed and not claim.left:
        return Report("PROVED", "every leaf is covered and every bound holds", **counts, **facts)
    if certificate["verdict"] == "PROVED":
        raise Wrong("PROVED is claimed, and there are open leaves or none at all")
    if claim.closed:
        return Report("PARTIAL", "the bounds of the closed leaves hold; others are open", **counts, **facts)
    return Report("UNKNOWN", "no leaf is closed: there is nothing to check", **counts, **facts)


@dataclass
class _Claim:
    """What is claimed of each leaf, and how far it is checked."""

    pairing: Pairing
    outputs: Outputs
    quantity: str
    epsilon: Fraction
    floats: bool
    closed: int = 0
    left: int = 0
    bound: Fraction | None = None

    def tree(self, root: dict[str, Any], low: list[int], high: list[int]) -> None:
        """Walks the tree: the two sides of each cut cover what is cut."""
        waiting = [(root, low, high, 0)]
        while waiting:
            node, low, high, depth = waiting.pop()
            if depth > DEPTH_MAX:
                raise Wrong("the tree is too deep")
            if "open" in node:
                self.left += 1
            elif "leaf" in node:
                self.leaf(node, low, high)
            else:
                axis, at = node["split"], grid(node["at"])
                if not isinstance(axis, int) or not 0 <= axis < len(low) or not low[axis] <= at <= high[axis]:
                    raise Wrong(f"the tree cuts feature {axis} outside of its box")
                waiting.append((node["below"], low, [*high[:axis], at, *high[axis + 1 :]], depth + 1))
                waiting.append((node["above"], [*low[:axis], at, *low[axis + 1 :]], high, depth + 1))

    def leaf(self, node: dict[str, Any], low: list[int], high: list[int]) -> None:
        """Recomputes the bound of a closed leaf. Raises Wrong when the claimed one is smaller."""
        box = Box(self.pairing, low, high, _slopes(node["slopes"]), self.floats)
        found = self.outputs.bound(box, self.quantity)
        claimed, real = number(node["bound"]), number(node["bound_real"])
        if found is None:
            raise Wrong(f"leaf {node['leaf']}: the label may change")
        if found[0] > claimed or found[1] > real:
            what, has, wants = ("bound", claimed, found[0]) if found[0] > claimed else ("bound_real", real, found[1])
            raise Wrong(f"leaf {node['leaf']}: {what} {float(has):.9g} is claimed, {float(wants):.9g} can be shown")
        if claimed > self.epsilon or real > claimed:
            raise Wrong(f"leaf {node['leaf']}: bound {float(claimed):.9g} is above epsilon or below bound_real")
        self.closed += 1
        self.bound = max(found[0], self.bound or found[0])


def number(text: str) -> Fraction:
    """The exact value of a C99 hex float."""
    if not isinstance(text, str):
        raise Wrong(f"{text!r} is not a number as a hex float in a string")
    return Fraction(float.fromhex(text))


def grid(text: str) -> int:
    """A float32 of the region over 2^GRID."""
    value = number(text) * (1 << GRID)
    if value.denominator != 1:
        raise Wrong(f"{text} is not a float32")
    return value.numerator


def _slopes(text: str | None) -> Slopes:
    """Of a leaf; none are right where the nets are linear, and too few elsewhere."""
    if text is None:
        return Slopes(())
    unpacked = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), 2 * SLOPES_MAX)
    return Slopes(struct.unpack(f"<{len(unpacked) // 2}h", unpacked))


def _model(entry: dict[str, str], folder: Path, which: str) -> Path:
    """The model file, after its hash. Raises Wrong."""
    path = folder / entry["path"]
    digest = hashlib.sha256()
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        names = {e.value for t in _tensors(graph) for e in t.external_data if e.key == "location"}
        for name in [path.name, *sorted(names)]:
            digest.update((path.parent / name).read_bytes())
    except Exception as err:  # protobuf's, onnx's and the system's errors share no base class
        raise Wrong(f"{path}: cannot be read ({(str(err).splitlines() or [''])[0][:100]})") from None
    if digest.hexdigest() != entry["sha256"]:
        raise Wrong(f"the {which} {path} is not the model of the certificate: its hash is another")
    return path


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    constants = [each.t for node in graph.node for each in node.attribute if each.HasField("t")]
    return [*graph.initializer, *constants]


def _mates(pairs: dict[str, list[str] | None], original: Net, variant: Net) -> list[Mate | None]:
    """For each unit of the variant ["unary", tensor] or ["tensor", tensor] of the original; any pairing is sound."""
    units = {unit.tensor: place for place, unit in enumerate(original.units, 1)}
    found: list[Mate | None] = []
    for unit in variant.units:
        kind, name = pairs.get(unit.tensor) or ("", "")
        mate = None
        if kind == "unary" and name in units:
            mate = Mate(units[name], original.units[units[name] - 1].argument)
        elif kind == "tensor" and name in original.tensors:
            mate = Mate(None, original.tensors[name])
        elif kind:
            raise Wrong(f"{unit.tensor!r} is paired with {kind} {name!r}, which the original has not")
        found.append(mate)
    return found


def _runtime(semantics: dict[str, Any], original: Net, variant: Net) -> None:
    """Raises Lacks where the session that the certificate names may compute something else than the graphs say."""
    if semantics["arithmetic"] == "real":
        return
    session = semantics["session"]
    plain = session.get("graph_optimization_level") in ("disabled", "basic")
    if plain or session.get("config", {}).get(AS_WRITTEN) == "1":
        return
    if odd := [*original.odd, *variant.odd]:
        raise Lacks(f"a model of what this session computes: {odd[0]}")
    if (original.saturates or variant.saturates) and not any("vnni" in each for each in semantics["cpu_features"]):
        raise Lacks("a model of 8-bit products that saturate: the CPU features name no VNNI")
