"""Requests of one plan become batch records: columns and one contiguous tensor an input. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas import framing
from schemas.columns import Bytes, Ints, Texts
from schemas.requests import NO_DEADLINE, Requests
from schemas.tensors import DTYPES
from streams import topics
from streams.admission import InputPlan, Plan, gather
from streams.headers import Reply, encode_headers, header_bytes
from streams.window import Block, Headers, Window

COLUMNS_BYTES = 64  # of a request in the columns of fixed width, and its source headers
NONE = {"lengths": b"", "data": b""}


class Batching:
    """What the batches of one window draw from."""

    def __init__(
        self,
        requests: Requests,
        window: Window,
        replies: dict[int, tuple[Reply | None, Headers]],
        pseudonym: Callable[[str], str],
        epoch: int = 0,
    ) -> None:
        self.requests = requests
        self.epoch = epoch
        self.replies = replies
        self.topic = window.topics[0] if window.topics else ""
        self.partition = window.partition[requests.row]
        self.offset = window.offset[requests.row]
        self.received_at = window.timestamp[requests.row]
        some = len(requests.row) > 0 and int(requests.attributes.lengths.max()) > 1
        self.attributes = requests.attributes.to_list() if some else None
        self.subject = requests.subject
        if not self.subject.all_null:
            self.subject = Texts.of([None if each is None else pseudonym(each) for each in self.subject.to_strings()])

    def block(self, plan: Plan, members: Ints, rows_max: int, bytes_max: int, topic: str) -> Block:
        """The batch records of these requests, each within the bounds of rows and bytes."""
        first = self.requests.tensors[plan.inputs[0].position].first[members]
        weight = self._weights(plan, members)
        values = []
        for part in cuts(first, rows_max):
            for piece in cuts(weight[part], bytes_max):
                record = self._batch(plan, members[part][piece], first[part][piece])
                values.append(framing.encode("inference_batch", record))
        return Block(topic, values)

    def _weights(self, plan: Plan, members: Ints) -> Ints:
        """int64[len(members)]: about the bytes of each in a batch record, its texts and headers too."""
        weight = self.requests.size[members] + COLUMNS_BYTES
        if plan.length is not None:
            weight += padded_bytes(self.requests, plan, members)
        if self.replies:
            weight += [header_bytes(self.replies[i][1]) if i in self.replies else 0 for i in members.tolist()]
        return weight

    def _batch(self, plan: Plan, members: Ints, rows: Ints) -> dict[str, Any]:
        requests, n = self.requests, len(members)
        attributes, sets = self._attributes(members)
        reply, replies, headers = self._replies(members)
        deadline = requests.deadline[members]
        return {
            "model": plan.spec.model,
            "version": plan.spec.version,
            "topic": self.topic,
            "count": n,
            "partition": self.partition[members].astype("<i4").tobytes(),
            "offset": self.offset[members].astype("<i8").tobytes(),
            "received_at": self.received_at[members].astype("<i8").tobytes(),
            "deadline": b"" if int(deadline.min()) == NO_DEADLINE else deadline.astype("<i8").tobytes(),
            "rows": rows.astype("<i4").tobytes(),
            "request_id": requests.request_id.take(members).to_record(),
            "subject": _taken(self.subject, members),
            "consent_id": _taken(requests.consent_id, members),
            "purpose": _taken(requests.purpose, members),
            "attributes": attributes,
            "attribute_sets": sets,
            "reply": reply,
            "replies": replies,
            "headers": headers,
            "tensors": [self._tensor(plan, each, members, int(rows.sum())) for each in plan.inputs],
            "padded": b"" if plan.length is None else np.full(n, plan.length, "<i4").tobytes(),
            "plan": self.epoch,
        }

    def _tensor(self, plan: Plan, each: InputPlan, members: Ints, rows: int) -> dict[str, Any]:
        contents, sizes = gather(self.requests, members, each.position)
        column = {"name": each.spec.name, "datatype": each.spec.datatype, "shape": list(each.padded_shape)}
        if each.row_bytes is None:
            return {**column, "data": contents.tobytes(), "sizes": sizes.astype("<i8").tobytes()}
        if each.shape != each.padded_shape:
            contents = _pad(contents, each, rows, plan.spec.pad_values.get(each.spec.name, 0))
        return {**column, "data": contents.tobytes(), "sizes": b""}

    def _attributes(self, members: Ints) -> tuple[bytes, list[bytes]]:
        """Dictionary-encoded: each distinct set once, so that what follows works on small integers."""
        if self.attributes is None:
            return b"", []
        numbers: dict[bytes, int] = {}
        encoded = [self.attributes[i] or b"\0" for i in members.tolist()]
        codes = np.fromiter((numbers.setdefault(each, len(numbers)) for each in encoded), "<i4", len(encoded))
        return codes.tobytes(), list(numbers)

    def _replies(self, members: Ints) -> tuple[bytes, list[dict[str, Any]], dict[str, bytes]]:
        if not self.replies:
            return b"", [], NONE
        numbers: dict[Reply, int] = {}
        codes: list[int] = []
        headers: list[bytes | None] = []
        for i in members.tolist():
            reply, passed = self.replies.get(i, (None, []))
            codes.append(-1 if reply is None else numbers.setdefault(reply, len(numbers)))
            headers.append(encode_headers(passed) if passed else None)
        found = [{"topic": reply.topic, "partition": reply.partition} for reply in numbers]
        return np.array(codes, "<i4").tobytes() if numbers else b"", found, Texts.of(headers).to_record()


def batch_topic(prefix: str, plan: Plan, priority: str) -> str:
    """Where the batches of a plan go."""
    return topics.batches(prefix, plan.spec.model, plan.spec.version, priority)


def cuts(weights: Ints, most: int) -> list[slice]:
    """Neighbours together as long as their weights add up to at most `most`; a heavier one stands alone.

    >>> cuts(np.array([3, 3, 9, 1]), 6)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    found, start = [], 0
    ends = np.cumsum(weights)
    while start < len(weights):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, "right")))
        found.append(slice(start, stop))
        start = stop
    return found


def padded_bytes(requests: Requests, plan: Plan, members: Ints) -> Ints:
    """int64[len(members)]: the bytes of the tensors of each request after padding."""
    total = np.zeros(len(members), np.int64)
    for each in plan.inputs:
        tensor = requests.tensors[each.position]
        if each.shape == each.padded_shape:
            total += tensor.data.length[members]
        else:
            width = math.prod(each.padded_shape) * DTYPES[each.spec.datatype].itemsize
            total += np.clip(tensor.first[members], 0, plan.spec.request_rows_max) * width
    return total


def _pad(contents: Bytes, each: InputPlan, rows: int, value: float) -> npt.NDArray[Any]:
    whole = np.full((rows, *each.padded_shape), value, DTYPES[each.spec.datatype])
    inside = (slice(None), *(slice(size) for size in each.shape))
    whole[inside] = contents.view(whole.dtype).reshape(rows, *each.shape)
    return whole


def _taken(column: Texts, members: Ints) -> dict[str, bytes]:
    return NONE if column.all_null else column.take(members).to_record()
