"""The checker accepts what it can show and rejects whatever was changed, with the reason."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kernels.proof import checker
from kernels.proof.checker_bounds import Box, Pairing
from kernels.proof.checker_outputs import Outputs
from tests import random_nets
from tests.certificates import grid, nets, paired, random_slopes, rewritten, saved, written
from tests.random_nets import Layer, Pair, Widths

PROOF = Path(checker.__file__).parent
WIDTHS = Widths(8, np.dtype(np.uint8))


@pytest.fixture
def pair() -> Pair:
    """An MLP and its int8 self."""
    rng = np.random.default_rng(7)
    layers = [
        Layer("Gemm", (rng.standard_normal((3, 5)).astype(np.float32), np.full(5, 0.1, np.float32))),
        Layer("Relu"),
        Layer("Gemm", (rng.standard_normal((5, 2)).astype(np.float32), np.zeros(2, np.float32))),
    ]
    low = np.array([-0.5, 0.0, 0.25], np.float32)
    return random_nets.quantized("mlp", layers, low, low + np.float32(0.25), WIDTHS, rng)


def test_an_honest_certificate_is_proved(tmp_path: Path, pair: Pair) -> None:
    report = checker.check(written(tmp_path, pair, cuts=2))
    assert (report.verdict, report.leaves, report.open) == ("PROVED", 3, 0)
    assert report.bound is not None and 0 < report.bound <= report.epsilon


def test_it_imports_nothing_of_the_prover() -> None:
    text = "onnx kernels __future__ base64 collections dataclasses fractions hashlib itertools json math operator"
    allowed = {*text.split(), "pathlib", "functools", "struct", "typing", "zlib"}
    for path in PROOF.glob("checker*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, path
            assert all(name.startswith("kernels.proof.checker") for name in names if name.startswith("kernels")), path


def leaf(certificate: dict[str, Any]) -> dict[str, Any]:
    node = certificate["regions"][0]["tree"]
    while "below" in node:
        node = node["below"]
    return node


def smaller_bound(certificate: dict[str, Any]) -> None:
    leaf(certificate)["bound"] = (float.fromhex(leaf(certificate)["bound"]) * (1 - 2**-20)).hex()


def smaller_real_bound(certificate: dict[str, Any]) -> None:
    leaf(certificate)["bound_real"] = (float.fromhex(leaf(certificate)["bound_real"]) * (1 - 2**-20)).hex()


def smaller_epsilon(certificate: dict[str, Any]) -> None:
    certificate["epsilon"] = (float.fromhex(certificate["epsilon"]) * 0.99).hex()


def wider_region(certificate: dict[str, Any]) -> None:
    certificate["regions"][0]["high"][1] = (1.0).hex()


def inverted_region(certificate: dict[str, Any]) -> None:
    region = certificate["regions"][0]
    region["low"], region["high"] = region["high"], region["low"]


def shorter_region(certificate: dict[str, Any]) -> None:
    certificate["regions"][0]["low"].pop()


def cut_outside(certificate: dict[str, Any]) -> None:
    certificate["regions"][0]["tree"]["at"] = (7.0).hex()


def cut_elsewhere(certificate: dict[str, Any]) -> None:
    certificate["regions"][0]["tree"]["split"] = 3


def moved_cut(certificate: dict[str, Any]) -> None:
    """The lower side grows: its leaf no longer covers it with the same bound."""
    tree = certificate["regions"][0]["tree"]
    tree["at"] = certificate["regions"][0]["high"][0]


def no_leaf(certificate: dict[str, Any]) -> None:
    certificate["regions"][0]["tree"]["below"] = {"open": "left out"}


def no_slopes(certificate: dict[str, Any]) -> None:
    leaf(certificate)["slopes"] = None


def one_side(certificate: dict[str, Any]) -> None:
    del certificate["regions"][0]["tree"]["above"]


def no_regions(certificate: dict[str, Any]) -> None:
    certificate["regions"] = []


def other_hash(certificate: dict[str, Any]) -> None:
    certificate["variant"]["sha256"] = "0" * 64


def swapped_models(certificate: dict[str, Any]) -> None:
    certificate["variant"]["path"] = certificate["original"]["path"]


def missing_model(certificate: dict[str, Any]) -> None:
    certificate["variant"]["path"] = "gone.onnx"


def unknown_pair(certificate: dict[str, Any]) -> None:
    certificate["pairs"][next(iter(certificate["pairs"]))] = ["tensor", "nowhere"]


def inner_tensor(certificate: dict[str, Any]) -> None:
    """The claim is about a tensor that no client sees."""
    certificate["outputs"] = ["v1", "v3"]


def fewer_slopes(certificate: dict[str, Any]) -> None:
    leaf(certificate)["slopes"] = "eJwDAAAAAAE="


def no_base64(certificate: dict[str, Any]) -> None:
    leaf(certificate)["slopes"] = "???"


def no_zlib(certificate: dict[str, Any]) -> None:
    leaf(certificate)["slopes"] = "AAAA"


def odd_bytes(certificate: dict[str, Any]) -> None:
    leaf(certificate)["slopes"] = "eJxjYGAAAAADAAE="


def no_float_rounding(certificate: dict[str, Any]) -> None:
    """More than is claimed is shown without rounding, but bound and bound_real must still fit each other."""
    leaf(certificate)["bound"] = (0.0).hex()
    certificate["semantics"]["arithmetic"] = "real"


def other_arithmetic(certificate: dict[str, Any]) -> None:
    certificate["semantics"]["arithmetic"] = "float64"


def number_as_number(certificate: dict[str, Any]) -> None:
    leaf(certificate)["bound"] = 0.5


def nan_bound(certificate: dict[str, Any]) -> None:
    leaf(certificate)["bound"] = "nan"


def infinite_bound(certificate: dict[str, Any]) -> None:
    leaf(certificate)["bound"] = "inf"


def nan_region(certificate: dict[str, Any]) -> None:
    certificate["regions"][0]["low"][0] = "nan"


def fine_region(certificate: dict[str, Any]) -> None:
    certificate["regions"][0]["low"][0] = (2.0**-300).hex()


def real_above_bound(certificate: dict[str, Any]) -> None:
    leaf(certificate)["bound_real"] = certificate["epsilon"]


def missing_semantics(certificate: dict[str, Any]) -> None:
    del certificate["semantics"]


def one_output(certificate: dict[str, Any]) -> None:
    certificate["outputs"].pop()


def pair_of_other_size(certificate: dict[str, Any]) -> None:
    """A unit of five numbers is compared with the input of three."""
    name = next(key for key, pair in certificate["pairs"].items() if pair and pair[0] == "unary")
    certificate["pairs"][name] = ["tensor", "x"]


def swapped_sides(certificate: dict[str, Any]) -> None:
    tree = certificate["regions"][0]["tree"]
    tree["below"], tree["above"] = tree["above"], tree["below"]


TAMPERED = [
    (nan_region, "no certificate"),
    (fine_region, "more digits"),
    (real_above_bound, "above epsilon or"),
    (missing_semantics, "no certificate"),
    (one_output, "no certificate"),
    (pair_of_other_size, "no certificate"),
    (swapped_sides, "can be shown"),
    (smaller_bound, "can be shown"),
    (smaller_real_bound, "can be shown"),
    (smaller_epsilon, "above epsilon"),
    (wider_region, "is claimed"),
    (inverted_region, "region is empty"),
    (shorter_region, "features"),
    (cut_outside, "cuts feature 0 outside"),
    (cut_elsewhere, "cuts feature 3"),
    (moved_cut, "is claimed"),
    (no_leaf, "open leaves"),
    (one_side, "above"),
    (no_regions, "none at all"),
    (other_hash, "its hash is another"),
    (swapped_models, "its hash is another"),
    (missing_model, "cannot be read"),
    (unknown_pair, "nowhere"),
    (inner_tensor, "is no output"),
    (fewer_slopes, "has 0 slopes, the lines"),
    (no_slopes, "has 0 slopes"),
    (no_base64, "no certificate"),
    (no_zlib, "no certificate"),
    (odd_bytes, "no certificate"),
    (no_float_rounding, "can be shown"),
    (other_arithmetic, "float64"),
    (number_as_number, "hex float"),
    (nan_bound, "no certificate"),
    (infinite_bound, "no certificate"),
]


@pytest.mark.parametrize(("change", "reason"), TAMPERED, ids=lambda each: getattr(each, "__name__", None))
def test_tampering_is_rejected(
    tmp_path: Path, pair: Pair, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    path = written(tmp_path, pair, cuts=1)
    certificate = json.loads(path.read_text())
    change(certificate)
    report = checker.check(rewritten(path, certificate))
    assert report.verdict == "REJECTED" and reason in report.reason, report


def test_an_id_that_does_not_fit_is_rejected(tmp_path: Path, pair: Pair) -> None:
    path = written(tmp_path, pair)
    certificate = json.loads(path.read_text())
    certificate["coverage"] = {"held_out": 1.0}
    path.write_text(json.dumps(certificate))
    assert checker.check(path).verdict == "REJECTED" and "id" in checker.check(path).reason


def test_an_endless_tree_is_rejected(tmp_path: Path, pair: Pair) -> None:
    path = written(tmp_path, pair)
    nested = '"tree": ' + '{"split": 0, "below": {"open": ""}, "above": ' * 100_000 + "{}"
    path.write_text(path.read_text().replace('"tree": {', nested[:-1], 1))
    assert checker.check(path).verdict == "REJECTED"


@pytest.mark.parametrize("which", ["original", "variant"])
def test_a_changed_weight_is_rejected_even_with_its_new_hash(tmp_path: Path, pair: Pair, which: str) -> None:
    path = written(tmp_path, pair)
    model = onnx.load(tmp_path / f"{which}.onnx")
    floats = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    changed_weight = max(floats, key=lambda each: len(each.dims))
    weights = numpy_helper.to_array(changed_weight).copy()
    weights[...] = weights * 1.5
    changed_weight.CopyFrom(numpy_helper.from_array(weights, changed_weight.name))
    onnx.save(model, tmp_path / f"{which}.onnx")
    assert "hash" in checker.check(path).reason
    certificate = json.loads(path.read_text())
    certificate[which]["sha256"] = checker.hashlib.sha256((tmp_path / f"{which}.onnx").read_bytes()).hexdigest()
    report = checker.check(rewritten(path, certificate))
    assert report.verdict == "REJECTED" and "can be shown" in report.reason


@pytest.mark.parametrize("length", [0, 1, 100, 1000])
def test_a_truncated_file_is_rejected(tmp_path: Path, pair: Pair, length: int) -> None:
    path = written(tmp_path, pair)
    path.write_text(path.read_text()[:length])
    assert checker.check(path).verdict == "REJECTED"


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', '{"format": 2}', "null", "\x00"])
def test_what_is_no_certificate_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "certificate.json").write_text(content)
    assert checker.check(tmp_path / "certificate.json").verdict == "REJECTED"
    assert checker.check(tmp_path / "missing.json").verdict == "REJECTED"


def test_every_flipped_slope_is_still_sound_or_rejected(tmp_path: Path, pair: Pair) -> None:
    """Slopes are free choices: others give other bounds, and the claim is compared with those."""
    paths = saved(tmp_path, pair)
    original, variant = nets(paths, pair)
    pairing = Pairing(original, variant, paired(original, variant))
    outputs, rng = Outputs(pairing), np.random.default_rng(1)
    x = random_nets.draw(rng, pair.low, pair.high, 2000)
    seen = [random_nets.session(each).run(None, {"x": x})[0].astype(float) for each in (pair.original, pair.variant)]
    worst = float(np.abs(seen[1] - seen[0]).max())
    for _ in range(50):
        slopes = rng.integers(-512, 513, len(random_slopes(rng, pairing))).tolist()
        found = outputs.bound(Box(pairing, grid(pair.low), grid(pair.high), slopes, True), "raw")
        assert found is not None and found[0] >= Fraction(worst)


def test_an_operator_that_it_lacks_is_unknown(tmp_path: Path, pair: Pair) -> None:
    path = written(tmp_path, pair)
    for which in ("original", "variant"):
        model = onnx.load(tmp_path / f"{which}.onnx")
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Erf"
        onnx.save(model, tmp_path / f"{which}.onnx")
        certificate = json.loads(path.read_text())
        certificate[which]["sha256"] = checker.hashlib.sha256((tmp_path / f"{which}.onnx").read_bytes()).hexdigest()
        rewritten(path, certificate)
    report = checker.check(path)
    assert report.verdict == "UNKNOWN" and "Erf" in report.reason


def test_a_session_that_may_compute_something_else_is_unknown(tmp_path: Path, pair: Pair) -> None:
    """Weights alone in integers: a default session makes a MatMulNBits of them."""
    rng = np.random.default_rng(3)
    layers = [Layer("MatMul", (rng.standard_normal((3, 2)).astype(np.float32),))]
    weights_alone = random_nets.quantized("w8", layers, pair.low, pair.high, Widths(8, None), rng)
    path = written(tmp_path, weights_alone)
    assert checker.check(path).verdict == "PROVED"
    certificate = json.loads(path.read_text())
    certificate["semantics"]["session"]["config"] = {}
    for level in ("all", "basic"):  # rewrites of quantizers run at both
        certificate["semantics"]["session"]["graph_optimization_level"] = level
        report = checker.check(rewritten(path, certificate))
        assert report.verdict == "UNKNOWN" and "quantized and float" in report.reason
    certificate["semantics"]["session"]["graph_optimization_level"] = "disabled"
    assert checker.check(rewritten(path, certificate)).verdict == "PROVED"


def test_products_that_saturate_without_vnni_are_unknown(tmp_path: Path, pair: Pair) -> None:
    rng = np.random.default_rng(4)
    layers = [Layer("MatMul", (rng.standard_normal((3, 2)).astype(np.float32),))]
    path = written(tmp_path, random_nets.quantized("w8a8", layers, pair.low, pair.high, WIDTHS, rng))
    certificate = json.loads(path.read_text())
    certificate["semantics"]["session"]["config"] = {}
    assert "VNNI" in checker.check(rewritten(path, certificate)).reason
    certificate["semantics"]["cpu_features"] = ["avx512_vnni"]
    assert checker.check(rewritten(path, certificate)).verdict == "PROVED"


def test_open_leaves_leave_the_closed_ones(tmp_path: Path, pair: Pair) -> None:
    path = written(tmp_path, pair, cuts=1)
    certificate = json.loads(path.read_text())
    certificate["regions"][0]["tree"]["below"] = {"open": "out of time"}
    certificate["verdict"] = "UNKNOWN"
    report = checker.check(rewritten(path, certificate))
    assert (report.verdict, report.leaves, report.open, report.claimed) == ("PARTIAL", 1, 1, "UNKNOWN")


def test_overflow_is_rejected(tmp_path: Path, pair: Pair) -> None:
    path = written(tmp_path, pair)
    certificate = json.loads(path.read_text())
    certificate["regions"][0]["high"][0] = (2.0**127).hex()
    report = checker.check(rewritten(path, certificate))
    assert report.verdict == "REJECTED"


@pytest.mark.parametrize("quantity", ["softmax", "label"])
def test_probabilities_and_labels(tmp_path: Path, pair: Pair, quantity: str) -> None:
    apart = replace(pair, high=pair.low + np.float32(1e-3))
    path = written(tmp_path, apart, quantity)
    assert checker.check(path).verdict == "PROVED"
    certificate = json.loads(path.read_text())
    wide = {"low": [(-8.0).hex()] * 3, "high": [(8.0).hex()] * 3}
    certificate["regions"][0].update(wide)
    assert checker.check(rewritten(path, certificate)).verdict == "REJECTED"
