"""Opening a store: SQLite file or PostgreSQL database, transactions, and plain words for the database's complaints."""

import contextlib
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from harken.errors import DataError, StorageError
from harken.feedback.store.migrate import upgrade
from harken.feedback.store.tables import STORE_VERSION, store_info

_BUSY_TIMEOUT_MS = 30_000
"""Other processes are waited for so long; see `_QUEUES` for the threads of this one."""
_CACHE_KB = 131072
"""Pages of the file in memory: the indexes of a million judgments by id, which come in no order."""
_POOL_SIZE = 10
_POOL_OVERFLOW = 30
"""Together as many connections as a server has threads; PostgreSQL allows 100 as it comes."""
_LOCK_KEY = 0x6861726B656E
"""PostgreSQL's advisory lock for what only one may do at a time: making tables, big imports."""
_WRITE = "harken_write"
_URL_EXAMPLE = "expected sqlite:///PATH, for example sqlite:///feedback.db, or postgresql://USER@HOST/DATABASE"


class _Queue:
    """A lock that goes to those who wait for it in the order in which they came."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._turns: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        turn = threading.Event()
        with self._guard:
            self._turns.append(turn)
            if len(self._turns) == 1:
                turn.set()
        turn.wait()

    def __exit__(self, *error: object) -> None:
        with self._guard:
            self._turns.popleft()
            if self._turns:
                self._turns[0].set()


_QUEUES: weakref.WeakValueDictionary[Path, _Queue] = weakref.WeakValueDictionary()
"""File -> the queue of its writers. SQLite lets those who wait race each other, each asleep for up to 0.1 s between two
attempts: of 50 that write without a pause one may wait for minutes. The threads of a process queue here instead."""
_QUEUES_GUARD = threading.Lock()


@dataclass(frozen=True)
class Database:
    """An open database: transactions that either happen as a whole or not at all."""

    engine: Engine
    name: str
    """The file, or the URL without its password; for messages."""
    file: Path | None
    """None where the database is PostgreSQL."""
    queue: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext, repr=False)
    """SQLite: held by the one thread of this process that writes."""
    _under_way: threading.local = field(default_factory=threading.local, repr=False)
    """The transaction in which this thread writes at the moment."""

    @contextlib.contextmanager
    def writing(self, *, alone: bool = False, durable: bool = True) -> Generator[Connection]:
        """Open a write transaction; within another one of the same thread it is part of that.

        Args:
            alone: wait until no other such transaction runs; for work that cannot be done side by side.
            durable: wait until the disk has it. False for what may be lost when the power fails, such as who has which
                task now; the end of the process alone loses nothing, and the next durable one keeps it too.
        """
        if outer := getattr(self._under_way, "connection", None):
            yield outer
            return
        with (
            database_errors(self.name),
            self.queue,
            self.engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            if not self.file:
                if alone:
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
                if not durable:
                    connection.execute(text("SET LOCAL synchronous_commit TO off"))
            self._under_way.connection = connection
            try:
                yield connection
            finally:
                self._under_way.connection = None
        if self.file and durable:
            _sync(self.file)

    @contextlib.contextmanager
    def reading(self) -> Generator[Connection]:
        """Open a read transaction that sees one state of the store from its beginning to its end."""
        with database_errors(self.name), self.engine.connect() as connection:
            if not self.file:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str, *, create: bool) -> Database:
    """Open the store behind a URL, made first if it is not there and `create` is set; an older one is upgraded.

    Raises:
        DataError: a bad URL, a folder or file that is missing, or a database that is not a store of this version.
        StorageError: the database cannot be reached or written.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        database = _sqlite(url, parsed, create=create)
    else:
        name = parsed.render_as_string(hide_password=True)
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_OVERFLOW,
            pool_pre_ping=True,
            hide_parameters=True,
        )
        database = Database(engine, name, None)
    try:
        _make_or_check(database, create=create)
    except (DataError, StorageError):
        database.close()
        raise
    return database


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DataError(f"store {url!r}: not a database URL; {_URL_EXAMPLE}") from error
    # The password that a URL may carry stays out of the message.
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise DataError(f"store {shown!r}: only SQLite and PostgreSQL are supported; {_URL_EXAMPLE}")
    if not parsed.database or parsed.database == ":memory:":
        kind = "file" if parsed.get_backend_name() == "sqlite" else "database"
        raise DataError(f"store {shown!r}: names no {kind}; {_URL_EXAMPLE}")
    return parsed


def _sqlite(url: str, parsed: URL, *, create: bool) -> Database:
    path = Path(parsed.database or "")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise DataError(f"{path}: a folder; {_URL_EXAMPLE}")
    if not create and not path.exists():
        raise DataError(f"{path}: there is no store; check the path, or import something first")
    engine = create_engine(f"sqlite:///{path}", pool_size=_POOL_SIZE, max_overflow=_POOL_OVERFLOW, hide_parameters=True)
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    with _QUEUES_GUARD:
        queue = _QUEUES.setdefault(path.resolve(), _Queue())
    return Database(engine, str(path), path, queue)


def _on_connect(connection: sqlite3.Connection, record: Any) -> None:
    del record
    # None: the driver begins no transactions of its own; `_on_begin` does it.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "foreign_keys=ON",
        # The log is brought to the disk by `_sync`, after the lock is free again.
        "synchronous=NORMAL",
        f"cache_size=-{_CACHE_KB}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _on_begin(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once and waits for it; a later one would fail.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _sync(file: Path) -> None:
    """Wait until the disk has all that was committed.

    SQLite's `synchronous=FULL` does the same with the write lock held, so that everybody waits for everybody's disk.
    """
    try:
        log = os.open(f"{file}-wal", os.O_RDONLY)
    except FileNotFoundError:
        return  # its pages went to the file itself, which SQLite syncs
    try:
        os.fsync(log)
    finally:
        os.close(log)


def refresh_statistics(connection: Connection) -> None:
    """Let PostgreSQL count its rows after many were added; in its own time it does so about a minute later.

    Until then it takes all tables for empty, and looks at every slot of 100,000 tasks to find a free one.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE"))


@contextlib.contextmanager
def database_errors(name: str) -> Generator[None]:
    """Turn the database's complaints into errors that say what to do."""
    try:
        yield
    except DatabaseError as error:
        cause = " ".join(str(error.orig).split())
        if "not a database" in cause:
            raise DataError(f"{name}: not a Harken store: not an SQLite file; check the path") from error
        if "malformed" in cause:
            raise DataError(f"{name}: the store is damaged ({cause}); restore a backup") from error
        remedy = f"{cause}; mend this and run the same command again"
        if "locked" in cause:
            seconds = _BUSY_TIMEOUT_MS // 1000
            remedy = f"another process is writing to it for more than {seconds} s; try again when it is done"
        elif "full" in cause:
            remedy = "the disk is full; free some space and run the same command again"
        elif "readonly" in cause or "unable to open" in cause:
            remedy = "no permission; choose another folder or change its owner"
        raise StorageError(f"{name}: could not be used: {remedy} (what was there before is untouched)") from error


def _make_or_check(database: Database, *, create: bool) -> None:
    with database.writing(alone=True) as connection:
        # Alembic's own table stays behind when a store is taken back to nothing.
        names = [name for name in inspect(connection).get_table_names() if name != "alembic_version"]
        if names and store_info.name not in names:
            raise DataError(
                f"{database.name}: not a Harken store: a database with other tables ({', '.join(names[:3])}); "
                "check the path"
            )
        if not names and not create:
            raise DataError(f"{database.name}: there is no store; check the name, or import something first")
        if names:
            query = select(store_info.c.value).where(store_info.c.key == "version")
            found = connection.execute(query).scalar_one_or_none()
            if found != STORE_VERSION:
                raise DataError(
                    f"{database.name}: a store of version {found}, this Harken reads version {STORE_VERSION}; "
                    "use the Harken that wrote it"
                )
        upgrade(connection, database.name)
        if not names:
            connection.execute(store_info.insert().values(key="version", value=STORE_VERSION))
