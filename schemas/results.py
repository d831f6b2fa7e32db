"""InferenceResult records from columns, without a Python step a record. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas import framing
from schemas.columns import Ints, Piece, Texts, assemble, fixed, strings, varints

NAME = "inference_result"
STATUSES = ("OK", "REJECTED", "EXPIRED", "FAILED")
OK, REJECTED, EXPIRED, FAILED = range(4)


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """One output of n requests: `shape` without the rows; `data`: the contents, [rows of the request, *shape] each.

    `lengths`: int64[n], the size of the first dimension behind the rows where requests differ in it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Texts
    lengths: Ints | None = None


def encode_ok(
    header: bytes,
    request_id: Texts,
    release: tuple[str, str | None, str | None, str | None],
    outputs: Sequence[OutputColumn],
    rows: Ints,
    queue_s: npt.NDArray[np.float64],
    execution_s: npt.NDArray[np.float64],
) -> Texts:
    """Framed results with status OK. `header`: what frames them; `release`: model, version, variant, certificate."""
    model, *optional = release
    pieces: list[Piece] = [header, *strings(request_id)]
    head = _text(model) + b"".join(b"\0" if text is None else b"\2" + _text(text) for text in optional)
    head += _long(OK) + (_long(len(outputs)) if outputs else b"")
    for output in outputs:
        head += _text(output.name) + _text(output.datatype) + _long(1 + len(output.shape))
        pieces += [head, varints(rows)]
        tail = output.shape
        if output.lengths is not None:
            pieces.append(varints(output.lengths))
            tail = tail[1:]
        pieces += [b"".join(map(_long, tail)) + b"\0", *strings(output.data)]
        head = b""
    pieces += [head + b"\0\0\0", fixed(queue_s), fixed(execution_s)]
    return assemble(len(request_id), pieces)


def encode_error(
    header: bytes,
    request_id: str,
    model: str,
    version: str | None,
    status: int,
    code: str,
    message: str,
    queue_s: float = 0.0,
) -> bytes:
    """One framed result that is not OK."""
    return header + framing.encode_body(
        NAME,
        {
            "request_id": request_id,
            "model": model,
            "version": version,
            "variant": None,
            "status": STATUSES[status],
            "outputs": [],
            "error_code": code,
            "error_message": message,
            "queue_s": queue_s,
            "execution_s": 0.0,
        },
    )


def _long(value: int) -> bytes:
    return varints(np.array([value], np.int64)).data.tobytes()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _long(len(encoded)) + encoded
