"""`lrai trace`: writes down how requests come, and shows such a file."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import numpy as np
import numpy.typing as npt
import typer
from confluent_kafka import Message

from infra.commands import shown
from infra.commands.options import Kafka, Prefix, Priority, errors, group, out
from infra.commands.reading import Reader
from schemas import requests
from schemas.cursor import Cursors
from schemas.errors import BadSetting, LraiError
from streams import topics
from streams.admin import Admin
from streams.registry import Registry
from streams.settings import Settings, load
from streams.trace import GAP_S_MAX, LINE_CHARACTERS_MAX, MODELS_MAX, BadTrace, Trace, read, write

RECORDED_MAX = 20_000_000  # requests that a recording keeps in memory, 27 bytes each
RELEASES_MAX = 10_000  # remembered; a client may send any text as a version
ROWS_MAX = 65_536  # no model takes more
DEADLINE_MS_MAX = 10**15 - 1
SETTLE_MS = 1000  # what was stamped before the end may be fetched so much later
SHOW_S = 1.0
DAY_S = 86_400.0
SECONDS_MAX = 366 * DAY_S
UNKNOWN, UNDECODABLE, NO_ROWS = "of models that never ran here", "that cannot be decoded", "without usable rows"
Place = tuple[str, int]

app = group("How requests come, without what is in them: recorded from the request topics, and shown.")


@app.command("record")
def record(
    file: Annotated[Path, typer.Argument(help="The CSV file to write.")],
    seconds: Annotated[float | None, typer.Option("--seconds", help="So long; at Ctrl-C without.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="A time past, ISO 8601, UTC without a zone; now.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="A time; with --from alone, now.")] = None,
    priority: Annotated[list[Priority] | None, typer.Option("--priority", help="Repeat it; all without.")] = None,
    kafka: Kafka = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Writes when requests came, of which priority, model, rows, bytes and deadline: no ids, no payloads, no persons.

    Ctrl-C ends it with what is there.
    """
    settings = load(kafka=kafka, prefix=prefix)
    period = period_of(seconds, since, until, _now_ms())
    chosen = [each.value for each in dict.fromkeys(priority or Priority)]
    stop = threading.Event()
    with _complete(file) as target:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        found = recorded(settings, chosen, period, stop)
        if not found.taken:
            raise LraiError(f"{file}: not written, no request came on {', '.join(chosen)}{found.left_out_text}")
        target.writelines(write(found.trace()))
    text = f"{found.taken} request(s) in {file}{found.left_out_text}"
    if found.full:
        text += f"; ended at {RECORDED_MAX} requests, record the rest from {_text_of(found.newest_ms)} on"
    out.print(text, markup=False, highlight=False)


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A trace file.")],
    gap_s_max: Annotated[float, typer.Option("--gap-s-max", help="A longer silence is an error.")] = GAP_S_MAX,
) -> None:
    """Requests, rates and burstiness of a trace file, by model and priority. Checks every line."""
    shown.trace(out, load_file(file, gap_s_max))


def load_file(path: Path, gap_s_max: float = GAP_S_MAX) -> Trace:
    """Raises BadTrace with file and line, BadSetting, OSError."""
    if not 0 < gap_s_max <= DAY_S:
        raise BadSetting(f"--gap-s-max {gap_s_max:g}: name seconds above 0, at most {DAY_S:.0f}")
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as file:
        try:
            return read(iter(partial(file.readline, LINE_CHARACTERS_MAX), ""), gap_s_max)
        except BadTrace as err:
            raise BadTrace(f"{path}, {err}") from None


@contextmanager
def _complete(path: Path) -> Iterator[TextIO]:
    """A file that takes the place of `path` when all was written. Raises BadSetting, OSError where that cannot be."""
    if path.is_dir():
        raise BadSetting(f"{path}: is a folder; name a file")
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", encoding="ascii", newline="") as file:
            yield file
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Period:
    """From `start_ms` (None: from now on) to before `end_ms` (None: until told), ms since 1970."""

    start_ms: int | None
    end_ms: int | None


def period_of(seconds: float | None, since: str | None, until: str | None, now_ms: int) -> Period:
    """What the options ask for. Raises BadSetting."""
    if seconds is not None and not 0 < seconds <= SECONDS_MAX:
        raise BadSetting(f"--seconds {seconds:g}: name seconds above 0, at most {SECONDS_MAX:.0f}")
    if seconds is not None and until is not None:
        raise BadSetting(f"--seconds {seconds:g} and --to {until!r}: each says when to end; name one of them")
    start = None if since is None else _moment_ms("--from", since)
    if start is not None and start >= now_ms:
        raise BadSetting(f"--from {since!r} is not past; name an earlier time, or leave it out to begin now")
    begin = now_ms if start is None else start
    if until is not None:
        end = _moment_ms("--to", until)
        if end <= begin:
            raise BadSetting(f"--to {until!r} is not after {'--from' if since else 'now'}; name a later time")
        return Period(start, end)
    if seconds is not None:
        return Period(start, begin + math.ceil(1000 * seconds))
    return Period(start, None if start is None else now_ms)


def _moment_ms(option: str, text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadSetting(f"{option} {text!r}: is no time; write it like 2026-01-31T12:00:00+00:00") from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def _text_of(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Recording:
    """What is kept of the requests that came; only names of `known` models are."""

    def __init__(self, known: Sequence[str], schemas: requests.Schemas) -> None:
        self.known, self._schemas = tuple(known), schemas
        self.left_out: Counter[str] = Counter()
        self.newest_ms = 0
        self._index = {name.encode(): index for index, name in enumerate(known)}
        self._releases: dict[bytes, int] = {}
        codes: tuple[Literal["q", "b", "h", "i"], ...] = ("q", "b", "h", "i", "i", "q")
        self._columns = [array(code) for code in codes]  # in the order of a file

    @property
    def taken(self) -> int:
        return len(self._columns[0])

    @property
    def full(self) -> bool:
        return self.taken >= RECORDED_MAX

    @property
    def left_out_text(self) -> str:
        found = ", ".join(f"{count} {what}" for what, count in sorted(self.left_out.items()))
        return f"; left out: {found}" if found else ""

    def add(self, priority: str, at_ms: Sequence[int], values: Sequence[bytes | None]) -> None:
        """Requests of one priority, with the broker's stamp of each."""
        found = requests.decode(values, self._schemas).requests if values else None
        n = 0 if found is None else len(found.row)
        self._left_out(UNDECODABLE, len(values) - n)
        if found is None or not n:
            return
        model = np.fromiter(map(self._model, found.release.to_list()), np.int16, n)
        rows = found.tensors[0].first if found.tensors else np.zeros(n, np.int64)
        usable = (rows >= 1) & (rows <= ROWS_MAX)
        self._left_out(UNKNOWN, int((model < 0).sum()))
        self._left_out(NO_ROWS, int(((model >= 0) & ~usable).sum()))
        at = np.array(at_ms, np.int64)[found.row]
        size = np.fromiter((len(value or b"") for value in values), np.int32, len(values))[found.row]
        left = np.minimum(np.maximum(found.deadline, at) - at, DEADLINE_MS_MAX)
        deadline = np.where(found.deadline == requests.NO_DEADLINE, -1, left)
        rank = np.full(n, topics.PRIORITIES.index(priority), np.int8)
        kept = usable & (model >= 0)
        columns: list[npt.NDArray[Any]] = [at, rank, model, rows.astype(np.int32), size, deadline]
        for column, every in zip(self._columns, columns, strict=True):
            column.frombytes(every[kept].tobytes())
        self.newest_ms = max(self.newest_ms, int(at.max()))

    def _left_out(self, what: str, count: int) -> None:
        if count:
            self.left_out[what] += count

    def _model(self, release: bytes | None) -> int:
        """Index of the model that a request names, -1 of one that is not known."""
        if release is None:
            return -1
        if release not in self._releases:
            if len(self._releases) >= RELEASES_MAX:
                self._releases.clear()
            cursors = Cursors([release])
            start, length = cursors.text()
            name = cursors.buffer[int(start[0]) : int(start[0] + length[0])].tobytes()
            self._releases[release] = self._index.get(name, -1)
        return self._releases[release]

    def trace(self) -> Trace:
        """In the order of the broker's stamps, which are whole milliseconds."""
        columns: list[npt.NDArray[Any]] = [np.frombuffer(each, each.typecode) for each in self._columns]
        at, rank, model, rows, size, deadline = columns
        order = np.argsort(at, kind="stable")
        return Trace(
            (at[order] - at[order[0]]) / 1000, rank[order], model[order], self.known, rows[order], size[order],
            np.where(deadline < 0, np.nan, deadline / 1000)[order],
        )  # fmt: skip


def recorded(settings: Settings, priorities: Sequence[str], period: Period, stop: threading.Event) -> Recording:
    """Requests of the period, until `stop`. Raises BadSetting when a topic is missing, KafkaUnavailable."""
    names = {topics.requests(settings.prefix, each): each for each in priorities}
    with Reader(settings, list(names), 0, period.start_ms) as reader, errors.status("recording") as status:
        found = Recording(_models(settings), Registry(settings.registry, lambda: None))
        errors.print(f"recording {', '.join(names)}; Ctrl-C ends it", markup=False, highlight=False)
        next_shown = 0.0
        for messages in windows(reader, period, stop, _now_ms):
            for topic, priority in names.items():
                mine = [each for each in messages if each.topic() == topic]
                found.add(priority, [each.timestamp()[1] for each in mine], [_value(each) for each in mine])
            if found.full:
                break
            if time.monotonic() > next_shown:
                next_shown = time.monotonic() + SHOW_S
                status.update(f"recording: {found.taken} request(s){found.left_out_text}")
    return found


def _value(message: Message) -> bytes | None:
    value = message.value()
    return value.encode() if isinstance(value, str) else value


def windows(
    reader: Reader, period: Period, stop: threading.Event, now_ms: Callable[[], int]
) -> Iterator[list[Message]]:
    """What was stamped within the period, until each partition was read to its end after the period was over."""
    start, end = period.start_ms or 0, period.end_ms
    left: set[Place] = set(reader.behind)
    beyond: set[Place] = set()
    while left and not stop.is_set():
        over = end is not None and now_ms() >= end + SETTLE_MS
        messages = reader.take()
        late = [] if end is None else [each for each in messages if each.timestamp()[1] >= end]
        beyond.update((each.topic() or "", each.partition() or 0) for each in late)
        yield [each for each in messages if each.timestamp()[1] >= start and (end is None or each.timestamp()[1] < end)]
        if over:
            left &= reader.behind - beyond


def _models(settings: Settings) -> list[str]:
    """Those that ever ran here: they have topics. What else a request names may be anything, a person too."""
    start = topics.batches(settings.prefix, "", "", "").rstrip(".") + "."
    named = [name.removeprefix(start).split(".") for name in Admin(settings).existing() if name.startswith(start)]
    return sorted({parts[0] for parts in named if len(parts) == 3})[:MODELS_MAX]
