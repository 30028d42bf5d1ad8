"""Harken's own files: a folder that `harken collect export` wrote, and files of pairs, demonstrations or prompts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from harken.artifacts import iterate_records, verify
from harken.errors import DataError
from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Refusal,
    Row,
    each,
    make_completion,
    make_judgment,
)
from harken.feedback.exchange.rows import check_inside
from harken.records import (
    Comparison,
    Completion,
    Demonstration,
    DemonstrationAnswer,
    Judgment,
    PreferencePair,
    Prompt,
    Record,
)

RecordT = TypeVar("RecordT", bound=Record)
FILES = ("prompts.jsonl", "completions.jsonl", "judgments.jsonl")


def is_own(row: Row) -> bool:
    """Say whether a row is one of Harken's records: a prompt, or what holds a whole one."""
    prompt = row.get("prompt")
    return ("id" in row and "messages" in row) or (isinstance(prompt, dict) and "id" in prompt and "messages" in prompt)


def read(rows: Iterable[tuple[int, Row | BadRow]]) -> Iterator[Entry | Refusal]:
    """Yield one entry a record."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "messages" in row:
            yield Entry(row_number, _record(row, Prompt))
        elif "chosen" in row:
            yield _pair(row_number, _record(row, PreferencePair), "split" in row)
        elif "judgment" in row or "ratings" in row:
            raise BadRow("rated completions: give the export that they were made from", "not supported")
        else:
            item = _record(row, Demonstration)
            judgment = make_judgment(item.id, item.prompt, (), DemonstrationAnswer(text=item.completion.content))
            yield Entry(row_number, item.prompt, (), (judgment,), item.split if "split" in row else None)

    return each(rows, one)


def _record(row: Row, model: type[RecordT]) -> RecordT:
    # Strictness is JSON's: lists are tuples.
    return model.model_validate(row)


def _pair(row_number: int, pair: PreferencePair, has_split: bool) -> Entry:
    winner = make_completion(pair.prompt, pair.chosen.content)
    loser = make_completion(pair.prompt, pair.rejected.content)
    both = tuple(sorted((winner, loser), key=lambda one: one.id))
    answer = Comparison(outcome="win", winner=winner.id, strength=pair.strength)
    judgment = make_judgment(pair.id, pair.prompt, both, answer)
    return Entry(row_number, pair.prompt, both, (judgment,), pair.split if has_split else None, pair)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no export as it was written.

    Raises:
        DataError: a file is missing, leads out of the folder, or is not what the manifest says.
    """
    for name in FILES:
        if not check_inside(folder, name).is_file():
            raise DataError(
                f"{folder / name}: cannot be read: there is none; expected a folder that `harken collect export` wrote"
            )
    verify(folder)


def read_folder(folder: Path) -> Iterator[Entry | Refusal]:
    """Yield one entry a judgment of an exported folder, and one for what nobody judged.

    Judgments that others replace stay away.

    Raises:
        DataError: a file is missing, is not what the manifest says, or holds a bad line.
    """
    check_folder(folder)
    replaced = {judgment.supersedes for judgment in iterate_records(folder / FILES[2], Judgment)}
    yield from entries_of(
        iterate_records(folder / FILES[0], Prompt),
        iterate_records(folder / FILES[1], Completion),
        (judgment for judgment in iterate_records(folder / FILES[2], Judgment) if judgment.id not in replaced),
    )


def entries_of(
    prompts: Iterable[Prompt], completions: Iterable[Completion], judgments: Iterable[Judgment]
) -> Iterator[Entry]:
    """Yield one entry a judgment, and one for what nobody judged.

    Raises:
        DataError: a judgment is about a prompt or completion that is not there.
    """
    by_prompt = {prompt.id: prompt for prompt in prompts}
    by_id = {completion.id: completion for completion in completions}
    judged: set[str] = set()
    for row_number, judgment in enumerate(judgments, start=1):
        missing = [name for name in judgment.shown if name not in by_id]
        if missing or judgment.prompt_id not in by_prompt:
            what = missing[0] if missing else judgment.prompt_id
            raise DataError(f"judgment {judgment.id!r} is about {what!r}, which is not there; export the store again")
        judged.update(judgment.shown, (judgment.prompt_id,))
        shown = tuple(by_id[name] for name in judgment.shown)
        yield Entry(row_number, by_prompt[judgment.prompt_id], shown, (judgment,))
    for completion in by_id.values():
        if completion.id not in judged:
            judged.add(completion.prompt_id)
            yield Entry(0, by_prompt[completion.prompt_id], (completion,))
    for prompt in by_prompt.values():
        if prompt.id not in judged:
            yield Entry(0, prompt)
