"""Commands for data files: `harken data check | convert`. Neither loads torch, but `check --model`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harken.cli_common import (
    BucketsOption,
    FileOptions,
    FormatOption,
    JsonOption,
    LabelingOption,
    MapOption,
    ScaleOption,
    check_out_file,
    interval,
    open_file,
    reporter,
    show,
    show_json,
    table,
)

if TYPE_CHECKING:
    from harken.feedback.exchange.check import Checked, Render
    from harken.feedback.exchange.read import Data
    from harken.feedback.exchange.write import Target


class Ties(StrEnum):
    """What becomes of ties in formats that have none."""

    drop = "drop"
    both_ways = "both-ways"


ToOption = Annotated[str, typer.Option("--to", metavar="FORMAT", help="Format to write; an unknown one lists all.")]
TextsOption = Annotated[
    bool, typer.Option("--texts", help="TRL and OpenRLHF: texts instead of lists of messages (standard form).")
]
TiesOption = Annotated[
    Ties,
    typer.Option("--ties", metavar="HOW", help="Formats without ties: drop them, or both-ways: one pair either way."),
]
AcceptOption = Annotated[bool, typer.Option("--accept-loss", help="Write even though the format loses something.")]


def check(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files, packed or not; of several it is said what they share."),
    ],
    format: FormatOption = None,
    renamed: MapOption = None,
    scale: ScaleOption = None,
    labeling_config: LabelingOption = None,
    buckets: BucketsOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="Show the examples as this model's template renders them."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a file is, what it holds, and what is wrong with it.

    Shows three examples with the trained text between marks. Ends with 2 where rows cannot be used, and names them.
    """
    from harken.feedback.exchange.check import check as look
    from harken.feedback.exchange.check import leaks, plain_render, summary

    options = FileOptions(format, renamed, scale, labeling_config, buckets)
    opened = [open_file(file, options) for file in files]
    render = plain_render if model is None else _model_render(model)
    checked = [look(data) for data in opened]
    leaking = leaks([(data.reading.path.name, found) for data, found in zip(opened, checked, strict=True)])
    if as_json:
        found = [summary(data, one) for data, one in zip(opened, checked, strict=True)]
        show_json({"files": found, "leaks": leaking})
    else:
        for data, one in zip(opened, checked, strict=True):
            _show_checked(data, one, render)
        for leak in leaking:
            show(f"leak: {leak}")
    if any(one.num_refused for one in checked):
        raise typer.Exit(2)


def _model_render(model: str) -> "Render":
    from harken.cli_common import model_name
    from harken.feedback.exchange.check import mark, visible
    from harken.lm.load import load_chat
    from harken.records import Prompt

    chat = load_chat(model_name(model), notify=reporter().say)

    def render(prompt: Prompt, text: str) -> str:
        before, after = chat.encode_prompt(prompt), chat.encode_completion(text)
        shown = visible(chat.tokenizer.decode(before) + mark(chat.tokenizer.decode(after)))
        return f"{shown}\n  [{len(before)} tokens before, {len(after)} trained]"

    return render


def _show_checked(data: "Data", found: "Checked", render: "Render") -> None:
    from harken.estimates import share
    from harken.feedback.exchange.check import example
    from harken.feedback.exchange.importing import rows

    lines = [["file", str(data.reading.path)], ["format", data.format]]
    counts = {
        "rows used": found.num_entries,
        "rows refused": found.num_refused,
        "prompts": len(found.prompts),
        "completions": len(found.completions),
        "judges": len(found.judges),
        **{f"judgments, {kind}": count for kind, count in sorted(found.answers.items())},
        "pairs to train on": found.num_pairs,
        "demonstrations": found.num_demonstrations,
        **{f"split {name}": count for name, count in found.splits.items()},
    }
    lines += [[name, str(count)] for name, count in counts.items()]
    longer = share(found.num_longer, found.num_longer + found.num_shorter)
    lines.append(["chosen is the longer text [95 % interval]", interval(longer)])
    show(table(lines))
    for number, entry in enumerate(found.examples, start=1):
        show(f"\nexample {number}, row {entry.row}")
        for line in example(entry, render):
            show(line)
    show("")
    for note in data.reading.noted():
        show(f"note: {note}")
    for what, problem in found.odd.items():
        show(f"look at: {problem.count} with {what}: {rows(problem)}")
    for cause, problem in found.refused.items():
        show(f"cannot be used: {problem.count} ({cause}), {rows(problem)}: {problem.example}")


def convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to read, of any format that `data check` knows.")],
    to: ToOption,
    out: Annotated[Path, typer.Option("--out", metavar="F", help="File to write; .parquet writes a Parquet file.")],
    format: FormatOption = None,
    renamed: MapOption = None,
    scale: ScaleOption = None,
    labeling_config: LabelingOption = None,
    buckets: BucketsOption = None,
    texts: TextsOption = False,
    ties: TiesOption = Ties.drop,
    accept_loss: AcceptOption = False,
) -> None:
    """Write a file in another format.

    What the new format cannot hold is said before anything is written, and needs --accept-loss.
    """
    from harken.feedback.exchange.check import Problem
    from harken.feedback.exchange.entry import Entry
    from harken.feedback.exchange.importing import refusal_notes

    data = open_file(file, FileOptions(format, renamed, scale, labeling_config, buckets))
    refused: dict[str, Problem] = {}
    entries: list[Entry] = []
    for item in data:
        if isinstance(item, Entry):
            entries.append(item)
        else:
            refused.setdefault(item.message, Problem()).add(item.row)
    notes = [*data.reading.noted(), *refusal_notes(refused)]
    for note in notes:
        reporter().say(f"note: {note}")
    info = {"source": data.reading.path.name, "source_sha256": data.digest(), "notes": notes}
    write_entries(entries, out, to, texts=texts, ties=ties, accept_loss=accept_loss, info=info)


def write_entries(
    entries: Any, out: Path, to: str, *, texts: bool, ties: Ties, accept_loss: bool, info: dict[str, Any]
) -> None:
    """Say what a format loses, and write it where that is accepted.

    Raises:
        UsageError: no such format, or there are losses that were not accepted.
        DataError: nothing can be written.
    """
    from typing import cast

    from harken.errors import DataError, UsageError
    from harken.feedback.exchange.write import TARGETS, Style, check_name, plan, write

    if to not in TARGETS:
        raise UsageError(f"--to {to!r}: no such format; there are {', '.join(TARGETS)}")
    check_out_file(out)
    target: Target = cast("Target", to)
    check_name(out, target)
    style = Style(texts=texts, ties=ties.value)
    planned = plan(entries, target, style)
    for loss in planned.losses:
        reporter().say(f"loss: {loss}")
    if not planned.num_rows:
        raise DataError(f"nothing that {to} can hold; choose another format")
    if planned.losses and not accept_loss:
        raise UsageError(f"{to} loses what is named above; nothing was written: add --accept-loss, or choose another")
    written = write(entries, out, target, style, {**info, "losses": planned.losses, "ties": ties.value})
    show(f"{out}: {written.num_rows} rows of {to}")
