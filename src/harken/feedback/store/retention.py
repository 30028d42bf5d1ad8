"""The retention job: what is no longer needed is deleted after so many days."""

import datetime
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Connection, Float, MetaData, Table, delete, update

from harken.errors import UsageError
from harken.feedback.store.audit import record
from harken.feedback.store.tables import metadata


def retention_kinds(tables: MetaData = metadata) -> dict[str, list[Table]]:
    """Return what can expire: kind -> tables (see `tables.expires`)."""
    kinds: dict[str, list[Table]] = {}
    for table in tables.sorted_tables:
        if "expires" in table.info:
            kinds.setdefault(table.info["expires"][0], []).append(table)
    return kinds


def delete_expired(
    connection: Connection,
    days: Mapping[str, float],
    now: datetime.datetime,
    *,
    actor: str,
    tables: MetaData = metadata,
) -> dict[str, int]:
    """Delete rows that are older than their kind may become; return kind -> number deleted.

    Judgments, consents and the audit log never expire. Of some tables only one column is emptied (drafts).

    Args:
        connection: in a write transaction.
        days: kind -> age in days.
        now: with a time zone.
        actor: for the audit log.
        tables: where to look.

    Raises:
        UsageError: a kind that no table has, or an age below 0.
    """
    kinds = retention_kinds(tables)
    if unknown := sorted(set(days) - set(kinds)):
        raise UsageError(f"nothing of the kind {unknown[0]!r} expires; there are: {', '.join(sorted(kinds)) or 'none'}")
    deleted: dict[str, int] = {}
    for kind, age in days.items():
        if age < 0:
            raise UsageError(f"{kind}: {age} days; expected 0 or more")
        limit = now.astimezone(datetime.UTC) - datetime.timedelta(days=age)
        deleted[kind] = sum(_delete(connection, table, limit) for table in reversed(kinds[kind]))
    record(connection, "retention", actor, dict(deleted))
    return deleted


def _delete(connection: Connection, table: Table, limit: datetime.datetime) -> int:
    marked: tuple[str, str, str | None] = table.info["expires"]
    _, name, blank = marked
    time: Column[Any] = table.c[name]
    is_old = time < (limit.timestamp() if isinstance(time.type, Float) else limit.isoformat(timespec="seconds"))
    if blank is None:
        return connection.execute(delete(table).where(is_old)).rowcount
    content: Column[Any] = table.c[blank]
    return connection.execute(update(table).where(is_old, content.is_not(None)).values({blank: None})).rowcount
