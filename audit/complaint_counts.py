"""Complaints of the last weeks, as the monitor keeps them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

WEEK_MS = 7 * 86_400_000
COMPLAINTS_MAX = 1000  # kept of a model


@dataclass(slots=True)
class Complaints:
    """Complaints of the last days by model ("" where none is named): (hash of the complaint's id, ms)."""

    offsets: dict[str, int] = field(default_factory=dict)
    opened: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, complaint: Mapping[str, Any], place: str, offset: int, stamped_ms: int) -> str:
        """Counts an opened complaint; why it was not, or "". A time in the future is the record's own."""
        if offset <= self.offsets.get(place, -1):
            return "repeated"
        self.offsets[place] = offset
        if complaint["action"] != "opened":
            return "action"
        at = stamped_ms if complaint["at"] is None else min(complaint["at"], stamped_ms)
        number = int.from_bytes(blake2b(complaint["complaint_id"].encode(), digest_size=6).digest(), "big")
        kept = self.opened.setdefault(complaint["model"] or "", [])
        if any(number == each for each, _ in kept):
            return "repeated"
        kept.append((number, at))
        kept.sort(key=lambda each: each[1])
        newest = kept[-1][1]
        kept[:] = [each for each in kept if each[1] > newest - 2 * WEEK_MS][-COMPLAINTS_MAX:]
        return ""

    @property
    def newest_ms(self) -> int:
        return max((kept[-1][1] for kept in self.opened.values() if kept), default=0)

    def encode(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Complaints:
        """What `encode` wrote."""
        found = json.loads(value)
        opened = {model: [(number, at) for number, at in each] for model, each in found["opened"].items()}
        return cls(found["offsets"], opened)
