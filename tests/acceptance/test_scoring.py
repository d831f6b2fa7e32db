"""A request in from a stranger, the answer out, and the row that an auditor reads."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import psycopg
import pytest
from psycopg.rows import dict_row

from infra.demo_models import MODELS, SERVED, rows
from tests.acceptance.client import PRIORITIES, Answer, Client, Record, Source, framed, request, until
from tests.acceptance.conftest import Service

KINDS = {"FP32": "<f4", "INT64": "<i8"}
ROW_S = 2.0
SUBJECT = "Ann Example, born 1970"
COLUMNS = """request_id, model, version, variant, status, error_code, score, decision, attributes, subject_pseudonym,
    request_topic, request_partition, request_offset, received_at, answered_at, queue_s, execution_s, batch_rows,
    worker"""


def tensor(name: str, values: npt.NDArray[Any]) -> Record:
    kind = {"<f4": "FP32", "<i8": "INT64"}[values.dtype.str]
    return {"name": name, "datatype": kind, "shape": list(values.shape), "data": values.tobytes()}


def words(name: str, texts: list[str]) -> Record:
    data = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)
    return {"name": name, "datatype": "BYTES", "shape": [len(texts), 1], "data": data}


def directly(service: Service, model: str, inputs: dict[str, Any], version: str = "1") -> dict[str, Any]:
    """What the runtime itself says of the graph."""
    path = service.models / model / version / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def numbers(output: Record) -> npt.NDArray[Any]:
    return np.frombuffer(output["data"], KINDS[output["datatype"]]).reshape(output["shape"])


def texts(output: Record) -> list[str]:
    data, found = output["data"], []
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return found


def same(result: Record, wanted: dict[str, Any]) -> None:
    """A result is what the runtime says; a ZipMap's dictionaries are a matrix on the wire."""
    outputs = {each["name"]: each for each in result["outputs"]}
    assert outputs.keys() == wanted.keys()
    for name, each in wanted.items():
        if isinstance(each, list):
            each = np.array([list(row.values()) for row in each], np.float32)
        if each.dtype.kind == "f":
            np.testing.assert_allclose(numbers(outputs[name]), each, rtol=1e-4, atol=1e-5)
        elif each.dtype.kind == "i":
            assert numbers(outputs[name]).tolist() == each.tolist()
        else:
            assert outputs[name]["shape"] == list(each.shape)
            assert texts(outputs[name]) == each.reshape(-1).tolist()


@pytest.mark.parametrize("model", MODELS)
def test_every_demo_model_on_every_priority(service: Service, client: Client, model: str) -> None:
    data = rows(service.models, model)
    sent: list[tuple[Source, Record, str, npt.NDArray[np.float32]]] = []
    for number, priority in enumerate(PRIORITIES):
        parts = [data.features[start : start + 1 + start % 3] for start in range(number, 30, 3)]
        records = [
            request(model, [tensor("features", part)], f"{model}-{priority}-{i}", version=("1", None)[i % 2])
            for i, part in enumerate(parts)
        ]
        sources = client.send([framed(each) for each in records], priority)
        sent += zip(sources, records, [priority] * len(parts), parts, strict=True)
    for answer, (_, record, priority, part) in zip(client.wait([each[0] for each in sent]), sent, strict=True):
        result = answer.record()
        assert (result["status"], result["error_code"], result["error_message"]) == ("OK", None, None)
        assert (result["request_id"], result["model"], result["version"]) == (record["request_id"], model, "1")
        assert (answer.topic, answer.key) == (f"{service.prefix}.results.{priority}", record["request_id"].encode())
        same(result, directly(service, model, {"features": part}))


def test_sequences_are_padded_and_cut_again(service: Service, client: Client) -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 3), (2, 4), (1, 1), (3, 16), (1, 9), (1, 3)]
    inputs = [{"ids": rng.integers(0, 100, each), "mask": np.ones(each, np.int64)} for each in shapes]
    results = client.ask([request("sequence", [tensor(*item) for item in each.items()]) for each in inputs])
    for result, each in zip(results, inputs, strict=True):
        same(result, directly(service, "sequence", each))


def test_strings_and_versions(service: Service, client: Client) -> None:
    asked = [("1", ["red"]), (None, ["green", "blue"]), ("2", ["é", "red", ""])]
    records = [request("colours", [words("colour", each)], version=version) for version, each in asked]
    results = client.ask(records, "interactive")
    assert [each["version"] for each in results] == ["1", "2", "2"]
    for result, (_, each) in zip(results, asked, strict=True):
        same(result, directly(service, "colours", {"colour": np.array(each, object)[:, None]}))


def test_two_requests_with_one_id_are_two_requests(client: Client) -> None:
    records = [request("colours", [words("colour", [each])], "twin") for each in ("red", "green")]
    results = client.ask(records)
    assert [numbers(each["outputs"][0]).tolist() for each in results] == [[[1.0]], [[2.0]]]


def colour(request_id: str = "r", **fields: Any) -> bytes:
    return framed(request("colours", [words("colour", ["red"])], request_id, **fields))


def test_trace_and_correlation_come_back_and_nothing_else(service: Service, client: Client) -> None:
    kept = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", b"a=b")]
    kept += [("kafka_correlationId", b"\0\xff")]
    (source,) = client.send([colour()], headers=[[*kept, ("own", b"x")]])
    (answer,) = client.wait([source])
    topic, partition, offset = source
    assert answer.headers == [
        ("lrai_request-topic", topic.encode()),
        ("lrai_request-partition", str(partition).encode()),
        ("lrai_request-offset", str(offset).encode()),
        *kept,
    ]


def replying(topic: str, partition: bytes | None = None) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = [("kafka_replyTopic", topic.encode()), ("kafka_correlationId", b"c")]
    return found if partition is None else [*found, ("kafka_replyPartition", partition)]


def test_reply_topics(service: Service, client: Client) -> None:
    first, second = service.replies
    home = f"{service.prefix}.results.standard"
    asked = [
        (replying(first), first, None, None),
        (replying(second, b"\0\0\0\x01"), second, 1, None),
        (replying(second, b"0"), second, 0, None),
        (replying(second, b"7"), home, None, "reply_partition_missing"),
        (replying("elsewhere"), home, None, "reply_topic_forbidden"),
        (replying(f"{service.prefix}.decisions"), home, None, "reply_topic_forbidden"),
        (replying(f"{service.prefix}replies.none"), home, None, "reply_topic_missing"),
    ]
    answers = client.wait(client.send([colour()] * len(asked), headers=[each[0] for each in asked]))
    for answer, (_, topic, partition, code) in zip(answers, asked, strict=True):
        assert answer.topic == topic
        assert partition in (None, answer.partition)
        assert answer.record()["error_code"] == code
        assert ("kafka_correlationId", b"c") in answer.headers


def test_a_deadline_that_is_over(client: Client) -> None:
    now = datetime.now(UTC)
    late, soon = client.ask(
        [
            request("colours", [words("colour", ["red"])], deadline=now - timedelta(seconds=1)),
            request("colours", [words("colour", ["red"])], deadline=now + timedelta(minutes=1)),
        ]
    )
    assert (late["status"], late["error_code"], late["outputs"]) == ("EXPIRED", "deadline_expired", [])
    assert soon["status"] == "OK"


def decided(service: Service, sources: list[Source]) -> list[dict[str, Any]]:
    with psycopg.connect(service.store, row_factory=dict_row) as connection:
        found = connection.execute(f"select {COLUMNS} from audit.decision").fetchall()
    by_source = {(row["request_topic"], row["request_partition"], row["request_offset"]): row for row in found}
    assert len(by_source) == len(found)
    return [by_source[source] for source in sources if source in by_source]


def test_the_row_that_an_auditor_reads(service: Service, client: Client) -> None:
    data = rows(service.models, "diabetes")
    values = [
        framed(
            request(
                "diabetes",
                [tensor("features", data.features[i : i + 1])],
                f"patient-{i}",
                subject=SUBJECT,
                attributes=data.attributes[i],
                consent_id=f"consent-{i}",
                purpose="care",
            )
        )
        for i in range(40)
    ]
    sources = client.send([*values, framed(request("nowhere", [], "lost", subject=SUBJECT))], "interactive")
    answers = client.wait(sources)
    answered = time.monotonic()
    until(lambda: len(decided(service, sources)) == len(sources), 10, lambda: "rows are missing")
    assert time.monotonic() - answered < ROW_S
    found = decided(service, sources)
    for i, (row, answer) in enumerate(zip(found[:-1], answers[:-1], strict=True)):
        check_row(row, answer.record(), data.attributes[i], f"patient-{i}")
    rejected = found[-1]
    assert (rejected["status"], rejected["error_code"], rejected["model"]) == ("REJECTED", "unknown_model", "(unknown)")
    assert len({row["subject_pseudonym"] for row in found}) == 1
    assert SUBJECT not in str(found[0]["subject_pseudonym"])


def check_row(row: dict[str, Any], result: Record, attributes: dict[str, str], request_id: str) -> None:
    assert (row["request_id"], row["model"], row["version"]) == (request_id, "diabetes", "1")
    assert result["variant"] in ("original", SERVED)  # what the compiler kept
    assert (row["variant"], row["status"], row["error_code"]) == (result["variant"], "OK", None)
    score = float(numbers(next(each for each in result["outputs"] if each["name"] == "probabilities"))[0, 1])
    assert row["score"] == pytest.approx(score)
    assert row["decision"] == ("high" if score >= 0.5 else "low")
    assert row["attributes"] == attributes
    assert row["received_at"] <= row["answered_at"]
    assert row["queue_s"] == pytest.approx(result["queue_s"], abs=1e-5)
    assert row["execution_s"] == pytest.approx(result["execution_s"], abs=1e-5)
    assert row["execution_s"] > 0
    assert row["batch_rows"] >= 1
    assert "work-diabetes-1-interactive" in row["worker"]


def test_the_subject_is_nowhere_in_the_store(service: Service, client: Client) -> None:
    """In no column of any table."""
    with psycopg.connect(service.store) as connection:
        tables = connection.execute("select schemaname, tablename from pg_tables where schemaname = 'audit'").fetchall()
        assert len(tables) > 8
        for schema, table in tables:
            query = f"select count(*) from {schema}.{table} t where t::text like %s"
            assert connection.execute(query, (f"%{SUBJECT[:11]}%",)).fetchone() == (0,), table


def test_the_views_answer(service: Service, client: Client) -> None:
    with psycopg.connect(service.store, row_factory=dict_row) as connection:
        latency = connection.execute("select * from audit.latency_by_model where model = 'diabetes'").fetchone()
        assert latency is not None
        assert 0 < latency["total_s_p50"] <= latency["total_s_p99"] < 60
        outcomes = connection.execute("select * from audit.outcome_by_model_hour").fetchall()
        assert {"OK", "REJECTED", "EXPIRED"} <= {row["status"] for row in outcomes}
        rates = connection.execute("select * from audit.selection_rate_by_attribute").fetchall()
        assert {row["attribute"] for row in rates} == {"age", "sex"}
        whole: dict[Any, float] = {}
        for row in rates:
            group = (row["attribute"], row["group"])
            whole[group] = whole.get(group, 0) + row["selection_rate"]
        assert list(whole.values()) == [pytest.approx(1.0)] * len(whole)


def test_attributes_are_json(service: Service, client: Client) -> None:
    with psycopg.connect(service.store) as connection:
        kind = connection.execute("select distinct pg_typeof(attributes)::text from audit.decision").fetchall()
        assert kind == [("jsonb",)]
        found = connection.execute("select attributes->>'sex' from audit.decision where attributes ? 'sex'").fetchall()
        assert {each for (each,) in found} == {"group 1", "group 2"}


def test_no_answer_is_there_twice(service: Service, client: Client) -> None:
    """Whatever else comes in the end."""
    while client.read(300):
        pass
    assert {len(answers) for answers in client.answers.values()} == {1}
    with psycopg.connect(service.store) as connection:
        (count,) = connection.execute("select count(*) from audit.decision").fetchone() or (None,)
    letters: list[Answer] = [a for (a,) in client.answers.values() if a.topic.endswith(".deadletter")]
    assert count == len(client.answers) - len(letters)


def test_logs_are_lines_of_json_without_tracebacks(service: Service, client: Client) -> None:
    lines = [line for line in service.log.read_text().splitlines() if line.startswith("{")]
    assert lines
    assert {"error"}.isdisjoint(json.loads(line)["level"] for line in lines)
    assert "Traceback" not in service.log.read_text()
