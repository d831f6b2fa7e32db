"""The SQL of the audit store, one file a statement or a script."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import LiteralString

import psycopg
import sqlalchemy


@cache
def query(name: str) -> LiteralString:
    """The file audit/sql/<name>.sql."""
    return (Path(__file__).parent / f"{name}.sql").read_text("utf-8")


def execute_file(connection: sqlalchemy.Connection, name: str) -> None:
    """Run a script as it stands (a `%` is a `%`) in the transaction of the connection."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError(f"{name}.sql runs on psycopg 3, not on {type(driver)}")
    driver.execute(query(name))
