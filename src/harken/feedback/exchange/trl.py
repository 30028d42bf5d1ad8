"""TRL's forms, standard (texts) and conversational (lists of messages); OpenRLHF's and Harken's own plain rows.

preference `prompt, chosen, rejected`; implicit preference `chosen, rejected`; unpaired `prompt, completion, label`;
prompts `prompt`; completions `prompt, completion`; messages `messages`; text `text`; steps
`prompt, completions, labels`.
`margin` is read as the strength of a pair where it is a whole number from 0 to 3.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Literal

from harken.feedback.exchange.derive import better_and_worse, demonstrations_of
from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_list,
    as_strength,
    demonstration,
    each,
    make_completion,
    make_judgment,
    make_prompt,
    messages,
    number,
    pair_entry,
    shown,
    text,
)
from harken.feedback.exchange.facts import Fact
from harken.records import (
    Comparison,
    ErrorSpan,
    Message,
    Prompt,
    RatedAxis,
    Rating,
    Spans,
    Split,
)

Form = Literal["preference", "implicit", "unpaired", "prompts", "completions", "messages", "text", "steps"]
LABEL = "label"
"""Axis of the ratings that unpaired rows are: 1 wanted, 0 unwanted."""
RIGHT, WRONG = "right step", "wrong step"
KEEPS: dict[Form, frozenset[Fact]] = {
    "preference": frozenset({Fact.wins, Fact.strengths, Fact.systems, Fact.begun}),
    "implicit": frozenset({Fact.wins, Fact.strengths, Fact.systems, Fact.begun}),
    "unpaired": frozenset({Fact.ratings, Fact.systems, Fact.begun}),
    "prompts": frozenset({Fact.systems, Fact.begun}),
    "completions": frozenset({Fact.demonstrations, Fact.systems, Fact.begun}),
    "messages": frozenset({Fact.demonstrations, Fact.systems, Fact.begun}),
    "text": frozenset({Fact.demonstrations, Fact.begun}),
    "steps": frozenset({Fact.spans, Fact.systems, Fact.begun}),
}
_KNOWN = {
    *("prompt", "chosen", "rejected", "completion", "completions", "label", "labels", "messages", "text"),
    *("margin", "strength", "split"),
}


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry a row, whatever its form."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        for key in sorted(set(row) - _KNOWN):
            reading.note(f"column {key!r} is not used")
        yield _entry(row_number, row, reading)

    return each(rows, one)


def _entry(row_number: int, row: Row, reading: Reading) -> Entry:
    split = _split(row)
    if "chosen" in row or "rejected" in row:
        prompt, chosen, rejected = _sides(row)
        return pair_entry(row_number, prompt, chosen, rejected, strength=_strength(row, reading), split=split)
    if "completions" in row:
        return _steps(row_number, row)
    if "label" in row:
        prompt = _prompt(row)
        completion = make_completion(prompt, _answer(row.get("completion"), "completion"))
        label = row["label"]
        if not isinstance(label, bool) and label not in (0, 1):
            raise BadRow(f"label is {shown(label)}; expected true or false")
        rating = Rating(axes={LABEL: RatedAxis(value=int(label), low=0, high=1)})
        judgment = make_judgment(row_number, prompt, (completion,), rating)
        return Entry(row_number, prompt, (completion,), (judgment,), split)
    if "completion" in row:
        return demonstration(row_number, _prompt(row), _answer(row["completion"], "completion"), split)
    if "messages" in row:
        said = messages(row["messages"], "messages")
        if said[-1].role != "assistant" or len(said) < 2:
            raise BadRow("messages do not end with an answer by the assistant to something", "incomplete")
        return demonstration(row_number, make_prompt(said[:-1]), said[-1].content, split)
    if "text" in row:
        return _plain_text(row_number, text(row, "text"), split, reading)
    return Entry(row_number, _prompt(row), split=split)


def _split(row: Row) -> Split | None:
    value = row.get("split")
    if value not in (None, "train", "heldout"):
        raise BadRow(f"split is {shown(value)}; expected train or heldout")
    return value


def _strength(row: Row, reading: Reading) -> Literal[0, 1, 2, 3] | None:
    if "strength" in row:
        strength = as_strength(number(row, "strength"))
        if strength is None:
            raise BadRow(f"strength is {shown(row['strength'])}; expected 0, 1, 2 or 3")
        return strength
    if row.get("margin") is None:
        return None
    strength = as_strength(number(row, "margin"))
    if strength is None:
        reading.note("margin is not 0, 1, 2 or 3 and is not used as a strength")
    return strength


def _prompt(row: Row) -> Prompt:
    value = row.get("prompt")
    if isinstance(value, str):
        return make_prompt([Message(role="user", content=value)])
    if value is None:
        raise BadRow("prompt is missing", "incomplete")
    return make_prompt(messages(value, "prompt"))


def _answer(value: object, what: str) -> str:
    """Return a completion's text, given as a text or as one message."""
    if isinstance(value, str):
        return value
    if value is None:
        raise BadRow(f"{what} is missing", "incomplete")
    said = messages(value, what)
    if len(said) != 1 or said[0].role != "assistant":
        raise BadRow(f"{what} has {len(said)} messages; expected one, by the assistant", "not supported")
    return said[0].content


def _sides(row: Row) -> tuple[Prompt, str, str]:
    """Return prompt, chosen and rejected text."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is not None:
            return _prompt(row), chosen, rejected
        try:
            return _common_beginning(chosen, rejected)
        except BadRow as problem:
            others = [key for key in row if key not in _KNOWN and isinstance(row[key], str)]
            if problem.cause != "prompts differ" or not others:
                raise
            raise BadRow(
                f"{problem}; where a column holds the prompt, name it: --map prompt={others[-1]}", "prompts differ"
            ) from problem
    one, other = messages(chosen, "chosen"), messages(rejected, "rejected")
    if row.get("prompt") is not None and len(one) == len(other) == 1:
        return _prompt(row), _answer(chosen, "chosen"), _answer(rejected, "rejected")
    # Whole conversations, as they are recommended for reward models; some files give the prompt besides.
    if one == other:
        raise BadRow("chosen and rejected are identical", "identical")
    if one[:-1] != other[:-1]:
        raise BadRow("the prompts of chosen and rejected differ", "prompts differ")
    if one[-1].role != "assistant" or other[-1].role != "assistant":
        raise BadRow("the last message is not the assistant's", "incomplete")
    return make_prompt(one[:-1]), one[-1].content, other[-1].content


def _common_beginning(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Split two texts behind the last space of their common beginning, which is the prompt."""
    if chosen == rejected:
        raise BadRow("chosen and rejected are identical", "identical")
    common = "".join(one for one, _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
    begin = common[: max(common.rfind(" "), common.rfind("\n")) + 1]
    if not begin.strip():
        raise BadRow("no prompt, and chosen and rejected have no common beginning", "prompts differ")
    prompt = make_prompt([Message(role="assistant", content=begin)])
    return prompt, chosen[len(begin) :], rejected[len(begin) :]


def _plain_text(row_number: int, whole: str, split: Split | None, reading: Reading) -> Entry:
    begin, space, rest = whole.partition(" ")
    if not begin.strip() or not rest.strip():
        raise BadRow("the text has no two words; its first is taken as the prompt", "incomplete")
    reading.note("texts have no prompt: their first word is taken as one")
    prompt = make_prompt([Message(role="assistant", content=begin + space)])
    return demonstration(row_number, prompt, rest, split)


def _steps(row_number: int, row: Row) -> Entry:
    """Read steps as spans of one completion, a line each."""
    prompt = _prompt(row)
    steps = as_list(row["completions"], "completions")
    labels = as_list(row.get("labels"), "labels")
    if len(steps) != len(labels):
        raise BadRow(f"{len(steps)} completions, but {len(labels)} labels")
    spans: list[ErrorSpan] = []
    start = 0
    completion = make_completion(prompt, "\n".join(text({"step": step}, "step") for step in steps))
    for step, label in zip(steps, labels, strict=True):
        if not isinstance(label, bool) and label not in (0, 1):
            raise BadRow(f"a label is {shown(label)}; expected true or false")
        if not step:
            raise BadRow("a step is empty", "empty")
        kind = RIGHT if label else WRONG
        spans.append(ErrorSpan(completion_id=completion.id, start=start, end=start + len(step), label=kind))
        start += len(step) + 1
    judgment = make_judgment(row_number, prompt, (completion,), Spans(spans=tuple(spans)))
    return Entry(row_number, prompt, (completion,), (judgment,))


def write(entry: Entry, form: Form, *, texts: bool, margin: str = "margin") -> list[Row]:
    """Return the rows of an entry in one of TRL's forms.

    Args:
        entry: what to write.
        form: the form.
        texts: standard form (texts) instead of the conversational.
        margin: name of the column for the strength of a pair.

    Raises:
        BadRow: it cannot be said in this form.
    """
    said = entry.prompt.messages
    texts = texts or form in ("text", "steps")
    # Texts without a prompt are read as beginnings that the assistant continues, all others as questions by the user.
    role = "assistant" if form in ("text", "implicit") else "user"
    prompt = _text_prompt(said, role) if texts else [one.model_dump() for one in said]
    match form:
        case "prompts":
            return [{"prompt": prompt}]
        case "preference" | "implicit":
            return _pairs(entry, prompt, is_implicit=form == "implicit", margin=margin)
        case "unpaired":
            return _unpaired(entry, prompt)
        case "completions" | "messages" | "text":
            return [_shown_answer(form, prompt, said, item.completion.content) for item in demonstrations_of(entry)]
        case "steps":
            return [_written_steps(entry, judged.answer, prompt) for judged in entry.judgments]


def _text_prompt(said: Sequence[Message], role: str) -> str:
    if len(said) != 1:
        raise BadRow("a conversation of several messages is no text", "not supported")
    if said[0].role != role:
        raise BadRow(f"a text by the {said[0].role} would be read as one by the {role}", "not supported")
    return said[0].content


def _as_written(prompt: str | list[Row], answer: str) -> str | list[Row]:
    return answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]


def _pairs(entry: Entry, prompt: str | list[Row], *, is_implicit: bool, margin: str) -> list[Row]:
    rows: list[Row] = []
    for better, worse, strength in better_and_worse(entry):
        sides = [_as_written(prompt, side) for side in (better, worse)]
        row: Row = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}
        if is_implicit:
            whole = [_joined(prompt, side) for side in sides]
            row = {"chosen": whole[0], "rejected": whole[1]}
            if isinstance(prompt, str) and _common_beginning(*map(str, whole))[0].messages[0].content != prompt:
                raise BadRow("the common beginning of both texts is not the prompt", "not supported")
        if strength is not None:
            row[margin] = float(strength)
        rows.append(row)
    return rows


def _joined(prompt: str | list[Row], answer: str | list[Row]) -> str | list[Row]:
    if isinstance(prompt, str):
        return f"{prompt}{answer}"
    assert isinstance(answer, list)
    return prompt + answer


def _unpaired(entry: Entry, prompt: str | list[Row]) -> list[Row]:
    rows: list[Row] = []
    by_id = {completion.id: completion.message.content for completion in entry.completions}
    for judgment in entry.judgments:
        answer = judgment.answer
        if isinstance(answer, Rating):
            axis = answer.axes.get(LABEL)
            if axis is None or axis.value not in (0, 1) or len(answer.axes) > 1:
                raise BadRow(f"a rating that is not 0 or 1 on axis {LABEL!r}", "not supported")
            rows.append({"prompt": prompt, "completion": _as_written(prompt, by_id[judgment.shown[0]])})
            rows[-1]["label"] = bool(axis.value)
        elif isinstance(answer, Comparison) and answer.outcome in ("win", "both_bad"):
            rows += [
                {"prompt": prompt, "completion": _as_written(prompt, by_id[name]), "label": name == answer.winner}
                for name in judgment.shown
            ]
    return rows


def _shown_answer(form: Form, prompt: str | list[Row], said: Sequence[Message], answer: str) -> Row:
    if form == "completions":
        return {"prompt": prompt, "completion": _as_written(prompt, answer)}
    if form == "messages":
        if said[-1].role == "assistant":
            raise BadRow("the completion continues the assistant's beginning", "not supported")
        return {"messages": [*(one.model_dump() for one in said), {"role": "assistant", "content": answer}]}
    if (whole := f"{prompt}{answer}").partition(" ")[0] + " " != prompt:
        raise BadRow("a prompt of more than one word would be read as part of the completion", "not supported")
    return {"text": whole}


def _written_steps(entry: Entry, answer: object, prompt: str | list[Row]) -> Row:
    if not entry.completions:
        raise BadRow("no completion with steps", "not supported")
    content = entry.completions[0].message.content
    if isinstance(answer, Spans) and answer.spans and all(span.label in (RIGHT, WRONG) for span in answer.spans):
        steps = [content[span.start : span.end] for span in answer.spans]
        if "\n".join(steps) == content and len(entry.completions) == 1:
            return {"prompt": prompt, "completions": steps, "labels": [span.label == RIGHT for span in answer.spans]}
    raise BadRow(f"spans that are not steps: {json.dumps(RIGHT)} or {json.dumps(WRONG)} for each line", "not supported")
