"""Data files that people bring: prompts, demonstrations, preference pairs and completions, as records or as plain rows.

A file is JSON Lines, one object a line. Each object is one of Harken's records, or a plain row with texts:

    prompts          {"prompt": "..."}                                   or a .txt file with one prompt a line
    demonstrations   {"prompt": "...", "completion": "..."}
    pairs            {"prompt": "...", "chosen": "...", "rejected": "...", "strength": 2}    strength may be left out
    labeled          {"prompt": "...", "completion": "...", "label": true}          or a probability of being good
    scored           {"prompt": "...", "completion": "...", "score": 0.5}, or pairs, or rated completions

A prompt is a text, or a list of messages {"role": ..., "content": ...}. Nothing is skipped: the first line that cannot
be used is an error that names file and line.

Files in any other format that `harken data check` knows are read, too (see `harken.feedback.exchange`). In those, rows
that cannot be used are left out; how many, which and why is told through `notify`.

Rows that do not say their split get one here: a fixed share is held out by a hash of the prompt, so all rows of one
prompt are on one side and adding rows never moves others. Where all rows have the same prompt, the hash is of the
completions instead.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harken.errors import DataError
from harken.feedback.exchange.check import Problem
from harken.feedback.exchange.derive import demonstrations_of, pairs_of
from harken.feedback.exchange.entry import Entry, Reading
from harken.feedback.exchange.importing import refusal_notes
from harken.feedback.exchange.own import FILES, is_own
from harken.feedback.exchange.read import Data, open_data, sniff
from harken.feedback.exchange.rows import read_rows
from harken.records import (
    Completion,
    Demonstration,
    LabeledCompletion,
    Message,
    PreferencePair,
    Prompt,
    ScoredDemonstration,
    content_id,
)
from harken.rows import (
    Row,
    as_record,
    json_rows,
    plain_labeled,
    plain_pair,
    plain_prompt,
    prompt_rows,
    scored_items,
    scored_sides,
    text_at,
)

HELDOUT_FRACTION = 0.1
"""Share of rows held out where the file does not say."""

SplitT = TypeVar("SplitT", Demonstration, ScoredDemonstration, PreferencePair, LabeledCompletion)
Notify = Callable[[str], None]


def ignore(message: str) -> None:
    """Take a notice and do nothing, where nobody wants to be told."""
    del message


def read_prompts(path: Path, notify: Notify = ignore) -> list[Prompt]:
    """Read prompts: records, rows {"prompt": ...}, a .txt file with one a line, or a foreign format.

    Args:
        path: the file.
        notify: called with one line for each reason for which rows of a foreign format were left out.

    Raises:
        DataError: the file cannot be read, a line is not a prompt, a prompt is empty, one id stands for two prompts, or
            there are none; the message names file and line.
    """
    foreign = _foreign(path)
    if foreign is not None:
        unique = {entry.prompt.id: entry.prompt for entry in _entries(foreign, notify)}
        return _some(path, list(unique.values()), '{"prompt": "..."}')
    prompts: dict[str, Prompt] = {}
    found: list[Prompt] = []
    for where, row in prompt_rows(path):
        prompt = as_record(where, row, Prompt) if "messages" in row else plain_prompt(where, row, {"prompt"})
        if prompts.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise DataError(f"{where}: prompt id {prompt.id!r} already stands for another prompt; give it its own id")
        found.append(prompt)
    return _some(path, found, '{"prompt": "..."}')


def read_demonstrations(
    path: Path, notify: Notify = ignore, *, heldout_fraction: float = HELDOUT_FRACTION
) -> list[Demonstration]:
    """Read demonstrations from JSON Lines (records, or rows {"prompt": ..., "completion": ...}), or a foreign format.

    Of a foreign format with judgments they are the completions that won or rank first, corrections and demonstrations.

    Args:
        path: the file.
        notify: as in `read_prompts`.
        heldout_fraction: share of the rows without a split that is only measured, in [0, 1).

    Raises:
        DataError: as `read_prompts`, or a completion is empty.
    """
    undecided: list[int] = []
    found: list[Demonstration] = []
    foreign = _foreign(path)
    for entry in () if foreign is None else _entries(foreign, notify):
        for item in demonstrations_of(entry):
            undecided += [] if entry.split else [len(found)]
            found.append(item)
    for where, row in () if foreign else json_rows(path):
        if isinstance(row.get("prompt"), dict):
            item = as_record(where, row, Demonstration)
        else:
            prompt = plain_prompt(where, row, {"prompt", "completion", "split"})
            text = text_at(where, row, "completion")
            fields: dict[str, Any] = {"split": row["split"]} if "split" in row else {}
            name = content_id(prompt.id, text)
            completion = Message(role="assistant", content=text)
            values = {"id": name, "prompt": prompt, "completion": completion, "source": prompt.source, **fields}
            item = as_record(where, values, Demonstration)
        if "split" not in row:
            undecided.append(len(found))
        found.append(item)
    _split(found, undecided, heldout_fraction, lambda item: item.completion.content)
    return _some(path, found, '{"prompt": "...", "completion": "..."}')


def read_pairs(
    path: Path, notify: Notify = ignore, *, heldout_fraction: float = HELDOUT_FRACTION
) -> list[PreferencePair]:
    """Read preference pairs from JSON Lines (records, or rows {"prompt": ..., "chosen": ...}), or a foreign format.

    Of a foreign format they are the comparisons that were won and all pairs of rankings, each judgment for itself;
    `harken preferences` resolves what several judges said of the same completions.

    Args:
        path: the file.
        notify: as in `read_prompts`.
        heldout_fraction: share of the rows without a split that is only measured, in [0, 1).

    Raises:
        DataError: as `read_prompts`, or chosen equals rejected, or chosen is empty.
    """
    undecided: list[int] = []
    found: list[PreferencePair] = []
    num_without = 0
    foreign = _foreign(path)
    for entry in () if foreign is None else _entries(foreign, notify):
        before = len(found)
        for item in pairs_of(entry):
            undecided += [] if entry.split else [len(found)]
            found.append(item)
        num_without += len(found) == before
    if num_without:
        notify(f"{path}: {num_without} entries give no pair: ties, other answers than comparisons, or empty texts")
    for where, row in () if foreign else json_rows(path):
        is_record = isinstance(row.get("prompt"), dict)
        item = as_record(where, row, PreferencePair) if is_record else plain_pair(where, row)
        if "split" not in row:
            undecided.append(len(found))
        found.append(item)
    _split(found, undecided, heldout_fraction, lambda item: f"{item.chosen.content}\n{item.rejected.content}")
    return _some(path, found, '{"prompt": "...", "chosen": "...", "rejected": "..."}')


def read_labeled(path: Path, *, heldout_fraction: float = HELDOUT_FRACTION) -> list[LabeledCompletion]:
    """Read labeled completions from JSON Lines: records, or rows {"prompt": ..., "completion": ..., "label": ...}.

    Args:
        path: the file.
        heldout_fraction: share of the rows without a split that is only measured, in [0, 1).

    Raises:
        DataError: as `read_prompts`, or a label is neither true, false nor a probability.
    """
    undecided: list[int] = []
    found: list[LabeledCompletion] = []
    for where, row in json_rows(path):
        is_record = isinstance(row.get("prompt"), dict)
        item = as_record(where, row, LabeledCompletion) if is_record else plain_labeled(where, row)
        if "split" not in row:
            undecided.append(len(found))
        found.append(item)
    _split(found, undecided, heldout_fraction, lambda item: item.completion.content)
    return _some(path, found, '{"prompt": "...", "completion": "...", "label": true}')


def holds_pairs(path: Path) -> bool:
    """Say whether a file's first row is a preference pair, and not a labeled completion.

    Raises:
        DataError: as `read_prompts`.
    """
    return any("chosen" in row for _, row in itertools.islice(json_rows(path), 1))


def read_scored(
    path: Path, notify: Notify = ignore, *, heldout_fraction: float = HELDOUT_FRACTION
) -> list[ScoredDemonstration]:
    """Read scored completions from JSON Lines, whose lines may be of several kinds, or from a foreign format.

    These are records, rows {"prompt": ..., "completion": ..., "score": ...}, rated completions (the score is the mean
    rating), and preference pairs, as `read_pairs` has them of a foreign format, too (chosen has the score 1, rejected
    -1).

    Args:
        path: the file.
        notify: as in `read_prompts`.
        heldout_fraction: share of the rows without a split that is only measured, in [0, 1).

    Raises:
        DataError: as `read_prompts`, or a completion is empty.
    """
    if _foreign(path) is not None:
        pairs = read_pairs(path, notify, heldout_fraction=heldout_fraction)
        return [item for pair in pairs for item in scored_sides(pair)]
    undecided: list[int] = []
    found: list[ScoredDemonstration] = []
    for where, row in json_rows(path):
        items = scored_items(where, row)
        if "split" not in row:
            undecided += range(len(found), len(found) + len(items))
        found += items
    _split(found, undecided, heldout_fraction, lambda item: item.completion.content)
    return _some(path, found, '{"prompt": "...", "completion": "...", "score": 0.5}')


def read_completions(path: Path, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Completion]]:
    """Read completions, as `harken generate` writes them, each with its prompt.

    Raises:
        DataError: as `read_prompts`, or the prompt of a completion is not among `prompts`.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    found: list[tuple[Prompt, Completion]] = []
    for where, row in json_rows(path):
        completion = as_record(where, row, Completion)
        prompt = by_id.get(completion.prompt_id)
        if prompt is None:
            raise DataError(
                f"{where}: completion {completion.id!r} belongs to prompt {completion.prompt_id!r}, which is not among "
                "the prompts; give the prompts that it was made from"
            )
        found.append((prompt, completion))
    return _some(path, found, "completions as `harken generate` writes them")


def _foreign(path: Path) -> Data | None:
    """Open a file of a foreign format; None for Harken's own rows and records, which are read line by line here."""
    if path.is_dir() or path.suffix == ".txt":
        return open_data(Reading(path)) if (path / FILES[2]).is_file() else None
    if path.suffix != ".jsonl":
        return open_data(Reading(path))
    row: object = next((row for _, row in read_rows(path)), None)
    if not isinstance(row, dict) or is_own(row) or _is_plain(row):
        return None
    format = sniff(row)
    return None if format is None else Data(format, Reading(path))


def _is_plain(row: Row) -> bool:
    """Say whether a row is one of Harken's own plain rows, where a key too much is a mistake to report."""
    has_messages = any(isinstance(row.get(key), list) for key in ("chosen", "rejected", "completion"))
    is_other = {"completion_a", "rating"} & set(row) or sniff(dict(row)) not in ("trl", "csv")
    return "prompt" in row and not has_messages and not is_other


def _entries(data: Data, notify: Notify) -> Iterator[Entry]:
    """Yield the entries of a file in a foreign format, and tell which rows were left out."""
    refused: dict[str, Problem] = {}
    for item in data:
        if isinstance(item, Entry):
            yield item
        else:
            refused.setdefault(item.message, Problem()).add(item.row)
    for note in (*data.reading.noted(), *refusal_notes(refused)):
        notify(f"{data.reading.path} ({data.format}): {note}")


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
