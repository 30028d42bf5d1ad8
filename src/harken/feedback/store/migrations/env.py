"""What Alembic runs for each migration: on the connection, and in the transaction, that `migrate` opened."""

from alembic import context

from harken.feedback.store import api_tables, people_tables, work_tables

# All tables hang on one metadata; every module must be read for that.
assert api_tables.metadata is people_tables.metadata is work_tables.metadata
context.configure(
    connection=context.config.attributes["connection"], target_metadata=work_tables.metadata, render_as_batch=True
)
context.run_migrations()
