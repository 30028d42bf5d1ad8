"""One project's records for programs: pages of tasks, and an export that is read piece by piece.

No transaction stays open while a slow reader reads: each piece is one, and records never change.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ConfigDict
from sqlalchemy import Select, func, select

from harken.feedback.store import tables
from harken.feedback.store.accounts import Person
from harken.feedback.store.adding import bodies_of, utc_now
from harken.feedback.store.audit import record, reference
from harken.feedback.store.connect import Database
from harken.feedback.store.people_tables import exports
from harken.feedback.store.sharing import is_withdrawn, withdrawn_judgments
from harken.feedback.store.work_tables import leases, slots, tasks
from harken.records import Record

Exported = Literal["prompts", "completions", "judgments"]
_CHUNK = 500


class TaskState(Record):
    """A task and how far it is."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    position: int
    """Order in which the project's tasks are handed out."""
    prompt_id: str
    overlap: int
    """Answers asked for; of a qualification task everybody gives one."""
    num_done: int
    pool: str
    tags: tuple[str, ...]
    is_gold: bool
    qualifies: bool


class Streams:
    """Records of one store's projects, for programs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tasks(self, project_id: str, after: int, most: int) -> list[TaskState]:
        """Return the tasks behind a position, in order, at most `most`."""
        query = (
            select(tasks)
            .where(tasks.c.project_id == project_id, tasks.c.position > after)
            .order_by(tasks.c.position)
            .limit(most)
        )
        return self._states(query)

    def task(self, project_id: str, task_id: str) -> TaskState | None:
        """Return one task of a project, or None."""
        found = self._states(select(tasks).where(tasks.c.project_id == project_id, tasks.c.id == task_id))
        return found[0] if found else None

    def _states(self, query: Select[Any]) -> list[TaskState]:
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            done = select(slots.c.task_id, func.count()).where(
                slots.c.task_id.in_([row.id for row in rows]), slots.c.state == "done"
            )
            counts = {row[0]: row[1] for row in connection.execute(done.group_by(slots.c.task_id))}
        return [
            TaskState(
                id=row.id, position=row.position, prompt_id=row.prompt_id, overlap=row.overlap,
                num_done=counts.get(row.id, 0), pool=row.pool, tags=tuple(json.loads(row.tags)),
                is_gold=row.gold is not None, qualifies=row.qualifies,
            )
            for row in rows
        ]  # fmt: skip

    def export(self, project_id: str, what: Exported, by: Person) -> Iterator[str]:
        """Yield the JSON of one kind of record of a project, in order of arrival.

        Judgments: those that count, of people who have not withdrawn. Read them before prompts and completions, which
        only become more. The export of judgments is noted, so that erasing a person names it.
        """
        if what == "judgments":
            self._note(project_id, by)
            return self._judgments(project_id)
        return self._shown(project_id, what)

    def _note(self, project_id: str, by: Person) -> None:
        answered = (leases.c.project_id == project_id) & leases.c.judgment_id.is_not(None)
        with self._database.writing() as connection:
            count = connection.execute(select(func.count()).where(answered)).scalar_one()
            row = {"folder": f"sent over the API to {by.name}", "digest": "", "scope": "", "key_id": ""}
            connection.execute(exports.insert().values(**row, num_judgments=count, created_at=utc_now()))
            facts = {"project": project_id, "judgments": count}
            record(connection, "export", reference(connection, by.id), facts)

    def _judgments(self, project_id: str) -> Iterator[str]:
        after = 0
        query = (
            select(tables.judgments.c.seq, tables.judgments.c.id, tables.judgments.c.body)
            .join(leases, leases.c.judgment_id == tables.judgments.c.id)
            .where(leases.c.project_id == project_id)
            .order_by(tables.judgments.c.seq)
            .limit(_CHUNK)
        )
        while True:
            with self._database.reading() as connection:
                gone = withdrawn_judgments(connection)
                rows = connection.execute(query.where(tables.judgments.c.seq > after)).all()
            if not rows:
                return
            yield from (row.body for row in rows if row.id not in gone)
            after = rows[-1].seq

    def _shown(self, project_id: str, what: Exported) -> Iterator[str]:
        """Yield what the project's tasks show, each record once."""
        table = tables.prompts if what == "prompts" else tables.completions
        seen: set[str] = set()
        after = -1
        query = select(tasks.c.position, tasks.c.prompt_id, tasks.c.completion_ids)
        query = query.where(tasks.c.project_id == project_id, ~is_withdrawn(tasks.c.prompt_id))
        query = query.order_by(tasks.c.position).limit(_CHUNK)
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(query.where(tasks.c.position > after)).all()
                names: list[str] = []
                for row in rows:
                    names += [row.prompt_id] if what == "prompts" else json.loads(row.completion_ids)
                new = [name for name in dict.fromkeys(names) if name not in seen]
                bodies = dict(bodies_of(connection, table, new))
            if not rows:
                return
            yield from (bodies[name] for name in new)
            seen.update(new)
            after = rows[-1].position
