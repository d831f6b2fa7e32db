"""Whose schema a record was written with."""

from __future__ import annotations

import avro.schema

from schemas import framing
from streams.registry import Registry


def test_the_request_schema_is_known_by_the_fingerprint_of_either_package() -> None:
    """The reference package for Python computes another one, because of the logical type."""
    registry = Registry(None, lambda: None)
    text = framing.schema_text("inference_request")
    by_avro = avro.schema.parse(text).fingerprint("CRC-64-AVRO")
    assert by_avro != framing.fingerprint(text)
    for fingerprint in (by_avro, framing.fingerprint(text)):
        assert registry.by_fingerprint(fingerprint) is framing.schema("inference_request")
    assert registry.by_fingerprint(b"12345678") is None
    assert registry.by_id(1) is None
