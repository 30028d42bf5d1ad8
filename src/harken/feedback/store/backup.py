"""Backups: everything in a store as one file, taken while people work, and stores made from it on either database.

A backup is JSON Lines in gzip: a line that says which tables follow, then for each table its columns and its rows, then
a line with the number of rows and a checksum of each table. All rows are read in one transaction, so they are the store
at one moment. The checksum is the sum of the rows' sha256, whatever their order: databases sort texts differently.
"""

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Generator, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from sqlalchemy import Column, ColumnClause, Connection, Table, column, select, table, text

from harken.artifacts import first_problem, private_file, sha256_file
from harken.errors import DataError, UsageError
from harken.feedback.store import audit, migrate
from harken.feedback.store.adding import utc_now
from harken.feedback.store.connect import Database, refresh_statistics
from harken.feedback.store.people_tables import metadata
from harken.feedback.store.tables import STORE_VERSION, store_info
from harken.records import Record

_CHUNK = 2000
_MODULUS = 2**256
_GZIP_LEVEL = 1
"""Higher levels take many times as long for a few percent, from the same processor as those who work."""

RecordT = TypeVar("RecordT", bound=Record)


class Header(Record):
    """The first line of a backup."""

    harken_backup: Literal[1] = 1
    store_version: str
    revision: str
    """Step of the migrations at which the rows fit the tables."""
    created_at: str


class TableStart(Record):
    """The line before a table's rows."""

    table: str
    columns: tuple[str, ...]


class TableSum(Record):
    """What the last line says of one table."""

    rows: int
    checksum: str


class Footer(Record):
    """The last line of a backup."""

    sums: dict[str, TableSum]


class BackupSummary(Record):
    """What a backup holds."""

    created_at: str
    revision: str
    sha256: str
    """Of the file."""
    rows: dict[str, int]
    """By table."""
    audit_entries: int
    audit_head: str
    """Hash of the last entry of the audit log; empty where there is none."""


class _Sum:
    """Number and checksum of rows."""

    def __init__(self) -> None:
        self._rows = self._total = 0

    def add(self, line: bytes) -> None:
        self._rows += 1
        self._total = (self._total + int.from_bytes(hashlib.sha256(line).digest())) % _MODULUS

    def done(self) -> TableSum:
        return TableSum(rows=self._rows, checksum=f"{self._total:064x}")


def write_backup(database: Database, path: Path) -> BackupSummary:
    """Write everything in a store to a file that is not there yet; it is read back and checked before it gets its name.

    People may work meanwhile; what they do after the beginning is not in it. The backup is noted in the audit log.

    Raises:
        UsageError: the file is there.
        DataError: the audit log does not hold, so the store was changed by another program.
        StorageError: the file cannot be written.
    """
    if path.exists():  # found out before the work
        raise _there(path)
    try:
        with private_file(path) as (file, place):
            with database.reading() as connection:
                state = audit.verify(connection)
                header = Header(
                    store_version=STORE_VERSION, revision=migrate.current(connection) or "", created_at=utc_now()
                )
                with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                    _write(connection, header, packed)
            file.flush()
            summary = read_backup(place)
    except FileExistsError as error:
        raise _there(path) from error
    assert (summary.audit_entries, summary.audit_head) == (state.num_entries, _head(state))
    with database.writing() as connection:
        audit.record(connection, "backup", audit.COMMAND_LINE, {"sha256": summary.sha256, **_counts(summary)})
    return summary


def _there(path: Path) -> UsageError:
    return UsageError(f"{path}: is there already; a backup replaces nothing: give it another name")


def _head(state: audit.AuditState) -> str:
    return state.head if state.num_entries else ""


def _counts(summary: BackupSummary) -> dict[str, int]:
    return {"judgments": summary.rows["judgments"], "people": summary.rows["people"]}


def _write(connection: Connection, header: Header, packed: gzip.GzipFile) -> None:
    packed.write(header.model_dump_json().encode() + b"\n")
    sums: dict[str, TableSum] = {}
    for each in metadata.sorted_tables:
        if each is store_info:
            continue
        start = TableStart(table=each.name, columns=tuple(each.columns.keys()))
        packed.write(start.model_dump_json().encode() + b"\n")
        total = _Sum()
        for line in _lines(connection, each):
            total.add(line)
            packed.write(line)
        sums[each.name] = total.done()
    packed.write(Footer(sums=sums).model_dump_json().encode() + b"\n")


def _lines(connection: Connection, each: Table) -> Iterator[bytes]:
    order: list[Column[Any]] = [each.c.seq] if "seq" in each.c else []
    query = select(each).order_by(*order)
    for row in connection.execute(query.execution_options(yield_per=_CHUNK)):
        yield json.dumps(list(row), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class _Reading:
    """A backup that is read from its beginning to its end, with everything checked on the way."""

    def __init__(self, path: Path, file: gzip.GzipFile) -> None:
        self._path = path
        self._lines = enumerate(file, 1)
        self.sums: dict[str, TableSum] = {}
        self.header = self._parse(Header, *next(self._lines, (1, b"")))
        if self.header.store_version != STORE_VERSION:
            raise DataError(
                f"{path}: of a store of version {self.header.store_version}, this Harken reads version "
                f"{STORE_VERSION}; use the Harken that wrote it"
            )

    def _parse(self, model: type[RecordT], number: int, line: bytes) -> RecordT:
        try:
            return model.model_validate_json(line)
        except ValidationError as error:
            problem = f"not a backup of a store: {first_problem(error)}"
            raise DataError(f"{self._path}:{number}: {problem}; take another one") from error

    def rows(self) -> Iterator[tuple[TableStart, list[Any]]]:
        """Yield each row with the table it is of, tables one after the other.

        Raises:
            DataError: something is missing, was changed, or cannot be read.
        """
        start, total = None, _Sum()
        for number, line in self._lines:
            if line.startswith(b"[") and start is not None:
                total.add(line)
                yield start, json.loads(line)
                continue
            if start is not None:
                self.sums[start.table] = total.done()
            if line.startswith(b'{"sums"'):
                self._compare(self._parse(Footer, number, line))
                return
            start, total = self._parse(TableStart, number, line), _Sum()
        raise DataError(f"{self._path}: the backup ends too early; take another one")

    def _compare(self, footer: Footer) -> None:
        for name in sorted({*footer.sums, *self.sums}):
            if (found := self.sums.get(name)) != (stated := footer.sums.get(name)):
                raise DataError(f"{self._path}: table {name}: found {found}, expected {stated}; take another backup")


@contextlib.contextmanager
def _reading(path: Path) -> Generator[_Reading]:
    try:
        with gzip.open(path) as file:
            yield _Reading(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); take another backup") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def read_backup(path: Path) -> BackupSummary:
    """Read a whole backup, check every row of it, and return what it holds.

    Raises:
        DataError: it is no backup, or not whole, or was changed.
    """
    entries, head = 0, ""
    with _reading(path) as found:
        for start, row in found.rows():
            if start.table == audit.audit.name:
                entry = dict(zip(start.columns, row, strict=True))
                entries, head = entries + 1, entry["hash"]
    return BackupSummary(
        created_at=found.header.created_at,
        revision=found.header.revision,
        sha256=sha256_file(path),
        rows={name: total.rows for name, total in found.sums.items()},
        audit_entries=entries,
        audit_head=head,
    )


def restore_backup(path: Path, database: Database) -> BackupSummary:
    """Fill an empty store with a backup, which may come from the other database: all of it, or nothing.

    Raises:
        UsageError: the store is not empty.
        DataError: the backup is not whole, was changed, or was made by a newer Harken.
        StorageError: the store cannot be written.
    """
    summary = read_backup(path)
    with database.writing(alone=True) as connection, _reading(path) as found:
        _refuse_filled(connection, database.name)
        migrate.move_to(connection, found.header.revision, database.name)
        for start, rows in groupby(found.rows(), key=itemgetter(0)):
            columns: list[ColumnClause[Any]] = [column(name) for name in start.columns]
            into = table(start.table, *columns)
            while chunk := [dict(zip(start.columns, row, strict=True)) for _, row in islice(rows, _CHUNK)]:
                connection.execute(into.insert(), chunk)
        is_same_form = migrate.is_newest(connection)
        migrate.upgrade(connection, database.name)
        if connection.dialect.name == "postgresql":
            _move_sequences(connection)
            refresh_statistics(connection)
        state = audit.verify(connection, summary.audit_head or None)
        if is_same_form:
            _check_rows(connection, found.sums)
        facts = {"sha256": summary.sha256, "entries": state.num_entries, **_counts(summary)}
        audit.record(connection, "restore", audit.COMMAND_LINE, facts)
    return summary


def _refuse_filled(connection: Connection, name: str) -> None:
    for each in metadata.sorted_tables:
        if each is not store_info and connection.execute(select(each).limit(1)).first() is not None:
            raise UsageError(f"{name}: this store holds {each.name}; restore into one that is not there yet or empty")


def _move_sequences(connection: Connection) -> None:
    """Let PostgreSQL's counters go on behind the rows that came with numbers of their own."""
    for each in metadata.sorted_tables:
        if "seq" in each.c and each.c.seq.autoincrement is True:
            query = "SELECT setval(pg_get_serial_sequence(:name, 'seq'), max(seq)) FROM "
            connection.execute(text(f"{query}{each.name} HAVING max(seq) IS NOT NULL"), {"name": each.name})


def _check_rows(connection: Connection, sums: dict[str, TableSum]) -> None:
    """Compare the store with the backup, row by row."""
    for each in metadata.sorted_tables:
        if each.name in sums:
            total = _Sum()
            for line in _lines(connection, each):
                total.add(line)
            stored = total.done()
            assert stored == sums[each.name], f"{each.name}: stored {stored}, in the backup {sums[each.name]}"
