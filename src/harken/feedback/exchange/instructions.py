"""Questions and tasks, with the answers to imitate where there are any, in the layouts that known collections have.

GSM8K and other lists of questions `question, answer`; Alpaca `instruction, input, output`; Self-Instruct
`instruction, instances` (each with `input, output`); MT-Bench `turns`, of which the first is a prompt by itself.
"""

from collections.abc import Iterable, Iterator

from harken.feedback.exchange.entry import (
    BadRow,
    Entry,
    Reading,
    Refusal,
    Row,
    as_dict,
    as_list,
    demonstration,
    each,
    make_prompt,
    message,
    shown,
    text,
)


def is_such(row: Row) -> bool:
    """Say whether a row is of one of these layouts."""
    keys = set(row)
    has_task = "instruction" in keys and bool(keys & {"output", "instances"})
    return "prompt" not in keys and (has_task or {"question", "answer"} <= keys or isinstance(row.get("turns"), list))


def read(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield one entry a question, or of each instance of a task."""

    def one(row_number: int, row: Row) -> Iterator[Entry]:
        if "turns" in row:
            yield _question(row_number, row, reading)
        elif "instruction" in row:
            instances = as_list(row["instances"], "instances") if "instances" in row else [row]
            for instance in instances:
                yield _task(row_number, text(row, "instruction"), as_dict(instance, "an instance"))
        else:
            asked = make_prompt([message("user", text(row, "question"))])
            yield demonstration(row_number, asked, text(row, "answer"))

    return each(rows, one)


def _task(row_number: int, instruction: str, instance: Row) -> Entry:
    given = text(instance, "input") if instance.get("input") is not None else ""
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    return demonstration(row_number, make_prompt([message("user", asked)]), text(instance, "output"))


def _question(row_number: int, row: Row, reading: Reading) -> Entry:
    turns = as_list(row["turns"], "turns")
    if not turns or not isinstance(turns[0], str):
        raise BadRow(f"turns are {shown(turns)}; expected a list of texts", "incomplete")
    if len(turns) > 1:
        reading.note("of several turns the first is the prompt; the others need an answer before them")
    return Entry(row_number, make_prompt([message("user", turns[0])]))
