"""Embeddings in 8 and 16 bits: against numpy, and in the graph that the runtime executes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from kernels import manifest
from kernels.compile import compiler, tables
from kernels.compile.compiler import Options
from kernels.compile.net import Array, Net
from kernels.compile.runtime import LITERAL, Runner, optimized
from kernels.loading import load_variant
from kernels.manifest import RunOptions
from kernels.repository import load_model
from tests import nets

WORDS, WIDTH = 1024, 64  # 256 KiB of floats
RNG = np.random.default_rng(5)
TABLE = (RNG.standard_normal((WORDS, WIDTH)) * np.geomspace(0.01, 100, WORDS)[:, None]).astype(np.float32)
TABLE[7] = 0
IDS = RNG.integers(-WORDS, WORDS, (6, 9))
IDS[0, 0] = 7


def embedded(path: Path, table: Array = TABLE) -> Net:
    """ids int64[rows, seq] -> y float32[rows, 4]: two look-ups of one table, Add, mean, Gemm."""
    net = nets.Builder(2)
    name = net.weight(table)
    both = net.node("Add", net.node("Gather", name, "ids"), net.node("Gather", name, net.node("Neg", "ids")))
    mean = net.node("ReduceMean", both, axes=[1], keepdims=0)
    net.node("Gemm", mean, net.normal(table.shape[1], 4, scale=0.1), net.normal(4, scale=0.1), out="y")
    net.save(path, {"ids": (TensorProto.INT64, ["rows", "seq"])}, {"y": (TensorProto.FLOAT, ["rows", 4])})
    return Net(onnx.load(path))


def held(bits: int) -> Array:
    """The table as it comes back."""
    if bits == 16:
        return TABLE.astype(np.float16).astype(np.float32)
    scale = np.abs(TABLE).max(axis=1, keepdims=True) / 127
    return np.where(scale > 0, np.round(TABLE / np.where(scale > 0, scale, 1)) * scale, 0).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("options", [LITERAL, RunOptions()])
def test_rows_come_back_as_numpy_says(tmp_path: Path, bits: int, options: RunOptions) -> None:
    net = embedded(tmp_path / "model.onnx")
    short = tables.write(net, bits)
    onnx.checker.check_model(short.model)
    same = embedded(tmp_path / "held.onnx", held(bits))
    found, wanted = (Runner(each.model, options).run({"ids": IDS % WORDS - WORDS // 2})["y"] for each in (short, same))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
    exact = Runner(net.model).run({"ids": IDS % WORDS - WORDS // 2})["y"]
    assert np.abs(found - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("bits", [8, 16])
def test_the_runtime_keeps_the_table_short(tmp_path: Path, bits: int) -> None:
    model = tables.write(embedded(tmp_path / "model.onnx"), bits).model
    there = optimized(model, RunOptions()).graph.initializer
    kinds = [each.data_type for each in there if list(each.dims) == [WORDS, WIDTH]]
    assert kinds == [TensorProto.INT8 if bits == 8 else TensorProto.FLOAT16]


def other(tmp_path: Path, *, table: Array = TABLE, axis: int = 0, constant: bool = False, tied: bool = False) -> Net:
    """x float32[rows, 64], ids int64[rows] -> y."""
    net = nets.Builder(2)
    name = net.weight(table)
    ids = net.weight(np.array([1, 2])) if constant else "ids"
    out = net.node("Gather", name, ids, axis=axis)
    second = net.node("Gemm", "x", name, transB=1) if tied else net.node("Identity", "x")
    net.nodes.append(onnx.helper.make_node("Identity", [out], ["y"]))
    net.nodes.append(onnx.helper.make_node("Identity", [second], ["z"]))
    inputs = {"ids": (TensorProto.INT64, ["rows"]), "x": (TensorProto.FLOAT, ["rows", table.shape[1]])}
    net.save(tmp_path / "m.onnx", inputs, {name: (TensorProto.FLOAT, None) for name in "yz"})
    return Net(onnx.load(tmp_path / "m.onnx"))


def test_what_is_no_table_stays(tmp_path: Path) -> None:
    assert tables.find(other(tmp_path)) == ["w0"]
    large, infinite = TABLE.copy(), TABLE.copy()
    large[3, 3], infinite[3, 3] = 1e5, np.inf
    for each in (
        other(tmp_path, table=TABLE[:-1]),
        other(tmp_path, axis=1),
        other(tmp_path, constant=True),
        other(tmp_path, tied=True),
        other(tmp_path, table=large),
        other(tmp_path, table=infinite),
        other(tmp_path, table=TABLE.astype(np.float64)),
    ):
        assert not tables.find(each)
        assert tables.write(each, 8) is each


def test_every_variant_has_its_table_short_and_says_so(tmp_path: Path) -> None:
    embedded(tmp_path / "net/1/model.onnx")
    spec = load_model(tmp_path, "net", "1")
    compiled = compiler.compile_model(spec, None, Options(agreement_min=0), lambda what: None)
    spec = load_model(tmp_path, "net", "1")
    assert any(each.name == "weights8" for each in compiled.kept)
    for variant in spec.variants:
        found = manifest.read_variants(tmp_path / "net/1")[variant.name]
        load_variant(replace(spec, require_certificate="none"), variant, 1)
        listed = [each.weight_bits for each in found.layers if each.op == "Gather"]
        assert listed == ([16] if found.name == "weights16" else [8])
        assert found.file_bytes < compiled.original.file_bytes * (0.55 if found.name == "weights16" else 0.35)
