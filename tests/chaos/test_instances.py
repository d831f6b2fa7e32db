"""Instances come and go under load: added, removed, restarted one by one, doubled by mistake."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from audit.framed import Reading
from audit.store import Store
from audit.writing import Intake, StoreSink, nothing_more
from streams import clients, topics
from streams.limits import LaneLimits
from streams.loop import Lane
from streams.meters import LaneMeters
from streams.settings import Settings, load
from tests.chaos.checks import drained, exactly_once
from tests.chaos.harness import LONG, NODE, Load, Place, Reader, Running, Show, alone, until, up
from workers.template import FENCED

RATE = 100
MODELS = (("steady", None), ("other", None))
SECOND: tuple[tuple[str, ...], ...] = (
    ("coalesce", "--priority", "standard"),
    ("work", "--model", "steady"),
    ("audit",),
)
SESSION_MS = 6000


def assigned(running: Running) -> bool:
    """Whether it has partitions of some lane now."""
    owned: dict[str, set[str]] = {}
    for event in running.named("assigned", "revoked"):
        mine = owned.setdefault(event["lane"], set())
        change = mine.update if event["event"] == "assigned" else mine.difference_update
        change(event["partitions"])
    return any(owned.values())


def owns(running: Running) -> None:
    """Waits until it has partitions."""
    until(lambda: assigned(running), 30, running.tail)


def more(reader: Reader, running: Running, count: int = RATE) -> None:
    """Waits for further answers."""
    before = len(reader.sources)
    until(lambda: len(reader.sources) > before + count, 40, running.tail)


def test_instances_are_added_restarted_and_removed(make_place: Callable[..., Place]) -> None:
    place = make_place("steady", "other")
    with up(place, session_timeout_ms=SESSION_MS) as running, Reader(place) as reader, ExitStack() as stack:
        with Load(place, RATE, MODELS) as requests:
            more(reader, running)
            own = {"slot": 1, "session_timeout_ms": SESSION_MS}
            second = [stack.enter_context(alone(place, *role, **own)) for role in SECOND]
            for each in second:
                owns(each.ready())
            more(reader, running)
            for each in second:  # a restart: the group waits for the member
                assert each.stop() == 0, each.tail()
                each.events.clear()
                each.start().ready()
                more(reader, running, RATE // 2)
            second[1].kill()  # the loss of a host: its partitions go back when the session has ended
            for each in (second[0], second[2]):
                assert each.stop() == 0, each.tail()
            more(reader, running, SESSION_MS // 1000 * RATE)
        drained(place, requests, reader)
        assert running.stop() == 0, running.tail()
    exactly_once(place, requests)
    assert not running.died()


@pytest.mark.skipif(not LONG, reason="LRAI_CHAOS_LONG is not set; tests/integration/test_rules.py has the short form")
def test_scale_down_hands_the_partitions_on_at_once(make_place: Callable[..., Place]) -> None:
    place = make_place("steady", "other")
    with up(place) as running, Reader(place) as reader, ExitStack() as stack:
        with Load(place, RATE, MODELS) as requests:
            more(reader, running)
            second = [stack.enter_context(alone(place, *role, "--leave", slot=1)) for role in SECOND]
            for each in second:
                owns(each.ready())
            more(reader, running)
            for each, lanes in zip(second, ("coalesce-standard", "work-steady-1-bulk", "audit"), strict=True):
                seen = len(running.events)
                assert each.stop() == 0, each.tail()
                # well within the session timeout of 10 s
                until(
                    lambda seen=seen, lanes=lanes: [
                        e for e in running.named("assigned", since=seen) if e["lane"] == lanes and e["partitions"]
                    ],
                    6, running.tail,
                )  # fmt: skip
            more(reader, running)
        drained(place, requests, reader)
        assert running.stop() == 0, running.tail()
    exactly_once(place, requests)


def settings_of(place: Place) -> Settings:
    return load(
        kafka=place.kafka, store=place.store, prefix=place.prefix, models=place.models, node=NODE, state=place.state,
        partitions=2,
    )  # fmt: skip


def writer(settings: Settings, key: bytes, stop: threading.Event) -> Lane:
    """A second audit writer that no group keeps from reading the same partitions."""
    ids = clients.LaneIds(f"{settings.prefix}-audit-by-mistake", f"{settings.prefix}-audit-by-mistake-0")
    names = [topics.decisions(settings.prefix), topics.deadletter(settings.prefix)]
    intake = Intake(Reading(settings.prefix), str)
    sink = StoreSink(Store(settings.store, key), intake, names[1], lambda: None)
    limits = LaneLimits(0.05, 200, 1024 * 1024)
    return Lane(
        "by-mistake", clients.consumer(settings, ids, limits.bytes_max), names, nothing_more, sink, limits,
        LaneMeters("by-mistake"), lambda: None, lambda: None,
    )  # fmt: skip


def test_two_audit_writers_on_the_same_partitions(make_place: Callable[..., Place], show: Show) -> None:
    place = make_place("steady", "other")
    settings = settings_of(place)
    errors: list[BaseException] = []

    def run(lane: Lane) -> None:
        try:
            lane.run(stop)
        except BaseException as err:
            errors.append(err)

    with up(place) as running, Reader(place) as reader:
        stop = threading.Event()
        lane = writer(settings, (Path(place.state) / "pseudonym.key").read_bytes(), stop)
        thread = threading.Thread(target=run, args=(lane,))
        thread.start()
        try:
            with Load(place, RATE, MODELS) as requests:
                more(reader, running, 5 * RATE)
            drained(place, requests, reader)
        finally:
            stop.set()
            thread.join(30)
        assert running.stop() == 0, running.tail()
    exactly_once(place, requests)
    lost = running.named("window discarded, reading again")
    show(f"two audit writers: one read {len(lost)} windows again, the other's last streak was {lane.discards}")
    assert not errors, errors
    assert lost or lane.discards


def test_the_newer_of_two_with_the_same_id_stays(make_place: Callable[..., Place]) -> None:
    place = make_place("steady", "other")
    # as on another host, or in another container, of the same name
    elsewhere = replace(place, state=place.state.with_name("elsewhere"))
    key = "the same on every node"
    with ExitStack() as stack:
        first = stack.enter_context(up(place, pseudonym_key=key))
        reader = stack.enter_context(Reader(place))
        with Load(place, RATE, MODELS) as requests:
            more(reader, first)
            second = stack.enter_context(up(elsewhere, pseudonym_key=key))
            code = first.ended(40)
            more(reader, second)
            assert second.process and second.process.poll() is None
            assert not second.named("died", "fenced"), second.tail()
        drained(place, requests, reader)
        assert second.stop() == 0, second.tail()
    exactly_once(place, requests)
    assert code == FENCED, first.tail()
    assert len(first.named("fenced")) == len(first.named("started"))
    assert not first.named("restarted", "stand_in"), first.tail()


def test_a_second_one_on_the_same_host_does_not_start(make_place: Callable[..., Place]) -> None:
    place = make_place("steady")
    with up(place) as first, Reader(place) as reader:
        with Load(place, RATE, MODELS[:1]) as requests:
            more(reader, first)
            second = Running(first.arguments, first.environment).start()
            assert second.ended(30) == FENCED
            assert "runs already" in second.tail() and "--slot" in second.tail()
            more(reader, first)
        drained(place, requests, reader)
        assert not first.named("died", "hung"), first.tail()
        assert first.stop() == 0
    exactly_once(place, requests)
