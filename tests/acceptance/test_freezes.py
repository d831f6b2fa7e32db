"""A freeze from a record of lrai.control to the client's answer; and tallies that a recount in SQL bears out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from confluent_kafka import Consumer, Producer

from infra.parts import Parts
from kernels import reference
from kernels.repository import load_model
from kernels.session import Session
from schemas import framing
from streams.control import FREEZE, UNFREEZE, Control
from tests import nets
from tests.acceptance.client import Answer, Client, Record, framed, request, until
from tests.acceptance.conftest import Service, running

TOML = """
score = { output = "probabilities", index = 1 }
threshold = 0.5
labels = ["no", "yes"]
favourable = "yes"
sensitive_features = ["sex"]
"""
ROWS = np.random.default_rng(5).normal(size=(120, 6)).astype("f4")
WAIT_S = 20.0


@pytest.fixture(scope="module")
def service(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("models")
    for version, more in (("1", ""), ("2", 'on_freeze = "1"\n'), ("3", 'on_freeze = "reject"\n')):
        nets.mlp(folder / "net" / version / "model.onnx", (6, 8, 2))
        (folder / "net" / version / "model.toml").write_text(TOML + more)
    spec = load_model(folder, "net", "3")
    found = reference.make(spec, [{spec.inputs[0].name: ROWS}], Session(spec).run)
    reference.write(folder / "net/3", found)
    with running(parts, tmp_path_factory.mktemp("service"), folder, CPU_HOUR_PRICE="36") as found_service:
        yield found_service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    found = Client(service.kafka, service.prefix)
    yield found
    found.close()


def asked(client: Client, version: str, rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> list[Answer]:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 6]}
    records = [
        request("net", [{**tensor, "data": row.tobytes()}], f"{version}-{i}", version=version,
                attributes={"sex": "MF"[i % 2]} if i % 3 else {})
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return client.wait(client.send([framed(each) for each in records], "interactive"))


def control(service: Service, kind: str, version: str) -> None:
    record = Control(kind, "net", version, None, "ann", "a trial", time.time_ns() // 10**6, f"trial-{version}", "{}")
    producer = Producer({"bootstrap.servers": service.kafka})
    producer.produce(f"{service.prefix}.control", record.encode(), record.key)
    assert producer.flush(10) == 0


def frozen(client: Client, version: str) -> None:
    """Waits until an answer is given under a freeze."""

    def obeyed() -> bool:
        (answer,) = asked(client, version, ROWS[:1])
        return dict(answer.headers).get("lrai_frozen") == f"trial-{version}".encode()

    until(obeyed, WAIT_S, lambda: "not frozen")


def tallies(service: Service) -> list[Record]:
    """What lies on lrai.tallies, committed."""
    consumer = Consumer({"bootstrap.servers": service.kafka, "group.id": f"{service.prefix}-test",
                         "auto.offset.reset": "earliest", "isolation.level": "read_committed"})  # fmt: skip
    consumer.subscribe([f"{service.prefix}.tallies"])
    found: list[Record] = []
    end = time.monotonic() + 5
    while time.monotonic() < end:
        for message in consumer.consume(500, 0.5):
            assert message.error() is None, message.error()
            found.append(framing.decode(message.value() or b"")[1])
    consumer.close()
    return [each for each in found if each["kind"] == "decisions"]


def test_a_freeze_is_obeyed_and_ends(service: Service, client: Client) -> None:
    assert {each.record()["version"] for each in asked(client, "2", ROWS)} == {"2"}
    control(service, FREEZE, "2")
    frozen(client, "2")
    answers = asked(client, "2", ROWS[:20])
    assert {(each.record()["version"], each.record()["status"]) for each in answers} == {("1", "OK")}
    control(service, FREEZE, "3")
    frozen(client, "3")
    (answer,) = asked(client, "3", ROWS[:1])
    assert (answer.record()["status"], answer.record()["error_code"]) == ("REJECTED", "frozen")
    assert "by ann since" in answer.record()["error_message"]
    control(service, UNFREEZE, "3")
    until(lambda: asked(client, "3", ROWS[:1])[0].record()["status"] == "OK", WAIT_S, lambda: "still frozen")


def test_tallies_are_what_sql_counts(service: Service, client: Client) -> None:
    assert {each.record()["status"] for each in asked(client, "3", ROWS)} == {"OK"}
    found = tallies(service)
    counted: Counter[tuple[str, str | None, str]] = Counter()
    for each in found:
        for group in each["groups"]:
            counted[each["version"], group["group"], "decided"] += group["decided"]
            counted[each["version"], group["group"], "favourable"] += group["favourable"]
    query = """select version, attributes->>'sex', count(decision), count(*) filter (where decision = 'yes')
        from audit.decision where model = 'net' and decision is not null group by 1, 2"""
    recount: Counter[tuple[str, str | None, str]] = Counter()

    def stored() -> bool:
        recount.clear()
        with psycopg.connect(service.store) as connection:
            for version, sex, decided, favourable in connection.execute(query).fetchall():
                recount[version, sex, "decided"] += decided
                recount[version, sex, "favourable"] += favourable
        return recount == counted

    until(stored, WAIT_S, lambda: f"{recount} in SQL, {counted} in tallies")
    assert {version for version, _, _ in counted} == {"1", "2", "3"}
    assert all(each["cost"] == pytest.approx(each["cpu_s"] * 36 / 3600) for each in found)
    assert sum(each["cpu_s"] for each in found) > 0
    (histogram, *_) = next(each["histograms"] for each in found if each["histograms"])
    assert histogram["feature"] == "features[0]"


def test_rows_name_the_freeze(service: Service) -> None:
    query = "select version, count(*) from audit.decision where frozen = %s group by 1"
    rows: list[tuple[str, int]] = []

    def stored() -> bool:
        with psycopg.connect(service.store) as connection:
            rows[:] = connection.execute(query, ["trial-2"]).fetchall()
        return bool(rows) and rows[0][0] == "1" and rows[0][1] >= 21

    until(stored, WAIT_S, lambda: rows)
