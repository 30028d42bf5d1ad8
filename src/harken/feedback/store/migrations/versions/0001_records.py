"""Records: prompts, completions, append-only judgments and imports."""

import sqlalchemy as sa
from alembic import op

from harken.feedback.store.tables import protection

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of records."""
    _texts()
    _judgments()
    for statement in protection(op.get_context().dialect.name):
        op.execute(statement)


def _texts() -> None:
    op.create_table(
        "harken_store",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_harken_store")),
    )
    op.create_table(
        "imports",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("num_prompts", sa.Integer(), nullable=False),
        sa.Column("num_completions", sa.Integer(), nullable=False),
        sa.Column("num_judgments", sa.Integer(), nullable=False),
        sa.Column("num_already_there", sa.Integer(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_imports")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "prompts",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_prompts")),
        sa.UniqueConstraint("id", name=op.f("uq_prompts_id")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "completions",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name=op.f("fk_completions_prompt_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_completions")),
        sa.UniqueConstraint("id", name=op.f("uq_completions_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_completions_prompt_id"), "completions", ["prompt_id"], unique=False)


def _judgments() -> None:
    op.create_table(
        "judgments",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("prompt_id", sa.String(), nullable=False),
        sa.Column("judge_id", sa.String(), nullable=False),
        sa.Column("judge_kind", sa.String(), nullable=False),
        sa.Column("answer_type", sa.String(), nullable=False),
        sa.Column("supersedes", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name=op.f("fk_judgments_prompt_id")),
        sa.ForeignKeyConstraint(
            ["supersedes"],
            ["judgments.id"],
            name=op.f("fk_judgments_supersedes"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_judgments")),
        sa.UniqueConstraint("id", name=op.f("uq_judgments_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_judgments_supersedes"), "judgments", ["supersedes"], unique=False)
    op.create_table(
        "shown",
        sa.Column("judgment_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("completion_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["completion_id"], ["completions.id"], name=op.f("fk_shown_completion_id")),
        sa.ForeignKeyConstraint(["judgment_id"], ["judgments.id"], name=op.f("fk_shown_judgment_id")),
        sa.PrimaryKeyConstraint("judgment_id", "position", name=op.f("pk_shown")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_shown_completion_id"), "shown", ["completion_id"], unique=False)


def downgrade() -> None:
    """Drop the tables of records."""
    op.drop_index(op.f("ix_shown_completion_id"), table_name="shown")
    op.drop_table("shown")
    op.drop_index(op.f("ix_judgments_supersedes"), table_name="judgments")
    op.drop_table("judgments")
    op.drop_index(op.f("ix_completions_prompt_id"), table_name="completions")
    op.drop_table("completions")
    op.drop_table("prompts")
    op.drop_table("imports")
    op.drop_table("harken_store")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION harken_refuse()")
