"""Faust with Kafka's transactions: the smallest part of it that the monitor needs, and what it has to do otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import faust
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from faust.transport.drivers import aiokafka as driver

from audit import credentials
from streams import clients
from streams.log import log
from streams.settings import Settings

COMMIT_S = 1.0
ASK_S = 5.0
FETCH_BYTES_MIN = 256 * 1024  # the broker answers when it has so much, or
FETCH_S_MAX = 0.2  # after this long: an answer for each tally costs more than all that is done with it


class CommittedThread(driver.AIOKafkaConsumerThread):
    """Faust reads what was aborted, too, unless it produces in transactions itself; and as soon as there is a byte."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_min_bytes = FETCH_BYTES_MIN
        consumer._fetch_max_wait_ms = round(FETCH_S_MAX * 1000)
        return consumer


class CommittedConsumer(driver.Consumer):
    """Without three habits of Faust's that lose records or time.

    While it gets its table back it reads on already, and then empties the queues: what was in them is lost. So nothing
    but the table is read before `release`.

    It asks for records of a set of partitions that it changes meanwhile. When it empties the set, it gets records of
    all partitions, and drops them. So the question is a copy.

    It commits up to the first hole in the offsets, and transactions leave holes: it would stay there for ever.

    A partition here has one agent, which is done with records in their order: all up to the newest may be committed.
    """

    released = False

    def release(self) -> None:
        """The table is there and nothing empties queues any more: reads what the group has not committed."""
        self.released = True
        self.resume_partitions(self.assignment())

    def resume_partitions(self, tps: Any) -> None:
        super().resume_partitions({tp for tp in tps if self.released != self._is_changelog_tp(tp)})

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        return await super()._getmany(set(active_partitions), timeout)

    def _new_consumer_thread(self) -> CommittedThread:
        return CommittedThread(self, loop=self.loop, beacon=self.beacon)

    def _new_offset(self, tp: Any) -> int | None:
        done = self._acked[tp]
        if not done:
            return None
        newest: int = max(done)
        done.clear()
        self._acked_index[tp].clear()
        return newest + 1

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Nobody asks for holes."""


class IdempotentProducer(driver.Producer):
    """So that a retry cannot put older counts behind newer ones."""

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class Transport(driver.Transport):
    Consumer = CommittedConsumer
    Producer = IdempotentProducer


class Durable(faust.Table[bytes, bytes]):
    """A table whose writes can be waited for."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.writes: list[Any] = []

    def send_changelog(self, *args: Any, **more: Any) -> Any:
        self.writes.append(super().send_changelog(*args, **more))
        return self.writes[-1]

    async def written(self) -> None:
        """Until Kafka has all of them; raises what went wrong."""
        writes, self.writes = self.writes, []
        await asyncio.gather(*writes)


def application(settings: Settings, ids: clients.LaneIds) -> faust.App:
    """The Faust application without its agents. Raises BadSetting."""
    if strange := credentials.unknown(settings.kafka_options):
        log("warning", "the monitor's Kafka client has no such options; left out", kafka_options=strange)
    app = faust.App(
        ids.group,
        broker=[f"aiokafka://{each.strip()}" for each in settings.kafka.split(",")],
        broker_client_id=ids.member,
        broker_credentials=credentials.credentials(settings.kafka_options),
        broker_session_timeout=settings.session_timeout_ms / 1000,
        broker_heartbeat_interval=settings.session_timeout_ms / 5000,
        broker_commit_interval=COMMIT_S,
        consumer_group_instance_id=None if settings.leave else ids.member,
        consumer_max_fetch_size=settings.record_bytes_max,
        producer_max_request_size=settings.record_bytes_max,
        store="memory://",
        datadir=str(settings.state / ids.member),
        topic_disable_leader=True,
        topic_partitions=1,
        topic_replication_factor=settings.replication,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        web_enabled=False,
    )
    app.transport = Transport(app.conf.broker_consumer, app)
    app.producer_transport = Transport(app.conf.broker_producer, app)
    return app


class Membership:
    """Whose the place in the group is. aiokafka sends heartbeats without the name of the instance, so a member that was
    replaced is not told so: it would join again, and take the place back from its successor."""

    def __init__(self, settings: Settings, ids: clients.LaneIds) -> None:
        self._ids = ids
        self._admin = AdminClient(clients.common(settings, f"{ids.member}-admin"))
        self._own: set[str] = set()

    def note(self, app: faust.App) -> None:
        """Remembers the name that the group gave this process."""
        thread: Any = getattr(app.consumer, "_thread", None)
        if consumer := getattr(thread, "_consumer", None):
            self._own.add(consumer._coordinator.member_id)

    def taken(self) -> bool:
        """Whether another process has the place now; False where Kafka does not say."""
        asked = self._admin.describe_consumer_groups([self._ids.group], request_timeout=ASK_S)
        try:
            members = asked[self._ids.group].result(ASK_S).members
        except (KafkaException, TimeoutError):
            return False
        return any(each.group_instance_id == self._ids.member and each.member_id not in self._own for each in members)
