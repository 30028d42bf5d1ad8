"""Settings of a labeling project: what people are asked, how often, and for how long a task is theirs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harken.config.base import Config
from harken.config.shared import Count

MAX_RANKED = 9
"""Completions in one ranking: the digit keys 1 to 9 stand for ranks."""


class ComparisonTask(Config):
    """Two completions of a prompt, side by side: which is better, and by how much."""

    kind: Literal["comparison"] = "comparison"
    """What is asked."""
    question: str = "Which answer is better?"
    """Shown above the choices."""
    strengths: bool = True
    """Ask how much better, in four steps; off: only which."""
    tie: bool = True
    """Offer "equally good"."""


class RatingAxis(Config):
    """One scale of a rating, in whole steps."""

    name: str
    """Name of the axis, as in exports."""
    low: int = 1
    """Lowest value."""
    high: int = 5
    """Highest value; at most ten steps above the lowest."""
    low_label: str = "bad"
    """What the lowest value means."""
    high_label: str = "good"
    """What the highest value means."""

    @model_validator(mode="after")
    def _has_a_few_steps(self) -> Self:
        if not 1 <= self.high - self.low <= 10:
            raise ValueError(f"axis {self.name!r} goes from {self.low} to {self.high}; expected 1 to 10 steps")
        return self


class RatingTask(Config):
    """One completion of a prompt, rated on named axes."""

    kind: Literal["rating"] = "rating"
    """What is asked."""
    question: str = "How good is this answer?"
    """Shown above the scales."""
    axes: tuple[RatingAxis, ...] = (RatingAxis(name="quality"),)
    """The scales, from top to bottom."""
    scope: Literal["completion", "turns", "conversation"] = "completion"
    """What is rated: the completion; each of the assistant's turns, the completion last; or all turns as a whole."""

    @model_validator(mode="after")
    def _has_axes(self) -> Self:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"axes named {names}; expected at least one, each with a name of its own")
        return self


class RankingTask(Config):
    """Two to nine completions of a prompt, put in order."""

    kind: Literal["ranking"] = "ranking"
    """What is asked."""
    question: str = "Put the answers in order, the best first."
    """Shown above the answers."""
    ties: bool = True
    """Allow equal ranks."""


class DemonstrationTask(Config):
    """A prompt without completions: the person writes one."""

    kind: Literal["demonstration"] = "demonstration"
    """What is asked."""
    question: str = "Write the answer you would like to get."
    """Shown above the text box."""


class CritiqueTask(Config):
    """One completion of a prompt: the person says what is good and bad about it."""

    kind: Literal["critique"] = "critique"
    """What is asked."""
    question: str = "What is good about this answer, and what is not?"
    """Shown above the text box."""


class CorrectionTask(Config):
    """One completion of a prompt, made better by editing it."""

    kind: Literal["correction"] = "correction"
    """What is asked."""
    question: str = "Edit the answer until you would be content with it."
    """Shown above the text box."""


class SpansTask(Config):
    """One completion of a prompt in which errors are marked, each with a type and a severity."""

    kind: Literal["spans"] = "spans"
    """What is asked."""
    question: str = "Mark each error: select it, then choose what is wrong."
    """Shown above the text."""
    labels: tuple[str, ...] = ("factual", "logic", "language", "instruction", "harmful")
    """Types of error."""


TaskConfig = Annotated[
    ComparisonTask | RatingTask | RankingTask | DemonstrationTask | CritiqueTask | CorrectionTask | SpansTask,
    Field(discriminator="kind"),
]


class Qualification(Config):
    """What a person must show on tasks with `qualifies` before they get others."""

    num_tasks: Count
    """Qualification tasks each person answers first."""
    accuracy: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of them that must be right at the first try."""


class ProjectConfig(Config):
    """`harken collect tasks`: a labeling project."""

    task: TaskConfig = ComparisonTask()
    """What is asked; `kind` says which."""
    overlap: Annotated[int, Field(ge=1, le=100)] = 1
    """People who judge each task."""
    lease_minutes: Annotated[float, Field(gt=0)] = 30
    """How long a task stays with a person who does nothing; then it may go to somebody else."""
    access: Literal["everyone", "members"] = "everyone"
    """Who may work on it: every annotator, or only those the owner added."""
    max_tasks: Count | None = None
    """Tasks one person may do in all; a member may have a limit of their own."""
    max_tasks_a_day: Count | None = None
    """Tasks one person may do in 24 hours; a member may have a limit of their own."""
    rationale: Literal["optional", "required", "off"] = "optional"
    """Whether people are asked for their reasons."""
    qualification: Qualification | None = None
    """What people must show before they get tasks that count; None: nothing."""
    sensitive_tags: tuple[str, ...] = ()
    """Tags of tasks whose texts are covered until a person uncovers them; people can ask to be given none of a tag."""
    break_minutes: Count | None = 60
    """Minutes of work without a pause after which a break is proposed; None: never."""


def num_completions(task: TaskConfig) -> tuple[int, int]:
    """Return the fewest and the most completions that a task of this kind shows."""
    match task:
        case ComparisonTask():
            return 2, 2
        case RankingTask():
            return 2, MAX_RANKED
        case DemonstrationTask():
            return 0, 0
        case RatingTask() | CritiqueTask() | CorrectionTask() | SpansTask():
            return 1, 1
