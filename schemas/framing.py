"""Which schema a record was written with: Avro single-object encoding, or the Confluent wire format. Pure.

Single-object: C3 01, then the CRC-64-AVRO fingerprint of the schema, little-endian (Avro specification 1.11).
Confluent: a zero byte, then the schema's id in the registry, big-endian.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import fastavro

from schemas.errors import BadRecord

NAMES = (
    *("inference_request", "inference_result", "inference_batch", "decision_batch", "source_ranges", "control"),
    *("tally", "fairness", "drift", "alert", "label", "complaint", "scheduling"),
)
SINGLE_OBJECT = b"\xc3\x01"
CONFLUENT = 0
SINGLE_OBJECT_BYTES = 10
CONFLUENT_BYTES = 5

Schema = dict[str, Any]


def schema_text(name: str) -> str:
    """The published schema, as JSON."""
    return Path(__file__).with_name(f"{name}.avsc").read_text()


@cache
def schema(name: str) -> Schema:
    """The parsed schema; dates stay numbers, so that a date far away is a value like any other."""
    return parse(schema_text(name))


def parse(text: str) -> Schema:
    """A schema from JSON, without its logical types. Raises fastavro's SchemaParseException."""
    parsed: Any = fastavro.parse_schema(_plain(json.loads(text)))
    found: Schema = parsed
    return found


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if key not in ("logicalType", "doc")}
    if isinstance(node, list):
        return [_plain(item) for item in node]
    return node


@cache
def header(name: str) -> bytes:
    """The ten bytes before a record of this schema."""
    return SINGLE_OBJECT + fingerprint(schema_text(name))


def fingerprint(text: str) -> bytes:
    """CRC-64-AVRO of the canonical form, little-endian."""
    canonical = fastavro.schema.to_parsing_canonical_form(json.loads(text))
    return bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))


@cache
def known_headers() -> dict[bytes, tuple[str, Schema]]:
    """Name and schema of what today's processes and those of every release write: topics keep old records."""
    found = {}
    for path in Path(__file__).parent.glob("released/*/*.avsc"):
        text = path.read_text()
        found[SINGLE_OBJECT + fingerprint(text)] = path.stem, parse(text)
    return found | {header(name): (name, schema(name)) for name in NAMES}


def encode(name: str, record: Mapping[str, Any]) -> bytes:
    """A framed record."""
    return header(name) + encode_body(name, record)


def encode_body(name: str, record: Mapping[str, Any]) -> bytes:
    """A record without a frame."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema(name), record)
    return out.getvalue()


def decode(value: bytes) -> tuple[str, dict[str, Any]]:
    """A record that LRAI framed itself: (schema name, record). Raises BadRecord."""
    found = known_headers().get(value[:SINGLE_OBJECT_BYTES])
    if found is None:
        raise BadRecord("unknown_schema", f"no schema of LRAI has the header {value[:SINGLE_OBJECT_BYTES].hex()}")
    name, written = found
    body = io.BytesIO(value)
    body.seek(SINGLE_OBJECT_BYTES)
    try:
        record: dict[str, Any] = fastavro.schemaless_reader(body, written, schema(name))  # type: ignore[assignment]
    except (EOFError, IndexError, ValueError, KeyError, OverflowError) as err:
        raise BadRecord("undecodable", f"the record is no {name}: {err}") from err
    return name, record


def confluent_id(value: bytes) -> int:
    """The registry's id of a record in the Confluent wire format."""
    (schema_id,) = struct.unpack_from(">I", value, 1)
    return int(schema_id)
