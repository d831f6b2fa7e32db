"""The demo's events, their answers, and what came of them so far."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer

from infra.commands.reading import Reader, decode_answer, readable
from infra.demo_models import INPUT, Rows
from schemas import framing, requests
from schemas.tensors import to_wire
from streams import clients, topics
from streams.settings import Settings
from streams.topics import PRIORITIES

RATE = 2_000  # requests a second, of all priorities
SECONDS = 10
SHARES = (0.2, 0.5, 0.3)
TICK_S = 0.01
RECENT_S = 2.0
Floats = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]
Line = tuple[str, float, float, int, float, float]


@dataclass
class Figures:
    """Of n requests: their model and priority (int8[n]), and when each was sent and answered (float64[n], NaN: not
    yet)."""

    models: list[str]
    model: npt.NDArray[np.int8]
    priority: npt.NDArray[np.int8]
    sent_at: Floats
    answered_at: Floats
    statuses: Counter[str] = field(default_factory=Counter)
    samples: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, models: list[str], n: int) -> Figures:
        rng = np.random.default_rng(0)
        model = rng.integers(0, len(models), n).astype(np.int8)
        priority = rng.choice(len(PRIORITIES), n, p=SHARES).astype(np.int8)
        return cls(models, model, priority, np.full(n, np.nan), np.full(n, np.nan))

    @property
    def sent(self) -> int:
        return int(np.isfinite(self.sent_at).sum())

    @property
    def answered(self) -> int:
        return int(np.isfinite(self.answered_at).sum())

    def lines(self, now: float, recent_s: float = RECENT_S) -> list[Line]:
        """By priority, then by model: name, requests in and answers out a second, in flight, p50 and p95 in ms."""
        chosen = [(name, self.priority == i) for i, name in enumerate(PRIORITIES)]
        chosen += [(name, self.model == i) for i, name in enumerate(self.models)]
        return [(name, *self._line(which, now, recent_s)) for name, which in chosen]

    def whole(self) -> list[Line]:
        """The same over the whole run."""
        end = float(np.nanmax(self.answered_at))
        return self.lines(end, end - float(np.nanmin(self.sent_at)) + TICK_S)

    def _line(self, which: Chosen, now: float, recent_s: float) -> tuple[float, float, int, float, float]:
        sent, answered = self.sent_at[which], self.answered_at[which]
        recent = answered > now - recent_s
        latency = answered[recent] - sent[recent]
        p50, p95 = np.percentile(latency, [50, 95]) * 1e3 if len(latency) else (np.nan, np.nan)
        flight = int(np.isfinite(sent).sum() - np.isfinite(answered).sum())
        rate_in, rate_out = (sent > now - recent_s).sum() / recent_s, recent.sum() / recent_s
        return float(rate_in), float(rate_out), flight, float(p50), float(p95)


class Feed(threading.Thread):
    """Sends the requests at a steady rate; `rows`: by model, taken in turn."""

    def __init__(self, settings: Settings, rows: dict[str, Rows], figures: Figures) -> None:
        super().__init__(name="feed", daemon=True)
        self._figures = figures
        self._rows = rows
        self._topics = [topics.requests(settings.prefix, each) for each in PRIORITIES]
        options = {"linger.ms": 2, "enable.idempotence": True}
        self._producer = Producer({**clients.common(settings, "demo"), **options})
        self._ended = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        done = 0
        while done < len(self._figures.model) and not self._ended.is_set():
            due = min(len(self._figures.model), int((time.monotonic() - began) * RATE))
            for number in range(done, due):
                self._send(number)
            done = due
            self._producer.poll(0)
            self._ended.wait(TICK_S)
        self._producer.flush(10)

    def end(self) -> None:
        self._ended.set()

    def _send(self, number: int) -> None:
        figures = self._figures
        name = figures.models[figures.model[number]]
        found = self._rows[name]
        row = number % len(found.features)
        datatype, content = to_wire(found.features[row])
        record = {
            "request_id": f"{number:06d}",
            "model": name,
            "inputs": [{"name": INPUT, "datatype": datatype, "shape": [1, found.features.shape[1]], "data": content}],
            "subject": found.subjects[row],
            "attributes": found.attributes[row],
        }
        figures.sent_at[number] = time.monotonic()
        self._producer.produce(self._topics[figures.priority[number]], framing.encode(requests.NAME, record))


class Listener(threading.Thread):
    """Reads the answers."""

    def __init__(self, settings: Settings, figures: Figures) -> None:
        super().__init__(name="listener", daemon=True)
        self._figures = figures
        self._reader = Reader(settings, [topics.results(settings.prefix, each) for each in PRIORITIES], 0)
        self._ended = threading.Event()

    def run(self) -> None:
        figures = self._figures
        with self._reader as reader:
            while not self._ended.is_set():
                messages = reader.take()
                now = time.monotonic()
                for message in messages:
                    record = decode_answer(message.value() or b"")
                    figures.answered_at[int(record["request_id"])] = now
                    figures.statuses[record["status"]] += 1
                    if record["model"] not in figures.samples:
                        figures.samples[record["model"]] = readable(record)

    def end(self) -> None:
        self._ended.set()
