"""Tables of what programs use: API tokens, and webhooks with what is still to be sent.

Times are seconds since 1970 in UTC. Tokens are kept as sha256 only; a webhook's secret is not kept at all (the app
derives it from its own).
"""

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, text

from harken.feedback.store.tables import PERSON, SECRET, expires, metadata

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String, primary_key=True),
    Column("token_hash", String, nullable=False, unique=True, info=SECRET),
    Column("name", String, nullable=False),
    # The account that requests act as; it belongs to programs only.
    Column("person_id", String, ForeignKey("people.id"), nullable=False, index=True, info=PERSON),
    # Empty: all projects.
    Column("project_id", String, ForeignKey("projects.id")),
    Column("created_by", String, ForeignKey("people.id"), info=PERSON),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Column("revoked_at", Float),
    info=expires("tokens", "expires_at"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", String, ForeignKey("projects.id")),
    Column("url", String, nullable=False),
    Column("events", Text, nullable=False),
    Column("is_on", Boolean, nullable=False),
    Column("created_by", String, ForeignKey("people.id"), info=PERSON),
    Column("created_at", Float, nullable=False),
)

NOT_SENT = text("ended_at IS NULL")
"""Written into the query as it is, so that the partial index is used."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("webhook_id", String, ForeignKey("webhooks.id"), nullable=False, index=True),
    Column("event", String, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    # Received, or given up.
    Column("ended_at", Float),
    Column("outcome", String, nullable=False),
    Index("ix_deliveries_due", "due_at", sqlite_where=NOT_SENT, postgresql_where=NOT_SENT),
    sqlite_autoincrement=True,
    info=expires("deliveries", "created_at"),
)
