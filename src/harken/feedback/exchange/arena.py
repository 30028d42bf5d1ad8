"""Chatbot Arena: two models' conversations and which one a visitor preferred, as JSON, or the CSV of 55,000.

A conversation of several turns is used where both models' earlier turns are equal; else it was no single completion
that was judged.
"""

import datetime
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast

from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Refusal,
    Row,
    as_list,
    each,
    judged_by,
    make_completion,
    make_judgment,
    make_prompt,
    messages,
    shown,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.records import Comparison, Judge, Judgment, Message, Prompt, Timing

KEEPS = frozenset(
    {
        *(Fact.wins, Fact.ties, Fact.both_bad, Fact.judges, Fact.kinds, Fact.order, Fact.models, Fact.times),
        *(Fact.systems, Fact.begun),
    }
)
_MODEL_JUDGE = "model:"
_RULE_JUDGE = "rule:"
_Outcome = Literal["win", "tie", "both_bad"]


def read(rows: Iterable[tuple[int, Row | BadRow]]) -> Iterator[Entry | Refusal]:
    """Yield one comparison a row; the model of `_a` was shown first."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "winner_model_a" in row:
            prompt, sides, outcome, side = _from_table(row)
        else:
            prompt, sides = _from_conversations(row)
            outcome, side = _winner(text(row, "winner"))
        if sides[0] == sides[1]:
            raise BadRow("both completions are identical", "identical")
        models = [str(row.get(f"model_{letter}") or "") for letter in "ab"]
        both = [make_completion(prompt, said, model=model) for said, model in zip(sides, models, strict=True)]
        winner = both[side].id if outcome == "win" else None
        judgment = make_judgment(
            [str(row.get(key)) for key in ("question_id", "id", "turn", "tstamp") if key in row] or row_number,
            prompt,
            both,
            Comparison(outcome=outcome, winner=winner),
            judge=_judge(row, row_number),
            timing=Timing(submitted_at=_time(row.get("tstamp"))),
        )
        yield Entry(row_number, prompt, tuple(both), (judgment,))

    return each(rows, one)


def _from_conversations(row: Row) -> tuple[Prompt, list[str]]:
    one, other = (messages(row.get(f"conversation_{letter}"), f"conversation_{letter}") for letter in "ab")
    if one[:-1] != other[:-1]:
        raise BadRow("the turns before the last answers differ between the models", "prompts differ")
    if one[-1].role != "assistant" or other[-1].role != "assistant":
        raise BadRow("a conversation does not end with the model", "incomplete")
    return make_prompt(one[:-1]), [one[-1].content, other[-1].content]


def _from_table(row: Row) -> tuple[Prompt, list[str], _Outcome, int]:
    prompts, *answers = (_texts(row, key) for key in ("prompt", "response_a", "response_b"))
    if any(len(side) != len(prompts) for side in answers):
        raise BadRow("prompt and responses have different numbers of turns", "incomplete")
    if answers[0][:-1] != answers[1][:-1]:
        raise BadRow("the turns before the last answers differ between the models", "prompts differ")
    said: list[Message] = []
    for question, answer in zip(prompts, answers[0], strict=True):
        said += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    flags = [str(row.get(f"winner_{name}")) for name in ("model_a", "model_b", "tie")]
    if sorted(flags) != ["0", "0", "1"]:
        raise BadRow(f"winner_model_a, winner_model_b, winner_tie are {', '.join(flags)}; expected one 1 and two 0")
    place = flags.index("1")
    outcome: _Outcome = "tie" if place == 2 else "win"
    return make_prompt(said[:-1]), [side[-1] for side in answers], outcome, place


def _texts(row: Row, key: str) -> list[str]:
    """Return the turns in a cell, a JSON list; some are null, where the model said nothing."""
    try:
        turns: Any = json.loads(text(row, key))
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{key} is not a JSON list of texts") from error
    found = [turn if isinstance(turn, str) else "" for turn in as_list(turns, key)]
    if not found:
        raise BadRow(f"{key} has no turns", "empty")
    return found


def _winner(value: str) -> tuple[_Outcome, int]:
    match value:
        case "model_a" | "model_b":
            return "win", int(value == "model_b")
        case "tie":
            return "tie", 0
        case "tie (bothbad)":
            return "both_bad", 0
        case _:
            raise BadRow(f"winner is {shown(value)}; expected model_a, model_b, tie or tie (bothbad)")


def _judge(row: Row, row_number: int) -> Judge:
    name: Any = row.get("judge") or row.get("judge_hash")
    if isinstance(name, list) or str(name).startswith(("gpt", "claude")):
        parts = cast(list[object], name) if isinstance(name, list) else [name]
        return Judge(id=" ".join(str(part) for part in parts), kind="model")
    if name is None:
        return Judge(id=f"visitor-{row.get('question_id', row.get('id', row_number))}", kind="person")
    own = str(name)
    if own.startswith(_MODEL_JUDGE):
        return judged_by(own.removeprefix(_MODEL_JUDGE), "model")
    if own.startswith(_RULE_JUDGE):
        return judged_by(own.removeprefix(_RULE_JUDGE), "rule")
    return judged_by(own)


def _time(value: object) -> str | None:
    if not isinstance(value, int | float):
        return value if isinstance(value, str) else None
    return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat(timespec="microseconds")


def write(entry: Entry) -> list[Row]:
    """Return one row for each comparison of two completions."""
    by_id = {one.id: one for one in entry.completions}
    said = [one.model_dump() for one in entry.prompt.messages]
    rows: list[Row] = []
    for judgment in entry.judgments:
        answer = judgment.answer
        if not isinstance(answer, Comparison) or answer.outcome not in ("win", "tie", "both_bad"):
            continue
        if len(judgment.shown) != 2:
            continue
        both = [by_id[name] for name in judgment.shown]
        row: Row = {"question_id": judgment.id}
        for letter, one in zip("ab", both, strict=True):
            row |= {f"model_{letter}": one.model, f"conversation_{letter}": [*said, one.message.model_dump()]}
        row["winner"] = "tie (bothbad)" if answer.outcome == "both_bad" else "tie"
        if answer.winner is not None:
            row["winner"] = f"model_{'ab'[judgment.shown.index(answer.winner)]}"
        rows.append({**row, **_written_judge(judgment), "tstamp": judgment.timing.submitted_at})
    return rows


def _written_judge(judgment: Judgment) -> Row:
    prefix = {"model": _MODEL_JUDGE, "rule": _RULE_JUDGE}.get(judgment.judge.kind, "")
    return {"judge": f"{prefix}{judgment.judge.id}"}
