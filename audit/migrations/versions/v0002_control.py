"""What changed in the live state: who forced which variant, and why."""

from __future__ import annotations

from alembic import op

from audit.sql import execute_file

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    execute_file(op.get_bind(), "v0002_control")
