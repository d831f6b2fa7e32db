"""Whatever a client sends ends once: answered with a reason, or a dead letter with its own bytes; neighbours go on."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest

from audit.verify import verify
from tests import samples
from tests.acceptance.client import REQUEST, Answer, Client, Record, Source, framed, request, until
from tests.acceptance.conftest import Service

HEADERS: list[tuple[str, bytes | None]] = [("own", b"\xff"), ("traceparent", b"00-1-2-3")]
PIPELINE_RECORDS = samples.FUZZ_RECORDS // 4


def pixels(rows: int = 1, width: int = 64, **fields: Any) -> Record:
    data = np.ones((max(rows, 0), width), "<f4").tobytes()
    return {"name": "features", "datatype": "FP32", "shape": [rows, width], "data": data, **fields}


def digits(*inputs: Record, **fields: Any) -> bytes:
    return framed({**request("digits", inputs or [pixels()]), **fields})


def unknown(model: str) -> bytes:
    return framed(request(model, [pixels()]))


NAN = np.full((1, 64), np.nan, "<f4").tobytes()
ANSWERED = [
    (unknown("digit"), "unknown_model"),
    (digits(version="9"), "unknown_version"),
    (digits(pixels(name="pixels")), "unknown_input"),
    (framed(request("digits", [])), "missing_input"),
    (digits(pixels(), pixels()), "duplicate_input"),
    (digits(pixels(datatype="FP64")), "wrong_datatype"),
    (digits(pixels(datatype="words")), "wrong_datatype"),
    (digits(pixels(shape=[64])), "wrong_rank"),
    (digits(pixels(width=63)), "wrong_shape"),
    (digits(pixels(shape=[-1, 64])), "negative_shape"),
    (digits(pixels(shape=[1, -64])), "negative_shape"),
    (digits(pixels(rows=0)), "zero_rows"),
    (digits(pixels(rows=1025)), "too_many_rows"),
    (digits(pixels(data=b"1234")), "wrong_byte_count"),
    (digits(pixels(data=NAN)), "nan_input"),
    (digits(request_id=""), "bad_request_id"),
    (digits(request_id="a\x01"), "bad_request_id"),
    (digits(request_id="a\0b"), "nul_character"),
    (digits(subject="\0"), "nul_character"),
    (digits(attributes={"sex\0": "f"}), "nul_character"),
    (digits(purpose="p" * 1025), "text_too_long"),
    (digits(attributes={str(i): "" for i in range(65)}), "too_many_items"),
    (digits(pixels(shape=[1] * 17)), "too_many_items"),
    (digits(request_id="i" * 4_000_000), "text_too_long"),
    (digits(pixels(data=b"x" * 2_000_000)), "request_too_large"),
    (unknown("m" * 4_000_000), "request_too_large"),
]
LETTERS = [
    (None, "empty_value"),
    (b"", "unknown_framing"),
    (b'{"request_id": "r"}', "unknown_framing"),
    (b"\xc3\x01" + bytes(8) + b"rest", "unknown_schema"),
    (b"\0\0\0\0\x05rest", "unknown_schema"),
    (digits()[:-9], "undecodable"),
    (REQUEST.header, "undecodable"),
    (REQUEST.header + b"\x04\xff\xfe" + digits()[12:], "undecodable"),
]


def check_result(answer: Answer, code: str, service: Service) -> None:
    result = answer.record()
    assert (result["status"], result["error_code"], result["outputs"]) == ("REJECTED", code, [])
    assert answer.topic == f"{service.prefix}.results.standard"
    assert answer.headers[3:] == HEADERS[1:]


def check_letter(answer: Answer, code: str, value: bytes | None, number: int, source: Source) -> None:
    assert answer.topic.endswith(".deadletter")
    assert (answer.value, answer.key) == (value or b"", b"k%d" % number)
    assert answer.headers[:2] == HEADERS
    named = dict(answer.headers)
    assert (named["lrai_dlt-reason"], named["lrai_dlt-stage"]) == (code.encode(), b"coalesce")
    assert named["lrai_dlt-message"]
    assert int(named["lrai_dlt-original-timestamp"] or b"") > 1_700_000_000_000
    assert answer.source == source


def test_each_ends_as_it_should_and_its_neighbours_go_on(service: Service, client: Client) -> None:
    bad = [*ANSWERED, *LETTERS]
    values = [value for each, _ in bad for value in (each, digits())]
    sources = client.send(values, headers=[HEADERS] * len(values))
    answers = client.wait(sources)
    for number, (source, answer) in enumerate(zip(sources, answers, strict=True)):
        if number % 2:
            assert answer.record()["status"] == "OK"
            continue
        value, code = bad[number // 2]
        if number // 2 < len(ANSWERED):
            check_result(answer, code, service)
        else:
            check_letter(answer, code, value, number, source)


def test_what_a_client_makes_large_stops_nothing(service: Service, client: Client) -> None:
    """Headers, keys and values near the limit of the topic; more attributes in a window than a record holds."""
    large: list[tuple[str, bytes | None]] = [("traceparent", b"x" * 3_000_000)]
    many = {f"{i}": "v" * 1000 for i in range(64)}
    values = [digits(), b"{" * 7_000_000, b"{" * 4_000_000, unknown("x"), digits(request_id="\n")]
    values += [digits(attributes={**many, "n": f"{i}"}) for i in range(62)] + [digits(attributes=many, model="x")] * 60
    headers = [large, [], large, large, large] + [HEADERS] * (len(values) - 5)
    answers = client.wait(client.send(values, "bulk", headers))
    assert answers[0].record()["error_code"] == "headers_too_large"
    assert answers[1].topic.endswith(".deadletter")
    assert len(answers[1].value or b"") == 4 * 1024 * 1024
    assert "lrai_dlt-reason" in dict(answers[2].headers)
    for answer in answers[5:]:
        code = answer.record()["error_code"]
        assert code in (None, "text_too_long", "unknown_model", "too_many_items")


def test_dead_letters_are_in_the_store_without_their_bytes(service: Service, client: Client) -> None:
    value = b"a dead letter that names Ann Example"
    (source,) = client.send([value])
    client.wait([source])

    def found() -> list[tuple[Any, ...]]:
        query = """select request_topic, request_partition, request_offset, sha256, size, reason, stage
            from audit.dead_letter where (request_topic, request_partition, request_offset) = (%s, %s, %s)"""
        with psycopg.connect(service.store) as connection:
            return connection.execute(query, source).fetchall()

    until(lambda: bool(found()), 10, lambda: "no dead letter in the store")
    digest = hashlib.sha256(value).digest()
    assert found() == [(*source, digest, len(value), "unknown_framing", "coalesce")]
    with psycopg.connect(service.store) as connection:
        query = "select count(*) from audit.dead_letter t where t::text like '%%Ann Example%%'"
        assert connection.execute(query).fetchone() == (0,)


def fuzzed(rnd: random.Random, good: list[bytes]) -> bytes:
    value = rnd.choice(good)
    return value if rnd.random() < 0.4 else samples.damaged(value, rnd)


def test_fuzz_counts_in_are_counts_out(service: Service, client: Client) -> None:
    """Damaged requests through the whole pipeline."""
    rnd = random.Random(7)
    good = [digits(), digits(pixels(3), attributes={"a": "b"}, subject="s"), framed(request("iris", [pixels(width=4)]))]
    good += [digits(deadline=datetime(2100, 1, 1, tzinfo=UTC)), digits(version="1", consent_id="c")]
    sources: list[Source] = []
    for priority in ("interactive", "standard", "bulk"):
        values = [fuzzed(rnd, good) for _ in range(PIPELINE_RECORDS // 3)]
        sources += client.send(values, priority)
    client.wait(sources, 120)


def test_the_audit_is_complete(service: Service, client: Client) -> None:
    """After all of the above: nothing is missing, nothing is there twice, nothing was refused by the store."""
    letters = sum(answers[0].topic.endswith(".deadletter") for answers in client.answers.values())
    until(
        lambda: (
            verify(service.store, datetime.now(UTC), 0).dead_letters == letters
            and verify(service.store, datetime.now(UTC), 0).decisions == len(client.answers) - letters
        ),
        30,
        lambda: verify(service.store, datetime.now(UTC), 0),
    )
    report = verify(service.store, datetime.now(UTC), 0)
    assert report.ok, report.problems
    assert (report.records, report.refused) == (len(client.answers), 0)
    assert {len(answers) for answers in client.answers.values()} == {1}


def test_nothing_was_restarted(service: Service, client: Client) -> None:
    log = service.log.read_text()
    assert '"restarted"' not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("code", sorted({code for _, code in [*ANSWERED, *LETTERS]}))
def test_each_code_is_in_the_store(service: Service, client: Client, code: str) -> None:
    query = """select count(*)
        from (select error_code c from audit.decision union all select reason from audit.dead_letter) f"""
    with psycopg.connect(service.store) as connection:
        (count,) = connection.execute(f"{query} where c = %s", (code,)).fetchone() or (0,)
    assert count > 0
