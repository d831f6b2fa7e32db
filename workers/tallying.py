"""The tally of each window of an actor, and what Prometheus shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schemas import framing
from streams import meters
from streams.log import log
from streams.window import Block
from workers.answers import Answered
from workers.cost import Meter
from workers.tallies import LOOK_MS, OTHER, About, Record, Watch, decided, tally


class Tallying:
    """Shared by the lanes of an actor. `watches`: by version, of the model and of what it falls back to."""

    def __init__(self, topic: str, watches: Mapping[str, Watch], meter: Meter) -> None:
        self.topic, self.watches, self.meter = topic, watches, meter
        self._look_ms = 0
        self._told: set[str] = set()
        self._decisions = {
            version: [meters.DECISIONS.labels(each.spec.model, version, word) for word in ("otherwise", "favourable")]
            for version, each in watches.items()
        }

    def block(
        self, version: str, records: Sequence[Record], answered: Sequence[Answered], about: About, now_ms: int
    ) -> Block:
        """The Tally of a window whose decisions are `records`."""
        watch = self.watches[version]
        inputs: list[dict[str, Any]] = []
        if watch.reference is not None and now_ms >= self._look_ms:
            self._look_ms = now_ms + LOOK_MS
            ok = [each.requests for each in answered if each.outputs is not None]
            inputs = [{tensor.name: tensor.values for tensor in each.tensors} for each in ok]
        record = tally(watch, records, inputs, about)
        self._measure(watch, records, record)
        key = f"{watch.spec.model}/{watch.spec.version}".encode()
        return Block(self.topic, [framing.encode("tally", record)], [key])

    def _measure(self, watch: Watch, records: Sequence[Record], record: Record) -> None:
        names = watch.spec.model, watch.spec.version
        if record["cpu_s"] or record["gpu_s"]:
            meters.CPU_S.labels(*names).inc(record["cpu_s"])
            meters.GPU_S.labels(*names).inc(record["gpu_s"])
            meters.ENERGY_J.labels(*names, record["energy_source"]).inc(record["energy_j"])
            meters.COST.labels(*names, record["currency"]).inc(record["cost"])
        if watch.spec.favourable is not None:
            otherwise, favourable = self._decisions[watch.spec.version]
            for each in records:
                count, good = decided(each, watch.spec.favourable)
                otherwise.inc(count - good)
                favourable.inc(good)
        over = {each["attribute"] for each in record["groups"] if each["group"] == OTHER} - self._told
        for attribute in over:
            self._told.add(attribute)
            log("warning", "more groups than groups_max; the others are counted together", model=names[0],
                version=names[1], attribute=attribute, groups_max=watch.spec.groups_max)  # fmt: skip
