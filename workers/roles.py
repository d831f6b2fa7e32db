"""What runs in a supervised process: lanes of one role, each on a thread, until told to stop."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confluent_kafka import Producer
from prometheus_client import start_http_server

from audit import labelling
from audit.framed import Reading
from audit.labelling import Labelling
from audit.store import Store
from audit.writing import Intake, StoreSink, nothing_more
from kernels import devices, reference
from kernels.loading import InMemory, load_all, load_original
from kernels.manifest import ORIGINAL
from kernels.session import KernelError
from kernels.spec import ModelSpec
from schemas.errors import LraiError
from streams import clients, meters, topics
from streams.admission import Catalog
from streams.coalesce import Bounds, Coalesce, pseudonyms
from streams.control import Control, ControlState
from streams.ended import Answering
from streams.headers import ReplyTopics
from streams.limits import LaneLimits, Steering
from streams.log import log, set_level
from streams.loop import Function, Lane, Sink
from streams.meters import LaneMeters
from streams.registry import Registry
from streams.settings import Settings
from streams.topics import PRIORITIES
from streams.transaction import KafkaSink
from workers.actor import Actor, Unavailable
from workers.answers import Home, Release
from workers.cost import Meter, Nvml, Prices, Rapl
from workers.isolate import RUN_S_MAX, IsolatedKernel
from workers.journal import LaneJournal
from workers.replies import ReplyWatch
from workers.reporting import Reporting
from workers.slot import Slot
from workers.steered import Steered, adaptive, objective_s, scheduled
from workers.tallies import Watch
from workers.tallying import Tallying
from workers.turns import Turns
from workers.variants import Choice, Loaded

SWITCH_S = 0.0005  # Python's 5 ms between threads would add up along a window
BULK_NICE = 10
MONITOR_NICE = 5  # a freeze some milliseconds later is no harm, an answer is
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
AUDIT_RECORDS_MAX = 500
AUDIT_BYTES_MAX = 2 * 1024 * 1024
AUDIT_WINDOW_S = 0.2
WATCH_S = 0.2
LINGER_S = 2.0
STUCK_ROUNDS = 15


def coalesce(
    settings: Settings, key: bytes, specs: Sequence[ModelSpec], priority: str, instance: int, port: int,
    *, slot: Slot, stop: threading.Event,
) -> None:  # fmt: skip
    """The process of one request topic."""
    start(settings, port)
    _keep_memory()
    role = f"coalesce-{priority}"
    ids = clients.LaneIds.of(settings, role, instance)

    beat = _beating(slot, 0)
    replies = ReplyTopics(settings.prefix, settings.reply_topics)
    registry = Registry(settings.registry, beat)
    home = topics.results(settings.prefix, priority)
    how = Answering(
        prefix=settings.prefix, priority=priority, worker=ids.member, result_header=registry.result_header(home),
        pseudonym=pseudonyms(key), request_id_bytes_max=settings.request_id_bytes_max,
        text_bytes_max=settings.text_bytes_max, dead_letter_bytes_max=settings.dead_letter_bytes_max,
        releases=frozenset((spec.model, spec.version) for spec in specs),
    )  # fmt: skip
    bounds = Bounds(settings.request_bytes_max, settings.batch_bytes_max, settings.run_rows_max)
    catalog = Catalog({(spec.model, spec.version): spec for spec in specs})
    stage = Coalesce(catalog, registry, bounds, how, replies)
    limits = LaneLimits(settings.window_s(priority), settings.window_records_max, settings.window_bytes_max)
    steering = adaptive(settings, specs, priority, ids, limits, beat)
    function: Function = stage
    if steering:
        stage.epoch = lambda: steering.plan_id
        function = Steered(stage, steering)
    lane = _lane(
        settings, role, ids, [topics.requests(settings.prefix, priority)], function=function,
        sink=KafkaSink(clients.producers(settings, ids), settings.transaction_timeout_ms / 1000),
        limits=limits, beat=beat, assigned=lambda: slot.ready(time.monotonic()), steering=steering,
    )  # fmt: skip
    with ReplyWatch(settings, replies):
        run_lanes([lane], stop, slot)


def work(
    settings: Settings, spec: ModelSpec, instance: int, port: int, *, slot: Slot, stop: threading.Event
) -> None:
    """The actor of one model: a lane a priority, one kernel."""

    def load(beat: Callable[[], object]) -> tuple[dict[str, Loaded], Loaded | None]:
        return _loaded(settings, spec, slot, beat), _fallback(settings, spec, beat)

    # the lanes end what a predecessor left open before the model takes its time to load
    _actor(settings, spec, instance, port, slot, stop, load)


def stand_in(
    settings: Settings, spec: ModelSpec, instance: int, port: int, *, slot: Slot, stop: threading.Event
) -> None:
    """Answers FAILED in the place of an actor that keeps crashing."""
    why = "the model keeps crashing; send the request again later, or ask the operator to look at `lrai status`"
    away = Unavailable(why)
    original = Loaded(Release(spec.model, spec.version, ORIGINAL), away, away, settings.run_rows_max)
    _actor(settings, spec, instance, port, slot, stop, lambda beat: ({ORIGINAL: original}, None))


def _loaded(settings: Settings, spec: ModelSpec, slot: Slot, beat: Callable[[], object]) -> dict[str, Loaded]:
    """The original and every variant that may answer and is not refused. Raises KernelError."""
    device = devices.device(spec.device or settings.device, settings.state / "engines")
    found, refused = load_all(spec, settings.threads, settings.state / "profiles", slot.path, device)
    if device.pinned:
        pinned = found[0].session.batches is not None and found[0].session.batches.pinned
        log("info", "the model is on a GPU", model=spec.path, device=device.name, pinned=pinned)
    for name, why in refused.items():
        meters.REFUSED.labels(spec.model, spec.version, name).inc()
        log("error", "a variant is refused; the original serves", model=spec.path, variant=name, error=why)
    for each in found:
        own = each.admission
        if own.certificate:
            log("info", "a variant is certified", model=spec.path, variant=each.name, kind=own.kind,
                certificate=own.certificate, checked_s=round(own.checked_s, 3))  # fmt: skip
    return {each.name: _in_actor(settings, spec, each, beat) for each in found}


def _in_actor(settings: Settings, spec: ModelSpec, each: InMemory, beat: Callable[[], object]) -> Loaded:
    return Loaded(
        Release(spec.model, spec.version, each.name, each.admission.certificate), each.session,
        IsolatedKernel(each.how, beat, min(RUN_S_MAX, settings.hang_s)), min(each.rows, settings.run_rows_max),
        each.row_s, each.alone, each.admission.region, each.session.device.gpu, each.least_s,
    )  # fmt: skip


def _fallback(settings: Settings, spec: ModelSpec, beat: Callable[[], object]) -> Loaded | None:
    """The original of the version that answers while this one is frozen; without it, requests are rejected then."""
    if spec.fallback is None:
        return None
    device = devices.device(spec.fallback.device or settings.device, settings.state / "engines")
    try:
        found = load_original(spec.fallback, settings.threads, settings.state / "profiles", device)
    except KernelError as err:
        log("error", "the fallback cannot be loaded; a freeze rejects", model=spec.fallback.path, error=str(err))
        return None
    return _in_actor(settings, spec.fallback, found, beat)


def _tallying(settings: Settings, spec: ModelSpec, loaded: Iterable[Loaded]) -> Tallying:
    """What the lanes of an actor count together. Raises BadReference."""
    specs = [spec, *([spec.fallback] if spec.fallback else [])]
    references = [reference.read(Path(each.path).parent, each) for each in specs]
    watches = {each.version: Watch.of(each, own, meters.SECONDS) for each, own in zip(specs, references, strict=True)}
    prices = Prices(settings.currency, settings.cpu_hour_price, settings.gpu_hour_price, settings.watts_per_core,
                    settings.watts_per_gpu)  # fmt: skip
    meter = Meter(prices, Rapl(), Nvml() if any(each.gpu for each in loaded) else None)
    return Tallying(topics.watched(settings.prefix, topics.TALLIES), watches, meter)


def _actor(
    settings: Settings, spec: ModelSpec, instance: int, port: int, slot: Slot, stop: threading.Event,
    load: Callable[[Callable[[], object]], tuple[dict[str, Loaded], Loaded | None]],
) -> None:  # fmt: skip
    start(settings, port)
    roles = [f"work-{spec.model}-{spec.version}-{priority}" for priority in PRIORITIES]
    ids = [clients.LaneIds.of(settings, role, instance) for role in roles]
    sinks = [KafkaSink(clients.producers(settings, each), settings.transaction_timeout_ms / 1000) for each in ids]
    beats = [_beating(slot, number) for number in range(len(PRIORITIES))]
    with ThreadPoolExecutor(len(sinks)) as pool:  # all at once: until then what was left open holds up other models
        list(pool.map(lambda sink, beat: sink.open(beat), sinks, beats))
    loaded, fallback = load(lambda: [beat() for beat in beats])
    tallying = _tallying(settings, spec, loaded.values()) if settings.watch else None
    control = ControlState(settings, f"{ids[0].member}-control")
    control.to_the_end(beats[0])
    runs = settings.runs or max(1, len(os.sched_getaffinity(0)) // settings.threads)
    turns = Turns(len(PRIORITIES), runs)
    registry = Registry(settings.registry, beats[0])
    everyone = Assigned(len(PRIORITIES), slot)
    limits = LaneLimits(0.0, settings.actor_records_max, settings.window_bytes_max)
    lanes = []
    kernels = ThreadPoolExecutor(runs, "kernel") if runs > 1 else None

    def forced() -> str | None:
        return control.variant(spec.model, spec.version, time.monotonic())

    def frozen(version: str) -> Control | None:
        return control.frozen(spec.model, version, time.monotonic())

    for number, priority in enumerate(PRIORITIES):
        results = topics.results(settings.prefix, priority)
        header, decisions = registry.result_header(results), topics.decisions(settings.prefix)
        slo_s, worker = objective_s(spec, priority, loaded), ids[number].member
        reporting = None
        if slo_s:
            meters.OBJECTIVE_S.labels(spec.model, spec.version, priority).set(slo_s)
            if scheduled(settings, spec):
                told = topics.scheduler(settings.prefix)
                reporting = Reporting(spec, priority, worker, told, limits, slo_s)
        actor = Actor(
            spec=spec, choice=Choice(loaded, spec.prefer, spec.under_load, slo_s), forced=forced,
            home=Home(results, header, decisions, worker, settings.result_bytes_max),
            journal=LaneJournal(slot, number), turns=turns, lane=number, limits=limits, beat=beats[number],
            runs=runs, pool=kernels, frozen=frozen, fallback=fallback, tallying=tallying, reporting=reporting,
        )  # fmt: skip
        source = topics.batches(settings.prefix, spec.model, spec.version, priority)
        lane = _lane(
            settings, roles[number], ids[number], [source], function=actor, sink=sinks[number], limits=limits,
            beat=beats[number], assigned=everyone.one, steering=reporting,
        )  # fmt: skip
        lanes.append(lane)
    try:
        run_lanes(lanes, stop, slot)
    finally:
        control.close()


def audit(
    settings: Settings, key: bytes, specs: Sequence[ModelSpec], instance: int, port: int,
    *, slot: Slot, stop: threading.Event,
) -> None:  # fmt: skip
    """The audit writer: decisions, dead letters and what watching tells into Postgres."""
    start(settings, port)
    ids = clients.LaneIds.of(settings, "audit", instance)
    deadletter = topics.deadletter(settings.prefix)
    beat = _beating(slot, 0)
    store, reading = Store(settings.store, key), Reading(settings.prefix, Registry(settings.registry, beat))
    producer = Producer({**clients.common(settings, f"{ids.member}-labels"), **labelling.PRODUCER})
    tallies = topics.watched(settings.prefix, topics.TALLIES)
    joining = Labelling(store, specs, producer, tallies, ids.member, lambda: time.time_ns() // 1_000_000)
    sink = StoreSink(store, Intake(reading, pseudonyms(key), joining), deadletter, beat)
    lane = _lane(
        settings, "audit", ids, [*reading.kinds, deadletter], function=nothing_more, sink=sink,
        limits=LaneLimits(AUDIT_WINDOW_S, AUDIT_RECORDS_MAX, AUDIT_BYTES_MAX),
        beat=beat, assigned=lambda: slot.ready(time.monotonic()), idle=sink.idle,
    )  # fmt: skip
    run_lanes([lane], stop, slot)


def monitor(
    settings: Settings, specs: Sequence[ModelSpec], instance: int, port: int, *, slot: Slot, stop: threading.Event
) -> None:
    """Adds tallies up, tests them, freezes."""
    from audit import monitor  # Faust, which no other process needs

    start(settings, port)
    ids = clients.LaneIds.of(settings, topics.MONITOR, instance)
    beat, ready = _beating(slot, 0), lambda: slot.ready(time.monotonic())
    monitor.run(settings, ids, specs, beat=beat, ready=ready, stop=stop, error=slot.error)


def _lane(
    settings: Settings, name: str, ids: clients.LaneIds, sources: Sequence[str], *, function: Function, sink: Sink,
    limits: LaneLimits, beat: Callable[[], None], assigned: Callable[[], None],
    idle: Callable[[], None] = lambda: None, steering: Steering | None = None,
) -> Lane:  # fmt: skip
    config, lane_meters = clients.consumer(settings, ids, limits.bytes_max), LaneMeters(name)
    return Lane(name, config, sources, function, sink, limits, lane_meters, beat, assigned, settings.leave, idle=idle,
                steering=steering)  # fmt: skip


class Stuck(LraiError):
    """A call to Kafka or to the store does not return though Kafka answers; the process starts again."""


class Assigned:
    """Ready when every lane has been assigned its partitions."""

    def __init__(self, lanes: int, slot: Slot) -> None:
        self._missing = lanes
        self._slot = slot
        self._lock = threading.Lock()

    def one(self) -> None:
        """Called by a lane at each assignment; after the first few all are there."""
        with self._lock:
            self._missing -= 1
            if self._missing == 0:
                self._slot.ready(time.monotonic())


def _beating(slot: Slot, lane: int) -> Callable[[], None]:
    return lambda: slot.beat(lane, time.monotonic())


def start(settings: Settings, port: int) -> None:
    """What every process does first."""
    sys.setswitchinterval(SWITCH_S)
    set_level(settings.log_level)
    serve_metrics(port)


def _keep_memory() -> None:
    """Else the memory of a large window goes back to the system after it, page by page: half of coalesce's time there.

    Elsewhere it would only fragment the heap. Does nothing without glibc.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def serve_metrics(port: int) -> None:
    """This process's metrics for Prometheus; port 0 is none."""
    if port:
        try:
            start_http_server(port)
        except OSError as err:
            log("error", "no metrics: the port is taken; set metrics_port", port=port, error=str(err))


def run_lanes(lanes: Sequence[Lane], stop: threading.Event, slot: Slot) -> None:
    """Each lane on its own thread; the first error ends them all. Raises that error."""
    errors: list[BaseException] = []

    def run(lane: Lane) -> None:
        try:
            lane.run(stop)
        except BaseException as err:
            errors.append(err)
            stop.set()

    threads = [threading.Thread(target=run, args=(lane,), name=lane.name) for lane in lanes]
    for thread in threads:
        thread.start()
    _join(threads, lanes, errors)
    if errors:
        slot.error(f"{type(errors[0]).__name__}: {errors[0]}")
        log("error", "the process ends", error=str(errors[0]), kind=type(errors[0]).__name__)
        if isinstance(errors[0], LraiError) and not any(thread.is_alive() for thread in threads):
            raise errors[0]
        os._exit(getattr(errors[0], "exit_code", 1))  # a client library in an unknown state is not closed, it is left


def _join(threads: Sequence[threading.Thread], lanes: Sequence[Lane], errors: list[BaseException]) -> None:
    """Waits for the end of all lanes; for LINGER_S only when one has failed, or when a call never returns."""
    failed_at, rounds = 0.0, 0
    while any(thread.is_alive() for thread in threads):
        next(thread for thread in threads if thread.is_alive()).join(WATCH_S)
        now = time.monotonic()
        rounds = rounds + 1 if any([lane.stuck(now) for lane in lanes]) else 0
        if not errors and rounds > STUCK_ROUNDS:
            errors.append(Stuck())
        failed_at = failed_at or (now if errors else 0.0)
        if errors and now - failed_at > LINGER_S:
            return


