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
    found = current(connection)
    script = ScriptDirectory.from_config(config)
    if found == script.get_current_head():
        return
    if found is None and store_info.name in inspect(connection).get_table_names():
        command.stamp(config, FIRST)
    elif found is not None and found not in {step.revision for step in script.walk_revisions()}:
        raise DataError(f"{name}: a newer Harken has changed this store (to step {found}); install that one")
    command.upgrade(config, "head")


def current(connection: Connection) -> str | None:
    """Return the step at which the tables are; None where there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def is_newest(connection: Connection) -> bool:
    """Tell whether the tables have the form that this version knows."""
    return current(connection) == ScriptDirectory.from_config(_config(connection)).get_current_head()


def move_to(connection: Connection, revision: str, name: str) -> None:
    """Bring an empty store's tables to an earlier form, for rows that fit only that.

    Raises:
        DataError: this version does not know the step.
    """
    known = {step.revision for step in ScriptDirectory.from_config(_config(connection)).walk_revisions()}
    if revision not in known:
        raise DataError(f"{name}: the backup is by a newer Harken (step {revision}); install that one")
    if current(connection) != revision:
        downgrade(connection, revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the tables back to an earlier form; what only the newer form can hold is deleted.

    Args:
        connection: in a write transaction that nobody else has at the same time.
        revision: the step to go back to, or "base" for no tables at all.
    """
    command.downgrade(_config(connection), revision)
