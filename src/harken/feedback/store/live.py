"""Turns of the live chat in the store: each is a task for one person, with a lease, and nobody else ever gets it."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select

from harken.feedback.store.adding import Adding
from harken.feedback.store.connect import Database
from harken.feedback.store.conversations import CHAT_POOL
from harken.feedback.store.projects import read_project
from harken.feedback.store.work_tables import leases, slots, tasks
from harken.records import Completion, Prompt, content_id


@dataclass(frozen=True)
class LiveTask:
    """What a person was shown."""

    lease_id: str
    person_id: str
    project_id: str
    prompt: Prompt
    completions: tuple[Completion, ...]
    """In the order shown."""
    tags: tuple[str, ...]
    shown_at: float


def record_turn(database: Database, shown: LiveTask) -> None:
    """Put what was shown into the store as a task in the hands of the person, all of it or nothing.

    Recording it again changes nothing.

    Raises:
        DataError: there is no such project.
    """
    with database.writing(alone=True) as connection:
        if connection.execute(select(leases.c.id).where(leases.c.id == shown.lease_id)).first():
            return
        project = read_project(connection, shown.project_id)
        adding = Adding(connection)
        adding.prompts([shown.prompt])
        adding.completions(shown.completions)
        task_id = content_id("chat task", shown.lease_id)
        newest = select(func.coalesce(func.max(tasks.c.position), -1)).where(tasks.c.project_id == project.id)
        position = connection.execute(newest).scalar_one() + 1
        names = json.dumps([completion.id for completion in shown.completions])
        # A pool of its own, without members: what a person wrote is never handed to another one.
        pool = f"{CHAT_POOL}{shown.lease_id}"
        connection.execute(
            insert(tasks).values(
                id=task_id,
                project_id=project.id,
                position=position,
                prompt_id=shown.prompt.id,
                completion_ids=names,
                overlap=1,
                pool=pool,
                tags=json.dumps(shown.tags),
                created_at=shown.shown_at,
            )
        )
        connection.execute(
            insert(leases).values(
                id=shown.lease_id,
                task_id=task_id,
                person_id=shown.person_id,
                project_id=project.id,
                position=position,
                shown=names,
                guideline=project.guideline,
                claimed_at=shown.shown_at,
                skipped=False,
            )
        )
        connection.execute(
            insert(slots).values(
                task_id=task_id,
                number=0,
                project_id=project.id,
                position=position,
                pool=pool,
                state="leased",
                lease_id=shown.lease_id,
                expires_at=time.time() + project.config.lease_minutes * 60,
            )
        )


def turns_of(database: Database, project_id: str, person_id: str, tag: str) -> Sequence[str]:
    """Return the leases of one conversation of a person, oldest first.

    Args:
        database: of the store.
        project_id: of the live chat.
        person_id: whose.
        tag: of the conversation; letters, digits and colons only, so that nothing of it means something to LIKE.
    """
    query = (
        select(leases.c.id)
        .join(tasks, tasks.c.id == leases.c.task_id)
        .where(leases.c.person_id == person_id, leases.c.project_id == project_id, tasks.c.tags.like(f'%"{tag}"%'))
        .order_by(leases.c.position)
    )
    with database.reading() as connection:
        return connection.execute(query).scalars().all()
