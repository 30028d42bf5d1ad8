"""Erasing a person: rows, exports and database pages; and what was made of their judgments, which cannot be undone."""

import contextlib
import secrets
import sqlite3
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Select, column, delete, func, insert, select, table, text, update

from harken.errors import StorageError, UsageError
from harken.feedback.privacy import lineage
from harken.feedback.privacy.keys import DemographicsKey, Keys
from harken.feedback.store.audit import record
from harken.feedback.store.connect import Database
from harken.feedback.store.conversations import conversation_prompts, erase_conversations
from harken.feedback.store.people import forget_demographics
from harken.feedback.store.people_tables import demographics, exports, person_columns, tombstones
from harken.feedback.store.sharing import FREE_TEXT
from harken.feedback.store.tables import completions, judgments, prompts, shown
from harken.feedback.store.work_tables import leases, slots
from harken.records import Judge, Judgment, Record, Timing

JudgmentPolicy = Literal["delete", "anonymize"]
_MIN_SCANNED = 6
"""Ids shorter than this stand in any database by chance, so finding one says nothing."""


class FoundExport(Record):
    """An export in which the person's judgments stand."""

    folder: str
    num_judgments: int


class Made(Record):
    """Something made of such an export: it cannot forget, only be made anew."""

    kind: str
    path: str


class Erasure(Record):
    """What erasing a person does, or did."""

    done: bool
    rows: dict[str, int]
    """Table -> rows deleted or (judgments under `anonymize`) rewritten."""
    exports: tuple[FoundExport, ...]
    missing_exports: tuple[str, ...]
    """Folders of earlier exports that are not where they were written; copies must be found by hand."""
    made: tuple[Made, ...]
    still_found_in: tuple[str, ...] = ()
    """Files in which the person's id still stands, in some text for example."""
    is_scanned: bool = False


@dataclass(frozen=True)
class Erasing:
    """One request to erase a person."""

    person: str
    policy: JudgmentPolicy
    keys: Keys
    demographics_key: DemographicsKey | None
    folders: Sequence[Path] = ()
    """Where runs and exports lie, beside the exports that the store remembers."""


def plan(connection: Connection, request: Erasing) -> Erasure:
    """Return what would be erased, and change nothing.

    Raises:
        UsageError: nothing is known of the person, here or in any export.
        DataError: there are demographics, and no key to find the person's.
    """
    if request.demographics_key is None:
        forget_demographics(connection, request.person, None)  # raises if there are any
    rows = _count_rows(connection, request)
    artifacts, missing = _artifacts(connection, request)
    found = [
        (export, count)
        for export in artifacts
        if lineage.is_export(export) and (gone := _gone(connection, request, export))
        # What they wrote is found in an export with no judgment of it too.
        if (count := lineage.count_judgments(export, gone)) or gone.prompts
    ]
    trace = select(tombstones).where(tombstones.c.hash == request.keys.tombstone(request.person))
    # Someone erased before may be erased again: the database may not have been written anew since.
    if not rows and not found and connection.execute(trace).first() is None:
        raise UsageError(f"neither the store nor an export holds anything of {request.person!r}; check the id")
    digests = {digest for export, _ in found for digest in export.digests}
    # Files in other formats, which Harken cannot take anyone out of.
    files = [one for path in _files(connection) if judgments.name in rows and (one := lineage.artifact_of(path))]
    digests |= {digest for one in files for digest in one.digests}
    made = [*files, *lineage.made_from(artifacts, digests)]
    return Erasure(
        done=False,
        rows=rows,
        exports=tuple(FoundExport(folder=str(export.path), num_judgments=count) for export, count in found),
        missing_exports=tuple(missing),
        made=tuple(Made(kind=one.manifest.kind, path=str(one.path)) for one in made),
    )


def erase_rows(connection: Connection, request: Erasing, actor: str) -> None:
    """Erase the person's rows and leave a tombstone for every name they or their texts had, in one transaction."""
    rows = _count_rows(connection, request)
    names = {request.person}
    for row in connection.execute(select(exports.c.scope, exports.c.key_id).distinct()):
        if row.scope:
            names.add(request.keys.pseudonym(request.person, row.scope, row.key_id))
    forget_demographics(connection, request.person, request.demographics_key)
    with _append_only_lifted(connection):
        names |= set(erase_conversations(connection, request.person))
        _free_slots(connection, request)
        for owner, person_column in person_columns():
            is_theirs = person_column == request.person
            change = update(owner).values({person_column.name: None}) if person_column.nullable else delete(owner)
            connection.execute(change.where(is_theirs))
        _erase_judgments(connection, request)
    if new := {request.keys.tombstone(name) for name in names} - _traces(connection):
        connection.execute(tombstones.insert(), [{"hash": code} for code in sorted(new)])
    record(connection, "erase", actor, {"policy": request.policy, "num_rows": sum(rows.values())})


def clean_exports(connection: Connection, request: Erasing) -> None:
    """Take the person out of every export that is found."""
    artifacts, _ = _artifacts(connection, request)
    for export in artifacts:
        if lineage.is_export(export):
            lineage.take_out(export, _gone(connection, request, export))


def scan(request: Erasing, store: Path | None, found: Erasure) -> Erasure:
    """Return the erasure as done, with the files in which the person's id still stands.

    Nothing is searched for a short id; of a store in PostgreSQL (None) only exports are.
    """
    needle = request.person.encode()
    if len(needle) < _MIN_SCANNED:
        return found.model_copy(update={"done": True})
    files = [store.with_name(f"{store.name}{end}") for end in ("", "-wal", "-shm", "-journal")] if store else []
    files += [Path(one.path) for one in found.made]
    files += [file for export in found.exports for file in Path(export.folder).rglob("*") if file.is_file()]
    hits = lineage.find_bytes([file for file in files if file.is_file()], [needle])
    still = tuple(sorted({str(path) for path, _ in hits}))
    return found.model_copy(update={"done": True, "is_scanned": True, "still_found_in": still})


def rewrite_database(database: Database) -> None:
    """Write the database file anew, so that no free page and no journal keeps what was deleted.

    Raises:
        StorageError: another program has the store open.
    """
    if database.file is None:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM FULL"))
        return
    connection = database.engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA secure_delete=ON")
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        is_busy = cursor.fetchall()[0][0]
        cursor.close()
    except sqlite3.OperationalError as error:
        raise _not_rewritten(database) from error
    finally:
        connection.close()
    if is_busy:
        raise _not_rewritten(database)


def _not_rewritten(database: Database) -> StorageError:
    return StorageError(
        f"{database.name}: the rows are erased, but the file was not written anew and still holds them: another "
        "program has the store open, or the disk is full; mend this and run the same command again"
    )


def _count_rows(connection: Connection, request: Erasing) -> dict[str, int]:
    rows: dict[str, int] = {}
    theirs = conversation_prompts(request.person)
    marked = [(owner, person_column == request.person) for owner, person_column in person_columns()]
    marked.append((judgments, (judgments.c.judge_id == request.person) | judgments.c.prompt_id.in_(theirs)))
    marked += [(prompts, prompts.c.id.in_(theirs)), (completions, completions.c.prompt_id.in_(theirs))]
    for owner, is_theirs in marked:
        query = select(func.count()).select_from(owner).where(is_theirs)
        rows[owner.name] = rows.get(owner.name, 0) + connection.execute(query).scalar_one()
    if request.demographics_key is not None:
        key = request.demographics_key.person_key(request.person)
        query = select(func.count()).select_from(demographics).where(demographics.c.person_key == key)
        rows[demographics.name] = connection.execute(query).scalar_one()
    return {name: count for name, count in rows.items() if count}


def _traces(connection: Connection) -> set[str]:
    return set(connection.execute(select(tombstones.c.hash)).scalars())


def _gone(connection: Connection, request: Erasing, export: lineage.Artifact) -> lineage.Gone:
    """Return what has to be taken out of an export: also texts that the store has erased already."""
    theirs = set(connection.execute(conversation_prompts(request.person)).scalars())
    traces = _traces(connection)
    found = {name for name in lineage.conversations(export) if name in theirs or request.keys.tombstone(name) in traces}
    return lineage.Gone(_names(request, export), found)


def _names(request: Erasing, export: lineage.Artifact) -> set[str]:
    """Return how the person is called in an export."""
    sharing = export.manifest.info.get("sharing")
    if sharing is None:
        return {request.person}
    if sharing["key_id"] not in {key.id for key in request.keys.project}:
        return set()  # of another project
    return {request.keys.pseudonym(request.person, sharing["scope"], sharing["key_id"])}


def _artifacts(connection: Connection, request: Erasing) -> tuple[list[lineage.Artifact], list[str]]:
    """Return everything with a manifest in the folders to look through, and remembered exports that are gone."""
    remembered = sorted({Path(folder) for folder in connection.execute(select(exports.c.folder)).scalars()})
    there = [folder for folder in remembered if (folder / "manifest.json").is_file()]
    missing = [str(place) for place in remembered if place not in there and not place.is_file()]
    return lineage.find_artifacts([*request.folders, *there]), missing


def _files(connection: Connection) -> list[Path]:
    """Return exports that are files, where they are still there."""
    places = {Path(place) for place in connection.execute(select(exports.c.folder)).scalars()}
    return sorted(place for place in places if place.is_file())


@contextlib.contextmanager
def _append_only_lifted(connection: Connection) -> Generator[None]:
    """Lift the triggers that keep judgments as they are, for this transaction."""
    names = (judgments.name, shown.name)
    if connection.dialect.name != "sqlite":
        for name in names:
            connection.execute(text(f"ALTER TABLE {name} DISABLE TRIGGER USER"))
        yield
        # A table cannot be altered while deferred checks of it are due.
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        for name in names:
            connection.execute(text(f"ALTER TABLE {name} ENABLE TRIGGER USER"))
        return
    schema = table("sqlite_master", column("type"), column("tbl_name"), column("name"), column("sql"))
    query = select(schema.c.name, schema.c.sql).where(schema.c.type == "trigger", schema.c.tbl_name.in_(names))
    triggers = [(row.name, row.sql) for row in connection.execute(query)]
    for name, _ in triggers:
        connection.exec_driver_sql(f'DROP TRIGGER "{name}"')
    yield
    for _, sql in triggers:
        connection.exec_driver_sql(sql)


def _free_slots(connection: Connection, request: Erasing) -> None:
    """Cut the slots of tasks from the person's leases; where no answer remains, somebody else gets the task."""
    theirs = select(leases.c.id).where(leases.c.person_id == request.person)
    gone = theirs
    if request.policy == "anonymize":
        kept = select(judgments.c.id).where(judgments.c.answer_type.not_in(FREE_TEXT))
        gone = theirs.where(leases.c.judgment_id.is_(None) | leases.c.judgment_id.not_in(kept))
    open_again = {"state": "open", "lease_id": None, "expires_at": None}
    connection.execute(update(slots).where(slots.c.lease_id.in_(gone)).values(open_again))
    connection.execute(update(slots).where(slots.c.lease_id.in_(theirs)).values(lease_id=None))


def _erase_judgments(connection: Connection, request: Erasing) -> None:
    query = select(judgments).where(judgments.c.judge_id == request.person).order_by(judgments.c.seq)
    rows = list(connection.execute(query).mappings())
    kept = [] if request.policy == "delete" else [row for row in rows if row["answer_type"] not in FREE_TEXT]
    new_names = {row["id"]: f"anonymous-{secrets.token_hex(10)}" for row in kept}
    owned = select(judgments.c.id).where(judgments.c.judge_id == request.person)
    _relink(connection, request.person, owned, new_names)
    places = list(connection.execute(select(shown).where(shown.c.judgment_id.in_(owned))).mappings())
    connection.execute(delete(shown).where(shown.c.judgment_id.in_(owned)))
    connection.execute(delete(judgments).where(judgments.c.judge_id == request.person))
    if kept:
        connection.execute(insert(judgments), [_anonymous(dict(row), new_names) for row in kept])
        moved = [
            {**place, "judgment_id": new_names[place["judgment_id"]]}
            for place in places
            if place["judgment_id"] in new_names
        ]
        connection.execute(insert(shown), moved)


def _relink(connection: Connection, person: str, owned: Select[tuple[str]], new_names: dict[str, str]) -> None:
    """Let judgments of others that supersede the person's name them anew, or none."""
    query = select(judgments.c.id, judgments.c.body, judgments.c.supersedes).where(
        judgments.c.supersedes.in_(owned), judgments.c.judge_id != person
    )
    for row in list(connection.execute(query)):
        name = new_names.get(row.supersedes)
        body = Judgment.model_validate_json(row.body).model_copy(update={"supersedes": name})
        changed = {"supersedes": name, "body": body.model_dump_json(exclude_none=True)}
        connection.execute(update(judgments).where(judgments.c.id == row.id).values(**changed))


def _anonymous(row: dict[str, Any], new_names: dict[str, str]) -> dict[str, Any]:
    """Return a judgment's row under a name of its own: without words, times, or a link to the person's others."""
    found = Judgment.model_validate_json(row["body"])
    name = new_names[row["id"]]
    supersedes = None if found.supersedes is None else new_names.get(found.supersedes, found.supersedes)
    body = found.model_copy(
        update={
            "id": name,
            "judge": Judge(id=name, kind=found.judge.kind),
            "rationale": "",
            "flags": None,
            "timing": Timing(),
            "assignment": found.assignment and found.assignment.model_copy(update={"lease_id": name}),
            "supersedes": supersedes,
        }
    )
    return {
        **row,
        "id": name,
        "judge_id": name,
        "supersedes": supersedes,
        "created_at": row["created_at"][:10],
        "body": body.model_dump_json(exclude_none=True),
    }
