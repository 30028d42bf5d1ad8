"""What dashboards count of one project: answers by day, by person, and the judgments that statistics read."""

import time
from dataclasses import dataclass

from sqlalchemy import case, func, select

from harken.feedback.store import tables
from harken.feedback.store.adding import bodies_of
from harken.feedback.store.connect import Database
from harken.feedback.store.sharing import withdrawn_judgments
from harken.feedback.store.work_tables import leases
from harken.records import Completion, Judgment, Record

DAYS = 28
"""Days that throughput is told for."""
_DAY_S = 86400


class Day(Record):
    """Answers of one day."""

    day: str
    """YYYY-MM-DD, UTC."""
    num_judgments: int


class PersonCounts(Record):
    """What one person did in a project."""

    person_id: str
    num_judgments: int
    """Answers that count."""
    num_skipped: int
    num_gold: int
    """Answers to tasks with a known answer, qualification included; the first try counts."""
    num_gold_right: int


@dataclass(frozen=True)
class Read:
    """The newest judgments of a project that count, with what was shown in them."""

    judgments: list[Judgment]
    completions: list[Completion]
    num_all: int
    """Judgments there are, of which these are the newest."""


class Figures:
    """Counts over the projects of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def version(self, project_id: str) -> tuple[int, float]:
        """Return what changes with every answer of a project, so that figures need not be made anew."""
        query = select(func.count(leases.c.judgment_id), func.coalesce(func.max(leases.c.ended_at), 0.0))
        with self._database.reading() as connection:
            count, newest = connection.execute(query.where(leases.c.project_id == project_id)).one()
            return count, newest

    def days(self, project_id: str, now: float | None = None) -> list[Day]:
        """Count answers that count by day, the last `DAYS` days, the present one last."""
        today = int(time.time() if now is None else now) // _DAY_S
        starts = [(today - ago) * _DAY_S for ago in reversed(range(DAYS))]
        inside = [
            func.coalesce(
                func.sum(case(((leases.c.ended_at >= start) & (leases.c.ended_at < start + _DAY_S), 1), else_=0)), 0
            )
            for start in starts
        ]
        query = select(*inside).where(
            leases.c.project_id == project_id,
            leases.c.judgment_id.is_not(None),
            leases.c.skipped.is_(False),
            leases.c.ended_at >= starts[0],
        )
        with self._database.reading() as connection:
            counts = connection.execute(query).one()
        return [
            Day(day=time.strftime("%Y-%m-%d", time.gmtime(start)), num_judgments=int(count))
            for start, count in zip(starts, counts, strict=True)
        ]

    def people(self, project_id: str) -> list[PersonCounts]:
        """Count what each person did, most answers first."""
        answered = leases.c.judgment_id.is_not(None)
        columns = {
            "num_judgments": answered & leases.c.skipped.is_(False),
            "num_skipped": leases.c.skipped.is_(True),
            "num_gold": leases.c.is_right.is_not(None),
            "num_gold_right": leases.c.is_right.is_(True),
        }
        sums = [func.sum(case((condition, 1), else_=0)).label(name) for name, condition in columns.items()]
        query = select(leases.c.person_id, *sums).where(leases.c.project_id == project_id, answered)
        with self._database.reading() as connection:
            rows = connection.execute(query.group_by(leases.c.person_id)).mappings().all()
        found = [PersonCounts.model_validate(dict(row)) for row in rows]
        return sorted(found, key=lambda one: (-one.num_judgments, one.person_id))

    def read(self, project_id: str, most: int) -> Read:
        """Read the newest judgments that count; replaced ones and those of people who withdrew do not.

        Args:
            project_id: of which project.
            most: judgments that are read at most.
        """
        with self._database.reading() as connection:
            gone = withdrawn_judgments(connection)
            mine = (leases.c.project_id == project_id) & leases.c.judgment_id.is_not(None)
            num_all = connection.execute(select(func.count()).where(mine)).scalar_one()
            query = (
                select(tables.judgments.c.id, tables.judgments.c.body)
                .join(leases, leases.c.judgment_id == tables.judgments.c.id)
                .where(mine)
                .order_by(leases.c.ended_at.desc())
                .limit(most)
            )
            bodies = [row.body for row in connection.execute(query) if row.id not in gone]
            judgments = [Judgment.model_validate_json(body) for body in bodies]
            shown = sorted({name for judgment in judgments for name in judgment.shown})
            texts = [
                Completion.model_validate_json(body) for _, body in bodies_of(connection, tables.completions, shown)
            ]
            return Read(judgments, texts, num_all)
