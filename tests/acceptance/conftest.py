"""The whole pipeline as a user runs it: `lrai up` as a process of its own, on real Kafka and real Postgres."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.demo_models import train
from infra.parts import Parts
from tests import nets
from tests.acceptance.client import Client, create_topics, until
from tests.conftest import fresh_store

READY_S = 120.0
STOP_S = 40.0
REPLIES = ("replies.a", "replies.b")


@dataclass(frozen=True)
class Service:
    """A running pipeline."""

    kafka: str
    store: str
    prefix: str
    models: Path
    log: Path
    process: subprocess.Popen[bytes]
    replies: tuple[str, ...]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's models, one of sequences with padding buckets and one of strings."""
    folder = tmp_path_factory.mktemp("models")
    train(folder)
    nets.sequence(folder / "sequence" / "1" / "model.onnx")
    (folder / "sequence" / "1" / "model.toml").write_text('padded = "seq"\nbuckets = [4, 16]\n')
    nets.strings(folder / "colours" / "1" / "model.onnx")
    nets.strings(folder / "colours" / "2" / "model.onnx")
    return folder


@contextmanager
def running(parts: Parts, folder: Path, models: Path, **settings: str) -> Iterator[Service]:
    """`lrai up` with a prefix, a store and reply topics of its own; ends with SIGTERM, and must end well."""
    prefix = f"a{secrets.token_hex(3)}"
    replies = tuple(f"{prefix}{name}" for name in REPLIES)
    create_topics(parts.kafka, replies, 2)
    with fresh_store(parts.store) as store:
        given = {
            "KAFKA": parts.kafka,
            "STORE": store,
            "PREFIX": prefix,
            "NODE": "test",
            "STATE": str(folder / "state"),
            "PARTITIONS": "2",
            "REPLY_TOPICS": f'["{prefix}replies.*"]',
            "PSEUDONYM_KEY": "a key for the tests",
            **settings,
        }
        env = {name: value for name, value in os.environ.items() if not name.startswith("LRAI_")}
        env |= {f"LRAI_{name}": value for name, value in given.items()}
        log, out = folder / "log", folder / "out"
        command = [str(Path(sys.executable).with_name("lrai")), "up", "--models", str(models)]
        with log.open("wb") as err, out.open("wb") as stdout:
            process = subprocess.Popen(command, env=env, cwd=folder, stdout=stdout, stderr=err)
        try:
            until(
                lambda: "lrai ready" in out.read_text().splitlines() or process.poll() is not None,
                READY_S,
                lambda: f"not ready:\n{log.read_text()[-3000:]}",
            )
            assert process.poll() is None, log.read_text()[-3000:]
            yield Service(parts.kafka, store, prefix, models, log, process, replies)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_S) == 0, log.read_text()[-3000:]
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def service(parts: Parts, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One pipeline a module."""
    with running(parts, tmp_path_factory.mktemp("service"), models) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    found = Client(service.kafka, service.prefix, service.replies)
    yield found
    found.close()
