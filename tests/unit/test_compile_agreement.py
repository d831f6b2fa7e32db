"""When a variant may be kept on few judging rows: the bound against exact fractions, and the rows made up between."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from kernels.compile.between import FRESH_ROWS_MIN, ROWS_MAX, ROWS_MIN, Between
from kernels.compile.judge import Comparison, Refused, doubt
from kernels.compile.net import Array
from kernels.compile.runtime import Tensors
from kernels.repository import load_model
from kernels.session import Session
from tests import nets

ROWS = np.random.default_rng(3).standard_normal((60, 3)).astype(np.float32)


def exact(changed: int, seen: int, fresh: int, agreement_min: Fraction) -> Fraction:
    """One minus the sum of the beta-binomial of parameters changed + 1/2 and seen - changed + 1/2."""
    a, b = changed + Fraction(1, 2), seen - changed + Fraction(1, 2)
    kept = Fraction(0)
    for x in range(int((1 - agreement_min) * fresh) + 1):
        kept += comb(fresh, x) * rising(a, x) * rising(b, fresh - x) / rising(a + b, fresh)
    return 1 - kept


def rising(value: Fraction, n: int) -> Fraction:
    found = Fraction(1)
    for each in range(n):
        found *= value + each
    return found


@settings(max_examples=40, deadline=None)
@given(seen=st.integers(1, 400), share=st.floats(0, 1), fresh=st.integers(1, 250), percent=st.integers(0, 100))
def test_the_doubt_is_that_of_exact_fractions(seen: int, share: float, fresh: int, percent: int) -> None:
    changed = int(share * seen)
    wanted = float(exact(changed, seen, fresh, Fraction(percent, 100)))
    assert doubt(changed, seen, fresh, percent / 100) == pytest.approx(wanted, abs=1e-9)


def test_slow_models_can_be_promised_something() -> None:
    assert doubt(0, ROWS_MIN, FRESH_ROWS_MIN, 0.99) <= 0.01 < doubt(0, 100, FRESH_ROWS_MIN, 0.99)


def linear(path: Path, weight: float) -> Session:
    """x float32[rows, 3] -> label int64[rows]: whether x0 + weight * x1 is above 0."""
    net = nets.Builder()
    total = net.node("MatMul", "x", net.weight(np.array([[0, 1], [0, weight], [0, 0]], np.float32)))
    net.node("ArgMax", total, out="label", axis=1, keepdims=0)
    net.save(path, {"x": (TensorProto.FLOAT, ["rows", 3])}, {"label": (TensorProto.INT64, ["rows"])})
    return Session(load_model(path.parents[2], path.parents[1].name, path.parent.name), 1)


def judged(original: Session, other: Session, features: Array) -> tuple[Between, Comparison]:
    feed = {"x": features}
    wanted = original.run(feed)
    compared = Comparison(original.spec)
    compared.update(wanted, other.run(feed))
    return Between(original.spec, [feed], [wanted], 1e-5, 0.99), compared


def test_what_real_rows_do_not_see_is_seen_between_them(tmp_path: Path) -> None:
    """All rows are far from the boundary, where a boundary that has turned a little changes none of them."""
    side = np.where(ROWS[:, :1] > 0, 1, -1).astype(np.float32)
    far = ROWS * np.float32([0.2, 1, 1]) + side * np.float32([[4, 0, 0]])
    original = linear(tmp_path / "a/1/model.onnx", 0.0)
    for place, (weight, kept) in enumerate([(1e-4, True), (0.5, False)]):
        other = linear(tmp_path / f"b{place}/1/model.onnx", weight)
        between, compared = judged(original, other, far)
        assert compared.agreed == compared.decided == 60
        if kept:
            between.check(original, other, 0, compared)
            continue
        with pytest.raises(Refused, match=r"decisions on and between the judging rows change: more than 1% of 200"):
            between.check(original, other, 0, compared)


def test_rows_lie_between_two_rows_and_are_the_same_each_time(tmp_path: Path) -> None:
    original = linear(tmp_path / "a/1/model.onnx", 0.0)
    between, _ = judged(original, original, ROWS)
    made = np.concatenate([each["x"] for each in between.batches()])
    assert np.array_equal(made, np.concatenate([each["x"] for each in between.batches()]))
    assert len(made) == ROWS_MAX
    assert made.dtype == np.float32
    assert np.all(made >= ROWS.min(axis=0) - 1e-6)
    assert np.all(made <= ROWS.max(axis=0) + 1e-6)
    # on a line through two of the rows: with these and itself no triangle is spanned
    one = made[0].astype(np.float64)
    arms = ROWS - one
    areas = [np.linalg.norm(np.cross(arms[i], arms[j])) for i in range(60) for j in range(i)]
    assert min(areas) < 1e-5
    decided = original.run({"x": made})["label"]
    assert 0.2 < decided.mean() < 0.8


def test_ids_are_mixed_and_bytes_blended(tmp_path: Path) -> None:
    """x float32[rows, 3], ids and mask int64[rows, 3], pixels uint8[rows, 2]: a mask goes with its ids."""
    net = nets.Builder()
    net.node("ArgMax", "x", out="label", axis=1, keepdims=0)
    inputs = {"x": (TensorProto.FLOAT, ["rows", 3]), "ids": (TensorProto.INT64, ["rows", 3]),
              "mask": (TensorProto.INT64, ["rows", 3]), "pixels": (TensorProto.UINT8, ["rows", 2])}  # fmt: skip
    net.save(tmp_path / "m/1/model.onnx", inputs, {"label": (TensorProto.INT64, ["rows"])})
    ids = np.arange(180).reshape(60, 3)
    feed: Tensors = {"x": ROWS, "ids": ids, "mask": ids + 1000, "pixels": np.repeat(ids[:, :1], 2, 1).astype(np.uint8)}
    spec = load_model(tmp_path, "m", "1")
    batches = list(Between(spec, [feed], [{"label": ROWS.argmax(axis=1)}], 1e-2, 0.99).batches())
    found = {name: np.concatenate([each[name] for each in batches]) for name in feed}
    assert len(found["x"]) == ROWS_MIN
    assert np.array_equal(found["mask"], found["ids"] + 1000)
    assert np.array_equal(found["ids"] % 3, np.broadcast_to([0, 1, 2], (ROWS_MIN, 3)))
    assert len(np.unique(found["ids"], axis=0)) > 150
    assert found["pixels"].dtype == np.uint8
    assert np.array_equal(found["pixels"][:, 0], found["pixels"][:, 1])


def test_a_model_that_decides_nothing_needs_none(tmp_path: Path) -> None:
    net = nets.Builder()
    net.nodes.append(onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0))
    net.save(tmp_path / "m/1/model.onnx", {"x": (TensorProto.FLOAT, ["rows", 3])},
             {"y": (TensorProto.FLOAT, ["rows"])})  # fmt: skip
    session = Session(load_model(tmp_path, "m", "1"), 1)
    between, compared = judged(session, session, ROWS)
    between.check(session, session, 0, compared)
    assert not list(between.batches())
