"""The contenders, each one or more processes: start, wait until warm, go, wait until settled, stop."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import psutil  # type: ignore[import-untyped,unused-ignore]
import psycopg

from infra.server import free_port
from streams import topics

START_S_MAX = 60.0
STOP_S_MAX = 60.0
SETTLE_S_MAX = 120.0
AUDIT_POLL_S = 0.1
LOG_TAIL = 1500


class Failed(Exception):
    """A contender could not start, or did not finish."""


class Child:
    """A subprocess that talks in lines; its standard error goes to a log file. It ends with this object's `stop`."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log, self.name = log, log.stem
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, timeout_s: float) -> str:
        """The next line. Raises Failed at the end of the output or after the timeout."""
        try:
            line = self._lines.get(timeout=max(timeout_s, 0.01))
        except queue.Empty:
            raise Failed(f"{self.name} said nothing for {timeout_s:.0f} s{self.tail()}") from None
        if line is None:
            raise Failed(f"{self.name} ended with {self.process.wait()}{self.tail()}")
        return line

    def wait_for(self, wanted: str, timeout_s: float = START_S_MAX) -> None:
        """Reads lines up to the wanted one."""
        end = time.monotonic() + timeout_s
        while self.line(end - time.monotonic()).strip() != wanted:
            pass

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def tail(self) -> str:
        """The end of its log, for an error message."""
        text = self.log.read_text(errors="replace")[-LOG_TAIL:].strip()
        return f":\n{text}" if text else ""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it and everything it started. Returns its exit status."""
        family = [self.process.pid]
        with suppress(psutil.Error):
            family += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S_MAX)
        for pid in family:
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
        return self.process.wait()


@dataclass(frozen=True)
class Place:
    """Where a round takes place; `source` is the request topic that all contenders of the round read."""

    kafka: str
    store: str
    models: Path
    prefix: str
    logs: Path
    priority: str = "standard"

    @property
    def source(self) -> str:
        return topics.requests(self.prefix, self.priority)


class Contender(Protocol):
    """What the rounds need of a contender."""

    name: str
    target: str
    """the topic of its results, known after start"""

    def start(self, place: Place, live: bool = False) -> None: ...

    def go(self) -> float: ...

    def settled(self, records: int) -> float:
        """time.monotonic() when everything that it owes is done, 0 when its results are all of it."""
        ...

    def stop(self) -> None: ...


class Loops:
    """One of tests/bench/loops.py, in one process or more."""

    def __init__(self, name: str, loop: str, shares: int = 1, threads: int = 1) -> None:
        self.name, self.target = name, ""
        self._loop, self._shares, self._threads = loop, shares, threads
        self._children: list[Child] = []

    def start(self, place: Place, live: bool = False) -> None:
        from tests.bench.load import create_topics

        ident = uuid.uuid4().hex[:8]
        self.target = f"{place.prefix}.out.{ident}"
        create_topics(place.kafka, [self.target])
        command = [sys.executable, "-m", "tests.bench.loops", self._loop, "--kafka", place.kafka]
        command += ["--source", place.source, "--target", self.target, "--group", f"{place.prefix}-{ident}"]
        command += ["--models", str(place.models), "--threads", str(self._threads), "--shares", str(self._shares)]
        command += ["--live"] if live else []
        self._children = [
            Child([*command, "--share", str(share)], place.logs / f"{self._loop}-{share}.log")
            for share in range(self._shares)
        ]
        for child in self._children:
            child.wait_for("ready")

    def go(self) -> float:
        at = time.monotonic()
        for child in self._children:
            child.tell("go")
        return at

    def settled(self, records: int) -> float:
        return 0.0

    def stop(self) -> None:
        for child in self._children:
            child.stop()


def new_database(store: str) -> str:
    """Creates an empty database on the server. Returns its URL."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(store, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    return urlunsplit(urlsplit(store)._replace(path=f"/{name}"))


def drop_database(store: str, url: str) -> None:
    """Drops what `new_database` made."""
    name = urlsplit(url).path.removeprefix("/")
    with psycopg.connect(store, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)".encode())


class Lrai:
    """`lrai up`: exactly-once and audited; settled when the last audit row is committed."""

    name = "LRAI"
    options: Mapping[str, str] = MappingProxyType({})
    """further settings, as environment"""

    def __init__(self) -> None:
        self.target = ""
        self._child: Child | None = None
        self._place: Place | None = None
        self._store = ""

    @property
    def place(self) -> Place:
        assert self._place, "not started"
        return self._place

    @property
    def child(self) -> Child:
        assert self._child, "not started"
        return self._child

    def start(self, place: Place, live: bool = False) -> None:
        self._place, self._store = place, new_database(place.store)
        self.target = topics.results(place.prefix, place.priority)
        lrai = Path(sys.executable).with_name("lrai")
        command = [str(lrai), "up", "--models", str(place.models), "--kafka", place.kafka, "--store", self._store]
        env = os.environ | {"LRAI_PREFIX": place.prefix, "LRAI_METRICS_PORT": str(free_port())}
        env |= {"PYTHONFAULTHANDLER": "1", **self.options}
        try:
            self._child = Child(command, place.logs / f"lrai-{place.prefix}.log", env)
        except OSError as err:
            raise Failed(f"{lrai} cannot be started: {err}") from err
        self._child.wait_for("lrai ready")

    def go(self) -> float:
        return time.monotonic()

    def settled(self, records: int) -> float:
        end = time.monotonic() + SETTLE_S_MAX
        with psycopg.connect(self._store, autocommit=True) as connection:
            while (rows := self._rows(connection)) < records:
                if time.monotonic() > end:
                    raise Failed(f"{records} results, but {rows} audit rows after {SETTLE_S_MAX:.0f} s more")
                time.sleep(AUDIT_POLL_S)
            at = time.monotonic()
            if rows > records:
                raise Failed(f"{rows} audit rows for {records} requests")
            return at

    def _rows(self, connection: psycopg.Connection[Any]) -> int:
        row = connection.execute("select count(*) from audit.decision_row").fetchone()
        return int(row[0]) if row else 0

    def family(self) -> list[psutil.Process]:
        """Its processes, the parent first."""
        parent = psutil.Process(self.child.process.pid)
        return [parent, *parent.children(recursive=True)]

    def resident_bytes(self) -> dict[str, int]:
        """RSS of each process, by what it does."""
        children = re.findall(r'"child": "([^"]+)", "pid": (\d+)', self.child.log.read_text(errors="replace"))
        roles = {int(pid): child.removeprefix(f"{self.place.prefix}-") for child, pid in children}
        sizes: dict[str, int] = {}
        for process in self.family():
            with suppress(psutil.Error):
                own = "supervisor" if process.pid == self.child.process.pid else "fork server"
                sizes[roles.get(process.pid, own)] = process.memory_info().rss
        return sizes

    def metric(self, name: str) -> float:
        """The sum of a metric over the Prometheus endpoints of all its processes; NaN where none has it."""
        found: list[float] = []
        for process in self.family():
            ports: list[int] = []
            with suppress(psutil.Error):
                ports = [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            for port in ports:
                found += _samples(port, name)
        return sum(found) if found else float("nan")

    def stop(self) -> None:
        if self._child:
            self._child.stop()
            self._child = None
        if self._store:
            drop_database(self.place.store, self._store)
            self._store = ""


def _samples(port: int, name: str) -> list[float]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, OSError, ValueError):
        return []
    return [float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)", text, re.MULTILINE)]


class Reader:
    """tests/bench/reader.py on a topic, or on several with commas between."""

    def __init__(
        self, kafka: str, topic: str, expected: int, logs: Path, arrived: Path | None = None, quiet_s: float = 60.0,
        statuses: Path | None = None,
    ) -> None:  # fmt: skip
        self.topic, self.expected = topic, expected
        command = [sys.executable, "-m", "tests.bench.reader", "--kafka", kafka, "--topic", *topic.split(",")]
        command += ["--expected", str(expected), "--quiet-s", str(quiet_s)]
        command += ["--arrived", str(arrived)] if arrived else []
        command += ["--statuses", str(statuses)] if statuses else []
        self._child = Child(command, logs / "reader.log")
        self._child.wait_for("ready")

    def progress(self) -> tuple[int, dict[str, Any] | None]:
        """Waits for the next report: (read so far, what it found at the end or None)."""
        said = json.loads(self._child.line(SETTLE_S_MAX))
        return said["read"], said.get("end")

    def finish(self) -> float:
        """Waits for all results. Returns when the last was read. Raises Failed if some are missing or not OK."""
        while True:
            count, end = self.progress()
            if end is None:
                continue
            self.stop()
            if count != self.expected:
                raise Failed(f"{count} of {self.expected} results came on {self.topic}")
            if end["wrong"]:
                raise Failed(f"results of {self.topic} are not OK: {end['wrong'][0]}")
            return float(end["last"])

    def stop(self) -> None:
        self._child.stop()
