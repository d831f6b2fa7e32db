"""What a run found becomes results and decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.spec import TensorSpec
from schemas import framing
from schemas.results import FAILED
from tests.samples import NOW_MS, encoded, request, spec, tensor
from tests.stages import Ends, Identity, actor, coalesce, outputs, through
from workers.answers import Answered, Home, Release, blocks, queue_s
from workers.merge import Merged, merge

F32 = np.float32
LABELLED = spec(
    "labelled",
    outputs=(TensorSpec("probabilities", "FP32", (2,)), TensorSpec("label", "BYTES", ())),
    score=("probabilities", 1),
    threshold=0.5,
    labels=("low", "high"),
)


class Fixed:
    """A kernel whose outputs depend on the first feature alone."""

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        first = inputs["features"][:, 0]
        label = np.array([f"row {value:g}" for value in first.tolist()], object)
        return {"probabilities": np.stack([1 - first, first], axis=1), "label": label}


def labelled(*firsts: float, **fields: Any) -> bytes:
    values = np.zeros((len(firsts), 3), F32)
    values[:, 0] = firsts
    return encoded(request([tensor("features", values)], "labelled", **fields))


def test_scores_decisions_and_words() -> None:
    values = [labelled(0.25), labelled(0.75, 0.5), labelled(0.75, 0.25)]
    ends = through(values, coalesce([LABELLED]), [actor(LABELLED, Fixed())])
    ends.check(3)
    shown = [(ends.decisions[i][0]["score"], ends.decisions[i][0]["decision"]) for i in range(3)]
    assert shown == [("0.25", "low"), ("0.625", "high"), ("0.5", None)]
    (result,) = ends.results[1]
    probabilities, label = result["outputs"]
    assert (probabilities["name"], probabilities["datatype"], probabilities["shape"]) == (
        "probabilities",
        "FP32",
        [2, 2],
    )
    assert np.frombuffer(probabilities["data"], "<f4").tolist() == [0.25, 0.75, 0.5, 0.5]
    assert (label["datatype"], label["shape"]) == ("BYTES", [2])
    assert label["data"] == b"\x08\0\0\0row 0.75\x07\0\0\0row 0.5"
    assert (result["model"], result["version"], result["variant"], result["certificate"]) == (
        "labelled",
        "1",
        "original",
        None,
    )


def merged(n: int = 3) -> Merged:
    stage = coalesce([LABELLED])
    ends = through([labelled(0.5, request_id=str(i)) for i in range(n)], stage, [])
    (found,) = merge([framing.decode(value)[1] for _, value in ends.batches])
    return found


HOME = Home("t.results.standard", framing.header("inference_result"), "t.decisions", "w", 100_000)
RELEASE = Release("labelled", "1", "original")


def test_queue_time_is_never_negative() -> None:
    requests = merged(2)
    waited = queue_s(requests, np.array([0.005, 10.0]), NOW_MS * 1000)
    assert waited.tolist() == [pytest.approx(0.015, abs=1e-5), 0.0]


def test_failed_requests_are_answered_with_their_error() -> None:
    requests = merged()
    failed = Answered.failed(requests, FAILED, "kernel_failed", "the model failed on this input: x")
    ends = Ends()
    ends.add(blocks(LABELLED, RELEASE, [failed], HOME, NOW_MS * 1000)[0])
    assert [ends.results[i][0]["status"] for i in range(3)] == ["FAILED"] * 3
    assert {ends.message(i) for i in range(3)} == {"the model failed on this input: x"}
    assert [ends.decisions[i][0]["batch_rows"] for i in range(3)] == [0, 0, 0]


def test_groups_that_ended_differently_share_one_decision_record() -> None:
    requests = merged()
    half = np.array([True, False, False])
    run = Fixed().run({"features": requests.tensors[0].values[1:]})
    ok = Answered(requests.take(~half), 0, run, None, np.full(2, 0.25), np.array([2, 2]))
    failed = Answered.failed(requests.take(half), FAILED, "kernel_failed", "bad")
    found, _ = blocks(LABELLED, RELEASE, [failed, ok], HOME, NOW_MS * 1000)
    assert [len(each.values) for each in found if each.topic == "t.decisions"] == [1]
    ends = Ends()
    ends.add(found)
    assert [ends.decisions[i][0]["status"] for i in range(3)] == ["FAILED", "OK", "OK"]
    assert [ends.decisions[i][0]["decision"] for i in range(3)] == [None, "high", "high"]
    assert [ends.results[i][0]["execution_s"] for i in range(3)] == [0, 0.25, 0.25]


def test_nothing_answered_makes_nothing() -> None:
    assert blocks(LABELLED, RELEASE, [], HOME, NOW_MS * 1000) == ([], None)


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<i8", "u1", "?", "<f2", "<i2"])
def test_outputs_of_every_kind(kind: str) -> None:
    dtype = np.dtype(kind)
    name = {"f4": "FP32", "f8": "FP64", "i8": "INT64", "u1": "UINT8", "b1": "BOOL", "f2": "FP16", "i2": "INT16"}[
        dtype.str[1:]
    ]
    model = spec(outputs=(TensorSpec("value", name, (3,)),))

    class Casting(Identity):
        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"value": np.asfortranarray(inputs["features"].astype(dtype))}

    values = np.arange(6, dtype=F32).reshape(2, 3)
    ends = through([encoded(request([tensor("features", values)]))], coalesce([model]), [actor(model, Casting())])
    ends.check(1)
    (output,) = ends.results[0][0]["outputs"]
    assert output["datatype"] == name
    assert output["data"] == values.astype(dtype.newbyteorder("<")).tobytes()


def test_an_output_without_columns() -> None:
    model = spec(outputs=(TensorSpec("value", "FP32", ()),))

    class First(Identity):
        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"value": inputs["features"][:, 0]}

    value = encoded(request([tensor("features", np.arange(6, dtype=F32).reshape(2, 3))]))
    ends = through([value, value], coalesce([model]), [actor(model, First())])
    ends.check(2)
    assert outputs(ends.results[1][0])["value"].tolist() == [0, 3]
