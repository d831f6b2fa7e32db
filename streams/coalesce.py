"""A window of requests becomes batches by model and shape; what cannot run is answered here. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas import framing
from schemas.columns import Ints, Texts
from schemas.errors import BadRecord, IntegrityError
from schemas.requests import Requests, Schemas, decode, read_framed
from streams import topics
from streams.admission import Catalog, Plan, check_rows, plan
from streams.batching import Batching, batch_topic, padded_bytes
from streams.ended import Answering, Ended, over_index
from streams.headers import ReplyTopics, passed_on, reply_of
from streams.maps import Maps
from streams.window import Block, Headers, Outcome, Window

PLANS_MAX = 4096
BLOCK_BYTES = 64  # of SHA-256
CONTROL = np.array([*range(1, 32), 127], np.uint8)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request and a batch may hold; see the settings of the same names."""

    request_bytes_max: int
    batch_bytes_max: int
    run_rows_max: int


@dataclass
class Coalesce:
    """The stage of one priority. `plans`: what was found for a signature, bounded; `epoch`: that batches carry, so that
    the actors' reports name it."""

    catalog: Catalog
    schemas: Schemas
    bounds: Bounds
    how: Answering
    reply_topics: ReplyTopics
    plans: dict[bytes, Plan | BadRecord] = field(default_factory=dict)
    attributes: Maps = field(default_factory=lambda: Maps("attributes"))
    parameters: Maps = field(default_factory=lambda: Maps("parameters"))
    epoch: Callable[[], int] = lambda: 0

    def __call__(self, window: Window, now_ms: int) -> Outcome:
        """Batches, rejections, dead letters and source ranges of a window.

        Raises IntegrityError if a request would be lost.
        """
        decoded = decode(window.values, self.schemas)
        requests, ended = decoded.requests, Ended(window, decoded)
        self._check(ended, requests)
        admitted = [self._admit(each, rows, requests, now_ms, ended) for each, rows in requests.groups()]
        batching = Batching(requests, window, ended.replies, self.how.pseudonym, self.epoch())
        blocks, batched = [], 0
        for found, rows in _together(admitted):
            if len(rows):
                topic = batch_topic(self.how.prefix, found, self.how.priority)
                bounds = self.bounds
                blocks.append(batching.block(found, rows, bounds.run_rows_max, bounds.batch_bytes_max, topic))
                batched += len(rows)
        blocks += ended.blocks(self.how, now_ms)
        blocks.append(self._ranges(window))
        counts = Counter(ended.codes)
        if batched + counts.total() != len(window.values):
            raise IntegrityError(f"{len(window.values)} requests came in, {batched} + {counts.total()} went out")
        return Outcome(blocks, {**counts, "batched": batched, "decode_fallback": decoded.fallback})

    def _check(self, ended: Ended, requests: Requests) -> None:
        """Texts, sizes and headers of each request."""
        most = self.how.text_bytes_max
        _check_text(ended, "request_id", requests.request_id, self.how.request_id_bytes_max)
        for name in ("subject", "consent_id", "purpose"):
            _check_text(ended, name, getattr(requests, name), most)
        for maps, column in ((self.attributes, requests.attributes), (self.parameters, requests.parameters)):
            for i, error in maps.wrong(column, most):
                ended.errors.setdefault(i, error)
        # behind what cannot be stored: the first reason counts, and says whether the attributes are kept
        for i in np.flatnonzero(requests.request_id.lengths == 0).tolist():
            ended.reject(i, "bad_request_id", "request_id is empty; send a word of your own")
        for i in _rows_with(requests.request_id, CONTROL):
            ended.reject(i, "bad_request_id", "request_id holds a control character; use printable characters")
        limit = self.bounds.request_bytes_max
        for i in np.flatnonzero(requests.size > limit).tolist():
            ended.reject(i, "request_too_large", f"the record has {requests.size[i]} bytes; send at most {limit}")
        if any(ended.window.headers):
            self._check_headers(ended, requests)

    def _check_headers(self, ended: Ended, requests: Requests) -> None:
        over = [(over_index(row), row) for row, _, _ in ended.decoded.over]
        for i, row in [*enumerate(requests.row.tolist()), *over]:
            if not (headers := ended.window.headers[row]):
                continue
            reply, passed = None, Headers()
            try:
                passed = passed_on(headers)
                reply = reply_of(headers, self.reply_topics)
            except BadRecord as err:
                if i >= 0:
                    ended.errors.setdefault(i, err)
            ended.replies[i] = (reply, passed)

    def _admit(
        self, signature: bytes, members: Ints, requests: Requests, now_ms: int, ended: Ended
    ) -> tuple[Plan | BadRecord, Ints]:
        """The plan of a group and its requests that may run."""
        found = self.plans.get(signature) or self._plan(signature, requests.bodies[members[0]])
        errors = (
            dict.fromkeys(members.tolist(), found)
            if isinstance(found, BadRecord)
            else self._too_heavy(requests, members, found) | check_rows(requests, members, found)
        )
        for i, error in errors.items():
            ended.errors.setdefault(i, error)
        for i in members[requests.deadline[members] < now_ms].tolist():
            message = f"deadline = {requests.deadline[i]} ms was over when the request was read, at {now_ms} ms"
            ended.reject(i, "deadline_expired", message)
        if ended.errors:
            members = np.array([i for i in members.tolist() if i not in ended.errors], np.int64)
        return found, members

    def _too_heavy(self, requests: Requests, members: Ints, found: Plan) -> dict[int, BadRecord]:
        """Requests that padding makes larger than a batch may be."""
        if found.length is None:
            return {}
        size, most = padded_bytes(requests, found, members), self.bounds.batch_bytes_max
        text = "padded to the bucket of its length it has {} bytes; send at most {}: fewer rows"
        return {
            int(members[i]): BadRecord("request_too_large", text.format(size[i], most))
            for i in np.flatnonzero(size > most).tolist()
        }

    def _plan(self, signature: bytes, body: bytes) -> Plan | BadRecord:
        found: Plan | BadRecord
        try:
            found = plan(read_framed(body), self.catalog)
        except BadRecord as err:
            found = err
        if len(self.plans) >= PLANS_MAX:
            self.plans.clear()
        self.plans[signature] = found
        return found

    def _ranges(self, window: Window) -> Block:
        ranges = [
            {"partition": each.partition, "from": each.start, "next": each.stop, "records": each.records}
            for each in window.ranges
        ]
        record = {"topic": window.ranges[0].topic, "worker": self.how.worker, "ranges": ranges}
        return Block(topics.decisions(self.how.prefix), [framing.encode("source_ranges", record)])


def _together(admitted: Sequence[tuple[Plan | BadRecord, Ints]]) -> list[tuple[Plan, Ints]]:
    """Signatures of one plan as one group: the newest version asked by name and by null is the same."""
    groups: dict[Any, tuple[Plan, list[Ints]]] = {}
    for found, rows in admitted:
        if isinstance(found, Plan):
            key = (found.spec.model, found.spec.version, found.inputs, found.length)
            groups.setdefault(key, (found, []))[1].append(rows)
    return [(found, rows[0] if len(rows) == 1 else np.sort(np.concatenate(rows))) for found, rows in groups.values()]


def pseudonyms(key: bytes) -> Callable[[str], str]:
    """HMAC-SHA256 under the key, 128 bits as hexadecimal: without the key nobody can try names against it.

    By RFC 2104, with the two keyed states made once: four times as fast as `hmac`, which the tests compare it with.
    """
    if len(key) > BLOCK_BYTES:
        key = hashlib.sha256(key).digest()
    key = key.ljust(BLOCK_BYTES, b"\0")
    inner, outer = (hashlib.sha256(bytes(byte ^ pad for byte in key)) for pad in (0x36, 0x5C))

    def pseudonym(subject: str) -> str:
        within, around = inner.copy(), outer.copy()
        within.update(subject.encode())
        around.update(within.digest())
        return around.hexdigest()[:32]

    return pseudonym


def _check_text(ended: Ended, name: str, column: Texts, most: int) -> None:
    for i in np.flatnonzero(column.lengths > most).tolist():
        ended.reject(i, "text_too_long", f"{name} has {column.lengths[i]} bytes; send at most {most}")
    for i in _rows_with(column, np.zeros(1, np.uint8)):
        ended.reject(i, "nul_character", f"{name} holds U+0000; remove it")


def _rows_with(column: Texts, characters: npt.NDArray[np.uint8]) -> list[int]:
    """The rows that hold one of these bytes."""
    present = np.zeros(256, bool)
    present[characters] = True
    return column.rows_of(np.flatnonzero(present[column.data]))
