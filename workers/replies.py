"""Keeps the list of reply topics fresh, beside the window loop."""

from __future__ import annotations

import threading
from types import TracebackType

from schemas.errors import LraiError
from streams.admin import Admin
from streams.headers import ReplyTopics
from streams.log import log
from streams.settings import Settings

EVERY_S = 5.0


class ReplyWatch:
    """Asks Kafka now and every few seconds which reply topics there are; does nothing without an allow-list."""

    def __init__(self, settings: Settings, replies: ReplyTopics) -> None:
        self._settings = settings
        self._replies = replies
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="replies", daemon=True)

    def __enter__(self) -> ReplyWatch:
        if self._replies.patterns:
            self._admin = Admin(self._settings)
            self._ask()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()

    def _ask(self) -> None:
        try:
            found = self._admin.existing()
        except LraiError as err:
            log("warning", "reply topics could not be listed; the last list stays", error=str(err))
            return
        self._replies.partitions = {name: count for name, count in found.items() if self._replies.allows(name)}

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._ask()
