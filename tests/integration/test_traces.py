"""`lrai trace record` on real topics: the period, committed records only, no group left behind."""

from __future__ import annotations

import threading
import time

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from infra.commands.traces import Period, recorded
from schemas import framing
from streams import topics
from streams.admin import Admin, all_topics
from streams.settings import Settings, load
from streams.topics import PRIORITIES


def request(model: str, rows: int) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 1], "data": bytes(4 * rows)}
    return framing.encode("inference_request", {"request_id": "r", "model": model, "inputs": [tensor]})


def send(settings: Settings, priority: str, *values: bytes) -> int:
    """Sends, and returns a moment after the broker's stamps, ms."""
    producer = Producer({"bootstrap.servers": settings.kafka})
    for number, value in enumerate(values):
        producer.produce(topics.requests(settings.prefix, priority), value, partition=number % settings.partitions)
    assert producer.flush(30) == 0
    return until_after(time.time_ns() // 1_000_000)


def until_after(ms: int) -> int:
    while time.time_ns() // 1_000_000 <= ms + 1:
        time.sleep(0.001)
    return ms + 1


def abort(settings: Settings, priority: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka, "transactional.id": f"{settings.prefix}-aborted"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topics.requests(settings.prefix, priority), value, partition=0)
    producer.flush(30)
    producer.abort_transaction(30)


@pytest.fixture
def settings(kafka: str, prefix: str) -> Settings:
    settings = load(kafka=kafka, prefix=prefix, partitions=2)
    Admin(settings).ensure_topics(all_topics(settings, [("mlp", "1"), ("trees", "2")]))
    return settings


def test_a_period_past(settings: Settings) -> None:
    send(settings, "bulk", request("mlp", 9))
    first = until_after(time.time_ns() // 1_000_000)
    send(settings, "bulk", request("mlp", 1), request("trees", 2), request("mlp", 3))
    abort(settings, "bulk", request("mlp", 100))
    second = send(settings, "interactive", request("trees", 4), b"nonsense", request("someone", 1))
    send(settings, "standard", request("mlp", 5))

    found = recorded(settings, PRIORITIES, Period(first, second), threading.Event())
    trace = found.trace()
    kinds = zip(trace.priority.tolist(), trace.model.tolist(), trace.rows.tolist(), strict=True)
    assert sorted((PRIORITIES[p], trace.models[m], rows) for p, m, rows in kinds) == [
        ("bulk", "mlp", 1), ("bulk", "mlp", 3), ("bulk", "trees", 2), ("interactive", "trees", 4),
    ]  # fmt: skip
    assert sum(found.left_out.values()) == 2
    assert (trace.at_s[1:] >= trace.at_s[:-1]).all() and trace.at_s[0] == 0

    later = recorded(settings, ["standard"], Period(second, time.time_ns() // 1_000_000), threading.Event())
    assert later.trace().rows.tolist() == [5]
    groups = AdminClient({"bootstrap.servers": settings.kafka}).list_consumer_groups().result()
    assert not [each.group_id for each in groups.valid if each.group_id.startswith(settings.prefix)]


def test_from_now_on_while_requests_keep_coming(settings: Settings) -> None:
    send(settings, "standard", *[request("mlp", 7)] * 20)
    sent = 0
    done = threading.Event()

    def keep_sending() -> None:
        nonlocal sent
        while not done.is_set():
            send(settings, "standard", request("mlp", 1), request("mlp", 2))
            sent += 2

    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        end_ms = time.time_ns() // 1_000_000 + 3000
        found = recorded(settings, ["standard"], Period(None, end_ms), threading.Event())
    finally:
        done.set()
        sender.join()
    assert 0 < found.taken <= sent
    assert set(found.trace().rows.tolist()) <= {1, 2}
    assert found.trace().seconds <= 3.0
