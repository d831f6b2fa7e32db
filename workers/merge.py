"""Batch records of one shape, merged into columns: what a kernel run needs and what its answers repeat. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.columns import Ints, Texts, spans
from schemas.requests import NO_DEADLINE
from schemas.tensors import DTYPES, from_wire
from streams.headers import Reply

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input of n requests: `values` rows first; BYTES as an object array of str."""

    name: str
    values: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Merged:
    """n requests of one model and shape.

    Columns are int64[n]; `attributes` and `reply` int32[n] indices, -1 is none.
    """

    topic: str
    partition: Ints
    offset: Ints
    received_at: Ints
    deadline: Ints
    rows: Ints
    request_id: Texts
    subject: Texts
    consent_id: Texts
    purpose: Texts
    headers: Texts
    attributes: Codes
    attribute_sets: list[bytes]
    reply: Codes
    replies: list[Reply]
    padded: Ints | None
    tensors: list[Tensor]
    missing: Codes | None = None  # what they lack that the model's owner asks for, as in workers.tallies

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def starts(self) -> Ints:
        """int64[n], the first row of each request."""
        return np.cumsum(self.rows) - self.rows

    def take(self, chosen: npt.NDArray[Any]) -> Merged:
        """These requests (a mask or ascending indices), with their rows."""
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        if len(chosen) == len(self):
            return self
        rows = spans(self.starts[chosen], self.rows[chosen])
        columns = ("partition", "offset", "received_at", "deadline", "rows", "attributes", "reply")
        texts = ("request_id", "subject", "consent_id", "purpose", "headers")
        return replace(
            self,
            **{name: getattr(self, name)[chosen] for name in columns},
            **{name: getattr(self, name).take(chosen) for name in texts},
            padded=None if self.padded is None else self.padded[chosen],
            missing=None if self.missing is None else self.missing[chosen],
            tensors=[Tensor(each.name, each.values[rows]) for each in self.tensors],
        )


def merge(records: Sequence[Mapping[str, Any]]) -> list[Merged]:
    """Records `InferenceBatch` of one model, those of equal shape together, in the order of their first."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        shapes = tuple((each["name"], each["datatype"], tuple(each["shape"])) for each in record["tensors"])
        groups.setdefault((record["topic"], shapes, bool(record["padded"])), []).append(record)
    return [_merge(group) for group in groups.values()]


def _merge(group: Sequence[Mapping[str, Any]]) -> Merged:
    counts = [record["count"] for record in group]

    def ints(name: str, dtype: str) -> Ints:
        return np.frombuffer(b"".join([record[name] for record in group]), dtype).astype(np.int64)

    def texts(name: str) -> Texts:
        return Texts.concat([Texts.from_record(record[name], n) for record, n in zip(group, counts, strict=True)])

    rows = ints("rows", "<i4")
    attributes, sets = _codes(group, "attributes", (each["attribute_sets"] for each in group))
    reply, replies = _codes(group, "reply", ([Reply(**r) for r in each["replies"]] for each in group))
    deadlines = [
        np.frombuffer(record["deadline"], "<i8") if record["deadline"] else np.full(record["count"], NO_DEADLINE)
        for record in group
    ]
    return Merged(
        topic=group[0]["topic"],
        partition=ints("partition", "<i4"),
        offset=ints("offset", "<i8"),
        received_at=ints("received_at", "<i8"),
        deadline=np.concatenate(deadlines),
        rows=rows,
        request_id=texts("request_id"),
        subject=texts("subject"),
        consent_id=texts("consent_id"),
        purpose=texts("purpose"),
        headers=texts("headers"),
        attributes=attributes,
        attribute_sets=sets,
        reply=reply,
        replies=replies,
        padded=ints("padded", "<i4") if group[0]["padded"] else None,
        tensors=[_tensor([record["tensors"][i] for record in group], rows) for i in range(len(group[0]["tensors"]))],
    )


def _codes(group: Sequence[Mapping[str, Any]], name: str, dictionaries: Iterable[list[Any]]) -> tuple[Codes, list[Any]]:
    """The index columns of several records as one, over their dictionaries end to end."""
    columns, whole = [], list[Any]()
    for record, dictionary in zip(group, dictionaries, strict=True):
        if record[name]:
            codes = np.frombuffer(record[name], "<i4")
            columns.append(np.where(codes < 0, -1, codes + len(whole)).astype(np.int32))
        else:
            columns.append(np.full(record["count"], -1, np.int32))
        whole += dictionary
    return np.concatenate(columns), whole


def _tensor(columns: Sequence[Mapping[str, Any]], rows: Ints) -> Tensor:
    first = columns[0]
    shape = tuple(first["shape"])
    if first["datatype"] == "BYTES":
        whole = (int(rows.sum()), *shape)
        return Tensor(first["name"], from_wire("BYTES", whole, b"".join([each["data"] for each in columns])))
    whole_data = first["data"] if len(columns) == 1 else b"".join([each["data"] for each in columns])
    values = np.frombuffer(whole_data, DTYPES[first["datatype"]])
    return Tensor(first["name"], values.reshape(int(rows.sum()), *shape))
