"""A lane that is scheduled answers every request once, says what it decides, and hands what it learned on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from infra.commands.scheduling import app
from infra.parts import Parts
from tests import nets
from tests.acceptance.client import Client, request, until
from tests.acceptance.conftest import Service, running

WAIT_S = 40.0
ROUNDS, EACH = 12, 40
FEATURES = np.random.default_rng(3).standard_normal((EACH, 6), np.float32)


@pytest.fixture(scope="module")
def service(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("scheduled")
    nets.mlp(folder / "net/1/model.onnx", (6, 16, 3))
    (folder / "net/1/model.toml").write_text("slo_p95_ms = { interactive = 80, standard = 120 }")
    nets.mlp(folder / "plain/1/model.onnx", (6, 16, 3))
    with running(parts, tmp_path_factory.mktemp("service"), folder) as found:
        yield found


def shown(service: Service) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["show", "--json", "--kafka", service.kafka, "--prefix", service.prefix])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout.startswith("{") else {"lanes": [], "answers": []}
    return found


def ask(client: Client, name: str) -> None:
    """EACH requests on two lanes; waits for their answers."""
    for priority in ("interactive", "standard"):
        tensors = [
            {"name": "features", "datatype": "FP32", "shape": [1, 6], "data": each.tobytes()} for each in FEATURES
        ]
        records = [request("net", [each], f"{name}-{priority}-{i}") for i, each in enumerate(tensors)]
        found = client.ask(records, priority)
        assert [each["status"] for each in found] == ["OK"] * EACH


def test_every_request_is_answered_and_the_lanes_say_what_they_decide(service: Service) -> None:
    client = Client(service.kafka, service.prefix)
    try:
        for number in range(ROUNDS):
            ask(client, str(number))
        lanes = {each["lane"]: each for each in shown(service)["lanes"]}
        assert {name.split("-")[2] for name in lanes} == {"interactive", "standard"}, "bulk promises nothing"
        for lane in lanes.values():
            assert 0 < lane["window_ms"] <= max(0.5 * lane["objective_ms"], lane["static_window_ms"])
            assert lane["guard"] in ("ok", "static")
        answers = {(each["model"], each["priority"]) for each in shown(service)["answers"]}
        assert answers == {("net/1", "interactive"), ("net/1", "standard")}
    finally:
        client.close()
    with psycopg.connect(service.store, autocommit=True) as connection:
        until(lambda: rows(connection) == 2 * ROUNDS * EACH, WAIT_S, lambda: rows(connection))


def rows(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select count(*) from audit.decision where model = 'net' and status = 'OK'").fetchone()
    return int(row[0]) if row else 0


def test_without_a_broker_the_command_says_so() -> None:
    done = CliRunner().invoke(app, ["show", "--kafka", "127.0.0.1:1"])
    assert done.exit_code != 0
    assert "does not answer" in str(done.exception)
