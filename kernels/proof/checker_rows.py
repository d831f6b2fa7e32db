"""What the checker makes of a net, in exact numbers: units of one number each over linear rows."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from onnx import NodeProto, TensorProto

BITS = 32  # a variable is (block << BITS) | place
MASK = (1 << BITS) - 1
TINY = Fraction(1, 1 << 100)  # covers underflow, also where denormals are flushed

_FORMATS: dict[int, str] = {
    TensorProto.FLOAT: "f", TensorProto.FLOAT16: "e", TensorProto.INT8: "b", TensorProto.UINT8: "B",
    TensorProto.INT16: "h", TensorProto.UINT16: "H", TensorProto.INT32: "i", TensorProto.INT64: "q",
}  # fmt: skip
_FIELDS: dict[int, str] = {TensorProto.FLOAT: "float_data", TensorProto.INT64: "int64_data"}


class Lacks(Exception):
    """The checker lacks something that the models need: the verdict is UNKNOWN."""


class Wrong(Exception):
    """The file contradicts itself or the models: the certificate is rejected."""


@dataclass(frozen=True)
class Constant:
    """Numbers of a model, exactly."""

    shape: tuple[int, ...]
    values: Sequence[float]
    type: int = TensorProto.FLOAT


@dataclass(slots=True)
class Row:
    """const + the sum of coefs; `mags` and `mag` bound what the float operations handle. All are dyadic."""

    coefs: dict[int, Fraction]
    const: Fraction
    mags: dict[int, Fraction]
    mag: Fraction


@dataclass(frozen=True)
class Tensor:
    """Rows over variables, in C order without the first dimension. `count` float operations made them.

    `levels`: step, lowest and highest level, where the tensor is one of integers, written as the floats they stand for.
    """

    shape: tuple[int, ...]
    rows: list[Row]
    count: int = 0
    levels: tuple[Fraction, int, int] | None = None


@dataclass(frozen=True)
class Unit:
    """A function of one number: slope `left` below `low`, 1, and 0 above `high`; None: no such piece."""

    tensor: str
    argument: Tensor
    low: Fraction | None = None
    high: Fraction | None = None
    left: Fraction = Fraction(0)
    levels: tuple[Fraction, int, int] | None = None


@dataclass
class Net:
    """Block 0 is the input, block i the output of units[i - 1]."""

    features: int = 0
    units: list[Unit] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    producers: dict[str, NodeProto] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)  # nodes and outputs that read a tensor
    output: str = ""
    softmax: bool = False
    sigmoid: str = ""  # the last unit, where the answer is its output, alone or as (1 - p, p)
    odd: list[str] = field(default_factory=list)  # where a runtime with all optimisations computes something else
    saturates: bool = False  # where a CPU without VNNI may saturate sums of 8-bit products


def constant(tensor: TensorProto) -> Constant:
    """The numbers of an initializer; none for types that no proof needs. Raises Wrong."""
    shape, kind = tuple(tensor.dims), tensor.data_type
    values: Sequence[float]
    if kind not in _FORMATS:
        return Constant(shape, [], kind)
    if tensor.raw_data:
        code = _FORMATS[kind]
        values = struct.unpack(f"<{len(tensor.raw_data) // struct.calcsize(code)}{code}", tensor.raw_data)
    elif kind == TensorProto.FLOAT16:
        halves = struct.pack(f"<{len(tensor.int32_data)}H", *tensor.int32_data)
        values = struct.unpack(f"<{len(tensor.int32_data)}e", halves)
    else:
        values = list(getattr(tensor, _FIELDS.get(kind, "int32_data")))
    if len(values) != math.prod(shape):
        raise Wrong(f"initializer {tensor.name!r} has {len(values)} numbers for shape {list(shape)}")
    return Constant(shape, values, kind)


def float32(value: float) -> float:
    """Rounded to float32, to nearest even."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        raise Lacks("a constant overflows float32") from None


def near(value: Fraction) -> Fraction:
    """A dyadic within 2^-64 relative: an operation's count of roundings has room for it."""
    shift = 66 + value.denominator.bit_length() - abs(value.numerator).bit_length()
    return Fraction(round(value * (1 << shift)), 1 << shift) if shift > 0 else value


def whole(block: int, shape: tuple[int, ...]) -> Tensor:
    """The variables of a block."""
    keys = [(block << BITS) | place for place in range(math.prod(shape))]
    one = Fraction(1)
    return Tensor(shape, [Row({key: one}, Fraction(0), {key: one}, Fraction(0)) for key in keys])


def combined(terms: Iterable[tuple[Fraction, Row]], bias: Fraction = Fraction(0), rounds: bool = True) -> Row:
    """bias + the sum of weight times row."""
    made = Row({}, bias, {}, abs(bias) + (TINY if rounds else 0))
    for weight, row in terms:
        size = abs(weight)
        for key, each in row.coefs.items():
            made.coefs[key] = made.coefs[key] + each * weight if key in made.coefs else each * weight
        for key, each in row.mags.items():
            made.mags[key] = made.mags[key] + each * size if key in made.mags else each * size
        if row.const or row.mag:
            made.const += row.const * weight
            made.mag += row.mag * size
    return made
