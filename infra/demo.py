"""`lrai demo`: real parts, small models, ten seconds of events over three priorities, answers and SQL."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from confluent_kafka.admin import AdminClient
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from audit.verify import verify
from infra import demo_equity, demo_models
from infra.commands import shown
from infra.demo_load import RATE, SECONDS, Feed, Figures, Listener
from infra.parts import Parts, parts
from infra.server import PartsError, cache_folder
from kernels import gate, manifest
from kernels.manifest import Manifest
from kernels.repository import load_model
from schemas.errors import LraiError
from streams import clients
from streams.settings import Settings, load
from streams.topics import PRIORITIES

READY_S_MAX = 60.0
STOP_S_MAX = 30.0
DRAIN_S_MAX = 30.0
PLAIN_EVERY_S = 2.0
LOOK_EVERY_S = 0.25
EXAMPLE = "diabetes"
LOG = "up.log"
# `lrai up`: loaded while Kafka starts, run when its settings come; ends with the demo, however that ends
_BOOT = """\
import ctypes, json, os, shutil, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
folder, demo = sys.argv.pop(), int(sys.argv.pop())
try:
    if os.getppid() == demo:
        import lrai, workers.pipeline
        os.environ.update(json.loads(sys.stdin.readline() or sys.exit(1)))
        lrai.main()
finally:
    if os.getppid() != demo:
        shutil.rmtree(folder, ignore_errors=True)
"""
QUERIES = (
    """select request_id, model, variant, left(certificate, 8) as certificate, status,
       round(score::numeric, 3) as score, decision, attributes, left(subject_pseudonym, 8) as subject, batch_rows
       from audit.decision order by received_at desc limit 5""",
    """select model, variant, requests, round(total_s_p50::numeric, 4) as p50_s,
       round(total_s_p95::numeric, 4) as p95_s, round(total_s_p99::numeric, 4) as p99_s
       from audit.latency_by_model order by model, variant""",
    """select model, hour, status, error_code, requests, rows
       from audit.outcome_by_model_hour order by model, hour, status""",
    """select model, attribute, "group", decision, n, round(selection_rate::numeric, 3) as selection_rate
       from audit.selection_rate_by_attribute where decision = 'high' order by attribute, "group" """,
)


@dataclass(frozen=True)
class Place:
    """Where the demo runs."""

    settings: Settings
    folder: Path
    models: list[str]


class Steps:
    """What is waited for, one bar each; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description:<10}"), BarColumn(20),
                   TimeElapsedColumn(), TextColumn("{task.fields[now]}"))  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks = {name: self._progress.add_task(name, total=None, now="") for name in STEPS}

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, name: str, now: str, done: int = 0, total: int | None = None) -> None:
        """What the step is at; `done` of `total` when that is known."""
        self._progress.update(self._tasks[name], now=now, completed=done, total=total)
        if not self._console.is_terminal:
            self._console.print(f"{name}: {now}", markup=False, highlight=False)

    def part(self, line: str) -> None:
        """A line of infra.parts: `Kafka: starting`."""
        name, _, now = line.partition(": ")
        done = int(now == "ready")
        if name in self._tasks:
            self.tell(name, now, done, 1 if done else None)

    def models(self, name: str, done: int, total: int) -> None:
        self.tell("models", f"training and compiling {name}" if name else "ready", done, total)


STEPS = ("Kafka", "Postgres", "models", "pipeline")


def run(console: Console, keep: bool) -> None:
    """The whole demo; with `keep` it stays up until Ctrl-C. Raises LraiError."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        with Steps(console) as steps:
            place = _start(stack, steps)
        figures = _feed(console, place)
        _variants(console, place)
        _results(console, place, figures)
        demo_equity.show(console, place.settings, {**os.environ, **_environment(place.settings)})
        _invitation(console, place, keep)
        if keep:
            with contextlib.suppress(SystemExit):  # Ctrl-C, as announced
                threading.Event().wait()


def _start(stack: ExitStack, steps: Steps) -> Place:
    """Parts and models at once, then the pipeline."""
    models = cache_folder("demo-models")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lrai-demo-")))
    process = _boot(folder)
    stack.callback(_stop, process)
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(demo_models.train, models, steps.models)
        running = stack.enter_context(parts(steps.part))
        names = training.result()
    stack.callback(_discard, running)
    settings = load(
        kafka=running.kafka, store=stack.enter_context(_database(running)), models=models, state=folder,
        prefix="lrai" if running.kafka_server else f"lrai-demo-{secrets.token_hex(3)}",
    )  # fmt: skip
    if not running.kafka_server:
        stack.callback(_delete_topics, settings)
    stack.callback(_stop, process)  # before what it uses
    _run_pipeline(process, settings, len(names), steps)
    return Place(settings, folder, names)


def _discard(running: Parts) -> None:
    """What they hold goes with the demo, so they need not end well."""
    for server in (running.kafka_server, running.postgres_server):
        if server:
            server.kill()


@contextmanager
def _database(running: Parts) -> Iterator[str]:
    """The embedded store as it is; of another one a database of our own, dropped afterwards."""
    if running.postgres_server:
        yield running.store
        return
    name = f"lrai_demo_{secrets.token_hex(4)}"
    try:
        with psycopg.connect(running.store, autocommit=True) as connection:
            connection.execute(f"create database {name}")
    except psycopg.Error as err:
        raise PartsError(f"LRAI_STORE: the demo needs a database of its own there: {str(err).strip()}") from err
    try:
        yield urlunsplit(urlsplit(running.store)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(running.store, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")


def _delete_topics(settings: Settings) -> None:
    admin = AdminClient(clients.common(settings, "demo"))
    names = [name for name in admin.list_topics(timeout=10).topics if name.startswith(f"{settings.prefix}.")]
    for future in admin.delete_topics(names).values() if names else ():
        future.result(30)


def _boot(folder: Path) -> subprocess.Popen[str]:
    with (folder / LOG).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, "up", str(os.getpid()), str(folder)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip


def _run_pipeline(process: subprocess.Popen[str], settings: Settings, models: int, steps: Steps) -> None:
    """Waits until it is ready. Raises PartsError with the end of its log."""
    steps.tell("pipeline", "lrai up")
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(_environment(settings)) + "\n")
        process.stdin.close()
    total, said, log = len(PRIORITIES) + models + 2, 0, settings.state / LOG
    end = time.monotonic() + READY_S_MAX
    while not select.select([process.stdout], [], [], LOOK_EVERY_S)[0] and time.monotonic() < end:
        done = log.read_text().count('"event": "ready"')
        if done != said:
            said = done
            steps.tell("pipeline", f"{done} of {total} processes ready", done, total)
    if not select.select([process.stdout], [], [], 0)[0] or process.stdout.readline() != "lrai ready\n":
        raise PartsError("\n  ".join(["lrai up did not become ready:", *log.read_text().splitlines()[-8:]]))
    steps.tell("pipeline", "ready", total, total)


def _environment(settings: Settings) -> dict[str, str]:
    """The settings of the demo, for `lrai` in any shell."""
    return {
        "LRAI_KAFKA": settings.kafka, "LRAI_STORE": settings.store, "LRAI_MODELS": str(settings.models),
        "LRAI_STATE": str(settings.state), "LRAI_PREFIX": settings.prefix,
    }  # fmt: skip


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _feed(console: Console, place: Place) -> Figures:
    """Ten seconds of events, shown as they go; until every one has its answer and its row."""
    figures = Figures.of(place.models, RATE * SECONDS)
    rows = {name: demo_models.rows(place.settings.models, name) for name in place.models}
    feed, listener = Feed(place.settings, rows, figures), Listener(place.settings, figures)
    listener.start()
    feed.start()
    try:
        with psycopg.connect(place.settings.store, autocommit=True) as connection:
            _watch(console, figures, lambda: _count(connection))
    finally:
        feed.end()
        listener.end()
        feed.join()
        listener.join()
    return figures


def _count(connection: psycopg.Connection) -> int:
    row = connection.execute("select count(*) from audit.decision_row").fetchone()
    return int(row[0]) if row else 0


def _watch(console: Console, figures: Figures, count: Callable[[], int]) -> None:
    """Shows the figures until all is done. Raises LraiError when it is not done in time."""
    total = len(figures.model)
    bar = Progress(TextColumn("{task.description:<8}"), BarColumn(40), TextColumn("{task.completed} of {task.total}"))
    tasks = [bar.add_task(name, total=total) for name in ("sent", "answered", "audited")]
    end = time.monotonic() + SECONDS + DRAIN_S_MAX
    said = time.monotonic()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            done = (figures.sent, figures.answered, count())
            now = time.monotonic()
            for task, number in zip(tasks, done, strict=True):
                bar.update(task, completed=number)
            if console.is_terminal:
                live.update(Group(bar, _table(figures.lines(now))))
            elif now - said >= PLAIN_EVERY_S:
                said = now
                console.print("{} sent, {} answered, {} audit rows".format(*done))
            if min(done) >= total:
                return
            if now > end:
                raise LraiError("after {:.0f} s: {} sent, {} answered, {} audit rows".format(DRAIN_S_MAX, *done))
            time.sleep(LOOK_EVERY_S)


def _table(lines: list[tuple[str, float, float, int, float, float]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "in/s", "out/s", "in flight", "p50 ms", "p95 ms"):
        table.add_column(name, justify="right" if name else "left", min_width=9)
    for number, (name, rate_in, rate_out, flight, p50, p95) in enumerate(lines):
        times = (f"{each:.0f}" if each == each else "-" for each in (p50, p95))
        cells = (name, f"{rate_in:.0f}", f"{rate_out:.0f}", str(flight), *times)
        table.add_row(*cells, end_section=number == len(PRIORITIES) - 1)
    return table


def _variants(console: Console, place: Place) -> None:
    """What `lrai compile` made of each model, beside the original; `serves` is what model.toml prefers."""
    console.rule("compiled variants, on this machine")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "variant", "bits", "file kB", "us/row", "at rows", "faster", "max error", "labels",
                 "certificate", "serves"):  # fmt: skip
        words = name in ("model", "variant", "bits", "certificate", "serves")
        table.add_column(name, justify="left" if words else "right")
    for name in place.models:
        folder = place.settings.models / name / demo_models.VERSION
        original = manifest.read_original(folder)
        assert original is not None, "compiled with the others"
        found = [original, *manifest.read_variants(folder).values()]
        (serves,) = load_model(place.settings.models, name, demo_models.VERSION).prefer or (original.name,)
        for each in found:
            verdict = _verdict(folder / manifest.FOLDER / each.name / gate.FILE)
            table.add_row(name, *_gain(each, original), verdict, "yes" if each.name == serves else "")
    console.print(table)


def _verdict(certificate: Path) -> str:
    """What is known of a variant over the range of the rows: the original answers outside of it."""
    return str(json.loads(certificate.read_text())["verdict"]) if certificate.exists() else "-"


def _gain(each: Manifest, original: Manifest) -> tuple[str, ...]:
    """A row of figures, times at the best batch size of each."""
    took, took_before = (one.profile.seconds[one.profile.best_rows] / one.profile.best_rows for one in (each, original))
    labels = "-" if each.error.label_agreement is None else f"{each.error.label_agreement:.1%}"
    return (each.name, each.bits, f"{each.file_bytes / 1e3:.1f}", f"{took * 1e6:.2f}", str(each.profile.best_rows),
            f"{took_before / took:.1f}x", f"{each.error.max:.1e}", labels)  # fmt: skip


def _results(console: Console, place: Place, figures: Figures) -> None:
    """Latencies of the whole run, answers, SQL, and whether the record is complete."""
    statuses = ", ".join(f"{count} {status}" for status, count in figures.statuses.items())
    console.rule(f"{figures.sent} requests in {SECONDS} s: {statuses}")
    console.print("Latency from produce to the reader of the answer, over the whole run:")
    console.print(_table(figures.whole()))
    console.rule("answers")
    for name in sorted(figures.samples):
        console.print(json.dumps(figures.samples[name]), markup=False, overflow="ellipsis", no_wrap=True)
    console.rule("the audit store")
    with psycopg.connect(place.settings.store) as connection:
        for query in QUERIES:
            _query(console, connection, query)
    console.rule("lrai audit verify")
    shown.report(console, verify(place.settings.store, datetime.now(UTC), 0.0))


def _query(console: Console, connection: psycopg.Connection, query: str) -> None:
    text = " ".join(query.split())
    console.print(f"{text};", style="cyan", markup=False, highlight=False, soft_wrap=True)
    cursor = connection.execute(query.encode())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in cursor.description or ():
        table.add_column(column.name)
    for row in cursor:
        table.add_row(
            *("" if each is None else json.dumps(each) if isinstance(each, dict) else str(each) for each in row)
        )
    console.print(table)
    console.print()


def _invitation(console: Console, place: Place, keep: bool) -> None:
    """How to send requests of one's own."""
    console.rule("your own requests")
    if not keep:
        console.print(
            "`make demo KEEP=1` stays up and prints the commands; README.md says how to bring a model of your own."
        )
        return
    settings, example = place.settings, place.folder / f"{EXAMPLE}.csv"
    demo_models.write_example(settings.models, EXAMPLE, example)
    lrai = Path(sys.executable).with_name("lrai")
    commands = [
        *(f"export {name}='{value}'" for name, value in _environment(settings).items()),
        f"{lrai} send {EXAMPLE} {example} --attribute sex --attribute age --subject-column patient --wait",
        f"{lrai} results --follow",
        f"{lrai} status",
        f"{lrai} equity review {EXAMPLE}",
        f"{lrai} report equity --from {datetime.now(UTC):%Y-%m-%d} --to {datetime.now(UTC):%Y-%m-%d}",
        f"{lrai} audit verify",
    ]
    console.print("In another shell:")
    for command in commands:
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Any Postgres client shows the audit record: {settings.store}", highlight=False, soft_wrap=True)
    console.print("Ctrl-C ends it and removes everything.")
