"""Alembic's entry: runs the steps in the transaction that `goodheart.feedback.store` opened."""

from __future__ import annotations

from alembic import context

from goodheart.feedback.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite changes a column by copying the table
)
with context.begin_transaction():
    context.run_migrations()
