"""Encoded maps of strings, each distinct one checked once. Pure."""

from __future__ import annotations

from schemas.columns import Texts
from schemas.errors import BadRecord
from schemas.requests import read_map
from streams.admission import clip

KNOWN_MAX = 50_000


class Maps:
    """Remembers, bounded, which encoded maps of a field are sound: attributes repeat from window to window."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._known: dict[bytes, BadRecord | None] = {}

    def wrong(self, column: Texts, most: int) -> list[tuple[int, BadRecord]]:
        """The rows whose map cannot be stored, with the reason. `most`: bytes of a key or value."""
        if not len(column) or int(column.lengths.max()) <= 1:
            return []
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        found = []
        for i, encoded in enumerate(column.to_list()):
            assert encoded is not None
            if encoded not in self._known:
                self._known[encoded] = self._wrong(encoded, most)
            if error := self._known[encoded]:
                found.append((i, error))
        return found

    def _wrong(self, encoded: bytes, most: int) -> BadRecord | None:
        for key, value in read_map(encoded).items():
            if "\0" in key or "\0" in value:
                return BadRecord("nul_character", f"{self.name}[{clip(key)}] holds U+0000; remove it")
            if len(key.encode()) > most or len(value.encode()) > most:
                return BadRecord("text_too_long", f"{self.name}[{clip(key)}] is longer than {most} bytes; send less")
        return None
