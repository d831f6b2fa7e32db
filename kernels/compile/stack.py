"""Equal layers of several models on one input as one batched layer, with weights [members, in, out].

Nodes of different members are equal where operator, attributes, shapes of constants and what they take are equal. Of
those, nodes with the same constants run once; products, sums and activations of a chain run batched; the rest stays as
it is, side by side. Exact up to the order in which a product adds up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper

from kernels.compile.net import Array, Net, attributes, inferred, renamed

OPSET_MIN = 13  # Softmax along one axis
WEIGHTS_MAX = 8_192  # of one product; the runtime packs a plain weight once, a batched one again in each run
ROWS_FEW = 2  # runs so small that there is nothing to pack
MEMBERS_MIN = 8  # of a batched layer; of fewer, what is saved is less than taking the results apart costs
_ACTIVATIONS = {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "HardSigmoid",
                "HardSwish", "Mish", "Gelu", "ThresholdedRelu", "Erf", "Exp", "Neg", "Abs", "Sqrt", "Clip"}  # fmt: skip
_SUMS = {"Add", "Sub", "Mul", "Div", "Max", "Min"}
_PRODUCTS = {"MatMul", "Gemm"}
_ALONG_AXIS = {"Softmax", "LogSoftmax"}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
           "Dropout"}  # fmt: skip
Group = dict[int, NodeProto]  # the equal nodes by member


def stacked(
    net: Net,
    members: Sequence[Sequence[NodeProto]],
    rows: int | None = None,
    joined: Mapping[str, Sequence[str]] | None = None,
) -> Net:
    """The net, whose nodes are those of the members in turn, with equal layers batched where that pays.

    `rows`: of a run, where it is known. Batching gains in runs of one or two rows of many small members, and costs more
    with each row and weight beyond: then only what is the same in all runs once.
    `joined`: outputs [rows, members, ...] and the members' tensors [rows, ...] that each is made of.
    """
    few = net.opset >= OPSET_MIN and (rows is None or rows <= ROWS_FEW)
    return _Stacking(net, _Plan(net, members, WEIGHTS_MAX if few else 0)).run(joined or {})


class _Plan:
    """Which nodes are equal, and of these which run once (`once`) and which batched (`batched`)."""

    def __init__(self, net: Net, members: Sequence[Sequence[NodeProto]], weights_max: int) -> None:
        self._net, self._weights_max = net, weights_max
        self.groups = list(_groups(net, members))
        self.ranks = inferred(net).ranks
        self.once: set[int] = set()
        self.batched: set[int] = set()
        self.alias: dict[str, str] = {}  # a tensor that equals one of the first member
        self._made: dict[str, int] = {}  # tensor -> batched group
        self._chain: dict[int, set[int]] = {}  # the batched groups that hang together
        for place, group in enumerate(self.groups):
            if len(group) > 1:
                self._decide(place, group)
        for chain in {id(each): each for each in self._chain.values()}.values():
            if not self._pays(chain):
                self.batched -= chain

    def columns(self, group: Group) -> list[list[str]]:
        """The names that the nodes have in each place of their inputs."""
        rows = [[self.alias.get(name, name) for name in node.input] for node in group.values()]
        return [list(column) for column in zip(*rows, strict=True)]

    def _decide(self, place: int, group: Group) -> None:
        nodes, columns = list(group.values()), self.columns(group)
        if all(len(set(column)) == 1 for column in columns) and nodes[0].op_type not in _RANDOM:
            self.once.add(place)
            for node in nodes[1:]:
                self.alias |= dict(zip(node.output, nodes[0].output, strict=True))
            return
        rank = self._rank(nodes[0], columns)
        if rank is None or len(nodes) < MEMBERS_MIN:
            return
        self.batched.add(place)
        self._chain[place] = {place}
        for name in (name for column in columns for name in column if name in self._made):
            self._join(place, self._made[name])
        for node in nodes:
            self._made[node.output[0]] = place
            self.ranks[node.output[0]] = rank

    def _rank(self, node: NodeProto, columns: list[list[str]]) -> int | None:
        """The dimensions of the result before batching, None where these nodes cannot be batched."""
        kinds = {self._kind(column) for column in columns}
        names = {name for column in columns for name in column if name}
        ranks = {self.ranks.get(name, 0) for name in names if not self._constant(name)}
        arrays = [array for name in names if (array := self._net.weight(name)) is not None]
        rank = max(ranks, default=0)
        if node.domain not in ("", "ai.onnx") or "mixed" in kinds or len(ranks) != 1 or rank < 2:
            return None
        if any(array.ndim > rank for array in arrays):
            return None
        if node.op_type in _PRODUCTS:
            return rank if self._is_layer(node, columns, rank) else None
        if node.op_type in _SUMS:
            return rank
        return rank if node.op_type in _ACTIVATIONS | _ALONG_AXIS and "constants" not in kinds else None

    def _is_layer(self, node: NodeProto, columns: list[list[str]], rank: int) -> bool:
        """Whether it is a product of a computed tensor with a constant matrix, with a constant bias or none."""
        weight = self._net.weight(columns[1][0])
        computed, *rest = [self._constant(column[0]) or not column[0] for column in columns]
        plain = node.op_type == "MatMul" or (rank == 2 and not attributes(node).get("transA"))
        return plain and not computed and all(rest) and weight is not None and weight.ndim == 2

    def _kind(self, column: list[str]) -> str:
        if len(set(column)) == 1 and column[0] not in self._made:
            return "shared"
        if all(self._constant(name) for name in column):
            return "constants"
        return "batched" if all(name in self._made for name in column) else "mixed"

    def _constant(self, name: str) -> bool:
        return self._net.weight(name) is not None

    def _join(self, one: int, other: int) -> None:
        both = self._chain[one] | self._chain[other]
        self._chain |= dict.fromkeys(both, both)

    def _pays(self, chain: set[int]) -> bool:
        """Whether it has products, and each is small enough."""
        nodes = [next(iter(self.groups[place].values())) for place in chain]
        weights = [self._net.weight(node.input[1]) for node in nodes if node.op_type in _PRODUCTS]
        return bool(weights) and all(each is not None and each.size <= self._weights_max for each in weights)


class _Stacking:
    """Writes the nodes that a plan asks for."""

    def __init__(self, net: Net, plan: _Plan) -> None:
        self._net, self._plan = net, plan
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, Array] = {}
        self._at: dict[str, tuple[str, int]] = {}  # a member's tensor -> the batched tensor and its place there

    def run(self, joined: Mapping[str, Sequence[str]]) -> Net:
        for place, group in enumerate(self._plan.groups):
            if place in self._plan.batched:
                self._batch(place, group)
            else:
                kept = list(group.values())[: 1 if place in self._plan.once else None]
                self._nodes += [renamed(node, self._plan.alias, outputs=False) for node in kept]
        for name, column in joined.items():
            self._join(name, [self._plan.alias.get(each, each) for each in column])
        taken = {name for node in self._nodes for name in node.input} | set(self._net.outputs)
        for name, (batched, at) in self._at.items():
            if name in taken:
                self._nodes.append(helper.make_node("Gather", [batched, self._number(at)], [name], axis=0))
        self._nodes += [
            helper.make_node("Identity", [self._plan.alias[name]], [name])
            for name in self._net.outputs
            if name in self._plan.alias
        ]
        return self._net.rebuilt(self._nodes, self._weights)

    def _join(self, name: str, column: list[str]) -> None:
        """One tensor [rows, members, ...] of the members' [rows, ...]."""
        if all(each in self._at for each in column) and len({self._at[each][0] for each in column}) == 1:
            rank = self._plan.ranks[column[0]]
            turned = [1, 0, *range(2, rank + 1)]
            self._nodes.append(helper.make_node("Transpose", [self._operand(column, rank)], [name], perm=turned))
            return
        self._weights["batched.members"] = np.array([1])
        wide = [f"{name}.{place}" for place in range(len(column))]
        self._nodes += [
            helper.make_node("Unsqueeze", [each, "batched.members"], [one])
            for each, one in zip(column, wide, strict=True)
        ]
        self._nodes.append(helper.make_node("Concat", wide, [name], axis=1))

    def _batch(self, place: int, group: Group) -> None:
        nodes, columns = list(group.values()), self._plan.columns(group)
        name, node = f"batched.{place}", nodes[0]
        rank = self._plan.ranks[node.output[0]]
        stated = attributes(node)
        if node.op_type == "Gemm":
            self._gemm(name, columns, stated)
        else:
            if node.op_type in _ALONG_AXIS:
                axis = stated.get("axis", -1)
                stated["axis"] = axis + 1 if axis >= 0 else axis
            inputs = [self._operand(column, rank) for column in columns]
            self._nodes.append(helper.make_node(node.op_type, inputs, [name], name=node.name, **stated))
        self._at |= {each.output[0]: (name, at) for at, each in enumerate(nodes)}

    def _gemm(self, name: str, columns: list[list[str]], stated: dict[str, float]) -> None:
        """As MatMul and Add, alpha and beta in the constants."""
        weights = self._arrays(columns[1])
        weights = weights * weights.dtype.type(stated.get("alpha", 1.0))
        weights = weights.swapaxes(1, 2) if stated.get("transB") else weights
        self._weights[f"{name}.weight"] = np.ascontiguousarray(weights)
        has_bias = len(columns) > 2 and columns[2][0]
        product = f"{name}.product" if has_bias else name
        self._nodes.append(helper.make_node("MatMul", [self._operand(columns[0], 2), f"{name}.weight"], [product]))
        if has_bias:
            bias = self._arrays(columns[2])
            self._weights[f"{name}.bias"] = _aligned(bias * bias.dtype.type(stated.get("beta", 1.0)), 2)
            self._nodes.append(helper.make_node("Add", [product, f"{name}.bias"], [name]))

    def _operand(self, column: list[str], rank: int) -> str:
        """The batched tensor of these names; a shared one as it is, which broadcasts."""
        if len(set(column)) == 1 and column[0] not in self._at:
            return column[0]
        if self._net.weight(column[0]) is not None:
            name = f"batched.{column[0]}"
            self._weights[name] = _aligned(self._arrays(column), rank)
            return name
        batched, places = self._at[column[0]][0], [self._at[name][1] for name in column]
        if places == list(range(sum(each == batched for each, _ in self._at.values()))):
            return batched
        chosen = f"{batched}.{'.'.join(map(str, places))}"
        self._weights[f"{chosen}.places"] = np.array(places)
        self._nodes.append(helper.make_node("Gather", [batched, f"{chosen}.places"], [chosen], axis=0))
        return chosen

    def _arrays(self, column: list[str]) -> Array:
        return np.stack([self._net.weight(name) for name in column])  # type: ignore[misc]

    def _number(self, value: int) -> str:
        self._weights[f"batched.place.{value}"] = np.array(value)
        return f"batched.place.{value}"


def _groups(net: Net, members: Sequence[Sequence[NodeProto]]) -> Iterator[Group]:
    """Equal nodes of the members, each group behind those that it takes from."""
    groups: dict[tuple[object, ...], Group] = {}
    for member, nodes in enumerate(members):
        made: dict[str, object] = {}
        seen: Counter[object] = Counter()
        for node in nodes:
            key = (
                (node.domain, node.op_type, len(node.output)),
                tuple(sorted(each.SerializeToString(deterministic=True) for each in node.attribute)),
                tuple(made.get(name) or _source(net, name) for name in node.input),
            )
            seen[key] += 1
            group = groups.setdefault((key, seen[key]), {})
            group[member] = node
            made |= {name: (id(group), place) for place, name in enumerate(node.output)}
    yield from groups.values()


def _source(net: Net, name: str) -> object:
    """What a tensor is that no node of the member makes: a constant of some shape, or an input."""
    array = net.weight(name) if name else None
    return name if array is None else (str(array.dtype), array.shape)


def _aligned(arrays: Array, rank: int) -> Array:
    """[members, *shape] with ones between, so that [members, ...] of `rank` more dimensions broadcasts with it."""
    ones = (1,) * (rank + 1 - arrays.ndim)
    return arrays.reshape(arrays.shape[0], *ones, *arrays.shape[1:])
