"""How much each tensor in 8 bits, and each layer's weights in fewer bits, disturb the outputs, one at a time.

One float graph serves all trials: weights, scales and switches are inputs that have a default.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from kernels.compile import qdq, ranges
from kernels.compile.allocate import Choice
from kernels.compile.candidates import STATIC, Bench
from kernels.compile.layers import FLOAT, Plan, WeightLayer, Width, eight_bit_tensors, places, weight_of
from kernels.compile.net import Array
from kernels.compile.runtime import Tensors

TRIED_BITS = (4, 8)
BUDGET_S = 30.0  # of all trials together
_ROWS_MIN = 2


@dataclass
class Sensitivities:
    """Errors as `Comparison.relative`, each alone: by layer and weight bits, and by tensor in 8 bits."""

    made: Bench
    weights: dict[str, dict[int, float]] = field(default_factory=dict)
    tensors: dict[str, float] = field(default_factory=dict)

    def predicted(self, plan: Plan) -> float:
        """The joint error of a plan: the root of the sum of the squares."""
        held = eight_bit_tensors(self.made.net, self.made.layers, plan)
        squares = [self.tensors.get(name, 0.0) ** 2 for name in set(held.values())]
        squares += [self.weights[name].get(width.weight, 0.0) ** 2 for name, width in plan.items()]
        return float(sum(squares) ** 0.5)

    def choices(self, widths: tuple[Width, ...]) -> dict[str, list[Choice[Width]]]:
        """What each layer may have. A tensor's error counts for the first layer that puts it into 8 bits."""
        found = {}
        counted: set[str] = set()
        for layer in self.made.layers:
            held = set(eight_bit_tensors(self.made.net, self.made.layers, {layer.name: STATIC}).values())
            own = sum(self.tensors.get(name, 0.0) ** 2 for name in held - counted)
            counted |= held
            found[layer.name] = [
                Choice(
                    width,
                    layer.file_bytes(width.weight),
                    self.weights[layer.name].get(width.weight, 0.0) ** 2 + (own if width.activation == 8 else 0.0),
                )
                for width in (*widths, FLOAT)
            ]
        return found


def measure(made: Bench, step: Callable[[str], None], budget_s: float = BUDGET_S) -> Sensitivities:
    """Tries every tensor and every layer at each width, on as many rows as the time allows."""
    found = Sensitivities(made)
    sources = eight_bit_tensors(made.net, made.layers, {each.name: STATIC for each in made.layers})
    held = set(sources.values())
    probe = _Probe(made, held)
    probe.limit(len(held) + len(TRIED_BITS) * len(made.layers), budget_s)
    for name in sorted(held):
        step(f"sensitivity of {name}")
        found.tensors[name] = probe.error({f"{name}.m": np.array(True)})
    found.tensors |= {name: found.tensors[source] for name, source in sources.items()}
    for layer in made.layers:
        step(f"sensitivity of {layer.name}")
        found.weights[layer.name] = _errors(probe, layer)
    return found


def _errors(probe: _Probe, layer: WeightLayer) -> dict[int, float]:
    """By bits. What 16 bits change is so little that the error grows with it: as it does for 8, without a trial."""
    array = weight_of(probe.made.net, layer)
    held = {bits: _held(array, bits, layer.axis) for bits in (*TRIED_BITS, 16)}
    errors = {bits: probe.error({layer.weight: held[bits]}) for bits in TRIED_BITS}
    apart = {bits: float(np.linalg.norm(each - array)) for bits, each in held.items()}
    return errors | {16: errors[8] * apart[16] / apart[8] if apart[8] else probe.error({layer.weight: held[16]})}


def _held(array: Array, bits: int, axis: int) -> Array:
    """The weights as they come back from their width."""
    if bits == 16:
        with np.errstate(over="ignore"):
            return np.nan_to_num(array.astype(np.float16).astype(np.float32))
    steps, scales = ranges.weights(array, bits, axis)
    shape = [1] * array.ndim
    shape[axis] = -1
    held: Array = steps * scales.reshape(shape)
    return held.astype(np.float32)


class _Probe:
    """The graph of all trials."""

    def __init__(self, made: Bench, held: set[str]) -> None:
        self.made = made
        self.runner = made.runner(_graph(made, held))
        self.feeds = made.feeds
        self.answers = [self.runner.run(feed) for feed in self.feeds]

    def limit(self, trials: int, budget_s: float) -> None:
        """Keeps as many rows as that many trials have time for."""
        began = time.perf_counter()
        for feed in self.feeds:
            self.runner.run(feed)
        took = time.perf_counter() - began
        share = budget_s / max(trials * took, 1e-9)
        if share >= 1:
            return
        kept: list[Tensors] = []
        for feed in self.feeds[: max(1, int(len(self.feeds) * share) + 1)]:
            n = len(next(iter(feed.values())))
            most = n if self.made.spec.rows_fixed else max(_ROWS_MIN, int(n * share * len(self.feeds)))
            kept.append({name: array[:most] for name, array in feed.items()})
            if most < n:
                break
        self.feeds = kept
        self.answers = [self.runner.run(feed) for feed in kept]

    def error(self, changed: Tensors) -> float:
        """With these defaults replaced."""
        return self.made.relative(self.runner, self.feeds, self.answers, changed)


def _graph(made: Bench, held: set[str]) -> ModelProto:
    """The net with a switch at each tensor, and with weights that a run may replace."""
    net = made.net
    plan = dict.fromkeys((each.name for each in made.layers), STATIC)
    where = places(net, made.layers, plan, {name: name for name in held})
    nodes: list[NodeProto] = []
    weights: dict[str, Array] = {}
    names = {}
    for name in sorted(held):
        before, after = names[name] = qdq.stepped(nodes, weights, name, made.scales[name], where[name])
        nodes[-1].output[0] = f"{name}.e"
        nodes.append(helper.make_node("Where", [f"{name}.m", f"{name}.e", before], [after]))
        weights[f"{name}.m"] = np.array(False)
    nodes += [qdq.rewired(node, where, names) for node in net.nodes]
    model = net.rebuilt(nodes, weights).model
    graph = model.graph
    graph.input.extend(helper.make_tensor_value_info(f"{name}.m", TensorProto.BOOL, []) for name in sorted(held))
    for name in dict.fromkeys(each.weight for each in made.layers):
        array = net.weight(name)
        if array is not None:
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    return model
