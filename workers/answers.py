"""What a run found becomes results and decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.outcome import outcome
from kernels.spec import ModelSpec
from schemas import framing
from schemas.columns import Ints, Texts
from schemas.results import FAILED, OK, OutputColumn, encode_error, encode_ok
from schemas.tensors import join_bytes, to_wire
from streams.headers import Reply, decode_headers, source_headers
from streams.window import Block, Headers
from workers.merge import Merged

Outputs = dict[str, npt.NDArray[Any]]
RELEASE = ("model", "version", "variant", "certificate", "frozen")
FROZEN = "lrai_frozen"  # header of an answer under a freeze: its id
MISSING = "lrai_missing"  # header of an answer to a request that lacks what the model's owner asks for
LACKS = {1: b"consent_id", 2: b"attributes", 3: b"consent_id,attributes"}  # by Merged.missing


@dataclass(frozen=True, slots=True)
class Answered:
    """n requests that ended alike: with the outputs of their rows, or with an error.

    `execution_s`: float64[n]; `batch_rows`: int64[n], rows of the run that answered.
    """

    requests: Merged
    status: int
    outputs: Outputs | None
    error: tuple[str, str] | None
    execution_s: npt.NDArray[np.float64]
    batch_rows: Ints

    @classmethod
    def failed(cls, requests: Merged, status: int, code: str, message: str) -> Answered:
        n = len(requests)
        return cls(requests, status, None, (code, message), np.zeros(n), np.zeros(n, np.int64))


@dataclass(frozen=True, slots=True)
class Release:
    """What answers: names for results and decisions."""

    model: str
    version: str
    variant: str | None
    certificate: str | None = None
    frozen: str | None = None  # id of the freeze under which it answers

    @property
    def key(self) -> tuple[str, str | None, str | None, str | None]:
        return self.model, self.version, self.variant, self.certificate


@dataclass(frozen=True, slots=True)
class Home:
    """Where answers go that name no reply topic, and what begins them; where decisions go."""

    results: str
    header: bytes
    decisions: str
    worker: str
    result_bytes_max: int


def blocks(
    spec: ModelSpec, release: Release, answered: Sequence[Answered], home: Home, now_us: int
) -> tuple[list[Block], dict[str, Any] | None]:
    """The results, by target, and one decision record of a window; and that record, if there is any.

    `now_us`: microseconds since the epoch.
    """
    found: list[Block] = []
    ended: list[Answered] = []
    for group in answered:
        values, split = _values(spec, release, group, home, now_us)
        for part, part_values in zip(split, values, strict=True):
            found += _targets(part, part_values, home, release.frozen)
        ended += split
    if not ended:
        return found, None
    record = _decisions(spec, release, ended, home, now_us)
    found.append(Block(home.decisions, [framing.encode("decision_batch", record)]))
    return found, record


def queue_s(requests: Merged, execution_s: npt.NDArray[np.float64], now_us: int) -> npt.NDArray[np.float64]:
    """float64[n]: seconds from the append of the request to its answer, less the run."""
    return np.maximum(now_us / 1e6 - requests.received_at / 1e3 - execution_s, 0.0)


def _values(
    spec: ModelSpec, release: Release, group: Answered, home: Home, now_us: int
) -> tuple[list[list[bytes]], list[Answered]]:
    """The encoded results; a group splits where some answers are too large for their topic."""
    if group.outputs is None:
        return [_errors(release, group, home, now_us)], [group]
    requests = group.requests
    columns = [_column(spec, name, values, requests) for name, values in group.outputs.items()]
    waited = queue_s(requests, group.execution_s, now_us)
    ids, rows = requests.request_id, requests.rows
    encoded = encode_ok(home.header, ids, release.key, columns, rows, waited, group.execution_s)
    large = encoded.lengths > home.result_bytes_max
    if not large.any():
        return [_bytes(encoded)], [group]
    message = f"the answer has over {home.result_bytes_max} bytes; ask for fewer rows in a request"
    failed = Answered.failed(requests.take(large), FAILED, "answer_too_large", message)
    parts, values = [failed], [_errors(release, failed, home, now_us)]
    if not large.all():
        small = np.flatnonzero(~large)
        rows = np.repeat(~large, requests.rows)
        kept = Answered(
            requests.take(small), OK, {name: each[rows] for name, each in group.outputs.items()}, None,
            group.execution_s[small], group.batch_rows[small],
        )  # fmt: skip
        parts.append(kept)
        values.append(_bytes(encoded.take(small)))
    return values, parts


def _bytes(column: Texts) -> list[bytes]:
    return [each or b"" for each in column.to_list()]


def _errors(release: Release, group: Answered, home: Home, now_us: int) -> list[bytes]:
    code, message = group.error or ("", "")
    waited = queue_s(group.requests, group.execution_s, now_us).tolist()
    what = (release.model, release.version, group.status, code, message)
    return [
        encode_error(home.header, request_id or "", *what, seconds)
        for request_id, seconds in zip(group.requests.request_id.to_strings(), waited, strict=True)
    ]


def _column(spec: ModelSpec, name: str, values: npt.NDArray[Any], requests: Merged) -> OutputColumn:
    """An output as its wire column; what padding added is cut off again."""
    shape = values.shape[1:]
    declared = next(each for each in spec.outputs if each.name == name).shape
    if requests.padded is not None and declared and declared[0] == spec.padded:
        return _cut(name, values, requests)
    if values.dtype.kind in "OUS":
        elements = [join_bytes(_utf8(part)) for part in np.split(values, np.cumsum(requests.rows)[:-1])]
        return OutputColumn(name, "BYTES", shape, Texts.of(elements))
    datatype, _ = to_wire(values[:0])
    wire = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    width = values.dtype.itemsize * int(np.prod(shape))
    lengths = (requests.rows * width).astype(np.int32)
    return OutputColumn(name, datatype, shape, Texts(wire.reshape(-1).view(np.uint8), lengths))


def _utf8(values: npt.NDArray[Any]) -> Iterable[bytes]:
    return (each if isinstance(each, bytes) else str(each).encode() for each in values.reshape(-1).tolist())


def _cut(name: str, values: npt.NDArray[Any], requests: Merged) -> OutputColumn:
    assert requests.padded is not None
    parts = []
    for start, rows, length in zip(
        requests.starts.tolist(), requests.rows.tolist(), requests.padded.tolist(), strict=True
    ):
        datatype, contents = to_wire(values[start : start + rows, :length])
        parts.append(contents)
    return OutputColumn(name, datatype, values.shape[1:], Texts.of(parts), requests.padded)


def _targets(group: Answered, values: list[bytes], home: Home, frozen: str | None) -> list[Block]:
    requests = group.requests
    keys = requests.request_id.to_list()
    headers = _headers(requests, frozen)
    if not requests.replies:
        return [Block(home.results, values, keys, headers)]
    targets: dict[Reply, list[int]] = {}
    default = Reply(home.results, -1)
    for i, code in enumerate(requests.reply.tolist()):
        targets.setdefault(default if code < 0 else requests.replies[code], []).append(i)
    return [
        Block(to.topic, [values[i] for i in rows], [keys[i] for i in rows], [headers[i] for i in rows], to.partition)
        for to, rows in targets.items()
    ]


def _headers(requests: Merged, frozen: str | None) -> list[Headers | None]:
    """As `source_headers`, but what repeats is made once; then what the client should know of the answer."""
    topic = requests.topic.encode()
    note = [(FROZEN, frozen.encode())] if frozen else []
    heads = {each: [*note, *source_headers(topic, each, 0)[:-1]] for each in set(requests.partition.tolist())}
    found: list[Headers | None] = [
        [*heads[partition], ("lrai_request-offset", b"%d" % offset)]
        for partition, offset in zip(requests.partition.tolist(), requests.offset.tolist(), strict=True)
    ]
    if not requests.headers.all_null:
        for own, passed in zip(found, requests.headers.to_list(), strict=True):
            if own is not None and passed:
                own += decode_headers(passed)
    if requests.missing is not None:
        for own, lacks in zip(found, requests.missing.tolist(), strict=True):
            if own is not None and lacks:
                own.append((MISSING, LACKS[lacks]))
    return found


def _decisions(
    spec: ModelSpec, release: Release, ended: Sequence[Answered], home: Home, now_us: int
) -> dict[str, Any]:
    requests = [each.requests for each in ended]
    counts = [len(each) for each in requests]
    errors: dict[tuple[str, str], int] = {}
    error_codes = [-1 if each.error is None else errors.setdefault(each.error, len(errors)) for each in ended]
    scores, decisions, words = _outcomes(spec, ended)
    sets: list[bytes] = []
    attributes = []
    for each in requests:
        attributes.append(np.where(each.attributes < 0, -1, each.attributes + len(sets)))
        sets += each.attribute_sets

    def joined(columns: Iterable[npt.NDArray[Any]], dtype: str) -> bytes:
        return np.concatenate([*columns]).astype(dtype).tobytes()

    def texts(name: str) -> dict[str, bytes]:
        return Texts.concat([getattr(each, name) for each in requests]).to_record()

    return {
        "topic": requests[0].topic,
        "worker": home.worker,
        "answered_at": now_us,
        "count": sum(counts),
        "partition": joined((each.partition for each in requests), "<i4"),
        "offset": joined((each.offset for each in requests), "<i8"),
        "received_at": joined((each.received_at for each in requests), "<i8"),
        "request_id": texts("request_id"),
        "subject": texts("subject"),
        "consent_id": texts("consent_id"),
        "purpose": texts("purpose"),
        "attributes": joined(attributes, "<i4") if sets else b"",
        "attribute_sets": sets,
        "release": np.zeros(sum(counts), "<i4").tobytes(),
        "releases": [dict(zip(RELEASE, (*release.key, release.frozen), strict=True))],
        "status": np.repeat([each.status for each in ended], counts).astype("<u1").tobytes(),
        "error": np.repeat(error_codes, counts).astype("<i4").tobytes() if errors else b"",
        "errors": [{"code": code, "message": message} for code, message in errors],
        "score": scores.tobytes(),
        "decision": decisions.tobytes() if words else b"",
        "decisions": words,
        "queue_s": joined((queue_s(each.requests, each.execution_s, now_us) for each in ended), "<f4"),
        "execution_s": joined((each.execution_s for each in ended), "<f4"),
        "rows": joined((each.rows for each in requests), "<i4"),
        "batch_rows": joined((each.batch_rows for each in ended), "<i4"),
    }


def _outcomes(spec: ModelSpec, ended: Sequence[Answered]) -> tuple[Any, Any, list[str]]:
    scores, codes, words = [], [], list[str]()
    for each in ended:
        n = len(each.requests)
        if each.outputs is None:
            scores.append(np.full(n, np.nan))
            codes.append(np.full(n, -1, np.int32))
            continue
        score, code, known = outcome(spec, each.outputs, each.requests.starts, each.requests.rows.astype(np.int32))
        scores.append(score)
        codes.append(np.where(code < 0, -1, code + len(words)).astype(np.int32))
        words += known
    return np.concatenate(scores), np.concatenate(codes), words

