"""`lrai status`: what waits in each lane, which processes live, and what went wrong last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from audit import sql
from infra.commands import live_state
from schemas.errors import LraiError
from streams import topics
from streams.admin import Admin, Source, coalesce_sources, monitor_sources, work_sources
from streams.control import FREEZE
from streams.settings import Settings
from workers import slot

ERROR_CHARACTERS = 400
CONNECT_S = 5
KAFKA_S = 3.0


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """A topic as one group reads it. `lag` counts offsets: the markers that end transactions too."""

    lane: str
    topic: str
    partitions: int
    end: int
    lag: int | None
    """None where nothing was committed yet, or where clients read"""


@dataclass(frozen=True, slots=True)
class ActorStatus:
    """A process of this node. `starts`: of the slot, over all supervisors."""

    name: str
    state: str  # ready, starting, hung, stopped
    pid: int
    heartbeat_s: float | None
    starts: int
    last_error: str


@dataclass(frozen=True, slots=True)
class FrozenStatus:
    """A freeze that holds. `at`: ms since the epoch."""

    model: str
    version: str
    id: str | None
    by: str
    reason: str
    at: int


@dataclass(frozen=True)
class Status:
    lanes: list[LaneStatus] = field(default_factory=list)
    actors: list[ActorStatus] = field(default_factory=list)
    frozen: list[FrozenStatus] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def status(settings: Settings, now: float) -> Status:
    """`now`: time.monotonic(). What does not answer is a problem in the answer, no error."""
    found = Status(actors=actors(settings, now))
    try:
        found.lanes.extend(_lanes(settings, found.problems))
        found.frozen.extend(_frozen(settings) if found.lanes else [])
    except LraiError as err:
        found.problems.append(str(err))
    return found


def _frozen(settings: Settings) -> list[FrozenStatus]:
    freezes = [each for each in live_state.read(settings).values() if each.kind == FREEZE]
    return [FrozenStatus(each.model, each.version, each.id, each.by, each.reason, each.at) for each in freezes]


def _lanes(settings: Settings, problems: list[str]) -> list[LaneStatus]:
    """In the order of the flow."""
    admin, prefix = Admin(settings), settings.prefix
    existing = admin.existing(KAFKA_S)
    releases = _releases(prefix, existing)
    reads = [*coalesce_sources(settings), *work_sources(settings, releases), *monitor_sources(settings)]
    answers = [topics.results(prefix, each) for each in topics.PRIORITIES]
    audited = [topics.decisions(prefix), topics.deadletter(prefix)]
    names = [*(each.topic for each in reads), *answers, *audited]
    missing = [name for name in names if name not in existing]
    if len(missing) == len(names):
        problems.append(
            f"there are no topics of prefix {prefix!r}: start `lrai up`, which creates them, or correct --prefix"
        )
        return []
    problems += [f"topic {name!r} is missing; `lrai up` creates it" for name in missing]
    ends = admin.ends(names)
    committed = admin.committed(reads)
    lanes = [_lane(each, ends, committed) for each in reads]
    lanes += [LaneStatus("(clients)", each, *_end(each, ends), None) for each in answers]
    stored = _stored(settings, audited, problems)
    return lanes + [
        _lane(Source("audit", each), ends, {("audit", *key): at for key, at in stored.items()}) for each in audited
    ]


def _releases(prefix: str, existing: dict[str, int]) -> list[tuple[str, str]]:
    """Models and versions that have batch topics."""
    start = f"{prefix}.{topics.BATCHES}."
    names = [name.removeprefix(start).split(".") for name in existing if name.startswith(start)]
    return sorted({(parts[0], parts[1]) for parts in names if len(parts) == 3})


def _end(topic: str, ends: dict[tuple[str, int], int]) -> tuple[int, int]:
    """Partitions, and their ends in all."""
    mine = [end for (name, _), end in ends.items() if name == topic]
    return len(mine), sum(mine)


def _lane(source: Source, ends: dict[tuple[str, int], int], committed: dict[tuple[str, str, int], int]) -> LaneStatus:
    lags = [
        end - committed[source.group, topic, partition]
        for (topic, partition), end in ends.items()
        if topic == source.topic and (source.group, topic, partition) in committed
    ]
    return LaneStatus(source.group, source.topic, *_end(source.topic, ends), sum(lags) if lags else None)


def _stored(settings: Settings, names: Sequence[str], problems: list[str]) -> dict[tuple[str, int], int]:
    """How far the audit store is."""
    try:
        with psycopg.connect(settings.store, connect_timeout=CONNECT_S) as connection:
            rows = connection.execute(sql.query("source_offsets"), [list(names)]).fetchall()
    except psycopg.Error as err:
        problems.append(f"the audit store does not answer: {str(err).strip()}")
        return {}
    return {(topic, partition): at for topic, partition, at in rows}


def actors(settings: Settings, now: float) -> list[ActorStatus]:
    """The processes that have a slot file on this node. `now`: time.monotonic()."""
    found = []
    for path in sorted(settings.state.glob(f"{settings.prefix}-*.slot")) if settings.state.is_dir() else []:
        read = slot.read(path)
        if read is not None:
            found.append(_actor(settings, path.stem, read, now))
    return found


def _actor(settings: Settings, name: str, read: slot.SlotState, now: float) -> ActorStatus:
    beats = [lane.heartbeat for lane in read.lanes if lane.heartbeat]
    age = now - min(beats) if beats else None
    state = "stopped"
    if read.pid and _lives(read.pid):
        state = "ready" if read.ready else "starting"
        if age is not None and age > settings.hang_s:
            state = "hung"
    error = read.last_error.splitlines()[0][:ERROR_CHARACTERS] if read.last_error else ""
    return ActorStatus(name, state, read.pid, None if age is None else round(age, 3), read.starts, error)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
