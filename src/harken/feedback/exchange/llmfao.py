"""LLMFAO: crowd votes on pairs of answers (`crowd-comparisons.csv`), with the texts beside it (`pairs-crowd.jsonl`)."""

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from harken.errors import DataError
from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    each,
    judged_by,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    number,
    shown,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.feedback.exchange.rows import check_inside, read_rows
from harken.records import Comparison, Completion, Judgment, Prompt

VOTES, TEXTS = "crowd-comparisons.csv", "pairs-crowd.jsonl"
COLUMNS = ("id", "prompt", "model_x", "model_y", "worker", "winner", "left", "right")
KEEPS = frozenset({Fact.wins, Fact.ties, Fact.judges, Fact.order, Fact.models})
_WORKER = "llmfao-"
"""Before the number of a worker, so that two crowds stay apart; Harken's own judges have `_FOREIGN` before theirs."""
_FOREIGN = "harken:"


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one comparison a vote, model_x shown on the left; of the file of prompts one entry a prompt."""
    texts = cache(lambda: _texts(reading.path.parent))

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "result_x" in row:
            raise BadRow(f"a pair of texts without its votes: name {VOTES} or the folder instead", "incomplete")
        if "winner" not in row:
            yield Entry(row_number, make_prompt([message("user", text(row, "text"))]))
            return
        pair = texts().get(_whole(row, "id"))
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
        worker = text(row, "worker")
        name = worker.removeprefix(_FOREIGN) if worker.startswith(_FOREIGN) else f"{_WORKER}{worker}"
        judgment = make_judgment(("llmfao", row_number), prompt, both, answer, judge=judged_by(name))
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


class Written:
    """Votes of an export, and the texts that lie beside them; models, prompts and pairs get numbers as they come."""

    def __init__(self) -> None:
        self._models: dict[str, int] = {}
        self._prompts: dict[str, int] = {}
        self._pairs: dict[tuple[str, ...], Row] = {}

    def rows(self, entry: Entry) -> list[Row]:
        """Return one vote for each comparison that was won or tied.

        Raises:
            BadRow: a prompt that is more than a question, or an answer that no vote can hold.
        """
        votes = [
            judgment
            for judgment in entry.judgments
            if isinstance(judgment.answer, Comparison) and judgment.answer.outcome in ("win", "tie")
        ]
        if votes and [one.role for one in entry.prompt.messages] != ["user"]:
            raise BadRow("a prompt that is not one message by the user", "not supported")
        return [self._vote(entry, judgment) for judgment in votes]

    def _vote(self, entry: Entry, judgment: Judgment) -> Row:
        by_id = {one.id: one for one in entry.completions}
        both = [by_id[name] for name in judgment.shown]
        if len(both) != 2 or (both[0].message, both[0].model) == (both[1].message, both[1].model):
            raise BadRow("a choice between other than two different completions", "not supported")
        pair = self._pair(entry.prompt, both)
        winner = "tie"
        if isinstance(judgment.answer, Comparison) and judgment.answer.winner is not None:
            winner = ("left", "right")[judgment.shown.index(judgment.answer.winner)]
        name = judgment.judge.id
        worker = name.removeprefix(_WORKER) if name.startswith(_WORKER) else f"{_FOREIGN}{name}"
        sides = {"worker": worker, "winner": winner, "left": both[0].model, "right": both[1].model}
        return {**{key: pair[key] for key in ("id", "prompt", "model_x", "model_y")}, **sides}

    def _pair(self, prompt: Prompt, both: list[Completion]) -> Row:
        key = (prompt.id, *(one.id for one in both))
        if key not in self._pairs:
            self._pairs[key] = {
                "id": len(self._pairs),
                "prompt": self._prompts.setdefault(prompt.id, len(self._prompts)),
                "text": prompt.messages[0].content,
            }
            for letter, one in zip("xy", both, strict=True):
                model = self._models.setdefault(one.model, len(self._models))
                self._pairs[key] |= {f"model_{letter}": model, f"result_{letter}": one.message.content}
        return self._pairs[key]

    def beside(self, path: Path) -> dict[Path, str]:
        """Return what lies beside the votes: the file of texts -> its content."""
        lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in self._pairs.values())
        return {path.with_name(TEXTS): "".join(lines)}
