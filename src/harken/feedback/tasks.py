"""Tasks as files: one line is one question, a prompt with the completions that people will see.

A line is {"prompt": ..., "completions": [...]}. A prompt is a text, a list of messages, or a record `Prompt`; a
completion is a text or a record `Completion`. More keys: `overlap`, `pool`, `tags`, `gold` (the right answer, as in a
judgment), `qualifies`, `selection_probability`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError, model_validator

from harken.artifacts import first_problem, read_bytes, verify
from harken.config.project import TaskConfig, num_completions
from harken.errors import DataError
from harken.feedback.grading import can_be_graded
from harken.records import Answer, Completion, Judge, Judgment, Prompt, Record, content_id

MAX_TEXT = 1_000_000
"""Longest text in characters; a page with more cannot be read, and a browser may not show it."""


class TaskLine(Record):
    """One task as a file gives it."""

    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    overlap: Annotated[int, Field(ge=1, le=100)] | None = None
    """People who judge it; None takes the project's."""
    pool: str = ""
    """Only members of this pool get it; empty is for all."""
    tags: tuple[str, ...] = ()
    gold: Answer | None = None
    """The right answer; the task tests its judges and looks like any other."""
    qualifies: bool = False
    """Everybody gets it before tasks that count, if the project asks for qualification; it needs `gold`."""
    selection_probability: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_plain_texts(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        line = dict(cast("Mapping[str, Any]", values))
        prompt = line.get("prompt")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, list):
            messages = cast("list[Any]", prompt)
            prompt = {"id": content_id("prompt", messages), "messages": messages}
        if prompt is not None:
            line["prompt"] = prompt
        completions = line.get("completions")
        if isinstance(prompt, dict) and isinstance(completions, list):
            prompt_id = str(cast("dict[str, Any]", prompt).get("id"))
            line["completions"] = [_completion(prompt_id, found) for found in cast("list[Any]", completions)]
        return line

    def task_id(self, project_id: str) -> str:
        """Return the id of this task in a project: the same line again is the same task."""
        completions = [completion.id for completion in self.completions]
        return content_id("task", project_id, self.prompt.id, completions, self.pool)


def _completion(prompt_id: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    message = {"role": "assistant", "content": value}
    return {"id": content_id("completion", prompt_id, value), "prompt_id": prompt_id, "message": message}


def read_tasks(path: Path, task: TaskConfig) -> list[TaskLine]:
    """Read a file of tasks.

    Raises:
        DataError: the file cannot be read, or a line is no task of this kind; the message names file and line.
    """
    verify(path)
    return parse_tasks(read_bytes(path), task, name=str(path))


def parse_tasks(content: bytes, task: TaskConfig, *, name: str) -> list[TaskLine]:
    """Read tasks from JSON Lines.

    Args:
        content: UTF-8 text.
        task: what the project asks; decides how many completions a line has.
        name: of the file, for messages.

    Raises:
        DataError: a line is no task of this kind, or there is none; the message names file and line.
    """
    lines: list[TaskLine] = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        where = f"{name}:{number}"
        try:
            # Decoded here: json.loads on bytes guesses encodings.
            line = TaskLine.model_validate_json(json.dumps(json.loads(raw.decode())))
        except ValidationError as error:
            raise DataError(f"{where}: not a task: {first_problem(error)}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: bad JSON: {error}; expected one JSON object a line, in UTF-8") from error
        check_task(line, task, where)
        lines.append(line)
    if not lines:
        raise DataError(
            f'{name}: the file is empty; expected {{"prompt": "...", "completions": ["...", "..."]}}, one a line'
        )
    return lines


def check_task(line: TaskLine, task: TaskConfig, where: str) -> None:
    """Refuse a task that cannot be asked.

    Raises:
        DataError: the number of completions does not fit the kind, a text is too long, completions are alike or belong
            to another prompt, or the gold answer is not an answer to this task.
    """
    low, high = num_completions(task)
    found = len(line.completions)
    if not low <= found <= high:
        expected = str(low) if low == high else f"{low} to {high}"
        raise DataError(f"{where}: {found} completions; a {task.kind} has {expected}")
    texts = [message.content for message in line.prompt.messages]
    texts += [completion.message.content for completion in line.completions]
    for text in texts:
        if len(text) > MAX_TEXT:
            raise DataError(f"{where}: a text of {len(text)} characters; at most {MAX_TEXT} can be shown")
        if "\0" in text:
            raise DataError(f"{where}: a text with the character U+0000, which no page can hold; take it out")
    for completion in line.completions:
        if completion.prompt_id != line.prompt.id:
            raise DataError(f"{where}: completion {completion.id!r} belongs to prompt {completion.prompt_id!r}")
    if len({completion.message.content for completion in line.completions}) < found:
        raise DataError(f"{where}: two completions are the same text; nobody could prefer one of them")
    if line.gold is not None:
        shown = tuple(completion.id for completion in line.completions)
        try:
            Judgment(
                id="gold", judge=Judge(id="gold", kind="rule"), prompt_id=line.prompt.id, shown=shown, answer=line.gold
            )
        except ValidationError as error:
            raise DataError(f"{where}: gold: {first_problem(error)}") from error
    if line.qualifies and (line.gold is None or not can_be_graded(line.gold)):
        raise DataError(
            f"{where}: a task that qualifies people needs a right answer that others can be compared with: a "
            "comparison, ranking or rating as its gold"
        )


def tasks_from_completions(
    pairs: Sequence[tuple[Prompt, Completion]], task: TaskConfig, *, name: str
) -> Iterator[TaskLine]:
    """Yield tasks made of sampled completions, in the order of the prompts.

    Each prompt's completions are taken in groups of as many as the kind shows: pairs (first and second, third and
    fourth, ...) for a comparison, up to nine for a ranking, one by one otherwise. The same text twice is taken once.

    Raises:
        DataError: a prompt has too few different completions; the message names it.
    """
    by_prompt: dict[str, tuple[Prompt, dict[str, Completion]]] = {}
    for prompt, completion in pairs:
        _, texts = by_prompt.setdefault(prompt.id, (prompt, {}))
        texts.setdefault(completion.message.content, completion)
    low, high = num_completions(task)
    if not high:
        yield from (TaskLine(prompt=prompt) for prompt, _ in by_prompt.values())
        return
    for prompt, texts in by_prompt.values():
        groups = list(_groups(list(texts.values()), low, high))
        if not groups:
            raise DataError(
                f"{name}: prompt {prompt.id!r} has {len(texts)} different completions; a {task.kind} needs {low}"
            )
        yield from (TaskLine(prompt=prompt, completions=tuple(group)) for group in groups)


def _groups(items: Sequence[Completion], low: int, high: int) -> Iterable[Sequence[Completion]]:
    groups = (items[start : start + high] for start in range(0, len(items), high))
    return (group for group in groups if len(group) >= low)
