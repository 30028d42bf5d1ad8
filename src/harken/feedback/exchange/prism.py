"""PRISM: people talk with several models at once, rate each reply from 1 to 100 and go on with the one they choose.

`conversations.jsonl` (with `conversation_history`) and `utterances.jsonl` (one reply a row, in order) are read.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_dict,
    as_list,
    each,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    number,
    text,
)
from harken.records import Comparison, Completion, Judge, Judgment, Message, Prompt, RatedAxis, Rating

CONVERSATIONS = "conversations.jsonl"
AXIS, LOW, HIGH = "score", 1, 100


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry for each turn of a conversation."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "conversation_history" not in row:
            raise BadRow("no conversation_history", "incomplete")
        history = [as_dict(item, "an utterance") for item in as_list(row["conversation_history"], "the history")]
        yield from _conversation(row_number, history, text(row, "user_id"))

    reading.note("licence: texts by people are CC BY 4.0, texts by models CC BY-NC 4.0")
    return each(_joined(rows), one)


def _joined(rows: Iterable[tuple[int, Row | BadRow]]) -> Iterator[tuple[int, Row | BadRow]]:
    """Join utterances that stand one after the other into conversations."""

    def conversation(item: tuple[int, Row | BadRow]) -> object:
        row = item[1]
        return item[0] if isinstance(row, BadRow) or "model_response" not in row else row.get("conversation_id")

    for _, group in groupby(rows, conversation):
        items = list(group)
        row_number, first = items[0]
        if isinstance(first, BadRow) or "model_response" not in first:
            yield from items
            continue
        history: list[Row] = []
        asked: set[object] = set()
        for _, row in items:
            assert not isinstance(row, BadRow)
            turn = row.get("turn")
            if turn not in asked:
                asked.add(turn)
                history.append({"role": "user", "content": row.get("user_prompt"), "turn": turn})
            history.append({**row, "role": "model", "content": row["model_response"]})
        yield row_number, {"conversation_history": history, "user_id": first.get("user_id")}


def _conversation(row_number: int, history: list[Row], user: str) -> Iterator[Entry]:
    said: list[Message] = []
    for turn, group in groupby(history, lambda item: item.get("turn")):
        items = list(group)
        question = [item for item in items if item.get("role") == "user"]
        replies = [item for item in items if item.get("role") == "model"]
        if len(question) != 1 or not replies:
            raise BadRow(f"turn {turn} has {len(question)} questions and {len(replies)} replies", "incomplete")
        said.append(message("user", text(question[0], "content")))
        prompt = make_prompt(said)
        completions = tuple(
            make_completion(prompt, text(reply, "content"), model=str(reply.get("model_name") or ""))
            for reply in replies
        )
        if len({one.id for one in completions}) < len(completions):
            raise BadRow(f"turn {turn} has the same reply of the same model twice", "identical")
        judge = Judge(id=user, kind="person")
        judgments = _judgments((row_number, turn), prompt, completions, replies, judge)
        yield Entry(row_number, prompt, completions, tuple(judgments))
        chosen = [reply for reply in replies if reply.get("if_chosen")]
        if len(chosen) == 1:
            said.append(message("assistant", text(chosen[0], "content")))


def _judgments(
    key: object, prompt: Prompt, completions: tuple[Completion, ...], replies: list[Row], judge: Judge
) -> Iterator[Judgment]:
    for completion, reply in zip(completions, replies, strict=True):
        if reply.get("score") is not None:
            rating = Rating(axes={AXIS: RatedAxis(value=number(reply, "score"), low=LOW, high=HIGH)})
            yield make_judgment((key, "score"), prompt, (completion,), rating, judge=judge)
    chosen = [one for one, reply in zip(completions, replies, strict=True) if reply.get("if_chosen")]
    if len(chosen) == 1 and len(completions) > 1:
        answer = Comparison(outcome="win", winner=chosen[0].id)
        yield make_judgment((key, "choice"), prompt, completions, answer, judge=judge)
