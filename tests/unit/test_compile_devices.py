"""Execution providers: what is not there, or falls back silently, is an error that says what to install."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from kernels import devices
from kernels.devices import NoDevice
from kernels.repository import check, load_model, load_repository
from kernels.session import Session
from schemas.errors import BadSetting
from streams.settings import load
from tests import nets
from workers import pipeline

_, CUDA, TENSORRT, OPENVINO = devices.DEVICES.values()


def test_the_processor_is_always_there() -> None:
    found = devices.device("cpu")
    assert found.provider == "CPUExecutionProvider"
    devices.check_provider(found, [found.provider])


@pytest.mark.parametrize("name", [each for each in devices.DEVICES if each != "cpu"])
def test_what_this_runtime_lacks_says_what_to_install(name: str) -> None:
    wanted = devices.DEVICES[name]
    if wanted.provider in onnxruntime.get_available_providers():
        assert devices.device(name) == wanted
        return
    with pytest.raises(NoDevice, match=re.escape(wanted.package)):
        devices.device(name)


def test_an_unknown_name_lists_the_others() -> None:
    with pytest.raises(NoDevice, match="cpu, cuda, tensorrt, openvino"):
        devices.device("gpu")


@pytest.mark.parametrize("providers", [["CPUExecutionProvider"], []])
def test_a_silent_fall_back_is_an_error(providers: list[str]) -> None:
    with pytest.raises(NoDevice, match="fell back"):
        devices.check_provider(devices.DEVICES["cuda"], providers)


GPU, HERE = CUDA.provider, devices.CPU.provider


@pytest.mark.parametrize("nodes", [
    [(GPU, "Conv"), (HERE, "Shape"), (HERE, "Gather"), (HERE, "Unsqueeze")], [(GPU, "Attention")],
])  # fmt: skip
def test_sizes_may_be_computed_on_the_cpu(nodes: list[tuple[str, str]]) -> None:
    devices.check_placement(CUDA, nodes)


@pytest.mark.parametrize(("nodes", "named"), [
    ([(GPU, "Conv"), (HERE, "TreeEnsembleClassifier"), (HERE, "Shape")], "TreeEnsembleClassifier on the CPU"),
    ([(HERE, "Shape")], "nothing of the model"), ([], "nothing of the model"),
    ([(GPU, "Conv"), (HERE, "AnOperatorOfTomorrow")], "AnOperatorOfTomorrow"),
])  # fmt: skip
def test_a_model_that_runs_elsewhere_in_part_is_an_error(nodes: list[tuple[str, str]], named: str) -> None:
    with pytest.raises(NoDevice, match=f"{named}.*device = 'cpu'"):
        devices.check_placement(CUDA, nodes)


def test_what_tensorrt_leaves_may_run_on_cuda_but_not_all_of_it() -> None:
    devices.check_placement(TENSORRT, [(TENSORRT.provider, "Conv"), (GPU, "TopK")])
    with pytest.raises(NoDevice, match="nothing of the model"):
        devices.check_placement(TENSORRT, [(GPU, "Conv")])


def test_options_that_say_where_are_apart_from_those_that_say_what() -> None:
    """Manifests hold the second kind alone: a variant may move to another GPU."""
    second = replace(TENSORRT, placed={"device_id": "1", "trt_engine_cache_path": "/state"})
    assert second.of("fp16").options == {"trt_fp16_enable": "1"}
    (own, other) = second.of("fp16").providers(4)
    assert own == (TENSORRT.provider,
                   {"trt_fp16_enable": "1", "device_id": "1", "trt_engine_cache_path": "/state"})  # fmt: skip
    assert other == (GPU, {**CUDA.options, "device_id": "1"})
    assert OPENVINO.providers(4)[0][1]["num_of_threads"] == "4"
    assert "num_of_threads" not in OPENVINO.providers(0)[0][1]


@pytest.mark.parametrize("name", ["cpu:1", "cuda:", "gpu:0", "", "CUDA"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadSetting, match="cpu, cuda, tensorrt, openvino"):
        devices.device(name)


def test_a_session_on_a_device_that_is_not_there(tmp_path: Path) -> None:
    nets.mlp(tmp_path / "m/1/model.onnx")
    spec = load_model(tmp_path, "m", "1")
    absent = replace(CUDA, provider="NpuExecutionProvider")
    with pytest.raises(NoDevice, match=r"no NpuExecutionProvider.*lrai\[gpu\]"):
        Session(spec, device=absent)


def test_a_provider_that_is_there_and_takes_no_node_is_an_error(tmp_path: Path) -> None:
    """The runtime names it first and runs everything on the CPU: only where nodes were put tells."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("the runtime for the CPU has this provider, which takes remote operators alone")
    nets.mlp(tmp_path / "m/1/model.onnx")
    azure = replace(devices.CPU, name="azure", provider="AzureExecutionProvider")
    with pytest.raises(NoDevice, match="device = 'azure': the runtime runs Gemm, Relu, Softmax on the CPU"):
        Session(load_model(tmp_path, "m", "1"), device=azure)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:x", "cpu:0", "tensorrt:"])
def test_a_wrong_device_is_refused_where_it_is_written(tmp_path: Path, wrong: str) -> None:
    nets.mlp(tmp_path / "m/1/model.onnx")
    (tmp_path / "m/1/model.toml").write_text(f'device = "{wrong}"\n')
    with pytest.raises(BadSetting, match="device"):
        load_model(tmp_path, "m", "1")
    with pytest.raises(BadSetting, match="device"):
        load(device=wrong)


def test_the_device_of_a_model_comes_before_that_of_the_node(tmp_path: Path) -> None:
    nets.mlp(tmp_path / "a/1/model.onnx")
    nets.mlp(tmp_path / "b/1/model.onnx")
    (tmp_path / "b/1/model.toml").write_text('device = "cpu"\n')
    specs = list(load_repository(tmp_path).values())
    assert [each.device for each in specs] == [None, "cpu"]
    missing = next(each for each in devices.DEVICES.values()
                   if each.provider not in onnxruntime.get_available_providers())  # fmt: skip
    pipeline.check_devices(load(device="cpu"), specs)
    pipeline.check_devices(load(device=missing.name), specs[1:])
    with pytest.raises(NoDevice, match=f"device = '{missing.name}'.*install"):
        pipeline.check_devices(load(device=missing.name), specs)
    (problem,) = check(tmp_path, missing.name)
    assert missing.provider in str(problem)


def test_features_of_the_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx avx2 avx512_vnni new\n")
    assert devices.cpu_features(tmp_path / "cpuinfo")[1:] == ("avx", "avx2", "avx512_vnni")
    assert len(devices.cpu_features(tmp_path / "missing")) == 1
