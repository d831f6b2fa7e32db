"""Merging batch records against a slow oracle that takes each request out of its batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.columns import Texts
from schemas.requests import NO_DEADLINE
from schemas.tensors import to_wire
from streams.headers import Reply
from workers.merge import Merged, merge

NONE = {"lengths": b"", "data": b""}


def batch(
    rnd: random.Random, shape: tuple[int, ...], datatype: str, start: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A batch record, and its requests one by one."""
    n = rnd.randint(1, 4)
    requests = []
    for i in range(n):
        rows = rnd.randint(1, 3)
        values: Any = np.array([rnd.randrange(100) for _ in range(rows * int(np.prod(shape)))])
        values = values.astype(str).astype(object) if datatype == "BYTES" else values.astype("<f4")
        requests.append(
            {
                "partition": rnd.randrange(4),
                "offset": start + i,
                "received_at": rnd.randrange(2**40),
                "deadline": rnd.choice((NO_DEADLINE, 5)),
                "rows": rows,
                "request_id": rnd.randbytes(3),
                "subject": rnd.choice((None, b"", b"s")),
                "headers": rnd.choice((None, b"h")),
                "attributes": rnd.choice(({}, {"a": "1"}, {"b": "2"})),
                "reply": rnd.choice((None, Reply("x", 1), Reply("y", -1))),
                "values": values.reshape(rows, *shape),
            }
        )
    return _record(requests, shape, datatype, rnd.random() < 0.5), requests


def _record(requests: list[dict[str, Any]], shape: tuple[int, ...], datatype: str, sparse: bool) -> dict[str, Any]:
    def ints(name: str, dtype: str) -> bytes:
        return np.array([each[name] for each in requests], dtype).tobytes()

    def codes(name: str, none: object) -> tuple[bytes, list[Any]]:
        items: list[Any] = []
        for each in requests:
            if each[name] != none and each[name] not in items:
                items.append(each[name])
        found = [items.index(each[name]) if each[name] in items else -1 for each in requests]
        return (np.array(found, "<i4").tobytes() if items or not sparse else b""), items

    attributes, sets = codes("attributes", {})
    reply, replies = codes("reply", None)
    deadlines = b"" if sparse and all(each["deadline"] == NO_DEADLINE for each in requests) else ints("deadline", "<i8")
    return {
        "topic": "t",
        "count": len(requests),
        "partition": ints("partition", "<i4"),
        "offset": ints("offset", "<i8"),
        "received_at": ints("received_at", "<i8"),
        "deadline": deadlines,
        "rows": ints("rows", "<i4"),
        "request_id": Texts.of([each["request_id"] for each in requests]).to_record(),
        "subject": Texts.of([each["subject"] for each in requests]).to_record(),
        "consent_id": NONE,
        "purpose": NONE,
        "attributes": attributes,
        "attribute_sets": sets,
        "reply": reply,
        "replies": [each._asdict() for each in replies],
        "headers": Texts.of([each["headers"] for each in requests]).to_record(),
        "tensors": [
            {
                "name": "x",
                "datatype": datatype,
                "shape": list(shape),
                "data": b"".join(to_wire(each["values"])[1] for each in requests),
                "sizes": b"",
            }
        ],
        "padded": b"",
    }


def check(found: Merged, wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for name in ("partition", "offset", "received_at", "deadline", "rows"):
        assert getattr(found, name).tolist() == [each[name] for each in wanted], name
    for name in ("request_id", "subject", "headers"):
        assert getattr(found, name).to_list() == [each[name] for each in wanted], name
    assert found.consent_id.to_list() == found.purpose.to_list() == [None] * len(wanted)
    sets = [found.attribute_sets[code] if code >= 0 else {} for code in found.attributes.tolist()]
    assert sets == [each["attributes"] for each in wanted]
    replies = [found.replies[code] if code >= 0 else None for code in found.reply.tolist()]
    assert replies == [each["reply"] for each in wanted]
    (tensor,) = found.tensors
    assert len(tensor.values) == found.rows.sum()
    for start, each in zip(found.starts.tolist(), wanted, strict=True):
        assert tensor.values[start : start + each["rows"]].tolist() == each["values"].tolist()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_merge_and_take_against_the_oracle(seed: int) -> None:
    rnd = random.Random(seed)
    records, groups = [], {}
    for number in range(rnd.randint(1, 5)):
        layout = rnd.choice(((2,), (3,), ())), rnd.choice(("FP32", "BYTES"))
        record, requests = batch(rnd, *layout, 10 * number)
        records.append(record)
        groups.setdefault(layout, []).extend(requests)
    merged = merge(records)
    assert len(merged) == len(groups)
    for found, wanted in zip(merged, groups.values(), strict=True):
        check(found, wanted)
        mask = np.array([rnd.random() < 0.5 for _ in wanted])
        chosen = [each for each, kept in zip(wanted, mask.tolist(), strict=True) if kept]
        check(found.take(mask), chosen)
        check(found.take(np.flatnonzero(mask)), chosen)


@pytest.mark.parametrize("differs", ["topic", "padded"])
def test_what_differs_is_not_merged(differs: str) -> None:
    record, requests = batch(random.Random(1), (2,), "FP32", 0)
    padded = np.full(len(requests), 1, "<i4").tobytes()
    other = {**record, differs: "u" if differs == "topic" else padded}
    assert [len(each) for each in merge([record, other, record])] == [2 * len(requests), len(requests)]
