"""Bringing a store's tables to the form this version knows, and back: the steps are in `migrations/versions`."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from harken.errors import DataError
from harken.feedback.store.tables import store_info

FIRST = "0001"
"""The tables of stores that were made before there were migrations."""


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, name: str) -> None:
    """Bring the tables to the newest form, in the transaction of `connection`; nothing happens if they are.

    Args:
        connection: in a write transaction that nobody else has at the same time.
        name: of the store, for the message.

    Raises:
        DataError: the store was made by a newer Harken.
    """
    config = _config(connection)
    found = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(config)
    if found == script.get_current_head():
        return
    if found is None and store_info.name in inspect(connection).get_table_names():
        command.stamp(config, FIRST)
    elif found is not None and found not in {step.revision for step in script.walk_revisions()}:
        raise DataError(f"{name}: a newer Harken has changed this store (to step {found}); install that one")
    command.upgrade(config, "head")


def downgrade(connection: Connection, revision: str) -> None:
    """Take the tables back to an earlier form; what only the newer form can hold is deleted.

    Args:
        connection: in a write transaction that nobody else has at the same time.
        revision: the step to go back to, or "base" for no tables at all.
    """
    command.downgrade(_config(connection), revision)
