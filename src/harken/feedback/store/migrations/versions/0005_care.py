"""Tags of tasks, to be looked up, and those that people opted out of."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables, and fill in the tags of the tasks that are there."""
    tags = op.create_table(
        "task_tags",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_tags_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "tag", name=op.f("pk_task_tags")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "opt_outs",
        sa.Column("person_id", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_opt_outs_person_id")),
        sa.PrimaryKeyConstraint("person_id", "tag", name=op.f("pk_opt_outs")),
        sqlite_with_rowid=False,
    )
    found = op.get_bind().execute(sa.text("SELECT id, tags FROM tasks WHERE tags <> '[]'"))
    if rows := [{"task_id": task, "tag": tag} for task, listed in found for tag in set(json.loads(listed))]:
        op.bulk_insert(tags, rows)


def downgrade() -> None:
    """Drop them: who opted out of something is given it again."""
    op.drop_table("opt_outs")
    op.drop_table("task_tags")
