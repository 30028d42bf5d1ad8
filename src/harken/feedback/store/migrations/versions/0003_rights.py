"""People's rights: consent, withdrawal, demographics, exports, traces of the erased, the audit log."""

import sqlalchemy as sa
from alembic import op

from harken.feedback.store.people_tables import audit_protection

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables of people's rights."""
    _consents()
    _demographics()
    _traces()
    for statement in audit_protection(op.get_context().dialect.name):
        op.execute(statement)


def _consents() -> None:
    op.create_table(
        "consent_texts",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("locale", sa.String(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_consent_texts")),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_consent_texts_version", "consent_texts", ["purpose", "version", "locale"], unique=True)
    op.create_table(
        "consents",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("person_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("locale", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("given_at", sa.String(), nullable=False),
        sa.Column("withdrawn_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_consents")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_consents_person_id"), "consents", ["person_id"], unique=False)
    op.create_table(
        "withdrawals",
        sa.Column("person_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_withdrawals")),
    )


def _demographics() -> None:
    op.create_table(
        "demographics",
        sa.Column("person_key", sa.String(), nullable=False),
        sa.Column("attribute", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("person_key", "attribute", name=op.f("pk_demographics")),
    )
    op.create_table(
        "demographic_releases",
        sa.Column("attribute", sa.String(), nullable=False),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("attribute", name=op.f("pk_demographic_releases")),
    )


def _traces() -> None:
    op.create_table(
        "exports",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("num_judgments", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_exports")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tombstones",
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_tombstones")),
    )
    op.create_table(
        "person_references",
        sa.Column("person_id", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_person_references")),
        sa.UniqueConstraint("reference", name=op.f("uq_person_references_reference")),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
        sa.UniqueConstraint("hash", name=op.f("uq_audit_hash")),
        sa.UniqueConstraint("previous", name=op.f("uq_audit_previous")),
    )


def downgrade() -> None:
    """Drop the tables of people's rights, the audit log with them."""
    op.drop_table("audit")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION harken_refuse_audit()")
    op.drop_table("person_references")
    op.drop_table("tombstones")
    op.drop_table("exports")
    op.drop_table("demographic_releases")
    op.drop_table("demographics")
    op.drop_table("withdrawals")
    op.drop_index(op.f("ix_consents_person_id"), table_name="consents")
    op.drop_table("consents")
    op.drop_index("uq_consent_texts_version", table_name="consent_texts")
    op.drop_table("consent_texts")
