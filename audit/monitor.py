"""The monitor: a Faust application that adds tallies up, tests them and tells what it found.

At least once: what a take gives reason to tell is sent first, then the counts with the offsets they reach, and only
then may Kafka move the group on. So after a crash a take is counted, or counted again from the same state, and what is
sent twice does no harm. Of Faust we use its agents, its table with a changelog, its assignment and its producer; not
its command line, web server or worker, since the supervisor owns the process, its signals and its end.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

from audit import daily, drift, meters
from audit.complaint_counts import WEEK_MS, Complaints
from audit.counts import Counts
from audit.faust_app import Durable, Membership, application
from audit.faust_logs import forward_logs
from audit.warnings import Rules
from audit.watching import Policy, Reference, Release, Told, Watch
from kernels import reference
from kernels.spec import ModelSpec
from schemas import framing
from schemas.errors import BadRecord, LraiError
from streams import clients, topics
from streams.control import FREEZE, UNFREEZE, VARIANT, ControlState
from streams.log import log
from streams.loop import Fenced
from streams.meters import SECONDS
from streams.settings import Settings

TAKE_RECORDS = 500
TAKE_S = 0.2  # also when nothing came; Faust's timer is not cheap
TICK_S = 0.2
TOLD_S = 1.0
MADE_S = 5.0  # how long a freeze of our own holds before lrai.control has brought it back
STOP_S_MAX = 5.0
RELEASES_MAX = 1000  # whose tallies are counted; of the ones after that nothing is kept
COMPLAINTS = b"complaints"
TOPIC_OF = {"fairness": topics.FAIRNESS, "drift": topics.FAIRNESS, "alert": topics.ALERTS, "control": topics.CONTROL}


class Moved(LraiError):
    """The group gave the partitions to another monitor, or lost sight of this one; the process starts again."""


class Monitor:
    """One process; `beat` is called while it lives, `ready` when it has its counts back and reads on."""

    def __init__(
        self, settings: Settings, ids: clients.LaneIds, watch: Watch, control: ControlState, beat: Callable[[], None]
    ) -> None:
        self.settings, self.watch, self.control, self.beat = settings, watch, control, beat
        self.app, self.membership = application(settings, ids), Membership(settings, ids)
        log_topic = self._topic(topics.monitor(settings.prefix), partitions=1, compacting=True, internal=True)
        self.table = Durable(
            self.app, name="counts", key_type=bytes, value_type=bytes, partitions=1, use_partitioner=True,
            changelog_topic=log_topic,
        )  # fmt: skip
        self.app.tables.add(self.table)
        self.counts: dict[bytes, Counts] = {}
        self.complaints: Complaints | None = None
        self.made: dict[Release, float] = {}
        self.next: dict[tuple[str, int], int] = {}
        self.failed: BaseException | None = None
        self.busy = asyncio.Lock()
        for name, take in ((topics.TALLIES, self._tallies), (topics.COMPLAINTS, self._complaints)):
            self.app.agent(self._topic(topics.watched(settings.prefix, name)), name=name)(self._agent(take))
        self.app.on_partitions_revoked.connect(self._moved, weak=False)  # type: ignore[arg-type]

    async def run(self, stop: Event, ready: Callable[[], None]) -> None:
        """Until `stop`, or until something failed, which is raised: then nothing more is committed."""
        await self.app.start()
        tables: Any = self.app.tables
        await tables.recovery.completed.wait()
        for key in [key for key in self.table if key != COMPLAINTS]:
            self._counts(*key.decode().split("/"))
        consumer: Any = self.app.consumer
        consumer.release()
        self.app.on_partitions_assigned.connect(self._moved, weak=False)  # type: ignore[arg-type]
        ready()
        ticking = asyncio.create_task(self._ticks())
        while not stop.is_set() and not self.failed and not self.app.should_stop:
            await asyncio.sleep(TICK_S)
            self.beat()
            self.membership.note(self.app)
        ticking.cancel()
        if crash := self.failed or self.app.crash_reason:
            raise crash
        await self.busy.acquire()  # for ever: the take in hand is finished, and no other begins
        await asyncio.sleep(0)
        await asyncio.wait_for(self.app.consumer.commit(), STOP_S_MAX)
        if self.settings.leave:
            await asyncio.wait_for(self.app.stop(), STOP_S_MAX)

    def _topic(self, name: str, **more: Any) -> Any:
        raw: dict[str, Any] = {"key_serializer": "raw", "value_serializer": "raw"}
        return self.app.topic(name, key_type=bytes, value_type=bytes, allow_empty=True, **raw, **more)

    def _agent(self, take: Callable[[Sequence[Any]], Any]) -> Callable[[Any], Any]:
        async def agent(stream: Any) -> None:
            async for events in stream.take_events(TAKE_RECORDS, within=TAKE_S):
                async with self.busy:
                    await self._guarded(take, events)

        return agent

    async def _guarded(self, take: Callable[[Sequence[Any]], Any], events: Sequence[Any]) -> None:
        """Faust takes what an agent fails on for done; so here nothing comes back from a failure."""
        began = time.monotonic()
        try:
            await take(events)
        except asyncio.CancelledError:
            raise
        except BaseException as err:
            self.failed = err
            await asyncio.Event().wait()
        for event in events:
            self.next[event.message.topic, event.message.partition] = event.message.offset + 1
        meters.TAKE_S.set(time.monotonic() - began)

    async def _tallies(self, events: Sequence[Any]) -> None:
        touched: dict[bytes, Counts] = {}
        for event in events:
            message = event.message
            try:
                tally = _decoded(message.value, "tally")
                if tally["kind"] == "labels":
                    await asyncio.to_thread(drift.preload)
                counts, place = self._counts(tally["model"], tally["version"]), f"{message.topic}/{message.partition}"
                why = counts.add(tally, place, message.offset) if counts else "releases"
            except BadRecord as err:
                log("warning", "no tally; passed over", offset=message.offset, error=str(err))
                meters.PASSED_OVER.labels("undecodable").inc()
                continue
            if counts:
                touched[_key(counts)] = counts
            self._counted(tally, why)
        if touched:
            await self._told(touched)
            for key, counts in touched.items():
                self.table[key] = counts.encode()
            await self.table.written()

    async def _complaints(self, events: Sequence[Any]) -> None:
        counted = self.complaints = self.complaints or self._kept_complaints()
        for event in events:
            message = event.message
            try:
                complaint = _decoded(message.value, "complaint")
            except BadRecord:  # the audit writer stores it as refused
                meters.PASSED_OVER.labels("undecodable").inc()
                continue
            place = f"{message.topic}/{message.partition}"
            why = counted.add(complaint, place, message.offset, int(message.timestamp * 1000))
            if not why:
                meters.COMPLAINTS.labels(self._named(complaint["model"])).inc()
        week = counted.newest_ms - WEEK_MS
        for model, opened in counted.opened.items():
            if model == self._named(model):
                meters.COMPLAINTS_WEEK.labels(model).set(sum(at > week for _, at in opened))
        await self._send(self.watch.complaints(counted))
        self.table[COMPLAINTS] = counted.encode()
        await self.table.written()

    async def _told(self, touched: Mapping[bytes, Counts]) -> None:
        """Judges and sends; freezes go first."""
        state, now_s, now_ms = self.control.poll(time.monotonic()), time.monotonic(), time.time_ns() // 1_000_000
        found: list[Told] = []
        for counts in touched.values():
            release = counts.model, counts.version
            record = state.get(f"{FREEZE}/{counts.model}/{counts.version}")
            if record and record.kind == UNFREEZE and record.id:
                counts.begin_epoch(record.id)
            frozen = bool(record and record.kind == FREEZE) or self.made.get(release, 0.0) > now_s
            told = self.watch.look(counts, frozen, now_ms, state.get(f"{VARIANT}/{counts.model}/{counts.version}"))
            if any(each.kind == "control" and each.record["kind"] == FREEZE for each in told):
                self.made[release] = now_s + MADE_S
            found += told
        await self._send(sorted(found, key=lambda each: each.kind != "control"))

    async def _send(self, found: Sequence[Told]) -> None:
        sent = []
        for each in found:
            topic = f"{self.settings.prefix}.{TOPIC_OF[each.kind]}"
            value = framing.encode(each.kind, each.record)
            sent.append(await self.app.producer.send(topic, each.key.encode(), value, None, None, None))
            meters.show(each.kind, each.record)
            if each.kind in ("control", "alert"):
                log("warning", each.kind, record=dict(each.record))
        await asyncio.gather(*sent)

    async def _ticks(self) -> None:
        """What was held back for a second; metrics."""
        while not self.failed:
            await asyncio.sleep(TOLD_S)
            try:
                async with self.busy:
                    await self._told(self.counts)
            except Exception as err:
                self.failed = err
            self._measure()

    def _measure(self) -> None:
        """Freezes that others made and ended, lag."""
        state = self.control.poll(time.monotonic())
        for model, version in self.watch.specs:
            record = state.get(f"{FREEZE}/{model}/{version}")
            meters.FROZEN.labels(model, version).set(bool(record and record.kind == FREEZE))
            counts = self.counts.get(f"{model}/{version}".encode())
            if counts and (used := daily.utilisation(daily.whole_days(counts.days, max(counts.days, default=0)))):
                meters.UTILISATION.labels(model, version).set(used[max(used)])
        for each in self.app.consumer.assignment():
            if (each.topic, each.partition) in self.next:
                end = self.app.consumer.highwater(each) or 0
                lag = max(0, end - self.next[each.topic, each.partition])
                meters.LAG.labels(each.topic, each.partition).set(lag)

    def _counts(self, model: str, version: str) -> Counts | None:
        key = f"{model}/{version}".encode()
        if key not in self.counts:
            features = self.watch.features.get((model, version), {})
            scales = {name: each.scale for name, each in features.items()}
            value = self.table.get(key)
            if value is None and len(self.table) > RELEASES_MAX:
                return None
            self.counts[key] = Counts.decode(value, scales) if value else Counts(model, version, scales=scales)
            if (model, version) not in self.watch.specs:
                log("warning", "tallies of a release that the model repository does not have; counted, not judged",
                    model=model, version=version)  # fmt: skip
        return self.counts[key]

    def _kept_complaints(self) -> Complaints:
        value = self.table.get(COMPLAINTS)
        return Complaints.decode(value) if value else Complaints()

    def _counted(self, tally: Mapping[str, Any], why: str) -> None:
        release = tally["model"], tally["version"]
        if why:
            meters.PASSED_OVER.labels(why).inc()
            return
        meters.TALLIES.labels(tally["kind"]).inc()
        meters.LAG_S.set(max(0.0, time.time() - tally["at"] / 1000))
        if release not in self.watch.specs:
            meters.PASSED_OVER.labels("unknown_release").inc()
        elif tally["kind"] == "decisions":
            for each in tally["groups"]:
                if each["group"] is not None:
                    meters.DECISIONS.labels(*release, each["attribute"], each["group"]).inc(each["decided"])

    def _named(self, model: str | None) -> str:
        """A label of Prometheus: a client may write any name."""
        return model if model and any(model == known for known, _ in self.watch.specs) else ""

    async def _moved(self, _: Any, partitions: Any, **__: Any) -> None:
        """Revoked, or assigned later on: queues hold records of before, or are emptied; so all begins again."""
        if partitions:
            taken = await asyncio.to_thread(self.membership.taken)
            self.failed = self.failed or (Fenced() if taken else Moved())
            await asyncio.Event().wait()  # the process ends; it must not join again before


def run(
    settings: Settings, ids: clients.LaneIds, specs: Sequence[ModelSpec], *, beat: Callable[[], None],
    ready: Callable[[], None], stop: Event, error: Callable[[str], None],
) -> None:  # fmt: skip
    """The process of the monitor, until `stop`. `error` takes what ended it; then the process is left as it is, since
    Faust's threads may still run."""
    forward_logs()
    (settings.state / ids.member).mkdir(parents=True, exist_ok=True)
    watch = Watch({(each.model, each.version): each for each in specs}, references(specs), policy(settings))
    control = ControlState(settings, f"{ids.member}-control")
    control.to_the_end(beat)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    monitor = Monitor(settings, ids, watch, control, beat)
    try:
        loop.run_until_complete(monitor.run(stop, ready))
    except BaseException as err:
        error(f"{type(err).__name__}: {err}")
        log("error", "the process ends", error=str(err), kind=type(err).__name__)
        os._exit(getattr(err, "exit_code", 1))


def policy(settings: Settings) -> Policy:
    """What the settings say."""
    rules = Rules(**{each.name: getattr(settings, each.name) for each in fields(Rules)})
    return Policy(
        settings.fairness_alpha, settings.fairness_every_ms, settings.coverage_min, SECONDS, rules,
        settings.actions_allowed,
    )  # fmt: skip


def references(specs: Sequence[ModelSpec]) -> dict[Release, dict[str, Reference]]:
    """Of the models that have a reference.json; one that cannot be read is reported, and its drift is not judged."""
    found: dict[Release, dict[str, Reference]] = {}
    for spec in specs:
        try:
            sample = reference.read(Path(spec.path).parent, spec)
        except reference.BadReference as err:
            log("error", "drift of a model is not watched", error=str(err))
            continue
        histograms = sample.histograms if sample else ()
        found[spec.model, spec.version] = {each.feature: _reference(each) for each in histograms}
    return found


def _reference(found: reference.Histogram) -> Reference:
    rows = max(1, sum(found.counts))
    mean = found.sum / rows
    variance = max(0.0, found.sum_squares / rows - mean * mean)
    return Reference(found.sha256, found.edges, found.counts, found.missing, (mean, variance**0.5))


def _decoded(value: bytes | None, name: str) -> dict[str, Any]:
    found, record = framing.decode(value or b"")
    if found != name:
        raise BadRecord("unknown_schema", f"a {found} is no {name}")
    return record


def _key(counts: Counts) -> bytes:
    return f"{counts.model}/{counts.version}".encode()
