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

from kernels.proof.checker_bounds import Box, Pairing
from kernels.proof.checker_graph import BROKEN, Lacks, Net, Wrong, load, read, require
from kernels.proof.checker_lines import on_grid
from kernels.proof.checker_outputs import Outputs

FORMAT = 1
FILE_BYTES_MAX = 64 << 20
SLOPES_MAX = 10_000_000
AS_WRITTEN = "session.disable_quant_qdq"  # floats between QuantizeLinear and DequantizeLinear, as the graph says
_UNCOUNTED = ("id", "created", "seconds")


@dataclass
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
    report = Report("REJECTED", f"{path}: no certificate of format {FORMAT}")
    try:
        require(path.stat().st_size <= FILE_BYTES_MAX, Wrong, f"{path}: more than {FILE_BYTES_MAX} bytes")
        certificate = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(certificate, dict) and certificate.get("format") == FORMAT:
            report.claimed, report.id, report.output = (str(certificate[name]) for name in ("verdict", "id", "output"))
            _check(certificate, path.parent, report)
        return report
    except Lacks as err:
        verdict, reason = "UNKNOWN", f"the checker lacks: {err}"
    except Wrong as err:
        verdict, reason = "REJECTED", str(err)
    except (*BROKEN, OSError, zlib.error) as err:
        verdict, reason = "REJECTED", f"{report.reason} that can be read ({type(err).__name__}: {err})"
    return Report(verdict, reason, report.claimed, report.id, report.output, report.epsilon)


def identity(certificate: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON without what differs between equal certificates."""
    kept = {key: each for key, each in certificate.items() if key not in _UNCOUNTED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def number(text: str) -> Fraction:
    """The exact value of a C99 hex float."""
    require(isinstance(text, str), Wrong, f"{text!r} is not a number as a hex float in a string")
    return Fraction(float.fromhex(text))


def _check(certificate: dict[str, Any], folder: Path, report: Report) -> None:
    """Fills in the report. Raises Lacks and Wrong."""
    require(identity(certificate) == report.id, Wrong, "the id is not that of the content: something was changed")
    quantity, arithmetic = report.output, certificate["semantics"]["arithmetic"]
    report.epsilon = float(number(certificate["epsilon"]))
    known = quantity in ("raw", "softmax", "label") and arithmetic in ("float32", "real") and report.epsilon >= 0
    require(known, Wrong, f"output {quantity!r}, arithmetic {arithmetic!r} or epsilon {report.epsilon}: no such one")
    original, variant = _nets(certificate, folder)
    pairing = Pairing(original, variant, certificate["pairs"])
    outputs, floats = Outputs(pairing), arithmetic == "float32"
    for region in certificate["regions"]:
        low, high = ([on_grid(number(each)) for each in region[side]] for side in ("low", "high"))
        fits = len(low) == len(high) == original.features and all(a <= b for a, b in zip(low, high, strict=True))
        require(fits, Wrong, "a region is empty, or has other features than the models")
        waiting = [(region["tree"], low, high)]  # JSON's own limit bounds the depth
        while waiting:
            node, low, high = waiting.pop()
            if "open" in node:
                report.open += 1
            elif "leaf" in node:
                box = Box(pairing, low, high, _slopes(node["slopes"]), floats)
                _leaf(node, outputs.bound(box, quantity), report)
            else:  # the two sides cover what is cut
                axis, at = node["split"], on_grid(number(node["at"]))
                inside = isinstance(axis, int) and 0 <= axis < len(low) and low[axis] <= at <= high[axis]
                require(inside, Wrong, f"the tree cuts feature {axis} outside of its box")
                waiting.append((node["below"], low, [*high[:axis], at, *high[axis + 1 :]]))
                waiting.append((node["above"], [*low[:axis], at, *low[axis + 1 :]], high))
    proved = bool(report.leaves and not report.open)
    honest = proved or report.claimed != "PROVED"
    require(honest, Wrong, "PROVED is claimed, and there are open leaves or none at all")
    verdicts = [("UNKNOWN", "no leaf is closed: there is nothing to check"),
                ("PARTIAL", "the bounds of the closed leaves hold; others are open"),
                ("PROVED", "every leaf is covered and every bound holds")]  # fmt: skip
    report.verdict, report.reason = verdicts[bool(report.leaves) + proved]


def _leaf(node: dict[str, Any], found: tuple[Fraction, Fraction] | None, report: Report) -> None:
    """Compares a closed leaf with the bound that was found. Raises Wrong when the claimed one is smaller."""
    if found is None:
        raise Wrong(f"leaf {node['leaf']}: the label may change")
    for what, shown in zip(("bound", "bound_real"), found, strict=True):
        claimed = number(node[what])
        says = f"leaf {node['leaf']}: {what} {float(claimed):.9g}"
        require(claimed >= shown, Wrong, f"{says} is claimed, {float(shown):.9g} can be shown")
        most = min(number(node["bound"]), Fraction(report.epsilon))
        require(claimed <= most, Wrong, f"{says} is above epsilon or bound")
    report.leaves += 1
    report.bound = max(float(found[0]), report.bound or 0.0)


def _slopes(text: str | None) -> tuple[int, ...]:
    """Of a leaf; none are right where the nets are linear, and too few elsewhere."""
    packed = zlib.compress(b"") if text is None else base64.b64decode(text, validate=True)
    unpacked = zlib.decompressobj().decompress(packed, 2 * SLOPES_MAX)
    return struct.unpack(f"<{len(unpacked) // 2}h", unpacked)


def _nets(certificate: dict[str, Any], folder: Path) -> tuple[Net, Net]:
    """Both models as they are read, if the session that the certificate names computes what their graphs say."""
    nets: list[Net] = []
    for which, output in zip(("original", "variant"), certificate["outputs"], strict=True):
        path = folder / certificate[which]["path"]
        model, digest = load(path)
        same = digest == certificate[which]["sha256"]
        require(same, Wrong, f"the {which} {path} is not the model of the certificate: its hash is another")
        nets.append(read(model, output, *((len(nets[0].units) + 1, 2) if nets else (1, 1))))
    alike = nets[0].features == nets[1].features and bool(nets[0].softmax) == bool(nets[1].softmax)
    require(alike, Wrong, "the models take different inputs or end in different ways")
    semantics, odd = certificate["semantics"], [each for net in nets for each in net.odd]
    session = semantics["session"]
    plain = session.get("graph_optimization_level") == "disabled" or session.get("config", {}).get(AS_WRITTEN) == "1"
    if any(net.saturates for net in nets) and not any("vnni" in each for each in semantics["cpu_features"]):
        odd.append("8-bit products saturate, where the CPU features name no VNNI")
    require(plain or not odd or semantics["arithmetic"] == "real", Lacks, f"what this session computes: {odd[:1]}")
    return nets[0], nets[1]
