"""What people do not want to be shown: tags of tasks that they opted out of, in every project."""

from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select

from harken.feedback.store.work_tables import opt_outs


def opted_out(connection: Connection, person_id: str) -> tuple[str, ...]:
    """Return the tags that a person opted out of, sorted."""
    query = select(opt_outs.c.tag).where(opt_outs.c.person_id == person_id).order_by(opt_outs.c.tag)
    return tuple(connection.execute(query).scalars())


def opt_out(connection: Connection, person_id: str, tags: Iterable[str]) -> None:
    """Give a person no task with one of these tags from now on, in place of those they named before."""
    connection.execute(delete(opt_outs).where(opt_outs.c.person_id == person_id))
    if rows := [{"person_id": person_id, "tag": tag} for tag in sorted(set(tags))]:
        connection.execute(insert(opt_outs), rows)
