"""Transformer encoders as ONNX graphs of plain operators: BERT with random weights, or with weights that are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from tests.nets import Builder

Floats = npt.NDArray[np.float32]
Weights = Callable[[str, tuple[int, ...]], Floats]  # by the name in a BERT checkpoint, and its shape there
FAR = -10_000.0  # added to the score of a token that the mask leaves out
EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Encoder:
    """The sizes of an encoder."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    inner: int = 3072
    words: int = 30_522
    positions: int = 512


BERT_BASE = Encoder()
MINILM_L6 = Encoder(layers=6, width=384, inner=1536)
TINY = Encoder(layers=2, width=32, heads=4, inner=64, words=50, positions=32)


def bert(path: Path, sizes: Encoder = BERT_BASE, weights: Weights | None = None, seed: int = 0) -> Path:
    """input_ids, attention_mask, token_type_ids int64[rows, seq] -> embedding float32[rows, width].

    The embedding is the mean of the tokens that the mask counts, of length 1. The operators are those of an export at
    opset 17, in the order that ONNX Runtime's attention, gelu and layer norm fusions look for.
    """
    net = Builder(seed)
    encoder = _Layers(net, sizes, weights or random(seed))
    far = encoder.far()
    x = encoder.embeddings()
    for layer in range(sizes.layers):
        x = encoder.layer(x, far, f"encoder.layer.{layer}")
    encoder.pooled(x)
    return net.save(
        path,
        {name: (TensorProto.INT64, ["rows", "seq"]) for name in ("input_ids", "attention_mask", "token_type_ids")},
        {"embedding": (TensorProto.FLOAT, ["rows", sizes.width])},
    )


def random(seed: int = 0) -> Weights:
    """Weights of the size that training starts from: normal of deviation 0.02, norms of 1."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Floats:
        if name.endswith("LayerNorm.weight"):
            return np.ones(shape, np.float32)
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    return draw


class _Layers:
    """Adds the parts of an encoder to a net; names as in a BERT checkpoint."""

    def __init__(self, net: Builder, sizes: Encoder, weights: Weights) -> None:
        self.net, self.sizes, self.weights = net, sizes, weights

    def far(self) -> str:
        """float32[rows, 1, 1, seq]: 0 where the mask counts a token, else far below every score."""
        node = self.net.node
        mask = node("Unsqueeze", node("Unsqueeze", "attention_mask", self._ints(1)), self._ints(2))
        rest = node("Sub", self._number(1.0), node("Cast", mask, to=TensorProto.FLOAT))
        return node("Mul", rest, self._number(FAR))

    def embeddings(self) -> str:
        node, width = self.net.node, self.sizes.width
        shapes = {"word": self.sizes.words, "token_type": 2, "position": self.sizes.positions}
        table = {kind: self._given(f"embeddings.{kind}_embeddings.weight", n, width) for kind, n in shapes.items()}
        # counted from the ids, which keeps their shape known: a slice of the table does not, and no norm would be fused
        ones = node("Add", node("Mul", "input_ids", self._ints(0)), self._ints(1))
        places = node("Sub", node("CumSum", ones, self._number(1, np.int64)), self._ints(1))
        places = node("Gather", table["position"], places)
        words = node("Gather", table["word"], "input_ids")
        kinds = node("Gather", table["token_type"], "token_type_ids")
        return self._norm(node("Add", node("Add", words, kinds), places), "embeddings")

    def layer(self, x: str, far: str, name: str) -> str:
        width, inner = self.sizes.width, self.sizes.inner
        mixed = self._dense(self._attention(x, far, f"{name}.attention.self"), f"{name}.attention.output", width, width)
        x = self._norm(self.net.node("Add", mixed, x), f"{name}.attention.output")
        wide = self._gelu(self._dense(x, f"{name}.intermediate", width, inner))
        return self._norm(self.net.node("Add", self._dense(wide, f"{name}.output", inner, width), x), f"{name}.output")

    def pooled(self, x: str) -> None:
        node = self.net.node
        mask = node("Cast", node("Unsqueeze", "attention_mask", self._ints(2)), to=TensorProto.FLOAT)
        total = node("ReduceSum", node("Mul", x, mask), self._ints(1), keepdims=0)
        mean = node("Div", total, node("ReduceSum", mask, self._ints(1), keepdims=0))
        node("Div", mean, node("ReduceL2", mean, axes=[1], keepdims=1), out="embedding")

    def _attention(self, x: str, far: str, name: str) -> str:
        node, width, heads = self.net.node, self.sizes.width, self.sizes.heads

        def part(kind: str, order: list[int]) -> str:
            flat = self._dense(x, f"{name}.{kind}", width, width, dense="")
            return node("Transpose", node("Reshape", flat, self._ints(0, 0, heads, width // heads)), perm=order)

        query, key, value = part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1]), part("value", [0, 2, 1, 3])
        scores = node("Div", node("MatMul", query, key), self._number((width / heads) ** 0.5))
        shares = node("Softmax", node("Add", scores, far), axis=-1)
        mixed = node("Transpose", node("MatMul", shares, value), perm=[0, 2, 1, 3])
        return node("Reshape", mixed, self._ints(0, 0, width))

    def _dense(self, x: str, name: str, width_in: int, width_out: int, dense: str = ".dense") -> str:
        weight = self.weights(f"{name}{dense}.weight", (width_out, width_in))
        product = self.net.node("MatMul", x, self.net.weight(np.ascontiguousarray(weight.T)))
        return self.net.node("Add", product, self._given(f"{name}{dense}.bias", width_out))

    def _gelu(self, x: str) -> str:
        node = self.net.node
        erf = node("Erf", node("Div", x, self._number(2.0**0.5)))
        return node("Mul", node("Mul", x, node("Add", erf, self._number(1.0))), self._number(0.5))

    def _norm(self, x: str, name: str) -> str:
        scale, shift = (self._given(f"{name}.LayerNorm.{kind}", self.sizes.width) for kind in ("weight", "bias"))
        return self.net.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=EPSILON)

    def _given(self, name: str, *shape: int) -> str:
        return self.net.weight(self.weights(name, shape))

    def _number(self, value: float, kind: npt.DTypeLike = np.float32) -> str:
        return self.net.weight(np.array(value, kind))

    def _ints(self, *values: int) -> str:
        return self.net.weight(np.array(values))


def tokens(rows: int, seq: int, sizes: Encoder = BERT_BASE, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Random ids without padding, int64[rows, seq] by input."""
    ids = np.random.default_rng(seed).integers(0, sizes.words, (rows, seq))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
