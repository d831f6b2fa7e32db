"""What watching leaves behind: tallies, tests, drift, alerts, incidents, labels, complaints; which freeze held."""

from __future__ import annotations

from alembic import op

from audit.sql import execute_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for name in ("v0003_tables", "v0003_views", "v0003_roles"):
        execute_file(op.get_bind(), name)
