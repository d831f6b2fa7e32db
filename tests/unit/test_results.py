"""Results put together from columns equal what fastavro writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import framing
from schemas.columns import Texts
from schemas.results import EXPIRED, NAME, OutputColumn, encode_error, encode_ok

HEADER = framing.header(NAME)
TEXTS = st.text(max_size=10)
OPTIONAL = st.none() | TEXTS


@settings(max_examples=200)
@given(st.data())
def test_encode_ok_against_fastavro(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    ids = data.draw(st.lists(TEXTS, min_size=n, max_size=n))
    release = data.draw(st.tuples(TEXTS, OPTIONAL, OPTIONAL, OPTIONAL))
    rows = data.draw(st.lists(st.integers(1, 200), min_size=n, max_size=n))
    seconds = data.draw(st.lists(st.floats(allow_nan=False), min_size=2 * n, max_size=2 * n))
    outputs, wanted = [], []
    for _ in range(data.draw(st.integers(0, 3))):
        name, datatype = data.draw(TEXTS), data.draw(TEXTS)
        shape = tuple(data.draw(st.lists(st.integers(0, 2**40), max_size=3)))
        contents = data.draw(st.lists(st.binary(max_size=9), min_size=n, max_size=n))
        varies = bool(shape) and data.draw(st.booleans())
        lengths = data.draw(st.lists(st.integers(0, 500), min_size=n, max_size=n)) if varies else None
        shapes = [[k, *((lengths[i], *shape[1:]) if lengths else shape)] for i, k in enumerate(rows)]
        outputs.append(
            OutputColumn(name, datatype, shape, Texts.of(contents), np.array(lengths, np.int64) if lengths else None)
        )
        wanted.append((name, datatype, shapes, contents))
    found = encode_ok(
        HEADER, Texts.of(ids), release, outputs, np.array(rows, np.int64), np.array(seconds[:n]), np.array(seconds[n:])
    )
    for i, value in enumerate(found.to_list()):
        assert value == framing.encode(NAME, _record(i, ids, release, wanted, seconds, n))


def _record(i: int, ids: list[str], release: Any, outputs: list[Any], seconds: list[float], n: int) -> dict[str, Any]:
    model, version, variant, certificate = release
    return {
        "request_id": ids[i],
        "model": model,
        "version": version,
        "variant": variant,
        "certificate": certificate,
        "status": "OK",
        "outputs": [
            {"name": name, "datatype": datatype, "shape": shapes[i], "data": contents[i]}
            for name, datatype, shapes, contents in outputs
        ],
        "error_code": None,
        "error_message": None,
        "queue_s": seconds[i],
        "execution_s": seconds[n + i],
    }


def test_encode_error() -> None:
    value = encode_error(HEADER, "r", "m", None, EXPIRED, "deadline_expired", "too late", 0.5)
    name, record = framing.decode(value)
    assert name == NAME
    assert (record["status"], record["error_code"], record["error_message"]) == (
        "EXPIRED",
        "deadline_expired",
        "too late",
    )
    assert (record["request_id"], record["model"], record["version"], record["outputs"]) == ("r", "m", None, [])
