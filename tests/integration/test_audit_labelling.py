"""The audit writer as a process, on real Kafka and Postgres: labels and complaints from the command line to SQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from confluent_kafka import Producer
from typer.testing import CliRunner

from infra.commands import complaints
from infra.commands.reading import Reader
from infra.parts import Parts
from schemas import framing
from schemas.errors import BadSetting, LraiError
from streams.admin import Admin
from streams.settings import load
from tests import nets
from tests.conftest import fresh_store
from tests.decisions import Row, batch_of
from tests.watched import fetch

WAIT_S = 30.0
TOML = 'labels = ["no", "yes"]\nfavourable = "yes"\nsensitive_features = ["sex"]\n'
LRAI = str(Path(sys.executable).with_name("lrai"))


@dataclass
class Place:
    """Where everything is; `env`: what the command line needs."""

    kafka: str
    store: str
    prefix: str
    folder: Path
    env: dict[str, str]

    def call(self, app: typer.Typer, *words: str, **changed: str) -> Result:
        """A command in this process."""
        env = {**self.env, **{f"LRAI_{name}": value for name, value in changed.items()}}
        return CliRunner().invoke(app, words, env=env)

    def writer(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([LRAI, "run", "audit", "--models", "models"], env=self.env, cwd=self.folder,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    def produce(self, topic: str, *values: bytes) -> None:
        producer = Producer({"bootstrap.servers": self.kafka})
        for value in values:
            producer.produce(f"{self.prefix}.{topic}", value)
        assert producer.flush(WAIT_S) == 0

    def totals(self) -> list[dict[str, Any]]:
        """The tallies of labels that were sent, the oldest first."""
        settings = load(kafka=self.kafka, prefix=self.prefix)
        with Reader(settings, [f"{self.prefix}.tallies"], None) as reader:
            found = sorted((each.timestamp()[1], each.value() or b"") for each in reader.to_the_end())
        return [framing.decode(value)[1] for _, value in found]


@pytest.fixture
def place(parts: Parts, prefix: str, tmp_path: Path) -> Iterator[Place]:
    nets.classifier(tmp_path / "models/m/1/model.onnx", classes=("no", "yes"))
    (tmp_path / "models/m/1/model.toml").write_text(TOML)
    with fresh_store(parts.store) as store:
        env = {name: value for name, value in os.environ.items() if not name.startswith("LRAI_")}
        given = {"KAFKA": parts.kafka, "STORE": store, "PREFIX": prefix, "NODE": "test", "STATE": str(tmp_path / "s"),
                 "PARTITIONS": "1", "PSEUDONYM_KEY": "a key for the tests"}  # fmt: skip
        env |= {f"LRAI_{name}": value for name, value in given.items()}
        yield Place(parts.kafka, store, prefix, tmp_path, env)


def until(true: Callable[[], bool], what: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


def test_labels_and_complaints_from_the_command_line_to_sql(place: Place) -> None:
    writer = place.writer()
    try:
        _labels(place)
        _complaints(place)
        totals = place.totals()
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(WAIT_S)
        writer = place.writer()
        until(lambda: len(place.totals()) > len(totals), lambda: "the totals were not sent again")
        again = place.totals()[-1]
        assert {**again, "at": 0, "received_at": 0} == {**totals[-1], "at": 0, "received_at": 0}
        writer.send_signal(signal.SIGTERM)
        assert writer.wait(WAIT_S) == 0
    finally:
        writer.kill()
        writer.wait()


def _labels(place: Place) -> None:
    rows = [Row(i, request_id=f"r{i}", decision="yes", attributes={"sex": "F"}) for i in range(3)]
    (place.folder / "labels.csv").write_text("request_id,outcome,at\nr0,yes,2026-01-31\nr1,no,\nlater,yes,\nr0,no,\n")
    until(lambda: f"{place.prefix}.labels" in Admin(load(kafka=place.kafka)).existing(), lambda: "no topics")
    place.produce("labels", b"no record")
    sent = subprocess.run([LRAI, "label", "labels.csv", "--by", "the office"], env=place.env, cwd=place.folder,
                          capture_output=True, text=True, timeout=WAIT_S, check=True)  # fmt: skip
    assert "4 label(s) sent" in sent.stdout
    states = "select request_id, outcome, state from audit.label order by \"offset\""
    waiting = [("r0", "yes", "pending"), ("r1", "no", "pending"), ("later", "yes", "pending"), ("r0", "no", "pending")]
    until(lambda: fetch(place.store, states) == waiting, lambda: fetch(place.store, states))
    place.produce("decisions", framing.encode("decision_batch", batch_of(rows)))
    joined = [("r0", "yes", "joined"), ("r1", "no", "joined"), ("later", "yes", "pending"), ("r0", "no", "refused")]
    until(lambda: fetch(place.store, states) == joined, lambda: fetch(place.store, states))
    assert fetch(place.store, "select reason from audit.refused_record") == [("unknown_schema",)]
    women = {"attribute": "sex", "group": "F", "decided": 2, "favourable": 2, "positive": 1, "true_positive": 1}
    until(lambda: bool(place.totals()), lambda: "no totals")
    assert (place.totals()[-1]["id"], place.totals()[-1]["groups"]) == ("m/1/2", [women])


def _complaints(place: Place) -> None:
    app = complaints.app
    number = place.call(app, "add", "r0", "--text", "[red]unfair", "--by", "person-17").stdout.strip()
    unknown = place.call(app, "add", "never", "--text", "unfair", "--model", "m")
    assert "not in the store" in unknown.stderr
    found = json.loads(place.call(app, "list", "--open", "--json").stdout)
    shown = {(row["request_id"], row["known"], row["version"]) for row in found}
    assert shown == {("r0", True, "1"), ("never", False, None)}
    assert "[red]unfair" in place.call(app, "list").stdout
    assert "is closed" in place.call(app, "close", number, "--by", "ann", "--text", "put right").stdout
    again = place.call(app, "close", number, "--text", "again").exception
    assert isinstance(again, LraiError) and "was closed by ann" in str(again)
    assert "no complaint" in str(place.call(app, "close", "c0", "--text", "x").exception)
    empty = place.call(app, "add", "r0", "--text", "").exception
    assert isinstance(empty, BadSetting) and "1 to 10000" in str(empty)
    nowhere = place.call(app, "add", "r1", "--text", "x", STORE="postgresql://nobody@127.0.0.1:1/none")
    assert nowhere.exit_code == 0 and "on its way" in nowhere.stderr
