"""Lines of the files that people bring, as records: JSON Lines of Harken's records, or plain rows with texts.

The formats are described in `harken.datasets`. Every error names file and line.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harken.artifacts import bounded_lines, first_problem, verify
from harken.errors import DataError
from harken.records import (
    LabeledCompletion,
    Message,
    PreferencePair,
    Prompt,
    RatedCompletion,
    Record,
    ScoredDemonstration,
    content_id,
)

RecordT = TypeVar("RecordT", bound=Record)
Row = Mapping[str, Any]


def plain_pair(where: str, row: Row) -> PreferencePair:
    """Return the pair of a plain row; `where` is its file and line, for errors, here and below."""
    prompt = plain_prompt(where, row, {"prompt", "chosen", "rejected", "strength", "split"})
    chosen = text_at(where, row, "chosen")
    rejected = text_at(where, row, "rejected", may_be_empty=True)
    fields = {key: row[key] for key in ("strength", "split") if key in row}
    values = {
        "id": content_id(prompt.id, chosen, rejected),
        "prompt": prompt,
        "chosen": Message(role="assistant", content=chosen),
        "rejected": Message(role="assistant", content=rejected),
        "group": prompt.id,
        **fields,
    }
    return as_record(where, values, PreferencePair)


def plain_labeled(where: str, row: Row) -> LabeledCompletion:
    """Return the labeled completion of a plain row."""
    prompt = plain_prompt(where, row, {"prompt", "completion", "label", "split"})
    text, label = text_at(where, row, "completion"), row.get("label")
    if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
        raise DataError(f"{where}: label is {_shown(label)}; expected true (good), false (bad) or a probability")
    fields = {"split": row["split"]} if "split" in row else {}
    values = {
        "id": content_id(prompt.id, text),
        "prompt": prompt,
        "completion": Message(role="assistant", content=text),
        "soft_label": float(label),
        **fields,
    }
    return as_record(where, values, LabeledCompletion)


def plain_prompt(where: str, row: Row, known: set[str]) -> Prompt:
    """Return the prompt of a plain row, which may have the keys `known` and no others."""
    if unknown := sorted(set(row) - known):
        raise DataError(f"{where}: unknown key {unknown[0]!r}; a plain row has {', '.join(sorted(known))}")
    if "prompt" not in row:
        raise DataError(f"{where}: no key 'prompt'; a plain row has {', '.join(sorted(known))}")
    value = row["prompt"]
    messages: Any = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: prompt is {_shown(value)}; expected a text or a list of messages")
    name = content_id("prompt", messages)
    return as_record(where, {"id": name, "messages": messages, "source": where.rpartition("/")[2]}, Prompt)


def text_at(where: str, row: Row, key: str, *, may_be_empty: bool = False) -> str:
    """Return the text under a key."""
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {_shown(value)}; expected a text")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{where}: {key} is empty; give it some text or remove the line")
    return value


def as_record(where: str, values: Row, model: type[RecordT]) -> RecordT:
    """Check values as a record."""
    try:
        return model.model_validate_json(json.dumps(values, default=_as_json))
    except ValidationError as error:
        raise DataError(f"{where}: not a {model.__name__}: {first_problem(error)}") from error


def _as_json(value: Record) -> dict[str, Any]:
    return value.model_dump(mode="json")


def _shown(value: object) -> str:
    return "missing" if value is None else f"{json.dumps(value)[:40]} ({type(value).__name__})"


def prompt_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield where each prompt stands, and its row; of a .txt file each line is one."""
    if path.suffix != ".txt":
        yield from json_rows(path)
        return
    for number, line in _lines(path):
        if not line.strip():
            raise DataError(f"{path}:{number}: the prompt is empty; give it some text or remove the line")
        yield f"{path}:{number}", {"prompt": line}


def json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield where each JSON object stands, and the object; empty lines are passed over."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row: object = json.loads(line)
            if "\\ud" in line.lower():
                # Half of a surrogate pair is valid JSON, but no text: it could not be hashed or written again.
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{where}: bad JSON: {problem}; expected one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: {type(row).__name__} instead of an object; expected one JSON object a line")
        yield where, row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line; a file with a manifest must still be what the manifest says."""
    verify(path)
    try:
        with path.open("rb") as file:
            for number, line in bounded_lines(path, file):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: not UTF-8 text (byte {error.start}); convert the file"
                    ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def scored_items(where: str, row: Row) -> list[ScoredDemonstration]:
    """Return the one or two scored completions of a row or record: scored, rated, or a pair."""
    is_record = isinstance(row.get("prompt"), dict)
    if "chosen" in row:
        return scored_sides(as_record(where, row, PreferencePair) if is_record else plain_pair(where, row))
    if is_record and "mean" in row:
        rated = as_record(where, row, RatedCompletion)
        return [_scored(rated.completion.id, rated, rated.completion.message, rated.mean)]
    if is_record:
        return [as_record(where, row, ScoredDemonstration)]
    prompt = plain_prompt(where, row, {"prompt", "completion", "score", "split"})
    text = text_at(where, row, "completion")
    fields = {key: row[key] for key in ("score", "split") if key in row}
    values = {"id": content_id(prompt.id, text), "prompt": prompt, "source": prompt.source, **fields}
    return [as_record(where, values | {"completion": Message(role="assistant", content=text)}, ScoredDemonstration)]


def scored_sides(pair: PreferencePair) -> list[ScoredDemonstration]:
    """Return the chosen completion with the score 1 and the rejected one with -1."""
    sides = ((pair.chosen, 1.0), (pair.rejected, -1.0))
    return [_scored(f"{pair.id}-{number}", pair, *side) for number, side in enumerate(sides)]


def _scored(name: str, row: PreferencePair | RatedCompletion, message: Message, score: float) -> ScoredDemonstration:
    prompt = row.prompt
    return ScoredDemonstration(
        id=name, prompt=prompt, completion=message, source=prompt.source, split=row.split, score=score
    )
