"""The law of the request codec: what is read equals what fastavro reads from each record alone, refusals included."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import framing
from schemas.errors import BadRecord
from schemas.requests import (
    BOUNDS,
    INPUTS_MAX,
    NAME,
    NO_DEADLINE,
    Decoded,
    Requests,
    decode,
    read_map,
    read_one,
)
from tests import samples
from tests.samples import Foreign, NoSchemas, Record, Wild, damaged, encoded, padded_long, request, tensor

HEADER = framing.header(NAME)
RELEASE = framing.parse(
    """{"type": "record", "name": "Release", "fields": [
    {"name": "model", "type": "string"}, {"name": "version", "type": ["null", "string"]}]}"""
)
ONES = np.ones((1, 3), np.float32)


def oracle(value: bytes | None) -> Record | None:
    """One record through fastavro; None where it refuses."""
    if value is None or not value.startswith(HEADER):
        return None
    try:
        found: Any = fastavro.schemaless_reader(io.BytesIO(value[len(HEADER) :]), framing.schema(NAME), None)
    except Exception:  # fastavro raises whatever the bytes provoke
        return None
    return found


def exceeds(record: Record) -> bool:
    counts = [len(record["inputs"]), len(record["attributes"]), len(record["parameters"])]
    return max(counts) > INPUTS_MAX or any(len(each["shape"]) > BOUNDS["shape"] for each in record["inputs"])


def check(values: Sequence[bytes | None]) -> Decoded:
    """The law, on one window."""
    decoded = decode(values, NoSchemas())
    wanted = [oracle(value) for value in values]
    assert sorted(row for row, _ in decoded.bad) == [row for row, record in enumerate(wanted) if record is None]
    over = {row for row, record in enumerate(wanted) if record is not None and exceeds(record)}
    assert {row for row, _, _ in decoded.over} == over
    for row, record, err in decoded.over:
        assert repr(record) == repr(wanted[row])
        assert err.code == "too_many_items"
    rest = {row: record for row, record in enumerate(wanted) if record is not None and row not in over}
    assert decoded.requests.row.tolist() == list(rest)
    same(decoded.requests, list(rest.values()))
    return decoded


def same(requests: Requests, records: list[Record]) -> None:
    """The columns hold the records."""
    for field in ("request_id", "subject", "consent_id", "purpose"):
        assert getattr(requests, field).to_strings() == [record[field] for record in records], field
    for field in ("attributes", "parameters"):
        maps = [read_map(each or b"") for each in getattr(requests, field).to_list()]
        assert maps == [record[field] for record in records], field
    releases = [
        fastavro.schemaless_reader(io.BytesIO(each or b""), RELEASE, None) for each in requests.release.to_list()
    ]
    assert releases == [{each: record[each] for each in ("model", "version")} for record in records]
    deadlines = [NO_DEADLINE if record["deadline"] is None else record["deadline"] for record in records]
    assert requests.deadline.tolist() == deadlines
    assert requests.inputs.tolist() == [len(record["inputs"]) for record in records]
    assert len(requests.tensors) >= max(requests.inputs.tolist(), default=0)
    for number, column in enumerate(requests.tensors):
        spans = zip(column.data.start.tolist(), column.data.length.tolist(), strict=True)
        contents = [requests.buffer[start : start + length].tobytes() for start, length in spans]
        wanted = [record["inputs"][number] if number < len(record["inputs"]) else None for record in records]
        assert contents == [each["data"] if each else b"" for each in wanted]
        firsts = [(each["shape"][0] if each["shape"] else -1) if each else 0 for each in wanted]
        assert column.first.tolist() == firsts
        assert [length == 0 for length in column.head.lengths.tolist()] == [each is None for each in wanted]


def some_values(wild: Wild, n: int) -> list[bytes]:
    """Wild records; a third damaged, some as others write them, often alike in layout."""
    rnd, foreign = wild.rnd, Foreign(wild.rnd)
    alike = wild.record()
    values = []
    for _ in range(n):
        record = {**alike, "request_id": wild.text()} if rnd.random() < 0.5 else wild.record()
        value = foreign.request(record) if rnd.random() < 0.15 else encoded(record)
        values.append(damaged(value, rnd) if rnd.random() < 0.3 else value)
    return values


@pytest.mark.parametrize("part", range(4))
def test_law_on_wild_and_damaged_records(part: int) -> None:
    wild = Wild(part)
    left = samples.FUZZ_RECORDS // 2 // 4
    seen = {"bad": 0, "over": 0, "fallback": 0, "read": 0}
    while left > 0:
        n = min(left, wild.rnd.choice((1, 3, 50, 400)))
        left -= n
        decoded = check(some_values(wild, n))
        seen["bad"] += len(decoded.bad)
        seen["over"] += len(decoded.over)
        seen["fallback"] += decoded.fallback
        seen["read"] += len(decoded.requests.row)
    assert all(seen.values()), seen  # each way was taken


TEXTS = st.text(max_size=20)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=4)
LONGS = st.integers(-(2**63), 2**63 - 1)
TENSORS = st.fixed_dictionaries(
    {"name": TEXTS, "datatype": TEXTS, "shape": st.lists(LONGS, max_size=4), "data": st.binary(max_size=40)}
)
OPTIONAL = st.none() | TEXTS
RECORDS = st.fixed_dictionaries(
    {
        "request_id": TEXTS,
        "model": TEXTS,
        "version": OPTIONAL,
        "inputs": st.lists(TENSORS, max_size=3),
        "deadline": st.none() | LONGS,
        "subject": OPTIONAL,
        "attributes": MAPS,
        "consent_id": OPTIONAL,
        "purpose": OPTIONAL,
        "parameters": MAPS,
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(RECORDS, st.integers(0, 3), st.integers(0, 2**32)), min_size=1, max_size=8))
def test_law_on_generated_records(drawn: list[tuple[Record, int, int]]) -> None:
    values = []
    for record, kind, seed in drawn:
        rnd = random.Random(seed)
        value = Foreign(rnd).request(record) if kind == 1 else encoded(record)
        values.append(damaged(value, rnd) if kind == 2 else value)
    check(values)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | st.binary(max_size=60) | st.binary(max_size=60).map(lambda body: HEADER + body)))
def test_law_on_any_bytes(values: list[bytes | None]) -> None:
    check(values)


def test_what_others_write_is_read() -> None:
    wild, foreign = Wild(1), Foreign(random.Random(2))
    decoded = check([foreign.request(wild.record()) for _ in range(300)])
    assert not decoded.bad


def test_one_odd_row_leaves_the_others() -> None:
    """Of a window's records each is cut at each place in turn; the others stay what they are."""
    good = encoded(request([tensor("features", ONES)], subject="ü"))
    for cut in range(len(good)):
        decoded = check([good, good[:cut], good])
        assert decoded.requests.row.tolist() == [0, 2]


@pytest.mark.parametrize("spare", range(10))
def test_longs_longer_than_needed(spare: int) -> None:
    body = encoded(request([], request_id="ab"))[len(HEADER) + 1 :]
    check([HEADER + padded_long(2, spare) + body])


@pytest.mark.parametrize("first", [b"\xff" * 9 + b"\x01", b"\xff" * 10 + b"\x01", b"\x80" * 12 + b"\x00", b"\xff" * 30])
def test_longs_beyond_64_bits(first: bytes) -> None:
    body = encoded(request([], request_id="ab"))[len(HEADER) + 1 :]
    check([HEADER + first + body, encoded(request([]))])


def test_bytes_behind_a_record_are_ignored_as_fastavro_does() -> None:
    value = encoded(request([], request_id="a"))
    decoded = check([value, value + b"more"])
    assert decoded.requests.request_id.to_list() == [b"a", b"a"]


@pytest.mark.parametrize(("field", "most"), [("inputs", 64), ("attributes", 64), ("parameters", 64), ("shape", 16)])
def test_bounds_of_items(field: str, most: int) -> None:
    def record(n: int) -> bytes:
        if field == "shape":
            return encoded(request([{"name": "a", "datatype": "FP32", "shape": [1] * n, "data": b""}]))
        if field == "inputs":
            return encoded(request([{"name": "a", "datatype": "FP32", "shape": [1], "data": b""}] * n))
        return encoded(request([], **{field: {str(i): "" for i in range(n)}}))

    decoded = check([record(most), record(most + 1)])
    assert [(row, str(err)) for row, _, err in decoded.over] == [
        (1, f"{field} has {most + 1} items; send at most {most}")
    ]


class OneSchema(NoSchemas):
    """A registry that knows one id."""

    def __init__(self, schema_id: int, schema: framing.Schema) -> None:
        self.known = {schema_id: schema}

    def by_id(self, schema_id: int) -> framing.Schema | None:
        return self.known.get(schema_id)


def later_schema() -> framing.Schema:
    """The request's schema with one field more."""
    schema = json.loads(framing.schema_text(NAME))
    schema["fields"].insert(1, {"name": "channel", "type": "string", "default": "web"})
    return framing.parse(json.dumps(schema))


def test_confluent_framing_of_the_same_schema() -> None:
    record = request([tensor("features", np.ones((2, 3), np.float32))], request_id="a")
    body = framing.encode_body(NAME, record)
    values = [b"\0\0\0\0\x07" + body, encoded({**record, "request_id": "b"}), b"\0\0\0\0\x08" + body]
    decoded = decode(values, OneSchema(7, framing.schema(NAME)))
    assert decoded.requests.request_id.to_list() == [b"a", b"b"]
    assert decoded.fallback == 0
    assert [(row, err.code) for row, err in decoded.bad] == [(2, "unknown_schema")]
    assert "registry id 8" in str(decoded.bad[0][1])


def test_a_later_schema_is_resolved() -> None:
    record, writer = request([], request_id="a"), later_schema()
    out = io.BytesIO()
    fastavro.schemaless_writer(out, writer, {**record, "channel": "app"})
    decoded = decode([b"\0\0\0\0\x07" + out.getvalue(), encoded(record)], OneSchema(7, writer))
    assert (decoded.bad, decoded.fallback) == ([], 1)
    assert decoded.requests.request_id.to_list() == [b"a", b"a"]


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        (None, "empty_value", "no value"),
        (b"", "unknown_framing", "nothing"),
        (b"{}", "unknown_framing", "7b7d"),
        (b"\0\0\0", "unknown_framing", "000000"),
        (b"\xc3\x01ab", "unknown_framing", "c3016162"),
        (b"\xc3\x0112345678", "unknown_schema", "3132333435363738"),
        (b"\0\0\0\x01\x00", "unknown_schema", "256"),
        (HEADER, "undecodable", "InferenceRequest"),
    ],
)
def test_what_is_no_request(value: bytes | None, code: str, says: str) -> None:
    ((row, err),) = decode([value], NoSchemas()).bad
    assert (row, err.code) == (0, code)
    assert says in str(err)


def test_read_one_says_what_is_wrong() -> None:
    with pytest.raises(BadRecord, match="no InferenceRequest") as caught:
        read_one(b"\x02\xff", framing.schema(NAME))
    assert caught.value.code == "undecodable"


def one(rows: int = 1, width: int = 3, **fields: Any) -> bytes:
    return encoded(request([tensor("x", np.ones((rows, width), np.float32))], **fields))


GROUPED = [
    ([one(), one(5, request_id="other", subject="s"), one(attributes={"a": "b"})], [[0, 1, 2]]),
    ([one(), one(width=4), one()], [[0, 2], [1]]),
    ([one(version="1"), one(), one(model="m"), one(model="n")], [[0], [1], [2], [3]]),
    ([one(model=name) for name in "abcdefabcdef"], [[i, i + 6] for i in range(6)]),
    ([encoded(request([])), one(), encoded(request([]))], [[0, 2], [1]]),
    ([], []),
]


@pytest.mark.parametrize(("values", "wanted"), GROUPED)
def test_groups_tell_layouts_apart_but_not_rows(values: list[bytes], wanted: list[list[int]]) -> None:
    groups = decode(values, NoSchemas()).requests.groups()
    assert sorted(members.tolist() for _, members in groups) == wanted
    assert len({signature for signature, _ in groups}) == len(groups)


def test_groups_are_those_of_a_dictionary() -> None:
    wild = Wild(9)
    records = [wild.record() for _ in range(40)]
    values = [encoded({**wild.rnd.choice(records), "request_id": str(i)}) for i in range(400)]
    requests = decode(values, NoSchemas()).requests
    slow: dict[str, list[int]] = {}
    for i, row in enumerate(requests.row.tolist()):
        record = oracle(values[row])
        assert record is not None
        inputs = [(each["name"], each["datatype"], len(each["shape"]), each["shape"][1:]) for each in record["inputs"]]
        slow.setdefault(repr((record["model"], record["version"], inputs)), []).append(i)
    assert sorted(members.tolist() for _, members in requests.groups()) == sorted(slow.values())
