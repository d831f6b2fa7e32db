"""What the audit writer reads: which records belong on which topic, in LRAI's framing or a client's."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import avro.schema
import fastavro

from schemas import framing
from schemas.errors import BadRecord
from streams import topics
from streams.registry import Registry

CLIENTS = ("label", "complaint")


def kinds(prefix: str) -> dict[str, tuple[str, ...]]:
    """The schemas of each topic that the audit writer reads, but for dead letters.

    A label that lay on the topic of decisions, or a decision on that of labels, would come from whom it may not.
    """
    watched = {
        topics.TALLIES: ("tally",), topics.FAIRNESS: ("fairness", "drift"), topics.ALERTS: ("alert",),
        topics.LABELS: ("label",), topics.COMPLAINTS: ("complaint",),
    }  # fmt: skip
    return {
        topics.decisions(prefix): ("decision_batch", "source_ranges"),
        topics.control(prefix): ("control",),
        **{topics.watched(prefix, name): names for name, names in watched.items()},
    }


class Reading:
    """Decodes records by their topic. `registry`: for clients that write the Confluent wire format."""

    def __init__(self, prefix: str, registry: Registry | None = None) -> None:
        self.kinds = kinds(prefix)
        self._registry = registry

    def __call__(self, topic: str, value: bytes) -> tuple[str, dict[str, Any]]:
        """The schema's name and the record. Raises BadRecord."""
        names = self.kinds[topic]
        if names[0] in CLIENTS and value[:1] == b"\0":
            return names[0], self._confluent(names[0], value)
        header = value[: framing.SINGLE_OBJECT_BYTES]
        known = _by_python().get(header)
        try:
            name, record = framing.decode(framing.header(known) + value[len(header) :] if known else value)
        except BadRecord:
            raise
        except Exception as err:  # fastavro raises whatever the bytes provoke
            raise BadRecord("undecodable", f"the record is no {' or '.join(names)}: {err}") from err
        if name not in names:
            raise BadRecord("wrong_topic", f"a {name} does not belong on {topic}; send {' or '.join(names)}")
        return name, record

    def _confluent(self, name: str, value: bytes) -> dict[str, Any]:
        if len(value) < framing.CONFLUENT_BYTES:
            raise BadRecord("undecodable", f"the record has {len(value)} bytes, fewer than its frame")
        number = framing.confluent_id(value)
        written = self._registry.by_id(number) if self._registry else None
        if written is None:
            raise BadRecord("unknown_schema", f"no schema registry that is configured knows the id {number}")
        try:
            body = io.BytesIO(value[framing.CONFLUENT_BYTES :])
            found: Any = fastavro.schemaless_reader(body, written, framing.schema(name))
        except Exception as err:  # as above, and whatever schema somebody registered
            raise BadRecord("undecodable", f"the record is no {name}: {err}") from err
        record: dict[str, Any] = found
        return record


@cache
def _by_python() -> Mapping[bytes, str]:
    """What the `avro` package for Python computes as fingerprint: it keeps a box around the type of a logical type."""
    fingerprints = {name: avro.schema.parse(framing.schema_text(name)).fingerprint("CRC-64-AVRO") for name in CLIENTS}
    return {framing.SINGLE_OBJECT + each: name for name, each in fingerprints.items()}
