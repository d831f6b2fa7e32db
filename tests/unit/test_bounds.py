"""Whatever a client sends, no record is larger than its topic takes: that would end the stage, again and again."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.spec import TensorSpec
from streams.window import Headers
from tests.samples import NOW_MS, encoded, request, spec, tensor, window
from tests.stages import Ends, Identity, actor, coalesce, through
from tests.unit.test_coalesce import SPECS, features

F32 = np.float32
MANY = dict.fromkeys((f"{i:03d}" + "k" * 97 for i in range(63)), "v" * 100)
SOME: Headers = [("ce_id", b"x" * 8000)]
MOST: Headers = [("traceparent", b"x" * 5_000_000)]


class Large:
    """Windows whose records are as large as a client can make them."""

    def __init__(self, n: int) -> None:
        good = request([tensor("features", np.ones((1, 3), F32))])
        one = {f"{i}": "v" * 100 for i in range(64)}
        self.values: dict[str, list[bytes]] = {
            "attributes": [encoded({**good, "attributes": {**MANY, "n": f"{i}"}}) for i in range(n)],
            "rejected": [encoded({**good, "attributes": {**one, "0": f"{i}"}, "model": "x"}) for i in range(n)],
            "request_id": [encoded({**good, "request_id": "i" * 4_000_000, "attributes": one})],
            "bad_id": [encoded({**good, "request_id": "\n", "attributes": {"a": "v" * 4_000_000}})],
            "model": [encoded({**good, "model": "m" * 4_000_000, "version": "1" * 3_000_000})],
            "inputs": [encoded({**good, "inputs": [{**good["inputs"][0], "name": "n" * 4_000_000}]})],
            "letter": [b"{" * 7_000_000],
        }


LARGE = Large(800)


@pytest.mark.parametrize("kind", sorted(LARGE.values))
@pytest.mark.parametrize("headers", [None, SOME, MOST], ids=["none", "some", "most"])
def test_no_record_is_larger_than_its_topic_takes(kind: str, headers: Headers | None) -> None:
    """What a client controls can never abort a transaction."""
    values, seen = LARGE.values[kind], Ends()
    stage, model = (
        coalesce(SPECS[:1], request_bytes_max=1_000_000, batch_bytes_max=2_000_000),
        actor(SPECS[0], Identity()),
    )
    outcome = stage(window(values, [headers] * len(values)), NOW_MS)
    seen.add(outcome.blocks)
    blocks = list(outcome.blocks)
    if seen.batches:
        answered = model(window([value for _, value in seen.batches]), NOW_MS)
        blocks += answered.blocks
        seen.add(answered.blocks)
    seen.check(len(values))
    for block in blocks:
        nothing = [None] * len(block.values)
        for value, key, found in zip(block.values, block.keys or nothing, block.headers or nothing, strict=True):
            size = len(value) + len(key or b"") + sum(len(name) + len(each or b"") for name, each in found or [])
            assert size < (1_048_576 if ".results." in block.topic else 4 * 1_048_576)


def test_headers_that_do_not_fit_the_answer_are_refused() -> None:
    ends = through([features(1, 3)], coalesce(SPECS[:1]), [], [[("tracestate", b"x" * 8192)]])
    ends.check(1)
    assert ends.code(0) == "headers_too_large"
    assert "8192" in ends.message(0)
    assert len(ends.sent[0][0][3]) == 3


def test_padding_beyond_a_batch_is_refused() -> None:
    shape = (TensorSpec("features", "FP32", ("seq",)),)
    model = spec("pad", inputs=shape, padded="seq", buckets=(1000,))
    values = [features(rows, 1, model="pad") for rows in (1, 200, 2)]
    ends = through(values, coalesce([model], batch_bytes_max=100_000), [actor(model, Identity())])
    ends.check(3)
    assert [ends.code(i) for i in range(3)] == [None, "request_too_large", None]
    assert "800000 bytes" in ends.message(1)
    assert "fewer rows" in ends.message(1)


def test_a_request_over_a_bound_is_answered_where_it_asks() -> None:
    value = encoded(request([], attributes={str(i): "" for i in range(65)}))
    headers: Headers = [("kafka_replyTopic", b"replies.a"), ("traceparent", b"t")]
    forbidden: Headers = [("kafka_replyTopic", b"elsewhere"), ("traceparent", b"t")]
    good = features(1, 3)
    stage = coalesce(SPECS[:1], replies={"replies.a": 1})
    ends = through([good, value, value, value], stage, [actor(SPECS[0], Identity())], [None, headers, forbidden, None])
    ends.check(4)
    assert [ends.code(i) for i in range(4)] == [None, *["too_many_items"] * 3]
    assert [ends.sent[i][0][0] for i in range(1, 4)] == ["replies.a", "t.results.standard", "t.results.standard"]
    assert [ends.sent[i][0][3][3:] for i in range(1, 4)] == [[("traceparent", b"t")], [("traceparent", b"t")], []]
