"""Qualification: tasks with known answers that a person must get right before they see others."""

from typing import Any

from sqlalchemy import Connection, Exists, Row, exists, func, insert, select

from harken.feedback.store.projects import QUALIFICATION_POOL, Project
from harken.feedback.store.slots import NoTask, hand_out
from harken.feedback.store.work_tables import leases, members, opt_outs, slots, task_tags, tasks


def take_qualification(connection: Connection, project: Project, person_id: str) -> Row[Any] | None:
    """Lease the next qualification task to a person who has answered too few; None for one who need not, or passed.

    Everybody answers these tasks, however large their overlap: a slot is made for each person.

    Raises:
        NoTask: the person answered enough of them, and too many wrongly; or none is left to show what they can do.
    """
    wanted = project.config.qualification
    if wanted is None:
        return None
    key = (members.c.project_id == project.id) & (members.c.person_id == person_id)
    if connection.execute(select(members.c.is_qualified).where(key)).scalar_one_or_none():
        return None
    num_answered, num_right = qualification_of(connection, project.id, person_id)
    if num_answered >= wanted.num_tasks:
        if num_right >= wanted.accuracy * num_answered - 1e-9:
            return None
        raise NoTask("unqualified")
    had = leases.alias("had")
    next_task = (
        select(tasks.c.id)
        .where(tasks.c.project_id == project.id, tasks.c.qualifies.is_(True))
        .where(~exists().where(had.c.task_id == tasks.c.id, had.c.person_id == person_id), ~_is_unwanted(person_id))
        .order_by(tasks.c.position)
        .limit(1)
        # Two people who begin at once must not make the same slot.
        .with_for_update()
    )
    task_id = connection.execute(next_task).scalar_one_or_none()
    if task_id is None:
        raise NoTask("unqualified")
    task = connection.execute(select(tasks).where(tasks.c.id == task_id)).one()
    newest = select(func.coalesce(func.max(slots.c.number), -1)).where(slots.c.task_id == task_id)
    number = connection.execute(newest).scalar_one() + 1
    place = {"project_id": project.id, "position": task.position, "pool": QUALIFICATION_POOL}
    connection.execute(insert(slots).values(task_id=task_id, number=number, state="open", **place))
    return hand_out(connection, project, person_id, task_id, number)


def qualification_of(connection: Connection, project_id: str, person_id: str) -> tuple[int, int]:
    """Return how many qualification tasks a person has answered, and how many rightly at the first try.

    A skipped one counts as answered wrongly: else one could skip until an easy one comes. Not so one of a kind of
    content that the person opted out of.
    """
    query = (
        select(func.count(), func.count().filter(leases.c.is_right.is_(True)))
        .join(tasks, tasks.c.id == leases.c.task_id)
        .where(leases.c.project_id == project_id, leases.c.person_id == person_id)
        .where(leases.c.judgment_id.is_not(None), tasks.c.qualifies.is_(True))
        .where(~(leases.c.skipped & _is_unwanted(person_id)))
    )
    num_answered, num_right = connection.execute(query).one()
    return num_answered, num_right


def _is_unwanted(person_id: str) -> Exists:
    """Return the condition that a task has a tag which the person opted out of."""
    return exists().where(
        opt_outs.c.person_id == person_id, task_tags.c.tag == opt_outs.c.tag, task_tags.c.task_id == tasks.c.id
    )
