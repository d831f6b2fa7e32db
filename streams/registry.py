"""Schemas of the records that clients send: LRAI's own releases, and those of a registry."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import avro.schema
from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas import framing, requests, results
from streams.log import log

RETRY_S = 0.5
UNKNOWN_S = 10.0
SCHEMAS_MAX = 1000
NOT_FOUND = 404
T = TypeVar("T")


@cache
def _fingerprints() -> frozenset[bytes]:
    """Of LRAI's own request schema: by the specification, and as the `avro` package for Python computes it, which keeps
    a box around the type of a logical type."""
    text = framing.schema_text(requests.NAME)
    return frozenset({framing.fingerprint(text), avro.schema.parse(text).fingerprint("CRC-64-AVRO")})


class Registry:
    """Looks schemas up; without a URL it knows LRAI's own. While the registry is away, calls wait for it."""

    def __init__(self, url: str | None, beat: Callable[[], None]) -> None:
        self._client = SchemaRegistryClient({"url": url, "timeout": 5, "max.retries": 0}) if url else None
        self._beat = beat
        self._known: dict[int, framing.Schema] = {}
        self._unknown: dict[int, float] = {}

    def by_fingerprint(self, fingerprint: bytes) -> framing.Schema | None:
        """LRAI's own schema of a request; each released version has its fingerprint."""
        return framing.schema(requests.NAME) if fingerprint in _fingerprints() else None

    def by_id(self, schema_id: int) -> framing.Schema | None:
        """The schema with this id; None when the registry does not know it, or none is configured."""
        if self._client is None:
            return None
        if schema_id not in self._known and self._unknown.get(schema_id, 0.0) < time.monotonic():
            self._ask(self._client, schema_id)
        return self._known.get(schema_id)

    def _ask(self, client: SchemaRegistryClient, schema_id: int) -> None:
        found = self._patiently(lambda: client.get_schema(schema_id))
        if found is None or len(self._known) >= SCHEMAS_MAX:
            recent = list(self._unknown.items())[-SCHEMAS_MAX:]
            self._unknown = {**dict(recent), schema_id: time.monotonic() + UNKNOWN_S}
            return
        try:
            text = found.schema_str or ""
            schema = framing.parse(text)
        except Exception:  # whatever somebody registered
            self._unknown[schema_id] = time.monotonic() + UNKNOWN_S
            return
        same = framing.fingerprint(text) == framing.fingerprint(framing.schema_text(requests.NAME))
        self._known[schema_id] = framing.schema(requests.NAME) if same else schema

    def result_header(self, topic: str) -> bytes:
        """The bytes before a result: registers its schema where a registry is configured."""
        client = self._client
        if client is None:
            return framing.header(results.NAME)
        schema = RegistrySchema(framing.schema_text(results.NAME), "AVRO")
        schema_id = self._patiently(lambda: client.register_schema(f"{topic}-value", schema))
        return b"\0" + int(schema_id or 0).to_bytes(4, "big")

    def _patiently(self, call: Callable[[], T]) -> T | None:
        """Waits while the registry is away; None when it says that there is no such thing."""
        said = False
        while True:
            self._beat()
            try:
                return call()
            except SchemaRegistryError as err:
                if err.http_status_code == NOT_FOUND:
                    return None
                error: Exception = err
            except Exception as err:  # the client's transport errors share no base class
                error = err
            if not said:
                said = True
                log("warning", "the schema registry is away; records wait", error=str(error))
            time.sleep(RETRY_S)
