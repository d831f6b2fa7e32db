"""The demo's disparity: injected at a known moment, established, frozen, reviewed, ended by a person."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from confluent_kafka import Producer
from rich.console import Console

from infra import demo_models
from infra.commands.reading import Reader, decode_answer
from infra.demo_models import INPUT, Rows
from schemas import framing, requests
from schemas.errors import LraiError
from schemas.tensors import to_wire
from streams import clients, topics
from streams.settings import Settings

MODEL, ATTRIBUTE, GROUP = "diabetes", "sex", "group 1"
FEATURE = 1  # mean blood pressure
KPA = 0.133322  # of 1 mmHg
RATE = 1_000  # requests a second
STEP_S_MAX = 30.0
BATCH = 20
AFTERWARDS = 100  # requests
PRIORITY = "standard"
BY, REASON = "demo", "the client sends mmHg again"
COMMAND_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Injected:
    """What came of it: how many requests and how long until the first answer under the freeze."""

    requests: int
    frozen_s: float


def show(console: Console, settings: Settings, environment: dict[str, str]) -> None:
    """Injects, waits for the freeze, reviews it, ends it. Raises LraiError when a step does not come in time."""
    console.rule("a disparity, injected")
    found = demo_models.rows(settings.models, MODEL)
    at = datetime.now(UTC)
    console.print(f"{at:%Y-%m-%d %H:%M:%S} UTC: a client begins to send blood pressures of {GROUP} in kPa, not mmHg.")
    with _Client(settings) as client:
        injected = client.until_frozen(in_other_units(found))
        console.print(f"{injected.frozen_s:.1f} s and {injected.requests} requests later {MODEL} is frozen:")
        _incident(console, settings, at)
        _lrai(console, environment, "equity", "review", MODEL)
        _lrai(console, environment, "equity", "unfreeze", MODEL, "--by", BY, "--reason", REASON)
        waited = client.until_answered(found)
        console.print(f"{MODEL} answers again, {waited:.1f} s later. audit.incident holds who did what, when and why.")


def in_other_units(found: Rows) -> Rows:
    features = found.features.copy()
    for row, attributes in enumerate(found.attributes):
        if attributes[ATTRIBUTE] == GROUP:
            features[row, FEATURE] *= KPA
    return Rows(features, found.attributes, found.subjects)


class _Client:
    """Asks and reads the answers to its own requests."""

    def __init__(self, settings: Settings) -> None:
        self._reader = Reader(settings, [topics.results(settings.prefix, PRIORITY)], 0)
        self._topic = topics.requests(settings.prefix, PRIORITY)
        options = {"linger.ms": 2, "enable.idempotence": True}
        self._producer = Producer({**clients.common(settings, "demo"), **options})
        self._sent = 0

    def __enter__(self) -> _Client:
        self._reader.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.flush(10)
        self._reader.__exit__(None, None, None)

    def until_frozen(self, rows: Rows) -> Injected:
        """At a steady rate until an answer says that it was given under a freeze."""
        began = time.monotonic()
        while time.monotonic() - began < STEP_S_MAX:
            while self._sent < (time.monotonic() - began) * RATE:
                self._send(rows)
            if "frozen" in self._codes():
                return Injected(self._sent, time.monotonic() - began)
        raise LraiError(f"no freeze within {STEP_S_MAX:.0f} s of the disparity: see the alerts and `lrai status`")

    def until_answered(self, rows: Rows) -> float:
        """A few at a time until one of them is answered with a decision; the seconds it took."""
        began = time.monotonic()
        first = self._sent
        while time.monotonic() - began < STEP_S_MAX:
            if self._sent - first < AFTERWARDS:
                self._send(rows)
            if "" in self._codes(first):
                return time.monotonic() - began
        raise LraiError(f"{MODEL} does not answer within {STEP_S_MAX:.0f} s of the unfreeze: see `lrai status`")

    def _send(self, rows: Rows) -> None:
        row = self._sent % len(rows.features)
        datatype, content = to_wire(rows.features[row])
        record = {
            "request_id": f"equity-{self._sent:06d}",
            "model": MODEL,
            "inputs": [{"name": INPUT, "datatype": datatype, "shape": [1, rows.features.shape[1]], "data": content}],
            "subject": rows.subjects[row],
            "attributes": rows.attributes[row],
        }
        self._producer.produce(self._topic, framing.encode(requests.NAME, record))
        self._producer.poll(0)
        self._sent += 1

    def _codes(self, first: int = 0) -> set[str]:
        """Error codes of the answers that have come to requests from that one on; "" of those that have none."""
        found = [decode_answer(each.value() or b"") for each in self._reader.take(0.02)]
        own = [each for each in found if each["request_id"].startswith("equity-")]
        return {each["error_code"] or "" for each in own if int(each["request_id"][7:]) >= first}


def _incident(console: Console, settings: Settings, since: datetime) -> None:
    query = "select frozen_at, by, reason from audit.incident where model = %s and frozen_at >= %s order by frozen_at"
    with psycopg.connect(settings.store, autocommit=True) as connection:
        found = _waited(lambda: connection.execute(query, [MODEL, since]).fetchone(), "audit.incident has no freeze")
    console.print(f"  {found[0]:%H:%M:%S} by {found[1]}: {found[2]}", markup=False, highlight=False, soft_wrap=True)


def _waited(look: Callable[[], tuple[object, ...] | None], otherwise: str) -> tuple[object, ...]:
    end = time.monotonic() + STEP_S_MAX
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise LraiError(f"{otherwise} within {STEP_S_MAX:.0f} s")


def _lrai(console: Console, environment: dict[str, str], *arguments: str) -> None:
    """A command as a person would type it, and what it prints. Raises LraiError with its message."""
    shown = " ".join(each if each.isidentifier() or each.startswith("--") else f"'{each}'" for each in arguments)
    console.print(f"$ lrai {shown}", style="cyan", markup=False, highlight=False)
    command = [str(Path(sys.executable).with_name("lrai")), *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False
    )
    console.print(done.stdout.rstrip(), markup=False, highlight=False, soft_wrap=True)
    if done.returncode:
        raise LraiError(f"lrai {shown}: {done.stderr.strip()}")
