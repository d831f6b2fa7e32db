"""A migrated database of the test's own, and a store on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from audit.store import Store, migrate
from tests.watched import KEY


@pytest.fixture
def url(store_url: str) -> str:
    migrate(store_url)
    return store_url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url, KEY, lock_timeout_s=10) as store:
        yield store
