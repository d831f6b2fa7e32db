"""The pure stages put together without Kafka: windows of requests in, results, decisions and dead letters out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from audit import rows as audit_rows
from kernels.reference import Reference
from kernels.spec import ModelSpec
from schemas import framing
from schemas.requests import read_map
from streams.admission import Catalog
from streams.coalesce import Bounds, Coalesce, pseudonyms
from streams.control import Control
from streams.ended import Answering
from streams.headers import ReplyTopics
from streams.limits import LaneLimits
from streams.meters import SECONDS
from streams.window import Block, Headers, Outcome, Window
from tests.samples import NOW_MS, TOPIC, NoSchemas, Record, window
from workers.actor import Actor
from workers.answers import Home, Release
from workers.cost import Meter, Prices
from workers.tallies import Watch
from workers.tallying import Tallying
from workers.turns import Turns
from workers.variants import Choice, Kernel, Loaded

PREFIX = "t"
RESULTS = "t.results.standard"
DECISIONS = "t.decisions"
DEADLETTER = "t.deadletter"
TALLIES = "t.tallies"
KEY = b"0123456789abcdef"
PRICES = Prices("EUR", 3600.0, 7200.0, 10.0, 100.0)
Tensors = dict[str, npt.NDArray[Any]]


class Identity:
    """features -> value, as they are; notes the rows of its runs."""

    def __init__(self, name: str = "features", output: str = "value") -> None:
        self.names = name, output
        self.runs: list[int] = []

    def run(self, inputs: Tensors) -> Tensors:
        values = inputs[self.names[0]]
        self.runs.append(len(values))
        return {self.names[1]: values.copy()}


class Plain:
    """A journal that writes nothing down."""

    def begins(self, window: Window) -> bool:
        return False

    def ended(self) -> None:
        pass


def coalesce(
    specs: Sequence[ModelSpec],
    *,
    replies: dict[str, int] | None = None,
    request_bytes_max: int = 100_000,
    batch_bytes_max: int = 1_000_000,
    run_rows_max: int = 2048,
    schemas: Any = None,
) -> Coalesce:
    """The stage of the standard priority; `replies`: partitions of the allowed reply topics that exist."""
    topics = ReplyTopics(PREFIX, ["replies.*"])
    topics.partitions = replies or {}
    how = Answering(
        prefix=PREFIX,
        priority="standard",
        worker="coalesce-0",
        result_header=framing.header("inference_result"),
        pseudonym=pseudonyms(KEY),
        request_id_bytes_max=40,
        text_bytes_max=100,
        dead_letter_bytes_max=2000,
        releases=frozenset((each.model, each.version) for each in specs),
    )
    bounds = Bounds(request_bytes_max, batch_bytes_max, run_rows_max)
    catalog = Catalog({(each.model, each.version): each for each in specs})
    return Coalesce(catalog, schemas or NoSchemas(), bounds, how, topics)


def actor(
    spec: ModelSpec, kernel: Kernel, rows_max: int = 64, result_bytes_max: int = 100_000,
    pool: ThreadPoolExecutor | None = None, frozen: Callable[[str], Control | None] = lambda version: None,
    fallback: Kernel | None = None, reference: Reference | None = None, meter: Meter | None = None,
) -> Actor:  # fmt: skip
    """A lane of the model's actor; with a `pool` its runs take long enough to go two at once."""
    home = Home(RESULTS, framing.header("inference_result"), DECISIONS, f"work-{spec.model}-0", result_bytes_max)
    apart = Identity() if pool else kernel
    loaded = Loaded(Release(spec.model, spec.version, "original"), kernel, apart, rows_max, row_s=1.0 if pool else 0.0)
    choice = Choice({"original": loaded})
    limits = LaneLimits(0.0, 16, 1 << 24)
    watches = {each.version: Watch.of(each, reference, SECONDS) for each in (spec, spec.fallback) if each}
    tallying = Tallying(TALLIES, watches, meter or Meter(PRICES))
    older = None
    if spec.fallback and fallback:
        older = Loaded(Release(spec.model, spec.fallback.version, "original"), fallback, fallback, rows_max)
    return Actor(
        spec, choice, lambda: None, home, Plain(), Turns(3, 2), 1, limits, lambda: None, 2, pool, frozen=frozen,
        fallback=older, tallying=tallying,
    )  # fmt: skip


@dataclass
class Ends:
    """How each offset of the request topic ended, by kind; a second end under one offset is kept too."""

    results: dict[int, list[Record]] = field(default_factory=dict)
    sent: dict[int, list[tuple[str, int, bytes | None, Headers]]] = field(default_factory=dict)
    letters: dict[int, list[tuple[bytes, bytes | None, dict[str, bytes | None]]]] = field(default_factory=dict)
    decisions: dict[int, list[Record]] = field(default_factory=dict)
    ranges: list[Record] = field(default_factory=list)
    tallies: list[Record] = field(default_factory=list)
    batches: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, blocks: Iterable[Block]) -> None:
        """Sorts the records of an outcome."""
        for block in blocks:
            nothing = [None] * len(block.values)
            keys, headers = block.keys or nothing, block.headers or nothing
            for value, key, header in zip(block.values, keys, headers, strict=True):
                if block.topic.startswith(PREFIX + ".batches."):
                    self.batches.append((block.topic, value))
                elif block.topic == DECISIONS:
                    self._decided(value)
                elif block.topic == TALLIES:
                    assert framing.decode(value)[0] == "tally"
                    self.tallies.append(framing.decode(value)[1])
                elif block.topic == DEADLETTER:
                    named = dict(header or [])
                    at = int(named["lrai_dlt-original-offset"] or b"")
                    self.letters.setdefault(at, []).append((value, key, named))
                else:
                    named = dict(header or [])
                    at = int(named["lrai_request-offset"] or b"")
                    self.results.setdefault(at, []).append(framing.decode(value)[1])
                    self.sent.setdefault(at, []).append((block.topic, block.partition, key, list(header or [])))

    def _decided(self, value: bytes) -> None:
        name, record = framing.decode(value)
        if name == "source_ranges":
            self.ranges.append(record)
            return
        found = audit_rows.gather([record])
        for i, offset in enumerate(found.offset.tolist()):
            shown = audit_rows.as_json(found, i, None)
            code = found.attributes[i]
            shown["attributes"] = read_map(found.attribute_sets[code]) if code >= 0 else {}
            self.decisions.setdefault(offset, []).append(shown)

    def check(self, n: int) -> None:
        """Counts in = counts out: each offset ended once, as a result with its decision or as a dead letter."""
        assert sorted([*self.results, *self.letters]) == list(range(n))
        assert sorted(self.decisions) == sorted(self.results)
        assert {len(each) for ends in (self.results, self.letters, self.decisions) for each in ends.values()} <= {1}
        assert [(each["from"], each["next"], each["records"]) for r in self.ranges for each in r["ranges"]] == [
            (0, n, n)
        ]
        for offset, (result,) in self.results.items():
            (decision,) = self.decisions[offset]
            assert (decision["status"], decision["error_code"]) == (result["status"], result["error_code"])

    def code(self, offset: int) -> str | None:
        """Why it ended; None for an answer."""
        if offset in self.letters:
            reason = self.letters[offset][0][2]["lrai_dlt-reason"]
            return (reason or b"").decode()
        code: str | None = self.results[offset][0]["error_code"]
        return code

    def message(self, offset: int) -> str:
        if offset in self.letters:
            return (self.letters[offset][0][2]["lrai_dlt-message"] or b"").decode()
        return str(self.results[offset][0]["error_message"])


def through(
    values: Sequence[bytes | None],
    stage: Coalesce,
    actors: Sequence[Actor],
    headers: Sequence[Headers | None] | None = None,
    now_ms: int = NOW_MS,
    later_ms: int | None = None,
) -> Ends:
    """A window through coalesce, and its batches through the actors."""
    ends = Ends()
    outcome = stage(window(values, headers), now_ms)
    assert sum(outcome.counts.values()) - outcome.counts["decode_fallback"] == len(values)
    ends.add(outcome.blocks)
    for each in actors:
        topic = f"{PREFIX}.batches.{each.spec.model}.{each.spec.version}.standard"
        records = [value for where, value in ends.batches if where == topic]
        if records:
            outcome = each(window(records, topic=topic), later_ms or now_ms)
            ends.add(outcome.blocks)
    return ends


def outputs(result: Record) -> Tensors:
    """The numbers of a result, without LRAI's own reader."""
    kinds = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "UINT8": "u1", "INT32": "<i4", "BOOL": "?"}
    return {
        each["name"]: np.frombuffer(each["data"], kinds[each["datatype"]]).reshape(each["shape"])
        for each in result["outputs"]
    }


def topic_of(spec: ModelSpec) -> str:
    return f"{PREFIX}.batches.{spec.model}.{spec.version}.standard"


__all__ = ["DEADLETTER", "DECISIONS", "TOPIC", "Ends", "Identity", "Outcome", "actor", "coalesce", "outputs", "through"]
