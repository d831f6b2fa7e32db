"""Law: members with a common stem of random layers answer as one graph what they answer apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper

from kernels.compile import ensemble
from tests.unit.test_ensemble import answers, separately, write

LAYERS = ("MatMul", "Gemm", "GemmT", "Add", "Sub", "Scale", "Relu", "Clip", "Softmax", "Twice")


def _random_member(place: Path, member: str, layers: list[tuple[str, int]], seed: int) -> Path:
    """A chain of these layers with random constants; `Twice` adds a tensor to its own activation, a branch."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Any] = {}

    def constant(*shape: int) -> str:
        weights[name := f"c{len(weights)}"] = rng.standard_normal(shape).astype(np.float32)
        return name

    def node(op: str, *inputs: str, **stated: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"t{len(nodes)}"], **stated))
        return f"t{len(nodes) - 1}"

    x, width = "x", 4
    for kind, out in layers:
        if kind == "MatMul":
            x, width = node("MatMul", x, constant(width, out)), out
        elif kind == "Gemm":
            x, width = node("Gemm", x, constant(width, out), constant(out), alpha=0.5, beta=2.0), out
        elif kind == "GemmT":
            x, width = node("Gemm", x, constant(out, width), transB=1), out
        elif kind == "Scale":
            x = node("Mul", constant(), x)
        elif kind in ("Add", "Sub"):
            x = node(kind, x, constant(*((1, width) if out % 2 else (width,))))
        elif kind == "Clip":
            weights |= {"low": np.float32(-1), "high": np.float32(1)}
            x = node("Clip", x, "low", "high")
        elif kind == "Twice":
            x = node("Add", node("Tanh", x), x)
        else:
            x = node(kind, x, **({"axis": 1} if kind == "Softmax" else {}))
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    return write(place, member, nodes, weights)


@example(layers=[("MatMul", 3), ("Softmax", 1)], members=[(2, 0), (2, 1)] * 4)
@example(
    layers=[("Gemm", 3), ("Clip", 1), ("GemmT", 2), ("Sub", 1), ("Scale", 1), ("Twice", 1), ("Softmax", 2)],
    members=[(7, 0), (7, 1)] * 4,
)
@settings(max_examples=10, deadline=None)
@given(
    layers=st.lists(st.tuples(st.sampled_from(LAYERS), st.integers(1, 4)), min_size=1, max_size=6),
    members=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=2, max_size=4).map(
        lambda some: some * 4
    ),
)
def test_merged_equals_separate(
    tmp_path_factory: pytest.TempPathFactory, layers: list[tuple[str, int]], members: list[tuple[int, int]]
) -> None:
    """Members that share a stem of `layers` up to a place of their own, some of them with equal constants."""
    place = tmp_path_factory.mktemp("random")
    folders = [
        _random_member(place, f"m/{number}", [*layers[:stem], ("MatMul", 3)], 3 * (number % 5) + seed)
        for number, (stem, seed) in enumerate(members)
    ]
    feed = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
    found, wanted = answers(ensemble.merge(folders), feed), separately(folders, feed)
    assert list(found) == list(wanted)
    for name, each in wanted.items():
        np.testing.assert_allclose(found[name], each, rtol=1e-4, atol=1e-4 * max(1, np.abs(each).max()))
