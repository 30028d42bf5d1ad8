"""`FeedbackStore`: add records, read them back, count them, export them with hashes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, Table, select

from harken.artifacts import Manifest, atomic_file, first_problem, write_text
from harken.errors import DataError
from harken.feedback.source import ImportSource
from harken.feedback.store import tables
from harken.feedback.store.adding import Adding, utc_now
from harken.feedback.store.connect import Database, open_database
from harken.feedback.store.status import StoreStatus, read_imports, read_status
from harken.records import Completion, Judgment, Prompt, Record

_READ_CHUNK = 2000

RecordT = TypeVar("RecordT", bound=Record)
Part = tuple[Iterable[Prompt], Iterable[Completion], Iterable[Judgment]]


@dataclass(frozen=True)
class AddedCounts:
    """What one `add` changed."""

    prompts: int
    completions: int
    judgments: int
    already_there: int
    """Records of any kind that the store had with the same id and the same content."""


class FeedbackStore:
    """Prompts, completions and judgments in one database; judgments can only be added.

    Open it with `FeedbackStore.open("sqlite:///feedback.db")`, best in a `with` block.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @property
    def path(self) -> Path:
        """The store's file.

        Raises:
            DataError: the store is in PostgreSQL.
        """
        if self.database.file is None:
            raise DataError(f"{self.database.name}: a PostgreSQL store has no file; use PostgreSQL's own tools")
        return self.database.file

    @property
    def name(self) -> str:
        """The name of the store's file or database, without its place and user."""
        return Path(self.database.engine.url.database or "").name

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """Open a store, and make it first if there is none.

        Args:
            url: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
            create: False to refuse a file that is not there, for commands that only read.

        Raises:
            DataError: a bad URL, a missing folder or file, or a file that is not a Harken store.
            StorageError: the database cannot be reached or written.
        """
        return cls(open_database(url, create=create))

    def close(self) -> None:
        """Close all connections; the store must not be used afterwards."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(
        self,
        prompts: Iterable[Prompt],
        completions: Iterable[Completion],
        judgments: Iterable[Judgment],
        *,
        source: ImportSource,
    ) -> AddedCounts:
        """Add records in one transaction: all of them, or none.

        A record whose id is there with the same content is counted as already there, so adding
        twice is the same as adding once.

        Raises:
            DataError: an id is there with other content, or a record refers to one that is not
                there.
            StorageError: the disk is full, or another process keeps the store locked.
        """
        return self.add_parts([(prompts, completions, judgments)], source=lambda: source)

    def add_parts(self, parts: Iterable[Part], *, source: Callable[[], ImportSource]) -> AddedCounts:
        """Add records part by part, as a big file is read, in one transaction: all of them, or none.

        Args:
            parts: prompts, completions and judgments; what a part refers to is in it or in an earlier one.
            source: called when all parts are read, as only then all notes are known.

        Raises:
            DataError: as `add`.
            StorageError: as `add`.
        """
        num_prompts = num_completions = num_judgments = 0
        with self.database.writing(alone=True) as connection:
            added = Adding(connection)
            for prompts, completions, judgments in parts:
                num_prompts += added.prompts(prompts)
                num_completions += added.completions(completions)
                num_judgments += added.judgments(judgments)
            added.check_superseded()
            stated = source()
            connection.execute(
                tables.imports.insert().values(
                    created_at=utc_now(),
                    format=stated.format,
                    name=stated.name,
                    sha256=stated.sha256,
                    num_prompts=num_prompts,
                    num_completions=num_completions,
                    num_judgments=num_judgments,
                    num_already_there=added.num_already_there,
                    notes=json.dumps(stated.notes, ensure_ascii=False),
                )
            )
        return AddedCounts(num_prompts, num_completions, num_judgments, added.num_already_there)

    def prompts(self) -> Iterator[Prompt]:
        """Yield all prompts in order of arrival."""
        return self._records(tables.prompts, Prompt)

    def completions(self) -> Iterator[Completion]:
        """Yield all completions in order of arrival."""
        return self._records(tables.completions, Completion)

    def judgments(self, include_superseded: bool = False) -> Iterator[Judgment]:
        """Yield judgments in order of arrival, by default only those that none supersedes."""
        return self._records(tables.judgments, Judgment, include_superseded)

    def _records(self, table: Table, model: type[RecordT], include_superseded: bool = True) -> Iterator[RecordT]:
        with self.database.reading() as connection:
            for record_id, body in _bodies(connection, table, include_superseded):
                try:
                    yield model.model_validate_json(body)
                except ValidationError as error:
                    raise DataError(
                        f"{self.database.name}: {table.name} {record_id!r}: not a {model.__name__}: "
                        f"{first_problem(error)}; the store was changed by another program"
                    ) from error

    def status(self) -> StoreStatus:
        """Count what the store holds."""
        with self.database.reading() as connection:
            return read_status(connection)

    def export(self, folder: Path) -> Manifest:
        """Write everything, superseded judgments included, as hashed records that training reads.

        Writes `prompts.jsonl`, `completions.jsonl`, `judgments.jsonl` and `manifest.json`, whose
        parents are the imports. The same store gives the same bytes.
        """
        with self.database.reading() as connection:
            files: dict[str, str] = {}
            counts: dict[str, int] = {}
            for table in (tables.prompts, tables.completions, tables.judgments):
                path = folder / f"{table.name}.jsonl"
                files[path.name], counts[table.name] = _write_bodies(connection, table, path)
            parents, sources = _ancestry(connection)
        manifest = Manifest(
            kind="feedback",
            files=files,
            num_records=sum(counts.values()),
            parents=parents,
            info={"counts": counts, "imports": sources},
        )
        write_text(folder / "manifest.json", manifest.model_dump_json(indent=2) + "\n")
        return manifest


def _bodies(connection: Connection, table: Table, include_superseded: bool = True) -> Iterator[tuple[str, str]]:
    query = select(table.c.id, table.c.body).order_by(table.c.seq)
    if not include_superseded:
        column = tables.judgments.c.supersedes
        query = query.where(table.c.id.not_in(select(column).where(column.is_not(None))))
    for row in connection.execution_options(yield_per=_READ_CHUNK).execute(query):
        yield row.id, row.body


def _write_bodies(connection: Connection, table: Table, path: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    count = 0
    with atomic_file(path) as file:
        for _, body in _bodies(connection, table):
            line = body.encode() + b"\n"
            digest.update(line)
            file.write(line)
            count += 1
    return digest.hexdigest(), count


def _ancestry(connection: Connection) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return parents (name -> sha256) and what is known of each import, repeated imports once."""
    parents: dict[str, str] = {}
    sources: list[dict[str, Any]] = []
    for summary in read_imports(connection):
        source = {
            "format": summary.format,
            "name": summary.name,
            "sha256": summary.sha256,
            "notes": list(summary.notes),
        }
        if source in sources:
            continue
        sources.append(source)
        name = summary.name
        if parents.get(name, summary.sha256) != summary.sha256:
            name = f"{name}@{summary.sha256[:12]}"
        parents[name] = summary.sha256
    return parents, sources
