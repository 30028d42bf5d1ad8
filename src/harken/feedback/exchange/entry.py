"""The pivot of all formats: what one row of a file says, as records; and what a row that cannot be used says instead.

Every format is a module with `read(rows, reading)`, which yields entries and refusals, and where the format can be
written, `write(entries, ...)` with `KEEPS`, the facts that survive. Reading never drops a row: what cannot be used is a
`Refusal` with its number, and what is odd is counted in the notes of the `Reading`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from harken.artifacts import first_problem
from harken.errors import HarkenError
from harken.records import (
    Answer,
    Comparison,
    Completion,
    DemonstrationAnswer,
    Judge,
    Judgment,
    Message,
    PreferencePair,
    Prompt,
    Split,
    Timing,
    content_id,
)

Row = dict[str, Any]
Cause = Literal["bad row", "identical", "prompts differ", "empty", "incomplete", "not supported"]
"""Why a row cannot be used, as counted by `harken data check`."""

IMPORTED = Judge(id="import", kind="import")
"""The judge of formats that do not say who judged."""
NO_TIMING = Timing()
NUM_REMEMBERED = 1 << 17
SHORT = 1000
"""Characters of a text up to which what was made of it is remembered; crowds judge the same texts again and again."""

ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class BadRow(Exception):
    """A row that cannot be used; becomes a `Refusal` with its number."""

    def __init__(self, message: str, cause: Cause = "bad row") -> None:
        super().__init__(message)
        self.cause: Cause = cause


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not used, and why."""

    row: int
    cause: Cause
    message: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt with completions and what was said about them."""

    row: int
    """Line or number of the row, from 1; the first of several."""
    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    judgments: tuple[Judgment, ...] = ()
    split: Split | None = None
    pair: PreferencePair | None = None
    """The pair itself, where the file holds Harken's own."""


@dataclass
class Reading:
    """What a format needs to know beside its rows, and the notes it leaves."""

    path: Path
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Own name -> column of the file."""
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """Rating axis -> ends of its scale, for formats that do not say."""
    labeling_config: Path | None = None
    buckets: tuple[str, ...] = ()
    """Label Studio buckets from best to worst."""
    notes: Counter[str] = field(default_factory=Counter[str])

    def note(self, text: str) -> None:
        """Count something that a reader of numbers should know."""
        self.notes[text] += 1

    def noted(self) -> tuple[str, ...]:
        """Return the notes, each with how often it came up."""
        return tuple(f"{text} ({count} times)" if count > 1 else text for text, count in self.notes.items())


def each(
    rows: Iterable[tuple[int, Row | BadRow]], read_row: Callable[[int, Row], Iterable[Entry]]
) -> Iterator[Entry | Refusal]:
    """Yield the entries of each row, or its refusal."""
    for number, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            found = list(read_row(number, row))
        except BadRow as problem:
            yield Refusal(number, problem.cause, str(problem))
        except ValidationError as error:
            yield Refusal(number, "bad row", first_problem(error))
        except HarkenError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            # Anything may stand anywhere in a stranger's row.
            yield Refusal(number, "bad row", f"not of this format: {type(error).__name__}: {str(error)[:80]}")
        else:
            yield from found


def make_prompt(messages: Iterable[Message], *, id: str | None = None) -> Prompt:
    """Return a prompt; its id is that of `harken.datasets` for the same messages, whichever file it stands in.

    Raises:
        BadRow: no message has text.
    """
    own = tuple(messages)
    if not any(message.content.strip() for message in own):
        raise BadRow("the prompt is empty", "empty")
    name = id or content_id("prompt", [{"role": message.role, "content": message.content} for message in own])
    return Prompt(id=name, messages=own)


def check_turns(prompt: Prompt) -> None:
    """Refuse to write a prompt where a format knows only conversations of questions and answers.

    Raises:
        BadRow: it is not such.
    """
    if [one.role for one in prompt.messages] != ["user", "assistant"] * (len(prompt.messages) // 2) + ["user"]:
        raise BadRow(
            "a prompt that does not alternate between user and assistant and end with the user", "not supported"
        )


def make_completion(prompt: Prompt, text: str, *, id: str | None = None, model: str = "") -> Completion:
    """Return a completion with an id made from its content."""
    make = _completion if len(text) <= SHORT else _completion.__wrapped__
    return make(prompt.id, text, id, model)


@lru_cache(NUM_REMEMBERED)
def _completion(prompt_id: str, text: str, id: str | None, model: str) -> Completion:
    name = id or content_id("completion", prompt_id, text, model)
    return Completion(id=name, prompt_id=prompt_id, message=Message(role="assistant", content=text), model=model)


def judged_by(name: str, kind: Literal["person", "model", "rule"] = "person") -> Judge:
    """Return the judge of a name that a file gives; that of `IMPORTED` stays nobody in particular."""
    return IMPORTED if name == IMPORTED.id else Judge(id=name, kind=kind)


def make_judgment(
    key: object,
    prompt: Prompt,
    shown: Iterable[Completion],
    answer: Answer,
    *,
    judge: Judge = IMPORTED,
    rationale: str = "",
    timing: Timing = NO_TIMING,
) -> Judgment:
    """Return a judgment whose id is made from its content and `key`, such as the row's number."""
    own = tuple(completion.id for completion in shown)
    values = (answer.model_dump_json(), own, judge.id, rationale)
    return Judgment(
        id=content_id("judgment", key, prompt.id, values),
        judge=judge,
        prompt_id=prompt.id,
        shown=own,
        answer=answer,
        rationale=rationale,
        timing=timing,
    )


def pair_entry(
    row: int,
    prompt: Prompt,
    chosen: str,
    rejected: str,
    *,
    strength: Literal[0, 1, 2, 3] | None = None,
    split: Split | None = None,
) -> Entry:
    """Return the entry of a format that has only a better and a worse text, and neither judges nor sides.

    The two are shown in the order of their ids, which is no order that a judge saw.

    Raises:
        BadRow: they are identical.
    """
    if chosen == rejected:
        raise BadRow("chosen and rejected are identical", "identical")
    winner, loser = make_completion(prompt, chosen), make_completion(prompt, rejected)
    both = tuple(sorted((winner, loser), key=lambda one: one.id))
    answer = Comparison(outcome="win", winner=winner.id, strength=strength)
    return Entry(row, prompt, both, (make_judgment(row, prompt, both, answer),), split)


def demonstration(row: int, prompt: Prompt, answer: str, split: Split | None = None) -> Entry:
    """Return the entry of a format that has only a text to imitate, and no judges.

    Raises:
        BadRow: it is empty.
    """
    if not answer.strip():
        raise BadRow("the completion is empty", "empty")
    return Entry(row, prompt, (), (make_judgment(row, prompt, (), DemonstrationAnswer(text=answer)),), split)


def message(role: str, text: str) -> Message:
    """Return a message, its role in Harken's words.

    Raises:
        BadRow: a role that Harken does not have, such as `tool`.
    """
    known = ROLES.get(role)
    if known is None:
        raise BadRow(f"role {role!r}; expected one of {', '.join(ROLES)}", "not supported")
    return Message(role=known, content=text)


def messages(value: object, what: str) -> tuple[Message, ...]:
    """Read a list of messages ({"role", "content"} or {"from", "value"}).

    Raises:
        BadRow: anything else; or parts that are not text.
    """
    if not value or not isinstance(value, list):
        raise BadRow(f"{what} is {str(value)[:40]!r}; expected a list of messages")
    found: list[Message] = []
    for item in cast(list[object], value):
        one = as_dict(item, f"a message of {what}")
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if isinstance(content, list):
            content = _parts(cast(list[object], content), what)
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRow(f"a message of {what} is {shown(one)}; expected role and content as texts")
        found.append(message(role, content))
    return tuple(found)


def _parts(parts: list[object], what: str) -> str:
    texts: list[str] = []
    for part in parts:
        one = as_dict(part, f"a part of {what}")
        if one.get("type") != "text" or not isinstance(one.get("text"), str):
            raise BadRow(f"{what} has a part of type {shown(one.get('type'))}; only text is read", "not supported")
        texts.append(one["text"])
    return "".join(texts)


def as_dict(value: object, what: str) -> Row:
    """Return an object.

    Raises:
        BadRow: it is none.
    """
    if not isinstance(value, dict):
        raise BadRow(f"{what} is {shown(value)}; expected an object")
    return cast(Row, value)


def as_list(value: object, what: str) -> list[Any]:
    """Return a list.

    Raises:
        BadRow: it is none.
    """
    if not isinstance(value, list):
        raise BadRow(f"{what} is {shown(value)}; expected a list")
    return cast(list[Any], value)


def text(row: Mapping[str, Any], key: str) -> str:
    """Return a text of a row.

    Raises:
        BadRow: it is missing or no text.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise BadRow(f"{key} is {shown(value)}; expected a text", "incomplete" if value is None else "bad row")
    return value


def number(row: Mapping[str, Any], key: str) -> float:
    """Return a number of a row, also where it is written as a text.

    Raises:
        BadRow: it is missing or no number.
    """
    value = row.get(key)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise BadRow(f"{key} is {shown(value)}; expected a number") from error
    raise BadRow(f"{key} is {shown(value)}; expected a number", "incomplete" if value is None else "bad row")


def as_strength(value: float) -> Literal[0, 1, 2, 3] | None:
    """Return a strength where the number is one."""
    return cast(Literal[0, 1, 2, 3], int(value)) if value in (0, 1, 2, 3) else None


def shown(value: object) -> str:
    """Return a value as messages show it: short, with its type."""
    return "missing" if value is None else f"{str(value)[:40]!r} ({type(value).__name__})"
