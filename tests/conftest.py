"""The real parts that tests share: one Kafka and one Postgres a session (or those in LRAI_KAFKA and LRAI_STORE)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from infra.parts import Parts
from infra.parts import parts as running_parts


@pytest.fixture(scope="session")
def parts(request: pytest.FixtureRequest) -> Iterator[Parts]:
    """Kafka and Postgres, started at the first use; what they do is shown."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")

    def show(line: str) -> None:
        if terminal:
            terminal.write_line(f"  {line}")

    with running_parts(show) as running:
        yield running


@pytest.fixture(scope="session")
def kafka(parts: Parts) -> str:
    """The bootstrap servers."""
    return parts.kafka


@contextmanager
def fresh_store(server: str) -> Iterator[str]:
    """A new empty database on the server; yields its URL and drops it at the end, open connections or not."""
    name = f"lrai_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def store_url(parts: Parts) -> Iterator[str]:
    """A database of the test's own."""
    with fresh_store(parts.store) as url:
        yield url


@pytest.fixture
def prefix() -> str:
    """A topic prefix of the test's own."""
    return f"t{secrets.token_hex(3)}"
