"""The decisions, what they point to, their sources, and the views and roles to read them with."""

from __future__ import annotations

from alembic import op

from audit.sql import execute_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    for name in ("v0001_tables", "v0001_views", "v0001_roles"):
        execute_file(op.get_bind(), name)
