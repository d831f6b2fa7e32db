"""Whatever lies on a watched topic becomes rows or a refusal."""

from __future__ import annotations

import struct
from typing import Any

import avro.schema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.framed import Reading, kinds
from audit.watched import Refusal, Watched, watched
from schemas import framing
from schemas.errors import BadRecord
from schemas.framing import Schema
from streams import topics

READ = Reading("p")
LABEL = {"request_id": "r", "outcome": "yes", "model": "m", "by": None, "at": 5}
COMPLAINT = {"complaint_id": "c", "request_id": "r", "text": "unfair", "by": "person"}


def of(topic: str, value: bytes) -> Watched:
    decoded: tuple[str, dict[str, Any]] | BadRecord
    try:
        decoded = READ(f"p.{topic}", value)
    except BadRecord as err:
        decoded = err
    return watched((f"p.{topic}", 0, 7), 0, value, decoded, str.upper)


def test_every_topic_of_the_writer_has_its_records() -> None:
    assert {name.removeprefix("p.") for name in kinds("p")} == {topics.DECISIONS, topics.CONTROL, *topics.WATCHED}
    assert {each for names in kinds("p").values() for each in names} <= set(framing.NAMES)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["labels", "complaints"]), st.binary(max_size=60), st.integers(0, 90), st.binary(max_size=6))
def test_mutated_records_of_clients_are_rows_or_refusals(topic: str, noise: bytes, at: int, put: bytes) -> None:
    whole = framing.encode(*(("label", LABEL) if topic == "labels" else ("complaint", COMPLAINT)))
    changed, longer = whole[:at] + put + whole[at + len(put) :], whole[:at] + put + whole[at:]
    for value in (noise, framing.header("label") + noise, changed, longer):
        found = of(topic, value)
        if isinstance(found.content, Refusal):
            assert found.content.reason and found.refusal(found.content)["size"] == len(value)
        else:
            assert all(isinstance(row, dict) for _, row in found.content)


def test_who_complains_is_a_pseudonym_and_who_acts_is_not() -> None:
    for action, by in (("opened", "PERSON"), ("closed", "person")):
        ((_, row),) = of("complaints", framing.encode("complaint", {**COMPLAINT, "action": action})).content
        assert row["by"] == by


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"request_id": ""}, "request_id has 0"), ({"outcome": "x" * 257}, "outcome has 257"),
     ({"model": ""}, "model has 0"), ({"request_id": "a\0"}, "U+0000"),
     ({"request_id": "x" * 10_001}, "request_id has 10001")],
)  # fmt: skip
def test_a_label_out_of_bounds_is_kept_as_refused_and_cut(given: dict[str, str], reason: str) -> None:
    ((_, row),) = of("labels", framing.encode("label", {**LABEL, **given})).content
    assert row["state"] == "refused" and reason in row["reason"]
    assert len(row["request_id"]) <= 10_000 and "\0" not in row["request_id"]


class Known:
    """A registry that knows one schema."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def by_id(self, number: int) -> Schema | None:
        return self.schema if number == 7 else None


def test_clients_may_use_the_registry_and_the_fingerprint_of_the_avro_package() -> None:
    body = framing.encode_body("label", LABEL)
    read = Reading("p", Known(framing.schema("label")))  # type: ignore[arg-type]
    assert read("p.labels", struct.pack(">bI", 0, 7) + body) == ("label", LABEL)
    with pytest.raises(BadRecord, match="id 8"):
        read("p.labels", struct.pack(">bI", 0, 8) + body)
    text = framing.schema_text("label")
    header = framing.SINGLE_OBJECT + avro.schema.parse(text).fingerprint("CRC-64-AVRO")
    assert READ("p.labels", header + body) == ("label", LABEL)
