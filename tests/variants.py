"""A quantized variant of a net, made by hand as the compiler would: QDQ graph, manifest, golden inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kernels import manifest as manifests
from kernels.devices import CPU
from kernels.manifest import BatchProfile, Calibration, Golden, Manifest, RunOptions, VariantError
from kernels.session import Session
from kernels.spec import ModelSpec, VariantSpec

GOLDEN_ROWS = 5
PROFILE = BatchProfile(32, 1e-5, 1e-6, 64, {1: 1.1e-5, 32: 4e-5})


def quantize(source: Path, target: Path, scale: float = 0.05) -> None:
    """Weights int8 per tensor and the input uint8, each behind a DequantizeLinear."""
    model = onnx.load(source)
    graph, name = model.graph, model.graph.input[0].name
    consts = {"in_scale": np.float32(scale), "in_zero": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", [name, "in_scale", "in_zero"], ["in_q"]),
        helper.make_node("DequantizeLinear", ["in_q", "in_scale", "in_zero"], ["in_dq"]),
    ]
    for node in graph.node:
        node.input[:] = ["in_dq" if each == name else each for each in node.input]
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.ndim != 2:
            continue
        step = np.float32(np.abs(values).max() / 127)
        own = weight.name
        consts |= {f"{own}_q": np.rint(values / step).astype(np.int8), f"{own}_scale": step, f"{own}_zero": np.int8(0)}
        nodes.append(helper.make_node("DequantizeLinear", [f"{own}_q", f"{own}_scale", f"{own}_zero"], [own]))
        graph.initializer.remove(weight)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(each), key) for key, each in consts.items())
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *old])
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)


def add(
    spec: ModelSpec, name: str, inputs: dict[str, npt.NDArray[Any]] | None = None,
    build: Callable[[Path], object] | None = None, **stated: Any,
) -> Path:  # fmt: skip
    """variants/<name> of this model, quantized or as `build` says; `stated` changes its manifest. Its folder."""
    folder = Path(spec.path).parent / "variants" / name
    if build is None:
        quantize(Path(spec.path), folder / "model.onnx")
    else:
        build(folder / "model.onnx")
    if inputs is None:
        shape = (GOLDEN_ROWS, *spec.inputs[0].shape)
        inputs = {spec.inputs[0].name: np.random.default_rng(0).standard_normal(shape, np.float32)}
    session = Session(spec.of(VariantSpec(name)), 1, stated.get("session", RunOptions()))
    rows = len(next(iter(inputs.values())))
    step = stated.get("requests_per_run") or rows
    runs = [session.run({key: each[at : at + step] for key, each in inputs.items()}) for at in range(0, rows, step)]
    outputs = {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}
    golden = {f"input/{key}": each for key, each in inputs.items()}
    np.savez(folder / "golden.npz", **golden, **{f"output/{key}": each for key, each in outputs.items()})
    describe(spec, folder, name=name, **stated).write(folder / "manifest.json")
    return folder


def describe(spec: ModelSpec, folder: Path, **stated: Any) -> Manifest:
    """A manifest of what lies in the folder, but for what is stated."""
    found: dict[str, Any] = {
        "kind": "int8", "bits": "w8a8", "original_sha256": spec.sha256,
        "model_sha256": manifests.sha256(folder, ["model.onnx"]), "calibration": Calibration(), "compiler": "by hand",
        "runtime": onnxruntime.__version__, "cpu_features": (), "provider": CPU.provider, "provider_options": {},
        "session": RunOptions(), "requests_per_run": 0, "profile": PROFILE,
        "file_bytes": (folder / "model.onnx").stat().st_size, "memory_bytes": 1_000_000,
        "error": VariantError(0.02, 0.01, 0.99, 100), "golden": Golden(rows=GOLDEN_ROWS),
    }  # fmt: skip
    return Manifest(**{**found, **stated})
