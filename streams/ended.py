"""The requests of a window that end in coalesce: rejected, expired, or no request at all. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas import framing, results
from schemas.errors import BadRecord
from schemas.requests import Decoded, read_framed
from streams import topics
from streams.batching import cuts
from streams.decisions import Decision, decision_batch
from streams.headers import Reply, header_bytes, source_headers
from streams.window import Block, Headers, Window

NAME_BYTES_MAX = 128
DECISIONS_BYTES_MAX = 1024 * 1024  # of requests whose decisions lie in one record
DECISION_BYTES = 1024  # of a decision beside what the request says
BESIDE_BYTES_MAX = 1024 * 1024  # key and headers of a dead letter
UNKNOWN = "(unknown)"
UNSTORABLE = frozenset({"nul_character", "text_too_long", "too_many_items"})


@dataclass(frozen=True, slots=True)
class Answering:
    """How the requests of a priority are answered; bounds in bytes."""

    prefix: str
    priority: str
    worker: str
    result_header: bytes
    pseudonym: Callable[[str], str]
    request_id_bytes_max: int
    text_bytes_max: int
    dead_letter_bytes_max: int
    releases: frozenset[tuple[str, str]]
    """the models and versions that serve; the store keeps no other names, which clients could invent without end"""


@dataclass
class Ended:
    """What ends here.

    `errors`: index among the decoded requests -> why; `replies`: the same index (or `over_index`) -> where the answer
    goes and which headers it repeats.
    """

    window: Window
    decoded: Decoded
    errors: dict[int, BadRecord] = field(default_factory=dict)
    replies: dict[int, tuple[Reply | None, Headers]] = field(default_factory=dict)

    def reject(self, i: int, code: str, message: str) -> None:
        """The first reason counts."""
        self.errors.setdefault(i, BadRecord(code, message))

    @property
    def codes(self) -> list[str]:
        """Why each of them ended."""
        lists = (self.errors.values(), (each[2] for each in self.decoded.over), (each[1] for each in self.decoded.bad))
        return [error.code for errors in lists for error in errors]

    def blocks(self, how: Answering, now_ms: int) -> list[Block]:
        """Answers, their decisions, dead letters."""
        answers = [
            Answer(self.window, how, now_ms, row, record, error, *self.replies.get(i, (None, [])))
            for i, row, record, error in self._rejected()
        ]
        targets: dict[Reply, list[Answer]] = {}
        home = Reply(topics.results(how.prefix, how.priority), -1)
        for answer in answers:
            targets.setdefault(answer.reply or home, []).append(answer)
        blocks = [
            Block(
                reply.topic,
                [answer.value() for answer in group],
                [answer.request_id.encode() for answer in group],
                [answer.headers() for answer in group],
                reply.partition,
            )
            for reply, group in targets.items()
        ]
        sizes = np.array([len(self.window.values[answer.row] or b"") + DECISION_BYTES for answer in answers], np.int64)
        for part in cuts(sizes, DECISIONS_BYTES_MAX):
            decisions = [answer.decision() for answer in answers[part]]
            batch = decision_batch(self.window.topics[0], how.worker, now_ms * 1000, decisions)
            blocks.append(Block(topics.decisions(how.prefix), [framing.encode("decision_batch", batch)]))
        if self.decoded.bad:
            blocks.append(_dead_letters(self.window, self.decoded.bad, how))
        return blocks

    def _rejected(self) -> list[tuple[int, int, dict[str, Any], BadRecord]]:
        """(index among the decoded requests or `over_index`, index in the window, the request, why)."""
        requests = self.decoded.requests
        found = [(i, int(requests.row[i]), read_framed(requests.bodies[i]), err) for i, err in self.errors.items()]
        return found + [(over_index(row), row, record, error) for row, record, error in self.decoded.over]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request that ends here."""

    window: Window
    how: Answering
    now_ms: int
    row: int
    record: Mapping[str, Any]
    error: BadRecord
    reply: Reply | None
    passed: Headers

    @property
    def status(self) -> int:
        return results.EXPIRED if self.error.code == "deadline_expired" else results.REJECTED

    @property
    def queue_s(self) -> float:
        return max(0, self.now_ms - int(self.window.timestamp[self.row])) / 1000

    @property
    def release(self) -> tuple[str, str | None]:
        """Model and version as the client wrote them, safe to answer and to store."""
        return storable(self.record["model"], NAME_BYTES_MAX) or "", storable(self.record["version"], NAME_BYTES_MAX)

    @property
    def request_id(self) -> str:
        """Cut to what an id may be long: whatever the client wrote, the answer must fit its topic."""
        return cut(self.record["request_id"], self.how.request_id_bytes_max)

    def value(self) -> bytes:
        code, message = self.error.code, str(self.error)
        request_id, header = self.request_id, self.how.result_header
        return results.encode_error(header, request_id, *self.release, self.status, code, message, self.queue_s)

    def headers(self) -> Headers:
        window, row = self.window, self.row
        source = source_headers(window.topics[row].encode(), int(window.partition[row]), int(window.offset[row]))
        return source + self.passed

    def decision(self) -> Decision:
        record, window, row, how = self.record, self.window, self.row, self.how
        model, version = self.record["model"], self.record["version"]
        if model not in {name for name, _ in how.releases}:
            model = UNKNOWN
        if (model, version) not in how.releases:
            version = None
        return Decision(
            request_id=storable(record["request_id"], how.request_id_bytes_max),
            subject=None if record["subject"] is None else how.pseudonym(record["subject"]),
            consent_id=storable(record["consent_id"], how.text_bytes_max),
            purpose=storable(record["purpose"], how.text_bytes_max),
            attributes={} if self.error.code in UNSTORABLE else record["attributes"],
            model=model,
            version=version,
            partition=int(window.partition[row]),
            offset=int(window.offset[row]),
            received_at=int(window.timestamp[row]),
            status=self.status,
            error=(self.error.code, str(self.error)),
            queue_s=self.queue_s,
        )


def over_index(row: int) -> int:
    """Stands for the index of a request over a bound, which is not among the decoded ones. `row`: in the window."""
    return -1 - row


def _dead_letters(window: Window, bad: list[tuple[int, BadRecord]], how: Answering) -> Block:
    values, keys, headers = [], [], []
    for row, error in bad:
        value, message = window.values[row] or b"", str(error)
        if len(value) > how.dead_letter_bytes_max:
            message += f"; the value of {len(value)} bytes was cut to {how.dead_letter_bytes_max}"
            value = value[: how.dead_letter_bytes_max]
        key, passed = window.keys[row], window.headers[row] or []
        beside = len(key or b"") + header_bytes(passed)
        if beside > BESIDE_BYTES_MAX:
            message += f"; key and headers of {beside} bytes were left out"
            key, passed = None, []
        values.append(value)
        keys.append(key)
        headers.append([*passed, *_dead_letter_headers(window, row, error.code, message)])
    return Block(topics.deadletter(how.prefix), values, keys, headers)


def _dead_letter_headers(window: Window, row: int, code: str, message: str) -> Headers:
    return [
        ("lrai_dlt-original-topic", window.topics[row].encode()),
        ("lrai_dlt-original-partition", b"%d" % window.partition[row]),
        ("lrai_dlt-original-offset", b"%d" % window.offset[row]),
        ("lrai_dlt-original-timestamp", b"%d" % window.timestamp[row]),
        ("lrai_dlt-reason", code.encode()),
        ("lrai_dlt-message", message.encode()),
        ("lrai_dlt-stage", b"coalesce"),
    ]


def storable(text: str | None, most: int) -> str | None:
    """The text without U+0000 (Postgres cannot hold it), at most so many bytes."""
    return None if text is None else cut(text.replace("\0", "\N{REPLACEMENT CHARACTER}"), most)


def cut(text: str, most: int) -> str:
    """At most so many bytes of it.

    >>> cut("aü", 2), cut("aü", 3)
    ('a', 'aü')
    """
    return text if len(text) * 4 <= most else text.encode()[:most].decode(errors="ignore")
