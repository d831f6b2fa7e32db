"""Widths chosen by predicted errors, measured as a whole: on three nets, against uniform and reversed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from kernels.compile import allocate, candidates, importing, mixed, probe, proved
from kernels.compile.candidates import Bench, Candidate
from kernels.compile.layers import Plan, WeightLayer, Width, weight_of
from kernels.compile.net import Array, Net
from kernels.compile.probe import Sensitivities
from kernels.manifest import RunOptions
from kernels.repository import load_model
from tests import nets
from tests.transformers import TINY, bert
from tests.unit.test_quantize import small_cnn

RNG = np.random.default_rng(0)


def measured(path: Path, name: str) -> Sensitivities:
    if name == "mlp":
        nets.mlp(path, sizes=(30, 64, 64, 64, 32, 2))
        feed = {"features": RNG.standard_normal((128, 30), np.float32)}
    elif name == "cnn":
        path.parent.mkdir(parents=True)
        onnx.save(small_cnn(path).model, path)
        feed = {"pixels": RNG.random((64, 3, 16, 16), np.float32)}
    else:
        path.parent.mkdir(parents=True)
        bert(path, TINY)
        feed = {
            "input_ids": RNG.integers(0, 50, (32, 16)),
            "attention_mask": np.ones((32, 16), np.int64),
            "token_type_ids": np.zeros((32, 16), np.int64),
        }
    spec = load_model(path.parents[2], name, "1")
    net = importing.read(spec).net
    assert net is not None
    made = candidates.bench(spec, net, [feed])
    candidates.calibrate(made, lambda what: None)
    return probe.measure(made, lambda what: None, 5.0)


def error(made: Bench, plan: Plan) -> float:
    return made.error(made.written(plan), made.options())


def size(made: Bench, plan: Plan) -> int:
    return sum(each.file_bytes(plan[each.name].weight) for each in made.layers)


@pytest.mark.parametrize("name", ["mlp", "cnn", "bert"])
def test_chosen_widths_hold_what_they_promise(tmp_path: Path, name: str) -> None:
    found = measured(tmp_path / name / "1/model.onnx", name)
    made = found.made
    for widths in (mixed.EIGHT, mixed.STORED):
        choices = found.choices(widths)
        for bits in (4, 8):
            uniform = {each.name: Width(bits, widths[0].activation) for each in made.layers}
            plan = {key: each.width for key, each in allocate.under_bytes(choices, size(made, uniform)).items()}
            assert size(made, plan) <= size(made, uniform)
            assert error(made, plan) <= 1.05 * error(made, uniform)
            assert error(made, plan) <= 1.3 * found.predicted(plan)
    plan, predicted, whole = mixed.allocated(found, mixed.EIGHT, 0.05, made.options())
    assert whole <= 0.05
    assert whole <= 1.3 * predicted
    assert size(made, plan) < size(made, {each.name: Width(16, 32) for each in made.layers})


def test_the_other_way_round_is_worse(tmp_path: Path) -> None:
    """The narrow widths where they hurt most, at no smaller a size."""
    found = measured(tmp_path / "cnn/1/model.onnx", "cnn")
    made = found.made
    least, most = (size(made, {each.name: Width(bits, 8) for each in made.layers}) for bits in (4, 8))
    chosen = allocate.under_bytes(found.choices(mixed.EIGHT), (least + most) // 2)
    plan = {name: each.width for name, each in chosen.items()}
    hurts = sorted(made.layers, key=lambda each: found.weights[each.name][4] / each.elements)
    widths = sorted(plan.values(), key=lambda each: each.weight)
    reverse = {layer.name: width for layer, width in zip(hurts[::-1], widths, strict=True)}
    assert size(made, plan) <= size(made, reverse)
    assert error(made, plan) < error(made, reverse)


def test_a_search_by_proof_ends_where_nothing_narrower_is_proved(tmp_path: Path) -> None:
    """What stands in for the proof: the error on some rows."""
    made = measured(tmp_path / "mlp/1/model.onnx", "mlp").made
    alike = [made.error(made.written({each.name: width for each in made.layers}), RunOptions())
             for width in proved.WIDTHS]  # fmt: skip

    def searched(within: float) -> Candidate | None:
        return proved.candidate(made, lambda net: made.error(net, RunOptions()) <= within, lambda what: None)

    assert searched(0.9 * alike[0]) is None  # nothing is proved
    assert searched(1.1 * alike[2]) is None  # all layers alike
    for within in (0.9 * alike[1], 0.5 * alike[2]):
        found = searched(within)
        assert found is not None
        assert made.error(found.net, RunOptions()) <= within
        plan = {each.name: Width(each.weight_bits, each.activation_bits) for each in found.layers}
        assert len(set(plan.values())) > 1
        for name, width in plan.items():
            for narrower in proved.WIDTHS[proved.WIDTHS.index(width) + 1 :][:1]:
                net = made.written({**plan, name: narrower})
                is_smaller = net.model.ByteSize() < found.net.model.ByteSize()
                assert made.error(net, RunOptions()) > within or not is_smaller


def test_a_search_by_proof_takes_another_clip_where_the_one_of_least_error_is_not_proved(tmp_path: Path) -> None:
    """What stands in for the proof: no weight is further off than half a step that reaches its channel's largest."""
    made = measured(tmp_path / "mlp/1/model.onnx", "mlp").made

    def proves(net: Net) -> bool:
        return all(
            abs(restored - wanted).max() <= abs(wanted).max() / 14 * (1 + 1e-6)
            for layer in made.layers
            if (steps := net.weight(f"{layer.name}.w")) is not None and steps.dtype != np.float16
            for wanted, restored in zip(*channels(layer, made.net, net, steps), strict=True)
        )

    found = proved.candidate(made, proves, lambda what: None)
    assert found is not None
    assert found.bits == "w4"
    assert proves(found.net)
    assert not proves(made.written({each.name: Width(4, 32) for each in made.layers}))


def channels(layer: WeightLayer, original: Net, net: Net, steps: Array) -> tuple[Array, Array]:
    """The weights by channel, as they were and as they come back."""
    scales = net.weight(f"{layer.name}.ws")
    assert scales is not None
    restored = steps.astype(np.float32) * scales
    return np.moveaxis(weight_of(original, layer), layer.axis, 0), np.moveaxis(restored, layer.axis, 0)
