"""LLMFAO: crowd votes on pairs of answers (`crowd-comparisons.csv`), with the texts beside it (`pairs-crowd.jsonl`)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from harken.errors import DataError
from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    each,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    number,
    shown,
    text,
)
from harken.feedback.exchange.rows import check_inside, read_rows
from harken.records import Comparison, Completion, Judge, Prompt

VOTES, TEXTS = "crowd-comparisons.csv", "pairs-crowd.jsonl"


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one comparison a vote; model_x was shown on the left."""
    texts = _texts(reading.path.parent)

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        pair = texts.get(_whole(row, "id"))
        if pair is None:
            raise BadRow(f"pair {row['id']} is not in {TEXTS}", "incomplete")
        if (_whole(row, "model_x"), _whole(row, "model_y")) != (_whole(pair, "model_x"), _whole(pair, "model_y")):
            raise BadRow(f"pair {row['id']} is of other models in {TEXTS}")
        prompt, both = _shown(row, pair)
        winner = text(row, "winner")
        if winner not in ("left", "right", "tie"):
            raise BadRow(f"winner is {shown(winner)}; expected left, right or tie")
        answer = Comparison(outcome="tie")
        if winner != "tie":
            answer = Comparison(outcome="win", winner=both[winner == "right"].id)
        judge = Judge(id=f"llmfao-{text(row, 'worker')}", kind="person")
        judgment = make_judgment(("llmfao", row_number), prompt, both, answer, judge=judge)
        yield Entry(row_number, prompt, both, (judgment,))

    return each(rows, one)


def _whole(row: Row, key: str) -> int:
    return int(number(row, key))


def _texts(folder: Path) -> dict[int, Row]:
    path = check_inside(folder, TEXTS)
    if not path.is_file():
        raise DataError(f"{path}: not there; LLMFAO's votes need the file with the texts beside them")
    found: dict[int, Row] = {}
    for row_number, row in read_rows(path):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row_number}: {row}; fetch the file again")
        found[_whole(row, "id")] = row
    return found


def _shown(row: Row, pair: Row) -> tuple[Prompt, tuple[Completion, Completion]]:
    prompt = make_prompt([message("user", text(pair, "text"))])
    left = make_completion(prompt, text(pair, "result_x"), model=text(row, "left"))
    right = make_completion(prompt, text(pair, "result_y"), model=text(row, "right"))
    return prompt, (left, right)
