"""What people wrote into the live chat: prompts that are theirs, and everything that hangs on them."""

from sqlalchemy import Connection, Select, delete, literal, select, update

from harken.feedback.store.adding import chunks
from harken.feedback.store.tables import completions, judgments, prompts, shown
from harken.feedback.store.work_tables import leases, slots, tasks

CHAT_POOL = "chat:"
"""Begins the pool of a task from the live chat; its lease's id follows."""


def conversation_prompts(who: str | Select[str]) -> Select[str]:
    """Return the query for the ids of all prompts that hold what a person, or several, wrote into the live chat."""
    is_theirs = leases.c.person_id == who if isinstance(who, str) else leases.c.person_id.in_(who)
    return (
        select(tasks.c.prompt_id)
        .join(leases, leases.c.task_id == tasks.c.id)
        .where(is_theirs, tasks.c.pool == literal(CHAT_POOL).concat(leases.c.id))
    )


def erase_conversations(connection: Connection, person: str) -> list[str]:
    """Erase what a person wrote into the live chat, with answers to it and judgments of it by whomever.

    The triggers that keep judgments must be lifted.

    Returns: ids of the prompts.
    """
    found = list(connection.execute(conversation_prompts(person)).scalars())
    for some in chunks(found):
        their_tasks = select(tasks.c.id).where(tasks.c.prompt_id.in_(some))
        their_judgments = select(judgments.c.id).where(judgments.c.prompt_id.in_(some))
        connection.execute(update(slots).where(slots.c.task_id.in_(their_tasks)).values(lease_id=None))
        connection.execute(delete(leases).where(leases.c.task_id.in_(their_tasks)))
        connection.execute(delete(slots).where(slots.c.task_id.in_(their_tasks)))
        connection.execute(delete(shown).where(shown.c.judgment_id.in_(their_judgments)))
        for owner in (judgments, tasks, completions):
            connection.execute(delete(owner).where(owner.c.prompt_id.in_(some)))
        connection.execute(delete(prompts).where(prompts.c.id.in_(some)))
    return found
