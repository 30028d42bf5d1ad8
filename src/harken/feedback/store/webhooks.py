"""Webhooks: who is told of what, and a queue of what is still to be told.

An event is put into the queue in the transaction that saves the judgment, so it is sent exactly when the judgment is
there: never for one that was lost, and at least once for one that was not. Events hold ids and no texts.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, bindparam, delete, func, select, update

from harken.errors import DataError
from harken.feedback.store.accounts import Person
from harken.feedback.store.adding import utc_now
from harken.feedback.store.api_tables import NOT_SENT, deliveries, webhooks
from harken.feedback.store.audit import record, reference
from harken.feedback.store.connect import Database
from harken.feedback.store.projects import QUALIFICATION_POOL, read_project
from harken.feedback.store.work_tables import slots
from harken.records import Judgment

_LISTENING = (
    select(webhooks)
    .where(webhooks.c.is_on.is_(True))
    .where((webhooks.c.project_id == bindparam("_project")) | webhooks.c.project_id.is_(None))
    .order_by(webhooks.c.id)
    # Of two last answers at once, the later one must see the earlier.
    .with_for_update()
)
"""Written once: each answer that is saved asks it."""

Event = Literal["judgment.saved", "task.completed", "project.completed"]

BACKOFF_S = (10.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 43200.0)
"""Waits between attempts, about a day in all; after the last one an event is given up."""
_HELD_S = 120.0
"""A delivery under way is nobody else's for so long; a process that dies in it leaves it to others."""


@dataclass(frozen=True)
class Webhook:
    """An address that is told of events."""

    id: str
    url: str
    events: tuple[Event, ...]
    project_id: str | None
    """None for all projects."""
    is_on: bool
    num_waiting: int = 0
    """Events that are still to be sent."""
    last_outcome: str = ""
    """Of the newest attempt: `received`, or what went wrong."""


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one address."""

    id: str
    webhook_id: str
    url: str
    event: str
    body: str
    attempts: int
    """Attempts before this one."""


class Webhooks:
    """Webhooks of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, url: str, events: Sequence[str], by: Person, project_id: str | None = None) -> Webhook:
        """Make a webhook; whether its address may be used is for the caller to check.

        Raises:
            DataError: no events, an unknown one, or no such project.
        """
        chosen = tuple(event for event in get_args(Event) if event in events)
        if not chosen or len(chosen) < len(set(events)):
            raise DataError(f"events {sorted(set(events))}; expected some of {', '.join(get_args(Event))}")
        made = Webhook(secrets.token_hex(8), url, chosen, project_id, is_on=True)
        with self._database.writing() as connection:
            if project_id is not None:
                read_project(connection, project_id)
            connection.execute(
                webhooks.insert().values(
                    id=made.id, project_id=project_id, url=url, events=json.dumps(chosen), is_on=True,
                    created_by=by.id, created_at=time.time(),
                )
            )  # fmt: skip
            facts = {"webhook": made.id, "change": "made", "project": project_id or "all"}
            record(connection, "webhook", reference(connection, by.id), facts)
        return made

    def all(self) -> list[Webhook]:
        """Return all webhooks, oldest first, with how they do."""
        with self._database.reading() as connection:
            waiting = select(deliveries.c.webhook_id, func.count()).where(NOT_SENT).group_by(deliveries.c.webhook_id)
            counts = {row[0]: row[1] for row in connection.execute(waiting)}
            tried = select(func.max(deliveries.c.seq)).where(deliveries.c.attempts > 0)
            newest = tried.group_by(deliveries.c.webhook_id)
            rows = connection.execute(select(deliveries).where(deliveries.c.seq.in_(newest)))
            outcomes = {row.webhook_id: row.outcome for row in rows}
            return [
                Webhook(
                    row.id, row.url, tuple(json.loads(row.events)), row.project_id, row.is_on,
                    counts.get(row.id, 0), outcomes.get(row.id, ""),
                )
                for row in connection.execute(select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id))
            ]  # fmt: skip

    def remove(self, webhook_id: str, by: Person) -> None:
        """Delete a webhook with all that was not sent.

        Raises:
            DataError: there is none of this id.
        """
        with self._database.writing() as connection:
            connection.execute(delete(deliveries).where(deliveries.c.webhook_id == webhook_id))
            if not connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id)).rowcount:
                raise DataError(f"there is no webhook {webhook_id!r}; reload the page")
            record(connection, "webhook", reference(connection, by.id), {"webhook": webhook_id, "change": "removed"})

    def test(self, webhook_id: str) -> None:
        """Queue an event `ping`, with which the owner can see whether the address works.

        Raises:
            DataError: there is none of this id.
        """
        with self._database.writing() as connection:
            if connection.execute(select(webhooks.c.id).where(webhooks.c.id == webhook_id)).first() is None:
                raise DataError(f"there is no webhook {webhook_id!r}; reload the page")
            _queue(connection, webhook_id, "ping", {})

    def take_due(self) -> Delivery | None:
        """Return a delivery whose time has come, for this process alone for a while; None where there is none."""
        now = time.time()
        due = (
            select(deliveries.c.seq)
            .join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
            .where(NOT_SENT, deliveries.c.due_at <= now, webhooks.c.is_on.is_(True))
            .order_by(deliveries.c.due_at, deliveries.c.seq)
            .limit(1)
        )
        with self._database.reading() as connection:
            if connection.execute(due).first() is None:
                return None  # the usual case takes no write lock
        with self._database.writing() as connection:
            seq = connection.execute(due.with_for_update(skip_locked=True, of=deliveries)).scalar_one_or_none()
            if seq is None:
                return None
            connection.execute(update(deliveries).where(deliveries.c.seq == seq).values(due_at=now + _HELD_S))
            query = select(deliveries, webhooks.c.url).join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
            row = connection.execute(query.where(deliveries.c.seq == seq)).one()
            return Delivery(row.id, row.webhook_id, row.url, row.event, row.body, row.attempts)

    def settle(self, delivery: Delivery, outcome: str, *, received: bool) -> None:
        """Note how an attempt ended: it was received, or it is tried again later, or it is given up."""
        now = time.time()
        values: dict[str, Any] = {"attempts": delivery.attempts + 1, "outcome": outcome[:200]}
        if received or delivery.attempts >= len(BACKOFF_S):
            values["ended_at"] = now
        else:
            values["due_at"] = now + BACKOFF_S[delivery.attempts]
        with self._database.writing() as connection:
            connection.execute(update(deliveries).where(deliveries.c.id == delivery.id).values(**values))


def announce(connection: Connection, judgment: Judgment, *, settles: bool) -> None:
    """Queue the events of a judgment that is being saved, in its transaction.

    Args:
        connection: in a write transaction, after the judgment and its slot were written.
        judgment: of a task of the app.
        settles: whether it is an answer that was asked for and not there before, so that it may complete something.
    """
    task = judgment.assignment
    assert task is not None
    hooks = connection.execute(_LISTENING, {"_project": task.project}).all()
    if not hooks:
        return
    about: dict[str, Any] = {"project_id": task.project}
    happened: dict[str, dict[str, Any]] = {
        "judgment.saved": {
            **about, "task_id": task.task_id, "judgment_id": judgment.id, "supersedes": judgment.supersedes,
        }
    }  # fmt: skip
    waiting = select(slots.c.number).where(slots.c.state != "done", slots.c.pool != QUALIFICATION_POOL).limit(1)
    if settles and connection.execute(waiting.where(slots.c.task_id == task.task_id)).first() is None:
        happened["task.completed"] = {**about, "task_id": task.task_id}
        if connection.execute(waiting.where(slots.c.project_id == task.project)).first() is None:
            happened["project.completed"] = about
    for hook in hooks:
        for event, facts in happened.items():
            if event in json.loads(hook.events):
                _queue(connection, hook.id, event, facts)


def _queue(connection: Connection, webhook_id: str, event: str, facts: dict[str, Any]) -> None:
    delivery_id = secrets.token_hex(12)
    body = json.dumps({"id": delivery_id, "event": event, "created_at": utc_now(), **facts})
    now = time.time()
    connection.execute(
        deliveries.insert().values(
            id=delivery_id, webhook_id=webhook_id, event=event, body=body, created_at=now, due_at=now, attempts=0,
            outcome="",
        )
    )  # fmt: skip
