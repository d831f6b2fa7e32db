"""The variants that are tried for a net: folded floats, 8 bits, fewer bits in the file, one request a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from onnx import ModelProto, TensorProto, helper

from kernels.compile import dynamic, folding, layers, qdq, ranges, smoothing, tables
from kernels.compile.importing import Reason
from kernels.compile.judge import Comparison, Refused
from kernels.compile.layers import FLOAT, Plan, WeightLayer, Width
from kernels.compile.net import Net, inferred
from kernels.compile.ranges import Scale, Seen
from kernels.compile.runtime import LITERAL, Runner, Tensors
from kernels.manifest import Layer, RunOptions
from kernels.spec import ModelSpec

STATIC = Width(8, 8)
_FOLDED_WITHIN = 1.5
Step = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A net to try as a variant. `integer_layers`: how many the runtime must execute in whole numbers."""

    name: str
    kind: str
    bits: str
    net: Net
    layers: tuple[Layer, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)
    requests_per_run: int = 0
    integer_layers: int = 0
    notes: tuple[str, ...] = ()
    rounding: float = 0.0  # of one of its numbers, as a share of it; 0 is that of float32


@dataclass
class Bench:
    """A net with what calibration found out about it."""

    spec: ModelSpec
    net: Net
    layers: list[WeightLayer]
    reasons: list[Reason]
    feeds: list[Tensors]
    shown: list[str]  # the tensors that errors are measured at: see `_logits`
    answers: list[Tensors] = field(default_factory=list)  # of the net itself to the feeds
    seen: dict[str, Seen] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    int8_error: float = 0.0

    def written(self, plan: Plan) -> Net:
        """The net with the layers at these widths, and its tables in as few bits as go with them."""
        return tables.write(qdq.write(self.net, self.layers, plan, self.scales), _table_bits(plan))

    def runner(self, model: ModelProto, options: RunOptions = LITERAL) -> Runner:
        """Of this net or a form of it, with the tensors as outputs that errors are measured at."""
        shown = ModelProto()
        shown.CopyFrom(model)
        del shown.graph.output[:]
        shown.graph.output.extend(helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in self.shown)
        return Runner(shown, options)

    def error(self, net: Net, options: RunOptions) -> float:
        """How far the net's answers to the calibration rows are from this one's: see `relative`."""
        return self.relative(self.runner(net.model, options), self.feeds, self.answers)

    def relative(
        self, runner: Runner, feeds: Sequence[Tensors], answers: Sequence[Tensors], changed: Tensors | None = None
    ) -> float:
        """`Comparison.relative` of the runner's answers; infinite where they are not finite."""
        found = Comparison(replace(self.spec, score=None, threshold=None, decision=None))
        try:
            for feed, wanted in zip(feeds, answers, strict=True):
                found.update(wanted, runner.run({**feed, **(changed or {})}))
        except Refused:
            return float("inf")
        return found.relative

    def options(self) -> RunOptions:
        """SkipLayerNormalization is slower than its parts, and keeps biases from their 8-bit MatMul."""
        normalized = any(node.op_type == "LayerNormalization" for node in self.net.nodes)
        return RunOptions("all", ("SkipLayerNormFusion",) if normalized else ())


def folded(net: Net) -> Candidate | None:
    """Floats with what comes before and behind the layers moved into them; None where there is nothing to move."""
    moved, done = folding.fold(net)
    labelled = folding.labels(moved)
    if labelled is not moved:
        done += ("the label is the place of the largest, without a table",)
    return Candidate("folded", "folded", "fp32", labelled, notes=done) if done else None


def base(spec: ModelSpec, net: Net, feeds: Sequence[Tensors], step: Step) -> Bench:
    """What is quantized: the net, or a form of it that computes the same and stands 8 bits better.

    Folded is faster, but a scaler may even out what one scale must hold; smoothed moves outliers into weights.
    """
    plain = folding.labels(net)
    made = bench(spec, plain, feeds)
    if not made.layers:
        return made
    calibrate(made, step)
    best = made
    smoothed = smoothing.smooth(plain, made.layers, made.seen)
    if smoothed is not None:
        step("moving outliers into weights")
        best = _better(best, bench(spec, inferred(smoothed), feeds), 1.0, step)
    moved, done = folding.fold(plain)
    return _better(best, bench(spec, moved, feeds), _FOLDED_WITHIN, step) if done else best


def _better(made: Bench, other: Bench, within: float, step: Step) -> Bench:
    calibrate(other, step)
    return other if other.int8_error <= within * made.int8_error else made


def bench(spec: ModelSpec, net: Net, feeds: Sequence[Tensors]) -> Bench:
    """Runs the feeds once. Raises NotCompiled."""
    found, reasons = layers.find(net)
    made = Bench(spec, net, found, reasons, list(feeds), _logits(net))
    runner = made.runner(net.model)
    made.answers = [runner.run(feed) for feed in feeds]
    held = layers.eight_bit_tensors(net, found, {each.name: STATIC for each in found})
    made.seen = ranges.observe(net, sorted(held), made.feeds)  # where its source is in floats, each has its own scale
    return made


def _logits(net: Net) -> list[str]:
    """What goes into the last Softmax or Sigmoid, else the float outputs.

    Probabilities near 0 and 1 hide errors and do not add up in squares; what they are made of does.
    """
    kinds = {each.name: each.type.tensor_type.elem_type for each in net.model.graph.output}
    found: list[str] = []
    left = [name for name, kind in kinds.items() if kind == TensorProto.FLOAT]
    floats = list(left)
    while left:
        node = net.producer.get(left.pop())
        if node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
            found.append(node.input[0])
        elif node is not None and node.op_type in ("Identity", "Concat", "Sub", "Reshape", "Flatten"):
            left += [name for name in node.input if net.weight(name) is None]
    return list(dict.fromkeys(found)) or floats or list(net.outputs)


def calibrate(made: Bench, step: Step) -> None:
    """Chooses the scales: by the method whose 8-bit net errs least on the calibration rows."""
    tried: list[tuple[float, dict[str, Scale]]] = []
    plan = {each.name: STATIC for each in made.layers}
    for method in ranges.METHODS:
        step(f"ranges by {method}")
        made.scales = {name: ranges.scale_of(seen, method) for name, seen in made.seen.items()}
        tried.append((made.error(made.written(plan), made.options()), made.scales))
    made.int8_error, made.scales = min(tried, key=lambda each: each[0])


def stored(made: Bench) -> Iterator[Candidate]:
    """Floats in memory, fewer bits in the file."""
    for bits in (16, 8, 4):
        plan = {each.name: Width(bits, 32) for each in made.layers}
        name, listed = f"weights{bits}", described(made, plan, "every layer alike")
        yield Candidate(name, name, f"w{bits}", made.written(plan), listed)


def static(made: Bench) -> Iterator[Candidate]:
    """8 bits everywhere."""
    plan = {each.name: STATIC for each in made.layers}
    yield Candidate(
        "int8", "int8", "w8a8", made.written(plan), described(made, plan, "every layer alike"), made.options(),
        integer_layers=len(plan),
    )  # fmt: skip


def one_request(made: Bench) -> Iterator[Candidate]:
    """Activations in 8 bits with a scale of their own at each run."""
    net = dynamic.write(made.net, made.layers)
    if net is None:
        return
    net = tables.write(net, 8)
    plan = {each.name: STATIC for each in made.layers if each.op == "MatMul"}
    listed = described(made, plan, "every MatMul alike, scales at each run")
    yield Candidate(
        "dynamic", "dynamic", "w8a8 dynamic", net, listed, made.options(), requests_per_run=1, integer_layers=len(plan)
    )


def described(made: Bench, plan: Plan, why: str, sensitivity: dict[str, float] | None = None) -> tuple[Layer, ...]:
    """The layers as the manifest lists them, those that could not be quantized too."""
    held = layers.eight_bit_tensors(made.net, made.layers, plan)
    found = []
    for each in made.layers:
        width = plan.get(each.name, FLOAT)
        clipped = made.scales[held[each.source]].clipped if width.activation == 8 else 0.0
        error = (sensitivity or {}).get(each.name, 0.0)
        found.append(Layer(each.name, each.op, width.weight, width.activation, error, why, clipped))
    bits, said = _table_bits(plan), "a table: the rows looked up become floats"
    found += [Layer(each, "Gather", bits, 32, 0.0, said) for each in tables.find(made.net)]
    return (*found, *(Layer(each.node, each.op, 32, 32, 0.0, each.why) for each in made.reasons))


def _table_bits(plan: Plan) -> int:
    """8, which err less than the activations do; 16 where no weight has fewer."""
    return 16 if all(each.weight >= 16 for each in plan.values()) else 8
