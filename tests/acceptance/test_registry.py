"""With a schema registry: requests and results in Confluent's wire format.

The registry is a small one of the tests, or the real one that LRAI_REGISTRY names.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.parts import Parts
from tests import nets
from tests.acceptance.client import REQUEST, SCHEMAS, Answer, Client, Codec, Record, framed, request, until
from tests.acceptance.conftest import Service, running
from tests.registry import Registry

UNKNOWN_ID = 2_000_000_000
AWAY = "the schema registry is away"
AWAY_S_MAX = 20.0


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry | None]:
    """None where a real one is named."""
    if os.environ.get("LRAI_REGISTRY"):
        yield None
        return
    with Registry() as found:
        yield found


@pytest.fixture(scope="module")
def url(registry: Registry | None) -> str:
    return registry.url if registry else os.environ["LRAI_REGISTRY"]


@pytest.fixture(scope="module")
def service(parts: Parts, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("registered")
    nets.strings(folder / "models" / "colours" / "1" / "model.onnx")
    with running(parts, folder, folder / "models", REGISTRY=url) as found:
        yield found


def call(url: str, body: object = None) -> Any:
    """What a client without a library would do."""
    content = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, content, {"Content-Type": "application/vnd.schemaregistry.v1+json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return json.load(answer)


def register(url: str, subject: str, text: str) -> int:
    return int(call(f"{url}/subjects/{subject}/versions", {"schema": text})["id"])


def colour(word: bytes = b"red", **fields: Any) -> Record:
    data = len(word).to_bytes(4, "little") + word
    return request("colours", [{"name": "colour", "datatype": "BYTES", "shape": [1, 1], "data": data}], **fields)


def by_id(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + body


def result_of(answer: Answer, url: str) -> Record:
    """The result, read with the schema that its id names."""
    assert answer.value is not None
    assert answer.value[0] == 0
    text = call(f"{url}/schemas/ids/{int.from_bytes(answer.value[1:5], 'big')}")["schema"]
    assert json.loads(text) == json.loads((SCHEMAS / "inference_result.avsc").read_text())
    return Codec(text).decode(answer.value[5:])


def later(**field: Any) -> str:
    """The request's schema as a client of a later release may have it."""
    schema = json.loads((SCHEMAS / "inference_request.avsc").read_text())
    schema["fields"].insert(2, {"type": "string", **field})
    return json.dumps(schema)


def test_requests_and_results_by_id(service: Service, client: Client, url: str) -> None:
    text = (SCHEMAS / "inference_request.avsc").read_text()
    schema_id = register(url, f"{service.prefix}.requests.standard-value", text)
    values = [by_id(schema_id, REQUEST.encode(colour(request_id="by-id"))), framed(colour(request_id="by-header"))]
    results = [result_of(each, url) for each in client.wait(client.send(values))]
    assert [each["request_id"] for each in results] == ["by-id", "by-header"]
    assert {each["status"] for each in results} == {"OK"}
    subjects = call(f"{url}/subjects")
    assert {f"{service.prefix}.results.{each}-value" for each in ("interactive", "standard", "bulk")} <= set(subjects)


def test_rejections_are_framed_alike(client: Client, url: str) -> None:
    (answer,) = client.wait(client.send([framed({**colour(), "model": "color"})]))
    assert result_of(answer, url)["error_code"] == "unknown_model"


def test_a_writer_with_a_later_schema(service: Service, client: Client, url: str) -> None:
    text = later(name="channel", default="web")
    schema_id = register(url, f"{service.prefix}.requests.standard-value", text)
    body = Codec(text).encode({**colour(request_id="later"), "channel": "app"})
    (answer,) = client.wait(client.send([by_id(schema_id, body)]))
    result = result_of(answer, url)
    assert (result["request_id"], result["status"]) == ("later", "OK")


def test_what_an_id_does_not_explain_is_a_dead_letter(service: Service, client: Client, url: str) -> None:
    other = register(url, f"{service.prefix}.other", json.dumps({"type": "record", "name": "Other", "fields": []}))
    values = [by_id(UNKNOWN_ID, b"x"), by_id(other, b""), framed(colour())]
    answers = client.wait(client.send(values))
    reasons = [dict(each.headers).get("lrai_dlt-reason") for each in answers]
    assert reasons == [b"unknown_schema", b"undecodable", None]
    assert [each.value for each in answers[:2]] == values[:2]


def test_records_wait_while_the_registry_is_away(
    service: Service, client: Client, registry: Registry | None, url: str
) -> None:
    if registry is None:
        pytest.skip("a real registry is not stopped by a test")
    text = later(name="reason", default="")
    schema_id = register(url, f"{service.prefix}.requests.standard-value", text)
    body = Codec(text).encode({**colour(request_id="waits"), "reason": "x"})
    registry.stop()
    (waiting,) = client.send([by_id(schema_id, body)], "standard")
    behind = client.send([framed(colour(request_id="behind"))] * 4, "standard")
    elsewhere = client.send([framed(colour(request_id="elsewhere"))], "interactive")
    client.wait(elsewhere)
    log = service.log
    until(lambda: AWAY in log.read_text(), AWAY_S_MAX, lambda: f"nothing said in\n{log.read_text()[-2000:]}")
    client.wait(client.send([framed(colour(request_id="elsewhere"))], "bulk"))
    assert not {waiting, *behind} & client.answers.keys()
    registry.start()
    answers = client.wait([waiting, *behind, *elsewhere])
    assert [result_of(each, url)["request_id"] for each in answers] == ["waits", *["behind"] * 4, "elsewhere"]
    assert not any(each.topic.endswith(".deadletter") for each in answers)


def test_it_said_so_once(service: Service, client: Client, registry: Registry | None) -> None:
    if registry is None:
        pytest.skip("a real registry is not stopped by a test")
    assert service.log.read_text().count(AWAY) == 1


def test_a_schema_is_asked_for_once(service: Service, client: Client, registry: Registry | None, url: str) -> None:
    if registry is None:
        pytest.skip("a real registry does not show what it was asked")
    text = (SCHEMAS / "inference_request.avsc").read_text()
    schema_id = register(url, f"{service.prefix}.requests.standard-value", text)
    asked = len(registry.asked)
    client.wait(client.send([by_id(schema_id, REQUEST.encode(colour()))] * 20))
    assert len(registry.asked) == asked


def test_nothing_was_restarted(service: Service, client: Client) -> None:
    assert '"restarted"' not in service.log.read_text()


def test_the_small_registry_is_one(tmp_path: Path) -> None:
    """As the client library of LRAI sees it."""
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

    with Registry() as small:
        library = SchemaRegistryClient({"url": small.url})
        text = (SCHEMAS / "inference_request.avsc").read_text()
        schema_id = library.register_schema("s/1", Schema(text, "AVRO"))
        assert library.get_schema(schema_id).schema_str == text
        assert library.get_latest_version("s/1").schema_id == schema_id
        assert library.get_subjects() == ["s/1"]
