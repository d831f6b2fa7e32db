"""Structured logs: one JSON object a line on standard error."""

from __future__ import annotations

import json
import sys
import time

LEVELS = ("debug", "info", "warning", "error")
_least = 1


def set_level(level: str) -> None:
    """What is below it is not written."""
    global _least
    _least = LEVELS.index(level)


def log(level: str, event: str, **fields: object) -> None:
    """An event with its fields; once a window at most, never once a request."""
    if LEVELS.index(level) >= _least:
        line = {"at": round(time.time(), 3), "level": level, "event": event, **fields}
        sys.stderr.write(json.dumps(line, default=str) + "\n")
