"""Tables of the work: people, what they are asked, and who holds which task for how long.

Times are seconds since 1970 in UTC, as floats, because they are compared and added to. Tokens that open a door
(sessions, invitations) are kept as sha256 only. Answers are judgments (`tables.judgments`): a lease points to its own.
"""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from harken.feedback.store.tables import PERSON, SECRET, expires, metadata

people = Table(
    "people",
    metadata,
    # Random: it is the judge id of the person's judgments, so it must say nothing about them.
    Column("id", String, primary_key=True, info=PERSON),
    Column("name", String, nullable=False),
    Column("folded_name", String, nullable=False, unique=True),
    Column("role", String, nullable=False),
    Column("password_hash", String, nullable=False, info=SECRET),
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
    # An account of programs: nobody logs in to it, and it is no owner who could let others in.
    Column("is_service", Boolean, nullable=False, server_default=false()),
    CheckConstraint("role IN ('owner', 'reviewer', 'annotator')", name="role"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String, primary_key=True, info=SECRET),
    Column("person_id", String, ForeignKey("people.id"), nullable=False, index=True, info=PERSON),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    info=expires("sessions", "seen_at"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", String, primary_key=True, info=SECRET),
    Column("role", String, nullable=False),
    Column("created_by", String, ForeignKey("people.id"), info=PERSON),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_by", String, ForeignKey("people.id"), info=PERSON),
    info=expires("invitations", "expires_at"),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("config", Text, nullable=False),
    Column("is_open", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
)

guidelines = Table(
    "guidelines",
    metadata,
    Column("project_id", String, ForeignKey("projects.id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String, ForeignKey("people.id"), info=PERSON),
)

members = Table(
    "members",
    metadata,
    Column("project_id", String, ForeignKey("projects.id"), primary_key=True),
    Column("person_id", String, ForeignKey("people.id"), primary_key=True, info=PERSON),
    Column("pools", Text, nullable=False),
    Column("max_tasks", Integer),
    Column("max_tasks_a_day", Integer),
    # Let in by the owner, whatever they answered to qualification tasks.
    Column("is_qualified", Boolean, nullable=False, server_default=false()),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", String, ForeignKey("projects.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False),
    Column("completion_ids", Text, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("pool", String, nullable=False),
    Column("tags", Text, nullable=False),
    Column("gold", Text),
    Column("qualifies", Boolean, nullable=False, server_default=false()),
    Column("selection_probability", Float),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("project_id", "position"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", String, primary_key=True),
    Column("task_id", String, ForeignKey("tasks.id"), nullable=False),
    Column("person_id", String, ForeignKey("people.id"), nullable=False, info=PERSON),
    Column("project_id", String, ForeignKey("projects.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("shown", Text, nullable=False),
    Column("guideline", String, nullable=False),
    Column("claimed_at", Float, nullable=False),
    Column("ended_at", Float),
    # The judgment that counts: a revised answer replaces it here, both stay in `judgments`.
    Column("judgment_id", String, ForeignKey("judgments.id")),
    Column("skipped", Boolean, nullable=False),
    # Of tasks with a right answer, what the person said first: a changed answer would let them try until it fits.
    Column("is_right", Boolean),
    Column("draft", Text),
    # Nobody gets the same task twice, whatever else goes wrong.
    UniqueConstraint("task_id", "person_id"),
    Index("ix_leases_person", "person_id", "project_id", "position"),
    Index("ix_leases_judgment", "judgment_id"),
    info=expires("drafts", "claimed_at", blank="draft"),
)

task_tags = Table(
    "task_tags",
    metadata,
    # What `tasks.tags` lists, to look up whether a task has a tag.
    Column("task_id", String, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String, primary_key=True),
    sqlite_with_rowid=False,
)

opt_outs = Table(
    "opt_outs",
    metadata,
    # Tags of tasks that the person does not want to be given, in any project.
    Column("person_id", String, ForeignKey("people.id"), primary_key=True, info=PERSON),
    Column("tag", String, primary_key=True),
    sqlite_with_rowid=False,
)

NOT_DONE = text("state <> 'done'")
"""Written into the query as it is: a database uses a partial index only where it sees the same words."""

slots = Table(
    "slots",
    metadata,
    Column("task_id", String, ForeignKey("tasks.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("project_id", String, ForeignKey("projects.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("pool", String, nullable=False),
    Column("state", String, nullable=False),
    Column("lease_id", String, ForeignKey("leases.id"), index=True),
    Column("expires_at", Float),
    CheckConstraint("state IN ('open', 'leased', 'done')", name="state"),
    # What is done is not passed again when a free slot is looked for.
    Index("ix_slots_free", "project_id", "position", "number", sqlite_where=NOT_DONE, postgresql_where=NOT_DONE),
    Index("ix_slots_state", "project_id", "state"),
)

rate_counts = Table(
    "rate_counts",
    metadata,
    Column("name", String, primary_key=True),
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("expires_at", Float, nullable=False),
    Column("count", Integer, nullable=False),
    info=expires("counters", "expires_at"),
)
