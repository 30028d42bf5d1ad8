"""Tables of the feedback store's records, version 1.

Every record is kept whole as the JSON text that exports write (`body`); the other columns exist to
find and count. `seq` is the order of arrival, times are ISO 8601 in UTC. Bodies are text, not a
JSON type: an export must give back the same bytes. The tables are made by `migrations/`, which a
test compares with these.
"""

from typing import Any

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, Text

STORE_VERSION = "1"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


PERSON: dict[str, Any] = {"person": True}
"""`info` of a column that holds a person's id.

Erasing the person deletes the row, or blanks a column that may be empty; their own copy of their data holds it.
"""
SECRET: dict[str, Any] = {"secret": True}
"""`info` of a column that opens a door; in no copy of a person's data."""


def expires(kind: str, column: str, blank: str | None = None) -> dict[str, Any]:
    """Return the `info` of a table whose rows the retention job deletes.

    Args:
        kind: what the rows are, as the job's settings name it: `drafts`, `sessions`, ...
        column: the time that counts: ISO 8601 in UTC, or seconds since 1970.
        blank: the column that is emptied; None where the whole row goes.
    """
    return {"expires": (kind, column, blank)}


def _sequence() -> Column[int]:
    return Column("seq", Integer, primary_key=True, autoincrement=True)


store_info = Table(
    "harken_store",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

prompts = Table(
    "prompts",
    metadata,
    _sequence(),
    Column("id", String, nullable=False, unique=True),
    Column("body", Text, nullable=False),
    sqlite_autoincrement=True,
)

completions = Table(
    "completions",
    metadata,
    _sequence(),
    Column("id", String, nullable=False, unique=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    sqlite_autoincrement=True,
)

judgments = Table(
    "judgments",
    metadata,
    _sequence(),
    Column("id", String, nullable=False, unique=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False),
    Column("judge_id", String, nullable=False),
    Column("judge_kind", String, nullable=False),
    Column("answer_type", String, nullable=False),
    # Deferred: a batch may hold the newer judgment before the one that it supersedes.
    Column(
        "supersedes",
        String,
        ForeignKey("judgments.id", deferrable=True, initially="DEFERRED"),
        index=True,
    ),
    Column("created_at", String, nullable=False),
    Column("body", Text, nullable=False),
    sqlite_autoincrement=True,
)

shown = Table(
    "shown",
    metadata,
    Column("judgment_id", String, ForeignKey("judgments.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("completion_id", String, ForeignKey("completions.id"), nullable=False, index=True),
    sqlite_with_rowid=False,
)

imports = Table(
    "imports",
    metadata,
    _sequence(),
    Column("created_at", String, nullable=False),
    Column("format", String, nullable=False),
    Column("name", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("num_prompts", Integer, nullable=False),
    Column("num_completions", Integer, nullable=False),
    Column("num_judgments", Integer, nullable=False),
    Column("num_already_there", Integer, nullable=False),
    Column("notes", Text, nullable=False),
    sqlite_autoincrement=True,
)

_PROTECTED = ("judgments", "shown")


def protection(dialect: str) -> list[str]:
    """Return the statements that make the database itself refuse to change or delete a judgment."""
    if dialect == "postgresql":
        refuse = "CREATE FUNCTION harken_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        body = "'BEGIN RAISE EXCEPTION ''judgments are append-only'' USING ERRCODE = ''restrict_violation''; END'"
        triggers = [
            f"CREATE TRIGGER {table}_refuse_{name} BEFORE {events} ON {table} FOR EACH {what} EXECUTE "
            "FUNCTION harken_refuse()"
            for table in _PROTECTED
            for name, events, what in (("change", "UPDATE OR DELETE", "ROW"), ("truncate", "TRUNCATE", "STATEMENT"))
        ]
        return [refuse + body, *triggers]
    same_judgment = "SELECT 1 FROM judgments WHERE id = NEW.id OR seq = NEW.seq"
    same_shown = "SELECT 1 FROM shown WHERE judgment_id = NEW.judgment_id AND position = NEW.position"
    when = [
        *(
            (f"{table}_refuse_{action.lower()}", f"{action} ON {table}")
            for table in _PROTECTED
            for action in ("UPDATE", "DELETE")
        ),
        # INSERT OR REPLACE deletes the old row without firing a DELETE trigger.
        ("judgments_refuse_replace", f"INSERT ON judgments WHEN EXISTS ({same_judgment})"),
        ("shown_refuse_replace", f"INSERT ON shown WHEN EXISTS ({same_shown})"),
    ]
    refuse = "BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END"
    return [f"CREATE TRIGGER {name} BEFORE {event} {refuse}" for name, event in when]
