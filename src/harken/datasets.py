"""Data files that people bring: prompts, demonstrations, preference pairs and completions, as records or as plain rows.

A file is JSON Lines, one object a line. Each object is one of Harken's records, or a plain row with texts:

    prompts          {"prompt": "..."}                                   or a .txt file with one prompt a line
    demonstrations   {"prompt": "...", "completion": "..."}
    pairs            {"prompt": "...", "chosen": "...", "rejected": "...", "strength": 2}    strength may be left out
    scored           {"prompt": "...", "completion": "...", "score": 0.5}, or pairs, or rated completions

A prompt is a text, or a list of messages {"role": ..., "content": ...}. Nothing is skipped: the first line that cannot
be used is an error that names file and line.

Rows that do not say their split get one here: a fixed share is held out by a hash of the prompt, so all rows of one
prompt are on one side and adding rows never moves others. Where all rows have the same prompt, the hash is of the
completions instead.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harken.artifacts import first_problem, read_bytes, verify
from harken.errors import DataError
from harken.records import (
    Completion,
    Demonstration,
    Message,
    PreferencePair,
    Prompt,
    RatedCompletion,
    Record,
    ScoredDemonstration,
    content_id,
)

HELDOUT_FRACTION = 0.1
"""Share of rows held out where the file does not say."""

RecordT = TypeVar("RecordT", bound=Record)
SplitT = TypeVar("SplitT", Demonstration, ScoredDemonstration, PreferencePair)
Row = Mapping[str, Any]


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts from JSON Lines (records, or rows {"prompt": ...}) or a .txt file with one prompt a line.

    Raises:
        DataError: the file cannot be read, a line is not a prompt, a prompt is empty, one id stands for two prompts, or
            there are none; the message names file and line.
    """
    prompts: dict[str, Prompt] = {}
    found: list[Prompt] = []
    for where, row in _prompt_rows(path):
        prompt = _record(where, row, Prompt) if "messages" in row else _plain_prompt(where, row, {"prompt"})
        if prompts.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise DataError(f"{where}: prompt id {prompt.id!r} already stands for another prompt; give it its own id")
        found.append(prompt)
    return _some(path, found, '{"prompt": "..."}')


def read_demonstrations(path: Path, *, heldout_fraction: float = HELDOUT_FRACTION) -> list[Demonstration]:
    """Read demonstrations from JSON Lines: records, or rows {"prompt": ..., "completion": ...}.

    Args:
        path: the file.
        heldout_fraction: share of the rows without a split that is only measured, in [0, 1).

    Raises:
        DataError: as `read_prompts`, or a completion is empty.
    """
    undecided: list[int] = []
    found: list[Demonstration] = []
    for where, row in _json_rows(path):
        if isinstance(row.get("prompt"), dict):
            item = _record(where, row, Demonstration)
        else:
            prompt = _plain_prompt(where, row, {"prompt", "completion", "split"})
            text = _text(where, row, "completion")
            fields: dict[str, Any] = {"split": row["split"]} if "split" in row else {}
            name = content_id(prompt.id, text)
            completion = Message(role="assistant", content=text)
            values = {"id": name, "prompt": prompt, "completion": completion, "source": prompt.source, **fields}
            item = _record(where, values, Demonstration)
        if "split" not in row:
            undecided.append(len(found))
        found.append(item)
    _split(found, undecided, heldout_fraction, lambda item: item.completion.content)
    return _some(path, found, '{"prompt": "...", "completion": "..."}')


def read_pairs(path: Path, *, heldout_fraction: float = HELDOUT_FRACTION) -> list[PreferencePair]:
    """Read preference pairs from JSON Lines: records, or rows {"prompt": ..., "chosen": ..., "rejected": ...}.

    Args:
        path: the file.
        heldout_fraction: share of the rows without a split that is only measured, in [0, 1).

    Raises:
        DataError: as `read_prompts`, or chosen equals rejected, or chosen is empty.
    """
    undecided: list[int] = []
    found: list[PreferencePair] = []
    for where, row in _json_rows(path):
        is_record = isinstance(row.get("prompt"), dict)
        item = _record(where, row, PreferencePair) if is_record else _plain_pair(where, row)
        if "split" not in row:
            undecided.append(len(found))
        found.append(item)
    _split(found, undecided, heldout_fraction, lambda item: f"{item.chosen.content}\n{item.rejected.content}")
    return _some(path, found, '{"prompt": "...", "chosen": "...", "rejected": "..."}')


def read_scored(path: Path, *, heldout_fraction: float = HELDOUT_FRACTION) -> list[ScoredDemonstration]:
    """Read scored completions from JSON Lines; the lines may be of several kinds.

    These are records, rows {"prompt": ..., "completion": ..., "score": ...}, rated completions (the score is the mean
    rating), and preference pairs (chosen has the score 1, rejected -1).

    Args:
        path: the file.
        heldout_fraction: share of the rows without a split that is only measured, in [0, 1).

    Raises:
        DataError: as `read_prompts`, or a completion is empty.
    """
    undecided: list[int] = []
    found: list[ScoredDemonstration] = []
    for where, row in _json_rows(path):
        items = _scored(where, row)
        if "split" not in row:
            undecided += range(len(found), len(found) + len(items))
        found += items
    _split(found, undecided, heldout_fraction, lambda item: item.completion.content)
    return _some(path, found, '{"prompt": "...", "completion": "...", "score": 0.5}')


def _scored(where: str, row: Row) -> list[ScoredDemonstration]:
    is_record = isinstance(row.get("prompt"), dict)
    if "chosen" in row:
        pair = _record(where, row, PreferencePair) if is_record else _plain_pair(where, row)
        sides = [(pair.chosen, 1.0), (pair.rejected, -1.0)]
        name, prompt, split = pair.id, pair.prompt, pair.split
    elif is_record and "mean" in row:
        rated = _record(where, row, RatedCompletion)
        sides = [(rated.completion.message, rated.mean)]
        name, prompt, split = rated.completion.id, rated.prompt, rated.split
    elif is_record:
        return [_record(where, row, ScoredDemonstration)]
    else:
        prompt = _plain_prompt(where, row, {"prompt", "completion", "score", "split"})
        text = _text(where, row, "completion")
        fields = {key: row[key] for key in ("score", "split") if key in row}
        values = {"id": content_id(prompt.id, text), "prompt": prompt, "source": prompt.source, **fields}
        values["completion"] = Message(role="assistant", content=text)
        return [_record(where, values, ScoredDemonstration)]
    return [
        ScoredDemonstration(
            id=f"{name}-{number}", prompt=prompt, completion=message, source=prompt.source, split=split, score=score
        )
        for number, (message, score) in enumerate(sides)
    ]


def read_completions(path: Path, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Completion]]:
    """Read completions, as `harken generate` writes them, each with its prompt.

    Raises:
        DataError: as `read_prompts`, or the prompt of a completion is not among `prompts`.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    found: list[tuple[Prompt, Completion]] = []
    for where, row in _json_rows(path):
        completion = _record(where, row, Completion)
        prompt = by_id.get(completion.prompt_id)
        if prompt is None:
            raise DataError(
                f"{where}: completion {completion.id!r} belongs to prompt {completion.prompt_id!r}, which is not among "
                "the prompts; give the prompts that it was made from"
            )
        found.append((prompt, completion))
    return _some(path, found, "completions as `harken generate` writes them")


def _plain_pair(where: str, row: Row) -> PreferencePair:
    prompt = _plain_prompt(where, row, {"prompt", "chosen", "rejected", "strength", "split"})
    chosen = _text(where, row, "chosen")
    rejected = _text(where, row, "rejected", may_be_empty=True)
    fields = {key: row[key] for key in ("strength", "split") if key in row}
    values = {
        "id": content_id(prompt.id, chosen, rejected),
        "prompt": prompt,
        "chosen": Message(role="assistant", content=chosen),
        "rejected": Message(role="assistant", content=rejected),
        "group": prompt.id,
        **fields,
    }
    return _record(where, values, PreferencePair)


def _plain_prompt(where: str, row: Row, known: set[str]) -> Prompt:
    if unknown := sorted(set(row) - known):
        raise DataError(f"{where}: unknown key {unknown[0]!r}; a plain row has {', '.join(sorted(known))}")
    if "prompt" not in row:
        raise DataError(f"{where}: no key 'prompt'; a plain row has {', '.join(sorted(known))}")
    value = row["prompt"]
    messages: Any = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: prompt is {_shown(value)}; expected a text or a list of messages")
    name = content_id("prompt", messages)
    return _record(where, {"id": name, "messages": messages, "source": where.rpartition("/")[2]}, Prompt)


def _text(where: str, row: Row, key: str, *, may_be_empty: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {_shown(value)}; expected a text")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{where}: {key} is empty; give it some text or remove the line")
    return value


def _record(where: str, values: Row, model: type[RecordT]) -> RecordT:
    try:
        return model.model_validate_json(json.dumps(values, default=_as_json))
    except ValidationError as error:
        raise DataError(f"{where}: not a {model.__name__}: {first_problem(error)}") from error


def _as_json(value: Record) -> dict[str, Any]:
    return value.model_dump(mode="json")


def _shown(value: object) -> str:
    return "missing" if value is None else f"{json.dumps(value)[:40]} ({type(value).__name__})"


def _prompt_rows(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix != ".txt":
        yield from _json_rows(path)
        return
    for number, line in _lines(path):
        if not line.strip():
            raise DataError(f"{path}:{number}: the prompt is empty; give it some text or remove the line")
        yield f"{path}:{number}", {"prompt": line}


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
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
    # Only "\n" ends a line: other separators may stand inside a text.
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(content, start=1):
        try:
            yield number, line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 text (byte {error.start}); convert the file") from error


ItemT = TypeVar("ItemT")


def _some(path: Path, found: list[ItemT], expected: str) -> list[ItemT]:
    if not found:
        raise DataError(f"{path}: the file is empty; expected {expected}, one a line")
    return found


def _split(
    items: list[SplitT], undecided: Sequence[int], heldout_fraction: float, text_of: Callable[[SplitT], str]
) -> None:
    """Decide the split of the items at `undecided`, in place."""
    if not 0 <= heldout_fraction < 1:
        raise DataError(f"heldout fraction {heldout_fraction}; expected at least 0 and less than 1")
    one_prompt = len({items[index].prompt.id for index in undecided}) <= 1
    for index in undecided:
        item = items[index]
        key = text_of(item) if one_prompt else item.prompt.id
        heldout = int(content_id("split", key), 16) / 2**64 < heldout_fraction
        items[index] = item.model_copy(update={"split": "heldout" if heldout else "train"})
    # A handful of rows may all fall on one side by chance; there is nothing to learn from held-out rows only.
    if undecided and not any(item.split == "train" for item in items):
        for index in undecided:
            items[index] = items[index].model_copy(update={"split": "train"})
