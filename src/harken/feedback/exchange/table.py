"""CSV and other tables, by the names of their columns; `--map NAME=COLUMN` gives other names.

Comparisons: `prompt, completion_a, completion_b, winner` (a, b, left, right, 1, 2, tie, both_bad, unsure, skip, or a
name in `model_a` or `model_b`), with `strength, judge, rationale, model_a, model_b, submitted_at, active_s`.
Ratings: `prompt, completion, rating` with `low` and `high` or `--scale`. The a side was shown first.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from harken.feedback.exchange.entry import (
    IMPORTED,
    NO_TIMING,
    NUM_REMEMBERED,
    SHORT,
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_strength,
    each,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    messages,
    number,
    shown,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.records import (
    Comparison,
    Completion,
    DemonstrationAnswer,
    Judge,
    Judgment,
    Message,
    Prompt,
    RatedAxis,
    Rating,
    Timing,
)

KEEPS = frozenset(
    {
        *(Fact.wins, Fact.ties, Fact.both_bad, Fact.unsure, Fact.skips, Fact.strengths, Fact.ratings),
        *(Fact.demonstrations, Fact.judges, Fact.kinds, Fact.order, Fact.rationales, Fact.times, Fact.durations),
        *(Fact.models, Fact.systems, Fact.begun, Fact.shown_times, Fact.guidelines),
    }
)
COLUMNS = (
    *("prompt", "completion_a", "completion_b", "winner", "strength", "completion", "axis", "rating", "low", "high"),
    *("judge", "judge_kind", "rationale", "model_a", "model_b", "shown_at", "submitted_at", "active_s", "guideline"),
)
_KNOWN = frozenset(COLUMNS)
_SIDES = {"a": 0, "left": 0, "1": 0, "model_a": 0, "b": 1, "right": 1, "2": 1, "model_b": 1}
_OUTCOMES = ("tie", "both_bad", "unsure", "skip")
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_QUOTED = re.compile("'+[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry a row."""
    may_be_quoted = reading.path.suffix != ".parquet"

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if may_be_quoted and row.keys() <= _KNOWN:
            row = {key: plain_cell(value) for key, value in row.items()}
        yield _entry(row_number, {key: value for key, value in row.items() if value not in ("", None)}, reading)

    return each(rows, one)


def safe_cell(value: object) -> object:
    """Return a cell that no spreadsheet runs as a formula: such a text gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def plain_cell(value: Any) -> Any:
    """Undo `safe_cell`."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _QUOTED.match(value) else value


def _entry(row_number: int, row: Row, reading: Reading) -> Entry:
    asked = text(row, "prompt")
    prompt = _prompt(asked) if len(asked) <= SHORT else _prompt.__wrapped__(asked)
    completions: tuple[Completion, ...] = ()
    if "completion_a" in row or "completion_b" in row:
        sides = [str(row.get(f"completion_{letter}", "")) for letter in "ab"]
        models = [str(row.get(f"model_{letter}", "")) for letter in "ab"]
        if sides[0] == sides[1]:
            raise BadRow("both completions are identical", "identical")
        completions = tuple(
            make_completion(prompt, side, model=model) for side, model in zip(sides, models, strict=True)
        )
        answer = _comparison(row, completions)
    elif "rating" in row:
        completions = (make_completion(prompt, text(row, "completion"), model=str(row.get("model_a", ""))),)
        answer = Rating(axes={str(row.get("axis", "rating")): _axis(row, reading)})
    elif "completion" in row:
        answer = DemonstrationAnswer(text=text(row, "completion"))
    else:
        return Entry(row_number, prompt)
    judgment = make_judgment(
        row_number,
        prompt,
        completions,
        answer,
        judge=_judge(row),
        rationale=str(row.get("rationale", "")),
        timing=_timing(row),
    )
    if "guideline" in row:
        judgment = judgment.model_copy(update={"guideline": str(row["guideline"])})
    return Entry(row_number, prompt, completions, (judgment,))


@lru_cache(NUM_REMEMBERED)
def _prompt(value: str) -> Prompt:
    return make_prompt(_messages(value))


def _messages(value: str) -> tuple[Message, ...]:
    """Read a prompt: a text, or a JSON list of messages, as `written` makes it."""
    if value.startswith('[{"role"'):
        try:
            return messages(json.loads(value), "prompt")
        except (ValueError, RecursionError):
            return (message("user", value),)
    return (message("user", value),)


def _comparison(row: Row, both: tuple[Completion, ...]) -> Comparison:
    value = str(row.get("winner", "")).strip()
    word = value.lower().replace(" ", "_").replace("-", "_")
    strength = as_strength(number(row, "strength")) if "strength" in row else None
    if "strength" in row and strength is None:
        raise BadRow(f"strength is {shown(row['strength'])}; expected 0, 1, 2 or 3")
    if word in _OUTCOMES:
        return Comparison.model_validate({"outcome": word, "strength": strength})
    models = [one.model for one in both]
    side = _SIDES.get(word, models.index(value) if models.count(value) == 1 else None)
    if side is None:
        raise BadRow(f"winner is {shown(value)}; expected a, b, {', '.join(_OUTCOMES)}, or the name of a model")
    return Comparison(outcome="win", winner=both[side].id, strength=strength)


def _axis(row: Row, reading: Reading) -> RatedAxis:
    name = str(row.get("axis", "rating"))
    scale = reading.scales.get(name)
    if scale is None and ("low" not in row or "high" not in row):
        raise BadRow(f"the scale of the ratings is not known: give columns low and high, or --scale {name}=1:5")
    low, high = scale or (number(row, "low"), number(row, "high"))
    return RatedAxis(value=number(row, "rating"), low=low, high=high)


def _judge(row: Row) -> Judge:
    if "judge" not in row:
        return IMPORTED
    return _made_judge(str(row["judge"]), row.get("judge_kind", "person"))


@lru_cache(NUM_REMEMBERED)
def _made_judge(name: str, kind: object) -> Judge:
    return Judge.model_validate({"id": name, "kind": kind})


def _timing(row: Row) -> Timing:
    if not row.keys() & Timing.model_fields.keys():
        return NO_TIMING
    return Timing(
        shown_at=row.get("shown_at"),
        submitted_at=row.get("submitted_at"),
        active_s=number(row, "active_s") if "active_s" in row else None,
    )


def write(entry: Entry) -> list[Row]:
    """Return one row a judgment, with all of `COLUMNS`.

    Raises:
        BadRow: an answer that a row cannot hold.
    """
    by_id = {one.id: one for one in entry.completions}
    said = entry.prompt.messages
    prompt = said[0].content
    if said[1:] or said[0].role != "user" or prompt.startswith('[{"role"'):
        prompt = json.dumps([one.model_dump() for one in said], ensure_ascii=False)
    rows = [
        {**dict.fromkeys(COLUMNS, ""), "prompt": prompt, **_cells(judgment, by_id)}
        for judgment in entry.judgments
        if isinstance(judgment.answer, Comparison | Rating | DemonstrationAnswer)
    ]
    if not entry.judgments and not entry.completions:
        rows = [{**dict.fromkeys(COLUMNS, ""), "prompt": prompt}]
    return rows


def _cells(judgment: Judgment, by_id: dict[str, Completion]) -> Row:
    answer, timing = judgment.answer, judgment.timing
    cells: Row = {
        "judge": judgment.judge.id if judgment.judge != IMPORTED else "",
        "judge_kind": judgment.judge.kind if judgment.judge != IMPORTED else "",
        "rationale": judgment.rationale,
        "shown_at": timing.shown_at or "",
        "submitted_at": timing.submitted_at or "",
        "active_s": "" if timing.active_s is None else repr(timing.active_s),
        "guideline": judgment.guideline,
    }
    both = [by_id[name] for name in judgment.shown]
    match answer:
        case Comparison() if len(both) == 2 and both[0].message != both[1].message:
            cells |= {f"completion_{letter}": one.message.content for letter, one in zip("ab", both, strict=True)}
            cells |= {f"model_{letter}": one.model for letter, one in zip("ab", both, strict=True)}
            side = "" if answer.winner is None else "ab"[judgment.shown.index(answer.winner)]
            cells["winner"] = side or answer.outcome
            cells["strength"] = "" if answer.strength is None else str(answer.strength)
        case Rating() if len(answer.axes) == 1 and len(both) == 1:
            ((name, axis),) = answer.axes.items()
            cells |= {"completion": both[0].message.content, "model_a": both[0].model, "axis": name}
            cells |= {"rating": repr(axis.value), "low": repr(axis.low), "high": repr(axis.high)}
        case DemonstrationAnswer() if not both and answer.text.strip():
            cells["completion"] = answer.text
        case _:
            raise BadRow("more than two completions, or several axes, or none", "not supported")
    return cells
