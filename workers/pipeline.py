"""Which processes make up LRAI on this machine, and the supervisor over them."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
from confluent_kafka import KafkaException, Producer
from psycopg.conninfo import conninfo_to_dict

from audit.store import migrate
from kernels import devices
from kernels.devices import Device
from kernels.spec import ModelSpec
from schemas.errors import BadSetting
from streams import clients, topics
from streams.admin import Admin, all_topics, coalesce_sources, monitor_sources, work_sources
from streams.log import log
from streams.meters import RESTARTS
from streams.settings import Settings
from streams.topics import PRIORITIES
from workers import roles
from workers.supervisor import ChildSpec, Event, StopFlag, Supervisor

START_S_MAX = 120.0
FENCE_S = 5.0
PRELOAD = ("numpy", "confluent_kafka", "fastavro", "prometheus_client", "psycopg", "onnxruntime", "workers.roles")
Progress = Callable[[str], None]
ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/@]+):[0-9]{1,5}")
ROLES = frozenset({"coalesce", "work", "audit", "monitor"})


def check(settings: Settings) -> None:
    """What pydantic cannot see, before anything is touched. Raises BadSetting."""
    for each in settings.kafka.split(","):
        if not ADDRESS.fullmatch(each.strip()):
            raise BadSetting(f"kafka = {settings.kafka!r}: {each!r} is no address; write HOST:PORT[,HOST:PORT]")
    try:
        conninfo_to_dict(settings.store)
    except psycopg.Error as err:
        raise BadSetting(f"store: {str(err).strip()}; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from err
    try:
        Producer({"log_level": 3, **settings.kafka_options})  # without a broker it checks the properties only
    except KafkaException as err:
        raise BadSetting(f"kafka_options: {err.args[0].str()}; write librdkafka properties") from err
    if settings.request_bytes_max > settings.record_bytes_max:
        most = settings.record_bytes_max
        raise BadSetting(f"request_bytes_max = {settings.request_bytes_max}: above record_bytes_max = {most}; lower it")
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise BadSetting(f"state = {str(settings.state)!r}: {err.strerror}; name a folder of your own") from err


def check_devices(settings: Settings, specs: Sequence[ModelSpec]) -> list[Device]:
    """What the actors of these models run on. Raises NoDevice where this runtime does not have it."""
    return [devices.device(each) for each in sorted({spec.device or settings.device for spec in specs})]


def prepare(
    settings: Settings, specs: Sequence[ModelSpec], progress: Progress, wanted: frozenset[str] = ROLES
) -> None:
    """Topics of all roles; first offsets and store of those that are wanted.

    Nothing that exists is changed, so any instance may do so while others live.
    Raises BadSetting, KafkaUnavailable, StoreUnavailable.
    """
    releases = [(spec.model, spec.version) for spec in specs]
    admin = Admin(settings)
    progress("topics")
    created = admin.ensure_topics(all_topics(settings, releases))
    groups = coalesce_sources(settings) if "coalesce" in wanted else []
    groups += work_sources(settings, releases) if "work" in wanted else []
    groups += monitor_sources(settings) if "monitor" in wanted else []
    if groups:
        progress("first offsets")
        first = admin.set_first_offsets(groups)
        log("info", "kafka is ready", topics_created=len(created), first_offsets=len(first))
    if "audit" in wanted:
        progress("audit store")
        migrate(settings.store)


class Children:
    """Makes the children of a supervisor; each gets its slot file and the next metrics port."""

    def __init__(self, settings: Settings, key: bytes, specs: Sequence[ModelSpec]) -> None:
        self.settings = settings
        self.key = key
        self.specs = list(specs)
        self.port = settings.metrics_port + 1 if settings.metrics_port else 0
        self.made: list[ChildSpec] = []

    def coalesce(self, priority: str, instance: int) -> None:
        args = (self.settings, self.key, self.specs, priority, instance, self._port())
        ids = clients.LaneIds.of(self.settings, f"coalesce-{priority}", instance)
        nice = roles.BULK_NICE if priority == "bulk" else 0
        self._add(ids.member, roles.coalesce, args, 1, ids.transactional, nice=nice)

    def work(self, spec: ModelSpec, instance: int) -> None:
        roles_ = [f"work-{spec.model}-{spec.version}-{priority}" for priority in PRIORITIES]
        ids = [each for role in roles_ for each in clients.LaneIds.of(self.settings, role, instance).transactional]
        name = f"{self.settings.prefix}-work-{spec.model}-{spec.version}-{self.settings.node}-{instance}"
        args = (self.settings, spec, instance, self._port())
        self._add(name, roles.work, args, len(PRIORITIES), tuple(ids), stand_in=roles.stand_in)

    def audit(self, instance: int) -> None:
        ids = clients.LaneIds.of(self.settings, "audit", instance)
        args = (self.settings, self.key, self.specs, instance, self._port())
        self._add(ids.member, roles.audit, args, 1, ())

    def monitor(self, instance: int) -> None:
        ids = clients.LaneIds.of(self.settings, topics.MONITOR, instance)
        args = (self.settings, self.specs, instance, self._port())
        self._add(ids.member, roles.monitor, args, 1, (), nice=roles.MONITOR_NICE)

    def _port(self) -> int:
        port = self.port
        self.port += 1 if port else 0
        return port

    def _add(
        self, name: str, target: Callable[..., object], args: tuple[object, ...], lanes: int, ids: tuple[str, ...],
        stand_in: Callable[..., object] | None = None, nice: int = 0,
    ) -> None:  # fmt: skip
        self.settings.state.mkdir(parents=True, exist_ok=True)
        slot = self.settings.state / f"{name}.slot"
        spec = ChildSpec(
            name=name, target=target, args=args, slot=slot, lanes=lanes, start_s_max=START_S_MAX,
            transactional_ids=ids, stand_in=stand_in, nice=nice,
        )  # fmt: skip
        self.made.append(spec)


def everything(settings: Settings, key: bytes, specs: Sequence[ModelSpec]) -> list[ChildSpec]:
    """Every process of `lrai up`."""
    children = Children(settings, key, specs)
    for instance in range(settings.coalescers):
        for priority in PRIORITIES:
            children.coalesce(priority, settings.slot + instance)
    for spec in specs:
        children.work(spec, settings.slot)
    for instance in range(settings.audit_writers):
        children.audit(settings.slot + instance)
    if settings.watch:
        children.monitor(settings.slot)
    return children.made


def supervise(settings: Settings, children: Sequence[ChildSpec], ready: Callable[[], None], stop: StopFlag) -> int:
    """Runs the children until `stop`; returns the exit code."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    roles.serve_metrics(settings.metrics_port)

    def on_event(event: Event) -> None:
        if event.kind in ("restarted", "stand_in"):
            RESTARTS.labels(event.child).inc()
        if event.kind == "all_ready":
            ready()
            return
        level = "info" if event.kind in ("started", "ready", "restarted", "stopped") else "warning"
        log(
            level, event.kind, child=event.child, pid=event.pid, exit_code=event.exit_code,
            uptime_s=round(event.uptime_s, 3), restarts=event.restarts, error=event.error,
        )  # fmt: skip

    supervisor = Supervisor(
        list(children), lambda ids: fence(settings, ids), settings.hang_s, on_event, PRELOAD, settings.drain_s
    )
    return supervisor.run(stop)


def fence(settings: Settings, transactional_ids: Sequence[str]) -> None:
    """Ends what dead processes left open: an open transaction holds up readers of everything behind it."""
    producers = [Producer(dict(clients.fencing_producer(settings, each))) for each in transactional_ids]
    for each in producers:
        try:
            each.init_transactions(FENCE_S)
        except KafkaException as err:
            log("warning", "a dead process could not be fenced; its transaction ends by itself", error=str(err))


def pseudonym_key(settings: Settings) -> bytes:
    """The key of the subjects' pseudonyms: the setting, else one that is made once and kept. Raises BadSetting."""
    if settings.pseudonym_key is not None:
        found = settings.pseudonym_key.get_secret_value().encode()
        if len(found) < 16:
            raise BadSetting(f"pseudonym_key has {len(found)} bytes; use at least 16, the same on every node")
        return found
    path = Path(settings.state) / "pseudonym.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        log("warning", "made a pseudonym key; set LRAI_PSEUDONYM_KEY when there are several nodes", path=str(path))
    return path.read_bytes()


