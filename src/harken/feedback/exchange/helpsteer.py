"""HelpSteer: graded preferences of several people (version 3), and ratings by axes (versions 1 and 2).

In `overall_preference` and the individual scores, -3 to 3, below 0 the first response is better; 0 is a tie.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_dict,
    as_list,
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
    Critique,
    Judge,
    Judgment,
    Prompt,
    RatedAxis,
    Rating,
)

KEEPS = frozenset(
    {Fact.wins, Fact.ties, Fact.strengths, Fact.order, Fact.rationales, Fact.critiques, Fact.systems, Fact.begun}
)
AXES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
OVERALL = Judge(id="helpsteer-overall", kind="import")


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry a row."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        yield _rated(row_number, row) if "response" in row else _graded(row_number, row, reading)

    return each(rows, one)


def _rated(row_number: int, row: Row) -> Entry:
    prompt = make_prompt([message("user", text(row, "prompt"))])
    completion = make_completion(prompt, text(row, "response"))
    axes = {axis: RatedAxis(value=number(row, axis), low=0, high=4) for axis in AXES if row.get(axis) is not None}
    return Entry(
        row_number, prompt, (completion,), (make_judgment(row_number, prompt, (completion,), Rating(axes=axes)),)
    )


def _graded(row_number: int, row: Row, reading: Reading) -> Entry:
    context: Any = row.get("context")
    said = (message("user", context),) if isinstance(context, str) else messages(context, "context")
    prompt = make_prompt(said)
    sides = [text(row, "response1"), text(row, "response2")]
    if sides[0] == sides[1]:
        raise BadRow("both responses are identical", "identical")
    both = [make_completion(prompt, side) for side in sides]
    judgments: list[Judgment] = []
    for place, item in enumerate(as_list(row.get("individual_preference") or [], "individual_preference")):
        own = as_dict(item, "an individual preference")
        judge = Judge(id=f"helpsteer-{prompt.id}-{row_number}-{place}", kind="person")
        judgments += _judged((row_number, place), prompt, both, own, judge)
    if judgments:
        reading.note("the file does not say which person gave which preference: each has a judge of its own")
    else:
        own = {"score": row.get("overall_preference")}
        judgments = list(_judged(row_number, prompt, both, own, OVERALL))
    return Entry(row_number, prompt, tuple(both), tuple(judgments))


def _judged(key: object, prompt: Prompt, both: list[Completion], own: Row, judge: Judge) -> Iterator[Judgment]:
    rationale = str(own.get("reasoning") or "")
    if own.get("score") is not None:
        score = number(own, "score")
        strength = as_strength(abs(score))
        if strength is None:
            raise BadRow(f"preference {shown(own['score'])}; expected a whole number from -3 to 3")
        answer = Comparison(outcome="tie")
        if strength:
            answer = Comparison(outcome="win", winner=both[score > 0].id, strength=strength)
        yield make_judgment(key, prompt, both, answer, judge=judge, rationale=rationale)
    for feedback, completion in zip(("feedback1", "feedback2"), both, strict=True):
        if own.get(feedback):
            critique = Critique(completion_id=completion.id, text=text(own, feedback))
            yield make_judgment((key, feedback), prompt, both, critique, judge=judge)


def write(entry: Entry) -> list[Row]:
    """Return one row for each order in which two completions were shown.

    Raises:
        BadRow: a win without a strength, or of strength 0, for which there is no score.
    """
    by_id = {one.id: one.message.content for one in entry.completions}
    rows: dict[tuple[str, ...], Row] = {}
    for judgment in entry.judgments:
        own = _written(judgment)
        if own is None:
            continue
        if len(judgment.shown) != 2:
            raise BadRow("a critique of one completion alone", "not supported")
        row = rows.setdefault(
            judgment.shown,
            {
                "context": [one.model_dump() for one in entry.prompt.messages],
                "response1": by_id[judgment.shown[0]],
                "response2": by_id[judgment.shown[1]],
                "overall_preference": None,
                "individual_preference": [],
            },
        )
        row["individual_preference"].append(own)
    for row in rows.values():
        scores = [own["score"] for own in row["individual_preference"] if own["score"] is not None]
        if scores:
            row["overall_preference"] = round(sum(scores) / len(scores))
    return list(rows.values())


def _written(judgment: Judgment) -> Row | None:
    answer = judgment.answer
    own: Row = {"score": None, "reasoning": judgment.rationale, "feedback1": None, "feedback2": None}
    if isinstance(answer, Critique):
        if judgment.rationale:
            raise BadRow("a critique with a rationale", "not supported")
        own[f"feedback{judgment.shown.index(answer.completion_id) + 1}"] = answer.text
        return own
    if not isinstance(answer, Comparison) or answer.outcome not in ("win", "tie"):
        return None
    own["score"] = 0
    if answer.winner is not None:
        if not answer.strength:
            raise BadRow("a win without a strength above 0", "not supported")
        own["score"] = answer.strength if judgment.shown[1] == answer.winner else -answer.strength
    elif answer.strength is not None:
        raise BadRow("a tie with a strength", "not supported")
    return own
