"""What a store holds, in numbers."""

import json

from sqlalchemy import Column, Connection, Table, func, select

from harken.feedback.store.tables import completions, imports, judgments, prompts, shown
from harken.records import Record

_IMPORTS_SHOWN = 5


class ImportSummary(Record):
    """One import, as the store remembers it."""

    created_at: str
    """ISO 8601, UTC."""
    format: str
    name: str
    sha256: str
    num_prompts: int
    num_completions: int
    num_judgments: int
    num_already_there: int
    notes: tuple[str, ...]


class StoreStatus(Record):
    """Counts over a whole store; superseded judgments are counted too, and counted apart."""

    num_prompts: int
    num_completions: int
    num_judgments: int
    num_superseded: int
    num_judges: int
    """Different judge ids; an import that does not know its judges gives each judgment its own."""
    judgments_by_answer: dict[str, int]
    judgments_by_judge: dict[str, int]
    """By kind of judge."""
    per_completion_min: int
    """Fewest judgments that any completion has; what was shown counts, superseded ones do not."""
    per_completion_mean: float
    per_completion_max: int
    last_imports: tuple[ImportSummary, ...]
    """Newest first."""


def read_status(connection: Connection) -> StoreStatus:
    """Count everything in one read transaction."""
    num_completions = _count(connection, completions)
    superseded = select(judgments.c.supersedes).where(judgments.c.supersedes.is_not(None))
    counts = (
        connection.execute(
            select(func.count())
            .select_from(shown)
            .where(shown.c.judgment_id.not_in(superseded))
            .group_by(shown.c.completion_id)
        )
        .scalars()
        .all()
    )
    return StoreStatus(
        num_prompts=_count(connection, prompts),
        num_completions=num_completions,
        num_judgments=_count(connection, judgments),
        num_superseded=connection.execute(select(func.count(func.distinct(judgments.c.supersedes)))).scalar_one(),
        num_judges=connection.execute(select(func.count(func.distinct(judgments.c.judge_id)))).scalar_one(),
        judgments_by_answer=_count_by(connection, judgments.c.answer_type),
        judgments_by_judge=_count_by(connection, judgments.c.judge_kind),
        per_completion_min=min(counts) if counts and len(counts) == num_completions else 0,
        per_completion_mean=sum(counts) / num_completions if num_completions else 0.0,
        per_completion_max=max(counts, default=0),
        last_imports=tuple(reversed(read_imports(connection)))[:_IMPORTS_SHOWN],
    )


def read_imports(connection: Connection) -> list[ImportSummary]:
    """Return all imports, oldest first."""
    rows = connection.execute(select(imports).order_by(imports.c.seq)).mappings()
    return [
        ImportSummary.model_validate(
            {**{key: row[key] for key in row if key != "seq"}, "notes": json.loads(row["notes"])}
        )
        for row in rows
    ]


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _count_by(connection: Connection, column: Column[str]) -> dict[str, int]:
    query = select(column, func.count()).group_by(column).order_by(column)
    return {row[0]: row[1] for row in connection.execute(query)}
