"""Leases: who gets which task, for how long, and how an answer becomes a judgment exactly once.

Each task has as many slots as people should judge it. A claim takes a slot for some minutes; using the page extends it.
A slot whose time is over may go to somebody else. An answer that comes after that is kept all the same, as surplus.
Each person has at most one lease a task, for ever: nobody is asked the same thing twice.
"""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from harken.errors import DataError, HarkenError
from harken.feedback.grading import can_be_graded, is_right
from harken.feedback.store import tables
from harken.feedback.store.adding import judgment_columns, utc_now
from harken.feedback.store.connect import Database
from harken.feedback.store.projects import Project, read_project
from harken.feedback.store.qualify import take_qualification
from harken.feedback.store.slots import (
    NoTask,
    count_answered,
    extend_lease,
    pools_within_limits,
    settle_slot,
    take_slot,
    unfinished_lease,
)
from harken.feedback.store.webhooks import announce
from harken.feedback.store.work_tables import leases, people, slots, tasks
from harken.records import Abstention, Answer, Assignment, Comparison, Completion, Flag, Judge, Judgment, Prompt, Timing

MAX_DRAFT = 4_000_000
"""Longest draft in characters."""
_EXTEND_STEP_S = 60.0
"""A lease is extended when at least so much of its time is over, so that reading pages writes little."""
# Written once, as in `slots`.
_OWN = select(leases).where(leases.c.id == bindparam("_lease"), leases.c.person_id == bindparam("_person"))
_OWN_LOCKED = _OWN.with_for_update()
_LOCK_PERSON = select(people.c.id).where(people.c.id == bindparam("_person")).with_for_update()
_SAVE_DRAFT = (
    update(leases)
    .where(leases.c.id == bindparam("_lease"), leases.c.person_id == bindparam("_person"))
    .where(leases.c.judgment_id.is_(None))
    .values(draft=bindparam("_draft"))
)
_ASKED = (
    select(tables.prompts.c.body, tasks.c.tags, slots.c.lease_id, slots.c.expires_at)
    .join(tasks, tasks.c.prompt_id == tables.prompts.c.id)
    .outerjoin(slots, slots.c.lease_id == bindparam("_lease"))
    .where(tasks.c.id == bindparam("_task"))
)
_BODIES = select(tables.completions.c.id, tables.completions.c.body).where(
    tables.completions.c.id.in_(bindparam("_shown", expanding=True))
)
_TASK = select(tasks).where(tasks.c.id == bindparam("_task"))
_BODY = select(tables.judgments.c.body).where(tables.judgments.c.id == bindparam("_judgment"))
_NEW_JUDGMENT, _NEW_SHOWN = insert(tables.judgments), insert(tables.shown)


class WrongLease(HarkenError):
    """No such lease, or it is another person's."""


class AnsweredOtherwise(HarkenError):
    """The task was answered before, with another answer."""


@dataclass(frozen=True)
class Lease:
    """A task in the hands of a person, answered or not."""

    id: str
    person_id: str
    project: Project
    prompt: Prompt
    completions: tuple[Completion, ...]
    """In the order in which this person sees them, always."""
    judgment: Judgment | None
    """The answer that counts, if there is one."""
    warnings: tuple[str, ...]
    """Tags of the task that the project's settings call sensitive."""
    draft: str
    claimed_at: float
    ended_at: float | None
    """When the answer that counts came."""
    is_held: bool
    """Whether the slot is still this person's; if not, an answer is one more than was asked for."""
    seconds_left: float


@dataclass(frozen=True)
class Given:
    """What a person gave to a task, before it is a judgment."""

    answer: Answer
    rationale: str = ""
    flags: tuple[Flag, ...] = ()
    active_s: float | None = None
    replaces: str | None = None
    """Id of the judgment that this answer replaces; None for a first answer."""


class Leases:
    """Work of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, project_id: str, person_id: str) -> Lease:
        """Give a person a task: the one they have not finished, else a new one.

        Raises:
            NoTask: the project is closed, not theirs, or holds nothing more for them; or their limit is reached.
        """
        with self._database.writing(durable=False) as connection:
            return _read(connection, _own(connection, self.take(project_id, person_id), person_id))

    def take(self, project_id: str, person_id: str) -> str:
        """Give a person a task as `claim` does, and return the lease's id only.

        Raises:
            NoTask: as `claim`.
        """
        with self._database.writing(durable=False) as connection:
            # PostgreSQL: two tabs of one person wait for each other here, so that they get one task.
            connection.execute(_LOCK_PERSON, {"_person": person_id})
            project = read_project(connection, project_id)
            if not project.is_open:
                raise NoTask("closed")
            row = unfinished_lease(connection, project_id, person_id)
            if row is None:
                pools = pools_within_limits(connection, project, person_id)
                row = take_qualification(connection, project, person_id)
                if row is None:
                    row = take_slot(connection, project, person_id, pools)
            else:
                extend_lease(connection, project, row.id)
            return row.id

    def get(self, lease_id: str, person_id: str) -> Lease:
        """Return a lease of this person.

        Raises:
            WrongLease: there is none of this id, or it is another person's; the message does not tell which.
        """
        with self._database.reading() as connection:
            return _read(connection, _own(connection, lease_id, person_id))

    def keep(self, lease_id: str, person_id: str, draft: str | None = None) -> Lease:
        """Extend a lease that is in use, and save a draft of the answer if one is given.

        Raises:
            WrongLease: as `get`.
            DataError: the draft is too long.
        """
        if draft is not None and len(draft) > MAX_DRAFT:
            raise DataError(f"the draft has {len(draft)} characters; at most {MAX_DRAFT} are kept")
        found = self.get(lease_id, person_id)
        whole_s = found.project.config.lease_minutes * 60
        if draft is None and found.seconds_left > whole_s - min(_EXTEND_STEP_S, whole_s / 10):
            return found  # as good as extended: the page that follows a claim writes nothing
        with self._database.writing(durable=False) as connection:
            extend_lease(connection, found.project, lease_id)
            if draft is not None:
                connection.execute(_SAVE_DRAFT, {"_lease": lease_id, "_person": person_id, "_draft": draft})
            return _read(connection, _own(connection, lease_id, person_id))

    def submit(self, lease_id: str, person_id: str, given: Given) -> Judgment:
        """Turn an answer into a judgment; the same answer again gives the same judgment.

        Raises:
            WrongLease: as `get`.
            AnsweredOtherwise: the task has another answer already, which `given.replaces` does not name.
            NoTask: the project is closed.
        """
        with self._database.writing() as connection:
            # In the order in which `claim` locks, which may follow in the same transaction.
            connection.execute(_LOCK_PERSON, {"_person": person_id})
            row = _own(connection, lease_id, person_id, lock=True)
            if row.judgment_id is not None and row.judgment_id != given.replaces:
                before = _judgment(connection, row.judgment_id)
                if _same(before, given):
                    return before
                raise AnsweredOtherwise("you have answered this already, with another answer, which is kept")
            project = read_project(connection, row.project_id)
            if not project.is_open:
                raise NoTask("closed")
            skipped = _is_skip(given.answer)
            if row.judgment_id is not None:
                before = _judgment(connection, row.judgment_id)
                if _same(before, given):
                    return before
            surplus = not settle_slot(connection, row, skipped=skipped)
            judgment = _make_judgment(connection, project, row, given, surplus=surplus)
            _insert(connection, judgment)
            connection.execute(
                update(leases)
                .where(leases.c.id == lease_id)
                .values(judgment_id=judgment.id, skipped=skipped, ended_at=time.time(), draft=None, **_grade(judgment))
            )
            is_new = row.judgment_id is None or row.skipped
            announce(connection, judgment, settles=is_new and not skipped and not surplus)
            return judgment

    def history(
        self, project_id: str, person_id: str | None = None, *, limit: int = 50, before: float | None = None
    ) -> list[Lease]:
        """Return the newest leases that have an answer, newest first.

        Args:
            project_id: of which project.
            person_id: whose; None for everybody's, as reviewers see them.
            limit: how many at most.
            before: the `ended_at` to go on from.
        """
        query = select(leases).where(leases.c.project_id == project_id, leases.c.judgment_id.is_not(None))
        if person_id is not None:
            query = query.where(leases.c.person_id == person_id)
        if before is not None:
            query = query.where(leases.c.ended_at < before)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(leases.c.ended_at.desc()).limit(limit)).all()
            return [_read(connection, row) for row in rows]

    def count_of(self, project_id: str, person_id: str, since: float = 0.0) -> int:
        """Return how many tasks a person has answered since a time; skipped ones do not count."""
        with self._database.reading() as connection:
            return count_answered(connection, project_id, person_id, since)


def _own(connection: Connection, lease_id: str, person_id: str, *, lock: bool = False) -> Row[Any]:
    values = {"_lease": lease_id, "_person": person_id}
    row = connection.execute(_OWN_LOCKED if lock else _OWN, values).one_or_none()
    if row is None:
        raise WrongLease("there is no such task of yours; go back to the project and take one")
    return row


def _make_judgment(
    connection: Connection, project: Project, lease: Row[Any], given: Given, *, surplus: bool
) -> Judgment:
    task = connection.execute(_TASK, {"_task": lease.task_id}).one()
    return Judgment.model_validate(
        {
            "id": secrets.token_hex(12),
            "judge": Judge(id=lease.person_id, kind="person"),
            "prompt_id": task.prompt_id,
            "shown": tuple(json.loads(lease.shown)),
            "answer": given.answer,
            "guideline": lease.guideline,
            "rationale": given.rationale,
            "timing": Timing(
                shown_at=utc_now(lease.claimed_at),
                submitted_at=utc_now(),
                active_s=given.active_s,
            ),
            "source": project.name,
            "supersedes": lease.judgment_id,
            "flags": given.flags or None,
            "assignment": Assignment(
                project=project.id,
                task_id=task.id,
                lease_id=lease.id,
                pool=task.pool,
                tags=tuple(json.loads(task.tags)),
                gold=json.loads(task.gold) if task.gold else None,
                surplus=surplus,
                selection_probability=task.selection_probability,
            ),
        }
    )


def _grade(judgment: Judgment) -> dict[str, bool]:
    """Return whether the first answer to a task with a known answer is right, as a column of the lease."""
    gold = judgment.assignment.gold if judgment.assignment else None
    if gold is None or judgment.supersedes is not None or _is_skip(judgment.answer) or not can_be_graded(gold):
        return {}
    return {"is_right": is_right(judgment.answer, gold)}


def _insert(connection: Connection, judgment: Judgment) -> None:
    body = judgment.model_dump_json(exclude_none=True)
    columns = judgment_columns(judgment, utc_now())
    connection.execute(_NEW_JUDGMENT, {"id": judgment.id, "body": body, **columns})
    shown = [
        {"judgment_id": judgment.id, "position": position, "completion_id": completion_id}
        for position, completion_id in enumerate(judgment.shown)
    ]
    if shown:
        connection.execute(_NEW_SHOWN, shown)


def _read(connection: Connection, row: Row[Any]) -> Lease:
    task = connection.execute(_ASKED, {"_lease": row.id, "_task": row.task_id}).one()
    shown: list[str] = json.loads(row.shown)
    bodies = {found.id: found.body for found in connection.execute(_BODIES, {"_shown": shown})}
    project = read_project(connection, row.project_id)
    return Lease(
        id=row.id,
        person_id=row.person_id,
        project=project,
        prompt=Prompt.model_validate_json(task.body),
        completions=tuple(Completion.model_validate_json(bodies[name]) for name in shown),
        judgment=_judgment(connection, row.judgment_id) if row.judgment_id else None,
        warnings=tuple(tag for tag in json.loads(task.tags) if tag in project.config.sensitive_tags),
        draft=row.draft or "",
        claimed_at=row.claimed_at,
        ended_at=row.ended_at,
        is_held=task.lease_id is not None,
        seconds_left=max(0.0, (task.expires_at or 0.0) - time.time()),
    )


def _judgment(connection: Connection, judgment_id: str) -> Judgment:
    return Judgment.model_validate_json(connection.execute(_BODY, {"_judgment": judgment_id}).scalar_one())


def _same(judgment: Judgment, given: Given) -> bool:
    return (judgment.answer, judgment.rationale, judgment.flags or ()) == (given.answer, given.rationale, given.flags)


def _is_skip(answer: Answer) -> bool:
    return isinstance(answer, Comparison | Abstention) and answer.outcome == "skip"
