"""What Faust and aiokafka log, as LRAI's lines; the same warning at most once in a while."""

from __future__ import annotations

import logging
import time

from streams.log import log

EVERY_S = 30.0


class Forward(logging.Handler):
    """Warnings and errors of a library. A broker that is away is a hundred of them a second."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now, what = time.monotonic(), f"{record.name} {record.msg}"[:200]
        if now - self.said.get(what, -EVERY_S) < EVERY_S:
            return
        self.said = {name: at for name, at in self.said.items() if now - at < EVERY_S} | {what: now}
        log("warning", "faust", logger=record.name, error=record.getMessage()[:500])


def forward_logs() -> None:
    """Instead of what is set up."""
    root = logging.getLogger()
    root.handlers = [Forward()]
    root.setLevel(logging.WARNING)
