"""Opening a store: engine, settings, and the check that a file is a store of this version."""

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from harken.errors import DataError, StorageError
from harken.feedback.store.people_tables import metadata
from harken.feedback.store.tables import STORE_VERSION, store_info

_BUSY_TIMEOUT_MS = 5000
_WRITE = "harken_write"
_URL_EXAMPLE = "expected sqlite:///PATH, for example sqlite:///feedback.db"


def path_of(url: str) -> Path:
    """Return the file that a store URL names.

    Raises:
        DataError: not a URL, another database than SQLite, or no file in it.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DataError(f"store {url!r}: not a database URL; {_URL_EXAMPLE}") from error
    if parsed.get_backend_name() != "sqlite":
        # The password that a URL may carry stays out of the message.
        shown = parsed.render_as_string(hide_password=True)
        raise DataError(f"store {shown!r}: only SQLite is supported so far; {_URL_EXAMPLE}")
    if not parsed.database or parsed.database == ":memory:":
        raise DataError(f"store {url!r}: names no file; {_URL_EXAMPLE}")
    return Path(parsed.database)


def open_engine(path: Path, *, create: bool) -> Engine:
    """Return an engine on a store file, made first if it is not there and `create` is set.

    Raises:
        DataError: the folder or file is missing, or the file is not a store of this version.
        StorageError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise DataError(f"{path}: a folder; {_URL_EXAMPLE}")
    if not create and not path.exists():
        raise DataError(f"{path}: there is no store; check the path, or import something first")
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    try:
        with database_errors(path):
            _make_or_check(engine, path)
    except (DataError, StorageError):
        engine.dispose()
        raise
    return engine


def _on_connect(connection: sqlite3.Connection, record: Any) -> None:
    del record
    # None: the driver begins no transactions of its own; `_on_begin` does it.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "foreign_keys=ON",
        "synchronous=FULL",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _on_begin(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once and waits for it; a later one would fail.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextlib.contextmanager
def writing(engine: Engine) -> Generator[Connection]:
    """Open a write transaction: committed as a whole, or not at all."""
    with engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
        yield connection


@contextlib.contextmanager
def database_errors(path: Path) -> Generator[None]:
    """Turn SQLite's complaints into errors that say what to do."""
    try:
        yield
    except DatabaseError as error:
        cause = str(error.orig)
        if "not a database" in cause:
            raise DataError(f"{path}: not a Harken store: not an SQLite file; check the path") from error
        if "malformed" in cause:
            raise DataError(f"{path}: the store is damaged ({cause}); restore a backup") from error
        remedy = f"{cause}; mend this and run the same command again"
        if "locked" in cause:
            remedy = "another process is writing to it for more than 5 s; try again when it is done"
        elif "full" in cause:
            remedy = "the disk is full; free some space and run the same command again"
        elif "readonly" in cause or "unable to open" in cause:
            remedy = "no permission; choose another folder or change its owner"
        raise StorageError(f"{path}: could not be used: {remedy} (what was there before is untouched)") from error


def _make_or_check(engine: Engine, path: Path) -> None:
    with writing(engine) as connection:
        names = inspect(connection).get_table_names()
        if not names:
            metadata.create_all(connection)
            connection.execute(store_info.insert().values(key="version", value=STORE_VERSION))
            return
        if store_info.name not in names:
            raise DataError(
                f"{path}: not a Harken store: a database with other tables ({', '.join(names[:3])}); check the path"
            )
        query = select(store_info.c.value).where(store_info.c.key == "version")
        found = connection.execute(query).scalar_one_or_none()
        if found == STORE_VERSION:
            metadata.create_all(connection)  # tables that came later; those that are there stay as they are
    if found != STORE_VERSION:
        raise DataError(
            f"{path}: a store of version {found}, this Harken reads version {STORE_VERSION}; "
            "use the Harken that wrote it"
        )
