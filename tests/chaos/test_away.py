"""Postgres and Kafka go away under load: nothing is lost, and each process says so once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from infra.parts import Parts
from tests.chaos.checks import drained, exactly_once, quantiles, stored
from tests.chaos.harness import LONG, Load, Place, Reader, Show, over, until, up

RATE = 100
STORE_AWAY_S = 10.0 if LONG else 5.0
KAFKA_AWAY_S = 5.0
STILL_S = 8.0
RECOVER_S_MAX = 30.0
ANSWER_S_MAX = 1.0
MODELS = (("steady", None), ("other", None))


def test_the_store_is_away(make_place: Callable[..., Place], show: Show, parts: Parts) -> None:
    if parts.postgres_server is None:
        pytest.skip("LRAI_STORE names a server that is not ours to kill")
    place = make_place("steady", "other")
    with up(place) as running, Reader(place) as reader:
        with Load(place, RATE, MODELS) as load:
            until(lambda: len(reader.sources) > RATE, 30, running.tail)
            parts.postgres_server.kill()
            gone = time.time()
            until(over(STORE_AWAY_S), STORE_AWAY_S + 5, "the clock stands still")
            answered = [each for each in reader.of() if each.at > gone]
            parts.postgres_server.start()
            lag = len(reader.sources) - stored(place)
            until(lambda: len(reader.sources) - stored(place) < 2 * RATE, 30, running.tail)
        drained(place, load, reader)
        assert running.stop() == 0, running.tail()
    exactly_once(place, load)
    assert not running.died()
    said = [e["event"] for e in running.events if "store" in e["event"]]
    assert said == ["the audit store is away; decisions wait in kafka", "the audit store is back"]
    waited = [each.at - load.sent[each.source][1] for each in answered if each.source in load.sent]
    show(f"Postgres away for {STORE_AWAY_S:.0f} s: {len(answered)} answers meanwhile, {quantiles(waited)}; lag {lag}")
    assert len(answered) > STORE_AWAY_S * RATE * 0.8
    assert lag > STORE_AWAY_S * RATE * 0.5


def test_the_store_stands_still(make_place: Callable[..., Place], parts: Parts) -> None:
    """Longer than a process may be silent: to wait for it is no reason to be killed."""
    if parts.postgres_server is None:
        pytest.skip("LRAI_STORE names a server that is not ours to stop")
    place = make_place("steady", "other")
    with up(place, hang_s=STILL_S / 2) as running, Reader(place) as reader:
        with Load(place, RATE, MODELS) as load:
            until(lambda: stored(place) > RATE, 30, running.tail)
            server = psutil.Process(parts.postgres_server.pid)
            stopped = [server, *server.children(recursive=True)]
            for each in stopped:
                each.suspend()
            try:
                until(over(STILL_S), STILL_S + 5, "the clock stands still")
            finally:
                for each in stopped:
                    each.resume()
        drained(place, load, reader)
        assert running.stop() == 0, running.tail()
    exactly_once(place, load)
    assert not running.died("audit"), running.died()


def test_kafka_is_away(make_place: Callable[..., Place], show: Show, parts: Parts) -> None:
    if parts.kafka_server is None:
        pytest.skip("LRAI_KAFKA names a broker that is not ours to kill")
    place = make_place("steady", "other")
    with up(place) as running, Reader(place) as reader:
        with Load(place, RATE, MODELS) as load:
            until(lambda: len(reader.sources) > RATE, 30, running.tail)
            parts.kafka_server.kill()
            until(over(KAFKA_AWAY_S), KAFKA_AWAY_S + 5, "the clock stands still")
            parts.kafka_server.start()
            back = time.time()
            first = until(lambda: reader.of("steady", back), 30, running.tail)[0]
            show(f"Kafka away for {KAFKA_AWAY_S:.0f} s: the first answer {first.at - back:.2f} s after it was back")
            lanes = {each["lane"] for each in running.named("window")}

            def silent() -> set[str]:
                return lanes - {each["lane"] for each in running.named("window") if each["at"] > back}

            until(lambda: not silent(), RECOVER_S_MAX, lambda: f"{silent()} wrote nothing\n{running.tail()}")
            show(f"every lane of every process wrote again {time.time() - back:.2f} s after it was back")
        drained(place, load, reader)
        assert running.stop() == 0, running.tail()
    exactly_once(place, load)
    # librdkafka may lose its way in a broker's restart: then a process starts again, and none gives up
    assert not running.named("hung", "fenced", "refused"), running.tail()
    assert {e["exit_code"] for e in running.named("died")} <= {1}, running.tail()
    said = Counter(e["lane"] for e in running.named("kafka is away; waiting for it") if e["at"] < back)
    assert said and max(said.values()) == 1, said
    others = [line for line in running.other if "refused" in line or "disconnected" in line.lower()]
    assert not others, others[:5]
