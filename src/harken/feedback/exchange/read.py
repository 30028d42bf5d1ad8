"""Any file of feedback or training data -> entries: finds out which format it is, or takes the one that is named."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import get_args

from harken.artifacts import artifact_digest, bounded_lines
from harken.config.collect import Format
from harken.errors import DataError, UsageError
from harken.feedback.exchange import (
    arena,
    argilla,
    helpsteer,
    hh_rlhf,
    instructions,
    label_studio,
    llmfao,
    oasst,
    own,
    prism,
    table,
    trl,
)
from harken.feedback.exchange.entry import BadRow, Entry, Reading, Refusal, Row
from harken.feedback.exchange.rows import HUB, check_inside, kind_of, open_unpacked, read_rows

FORMATS: tuple[Format, ...] = get_args(Format)
_SNIFFED = 20
"""Rows looked at to find out the format."""


@dataclass
class Data:
    """An opened file: its format, and its entries, read anew each time."""

    format: Format
    reading: Reading

    def __iter__(self) -> Iterator[Entry | Refusal]:
        self.reading.notes.clear()
        path = self.reading.path
        if path.is_dir():
            yield from own.read_folder(path)
        elif self.format == "lines":
            yield from trl.read(_line_prompts(path), self.reading)
        else:
            yield from read_as(self.format, _renamed(read_rows(path), self.reading), self.reading)

    def digest(self) -> str:
        """Return the sha256 of the file or folder; of a data set by name, that of the name."""
        path = self.reading.path
        if str(path).startswith(HUB):
            return hashlib.sha256(str(path).encode()).hexdigest()
        return artifact_digest(path)


def open_data(reading: Reading, format: Format | None = None) -> Data:
    """Find out what a file is.

    Raises:
        DataError: it cannot be read, is empty, or is of no known format; the message names the keys of its first row.
        UsageError: options of another format.
    """
    path = reading.path
    if path.is_dir():
        inner = next((name for name in (llmfao.VOTES, prism.CONVERSATIONS) if (path / name).exists()), None)
        if inner is None and not (path / own.FILES[2]).exists():
            raise DataError(f"{path}: a folder, but not one that `harken collect export` wrote; name one file in it")
        if inner is None:
            return Data("harken", reading)
        reading.path = path = check_inside(path, inner)
    if not str(path).startswith(HUB) and kind_of(path) == ".txt" and format is None:
        format = "lines"
    if format == "lines":
        return Data(format, reading)
    first = [row for _, row in islice(_renamed(read_rows(path), reading), _SNIFFED)]
    if not first:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    good = [row for row in first if not isinstance(row, BadRow)]
    if not good:
        raise DataError(f"{path}: the first {len(first)} rows cannot be read: {first[0]}")
    found: Format | None = format or next((name for name in map(sniff, good) if name is not None), None)
    if found is None:
        raise _unknown(path, good)
    unused = {"--labeling-config": reading.labeling_config is not None, "--buckets": bool(reading.buckets)}
    if found != "label-studio" and any(unused.values()):
        raise UsageError(f"{' '.join(name for name, is_given in unused.items() if is_given)}: only for label-studio")
    return Data(found, reading)


def _unknown(path: Path, rows: Sequence[Row]) -> DataError:
    """Return what to say of a file of no known format: which option reads it, by the columns that hold longer texts."""
    counts = {key: sum(len(str(row.get(key)).split()) for row in rows) for key in rows[0]}
    texts = [
        key for key in rows[0] if counts[key] > 2 * len(rows) and all(isinstance(row.get(key), str) for row in rows)
    ]
    advice = "no column holds texts, so there is nothing that a model could be asked"
    if texts:
        asked = texts[0]
        advice = f"if {asked!r} is what a model is asked: --map prompt={asked}"
        if texts[1:]:
            advice += f", and if {texts[1]!r} is the answer: --map completion={texts[1]}"
    keys = ", ".join(sorted(rows[0])[:12])
    return DataError(
        f"{path}: no known format: its first row has {keys}; {advice}; or name the format with --format: "
        f"{', '.join(FORMATS)}"
    )


def sniff(row: Row) -> Format | None:
    """Say which format a row is of, by its keys."""
    keys = set(row)
    signs: tuple[tuple[bool, Format], ...] = (
        (own.is_own(row), "harken"),
        (bool(keys & {"message_tree_id", "thread_id", "thread"}) or {"message_id", "text"} <= keys, "oasst"),
        ("data" in keys and bool(keys & {"annotations", "predictions"}), "label-studio"),
        (bool({"annotation_id", "annotator"} & keys) and "lead_time" in keys, "label-studio"),
        ("fields" in keys and bool(keys & {"responses", "suggestions"}), "argilla"),
        (any(".response" in key for key in keys), "argilla"),
        (bool(keys & {"conversation_a", "winner_model_a"}), "arena"),
        ({"response1", "response2"} <= keys or {"response", "helpfulness"} <= keys, "helpsteer"),
        ({"model_x", "model_y"} <= keys or {"text", "slug"} <= keys, "llmfao"),
        ("conversation_history" in keys or {"user_prompt", "model_response"} <= keys, "prism"),
        ("transcript" in keys and "rating" in keys, "hh-rlhf"),
        (_is_transcript(row.get("chosen")) and _is_transcript(row.get("rejected")) and "prompt" not in keys, "hh-rlhf"),
        (instructions.is_such(row), "instructions"),
        ({"prompt", "winner"} <= keys or {"prompt", "rating"} <= keys, "csv"),
        (bool(keys & {"prompt", "chosen", "messages", "text"}), "trl"),
    )
    return next((name for is_such, name in signs if is_such), None)


def _is_transcript(value: object) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")


_Rows = Iterable[tuple[int, Row | BadRow]]
_READERS: Mapping[Format, Callable[[_Rows, Reading], Iterator[Entry | Refusal]]] = {
    "harken": lambda rows, reading: own.read(rows),
    "hh-rlhf": lambda rows, reading: hh_rlhf.read(rows),
    "trl": trl.read,
    "lines": trl.read,
    "oasst": oasst.read,
    "label-studio": label_studio.read,
    "argilla": argilla.read,
    "arena": lambda rows, reading: arena.read(rows),
    "helpsteer": helpsteer.read,
    "instructions": instructions.read,
    "llmfao": llmfao.read,
    "prism": prism.read,
    "csv": table.read,
}


def read_as(format: Format, rows: _Rows, reading: Reading) -> Iterator[Entry | Refusal]:
    """Yield the entries of rows in one format."""
    return _READERS[format](rows, reading)


def _renamed(rows: Iterable[tuple[int, Row | BadRow]], reading: Reading) -> Iterator[tuple[int, Row | BadRow]]:
    """Give the columns that `--map` names their own names."""
    if not reading.renamed:
        yield from rows
        return
    iterator = iter(rows)
    head = list(islice(iterator, 1))
    for _, row in head:
        if not isinstance(row, BadRow) and (missing := [name for name in reading.renamed.values() if name not in row]):
            raise UsageError(
                f"--map: {reading.path} has no column {missing[0]!r}; it has {', '.join(sorted(row)[:12])}"
            )
    names = {column: name for name, column in reading.renamed.items()}
    for number, row in chain(head, iterator):
        if isinstance(row, BadRow):
            yield number, row
        else:
            # A column that had the name before gives way to the one that was asked for.
            kept = {key: value for key, value in row.items() if key not in reading.renamed or key in names}
            yield number, {names.get(key, key): value for key, value in kept.items()}


def _line_prompts(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    with open_unpacked(path) as file:
        for number, line in bounded_lines(path, file):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, BadRow(f"not UTF-8 text (byte {error.start}); convert the file")
            else:
                yield number, {"prompt": text}
