"""Requests to test with: good ones, wild ones, records written as other languages write them, and damaged bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.spec import ModelSpec, TensorSpec
from schemas import framing
from schemas.tensors import to_wire
from streams.window import Headers, Range, Window

TOPIC = "t.requests.standard"
NOW_MS = 1_767_225_600_000
FUZZ_RECORDS = int(os.environ.get("LRAI_FUZZ_RECORDS", "100000"))

Record = dict[str, Any]


class NoSchemas:
    """Knows no schema but LRAI's own."""

    def by_fingerprint(self, fingerprint: bytes) -> framing.Schema | None:
        return None

    def by_id(self, schema_id: int) -> framing.Schema | None:
        return None


def tensor(name: str, values: npt.NDArray[Any]) -> Record:
    """An array as a Tensor."""
    datatype, data = to_wire(values)
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}


def request(inputs: Sequence[Record], model: str = "net", request_id: str = "r", **fields: Any) -> Record:
    """A request whose other fields have their defaults."""
    defaults = {
        "version": None,
        "deadline": None,
        "subject": None,
        "attributes": {},
        "consent_id": None,
        "purpose": None,
        "parameters": {},
    }
    return {"request_id": request_id, "model": model, "inputs": list(inputs), **defaults, **fields}


def encoded(record: Record) -> bytes:
    """A request as LRAI's own writer frames it."""
    return framing.encode("inference_request", record)


def window(
    values: Sequence[bytes | None], headers: Sequence[Headers | None] | None = None, topic: str = TOPIC, start: int = 0
) -> Window:
    """Records of one partition, at offsets from `start`."""
    n = len(values)
    return Window(
        topics=[topic] * n,
        values=values,
        keys=[b"key-%d" % i for i in range(n)],
        headers=headers or [None] * n,
        partition=np.zeros(n, np.int64),
        offset=np.arange(start, start + n),
        timestamp=np.full(n, NOW_MS - 20),
        ranges=[Range(topic, 0, start, start + n, n)],
    )


def spec(model: str = "net", version: str = "1", features: int = 3, **fields: Any) -> ModelSpec:
    """features FP32[rows, features] -> value FP32[rows, features]."""
    shape = (features,)
    return ModelSpec(
        model=model,
        version=version,
        path="",
        sha256="",
        **{
            "inputs": (TensorSpec("features", "FP32", shape),),
            "outputs": (TensorSpec("value", "FP32", shape),),
            **fields,
        },
    )


class Wild:
    """Random requests of every size and script, few of which a model would take."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)

    def text(self) -> str:
        rnd = self.rnd
        if rnd.random() < 0.7:
            return rnd.choice(("", "a", "net", "FP32", "sex", "é", "a-rather-long-word-" * rnd.randint(1, 9)))
        return "".join(rnd.choice("ab\0üß€漢🙂 ") for _ in range(rnd.choice((1, 5, 70))))

    def texts(self) -> dict[str, str]:
        return {self.text(): self.text() for _ in range(self.rnd.choice((0, 0, 0, 2, 3, 80)))}

    def maybe(self, value: object) -> object:
        return self.rnd.choice((None, value))

    def tensor(self) -> Record:
        rnd = self.rnd
        dimensions = rnd.choice((0, 1, 2, 2, 2, 3, 20))
        shape = [rnd.choice((-3, 0, 1, 3, 64, 3000, 2**62)) for _ in range(dimensions)]
        data = rnd.randbytes(rnd.choice((0, 4, 12, 120, 500)))
        return {"name": self.text(), "datatype": self.text(), "shape": shape, "data": data}

    def record(self) -> Record:
        rnd = self.rnd
        return request(
            [self.tensor() for _ in range(rnd.choice((0, 1, 1, 1, 1, 2, 3, 70) if rnd.random() < 0.3 else (1,)))],
            model=self.text(),
            request_id=self.text(),
            version=self.maybe(self.text()),
            deadline=rnd.choice((None, None, 0, -5, 2**62, 2**63 - 1, -(2**63), NOW_MS)),
            subject=self.maybe(self.text()),
            attributes=self.texts(),
            consent_id=self.maybe(self.text()),
            purpose=self.maybe(self.text()),
            parameters=self.texts(),
        )


def damaged(value: bytes, rnd: random.Random) -> bytes:
    """The value cut, lengthened, or with some bytes changed; mostly behind its header."""
    kind = rnd.randrange(4)
    if kind == 0:
        return value[: rnd.randint(0, len(value))]
    if kind == 1:
        return value + rnd.randbytes(3)
    changed = bytearray(value)
    first = min(10 if rnd.random() < 0.97 else 0, len(value) - 1)
    for _ in range(rnd.randint(1, 3)):
        changed[rnd.randrange(first, len(value))] = rnd.choice((0, 1, 2, 3, 0x7F, 0x80, 0xC3, 0xFF, rnd.randrange(256)))
    return bytes(changed)


class Foreign:
    """Writes a request as the Avro specification allows but LRAI's writer never does.

    Arrays and maps in several blocks, blocks with negative counts and their size (as Go writes them), longs with more
    bytes than needed.
    """

    def __init__(self, rnd: random.Random) -> None:
        self.rnd = rnd

    def request(self, record: Record) -> bytes:
        """Framed."""
        parts = [
            self.text(record["request_id"]),
            self.text(record["model"]),
            self.optional(record["version"]),
            self.array([self.tensor(each) for each in record["inputs"]]),
            b"\0" if record["deadline"] is None else self.long(1) + self.long(record["deadline"]),
            self.optional(record["subject"]),
            self.map(record["attributes"]),
            self.optional(record["consent_id"]),
            self.optional(record["purpose"]),
            self.map(record["parameters"]),
        ]
        return framing.header("inference_request") + b"".join(parts)

    def tensor(self, each: Record) -> bytes:
        shape = self.array([self.long(size) for size in each["shape"]])
        return self.text(each["name"]) + self.text(each["datatype"]) + shape + self.bytes(each["data"])

    def long(self, value: int) -> bytes:
        spare = self.rnd.choice((0, 0, 0, 1, 2))
        return padded_long(value, spare)

    def bytes(self, value: bytes) -> bytes:
        return self.long(len(value)) + value

    def text(self, value: str) -> bytes:
        return self.bytes(value.encode())

    def optional(self, value: str | None) -> bytes:
        return self.long(0) if value is None else self.long(1) + self.text(value)

    def map(self, entries: dict[str, str]) -> bytes:
        return self.array([self.text(key) + self.text(value) for key, value in entries.items()])

    def array(self, items: list[bytes]) -> bytes:
        out, at = b"", 0
        while at < len(items):
            stop = self.rnd.randint(at + 1, len(items))
            block = b"".join(items[at:stop])
            sized = self.rnd.random() < 0.5
            out += (self.long(at - stop) + self.long(len(block)) if sized else self.long(stop - at)) + block
            at = stop
        return out + self.long(0)


def padded_long(value: int, spare: int = 0) -> bytes:
    """An Avro long, one digit after the other; `spare` bytes more than needed (at most ten in all).

    >>> padded_long(-1), padded_long(64), padded_long(0, 2)
    (b'\\x01', b'\\x80\\x01', b'\\x80\\x80\\x00')
    """
    rest = (value << 1) ^ (value >> 63)
    digits = [rest & 0x7F]
    while rest := rest >> 7:
        digits.append(rest & 0x7F)
    digits += [0] * min(spare, 10 - len(digits))
    return bytes([each | 0x80 for each in digits[:-1]] + [digits[-1]])
