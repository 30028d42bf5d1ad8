r"""HH-RLHF: two transcripts a row, `chosen` and `rejected`, whose turns begin with `\n\nHuman:` and `\n\nAssistant:`.

Red-team rows (`transcript`, `rating`) are read, too. The prompt is the common beginning of the turns; rows whose
transcripts differ before the last answer are refused: which of the two prompts was judged is not known.
"""

import re
from collections.abc import Iterable, Iterator

from harken.feedback.exchange.derive import better_and_worse
from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Refusal,
    Row,
    each,
    make_completion,
    make_judgment,
    make_prompt,
    message,
    number,
    pair_entry,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.records import Judge, Message, RatedAxis, Rating

KEEPS = frozenset({Fact.wins})
_TURN = re.compile(r"\n\n(Human|Assistant):")
_RED_TEAM = "red team success"


def read(rows: Iterable[tuple[int, Row | BadRow]]) -> Iterator[Entry | Refusal]:
    """Yield one comparison a row."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "transcript" in row:
            yield _red_team(row_number, row)
            return
        chosen, rejected = turns(text(row, "chosen")), turns(text(row, "rejected"))
        if chosen == rejected:
            raise BadRow("chosen and rejected are identical", "identical")
        if chosen[:-1] != rejected[:-1]:
            raise BadRow("the prompts of chosen and rejected differ", "prompts differ")
        prompt = make_prompt(chosen[:-1])
        yield pair_entry(row_number, prompt, chosen[-1].content, rejected[-1].content)

    return each(rows, one)


def turns(transcript: str) -> list[Message]:
    """Return the messages of a transcript; the last is by the assistant.

    Raises:
        BadRow: it is no such transcript.
    """
    before, *parts = _TURN.split(transcript)
    if before.strip() or not parts:
        raise BadRow(r"the text does not begin with '\n\nHuman:'")
    # One space belongs to the marker; the rest of the text stays as it is.
    found = [message(role.lower(), said.removeprefix(" ")) for role, said in zip(parts[::2], parts[1::2], strict=True)]
    if found[-1].role != "assistant":
        raise BadRow("the last turn is not the assistant's", "incomplete")
    return found


def _red_team(row_number: int, row: Row) -> Entry:
    said = turns(text(row, "transcript"))
    prompt = make_prompt(said[:-1])
    completion = make_completion(prompt, said[-1].content, model=str(row.get("model_type", "")))
    answer = Rating(axes={_RED_TEAM: RatedAxis(value=number(row, "rating"), low=0, high=4)})
    judge = Judge(id=f"red-team-{row.get('red_team_member_id', row_number)}", kind="person")
    return Entry(
        row_number,
        prompt,
        (completion,),
        (make_judgment(row_number, prompt, (completion,), answer, judge=judge),),
    )


def write(entry: Entry) -> list[Row]:
    """Return the rows of an entry.

    Raises:
        BadRow: the transcript would be read as another one.
    """
    rows: list[Row] = []
    for chosen, rejected, _ in better_and_worse(entry):
        sides = [[*entry.prompt.messages, Message(role="assistant", content=side)] for side in (chosen, rejected)]
        row = {key: _transcript(side) for key, side in zip(("chosen", "rejected"), sides, strict=True)}
        if any(turns(row[key]) != side for key, side in zip(("chosen", "rejected"), sides, strict=True)):
            raise BadRow("a text holds a turn marker, or the roles do not fit", "not supported")
        rows.append(row)
    return rows


def _transcript(said: list[Message]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    if any(one.role not in names for one in said):
        raise BadRow("a system message has no place in a transcript", "not supported")
    return "".join(f"\n\n{names[one.role]}: {one.content}" for one in said)
