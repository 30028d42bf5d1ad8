"""Slots: which one a person gets next, and what becomes of it."""

import json
import random
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Connection, Float, Row, String, and_, bindparam, exists, func, insert, or_, select, update

from harken.errors import HarkenError
from harken.feedback.store.projects import Project
from harken.feedback.store.work_tables import NOT_DONE, leases, members, opt_outs, slots, task_tags, tasks

DAY_S = 86400.0


class NoTask(HarkenError):
    """There is nothing to do for this person."""

    def __init__(self, why: Literal["closed", "members", "limit", "day", "unqualified", "empty"]) -> None:
        """Say why: closed or for members only, a limit in all or a day reached, not qualified, nothing left."""
        super().__init__(f"nothing to do here: {why}")
        self.why = why


# Written once: to put a statement together takes SQLAlchemy longer than the database needs to answer it.
_PERSON, _PROJECT = bindparam("_person", type_=String()), bindparam("_project", type_=String())
_NOW = bindparam("_now", type_=Float())
_THEIRS = (leases.c.person_id == _PERSON) & (leases.c.project_id == _PROJECT)
_IS_FREE = or_(slots.c.state == "open", and_(slots.c.state == "leased", slots.c.expires_at < _NOW))
_UNWANTED = exists().where(
    opt_outs.c.person_id == _PERSON, task_tags.c.tag == opt_outs.c.tag, task_tags.c.task_id == slots.c.task_id
)
# The table of leases that is asked here must not be mixed up with the one of the slot's own lease.
_HAD = leases.alias("had")
_UNFINISHED = (
    select(leases)
    .join(slots, slots.c.lease_id == leases.c.id)
    .where(_THEIRS, leases.c.judgment_id.is_(None), ~_UNWANTED)
    .order_by(leases.c.claimed_at)
    .limit(1)
    .with_for_update(of=slots)
)
_ANSWERED = (
    select(func.count())
    .where(_THEIRS, leases.c.judgment_id.is_not(None), leases.c.skipped.is_(False))
    .where(leases.c.ended_at >= bindparam("_since"))
)
_MEMBER = select(members).where(members.c.project_id == _PROJECT, members.c.person_id == _PERSON)
_NEWEST = select(func.max(leases.c.position)).where(_THEIRS)
_FREE = (
    select(slots.c.task_id, slots.c.number)
    .where(
        slots.c.project_id == _PROJECT,
        NOT_DONE,
        _IS_FREE,
        slots.c.pool.in_(bindparam("_pools", expanding=True)),
        ~exists().where(_HAD.c.task_id == slots.c.task_id, _HAD.c.person_id == _PERSON),
        ~_UNWANTED,
        slots.c.position > bindparam("_after"),
    )
    .order_by(slots.c.position, slots.c.number)
    .limit(1)
    .with_for_update(skip_locked=True, of=slots)
)
_TASK = select(tasks).where(tasks.c.id == bindparam("_task"))
_LEASE = insert(leases).returning(leases)
_TAKE = (
    update(slots)
    .where(slots.c.task_id == bindparam("_task"), slots.c.number == bindparam("_number"))
    .values(state="leased", lease_id=bindparam("_lease"), expires_at=bindparam("_expires"))
)
_EXTEND = (
    update(slots)
    .where(slots.c.lease_id == bindparam("_lease"), slots.c.state == "leased")
    .values(expires_at=bindparam("_expires"))
)
_FINISH = (
    update(slots)
    .where(slots.c.lease_id == bindparam("_lease"), slots.c.task_id == bindparam("_task"))
    .values(state="done", expires_at=None)
)


def unfinished_lease(connection: Connection, project_id: str, person_id: str) -> Row[Any] | None:
    """Return the lease the person has not answered and nobody else has taken over."""
    return connection.execute(_UNFINISHED, {"_person": person_id, "_project": project_id}).one_or_none()


def count_answered(connection: Connection, project_id: str, person_id: str, since: float) -> int:
    """Return how many tasks a person has answered since a time; skipped ones do not count."""
    values = {"_person": person_id, "_project": project_id, "_since": since}
    return connection.execute(_ANSWERED, values).scalar_one()


def pools_within_limits(connection: Connection, project: Project, person_id: str) -> tuple[str, ...]:
    """Return the pools a person may work in, the open one ("") included.

    Raises:
        NoTask: the person is no member where members only may work, or a limit is reached.
    """
    member = connection.execute(_MEMBER, {"_person": person_id, "_project": project.id}).one_or_none()
    if member is None and project.config.access == "members":
        raise NoTask("members")
    in_all, a_day = project.config.max_tasks, project.config.max_tasks_a_day
    if member is not None:
        in_all = in_all if member.max_tasks is None else member.max_tasks
        a_day = a_day if member.max_tasks_a_day is None else member.max_tasks_a_day
    if in_all is not None and count_answered(connection, project.id, person_id, 0.0) >= in_all:
        raise NoTask("limit")
    if a_day is not None and count_answered(connection, project.id, person_id, time.time() - DAY_S) >= a_day:
        raise NoTask("day")
    return ("", *(json.loads(member.pools) if member else ()))


def take_slot(connection: Connection, project: Project, person_id: str, pools: Sequence[str]) -> Row[Any]:
    """Lease the first slot that is free, of a task that the person has never had."""
    who: dict[str, Any] = {"_person": person_id, "_project": project.id}
    position = connection.execute(_NEWEST, who).scalar_one()
    look = {**who, "_now": time.time(), "_pools": list(pools)}
    # Behind the newest task first: a scan from the start would pass all that the person has done.
    found = connection.execute(_FREE, {**look, "_after": -1 if position is None else position}).one_or_none()
    if found is None and position is not None:
        found = connection.execute(_FREE, {**look, "_after": -1}).one_or_none()
    if found is None:
        raise NoTask("empty")
    return hand_out(connection, project, person_id, found.task_id, found.number)


def hand_out(connection: Connection, project: Project, person_id: str, task_id: str, number: int) -> Row[Any]:
    """Lease one slot of a task to a person, and draw the order in which they see the completions."""
    task = connection.execute(_TASK, {"_task": task_id}).one()
    shown: list[str] = json.loads(task.completion_ids)
    # Drawn anew for each person and written down: the page shows this order each time.
    random.SystemRandom().shuffle(shown)
    now = time.time()
    values: dict[str, Any] = {
        "id": secrets.token_hex(16),
        "task_id": task.id,
        "person_id": person_id,
        "project_id": project.id,
        "position": task.position,
        "shown": json.dumps(shown),
        "guideline": project.guideline,
        "claimed_at": now,
        "skipped": False,
    }
    row = connection.execute(_LEASE, values).one()
    expires = now + project.config.lease_minutes * 60
    connection.execute(_TAKE, {"_task": task_id, "_number": number, "_lease": row.id, "_expires": expires})
    return row


def extend_lease(connection: Connection, project: Project, lease_id: str) -> None:
    """Give a lease that is still held its whole time again."""
    expires = time.time() + project.config.lease_minutes * 60
    connection.execute(_EXTEND, {"_lease": lease_id, "_expires": expires})


def settle_slot(connection: Connection, lease: Row[Any], *, skipped: bool) -> bool:
    """Mark the lease's slot as done, or free it after a skip; False where it has gone to somebody else."""
    if skipped:
        own = (slots.c.lease_id == lease.id) & (slots.c.task_id == lease.task_id)
        values: dict[str, Any] = {"state": "open", "lease_id": None, "expires_at": None}
        connection.execute(update(slots).where(own).values(**values))
        return True
    if connection.execute(_FINISH, {"_lease": lease.id, "_task": lease.task_id}).rowcount:
        return True
    # Gone, but another one of the task may be free: then this answer is one that was asked for.
    free = (
        select(slots.c.number)
        .where(slots.c.task_id == lease.task_id, _IS_FREE)
        .order_by(slots.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    number = connection.execute(free, {"_now": time.time()}).scalar_one_or_none()
    if number is None:
        return False
    place = (slots.c.task_id == lease.task_id) & (slots.c.number == number)
    connection.execute(update(slots).where(place).values(state="done", lease_id=lease.id, expires_at=None))
    return True
