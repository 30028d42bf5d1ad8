"""Rows of any format -> a file, atomically: JSON Lines, a JSON list, a CSV table, or Parquet, as its name ends."""

import contextlib
import csv
import io
import json
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from harken.artifacts import atomic_file
from harken.feedback.exchange.entry import Row
from harken.feedback.exchange.optional import write_parquet
from harken.feedback.exchange.table import safe_cell


def write_rows(path: Path, rows: Iterable[Row], columns: Sequence[str] = ()) -> int:
    """Write rows and return their number; a CSV table needs to know its columns.

    Raises:
        DataError: Parquet cannot hold them.
    """
    match path.suffix:
        case ".parquet":
            return write_parquet(path, rows)
        case ".csv":
            return _write_table(path, rows, columns)
        case _:
            return _write_json(path, rows)


@contextlib.contextmanager
def _text_file(path: Path) -> Generator[io.TextIOWrapper]:
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        yield text
        text.detach()


def _write_table(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> int:
    count = 0
    with _text_file(path) as text:
        cells = csv.DictWriter(text, columns)
        cells.writeheader()
        for row in rows:
            cells.writerow({key: safe_cell(value) for key, value in row.items()})
            count += 1
    return count


def _write_json(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    is_list = path.suffix == ".json"
    with _text_file(path) as text:
        text.write("[" if is_list else "")
        for row in rows:
            text.write(",\n" if is_list and count else "")
            text.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + ("" if is_list else "\n"))
            count += 1
        text.write("]\n" if is_list else "")
    return count
