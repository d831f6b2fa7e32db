"""The checker against exact evaluation: at random points each value, difference and line of a box is where it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.proof import checker
from kernels.proof.bounds import Analysis
from kernels.proof.certificate import certificate
from kernels.proof.checker_bounds import Box, Form, Pairing
from kernels.proof.checker_graph import BITS, MASK, Lacks, Net, Row, Tensor, Unit, Wrong
from kernels.proof.checker_lines import GRID, SLOPE, Function, sigmoid
from kernels.proof.checker_outputs import Outputs
from kernels.proof.outputs import bounded
from kernels.proof.verify import verify
from tests import random_nets
from tests.certificates import grid, hashes, nets, paired, random_slopes, saved
from tests.random_nets import Array, Layer, Pair, Rng, Widths
from tests.unit.test_soundness import flat, question_of

POINTS = 6
CLOSE = 1e-3  # of the runtime's answers and ours, where no quantizer may fall to the other side
TIMEOUT_S = 60.0  # never reached
Values = dict[int, list[Fraction]]


def curve(k: int, x: Fraction) -> Fraction:
    """k sigmoid(k x) - (k - 1), to 100 digits and more."""
    with localcontext() as context:
        context.prec = 120
        power = (-k * Decimal(x.numerator) / Decimal(x.denominator)).exp()
        return Fraction(k / (1 + power) - (k - 1))


def applied(unit: Unit, x: Fraction) -> Fraction:
    if unit.curve:
        return curve(unit.curve, x)
    if unit.levels:
        step, *ends = unit.levels
        kept = [step * each for each in ends]
        assert unit.low is not None and unit.high is not None and kept[0] <= unit.low and unit.high <= kept[1]
        return min(max(step * round(x / step), unit.low), unit.high)
    if unit.low is not None and x < unit.low:
        return unit.low + unit.left * (x - unit.low)
    return x if unit.high is None else min(x, unit.high)


def value(row: Row, values: Values) -> Fraction:
    return sum((each * values[key >> BITS][key & MASK] for key, each in row.coefs.items()), Fraction(0))


def evaluated(pairing: Pairing, x: Array) -> Values:
    """Every node at a point, in exact numbers."""
    values: Values = {0: [Fraction(1), *(Fraction(float(each)) for each in x.ravel())]}
    for unit in [*pairing.original.units, *pairing.variant.units]:
        values[unit.node] = [applied(unit, value(row, values)) for row in unit.argument.rows]
        if (mate := pairing.mates.get(unit.node)) is not None:
            theirs = values[mate.node] if mate.node else [value(row, values) for row in mate.argument.rows]
            values[unit.node + 1] = [a - b for a, b in zip(values[unit.node], theirs, strict=True)]
    return values


def rows_of(form: Form, values: Values) -> list[Fraction]:
    total = [Fraction(0)] * len(form.errors)
    for node, rows in form.terms.items():
        for i, row in enumerate(rows):
            total[i] += sum((Fraction(w, 1 << form.e) * values[node][at] for at, w in row), Fraction(0))
    return total


def assert_inside(box: Box, values: Values) -> None:
    """Ranges and lines of a box in real arithmetic hold at the point."""
    unit = 1 << GRID
    for at, node in box.nodes.items():
        below, above = ([Fraction(each, unit << SLOPE) for each in side] for side in zip(*node.constants, strict=True))
        for form, slopes in node.arguments:
            for i, each in enumerate(rows_of(form, values)):
                room = Fraction(512 * form.errors[i], unit)  # slopes are less, and arguments that much off
                below[i] += each * Fraction(slopes[i][0], 1 << SLOPE) - room
                above[i] += each * Fraction(slopes[i][1], 1 << SLOPE) + room
        for i, each in enumerate(values[at]):
            assert box.ranges[at][i][0] <= each * unit <= box.ranges[at][i][1], f"range of node {at}"
            assert below[i] <= each <= above[i], f"lines of node {at}"


def int4(pair: Pair) -> Pair:
    """The weights of the variant stored in 4 bits, as the compiler does: Cast to int8, Cast to float, Mul."""
    model = onnx.ModelProto()
    model.CopyFrom(pair.original)
    graph = model.graph
    kept = [each for each in graph.initializer if len(each.dims) < 2]
    for each in [each for each in graph.initializer if len(each.dims) == 2]:
        array = numpy_helper.to_array(each)
        scale = np.abs(array).max(0, keepdims=True) / np.float32(7)
        steps = np.clip(np.rint(array / scale), -8, 7).astype(int).ravel().tolist()
        name = each.name
        kept.append(helper.make_tensor(f"{name}.w", TensorProto.INT4, array.shape, steps))
        kept.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.s"))
        nodes = [
            helper.make_node("Cast", [f"{name}.w"], [f"{name}.8"], to=TensorProto.INT8),
            helper.make_node("Cast", [f"{name}.8"], [f"{name}.f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.f", f"{name}.s"], [name]),
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return Pair("int4", pair.original, model, pair.low, pair.high)


def dense(rng: Rng, rows: int, columns: int) -> Layer:
    weight = (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
    return Layer("Gemm", (weight, (rng.standard_normal(columns) * 0.2).astype(np.float32)))


def normal(rng: Rng, channels: int) -> Layer:
    return Layer("BatchNormalization", tuple((rng.random(channels) + 0.5).astype(np.float32) for _ in range(4)))


def harder(seed: int) -> Iterator[Pair]:
    """What the pairs of the prover's fuzz have not, or seldom."""
    rng = np.random.default_rng(seed)
    low = rng.random(4).astype(np.float32) - np.float32(0.5)
    wide, image = low + np.float32(rng.choice([0.05, 0.5, 20.0])), rng.random((2, 5, 4)).astype(np.float32)
    eight = Widths(8, None, per_channel=True)
    for kind in ("Sigmoid", "Tanh"):
        layers = [dense(rng, 4, 5), Layer(kind), dense(rng, 5, 4), Layer(kind), dense(rng, 4, 3)]
        yield random_nets.quantized(kind, layers, low, wide, eight, rng)
        yield random_nets.quantized(f"{kind} w8a8", layers, low, wide, Widths(8, np.dtype(np.uint8)), rng)
    branch = (dense(rng, 4, 4), Layer("Tanh"))
    joined = [Layer("Concat", (), {"axis": -1}, branch), dense(rng, 8, 3), Layer("Sigmoid")]
    yield random_nets.quantized("Concat", joined, low, wide, eight, rng)
    layers = [dense(rng, 4, 6), Layer("Relu"), dense(rng, 6, 2)]
    yield int4(random_nets.quantized("int4", layers, low, wide, eight, rng))
    kernel = (rng.standard_normal((4, 1, 3, 2)) * 0.4).astype(np.float32)
    conv = Layer("Conv", (kernel, rng.random(4, np.float32)), {"group": 2, "pads": [1, 0, 0, 1], "strides": [2, 1]})
    pool = Layer("MaxPool", (), {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0], "dilations": [1, 2]})
    tail = [Layer("Transpose", (), {"perm": [0, 2, 3, 1]}), Layer("Flatten")]
    size = build_size([conv, normal(rng, 4), pool, *tail], image)
    layers = [conv, normal(rng, 4), pool, *tail, dense(rng, size, 3), Layer("LeakyRelu", (), {"alpha": 0.1})]
    yield random_nets.quantized("image", layers, image, image + np.float32(0.02), eight, rng)
    layers = [*tail, dense(rng, image.size, 4), normal(rng, 4), Layer("Relu"), dense(rng, 4, 2)]
    yield random_nets.quantized("image w8a8", layers, image, image + np.float32(0.1), Widths(8, np.dtype(np.int8)), rng)


def build_size(layers: list[Layer], x: Array) -> int:
    model = random_nets.answering(random_nets.build(layers, x.shape), x.shape)
    return int(random_nets.session(model).run(None, {"x": x[None]})[0].size)


def read_again(folder: Path, pair: Pair) -> tuple[Net, Net] | None:
    try:
        return nets(saved(folder, pair), pair)
    except Lacks:
        return None


@pytest.mark.parametrize("seed", range(3))
def test_every_value_and_line_holds_at_random_points(tmp_path: Path, seed: int) -> None:
    rng, tried = np.random.default_rng(seed), 0
    for pair in [*random_nets.pairs(seed), *harder(seed)]:
        if (found := read_again(tmp_path, pair)) is None:
            continue
        pairing = Pairing(*found, paired(*found))
        try:
            slopes = random_slopes(rng, pairing)
            box = Box(pairing, grid(pair.low), grid(pair.high), slopes, floats=False)
            bound = Outputs(pairing).bound(box, "raw")
        except Wrong:
            continue  # an overflow
        assert bound is not None
        corner = np.where(rng.random(pair.low.shape) < 0.5, pair.low, pair.high)
        for x in (corner, pair.low, *random_nets.draw(rng, pair.low, pair.high, POINTS)):
            values = evaluated(pairing, x)
            assert_inside(box, values)
            ends = [[value(row, values) for row in net.tensors[net.output].rows] for net in found]
            assert max(abs(a - b) for a, b in zip(*ends, strict=True)) <= bound[1], pair.name
        tried += 1
    assert tried >= 20


@pytest.mark.parametrize("seed", range(3))
def test_it_reads_what_the_runtime_computes(tmp_path: Path, seed: int) -> None:
    """Of nets without quantizers of activations, whose steps a rounding may move."""
    rng, tried = np.random.default_rng(seed), 0
    for pair in [*random_nets.pairs(seed), *harder(seed)]:
        found = read_again(tmp_path, pair)
        if found is None or any(unit.levels for unit in found[1].units):
            continue
        pairing = Pairing(*found, paired(*found))
        x = random_nets.draw(rng, pair.low, pair.high, 3)
        for net, model in zip(found, (pair.original, pair.variant), strict=True):
            if net.softmax is not None:
                continue
            answers = random_nets.session(model, optimised=False).run(None, {"x": x})[0].reshape(len(x), -1)
            for each, answer in zip(x, answers, strict=True):
                values = evaluated(pairing, each)
                ours = np.array([float(value(row, values)) for row in net.tensors[net.output].rows])
                assert np.allclose(ours, answer, rtol=CLOSE, atol=CLOSE * np.abs(ours).max()), pair.name
        tried += 1
    assert tried >= 9


@pytest.mark.parametrize("seed", range(2))
def test_it_shows_what_the_prover_proved_of_these(tmp_path: Path, seed: int) -> None:
    for pair in harder(seed):
        question = question_of(tmp_path, pair, "raw")
        assert question.product is not None, question.reason
        low, high = (each[None].astype(float) for each in flat(pair))
        epsilon = float(bounded(Analysis(question.product, low, high), "raw").bound[0]) * 1.01
        paths = saved(tmp_path, pair)
        found = verify(*paths, low, high, epsilon, "raw", TIMEOUT_S, statistics=False)
        made = certificate(
            found.question, found.outcomes[0], epsilon, hashes(paths), datetime.now(UTC), found.outcomes[0].verdict
        )
        (tmp_path / "certificate.json").write_text(json.dumps(made))
        report = checker.check(tmp_path / "certificate.json")
        assert report.verdict == "PROVED", (pair.name, report)


@pytest.mark.parametrize("k", [1, 2])
def test_curves_are_enclosed(k: int) -> None:
    """Sigmoid and tanh, their slopes and their lines, over ranges of all sizes."""
    rng = np.random.default_rng(k)
    unit = 1 << GRID
    f = Function(Unit("", Tensor((0,), []), 1, curve=k), floats=False)
    for _ in range(150):
        ends = sorted(float(each) for each in rng.standard_normal(2) * rng.choice([0.0, 0.01, 1.0, 30.0, 500.0]))
        if rng.random() < 0.1:
            ends = sorted((ends[0], 0.0))
        x = int(Fraction(ends[0]) * unit), int(Fraction(ends[1]) * unit)
        slope, share = int(rng.integers(-64, 400)), Fraction(float(rng.random()))
        at = Fraction(ends[0]) + share * (Fraction(ends[1]) - Fraction(ends[0]))
        here = curve(k, at)
        off = here - at * Fraction(slope, 1 << SLOPE)
        assert -f.farthest(x, -1, slope) - 1 <= off * (unit << SLOPE) <= f.farthest(x, 1, slope) + 1
        low, high = (Fraction(sigmoid(int(k * at * unit), up) * k, unit) - (k - 1) for up in (False, True))
        assert low - Fraction(k, unit) <= here <= high + Fraction(2 * k * k, unit)
        assert high - low <= Fraction(1, 1 << 180)
        least, most = f.slopes(*x)
        s = (here + k - 1) / k
        assert least - 4 <= k * k * s * (1 - s) * unit <= most + 4


@pytest.mark.parametrize("step", [0.1, 2.0**-20, 3.0])
def test_a_jump_may_come_early_or_late_by_the_rounding_of_the_division(step: float) -> None:
    """float32(x / step) falls on a tie, or beyond it, for an x that is an ulp away."""
    step32 = Fraction(float(np.float32(step)))
    unit = Unit("", Tensor((0,), []), 1, 0 * step32, 255 * step32, levels=(step32, 0, 255))
    f, rng = Function(unit, floats=False), np.random.default_rng(1)
    for level in rng.integers(0, 254, 40):
        x = np.float32(float(step32) * (level + 0.5))
        for each in (x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(1e9))):
            at = int(Fraction(float(each)) * (1 << GRID))
            for given in {int(np.rint(each / np.float32(step))), int(level), int(level) + 1}:
                y = given * int(step32 * (1 << GRID))
                assert -f.farthest((at, at), -1, 0) <= y << SLOPE <= f.farthest((at, at), 1, 0)
