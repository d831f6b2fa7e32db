"""A window through coalesce and the actors: each request ends once, with its own rows."""

from __future__ import annotations

import hashlib
import hmac
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.repository import load_repository
from kernels.session import Session
from kernels.spec import ModelSpec, TensorSpec
from schemas import framing
from schemas.errors import IntegrityError
from schemas.tensors import join_bytes, split_bytes
from streams.batching import COLUMNS_BYTES, cuts
from streams.coalesce import PLANS_MAX, pseudonyms
from streams.window import Headers
from tests import nets, samples
from tests.samples import NOW_MS, Foreign, Record, Wild, damaged, encoded, request, spec, tensor, window
from tests.stages import KEY, Ends, Identity, actor, coalesce, outputs, through

F32 = np.float32
WORDS = spec(
    "words",
    inputs=(TensorSpec("features", "BYTES", ("n",)),),
    outputs=(TensorSpec("value", "BYTES", ("n",)),),
)
SPECS = [
    spec(),
    spec(version="2", features=2),
    spec("wide", features=40, allow_nan=True),
    spec(
        "vary", inputs=(TensorSpec("features", "INT64", ("n", 2)),), outputs=(TensorSpec("value", "INT64", ("n", 2)),)
    ),
    WORDS,
]
REPLIES = {"replies.a": 3, "replies.b": 1}


class Mixed:
    """Random windows: good requests of several models and shapes, bad ones of each kind, bytes that are none."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.wild = Wild(seed)
        self.foreign = Foreign(self.rnd)
        self.pool = [self.values() for _ in range(40)]

    def values(self) -> tuple[ModelSpec, np.ndarray[Any, Any]]:
        rnd = self.rnd
        model = rnd.choice(SPECS)
        rows = rnd.choice((1, 1, 1, 1, 2, 7, 40))
        rng = np.random.default_rng(rnd.randrange(2**32))
        if model.model == "vary":
            return model, rng.integers(-(2**60), 2**60, (rows, rnd.choice((1, 3)), 2))
        if model.model == "words":
            texts = [[rnd.choice(("", "é", "red\0", "x" * 30)) for _ in range(2)] for _ in range(rows)]
            return model, np.array(texts, object)
        (width,) = model.inputs[0].shape
        return model, rng.standard_normal((rows, int(width))).astype(F32)

    def record(self) -> tuple[Record, ModelSpec]:
        rnd = self.rnd
        model, values = rnd.choice(self.pool)
        newest = model.model != "net" or model.version == "2"
        record = request(
            [tensor("features", values)],
            model=model.model,
            version=rnd.choice((None, model.version)) if newest else model.version,
            request_id=rnd.choice(("a", "b", f"id-{rnd.randrange(10**9)}")),
            deadline=rnd.choice((None, None, NOW_MS, NOW_MS + 60_000)),
            subject=rnd.choice((None, "ann", "böb")),
            attributes=rnd.choice(({}, {"sex": "f"}, {"sex": "m", "age": "40"})),
            consent_id=rnd.choice((None, "c")),
            purpose=rnd.choice((None, "")),
            parameters=rnd.choice(({}, {"k": "v"})),
        )
        return record, model

    def spoiled(self) -> Record:
        rnd = self.rnd
        record, model = self.record()
        (each,) = record["inputs"]
        wrong: list[dict[str, Any]] = [
            {"model": "nett"},
            {"version": "77"},
            {"request_id": rnd.choice(("", "a\0", "x" * 41, "\n"))},
            {"subject": rnd.choice(("\0", "s" * 101))},
            {"attributes": rnd.choice(({"a": "\0"}, {"a": "v" * 101}, {str(i): "" for i in range(65)}))},
            {"deadline": rnd.choice((NOW_MS - 1, 0, -(2**63)))},
            {"inputs": []},
            {"inputs": [each, each]},
            {"inputs": [{**each, "name": "other"}]},
            {"inputs": [{**each, "datatype": "FP64"}]},
            {"inputs": [{**each, "shape": [-1, *each["shape"][1:]]}]},
            {"inputs": [{**each, "shape": each["shape"][:1]}]},
            {"inputs": [{**each, "shape": [0, *each["shape"][1:]], "data": b""}]},
            {"inputs": [{**each, "shape": [5000, *each["shape"][1:]]}]},
            {"inputs": [{**each, "data": each["data"] + b"x"}]},
        ]
        if model.model == "net":
            shape, width = each["shape"], each["shape"][1]
            wrong.append({"inputs": [{**each, "data": np.full(shape, np.nan, F32).tobytes()}]})
            wrong.append(
                {"inputs": [{**each, "shape": [shape[0], width + 1], "data": b"\0" * 4 * shape[0] * (width + 1)}]}
            )
        return {**record, **rnd.choice(wrong)}

    def value(self) -> tuple[bytes | None, Record | None]:
        """A value, and the request if it is a good one."""
        rnd = self.rnd
        kind = rnd.random()
        if kind < 0.6:
            record, _ = self.record()
            return (self.foreign.request(record) if rnd.random() < 0.1 else encoded(record)), record
        if kind < 0.8:
            return encoded(self.spoiled()), None
        if kind < 0.95:
            return damaged(encoded(self.record()[0]), rnd), None
        return rnd.choice((None, b"", b"\0\0\0\0\1", encoded(self.wild.record()))), None

    def headers(self) -> Headers | None:
        rnd = self.rnd
        if rnd.random() < 0.6:
            return None
        found: Headers = [("traceparent", b"00-%032x" % rnd.getrandbits(90)), ("own", b"1")]
        if rnd.random() < 0.5:
            found += [
                ("kafka_replyTopic", rnd.choice((b"replies.a", b"replies.b", b"replies.c", b"t.decisions", b"x")))
            ]
            found += [("kafka_replyPartition", rnd.choice((b"0", b"2", b"\0\0\0\0", b"zz")))]
        return found


def check_answer(ends: Ends, offset: int, record: Record, headers: Headers | None) -> None:
    """The request's own rows, bit for bit, under its own name, where it asked for them."""
    (result,) = ends.results[offset]
    ((topic, partition, key, found),) = ends.sent[offset]
    assert (result["request_id"], key) == (record["request_id"], record["request_id"].encode())
    passed = [each for each in headers or [] if each[0] == "traceparent"]
    assert found[3:] == passed
    asked = dict(headers or [])
    if reason := ends.code(offset):
        assert reason in ("reply_topic_forbidden", "reply_topic_missing", "reply_partition_missing")
        assert topic == "t.results.standard"
        return
    wanted = asked.get("kafka_replyTopic")
    assert topic == (wanted.decode() if wanted else "t.results.standard")
    assert partition == (
        -1 if wanted is None else {b"0": 0, b"\0\0\0\0": 0, b"2": 2}[asked["kafka_replyPartition"] or b""]
    )
    (sent,) = record["inputs"]
    assert result["outputs"] == [{**sent, "name": "value"}]
    (decision,) = ends.decisions[offset]
    subject = record["subject"] and pseudonyms(KEY)(record["subject"])
    assert decision["subject_pseudonym"] == subject
    fields = ("request_id", "consent_id", "purpose", "attributes")
    assert [decision[field] for field in fields] == [record[field] for field in fields]
    assert decision["rows"] == sent["shape"][0]


@pytest.mark.parametrize("part", range(3))
def test_fuzz_counts_in_are_counts_out(part: int) -> None:
    """A quarter of the records of `make test`; the law of the codec and the pipeline take the others."""
    mixed, left = Mixed(100 + part), samples.FUZZ_RECORDS // 4 // 3
    kernels = {each.model: Identity() for each in SPECS}
    actors = [actor(each, kernels[each.model], mixed.rnd.choice((3, 64))) for each in SPECS]
    stage = coalesce(SPECS, replies=REPLIES, batch_bytes_max=2000, run_rows_max=50)
    codes: set[str | None] = set()
    while left > 0:
        n = min(left, mixed.rnd.choice((1, 5, 100, 800)))
        left -= n
        drawn = [mixed.value() for _ in range(n)]
        headers = [mixed.headers() for _ in range(n)]
        ends = through([value for value, _ in drawn], stage, actors, headers)
        ends.check(n)
        for offset, (_, record) in enumerate(drawn):
            codes.add(ends.code(offset))
            if record is not None:
                check_answer(ends, offset, record, headers[offset])
    assert len(codes) >= 25, codes
    assert all(rows <= 64 for kernel in kernels.values() for rows in kernel.runs)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_cuts_against_a_slow_oracle(weights: list[int], most: int) -> None:
    slow: list[list[int]] = []
    for i, weight in enumerate(weights):
        if slow and sum(weights[j] for j in slow[-1]) + weight <= most:
            slow[-1].append(i)
        else:
            slow.append([i])
    assert [list(range(*each.indices(len(weights)))) for each in cuts(np.array(weights, np.int64), most)] == slow


def features(*shape: int, **fields: Any) -> bytes:
    values = np.random.default_rng(sum(shape)).standard_normal(shape).astype(F32)
    return encoded(request([tensor("features", values)], **fields))


def batches(ends: Ends) -> list[Record]:
    return [framing.decode(value)[1] for _, value in ends.batches]


def test_batches_stay_within_rows_and_bytes() -> None:
    values = [features(rows, 3) for rows in (1, 5, 3, 9, 2, 2, 1)]
    ends = through(values, coalesce(SPECS[:1], run_rows_max=6), [])
    rows = [np.frombuffer(each["rows"], "<i4").tolist() for each in batches(ends)]
    assert rows == [[1, 5], [3], [9], [2, 2, 1]]
    sizes = np.array([len(value) + COLUMNS_BYTES for value in values])
    most = int(sizes[:2].sum())
    ends = through(values, coalesce(SPECS[:1], batch_bytes_max=most), [])
    counts = [each["count"] for each in batches(ends)]
    assert counts == [part.stop - part.start for part in cuts(sizes, most)]
    assert counts[0] == 2


def test_what_few_requests_have_is_not_written_for_all() -> None:
    (batch,) = batches(through([features(1, 3), features(2, 3)], coalesce(SPECS[:1]), []))
    assert [batch[name] for name in ("deadline", "attributes", "reply", "padded")] == [b""] * 4
    assert [batch[name]["lengths"] for name in ("subject", "consent_id", "purpose", "headers")] == [b""] * 4


def test_a_deadline_is_over_at_coalesce_or_at_the_actor() -> None:
    stage, model = coalesce(SPECS[:1]), SPECS[0]
    kernel = Identity()
    values = [features(1, 3, deadline=NOW_MS + each) for each in (-1, 0, 5, 500)] + [features(1, 3)]
    ends = through(values, stage, [actor(model, kernel)], later_ms=NOW_MS + 100)
    ends.check(5)
    assert [ends.results[i][0]["status"] for i in range(5)] == ["EXPIRED"] * 3 + ["OK"] * 2
    assert [ends.code(i) for i in range(5)] == ["deadline_expired"] * 3 + [None] * 2
    assert kernel.runs == [2]
    assert str(NOW_MS - 1) in ends.message(0)
    assert "run" in ends.message(1)


def test_runs_are_cut_to_the_best_rows() -> None:
    kernel = Identity()
    values = [features(rows, 3, request_id=str(i)) for i, rows in enumerate((7, 1, 30, 2))]
    ends = through(values, coalesce(SPECS[:1]), [actor(SPECS[0], kernel, rows_max=16)])
    ends.check(4)
    assert kernel.runs == [16, 16, 8]
    assert [ends.decisions[i][0]["batch_rows"] for i in range(4)] == [16, 16, 16, 8]
    for i in range(4):
        (sent,) = framing.decode(values[i])[1]["inputs"]
        assert ends.results[i][0]["outputs"][0]["data"] == sent["data"]


def test_an_answer_too_large_fails_alone() -> None:
    values = [features(rows, 3) for rows in (1, 100, 2)]
    ends = through(values, coalesce(SPECS[:1]), [actor(SPECS[0], Identity(), result_bytes_max=400)])
    ends.check(3)
    assert [ends.code(i) for i in range(3)] == [None, "answer_too_large", None]
    assert ends.results[1][0]["status"] == "FAILED"
    assert "400 bytes" in ends.message(1)
    assert "fewer rows" in ends.message(1)
    assert outputs(ends.results[2][0])["value"].shape == (2, 3)


def test_bytes_tensors() -> None:
    texts = [["red", ""], ["é" * 40, "x\0"]]
    value = encoded(request([tensor("features", np.array(texts, object))], model="words"))
    one = encoded(request([tensor("features", np.array([["y", "z"]], object))], model="words"))
    ends = through([value, one], coalesce([WORDS]), [actor(WORDS, Identity())])
    ends.check(2)
    (output,) = ends.results[0][0]["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert [each.decode() for each in split_bytes(output["data"])] == [text for row in texts for text in row]
    assert ends.results[1][0]["outputs"][0]["data"] == join_bytes([b"y", b"z"])


def test_padding_to_buckets_in_a_real_session(tmp_path: Path) -> None:
    folder = tmp_path / "seq" / "1"
    nets.sequence(folder / "model.onnx")
    (folder / "model.toml").write_text('padded = "seq"\nbuckets = [4, 8]\n')
    (model,) = load_repository(tmp_path).values()
    session = Session(model)
    rng = np.random.default_rng(0)
    lengths = [(1, 3), (2, 4), (1, 1), (1, 5), (3, 8), (2, 3), (1, 6)]
    inputs = [{"ids": rng.integers(0, 100, shape), "mask": np.ones(shape, np.int64)} for shape in lengths]
    values = [encoded(request([tensor(name, each[name]) for name in ("mask", "ids")], "seq")) for each in inputs]
    ends = through(values, coalesce([model]), [actor(model, session)])
    ends.check(len(values))
    assert len(ends.batches) == 2 + 4  # by length, so that each batch says how much of it is padding
    for i, each in enumerate(inputs):
        found, wanted = outputs(ends.results[i][0]), session.run(each)
        assert {name: array.shape for name, array in found.items()} == {
            name: array.shape for name, array in wanted.items()
        }
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_pseudonyms_are_keyed() -> None:
    assert pseudonyms(KEY)("ann") == hmac.new(KEY, b"ann", hashlib.sha256).hexdigest()[:32]
    assert pseudonyms(KEY)("ann") != pseudonyms(b"another key 0123")("ann")


def test_no_subject_in_the_clear() -> None:
    values = [features(1, 3, subject="ann-the-subject"), features(1, 4, subject="ann-the-subject")]
    stage = coalesce(SPECS[:1])
    outcome = stage(window(values), NOW_MS)
    assert all(b"ann-the-subject" not in value for block in outcome.blocks for value in block.values)


def test_names_that_clients_invent_are_not_stored() -> None:
    ends = through(
        [features(1, 3, model=f"m{i}") for i in range(3)] + [features(1, 3, version="9")], coalesce(SPECS), []
    )
    ends.check(4)
    assert [(ends.decisions[i][0]["model"], ends.decisions[i][0]["version"]) for i in range(4)] == [
        ("(unknown)", None),
        ("(unknown)", None),
        ("(unknown)", None),
        ("net", None),
    ]
    assert [ends.results[i][0]["model"] for i in range(4)] == ["m0", "m1", "m2", "net"]


def test_plans_are_bounded() -> None:
    stage = coalesce(SPECS[:1])
    for start in range(0, PLANS_MAX + 600, 600):
        stage(window([features(1, 3, model=f"m{i}") for i in range(start, start + 600)]), NOW_MS)
    assert 0 < len(stage.plans) <= PLANS_MAX


def test_only_batches_lie_on_a_batch_topic() -> None:
    model = actor(SPECS[0], Identity())
    with pytest.raises(IntegrityError, match="only coalesce may write"):
        model(window([framing.encode("source_ranges", {"topic": "t", "worker": "w", "ranges": []})]), NOW_MS)
