"""The nouns: what every stage reads and writes, one frozen model per kind of record, stored as JSON Lines.

The flow in types: `Prompt` -> `Completion` -> `Judgment` -> `RatedCompletion` / `PreferencePair` -> reward model and
policy. Ids are strings chosen by whoever makes the record; `content_id` makes stable ones from content.
"""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1
"""Raised when a stored field changes its meaning; artifacts carry it in their manifest."""

Split = Literal["train", "heldout"]
FinishReason = Literal["stop", "length"]

# Made once: an import of a million judgments makes four million ids.
_ID_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def content_id(*parts: object) -> str:
    """Return a stable 16-hex-digit id of the given JSON-able parts (the same parts, the same id)."""
    text = _ID_ENCODER.encode(parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Record(BaseModel):
    """Base of all records: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """What a model is asked. A last message by the assistant is a beginning that the completion continues."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if not any(message.content.strip() for message in self.messages):
            raise ValueError(f"prompt {self.id!r} is empty; give at least one message with text")
        return self


class SamplingSettings(Record):
    """How a completion was drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 64


class Completion(Record):
    """One answer of a model (or a person) to one prompt."""

    id: str
    prompt_id: str
    message: Message
    model: str = ""
    sampling: SamplingSettings | None = None
    seed: int | None = None
    finish_reason: FinishReason | None = None
    num_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    sampler_logprobs: tuple[float, ...] | None = None


class Judge(Record):
    """Who judged: a pseudonym, never a name, and what kind of judge."""

    id: str
    kind: Literal["person", "model", "rule", "import"]

    @property
    def is_machine(self) -> bool:
        """Whether no person judged; what came by import without saying so is taken to be by people."""
        return self.kind in ("model", "rule")


class Comparison(Record):
    """A choice between completions. The winner is a completion id, never a side."""

    type: Literal["comparison"] = "comparison"
    outcome: Literal["win", "tie", "both_bad", "unsure", "skip"]
    winner: str | None = None
    strength: Literal[0, 1, 2, 3] | None = None

    @model_validator(mode="after")
    def _winner_only_when_won(self) -> Self:
        if (self.outcome == "win") != (self.winner is not None):
            raise ValueError("a comparison has a winner exactly when its outcome is 'win'")
        return self


class RankingAnswer(Record):
    """Ranks by completion id, 1 is best, equal ranks are ties."""

    type: Literal["ranking"] = "ranking"
    ranks: dict[str, Annotated[int, Field(ge=1)]]


class RatedAxis(Record):
    """One rating on a named scale."""

    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _inside_scale(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"rating {self.value} lies outside its scale {self.low}..{self.high}")
        return self


class TurnRating(Record):
    """Ratings of one answer inside a prompt of several turns, by named axes."""

    message: Annotated[int, Field(ge=0)]
    """Place of the turn among the prompt's messages, from 0."""
    axes: dict[str, RatedAxis]


class Rating(Record):
    """Ratings of one completion by named axes."""

    type: Literal["rating"] = "rating"
    axes: dict[str, RatedAxis]
    turns: tuple[TurnRating, ...] | None = None
    """Ratings of the assistant's turns before the completion, where the judge was asked for them."""
    scope: Literal["conversation"] | None = None
    """What `axes` are about: prompt and completion as a whole; None: the completion."""


class ErrorSpan(Record):
    """A typed error in a completion; offsets count Unicode code points, end exclusive."""

    completion_id: str
    start: Annotated[int, Field(ge=0)]
    end: int
    label: str
    severity: Literal["minor", "major", "critical"] = "major"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"span {self.start}..{self.end} is empty or reversed")
        return self


class Spans(Record):
    """Error spans; an empty tuple says that the judge looked and found none."""

    type: Literal["spans"] = "spans"
    spans: tuple[ErrorSpan, ...]


class Correction(Record):
    """The completion's text as the judge would have it."""

    type: Literal["correction"] = "correction"
    completion_id: str
    text: str


class DemonstrationAnswer(Record):
    """A completion written by the judge."""

    type: Literal["demonstration"] = "demonstration"
    text: str


class Critique(Record):
    """Free text about a completion."""

    type: Literal["critique"] = "critique"
    completion_id: str
    text: str


class Abstention(Record):
    """No answer to a task that is not a comparison (which has its own outcomes): why there is none."""

    type: Literal["abstention"] = "abstention"
    outcome: Literal["both_bad", "unsure", "skip"]
    """`both_bad`: none of what was shown is any good."""


Answer = Annotated[
    Comparison | RankingAnswer | Rating | Spans | Correction | DemonstrationAnswer | Critique | Abstention,
    Field(discriminator="type"),
]


class Timing(Record):
    """When the judge saw and answered (ISO 8601, UTC) and how many seconds they were active."""

    shown_at: str | None = None
    submitted_at: str | None = None
    active_s: float | None = None


class Flag(Record):
    """What a judge reported about a task beside the answer."""

    reason: Literal["broken", "harmful", "private", "other"]
    note: str = ""


class Assignment(Record):
    """The task of the web app under which a judgment was made."""

    project: str
    task_id: str
    lease_id: str
    """One act of handing the task to the judge; a revised answer keeps it."""
    pool: str = ""
    tags: tuple[str, ...] = ()
    gold: Answer | None = None
    """The right answer, where the task was a test of the judge."""
    surplus: bool = False
    """The answer came after the task had been given to somebody else; it is one more than was asked for."""
    selection_probability: Annotated[float, Field(gt=0, le=1)] | None = None
    """How likely the task was to be chosen for judging; reports weigh by its inverse."""


class Judgment(Record):
    """One act of one judge. Append-only: an edit is a new judgment that supersedes an old one."""

    id: str
    judge: Judge
    prompt_id: str
    shown: tuple[str, ...]
    """Completion ids in the order in which they were shown."""
    answer: Answer
    guideline: str = ""
    """Version of the guideline the judge worked by."""
    rationale: str = ""
    timing: Timing = Timing()
    source: str = ""
    supersedes: str | None = None
    flags: tuple[Flag, ...] | None = None
    assignment: Assignment | None = None

    @model_validator(mode="after")
    def _speaks_of_what_was_shown(self) -> Self:
        answer = self.answer
        named: set[str] = set()
        match answer:
            case Comparison():
                named = {answer.winner} if answer.winner is not None else set()
            case RankingAnswer():
                named = set(answer.ranks)
            case Spans():
                named = {span.completion_id for span in answer.spans}
            case Correction() | Critique():
                named = {answer.completion_id}
            case Rating() | DemonstrationAnswer() | Abstention():
                pass
        if unknown := named - set(self.shown):
            raise ValueError(f"judgment {self.id!r} names {sorted(unknown)}, which was not shown")
        return self


class RatedCompletion(Record):
    """A completion with what its raters said, on one axis."""

    prompt: Prompt
    completion: Completion
    mean: float
    std: float
    """Population standard deviation over raters; 0 for one rater."""
    ratings: tuple[float, ...]
    judgment_ids: tuple[str, ...] = ()
    split: Split = "train"


class PreferencePair(Record):
    """Two completions of one prompt, the first preferred."""

    id: str
    prompt: Prompt
    chosen: Message
    rejected: Message
    strength: Literal[0, 1, 2, 3] = 1
    """0 negligibly, 1 slightly, 2 clearly, 3 significantly better."""
    soft_label: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Probability that a judge prefers the chosen completion."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    group: str = ""
    """All pairs of one prompt share a group."""
    split: Split = "train"
    judgment_ids: tuple[str, ...] = ()
    difference: float | None = None
    """Difference of mean ratings (chosen minus rejected), where the pair comes from ratings."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """Logits by which a reward model's score of the chosen side should lead; None: by strength (`reward.margins`)."""

    @model_validator(mode="after")
    def _sides_differ(self) -> Self:
        if self.chosen.content == self.rejected.content:
            raise ValueError(f"pair {self.id!r}: chosen and rejected are identical; drop it or record a tie")
        return self


class Ranking(Record):
    """Completions of one prompt with ranks, 1 is best, equal ranks are ties."""

    id: str
    prompt: Prompt
    completions: tuple[Message, ...]
    ranks: tuple[int, ...]
    group: str = ""
    split: Split = "train"
    judgment_ids: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_rank_each(self) -> Self:
        if len(self.completions) != len(self.ranks):
            raise ValueError(f"ranking {self.id!r}: {len(self.completions)} completions, {len(self.ranks)} ranks")
        return self


class Demonstration(Record):
    """A prompt with a completion to imitate: what supervised fine-tuning reads."""

    id: str
    prompt: Prompt
    completion: Message
    source: str = ""
    split: Split = "train"


class LabeledCompletion(Record):
    """A completion that is good or bad by itself: what `harken kto` reads beside pairs."""

    id: str
    prompt: Prompt
    completion: Message
    soft_label: Annotated[float, Field(ge=0, le=1)]
    """Probability that a judge finds the completion good."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    split: Split = "train"
    judgment_ids: tuple[str, ...] = ()


class ScoredDemonstration(Demonstration):
    """A prompt with a completion, good or bad, and how good it is: what offline reinforcement learning reads."""

    score: float
    """Higher is better; only differences between completions count."""


class ScoredCompletion(Record):
    """A completion with the score a reward gave it; what `harken score` writes."""

    prompt_id: str
    completion_id: str
    reward: str
    score: float
