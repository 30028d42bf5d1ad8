"""The audit log: who did what when, each entry with the hash of the one before.

Entries hold no passwords, no texts and no names: people appear by random references, which erasing a person cuts.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Literal

from sqlalchemy import Connection, select, text

from harken.errors import DataError
from harken.feedback.source import ImportSource
from harken.feedback.store.adding import Adding, utc_now
from harken.feedback.store.people_tables import audit, references
from harken.feedback.store.tables import imports
from harken.records import Record

AuditAction = Literal[
    "invite",
    "join",
    "login",
    "logout",
    "password",
    "role",
    "project",
    "member",
    "guideline",
    "import",
    "export",
    "erase",
    "backup",
    "restore",
    "consent_text",
    "withdraw",
    "demographics",
    "self_export",
    "keys",
    "retention",
    "api_key",
    "webhook",
]
COMMAND_LINE = "command line"
"""Actor of what is done by `harken collect`: whoever may write the store's file."""

_START = "0" * 64
_MAX_VALUE = 200
_FORBIDDEN = ("password", "token", "secret", "answer", "rationale", "text", "email", "address", "name")


class AuditEntry(Record):
    """One entry as it is shown."""

    seq: int
    created_at: str
    actor: str
    action: str
    facts: dict[str, int | str]
    hash: str


class AuditState(Record):
    """A log whose chain holds."""

    num_entries: int
    head: str
    """Hash of the last entry; noted elsewhere it proves later that nothing was cut off at the end."""


def record(connection: Connection, action: AuditAction, actor: str, facts: Mapping[str, int | str]) -> None:
    """Append one entry in the caller's write transaction.

    Args:
        connection: in a transaction that holds the write lock.
        action: what was done.
        actor: `COMMAND_LINE` or a `reference`.
        facts: counts and short names of things; none may be about a person.
    """
    for key, value in facts.items():
        assert not any(word in key for word in _FORBIDDEN), f"{key!r} has no place in the audit log"
        assert isinstance(value, int) or len(value) <= _MAX_VALUE, f"{key!r} is too long for the audit log"
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE audit IN EXCLUSIVE MODE"))
    last = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).one_or_none()
    (seq, previous), now = (last.seq + 1, last.hash) if last else (1, _START), utc_now()
    body = json.dumps(dict(facts), sort_keys=True)
    connection.execute(
        audit.insert().values(
            seq=seq,
            created_at=now,
            actor=actor,
            action=action,
            facts=body,
            previous=previous,
            hash=_entry_hash(previous, now, actor, action, body),
        )
    )


def record_import(
    connection: Connection,
    source: ImportSource,
    adding: Adding,
    *,
    num_prompts: int,
    num_completions: int,
    num_judgments: int = 0,
) -> None:
    """Note an import: what exports name as a parent, and an entry of the log."""
    connection.execute(
        imports.insert().values(
            created_at=utc_now(),
            format=source.format,
            name=source.name,
            sha256=source.sha256,
            num_prompts=num_prompts,
            num_completions=num_completions,
            num_judgments=num_judgments,
            num_already_there=adding.num_already_there,
            notes=json.dumps(source.notes, ensure_ascii=False),
        )
    )
    facts = {"sha256": source.sha256, "judgments": num_judgments, "left_out": adding.num_erased}
    record(connection, "import", COMMAND_LINE, facts)


def reference(connection: Connection, person: str) -> str:
    """Return the random name by which the log speaks of a person, made at the first call."""
    query = select(references.c.reference).where(references.c.person_id == person)
    found = connection.execute(query).scalar_one_or_none()
    if found is None:
        found = f"person-{secrets.token_hex(8)}"
        connection.execute(references.insert().values(person_id=person, reference=found))
    return found


def verify(connection: Connection, head: str | None = None) -> AuditState:
    """Check the whole chain and return its state.

    Args:
        connection: for reading.
        head: a hash noted earlier that the log must hold, so that a log cut at its end is found out.

    Raises:
        DataError: an entry was changed, removed or put in; the message names the first one that does not fit.
    """
    previous, count, seen = _START, 0, head is None
    for row in connection.execute(select(audit).order_by(audit.c.seq)):
        count += 1
        expected = _entry_hash(previous, row.created_at, row.actor, row.action, row.facts)
        if row.seq != count or row.previous != previous or row.hash != expected:
            raise DataError(
                f"audit log: entry {row.seq} ({row.created_at}, {row.action}) does not follow from the one before it; "
                "the log was changed by another program: compare it with a backup"
            )
        previous = row.hash
        seen = seen or row.hash == head
    if not seen:
        raise DataError(f"audit log: no entry has the hash {head}; entries were cut off: compare it with a backup")
    return AuditState(num_entries=count, head=previous)


def entries(connection: Connection) -> list[AuditEntry]:
    """Return all entries, oldest first."""
    return [
        AuditEntry(
            seq=row.seq,
            created_at=row.created_at,
            actor=row.actor,
            action=row.action,
            facts=json.loads(row.facts),
            hash=row.hash,
        )
        for row in connection.execute(select(audit).order_by(audit.c.seq))
    ]


def _entry_hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
