"""InferenceRequest records to columns, a window at a time. Pure.

The law: what is read equals what fastavro reads from each record alone, refusals included. Rows that the cursors find
odd are read by fastavro; what it can read is written again in canonical form and goes through the cursors.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import fastavro
import numpy as np
import numpy.typing as npt

from schemas import framing
from schemas.columns import Bytes, Ints, Piece, Texts, assemble, fixed
from schemas.cursor import Cursors, Rows, Span
from schemas.errors import BadRecord

NAME = "inference_request"
INPUTS_MAX = 64
DIMENSIONS_MAX = 16
ENTRIES_MAX = 64
COMPARED_MAX = 4  # signatures found by comparing columns; more of them by a dictionary
NO_DEADLINE = np.iinfo(np.int64).max
BOUNDS = {"inputs": INPUTS_MAX, "shape": DIMENSIONS_MAX, "attributes": ENTRIES_MAX, "parameters": ENTRIES_MAX}


class Schemas(Protocol):
    """Looks up the schemas that records were written with."""

    def by_fingerprint(self, fingerprint: bytes) -> framing.Schema | None: ...

    def by_id(self, schema_id: int) -> framing.Schema | None:
        """Waits while the registry is away; None for an id that it does not know."""
        ...


@dataclass(frozen=True, slots=True)
class TensorColumn:
    """The i-th input of n requests; rows with fewer inputs hold nothing here.

    `head`: name, datatype and number of dimensions as encoded; `tail`: the dimensions behind the first, as encoded;
    `first`: int64[n], the first dimension (-1 without any); `data`: where the contents lie.
    """

    head: Texts
    tail: Texts
    first: Ints
    data: Span


@dataclass(frozen=True, slots=True)
class Requests:
    """n requests as columns; `row`: int64[n], the index of each in the window."""

    row: Ints
    buffer: Bytes
    bodies: Sequence[bytes]
    """the framed records"""
    size: Ints
    """bytes of each"""
    request_id: Texts
    release: Texts
    """model and version, as encoded"""
    inputs: Ints
    tensors: list[TensorColumn]
    deadline: Ints
    subject: Texts
    attributes: Texts
    """the map as encoded, like `parameters`"""
    consent_id: Texts
    purpose: Texts
    parameters: Texts

    def groups(self) -> list[tuple[bytes, Ints]]:
        """Each signature with the requests that have it, ascending.

        A signature is what requests of one batch share: model, version, and each input but for its rows and data.
        """
        n = len(self.row)
        signatures = self._signatures()
        found: list[tuple[bytes, Ints]] = []
        left = np.arange(n)
        if n and signatures.lengths.min() == signatures.lengths.max():
            matrix = signatures.data.reshape(n, -1)
            while len(left) and len(found) < COMPARED_MAX:
                first = matrix[left[0]]
                same = (matrix[left] == first).all(axis=1)
                found.append((first.tobytes(), left[same]))
                left = left[~same]
        if not len(left):
            return found
        by_signature: dict[bytes, list[int]] = {}
        for i, signature in zip(left.tolist(), signatures.take(left).to_list(), strict=True):
            by_signature.setdefault(signature or b"", []).append(i)
        return found + [(signature, np.array(rows, np.int64)) for signature, rows in by_signature.items()]

    def _signatures(self) -> Texts:
        pieces: list[Piece] = [fixed(self.inputs), fixed(self.release.lengths), self.release]
        for tensor in self.tensors:
            for part in (tensor.head, tensor.tail):
                pieces += [fixed(part.lengths), part]
        return assemble(len(self.row), pieces)

    def plain_texts(self) -> list[Texts]:
        """The fields that are one string."""
        return [self.request_id, self.subject, self.consent_id, self.purpose]

    def encoded_texts(self) -> list[Texts]:
        """The fields that hold strings between other things."""
        return [self.release, self.attributes, self.parameters, *(tensor.head for tensor in self.tensors)]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A window: what could be read, what could not (window index, error), and how many rows went through fastavro.

    `over`: rows that fastavro read but that exceed a bound: (window index, the record, error).
    """

    requests: Requests
    bad: list[tuple[int, BadRecord]]
    over: list[tuple[int, dict[str, Any], BadRecord]]
    fallback: int


def decode(values: Sequence[bytes | None], schemas: Schemas) -> Decoded:
    """The requests of a window."""
    own = framing.header(NAME)
    bad: list[tuple[int, BadRecord]] = []
    over: list[tuple[int, dict[str, Any], BadRecord]] = []
    rows: list[int] = []
    bodies: list[bytes] = []
    odd: list[tuple[int, bytes, framing.Schema]] = []
    ours = framing.schema(NAME)
    framed = [value is not None and value.startswith(own) for value in values]
    for row, value in enumerate(values if not all(framed) else ()):
        if value is not None and framed[row]:
            rows.append(row)
            bodies.append(value)
            continue
        try:
            body, writer = _body(value, schemas)
        except BadRecord as err:
            bad.append((row, err))
            continue
        if writer is ours:  # the registry's framing of the same schema
            rows.append(row)
            bodies.append(own + body)
        else:
            odd.append((row, body, writer))
    if all(framed):
        rows, bodies = list(range(len(values))), list(values)  # type: ignore[arg-type]
    good, requests = _read(bodies, np.array(rows, np.int64))
    if not good.all():
        odd += [(rows[i], bodies[i][len(own) :], ours) for i in np.flatnonzero(~good)]
    if not odd:
        return Decoded(requests, bad, over, 0)
    canonical = []
    for row, body, writer in odd:
        try:
            record = read_one(body, writer)
            check_bounds(record)
            canonical.append((row, framing.encode(NAME, record)))
        except BadRecord as err:
            if err.code == "too_many_items":
                over.append((row, record, err))
            else:
                bad.append((row, err))
    kept = [i for i in range(len(rows)) if good[i]]
    together = sorted([(rows[i], bodies[i]) for i in kept] + canonical)
    _, requests = _read([body for _, body in together], np.array([row for row, _ in together], np.int64))
    return Decoded(requests, bad, over, len(odd))


def _body(value: bytes | None, schemas: Schemas) -> tuple[bytes, framing.Schema]:
    """The Avro body of a record of another schema version or framing, and the schema that it was written with."""
    if value is None:
        raise BadRecord("empty_value", "the record has no value; send an InferenceRequest")
    if value.startswith(framing.SINGLE_OBJECT) and len(value) >= framing.SINGLE_OBJECT_BYTES:
        fingerprint = value[2 : framing.SINGLE_OBJECT_BYTES]
        writer = schemas.by_fingerprint(fingerprint)
        found, body = f"fingerprint {fingerprint.hex()}", value[framing.SINGLE_OBJECT_BYTES :]
    elif value[:1] == b"\0" and len(value) >= framing.CONFLUENT_BYTES:
        schema_id = framing.confluent_id(value)
        writer = schemas.by_id(schema_id)
        found, body = f"registry id {schema_id}", value[framing.CONFLUENT_BYTES :]
    else:
        raise BadRecord(
            "unknown_framing",
            f"the value begins with {value[:4].hex() or 'nothing'}: it must begin with c301 (Avro single-object"
            " encoding) or 00 and a registry id (Confluent wire format)",
        )
    if writer is None:
        raise BadRecord("unknown_schema", f"no schema is known for the {found}; use schemas/{NAME}.avsc as published")
    return body, writer


def read_one(body: bytes, writer: framing.Schema) -> dict[str, Any]:
    """One request through fastavro. Raises BadRecord."""
    try:
        record: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(body), writer, framing.schema(NAME))  # type: ignore[assignment]
    except Exception as err:  # fastavro raises whatever the bytes provoke
        text = str(err) or type(err).__name__
        raise BadRecord("undecodable", f"the value is no InferenceRequest of its schema: {text[:200]}") from err
    return record


def check_bounds(record: dict[str, Any]) -> None:
    """Raises BadRecord too_many_items."""
    counts = [(field, len(record[field])) for field in ("inputs", "attributes", "parameters")]
    counts += [("shape", len(tensor["shape"])) for tensor in record["inputs"]]
    for field, count in counts:
        if count > BOUNDS[field]:
            raise BadRecord("too_many_items", f"{field} has {count} items; send at most {BOUNDS[field]}")


def read_framed(body: bytes) -> dict[str, Any]:
    """One of `Requests.bodies` through fastavro. Raises BadRecord."""
    return read_one(body[framing.SINGLE_OBJECT_BYTES :], framing.schema(NAME))


def _read(values: Sequence[bytes], rows: Ints) -> tuple[npt.NDArray[np.bool_], Requests]:
    """bool[len(values)], which rows are good, and the good rows as columns."""
    cursors = Cursors(values)
    cursors.start += framing.SINGLE_OBJECT_BYTES
    cursors.at += framing.SINGLE_OBJECT_BYTES
    requests = _fields(cursors, rows, values)
    good = cursors.finish()
    if good.all():
        good = _valid_texts(requests)
    if good.all():
        return good, requests
    kept = np.flatnonzero(good)
    good[kept], requests = _read([values[i] for i in kept.tolist()], rows[kept])
    return good, requests


def _valid_texts(requests: Requests) -> npt.NDArray[np.bool_]:
    """bool[n]: every string is UTF-8. Only rows that hold a byte beyond ASCII cost a Python step."""
    good = np.ones(len(requests.row), bool)
    for column in requests.plain_texts():
        for row in _beyond_ascii(column):
            good[row] &= _is_utf8(column.take(np.array([row])).data.tobytes())
    for column in requests.encoded_texts():
        seen: dict[bytes, bool] = {}
        for row in _beyond_ascii(column):
            encoded = column.take(np.array([row])).data.tobytes()
            if encoded not in seen:
                seen[encoded] = _reads(requests.bodies[row])
            good[row] &= seen[encoded]
    return good


def _beyond_ascii(column: Texts) -> list[int]:
    """The rows that hold a byte above 127."""
    if not len(column.data) or int(column.data.max()) < 0x80:
        return []
    return column.rows_of(np.flatnonzero(column.data >= 0x80))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _reads(body: bytes) -> bool:
    try:
        read_framed(body)
    except BadRecord:
        return False
    return True


def _fields(cursors: Cursors, rows: Ints, bodies: Sequence[bytes]) -> Requests:
    def texts(span: Span) -> Texts:
        return Texts.slices(cursors.buffer, span.start, span.length)

    request_id = cursors.text()
    at = cursors.at.copy()
    cursors.text()
    cursors.optional_text()
    release = Span(at, cursors.at - at)
    inputs, tensors = _inputs(cursors)
    branch, with_deadline = cursors.optional()
    deadline = np.full(len(rows), NO_DEADLINE, np.int64)
    if branch.any():
        deadline[with_deadline] = cursors.long(with_deadline)
    subject = cursors.optional_text()
    attributes = _map(cursors)
    consent_id, purpose = cursors.optional_text(), cursors.optional_text()
    parameters = _map(cursors)
    if cursors.odd.any():  # the spans of odd rows mean nothing; the caller reads the others again
        return _nothing(cursors, rows, bodies)
    return Requests(
        row=rows,
        buffer=cursors.buffer,
        bodies=bodies,
        size=cursors.end - cursors.start + framing.SINGLE_OBJECT_BYTES,
        request_id=texts(request_id),
        release=texts(release),
        inputs=inputs,
        tensors=tensors,
        deadline=deadline,
        subject=texts(subject),
        attributes=texts(attributes),
        consent_id=texts(consent_id),
        purpose=texts(purpose),
        parameters=texts(parameters),
    )


def _nothing(cursors: Cursors, rows: Ints, bodies: Sequence[bytes]) -> Requests:
    none, zeros = Texts.nulls(len(rows)), np.zeros(len(rows), np.int64)
    return Requests(rows, cursors.buffer, bodies, zeros, none, none, zeros, [], zeros, none, none, none, none, none)


def _inputs(cursors: Cursors) -> tuple[Ints, list[TensorColumn]]:
    tensors: list[TensorColumn] = []
    counts: Ints = np.zeros(0, np.int64)
    for i, count, rows in cursors.items(INPUTS_MAX):
        if i < 0:
            counts = count
        else:
            tensors.append(_tensor(cursors, rows))
    return counts, tensors


def _tensor(cursors: Cursors, rows: Rows) -> TensorColumn:
    at = cursors.at[rows] + 0
    cursors.text(rows)
    cursors.text(rows)
    first = np.full(len(at), -1, np.int64)
    for i, count, having in cursors.items(DIMENSIONS_MAX, rows):
        if i < 0:
            has_dimensions = count > 0
            head, tail_at = Span(at, cursors.at[rows] - at), cursors.at[rows] + 0
            continue
        size = cursors.long(having)
        if i == 0:
            first[has_dimensions] = size
            tail_at = cursors.at[rows] + 0
    tail = Span(tail_at, np.maximum(cursors.at[rows] - tail_at, 0))
    data = cursors.text(rows)
    odd = cursors.odd[rows]
    if odd.any():
        head, tail = (Span(span.start, np.where(odd, 0, span.length)) for span in (head, tail))
    return TensorColumn(_column(cursors, rows, head), _column(cursors, rows, tail), _all(cursors, rows, first), Span(
        _all(cursors, rows, data.start), _all(cursors, rows, data.length)
    ))


def _column(cursors: Cursors, rows: Rows, span: Span) -> Texts:
    return Texts.slices(cursors.buffer, _all(cursors, rows, span.start), _all(cursors, rows, span.length))


def _all(cursors: Cursors, rows: Rows, values: Ints) -> Ints:
    """The values of some rows as a column of all; the others are 0."""
    if isinstance(rows, slice):
        return values
    column = np.zeros(len(cursors.at), np.int64)
    column[rows] = values
    return column


def _map(cursors: Cursors) -> Span:
    """An Avro map of strings, as encoded."""
    at = cursors.at.copy()
    for i, _, rows in cursors.items(ENTRIES_MAX):
        if i >= 0:
            cursors.text(rows)
            cursors.text(rows)
    return Span(at, np.maximum(cursors.at - at, 0))


def read_map(encoded: bytes) -> dict[str, str]:
    """An Avro map of strings from `Requests.attributes` or `parameters`."""
    found: dict[str, str] = fastavro.schemaless_reader(io.BytesIO(encoded), _MAP, None)  # type: ignore[assignment]
    return found


def write_map(items: Mapping[str, str]) -> bytes:
    """The inverse of `read_map`."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _MAP, items)
    return out.getvalue()


_MAP = {"type": "map", "values": "string"}
