"""A replayed trace asks what the trace says; statuses are read without decoding the rest."""

from __future__ import annotations

import numpy as np
import pytest

from schemas import framing, requests, results
from schemas.columns import Texts
from streams.registry import Registry
from tests.bench.reader import statuses
from tests.bench.replay import finished, inputs_of, records
from tests.bench.traces import MIXED, bursty, heavy_tailed

INPUTS = {kind.model: ("features", kind.features) for kind in MIXED}
START_MS = 1_790_000_000_000.0


@pytest.mark.parametrize("generator", [bursty, heavy_tailed])
def test_records_are_those_of_the_trace(generator: type) -> None:
    trace = generator(200.0, 5.0, MIXED)
    values = finished(records(trace, INPUTS), trace, START_MS)
    np.testing.assert_array_equal(trace.bytes, [len(value) for value in values])
    decoded = requests.decode(values, Registry(None, lambda: None))
    assert not decoded.bad and not decoded.fallback
    found = decoded.requests
    assert found.request_id.to_strings() == [f"{number:012d}" for number in range(len(trace))]
    np.testing.assert_array_equal(found.tensors[0].first, trace.rows)
    stated = ~np.isnan(trace.deadline_s)
    assert stated.any()
    np.testing.assert_array_equal(found.deadline != requests.NO_DEADLINE, stated)
    wanted = START_MS + 1000 * (trace.at_s + trace.deadline_s)[stated]
    np.testing.assert_allclose(found.deadline[stated], wanted, rtol=0, atol=0.5)
    for number in range(0, len(trace), 97):
        record = requests.read_framed(values[number])
        assert record["model"] == trace.models[trace.model[number]]
        assert record["inputs"][0]["shape"] == [trace.rows[number], INPUTS[record["model"]][1]]


def test_statuses() -> None:
    header, one = framing.header("inference_result"), np.ones(1, np.int64)
    output = results.OutputColumn("p", "FP32", (1,), Texts.of([bytes(4)]))
    release = ("mlp-a", "1", "int8", None)
    fine = results.encode_ok(header, Texts.of(["7"]), release, [output], one, np.zeros(1), np.zeros(1)).to_list()[0]
    values = [
        results.encode_error(header, "1", "mlp", None, results.EXPIRED, "expired", "too late"),
        fine or b"",
        results.encode_error(header, "12345", "risk-scorer", "2", results.REJECTED, "wrong_shape", "x" * 300),
        results.encode_error(header, "", "m", "1", results.FAILED, "failed", ""),
    ]
    assert statuses(values).tolist() == [results.EXPIRED, results.OK, results.REJECTED, results.FAILED]
    assert [framing.decode(value)[1]["status"] for value in values] == ["EXPIRED", "OK", "REJECTED", "FAILED"]


def test_inputs_that_are_missing_or_wrong() -> None:
    assert inputs_of(["mlp:x:30"], ["mlp"]) == {"mlp": ("x", 30)}
    with pytest.raises(ValueError, match="'mlp:30': write MODEL:INPUT:FEATURES"):
        inputs_of(["mlp:30"], ["mlp"])
    with pytest.raises(ValueError, match="the trace asks trees too"):
        inputs_of(["mlp:x:30"], ["mlp", "trees"])
