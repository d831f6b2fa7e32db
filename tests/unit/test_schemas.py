"""The published schemas, read by the reference `avro` package: the contract of the clients."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import avro.compatibility
import avro.schema
import fastavro
import pytest

from schemas import framing

ROOT = Path(framing.__file__).parent
RELEASED = sorted((ROOT / "released").glob("*/*.avsc"))


def parsed(path: Path) -> avro.schema.Schema:
    return avro.schema.parse(path.read_text())


def published(name: str) -> Path:
    return ROOT / f"{name}.avsc"


def test_every_schema_file_is_known() -> None:
    assert sorted(path.stem for path in ROOT.glob("*.avsc")) == sorted(framing.NAMES)


@pytest.mark.parametrize("name", framing.NAMES)
def test_avro_parses_it_and_has_the_same_fingerprint(name: str) -> None:
    schema = parsed(published(name))
    plain = avro.schema.parse(json.dumps(framing.schema(name)))  # the package keeps a box around what was logical
    assert framing.header(name) == b"\xc3\x01" + plain.fingerprint("CRC-64-AVRO")
    assert schema.namespace == "lrai"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", framing.NAMES)
def test_each_has_a_release(name: str) -> None:
    assert [path for path in RELEASED if path.stem == name]


def _can_read(reader: avro.schema.Schema, writer: avro.schema.Schema) -> bool:
    checker = avro.compatibility.ReaderWriterCompatibilityChecker()
    found = checker.get_compatibility(reader, writer)
    return bool(found.compatibility == avro.compatibility.SchemaCompatibilityType.compatible)


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_was_ever_released_can_be_read(path: Path) -> None:
    """BACKWARD_TRANSITIVE: the schema of today reads what any release wrote."""
    assert _can_read(parsed(published(path.stem)), parsed(path))


def test_the_check_can_fail() -> None:
    schema: dict[str, Any] = json.loads(published("inference_request").read_text())
    schema["fields"].append({"name": "new", "type": "string"})
    released = parsed(published("inference_request"))
    assert not _can_read(avro.schema.parse(json.dumps(schema)), released)
    schema["fields"][-1]["default"] = ""
    assert _can_read(avro.schema.parse(json.dumps(schema)), released)


NOTHING = object()
TENSOR = {"name": "string", "datatype": "string", "shape": {"type": "array", "items": "long"}, "data": "bytes"}
OPTIONAL = ["null", "string"]
REQUEST: list[tuple[str, Any, Any]] = [
    ("request_id", "string", NOTHING),
    ("model", "string", NOTHING),
    ("version", OPTIONAL, None),
    ("inputs", TENSOR, NOTHING),
    ("deadline", ["null", {"type": "long", "logicalType": "timestamp-millis"}], None),
    ("subject", OPTIONAL, None),
    ("attributes", {"type": "map", "values": "string"}, {}),
    ("consent_id", OPTIONAL, None),
    ("purpose", OPTIONAL, None),
    ("parameters", {"type": "map", "values": "string"}, {}),
]
RESULT: list[tuple[str, Any, Any]] = [
    ("request_id", "string", NOTHING),
    ("model", "string", NOTHING),
    ("version", OPTIONAL, NOTHING),
    ("variant", OPTIONAL, NOTHING),
    ("certificate", OPTIONAL, None),
    ("status", {"type": "enum", "name": "Status", "symbols": ["OK", "REJECTED", "EXPIRED", "FAILED"]}, NOTHING),
    ("outputs", TENSOR, NOTHING),
    ("error_code", OPTIONAL, NOTHING),
    ("error_message", OPTIONAL, NOTHING),
    ("queue_s", "double", NOTHING),
    ("execution_s", "double", NOTHING),
]


@pytest.mark.parametrize(
    ("name", "record", "fields"),
    [("inference_request", "InferenceRequest", REQUEST), ("inference_result", "InferenceResult", RESULT)],
)
def test_the_contract_with_clients(name: str, record: str, fields: list[tuple[str, Any, Any]]) -> None:
    schema = json.loads(published(name).read_text())
    assert (schema["namespace"], schema["name"]) == ("lrai", record)
    found = []
    for field in schema["fields"]:
        kind = field["type"]
        if isinstance(kind, dict) and kind["type"] == "array":
            assert (kind["items"]["type"], kind["items"]["name"]) == ("record", "Tensor")
            kind = {each["name"]: each["type"] for each in kind["items"]["fields"]}
        found.append((field["name"], kind, field.get("default", NOTHING)))
    assert found == fields


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_records_of_every_release_are_decoded(path: Path) -> None:
    """A compacted topic keeps what an earlier release wrote."""
    writer = framing.parse(path.read_text())
    record = {field["name"]: field["default"] for field in writer["fields"] if "default" in field}
    if path.stem != "control":
        assert framing.SINGLE_OBJECT + framing.fingerprint(path.read_text()) in framing.known_headers()
        return
    out = io.BytesIO()
    record |= {"kind": "variant", "model": "m", "version": "1", "by": "ann", "reason": "r", "at": 1}
    fastavro.schemaless_writer(out, writer, record)
    head = framing.SINGLE_OBJECT + framing.fingerprint(path.read_text())
    added = {"variant": None, "id": None, "evidence": None}
    assert framing.decode(head + out.getvalue()) == ("control", record | added)
