"""Tables of the feedback store, version 1.

Every record is kept whole as the JSON text that exports write (`body`); the other columns exist to
find and count. `seq` is the order of arrival, times are ISO 8601 in UTC. Bodies are text, not a
JSON type: an export must give back the same bytes.
"""

from sqlalchemy import (
    DDL,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
)

STORE_VERSION = "1"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


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

_REFUSE = "BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END"
_TRIGGERS = [
    *(
        (table, f"{table.name}_refuse_{action.lower()}", f"{action} ON {table.name}")
        for table in (judgments, shown)
        for action in ("UPDATE", "DELETE")
    ),
    # INSERT OR REPLACE deletes the old row without firing a DELETE trigger.
    (
        judgments,
        "judgments_refuse_replace",
        "INSERT ON judgments WHEN EXISTS (SELECT 1 FROM judgments WHERE id = NEW.id OR seq = NEW.seq)",
    ),
    (
        shown,
        "shown_refuse_replace",
        "INSERT ON shown WHEN EXISTS "
        "(SELECT 1 FROM shown WHERE judgment_id = NEW.judgment_id AND position = NEW.position)",
    ),
]
for _table, _name, _when in _TRIGGERS:
    event.listen(
        _table,
        "after_create",
        DDL(f"CREATE TRIGGER {_name} BEFORE {_when} {_REFUSE}").execute_if(dialect="sqlite"),
    )
