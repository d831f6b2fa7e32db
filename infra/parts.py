"""Kafka and Postgres for the demo, the tests and the benchmarks: our own, or those in LRAI_KAFKA and LRAI_STORE.

`python -m infra.parts` starts both and keeps them up until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.kafka import Kafka
from infra.postgres import Postgres
from infra.server import Progress, Server
from schemas.errors import LraiError


@dataclass(frozen=True)
class Parts:
    """Where the parts are. The servers are None for those that were there already."""

    kafka: str
    store: str
    kafka_server: Kafka | None
    postgres_server: Postgres | None


@contextmanager
def parts(on_progress: Progress | None = None, directory: Path | None = None) -> Iterator[Parts]:
    """Starts what is not named by LRAI_KAFKA and LRAI_STORE, both at once, and ends it afterwards.

    With a `directory` what they hold lies there and stays. Raises PartsError.
    """
    kafka, store = os.environ.get("LRAI_KAFKA", ""), os.environ.get("LRAI_STORE", "")
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        kafka_server = None if kafka else Kafka(_below(directory, "kafka"), 0, on_progress)
        postgres_server = None if store else Postgres(_below(directory, "store"), 0, on_progress)
        own: list[Server] = [server for server in (kafka_server, postgres_server) if server]
        for server in own:
            stack.callback(server.close)
        starts = [pool.submit(server.start) for server in own]
        for start in starts:
            start.result()
        yield Parts(
            kafka_server.bootstrap if kafka_server else kafka,
            postgres_server.url if postgres_server else store,
            kafka_server,
            postgres_server,
        )


def _below(directory: Path | None, name: str) -> Path | None:
    return directory / name if directory else None


def main() -> int:
    """Starts both parts, prints their addresses, stays until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with parts(lambda line: print(line, file=sys.stderr, flush=True)) as running:
            print(f"LRAI_KAFKA={running.kafka}\nLRAI_STORE={running.store}", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except LraiError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
