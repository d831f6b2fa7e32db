"""Headers that come back, and where an answer goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.headers import ReplyTopics, decode_headers, encode_headers, is_passed, reply_of, source_headers
from streams.window import Headers


def allowed() -> ReplyTopics:
    topics = ReplyTopics("lrai", ["replies.*", "exactly", "lrai*", "__*"])
    topics.partitions = {"replies.a": 3, "exactly": 1}
    return topics


@pytest.mark.parametrize(
    ("topic", "allows"),
    [
        ("replies.a", True),
        ("replies.", True),
        ("replies", False),
        ("REPLIES.a", False),
        ("exactly", True),
        ("exactly2", False),
        ("lrai.results.bulk", False),
        ("lrai", False),
        ("lrai-other", True),
        ("__consumer_offsets", False),
        ("", False),
    ],
)
def test_the_allow_list_never_covers_own_topics(topic: str, allows: bool) -> None:
    assert allowed().allows(topic) is allows


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ([], None),
        ([("kafka_replyPartition", b"1")], None),
        ([("kafka_replyTopic", b"replies.a")], ("replies.a", -1)),
        ([("kafka_replyTopic", b"replies.a"), ("kafka_replyPartition", b"2")], ("replies.a", 2)),
        ([("kafka_replyTopic", b"replies.a"), ("kafka_replyPartition", b"\0\0\0\x02")], ("replies.a", 2)),
        ([("kafka_replyTopic", b"replies.a"), ("kafka_replyPartition", b"0000")], ("replies.a", 0)),
        ([("kafka_replyTopic", b"nowhere"), ("kafka_replyTopic", b"exactly")], ("exactly", -1)),
    ],
)
def test_reply_of(headers: Headers, wanted: tuple[str, int] | None) -> None:
    assert reply_of(headers, allowed()) == wanted


@given(st.lists(st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=9)), max_size=5))
def test_headers_are_one_value(headers: Headers) -> None:
    assert decode_headers(encode_headers(headers)) == headers


def test_what_is_passed_on() -> None:
    names = [
        "traceparent",
        "tracestate",
        "kafka_correlationId",
        "ce_id",
        "kafka_replyTopic",
        "own",
        "lrai_request-topic",
    ]
    assert [name for name in names if is_passed(name)] == names[:4]


def test_source_headers() -> None:
    assert source_headers(b"t", 3, 2**40) == [
        ("lrai_request-topic", b"t"),
        ("lrai_request-partition", b"3"),
        ("lrai_request-offset", b"1099511627776"),
    ]
