"""`FeedbackStore`: add records, read them back, count them, export them with hashes."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, Table, select

from harken.artifacts import Manifest, atomic_file, first_problem, write_text
from harken.errors import DataError
from harken.feedback.privacy.keys import keys_path, read_keys
from harken.feedback.source import ImportSource
from harken.feedback.store import tables
from harken.feedback.store.adding import Adding, many_records, utc_now
from harken.feedback.store.audit import COMMAND_LINE, record, record_import
from harken.feedback.store.connect import Database, database_errors, open_database
from harken.feedback.store.erase import Erasing, Erasure, clean_exports, erase_rows, plan, rewrite_database, scan
from harken.feedback.store.people_tables import exports, tombstones
from harken.feedback.store.sharing import SharedBodies, Sharing, is_withdrawn, withdrawn_judgments, without_links
from harken.feedback.store.status import ImportSummary, StoreStatus, read_imports, read_status
from harken.records import Completion, Judgment, Prompt, Record, content_id

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
    erased: int = 0
    """Judgments left out because their judge was erased from this store."""


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
    def secrets(self) -> Path:
        """The path beside which this user's secrets of the store lie: its own, or one in ~/.config/harken."""
        if self.database.file is not None:
            return self.database.file
        # Not of the URL as it is given: a new password must not lose the keys.
        return Path.home() / ".config" / "harken" / f"{self.name}-{content_id(self.database.name)[:12]}"

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
        with many_records(), self.database.writing(alone=True) as connection:
            added = Adding(connection, self._erased_people(connection))
            for prompts, completions, judgments in parts:
                num_prompts += added.prompts(prompts)
                num_completions += added.completions(completions)
                num_judgments += added.judgments(judgments)
            num_judgments += added.finish()
            record_import(
                connection,
                source(),
                added,
                num_prompts=num_prompts,
                num_completions=num_completions,
                num_judgments=num_judgments,
            )
        return AddedCounts(num_prompts, num_completions, num_judgments, added.num_already_there, added.num_erased)

    def _erased_people(self, connection: Connection) -> Callable[[str], bool] | None:
        """Return what knows an erased person by the name that an import gives them."""
        traces = set(connection.execute(select(tombstones.c.hash)).scalars())
        if not traces:
            return None
        keys = read_keys(keys_path(self.secrets), create=False)
        return lambda name: keys.tombstone(name) in traces

    def prompts(self) -> Iterator[Prompt]:
        """Yield all prompts in order of arrival."""
        return self._records(tables.prompts, Prompt)

    def completions(self) -> Iterator[Completion]:
        """Yield all completions in order of arrival."""
        return self._records(tables.completions, Completion)

    def judgments(self, include_superseded: bool = False) -> Iterator[Judgment]:
        """Yield judgments in order of arrival, by default only those that none supersedes.

        Those of people who withdrew are left out, as is what they wrote into the live chat.
        """
        return self._records(tables.judgments, Judgment, include_superseded)

    def _records(self, table: Table, model: type[RecordT], include_superseded: bool = True) -> Iterator[RecordT]:
        with self.database.reading() as connection:
            gone = withdrawn_judgments(connection) if table is tables.judgments else set[str]()
            for record_id, body in _bodies(connection, table, include_superseded):
                if record_id in gone:
                    continue
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

    def imports(self) -> list[ImportSummary]:
        """Return all imports, oldest first."""
        with self.database.reading() as connection:
            return read_imports(connection)

    def export(self, folder: Path, sharing: Sharing | None = None) -> Manifest:
        """Write everything, superseded judgments included, as hashed records that training reads.

        Writes `prompts.jsonl`, `completions.jsonl`, `judgments.jsonl` and `manifest.json`, whose
        parents are the imports. The same store gives the same bytes. Judgments of people who
        withdrew are left out.

        Args:
            folder: files in it are replaced.
            sharing: for an export to hand on; None for one that stays with who holds the store.
        """
        with self.database.reading() as connection:
            shared = None if sharing is None else SharedBodies(connection, sharing)
            gone = withdrawn_judgments(connection)
            sources = shared or StoredBodies(connection, gone)
            files: dict[str, str] = {}
            counts: dict[str, int] = {}
            for name in ("prompts", "completions", "judgments"):
                path = folder / f"{name}.jsonl"
                files[path.name], counts[name] = _write_bodies(getattr(sources, name)(), path)
            parents, imports = _ancestry(connection)
        info: dict[str, Any] = {"counts": counts, "imports": imports}
        if shared is not None:
            info["sharing"] = shared.info()
        manifest = Manifest(kind="feedback", files=files, num_records=sum(counts.values()), parents=parents, info=info)
        write_text(folder / "manifest.json", manifest.model_dump_json(indent=2) + "\n")
        scope, key_id = ("", "") if sharing is None else (sharing.scope, sharing.keys.newest)
        self.remember_export(folder, manifest.digest(), counts["judgments"], scope=scope, key_id=key_id)
        return manifest

    def remember_export(
        self, place: Path, digest: str, num_judgments: int, *, scope: str = "", key_id: str = ""
    ) -> None:
        """Note where an export lies, so that erasing a person finds it, and write it into the audit log."""
        row = {"folder": str(place.resolve()), "digest": digest, "scope": scope, "key_id": key_id}
        with self.database.writing() as connection:
            connection.execute(exports.insert().values(**row, num_judgments=num_judgments, created_at=utc_now()))
            record(connection, "export", COMMAND_LINE, {"digest": digest, "scope": scope, "judgments": num_judgments})

    def erase(self, request: Erasing, *, actor: str) -> Erasure:
        """Erase a person from the store and from every export that is found.

        The database file is written anew, so that no free page keeps what was deleted.

        Raises:
            UsageError: nothing is known of the person.
            StorageError: another program has the store open.
        """
        with self.database.reading() as connection:
            found = plan(connection, request)
        # Exports first: a kill in between leaves the person in the store, and the same command goes on.
        with self.database.reading() as connection:
            clean_exports(connection, request)
        with self.database.writing(alone=True) as connection:
            erase_rows(connection, request, actor)
        with database_errors(self.database.name):
            rewrite_database(self.database)
        return scan(request, self.database.file, found)


class StoredBodies:
    """The records of a store as lines of an export, as they are."""

    def __init__(self, connection: Connection, gone: set[str]) -> None:
        """Begin; `gone` are ids of judgments to leave out."""
        self._connection = connection
        self._gone = gone

    def prompts(self) -> Iterator[str]:
        """Yield prompts in order of arrival."""
        return (body for _, body in _bodies(self._connection, tables.prompts))

    def completions(self) -> Iterator[str]:
        """Yield completions in order of arrival."""
        return (body for _, body in _bodies(self._connection, tables.completions))

    def judgments(self) -> Iterator[str]:
        """Yield judgments in order of arrival."""
        for record_id, body in _bodies(self._connection, tables.judgments):
            if record_id not in self._gone:
                yield without_links(body, self._gone) if self._gone else body


def _bodies(connection: Connection, table: Table, include_superseded: bool = True) -> Iterator[tuple[str, str]]:
    query = select(table.c.id, table.c.body).order_by(table.c.seq)
    if table is not tables.judgments:
        query = query.where(~is_withdrawn(table.c.id if table is tables.prompts else table.c.prompt_id))
    if not include_superseded:
        column = tables.judgments.c.supersedes
        query = query.where(table.c.id.not_in(select(column).where(column.is_not(None))))
    for row in connection.execution_options(yield_per=_READ_CHUNK).execute(query):
        yield row.id, row.body


def _write_bodies(bodies: Iterator[str], path: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    count = 0
    with atomic_file(path) as file:
        for body in bodies:
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
