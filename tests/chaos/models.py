"""Models that misbehave: each is an ordinary ONNX graph that does harm for one input value, or when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests import nets

LOWEST = np.iinfo(np.int64).min
KILLS = -8  # 1000 rows with one of these kill the process of the kernel
FAILS = -7  # and this one makes the run fail without killing
HANGS = 7
COLUMN: dict[str, tuple[int, nets.Shape]] = {"value": (TensorProto.INT64, ["rows", 1])}
RESULT: dict[str, tuple[int, nets.Shape]] = {"result": (TensorProto.INT64, ["rows", 1])}


def killer(path: Path, shift: int = 7) -> Path:
    """value int64[rows, 1] -> the lowest int64 / (value + shift): -1 as divisor overflows, which is a SIGFPE."""
    net = nets.Builder()
    divisor = net.node("Add", "value", net.weight(np.array([shift])))
    net.node("Div", net.weight(np.array([LOWEST])), divisor, out="result")
    return net.save(path, COLUMN, RESULT)


def crashing(path: Path) -> Path:
    """Kills its process at the first run on zeros, which is when it is warmed up."""
    return killer(path, -1)


def hanging(path: Path) -> Path:
    """value int64[rows, 1] -> value; a loop without an end when one of the rows is HANGS."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Identity", ["state"], ["next"]),
        ],
        "body",
        [
            info("turn", TensorProto.INT64, []),
            info("on", TensorProto.BOOL, []),
            info("state", TensorProto.INT64, ["rows", 1]),
        ],
        [info("still", TensorProto.BOOL, []), info("next", TensorProto.INT64, ["rows", 1])],
    )
    net = nets.Builder()
    same = net.node("Cast", net.node("Equal", "value", net.weight(np.array([HANGS]))), to=TensorProto.INT64)
    found = net.node("Cast", net.node("ReduceMax", same, keepdims=0), to=TensorProto.BOOL)
    net.node("Loop", "", found, "value", out="result", body=body)
    return net.save(path, COLUMN, RESULT)
