"""A newcomer with only the README: every command and every block of it, on real parts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from infra.parts import Parts
from tests.conftest import fresh_store

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WAIT_S = 60.0
ROWS = 178  # of the README's data set


def blocks(path: str, name: str) -> list[str]:
    """The code blocks of a document that are marked with this name."""
    found = re.findall(rf"<!-- test: {name} -->\n( *)```\w+\n(.*?)\n *```", (ROOT / path).read_text(), re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


@dataclass
class Desk:
    """A newcomer's folder and shell."""

    folder: Path
    environment: dict[str, str]
    prefix: str
    kafka: str
    store: str

    def run(self, *command: str, code: int = 0) -> str:
        """Standard output of a command, which must end with `code` and never with a traceback."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def lrai(self, *args: str, code: int = 0) -> str:
        return self.run("lrai", *args, code=code)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """`lrai` in the background, when it is ready."""
        with (self.folder / f"{'-'.join(args[:3])}.log").open("w") as log:
            process = subprocess.Popen(
                ["lrai", *args], cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if line != "lrai ready\n":
            process.kill()
            process.wait()
            raise AssertionError(f"{line!r}: " + Path(log.name).read_text()[-3000:])
        return process


def stop(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def desk(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "schemas").symlink_to(ROOT / "schemas")
    prefix = f"cli{os.getpid()}"
    with fresh_store(parts.store) as store:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LRAI_")}
        named = {"LRAI_KAFKA": parts.kafka, "LRAI_STORE": store, "LRAI_STATE": str(folder / "state"),
                 "LRAI_PREFIX": prefix, "PATH": f"{BIN}:{os.environ['PATH']}"}  # fmt: skip
        yield Desk(folder, {**clean, **named}, prefix, parts.kafka, store)


@pytest.fixture(scope="module")
def model(desk: Desk) -> None:
    """The README's model and its rows."""
    (code,) = blocks("README.md", "model")
    desk.run(sys.executable, "-W", "ignore", "-c", code)


@pytest.fixture(scope="module")
def up(desk: Desk, model: None) -> Iterator[None]:
    process = desk.start("up", "--models", "models")
    yield
    assert stop(process) == 0


def test_models_are_checked(desk: Desk, model: None) -> None:
    assert "wine" in desk.lrai("models", "check", "models")


def test_readme_commands_and_client(desk: Desk, up: None) -> None:
    (commands,) = blocks("README.md", "send")
    shown = desk.run("sh", "-ec", commands)
    assert f"{ROWS} sent, {ROWS} answered" in shown
    assert "work-wine-1" in shown and "complete: no hole, nothing twice" in shown
    (client,) = blocks("README.md", "client")
    (desk.folder / "client.py").write_text(client.replace('"lrai.re', f'"{desk.prefix}.re'))
    (arguments,) = re.findall(r"`python client.py (.*?)`", (ROOT / "README.md").read_text())
    answer = desk.run(sys.executable, "client.py", *arguments.split())
    assert answer.startswith("OK None None\n")
    assert "output_label [1] [" in answer

    def audited() -> bool:
        with psycopg.connect(desk.store) as connection:
            row = connection.execute(
                "select count(*), count(*) filter (where attributes ? 'region'), count(subject_pseudonym)"
                " from audit.decision where model = 'wine' and status = 'OK'"
            ).fetchone()
        return row == (ROWS + 1, ROWS + 1, 1)

    until(audited, "the audit rows did not come")


def test_questions_of_the_documents(desk: Desk, up: None) -> None:
    texts = blocks("README.md", "sql") + blocks("docs/audit.md", "sql")
    statements = [each for text in texts for each in text.split(";") if each.strip()]
    assert len(statements) >= 10
    with psycopg.connect(desk.store) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_send_without_repository_jsonl_and_npz(desk: Desk, up: None) -> None:
    row = [13.2, 1.78, 2.14, 11.2, 100, 2.65, 2.76, 0.26, 1.28, 4.38, 1.05, 3.4, 1050]
    lines = [{"inputs": {"X": [row, row]}}, {"inputs": {"X": row[:3]}}]
    (desk.folder / "two.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shown = desk.lrai("send", "wine", "two.jsonl", "--models", "nowhere", "--input", "X:FP32:13", "--wait", code=1)
    assert "wrong_shape" in shown and "2 sent, 2 answered" in shown
    save = f"import numpy as np; np.savez('rows.npz', np.tile(np.array({row}), (10, 1)))"
    desk.run(sys.executable, "-c", save)
    bulk = ("--priority", "bulk", "--rows-per-request", "4", "--models", "models", "--wait")
    assert "3 sent, 3 answered" in desk.lrai("send", "wine", "rows.npz", *bulk)
    late = desk.lrai("send", "wine", "rows.npz", "--models", "models", "--deadline-ms", "1", "--wait", code=1)
    assert "EXPIRED" in late


def test_results(desk: Desk, up: None) -> None:
    found = desk.lrai("results", "-n", "2", "--priority", "standard").splitlines()
    assert len(found) == 2
    record = json.loads(found[0])
    assert record["model"] == "wine" and record["request"]["topic"] == f"{desk.prefix}.requests.standard"
    assert desk.lrai("results", "--model", "nobody") == ""
    follow = subprocess.Popen(
        ["lrai", "results", "--follow", "-n", "1"],
        cwd=desk.folder,
        env=desk.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: sends_and_sees(desk, follow), "nothing was followed")
        assert follow.stdout is not None
        assert json.loads(follow.stdout.read())["status"] == "OK"
    finally:
        follow.kill()
        follow.wait()
        if follow.stdout:
            follow.stdout.close()


def sends_and_sees(desk: Desk, follow: subprocess.Popen[str]) -> bool:
    """It may not listen yet at the first try."""
    desk.lrai("send", "wine", "wine.csv", "--models", "models", "--ignore", "region", "--wait")
    return follow.poll() == 0


def test_dead_letters(desk: Desk, up: None) -> None:
    producer = Producer({"bootstrap.servers": desk.kafka})
    producer.produce(f"{desk.prefix}.requests.standard", b"hello", b"key", headers=[("mine", b"1")])
    assert producer.flush(WAIT_S) == 0

    def letters() -> list[dict[str, object]]:
        return [json.loads(line) for line in desk.lrai("deadletter", "list", "--json").splitlines()]

    until(lambda: len(letters()) == 1, "no dead letter came")
    (first,) = letters()
    assert first["reason"] == "unknown_framing" and first["replays"] == 0 and first["bytes"] == 5
    place = (str(first["partition"]), str(first["offset"]))
    shown = desk.lrai("deadletter", "show", *place)
    assert "mine: 1" in shown and "key b'key'" in shown and "68 65 6c 6c 6f" in shown and "|hello|" in shown
    assert "sent again" not in desk.lrai("deadletter", "replay", *place, code=1)
    assert "1 record(s) sent again" in desk.lrai("deadletter", "replay", *place, "--yes")
    until(lambda: len(letters()) == 2, "the replayed record did not come back")
    assert sorted(int(str(each["replays"])) for each in letters()) == [0, 1]
    assert letters() == [
        json.loads(line)
        for line in desk.lrai("deadletter", "list", "--json", "--reason", "unknown_framing").splitlines()
    ]
    assert desk.lrai("deadletter", "list", "--json", "--reason", "empty_value") == ""
    desk.lrai("deadletter", "show", "0", "999999", code=1)


def test_status_and_verify(desk: Desk, up: None) -> None:
    found = json.loads(desk.lrai("status", "--json"))
    assert not found["problems"]
    assert {each["state"] for each in found["actors"]} == {"ready"}
    lags = {each["topic"]: each["lag"] for each in found["lanes"]}
    assert lags[f"{desk.prefix}.requests.standard"] == 0

    def whole() -> bool:
        report = json.loads(desk.lrai("audit", "verify", "--json"))
        assert report["ok"]
        return bool(report["records"] == report["decisions"] + report["dead_letters"] > ROWS)

    until(whole, "the audit record is not complete")
    with psycopg.connect(desk.store) as connection:
        connection.execute("delete from audit.decision_row where ctid in (select ctid from audit.decision_row limit 1)")
    assert not json.loads(desk.lrai("audit", "verify", "--grace-s", "0", "--json", code=1))["ok"]


def members(desk: Desk, group: str) -> list[tuple[str, int]]:
    admin = AdminClient({"bootstrap.servers": desk.kafka})
    found = admin.describe_consumer_groups([f"{desk.prefix}-{group}"])[f"{desk.prefix}-{group}"].result(WAIT_S)
    return sorted((each.group_instance_id[-1], len(each.assignment.topic_partitions)) for each in found.members)


def test_roles_alone_and_scale_down(desk: Desk, model: None) -> None:
    """Other topics than the others' tests: roles start one by one, in any order."""
    alone = Desk(
        desk.folder, {**desk.environment, "LRAI_PREFIX": f"{desk.prefix}r"}, f"{desk.prefix}r", desk.kafka, desk.store
    )
    started: list[subprocess.Popen[str]] = []
    try:
        started.append(alone.start("run", "work", "--model", "wine"))
        started.append(alone.start("run", "audit"))
        started.append(alone.start("run", "coalesce"))
        second = alone.start("run", "coalesce", "--priority", "standard", "--slot", "1", "--leave")
        until(lambda: members(alone, "coalesce-standard") == [("0", 2), ("1", 2)], "the partitions were not shared")
        assert stop(second) == 0
        # without --leave the group would wait for the member for session_timeout_ms
        assert members(alone, "coalesce-standard")[0][0] == "0" and len(members(alone, "coalesce-standard")) == 1
        alone.lrai("send", "wine", "wine.csv", "--models", "models", "--ignore", "region", "--wait")
    finally:
        codes = [stop(each) for each in reversed(started)]
    assert codes == [0, 0, 0]


def test_demo(tmp_path: Path) -> None:
    """Its own parts, without a terminal."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LRAI_")}
    done = subprocess.run([BIN / "lrai", "demo"], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "20000 requests in 10 s: 20000 OK" in done.stdout
    assert "complete: no hole, nothing twice" in done.stdout
    assert "audit.selection_rate_by_attribute" in done.stdout
