"""Every way to be refused: its code, and a message that names field, value and fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.spec import TensorSpec
from schemas import framing
from schemas.tensors import join_bytes
from streams.admission import Catalog, clip
from streams.window import Headers
from tests.samples import NOW_MS, Record, encoded, request, spec, tensor
from tests.stages import Ends, Identity, actor, coalesce, through

NET = spec(request_rows_max=8)
TEXT = spec("text", inputs=(TensorSpec("words", "BYTES", (2,)),))
TWO = spec(
    "two",
    inputs=(TensorSpec("ids", "INT64", ("seq",)), TensorSpec("mask", "INT64", ("seq",))),
    padded="seq",
    buckets=(4, 8),
)
WIDE = spec("wide", inputs=(TensorSpec("features", "FP32", ("n", "m")),))
SPECS = [NET, *(spec(version=each, request_rows_max=8) for each in ("2", "10")), TEXT, TWO, WIDE]
ONE = np.ones((1, 3), np.float32)


def good(**fields: Any) -> Record:
    return request([tensor("features", ONE)], **fields)


def changed(**fields: Any) -> Record:
    return request([{**tensor("features", ONE), **fields}])


def ints(name: str, *shape: int) -> Record:
    return tensor(name, np.ones(shape, np.int64))


def words(data: bytes, rows: int = 1) -> Record:
    return request([{"name": "words", "datatype": "BYTES", "shape": [rows, 2], "data": data}], model="text")


F32 = np.float32
REJECTED: list[tuple[str, Record, list[str]]] = [
    ("unknown_model", good(model="nett"), ["model", "'nett'", "did you mean 'net'?"]),
    ("unknown_model", good(model="zzzz"), ["model", "'zzzz'", "known: net, text, two, wide"]),
    ("unknown_model", good(model=""), ["model = ''"]),
    ("unknown_version", good(version="3"), ["version = '3'", "1, 2, 10", "null asks for the newest"]),
    ("unknown_version", good(version="1\n"), ["version = '1\\n'"]),
    ("nul_character", good(model="net\0"), ["model", "U+0000", "remove it"]),
    ("nul_character", good(version="1\0"), ["version", "U+0000"]),
    ("nul_character", good(request_id="a\0b"), ["request_id", "U+0000", "remove it"]),
    ("nul_character", good(subject="\0"), ["subject", "U+0000"]),
    ("nul_character", good(consent_id="c\0"), ["consent_id", "U+0000"]),
    ("nul_character", good(purpose="\0p"), ["purpose", "U+0000"]),
    ("nul_character", good(attributes={"se\0x": "f"}), ["attributes['se\\x00x']", "U+0000"]),
    ("nul_character", good(attributes={"sex": "\0"}), ["attributes['sex']", "U+0000"]),
    ("nul_character", good(parameters={"a": "\0"}), ["parameters['a']", "U+0000"]),
    ("bad_request_id", good(request_id=""), ["request_id is empty", "send"]),
    ("bad_request_id", good(request_id="a\tb"), ["request_id", "control character"]),
    ("bad_request_id", good(request_id="\x7f"), ["request_id", "control character"]),
    ("text_too_long", good(request_id="é" * 21), ["request_id has 42 bytes", "at most 40"]),
    ("text_too_long", good(subject="s" * 101), ["subject has 101 bytes", "at most 100"]),
    ("text_too_long", good(consent_id="s" * 101), ["consent_id has 101 bytes"]),
    ("text_too_long", good(purpose="s" * 101), ["purpose has 101 bytes"]),
    ("text_too_long", good(attributes={"a": "s" * 101}), ["attributes['a']", "100 bytes"]),
    ("text_too_long", good(parameters={"k" * 101: "s"}), ["parameters[", "100 bytes"]),
    ("too_many_items", good(attributes={str(i): "" for i in range(65)}), ["attributes has 65 items", "at most 64"]),
    ("too_many_items", good(parameters={str(i): "" for i in range(65)}), ["parameters has 65 items"]),
    ("too_many_items", request([tensor("features", ONE)] * 65), ["inputs has 65 items"]),
    ("too_many_items", changed(shape=[1] * 17), ["shape has 17 items", "at most 16"]),
    ("request_too_large", changed(data=b"x" * 101_000), ["101", "at most 100000"]),
    ("unknown_input", request([tensor("feature", ONE)]), ["inputs", "'feature'", "it has features"]),
    ("missing_input", request([]), ["inputs", "'features' is missing", "needs features"]),
    ("missing_input", request([ints("ids", 1, 2)], model="two"), ["'mask' is missing", "needs ids, mask"]),
    ("duplicate_input", request([tensor("features", ONE)] * 2), ["'features' is there 2 times", "once"]),
    ("wrong_datatype", changed(datatype="FP64"), ["inputs['features'].datatype = 'FP64'", "send FP32"]),
    ("wrong_datatype", changed(datatype="float"), ["datatype = 'float'", "FP32"]),
    ("negative_shape", changed(shape=[1, -3]), ["inputs['features'].shape = [rows, -3]", "negative", "[rows, 3]"]),
    ("negative_shape", changed(shape=[-1, 3]), ["inputs['features'].shape", "-1", "negative"]),
    ("wrong_rank", changed(shape=[3]), ["shape = [rows]", "1 dimensions", "[rows, 3]"]),
    ("wrong_rank", changed(shape=[]), ["shape = []", "0 dimensions"]),
    ("wrong_rank", changed(shape=[1, 3, 1]), ["3 dimensions"]),
    ("wrong_shape", changed(shape=[1, 4]), ["shape = [rows, 4]", "[rows, 3]"]),
    ("wrong_shape", request([ints("ids", 1, 2), ints("mask", 1, 3)], model="two"), ["seq is 2 in another input"]),
    ("wrong_shape", request([ints("ids", 1, 9), ints("mask", 1, 9)], model="two"), ["seq = 9", "longest", "8"]),
    (
        "wrong_shape",
        request([{"name": "features", "datatype": "FP32", "shape": [1, 2**40, 2**40], "data": b""}], model="wide"),
        ["numbers a row", "at most 2147483648"],
    ),
    ("zero_rows", changed(shape=[0, 3], data=b""), ["inputs['features'].shape[0] = 0 rows", "at least one"]),
    ("too_many_rows", request([tensor("features", np.ones((9, 3), F32))]), ["shape[0] = 9 rows", "at most 8"]),
    ("too_many_rows", changed(shape=[2**62, 3]), [str(2**62), "at most 8"]),
    (
        "rows_differ",
        request([ints("ids", 2, 4), ints("mask", 1, 4)], model="two"),
        ["inputs['mask']", "1 rows", "has 2"],
    ),
    (
        "negative_shape",
        request([ints("ids", 1, 4), {**ints("mask", 1, 4), "shape": [-5, 4]}], model="two"),
        ["'mask'", "-5"],
    ),
    ("wrong_byte_count", changed(data=b"1234567"), ["inputs['features'].data has 7 bytes", "need 12", "FP32"]),
    ("wrong_byte_count", words(b"\x01\0\0\0a\x05\0\0\0b"), ["inputs['words'].data", "uint32"]),
    ("wrong_byte_count", words(join_bytes([b"a"])), ["1 elements", "need 2"]),
    ("wrong_byte_count", words(b"\0"), ["inputs['words'].data"]),
    ("invalid_utf8", words(join_bytes([b"a", b"\xff"])), ["inputs['words'].data", "no UTF-8"]),
    ("nan_input", request([tensor("features", np.array([[0, np.nan, 1]], F32))]), ["inputs['features'].data", "NaN"]),
]


def ended(records: list[Record], headers: list[Headers | None] | None = None, **options: Any) -> Ends:
    actors = [actor(each, Identity(each.inputs[0].name)) for each in SPECS]
    return through([encoded(each) for each in records], coalesce(SPECS, **options), actors, headers)


@pytest.mark.parametrize(
    ("code", "record", "says"), REJECTED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_request_is_told_what_to_correct(code: str, record: Record, says: list[str]) -> None:
    """Between two good ones, which are answered."""
    ends = ended([good(request_id="a"), record, good(request_id="b")])
    ends.check(3)
    assert [ends.code(i) for i in range(3)] == [None, code, None]
    (result,) = ends.results[1]
    assert result["status"] == "REJECTED"
    message = ends.message(1)
    assert all(part in message for part in says), message
    assert "\0" not in message
    assert len(message) < 1000


def test_every_bad_request_in_one_window() -> None:
    """All together: the verdict of none depends on its neighbours."""
    records = [each for _, record, _ in REJECTED for each in (record, good())]
    ends = ended(records)
    ends.check(len(records))
    wanted = [each for code, _, _ in REJECTED for each in (code, None)]
    assert [ends.code(i) for i in range(len(records))] == wanted
    alone = ended([REJECTED[0][1]])
    assert alone.message(0) == ends.message(0)


def replying(topic: bytes | None, partition: bytes | None = None) -> Headers:
    found: Headers = [("kafka_replyTopic", topic)]
    return found if partition is None else [*found, ("kafka_replyPartition", partition)]


REPLIES: list[tuple[str, Headers, list[str]]] = [
    ("reply_topic_forbidden", replying(b"other"), ["kafka_replyTopic = 'other'", "reply_topics"]),
    ("reply_topic_forbidden", replying(b"t.results.bulk"), ["'t.results.bulk'"]),
    ("reply_topic_forbidden", replying(b"__consumer_offsets"), ["__consumer_offsets"]),
    ("reply_topic_forbidden", replying(b""), ["''"]),
    ("reply_topic_forbidden", replying(None), ["''"]),
    ("reply_topic_forbidden", replying(b"\xff\0"), ["kafka_replyTopic"]),
    ("reply_topic_missing", replying(b"replies.b"), ["kafka_replyTopic = 'replies.b'", "create it"]),
    ("reply_partition_missing", replying(b"replies.a", b"2"), ["kafka_replyPartition = 2", "0 to 1"]),
    ("reply_partition_missing", replying(b"replies.a", b"\0\0\0\x02"), ["kafka_replyPartition = 2"]),
    ("reply_partition_missing", replying(b"replies.a", b"\xff\xff\xff\xff"), ["kafka_replyPartition = -1"]),
    ("reply_partition_missing", replying(b"replies.a", b"one"), ["kafka_replyPartition", "b'one'"]),
    ("reply_partition_missing", replying(b"replies.a", b"9" * 40), ["kafka_replyPartition"]),
]


@pytest.mark.parametrize(("code", "headers", "says"), REPLIES)
def test_a_bad_reply_topic_is_answered_at_home(code: str, headers: Headers, says: list[str]) -> None:
    ends = ended([good(), good(), good()], [None, headers, None], replies={"replies.a": 2})
    ends.check(3)
    assert [ends.code(i) for i in range(3)] == [None, code, None]
    assert all(part in ends.message(1) for part in says), ends.message(1)
    assert ends.sent[1][0][:2] == ("t.results.standard", -1)


LETTERS: list[tuple[str, bytes | None, list[str]]] = [
    ("empty_value", None, ["no value", "InferenceRequest"]),
    ("unknown_framing", b"", ["nothing", "c301"]),
    ("unknown_framing", b"hello", ["68656c6c", "00 and a registry id"]),
    ("unknown_schema", b"\xc3\x01abcdefgh", ["6162636465666768", "inference_request.avsc"]),
    ("unknown_schema", b"\0\0\0\x01\x01rest", ["registry id 257"]),
    ("undecodable", framing.header("inference_request") + b"\x08ab", ["no InferenceRequest"]),
    (
        "undecodable",
        framing.header("inference_request") + b"\x04\xff\xfe" + encoded(good())[12:],
        ["no InferenceRequest"],
    ),
]


@pytest.mark.parametrize(("code", "value", "says"), LETTERS)
def test_what_is_no_request_is_a_dead_letter(code: str, value: bytes | None, says: list[str]) -> None:
    headers: Headers = [("own", b"\xff"), ("empty", None)]
    actors = [actor(NET, Identity())]
    stage = coalesce([NET])
    ends = through([encoded(good()), value, encoded(good())], stage, actors, [None, headers, None])
    ends.check(3)
    assert [ends.code(i) for i in range(3)] == [None, code, None]
    assert all(part in ends.message(1) for part in says), ends.message(1)
    ((bytes_, key, named),) = ends.letters[1]
    assert (bytes_, key) == (value or b"", b"key-1")
    assert named == {
        "own": b"\xff",
        "empty": None,
        "lrai_dlt-original-topic": b"t.requests.standard",
        "lrai_dlt-original-partition": b"0",
        "lrai_dlt-original-offset": b"1",
        "lrai_dlt-original-timestamp": b"%d" % (NOW_MS - 20),
        "lrai_dlt-reason": code.encode(),
        "lrai_dlt-message": ends.message(1).encode(),
        "lrai_dlt-stage": b"coalesce",
    }


def test_a_dead_letter_is_cut() -> None:
    ends = through([b"{" * 2001], coalesce([NET]), [])
    ends.check(1)
    assert len(ends.letters[0][0][0]) == 2000
    assert "2001 bytes" in ends.message(0)


@pytest.mark.parametrize("first", [[-1, 3], [0, 3], [9, 3], [2**40, 3]])
def test_a_verdict_on_rows_is_for_one_request(first: list[int]) -> None:
    """The rows are no part of what requests have in common: the stage must not remember the first one's."""
    stage, actors = coalesce([NET]), [actor(NET, Identity())]
    for records in ([changed(shape=first), good()], [good(), changed(shape=first)]):
        ends = through([encoded(each) for each in records], stage, actors)
        ends.check(2)
        assert sorted(ends.code(i) is None for i in range(2)) == [False, True]


def test_a_message_holds_nothing_of_another_request() -> None:
    records = [request([tensor("features", np.ones((rows, 4), F32))]) for rows in (7, 5)]
    ends = ended(records)
    assert "7" not in ends.message(1)


def test_nan_is_found_in_its_request_only() -> None:
    values = [np.ones((rows, 3), F32) for rows in (1, 5, 2, 8, 1)]
    values[1][4, 2] = values[3][0, 0] = np.nan
    values[2][:] = np.inf
    values[2][1] = -np.inf
    ends = ended([request([tensor("features", each)]) for each in values])
    ends.check(5)
    assert [ends.code(i) for i in range(5)] == [None, "nan_input", None, "nan_input", None]


def test_a_model_may_take_nan() -> None:
    takes = spec(allow_nan=True)
    value = encoded(request([tensor("features", np.array([[np.nan, 1, 2]], F32))]))
    ends = through([value], coalesce([takes]), [actor(takes, Identity())])
    ends.check(1)
    assert ends.code(0) is None


def test_the_newest_version_is_the_largest_number() -> None:
    catalog = Catalog({(each.model, each.version): each for each in SPECS})
    assert catalog.find("net", None).version == "10"
    assert catalog.find("net", "2").version == "2"


@pytest.mark.parametrize("value", ["a\0b", "\u202e", "x" * 5000, "ü", 7, "\n", "'\"", "🙂" * 100])
def test_clip_is_bounded_and_printable(value: object) -> None:
    shown = clip(value)
    assert shown.isprintable()
    assert len(shown) <= 84
