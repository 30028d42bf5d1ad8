"""Projects: what is asked, guidelines in versions, who may work on it, and the tasks."""

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, ValidationError
from sqlalchemy import Connection, bindparam, case, delete, func, insert, select, update

from harken.artifacts import first_problem
from harken.config.project import ProjectConfig
from harken.errors import DataError
from harken.feedback.source import ImportSource
from harken.feedback.store.accounts import Person
from harken.feedback.store.adding import Adding
from harken.feedback.store.audit import COMMAND_LINE, record, record_import, reference
from harken.feedback.store.connect import Database, refresh_statistics
from harken.feedback.store.work_tables import guidelines, leases, members, people, projects, slots, task_tags, tasks
from harken.feedback.tasks import TaskLine
from harken.records import Record

_CHUNK = 500
QUALIFICATION_POOL = " qualification"
"""Pool of the slots of qualification tasks: no person's pool begins with a blank, so nobody else is given one."""
_WITH_GUIDELINE = (
    select(projects, guidelines.c.version, guidelines.c.text)
    .outerjoin(guidelines, guidelines.c.project_id == projects.c.id)
    .where(projects.c.id == bindparam("_project"))
    .order_by(guidelines.c.version.desc())
    .limit(1)
)


@dataclass(frozen=True)
class Project:
    """A project as it is now."""

    id: str
    name: str
    config: ProjectConfig
    is_open: bool
    guideline_version: int
    """0 where none was written."""
    guideline_text: str

    @property
    def guideline(self) -> str:
        """What judgments say of the guideline: its version and the beginning of its sha256."""
        digest = hashlib.sha256(self.guideline_text.encode()).hexdigest()[:12]
        return f"{self.guideline_version}:{digest}" if self.guideline_version else ""


class Progress(Record):
    """How far a project is."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    num_tasks: int
    num_slots: int
    """Answers asked for: tasks times overlap."""
    num_done: int
    num_leased: int
    """Answers being given at this moment."""
    num_judgments: int
    """Answers that count: skipped and replaced ones do not."""
    num_skipped: int
    num_surplus: int
    """Answers beyond what was asked for, which came after their lease had gone to somebody else."""
    by_person: dict[str, int]
    """Person id -> answers that count."""


class Member(Record):
    """One person's share in a project."""

    person_id: str
    pools: tuple[str, ...] = ()
    max_tasks: int | None = None
    max_tasks_a_day: int | None = None
    is_qualified: bool = False
    """Let in by the owner, whatever the person answered to qualification tasks."""


class Projects:
    """Projects of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, name: str, config: ProjectConfig, by: Person | None = None, guideline: str = "") -> Project:
        """Make a project, open for work.

        Raises:
            DataError: the name is taken or cannot be used.
        """
        name = " ".join(name.split())
        if not 1 <= len(name) <= 80 or not name.isprintable():
            raise DataError("a project's name has 1 to 80 printable characters")
        project_id = secrets.token_hex(6)
        with self._database.writing(alone=True) as connection:
            if connection.execute(select(projects.c.id).where(projects.c.name == name)).first():
                raise DataError(f"there is a project {name!r} already; choose another name")
            connection.execute(
                projects.insert().values(
                    id=project_id,
                    name=name,
                    config=config.model_dump_json(),
                    is_open=True,
                    created_at=time.time(),
                )
            )
            record(connection, "project", _actor(connection, by), {"project": project_id, "change": "made"})
            if guideline.strip():
                _add_guideline(connection, project_id, guideline, by)
        return self.get(project_id)

    def get(self, project_id: str) -> Project:
        """Return a project.

        Raises:
            DataError: there is none of this id.
        """
        with self._database.reading() as connection:
            return read_project(connection, project_id)

    def named(self, name: str) -> Project | None:
        """Return the project of this name, or None."""
        with self._database.reading() as connection:
            query = select(projects.c.id).where(projects.c.name == " ".join(name.split()))
            found = connection.execute(query).scalar_one_or_none()
            return read_project(connection, found) if found else None

    def all(self) -> list[Project]:
        """Return all projects, oldest first."""
        with self._database.reading() as connection:
            ids = connection.execute(select(projects.c.id).order_by(projects.c.created_at)).scalars().all()
            return [read_project(connection, found) for found in ids]

    def set_guideline(self, project_id: str, text: str, by: Person) -> None:
        """Write a new version of the guideline; the same text again changes nothing."""
        with self._database.writing(alone=True) as connection:
            if read_project(connection, project_id).guideline_text != text:
                _add_guideline(connection, project_id, text, by)

    def set_open(self, project_id: str, is_open: bool, by: Person) -> None:
        """Open a project for work, or close it."""
        with self._database.writing() as connection:
            connection.execute(update(projects).where(projects.c.id == project_id).values(is_open=is_open))
            facts = {"project": project_id, "change": "opened" if is_open else "closed"}
            record(connection, "project", _actor(connection, by), facts)

    def set_config(self, project_id: str, config: ProjectConfig, by: Person) -> None:
        """Change how a project's work is given out; tasks that are there keep their overlap.

        Raises:
            DataError: there is no such project, or the settings ask something else than it does.
        """
        with self._database.writing(alone=True) as connection:
            project = read_project(connection, project_id)
            if config.task != project.config.task:
                raise DataError("a project asks one question for all its answers; make another project")
            values = {"config": config.model_dump_json()}
            connection.execute(update(projects).where(projects.c.id == project_id).values(**values))
            record(connection, "project", _actor(connection, by), {"project": project_id, "change": "settings"})

    def set_member(self, project_id: str, member: Member, by: Person) -> None:
        """Give a person a share in a project, or change it."""
        member = member.model_copy(update={"pools": tuple(pool.strip() for pool in member.pools)})
        values: dict[str, Any] = {
            "pools": json.dumps(member.pools),
            "max_tasks": member.max_tasks,
            "max_tasks_a_day": member.max_tasks_a_day,
            "is_qualified": member.is_qualified,
        }
        key = (members.c.project_id == project_id) & (members.c.person_id == member.person_id)
        with self._database.writing(alone=True) as connection:
            if connection.execute(update(members).where(key).values(**values)).rowcount == 0:
                connection.execute(members.insert().values(project_id=project_id, person_id=member.person_id, **values))
            facts = {"project": project_id, "person": reference(connection, member.person_id)}
            record(connection, "member", _actor(connection, by), facts)

    def remove_member(self, project_id: str, person_id: str, by: Person) -> None:
        """Take a person's share in a project away; their answers stay."""
        key = (members.c.project_id == project_id) & (members.c.person_id == person_id)
        with self._database.writing(alone=True) as connection:
            if connection.execute(delete(members).where(key)).rowcount:
                facts = {"project": project_id, "person": reference(connection, person_id), "change": "removed"}
                record(connection, "member", _actor(connection, by), facts)

    def add_tasks(self, project_id: str, lines: Sequence[TaskLine], source: ImportSource) -> tuple[int, int]:
        """Add tasks with their prompts and completions in one transaction: all of them, or none.

        Returns: how many are new, and how many were there already.

        Raises:
            DataError: an id is in the store with other content.
        """
        with self._database.writing(alone=True) as connection:
            project = read_project(connection, project_id)
            adding = Adding(connection)
            num_prompts = adding.prompts(line.prompt for line in lines)
            num_completions = adding.completions(one for line in lines for one in line.completions)
            num_tasks = _add_tasks(connection, project, lines)
            refresh_statistics(connection)
            record_import(connection, source, adding, num_prompts=num_prompts, num_completions=num_completions)
        return num_tasks, len(lines) - num_tasks

    def progress(self, project_id: str) -> Progress:
        """Count how far a project is."""
        with self._database.reading() as connection:
            # Qualification tasks are not what was asked for; their slots come and go with people.
            counted = tasks.c.qualifies.is_(False)
            by_state = select(slots.c.state, func.count()).where(slots.c.project_id == project_id)
            by_state = by_state.where(slots.c.pool != QUALIFICATION_POOL)
            states = {row[0]: row[1] for row in connection.execute(by_state.group_by(slots.c.state))}
            all_tasks = select(func.count()).where(tasks.c.project_id == project_id, counted)
            num_tasks = connection.execute(all_tasks).scalar_one()
            held = select(slots.c.lease_id).where(slots.c.project_id == project_id, slots.c.state == "done")
            held = held.where(slots.c.lease_id.is_not(None))  # None: of somebody who was erased
            answered = leases.c.judgment_id.is_not(None) & leases.c.skipped.is_(False)
            surplus = answered & leases.c.id.not_in(held)
            counts = connection.execute(
                select(
                    leases.c.person_id,
                    func.sum(case((answered, 1), else_=0)),
                    func.sum(case((leases.c.skipped.is_(True), 1), else_=0)),
                    func.sum(case((surplus, 1), else_=0)),
                )
                .where(leases.c.project_id == project_id)
                .group_by(leases.c.person_id)
                .order_by(leases.c.person_id)
            ).all()
        return Progress(
            num_tasks=num_tasks,
            num_slots=sum(states.values()),
            num_done=states.get("done", 0),
            num_leased=states.get("leased", 0),
            num_judgments=sum(row[1] for row in counts),
            num_skipped=sum(row[2] for row in counts),
            num_surplus=sum(row[3] for row in counts),
            by_person={row[0]: row[1] for row in counts},
        )

    def members(self, project_id: str) -> list[Member]:
        """Return the members of a project by name."""
        query = (
            select(members)
            .join(people, people.c.id == members.c.person_id)
            .where(members.c.project_id == project_id)
            .order_by(people.c.folded_name)
        )
        with self._database.reading() as connection:
            return [
                Member(
                    person_id=row.person_id,
                    pools=tuple(json.loads(row.pools)),
                    max_tasks=row.max_tasks,
                    max_tasks_a_day=row.max_tasks_a_day,
                    is_qualified=row.is_qualified,
                )
                for row in connection.execute(query)
            ]


def read_project(connection: Connection, project_id: str) -> Project:
    """Read one project with its newest guideline.

    Raises:
        DataError: there is none of this id, or its settings were changed by another program.
    """
    row = connection.execute(_WITH_GUIDELINE, {"_project": project_id}).one_or_none()
    if row is None:
        raise DataError(f"there is no project {project_id!r}; go back to the list of projects")
    try:
        config = _read_config(row.config)
    except ValidationError as error:
        raise DataError(f"project {row.name!r}: bad settings: {first_problem(error)}") from error
    return Project(row.id, row.name, config, row.is_open, row.version or 0, row.text or "")


@lru_cache(maxsize=64)
def _read_config(text: str) -> ProjectConfig:
    """Return the settings in a text; each request for a task reads them, and they rarely change."""
    return ProjectConfig.model_validate_json(text)


def _add_guideline(connection: Connection, project_id: str, text: str, by: Person | None) -> None:
    query = select(func.coalesce(func.max(guidelines.c.version), 0)).where(guidelines.c.project_id == project_id)
    version = connection.execute(query).scalar_one() + 1
    connection.execute(
        guidelines.insert().values(
            project_id=project_id, version=version, text=text, created_at=time.time(), created_by=by.id if by else None
        )
    )
    record(connection, "guideline", _actor(connection, by), {"project": project_id, "version": version})


def _actor(connection: Connection, by: Person | None) -> str:
    return reference(connection, by.id) if by else COMMAND_LINE


def _add_tasks(connection: Connection, project: Project, lines: Sequence[TaskLine]) -> int:
    query = select(func.coalesce(func.max(tasks.c.position), -1)).where(tasks.c.project_id == project.id)
    position = connection.execute(query).scalar_one() + 1
    known: set[str] = set()
    now = time.time()
    count = 0
    for start in range(0, len(lines), _CHUNK):
        chunk = {line.task_id(project.id): line for line in lines[start : start + _CHUNK]}
        found = connection.execute(select(tasks.c.id).where(tasks.c.id.in_(list(chunk)))).scalars()
        known.update(found)
        new = [(task_id, line) for task_id, line in chunk.items() if task_id not in known]
        task_rows: list[dict[str, Any]] = []
        slot_rows: list[dict[str, Any]] = []
        tag_rows: list[dict[str, Any]] = []
        for task_id, line in new:
            overlap = line.overlap or project.config.overlap
            place: dict[str, Any] = {"project_id": project.id, "position": position, "pool": line.pool}
            task_rows.append(
                {
                    "id": task_id,
                    "prompt_id": line.prompt.id,
                    "completion_ids": json.dumps([completion.id for completion in line.completions]),
                    "overlap": overlap,
                    "tags": json.dumps(line.tags, ensure_ascii=False),
                    "gold": line.gold.model_dump_json() if line.gold else None,
                    "qualifies": line.qualifies,
                    "selection_probability": line.selection_probability,
                    "created_at": now,
                    **place,
                }
            )
            tag_rows += [{"task_id": task_id, "tag": tag} for tag in set(line.tags)]
            if not line.qualifies:  # a slot of those is made when a person comes
                slot_rows += [{"task_id": task_id, "number": one, "state": "open", **place} for one in range(overlap)]
            position += 1
        if task_rows:
            connection.execute(insert(tasks), task_rows)
        if slot_rows:
            connection.execute(insert(slots), slot_rows)
        if tag_rows:
            connection.execute(insert(task_tags), tag_rows)
        count += len(new)
    return count
