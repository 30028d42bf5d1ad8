"""What goes in and out of the REST API. Nothing here names a model, a gold answer or a completion's id to a judge."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from harken.config.project import TaskConfig
from harken.feedback.store import Lease, Project, Role
from harken.feedback.tasks import TaskLine
from harken.records import Record

MAX_TASKS = 10_000
"""Tasks in one request."""


class Told(Record):
    """Base of what goes in and out: what stands under a field describes it in OpenAPI."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Problem(Told):
    """What went wrong, in one sentence: what, expected, what to do."""

    error: str


class Me(Told):
    """Who a token is."""

    name: str
    role: Role
    project_id: str | None
    """The one project that the token opens; null for all."""


class ProjectShown(Told):
    """A project."""

    id: str
    name: str
    is_open: bool
    task: TaskConfig
    """What is asked."""
    overlap: int
    guideline_version: int

    @classmethod
    def of(cls, project: Project) -> "ProjectShown":
        """Return what is told of a project."""
        return cls(
            id=project.id, name=project.name, is_open=project.is_open, task=project.config.task,
            overlap=project.config.overlap, guideline_version=project.guideline_version,
        )  # fmt: skip


class NewProject(Told):
    """A project to be made."""

    name: Annotated[str, Field(max_length=80)]
    config: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Settings as in docs/config.md, `harken collect tasks`."""
    guideline: Annotated[str, Field(max_length=200_000)] = ""
    """Markdown."""


class NewTasks(Told):
    """Tasks to be added, as in docs/collect.md; what is there already is not added again."""

    tasks: Annotated[tuple[TaskLine, ...], Field(min_length=1, max_length=MAX_TASKS)]


class Added(Told):
    """How many tasks are new, and how many were there already."""

    num_added: int
    num_already_there: int


class Turn(Told):
    """One message of the prompt."""

    role: str
    content: str


class Place(Told):
    """A completion, by where it stands; its id is not told."""

    place: int
    """1 for the first."""
    text: str


class Claim(Told):
    """A task in the hands of the one who asks."""

    id: str
    project_id: str
    task: TaskConfig
    """What is asked."""
    guideline: str
    """Markdown."""
    prompt: tuple[Turn, ...]
    completions: tuple[Place, ...]
    """In the order in which the judge must see them; it is stored with the answer."""
    warnings: tuple[str, ...]
    """What the texts are about that a person should know before they see them: the task's sensitive tags."""
    seconds_left: float
    """Until somebody else may get the task; a heartbeat starts the time anew."""
    is_held: bool
    judgment_id: str | None
    """Of the answer that counts, if there is one."""

    @classmethod
    def of(cls, lease: Lease) -> "Claim":
        """Return what a judge may know of a lease."""
        return cls(
            id=lease.id, project_id=lease.project.id, task=lease.project.config.task,
            guideline=lease.project.guideline_text,
            prompt=tuple(Turn(role=one.role, content=one.content) for one in lease.prompt.messages),
            completions=tuple(
                Place(place=number, text=one.message.content) for number, one in enumerate(lease.completions, start=1)
            ),
            warnings=lease.warnings, seconds_left=lease.seconds_left, is_held=lease.is_held,
            judgment_id=lease.judgment.id if lease.judgment else None,
        )  # fmt: skip


class Handed(Told):
    """An answer to a claim."""

    fields: Annotated[dict[str, Annotated[str, Field(max_length=1_000_000)]], Field(default_factory=dict)]
    """The fields of the web form, by kind of task: docs/api.md lists them."""
    rationale: str = ""
    flag_reason: Literal["", "broken", "harmful", "private", "other"] = ""
    flag_note: str = ""
    active_s: Annotated[float, Field(ge=0, lt=86400)] | None = None
    """Seconds the judge was at work."""
    replaces: str | None = None
    """Id of the own judgment that this one supersedes."""


class Receipt(Told):
    """The answer is saved."""

    judgment_id: str
