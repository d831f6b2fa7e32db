"""The parts start, work, come back after a crash, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from infra.jars import Pins, kafka_jars, pins
from infra.kafka import Kafka
from infra.postgres import Postgres
from infra.server import PartsError, free_port

WAIT_S = 20.0
STARTS = """
import sys, time
from pathlib import Path
from infra.parts import parts
with parts() as running:
    servers = running.kafka_server, running.postgres_server
    print(*(f"{server.pid} {server.directory}" for server in servers), flush=True)
    time.sleep(600)
"""


def wait_until(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < until, f"not within {WAIT_S} s: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[Kafka]:
    with Kafka() as kafka:
        yield kafka


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    with Postgres() as postgres:
        yield postgres


def create(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(WAIT_S)


def produce(bootstrap: str, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    producer.produce(topic, value)
    assert producer.flush(WAIT_S) == 0


def consume(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "log_level": 0})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [message.value() for message in consumer.consume(count, WAIT_S)]
    finally:
        consumer.close()


def test_kafka_keeps_its_records_over_a_crash_and_a_stop(own_kafka: Kafka, prefix: str) -> None:
    bootstrap, before = own_kafka.bootstrap, own_kafka.pid
    create(bootstrap, prefix)
    produce(bootstrap, prefix, b"before")
    assert consume(bootstrap, prefix, 1) == [b"before"]
    own_kafka.kill()
    assert not psutil.pid_exists(before)
    own_kafka.start()
    produce(bootstrap, prefix, b"after the crash")
    own_kafka.stop()
    own_kafka.start()
    assert own_kafka.bootstrap == bootstrap
    assert consume(bootstrap, prefix, 2) == [b"before", b"after the crash"]


def test_kafka_that_something_else_killed_starts_again(own_kafka: Kafka) -> None:
    os.kill(own_kafka.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(own_kafka.pid), "the broker is gone")
    own_kafka.start()
    assert AdminClient({"bootstrap.servers": own_kafka.bootstrap}).list_topics(timeout=WAIT_S).brokers


def test_postgres_keeps_its_rows_over_a_crash_and_a_stop(own_postgres: Postgres) -> None:
    url = own_postgres.url
    with psycopg.connect(url) as connection:
        connection.execute("create table kept (x int)")
        connection.execute("insert into kept values (1)")
    own_postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    own_postgres.start()
    own_postgres.stop()
    own_postgres.start()
    assert own_postgres.url == url
    with psycopg.connect(url) as connection:
        assert connection.execute("select x from kept").fetchall() == [(1,)]
        assert connection.execute("show server_version_num").fetchone() >= ("180000",)


def test_a_running_server_is_not_started_twice(own_postgres: Postgres) -> None:
    with pytest.raises(PartsError, match="runs already"):
        own_postgres.start()


def test_a_server_that_cannot_start_says_why(own_postgres: Postgres) -> None:
    taken = Postgres(port=own_postgres.port)
    with pytest.raises(PartsError, match=r"(?s)ended while it started.*in use"), taken:
        pass
    assert not taken.directory.exists()


def test_close_leaves_nothing_behind() -> None:
    with Postgres() as postgres:
        pid, directory = postgres.pid, postgres.directory
        assert directory.exists()
    assert not psutil.pid_exists(pid)
    assert not directory.exists()


def test_a_directory_of_the_user_stays_and_serves_again() -> None:
    # not pytest's own folder: another user runs Postgres for root, and could not reach it
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for expected in ([], [(1,)]):
            with Postgres(Path(folder) / "store") as postgres, psycopg.connect(postgres.url) as connection:
                connection.execute("create table if not exists kept (x int)")
                assert connection.execute("select x from kept").fetchall() == expected
                connection.execute("insert into kept values (1)")


def test_parts_end_with_a_parent_that_is_killed() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LRAI_")}
    parent = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout
    words = parent.stdout.readline().split()
    pids, folders = [int(word) for word in words[::2]], [Path(word) for word in words[1::2]]
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(pids) == 2
    assert all(folder.exists() for folder in folders)
    assert {child.pid for child in children} >= set(pids)
    parent.kill()
    parent.wait(WAIT_S)
    parent.stdout.close()
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), "no process")
    wait_until(lambda: not any(folder.exists() for folder in folders), "no folder")


def test_a_jar_with_another_hash_is_refused(tmp_path: Path) -> None:
    coordinate = next(iter(pins().jars))
    _, artifact, version = coordinate.split(":")
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / f"{artifact}-{version}.jar").write_bytes(b"not what was released")
    with pytest.raises(PartsError, match=f"{coordinate} has SHA-256 .*, pinned is"):
        kafka_jars(tmp_path, Pins(version, {coordinate: pins().jars[coordinate]}), lambda _: None)


def test_free_ports_are_outside_the_ephemeral_range() -> None:
    assert all(20_000 <= free_port() < 32_000 for _ in range(50))


def test_the_shared_parts_and_a_store_of_ones_own(kafka: str, store_url: str, prefix: str) -> None:
    create(kafka, prefix)
    produce(kafka, prefix, b"x")
    assert consume(kafka, prefix, 1) == [b"x"]
    with psycopg.connect(store_url) as connection:
        assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)
