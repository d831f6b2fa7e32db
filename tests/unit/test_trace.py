"""Trace files: what is written is read again; what is wrong is named with its line."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import trace as traces
from streams.topics import PRIORITIES
from streams.trace import HEADER, BadTrace, Trace, dispersion, read, write

NAN = float("nan")
MODELS = ("mlp-a", "risk-scorer")
REQUEST = st.tuples(
    st.integers(0, 60_000_000), st.integers(0, 2), st.integers(0, 1), st.integers(1, 999_999_999),
    st.integers(0, 999_999_999), st.one_of(st.none(), st.integers(0, 10**15 - 1)),
)  # fmt: skip


def trace_of(requests: list[tuple[int, int, int, int, int, int | None]]) -> Trace:
    """Requests as (microseconds after the one before, priority, model, rows, bytes, deadline in ms)."""
    after, priority, model, rows, size, deadline = zip(*requests, strict=True)
    at = np.cumsum(after)
    return Trace(
        (at - at[0]) / 1e6, np.array(priority, np.int8), np.array(model, np.int16), MODELS,
        np.array(rows, np.int32), np.array(size, np.int32),
        np.array([NAN if each is None else each / 1000 for each in deadline]),
    )  # fmt: skip


@given(st.lists(REQUEST, min_size=1, max_size=40))
def test_what_is_written_is_read(requests: list[tuple[int, int, int, int, int, int | None]]) -> None:
    trace = trace_of(requests)
    found = read(write(trace))
    for name in ("at_s", "priority", "rows", "bytes", "deadline_s"):
        np.testing.assert_array_equal(getattr(found, name), getattr(trace, name))
        assert getattr(found, name).dtype == getattr(trace, name).dtype
    assert [found.models[i] for i in found.model] == [MODELS[i] for i in trace.model]
    assert "".join(write(found)) == "".join(write(trace))


def test_files_longer_than_a_chunk() -> None:
    n = traces.CHUNK + 3
    trace = trace_of([(1000, i % 3, i % 2, 1 + i, i, None) for i in range(n)])
    found = read(io.StringIO("".join(write(trace))))
    assert len(found) == n and found.seconds == trace.seconds
    np.testing.assert_array_equal(found.rows, trace.rows)


def test_a_part_of_a_file_begins_at_its_first_request() -> None:
    found = read([f"{HEADER}\n", "5000000,bulk,m,1,10,\n", "5250000,bulk,m,1,10,0\n"])
    assert found.at_s.tolist() == [0.0, 0.25] and found.deadline_s[1] == 0 and np.isnan(found.deadline_s[0])
    assert PRIORITIES[found.priority[0]] == "bulk"


GOOD = "7,standard,mlp,1,173,250\n"
WRONG = [
    ("", "line 1: the file is empty"),
    ("at_us,priority,model,rows,bytes,deadline_ms,subject\n", "line 1: column 'subject' is not known"),
    ("at_us,priority,model,rows,bytes\n", "line 1: column 'deadline_ms' is missing"),
    ("priority,at_us,model,rows,bytes,deadline_ms\n", "line 1: the columns are 'priority,at_us"),
    (HEADER, "line 1: 'at_us,priority,model,rows,bytes,deadline_ms' has no line break: the file was cut off"),
    (f"{HEADER}\n", "line 2: there is no request"),
    (f"{HEADER}\n-1,standard,mlp,1,173,\n", "line 2: at_us = '-1'; write the time in whole microseconds"),
    (f"{HEADER}\nnan,standard,mlp,1,173,\n", "line 2: at_us = 'nan'"),
    (f"{HEADER}\n1.5,standard,mlp,1,173,\n", "line 2: at_us = '1.5'"),
    (f"{HEADER}\n1_0,standard,mlp,1,173,\n", "line 2: at_us = '1_0'"),
    (f"{HEADER}\n\u0664,standard,mlp,1,173,\n", "line 2: at_us = '\u0664'"),
    (f"{HEADER}\n{10**18},standard,mlp,1,173,\n", "line 2: at_us = '1000000000000000000'"),
    (f"{HEADER}\n{GOOD}7,urgent,mlp,1,173,\n", "line 3: priority = 'urgent'; write one of interactive, standard, bulk"),
    (f"{HEADER}\n{GOOD}7,bulk,Ann Smith,1,173,\n", "line 3: model = 'Ann Smith'; write the name of a model"),
    (f"{HEADER}\n{GOOD}7,bulk,mlp,0,173,\n", "line 3: rows = '0'; write the rows of the request"),
    (f"{HEADER}\n{GOOD}7,bulk,mlp,,173,\n", "line 3: rows = ''"),
    (f"{HEADER}\n{GOOD}7,bulk,mlp,1,-173,\n", "line 3: bytes = '-173'"),
    (f"{HEADER}\n{GOOD}7,bulk,mlp,1,173,-5\n", "line 3: deadline_ms = '-5'"),
    (f"{HEADER}\n{GOOD}7,bulk,mlp,1,173,NaN\n", "line 3: deadline_ms = 'NaN'"),
    (f"{HEADER}\n{GOOD}7,bulk,mlp,1\n", "line 3: has 4 values, not 6"),
    (f"{HEADER}\n{GOOD}\n{GOOD}", "line 3: has 1 values, not 6"),
    (f"{HEADER}\n{GOOD}7,bulk,mlp,1,17", "line 3: '7,bulk,mlp,1,17' has no line break: the file was cut off"),
    (f"{HEADER}\n{GOOD}{'x' * 1000}", "line 3: is longer than 1000 characters"),
    (f"{HEADER}\n{GOOD}6,bulk,mlp,1,173,\n", "line 3: at_us = 6 is before the 7 of line 2; sort the lines"),
    (
        f"{HEADER}\n{GOOD}60000008,bulk,mlp,1,173,\n",
        "line 3: at_us = 60000008 comes 60.000001 s after line 2, a gap of more than 60 s: requests are missing; "
        "if it really was so quiet, say --gap-s-max 61",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(BadTrace) as caught:
        read(io.StringIO(text))
    assert message in str(caught.value)


def test_a_longer_silence_may_be_allowed() -> None:
    text = f"{HEADER}\n{GOOD}60000008,bulk,mlp,1,173,\n"
    assert len(read(io.StringIO(text), gap_s_max=61)) == 2


def test_the_number_of_requests_and_models_is_bounded() -> None:
    with pytest.raises(BadTrace, match="line 4: there are more than 2 requests"):
        read([f"{HEADER}\n", GOOD, GOOD, GOOD], requests_max=2)
    lines = (f"7,bulk,m{i},1,1,\n" for i in range(traces.MODELS_MAX + 1))
    with pytest.raises(BadTrace, match=f"line {traces.MODELS_MAX + 2}: model = 'm{traces.MODELS_MAX}'"):
        read([f"{HEADER}\n", *lines])


@pytest.mark.parametrize("counts", [[], [7], [7, 3], [0, 0, 3]])
def test_dispersion_of_less_than_two_seconds_is_unknown(counts: list[int]) -> None:
    assert np.isnan(dispersion(np.array(counts, np.int64)))


def test_dispersion_of_equal_seconds_is_zero() -> None:
    assert dispersion(np.array([2, 2, 2, 1])) == 0
