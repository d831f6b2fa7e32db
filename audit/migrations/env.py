"""Where alembic runs the migrations: on the connection that audit.store.migrate gives it."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="audit")
with context.begin_transaction():
    context.run_migrations()
