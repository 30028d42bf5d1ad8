"""PRISM: people talk with several models at once, rate each reply from 1 to 100 and go on with the one they choose.

`conversations.jsonl` (with `conversation_history`) and `utterances.jsonl` (one reply a row, in order) are read, and the
first is written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_dict,
    as_list,
    check_turns,
    each,
    judged_by,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    number,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.records import Comparison, Completion, Judge, Judgment, Message, Prompt, RatedAxis, Rating, content_id

CONVERSATIONS = "conversations.jsonl"
KEEPS = frozenset({Fact.wins, Fact.many, Fact.ratings, Fact.judges, Fact.order, Fact.models})
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
        judgments = _judgments((row_number, turn), prompt, completions, replies, judged_by(user))
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


_Reply = tuple[str, str]
"""Text and model: what makes a reply the same."""


@dataclass
class _Turn:
    """What one person said of the replies to one prompt: a score for each, and the choice."""

    judge: str
    choice: tuple[_Reply, ...] = ()
    """The replies in the order in which they were shown, where one was chosen."""
    chosen: _Reply | None = None
    scores: dict[_Reply, float] = field(default_factory=dict[_Reply, float])

    def takes(self, judge: str, replies: tuple[_Reply, ...], chosen: _Reply | None) -> bool:
        """Say whether a choice, or without `chosen` a rating, belongs to this turn."""
        if judge != self.judge:
            return False
        if chosen is not None:
            return self.chosen is None and set(self.scores) <= set(replies)
        return replies[0] not in self.scores and (self.chosen is None or replies[0] in self.choice)

    def history(self, turn: int) -> list[Row]:
        """Return the replies as rows of a conversation."""
        return [
            {**_said("model", said, turn), "model_name": model, "score": self.scores.get((said, model))}
            | {"if_chosen": (said, model) == self.chosen, "within_turn_id": place}
            for place, (said, model) in enumerate(self.choice or self.scores)
        ]


def write(entry: Entry) -> list[Row]:
    """Return the conversations of a prompt: one for each judge, with the scores of the replies and the choice.

    Raises:
        BadRow: a prompt that is no conversation, or an answer that none can hold.
    """
    by_id = {one.id: (one.message.content, one.model) for one in entry.completions}
    turns: list[_Turn] = []
    for judgment in entry.judgments:
        answer, replies = judgment.answer, tuple(by_id[name] for name in judgment.shown)
        score = _score(answer, replies) if isinstance(answer, Rating) else None
        chosen = by_id[answer.winner] if isinstance(answer, Comparison) and answer.winner is not None else None
        if score is None and chosen is None:
            continue
        if chosen is not None and not 1 < len(replies) == len(set(replies)):
            raise BadRow("a choice of one reply, or between equal ones", "not supported")
        # A person rates the replies among which they choose; a second choice or rating is another conversation.
        name = judgment.judge.id
        turn = next((one for one in turns if one.takes(name, replies, chosen)), None)
        if turn is None:
            turns.append(turn := _Turn(name))
        if chosen is not None:
            turn.choice, turn.chosen = replies, chosen
        elif score is not None:
            turn.scores[replies[0]] = score
    if turns:
        check_turns(entry.prompt)
    return [_conversation_row(entry.prompt, turn, number) for number, turn in enumerate(turns)]


def _score(answer: Rating, replies: tuple[_Reply, ...]) -> float:
    axis = answer.axes.get(AXIS)
    if axis is None or len(answer.axes) > 1 or (axis.low, axis.high) != (LOW, HIGH) or len(replies) != 1:
        raise BadRow(f"a rating that is not one reply's {AXIS!r} from {LOW} to {HIGH}", "not supported")
    return axis.value


def _said(role: str, content: str, turn: int) -> Row:
    return {"turn": turn, "role": role, "content": content}


def _conversation_row(prompt: Prompt, turn: _Turn, number: int) -> Row:
    *before, question = prompt.messages
    history: list[Row] = []
    for place, one in enumerate(before):
        own = _said("user" if one.role == "user" else "model", one.content, place // 2)
        history.append(own if one.role == "user" else own | {"model_name": "", "score": None, "if_chosen": True})
    last = len(before) // 2
    return {
        "conversation_id": content_id("prism", prompt.id, turn.judge, number),
        "user_id": turn.judge,
        "opening_prompt": prompt.messages[0].content,
        "conversation_turns": last + 1,
        "conversation_history": [*history, _said("user", question.content, last), *turn.history(last)],
    }
