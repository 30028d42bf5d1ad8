"""Tables about people: consent, withdrawal, demographics, exports, the audit log, traces of the erased.

Times are ISO 8601 in UTC.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, Index, Integer, MetaData, String, Table, Text

from harken.feedback.store.tables import PERSON, metadata


def _sequence() -> Column[int]:
    return Column("seq", Integer, primary_key=True, autoincrement=True)


consent_texts = Table(
    "consent_texts",
    metadata,
    _sequence(),
    Column("purpose", String, nullable=False),  # participation or demographics
    Column("version", String, nullable=False),
    Column("locale", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("sha256", String, nullable=False),
    Column("created_at", String, nullable=False),
    sqlite_autoincrement=True,
)
Index("uq_consent_texts_version", consent_texts.c.purpose, consent_texts.c.version, consent_texts.c.locale, unique=True)

consents = Table(
    "consents",
    metadata,
    _sequence(),
    Column("person_id", String, nullable=False, index=True, info=PERSON),
    Column("purpose", String, nullable=False),
    Column("version", String, nullable=False),
    Column("locale", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("given_at", String, nullable=False),
    Column("withdrawn_at", String),
    sqlite_autoincrement=True,
)

withdrawals = Table(
    "withdrawals",
    metadata,
    # Judgments of these people stay in the store and out of every export.
    Column("person_id", String, primary_key=True, info=PERSON),
    Column("created_at", String, nullable=False),
)

demographics = Table(
    "demographics",
    metadata,
    # A keyed hash, not the person's id: who reads this table alone cannot tell whose row it is.
    Column("person_key", String, primary_key=True),
    Column("attribute", String, primary_key=True),
    Column("value", String, nullable=False),
    Column("created_at", String, nullable=False),
)

releases = Table(
    "demographic_releases",
    metadata,
    # What was published last, so that two releases never differ by single people: counts and agreement, as JSON.
    Column("attribute", String, primary_key=True),
    Column("counts", Text, nullable=False),
    Column("created_at", String, nullable=False),
)

exports = Table(
    "exports",
    metadata,
    _sequence(),
    Column("folder", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("scope", String, nullable=False),  # empty: ids as in the store
    Column("key_id", String, nullable=False),
    Column("num_judgments", Integer, nullable=False),
    Column("created_at", String, nullable=False),
    sqlite_autoincrement=True,
)

tombstones = Table("tombstones", metadata, Column("hash", String, primary_key=True))

references = Table(
    "person_references",
    metadata,
    # The audit log speaks of people by these random names; with this row the only link to the person goes.
    Column("person_id", String, primary_key=True, info=PERSON),
    Column("reference", String, nullable=False, unique=True),
)

audit = Table(
    "audit",
    metadata,
    # Counted by us: a sequence of PostgreSQL leaves gaps, and a gap is what a removed entry looks like.
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("created_at", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("facts", Text, nullable=False),
    # Unique: two writers cannot both go on from the same entry.
    Column("previous", String, nullable=False, unique=True),
    Column("hash", String, nullable=False, unique=True),
)


def audit_protection(dialect: str) -> list[str]:
    """Return the statements that make the database itself refuse to change or delete an entry of the audit log."""
    if dialect == "postgresql":
        body = "'BEGIN RAISE EXCEPTION ''the audit log is append-only'' USING ERRCODE = ''restrict_violation''; END'"
        return [
            f"CREATE FUNCTION harken_refuse_audit() RETURNS trigger LANGUAGE plpgsql AS {body}",
            "CREATE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION "
            "harken_refuse_audit()",
            "CREATE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION "
            "harken_refuse_audit()",
        ]
    refuse = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    when = (
        ("audit_refuse_update", "UPDATE ON audit"),
        ("audit_refuse_delete", "DELETE ON audit"),
        ("audit_refuse_replace", "INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)"),
    )
    return [f"CREATE TRIGGER {name} BEFORE {event} {refuse}" for name, event in when]


def person_columns(tables: MetaData = metadata) -> Iterator[tuple[Table, Column[Any]]]:
    """Yield every column that holds a person's id, with its table, in an order in which rows can be deleted."""
    for table in reversed(tables.sorted_tables):
        for column in table.columns:
            if column.info.get("person"):
                yield table, column
