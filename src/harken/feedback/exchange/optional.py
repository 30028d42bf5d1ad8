"""Rows out of Parquet files (`harken[parquet]`) and data sets of the Hugging Face hub (`harken[hub]`).

Both packages are loaded when a file needs them: everything else works without.
"""

import datetime
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from harken.artifacts import atomic_file
from harken.errors import DataError
from harken.feedback.exchange.entry import BadRow, Row

_ROWS = 1000
"""Most rows of a Parquet file in memory at once."""
_BUDGET = 64 << 20
"""Bytes that these may take, if each cell were as large as the file allows."""
_MAX_CELL = 32 << 20
_MAX_RATIO = 200
"""As for lines and archives, in `rows`."""
_HUB_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
_MAX_FOOTER = 64 << 20
"""Bytes of a Parquet file's names and types; strangers' files may claim any number."""


def parquet_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield (number, row) of a Parquet file.

    Raises:
        DataError: it is not one.
    """
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(
            path, thrift_string_size_limit=_MAX_FOOTER, thrift_container_size_limit=1_000_000
        ) as file:
            for batch in file.iter_batches(batch_size=_batch_rows(path, file.metadata)):
                if batch.nbytes > _MAX_CELL * batch.num_rows * batch.num_columns:
                    raise DataError(f"{path}: a cell after row {number} is longer than 32 MB; expected texts")
                for row in batch.to_pylist():
                    number += 1
                    yield number, _plain(row)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}; fetch it again") from error


def _batch_rows(path: Path, metadata: Any) -> int:
    """Return how many rows may be read at once.

    A file of some kilobytes can hold one long text and a million references to it, or a text that packs a thousandfold.

    Raises:
        DataError: it was made to fill the memory.
    """
    worst = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(index) for index in range(metadata.num_columns)]
        for column in columns:
            size = column.total_uncompressed_size
            if size > _MAX_CELL and size > _MAX_RATIO * max(1, column.total_compressed_size):
                raise DataError(f"{path}: unpacks to more than {_MAX_RATIO} times its size; expected data, not a bomb")
            if size > _MAX_CELL * max(1, column.num_values):
                raise DataError(f"{path}: cells of {column.path_in_schema} are longer than 32 MB; expected texts")
        # A cell is at most as long as all that its column holds, and with a dictionary each cell may be the longest.
        referred = [column.total_uncompressed_size for column in columns if column.has_dictionary_page]
        worst = max(worst, sum(referred))
    return max(1, min(_ROWS, _BUDGET // worst))


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as a Parquet file, atomically, and return their number.

    Raises:
        DataError: rows whose values are of different types, which no column holds.
    """
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    own = [_fillable(row) for row in rows]
    # Only the first row's keys would become columns.
    names = dict.fromkeys(name for row in own for name in row)
    own = [{name: row.get(name) for name in names} for row in own]
    try:
        with atomic_file(path) as file:
            parquet.write_table(arrow.Table.from_pylist(own), file)
    except arrow.ArrowException as error:
        raise DataError(f"{path}: no Parquet file can hold these rows: {error}; write .jsonl instead") from error
    return len(own)


def _fillable(value: Any) -> Any:
    """Return a value without objects that have no keys, which Parquet has no type for."""
    if isinstance(value, list):
        return [_fillable(inner) for inner in cast(list[Any], value)]
    if not isinstance(value, Mapping):
        return value
    own = cast(Mapping[str, Any], value)
    return {key: None if inner == {} else _fillable(inner) for key, inner in own.items()}


def hub_rows(name: str) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield (number, row) of a data set by name, `owner/name` or `owner/name#split`; rows are fetched as they are read.

    Raises:
        DataError: there is no such data set or split, or the network cannot be reached.
    """
    source, _, split = name.partition("#")
    if not _HUB_NAME.fullmatch(source):
        raise DataError(f"hub:{name}: not a name of the hub; expected hub:owner/name or hub:owner/name#split")
    if Path(source).exists():
        raise DataError(
            f"hub:{name}: there is a folder {source} here, which the library would read in place of the hub; give the "
            "path of a file in it, or start from another folder"
        )
    datasets: Any = importlib.import_module("datasets")
    try:
        # Data sets that bring code of their own are refused by the library.
        rows: Any = datasets.load_dataset(source, split=split or "train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield number, _plain(row)
    except _hub_errors(datasets) as error:
        problem = " ".join(str(error).split())[:200]
        raise DataError(
            f"hub:{name}: {problem}; expected hub:owner/name or hub:owner/name#split, and a way to reach the hub"
        ) from error


def _hub_errors(datasets: Any) -> tuple[type[BaseException], ...]:
    """Return what the library raises where the hub cannot be reached or has no such data."""
    own = getattr(getattr(datasets, "exceptions", None), "DatasetsError", OSError)
    # The library speaks HTTP by another one, whose errors it lets through.
    return (OSError, ValueError, own, getattr(sys.modules.get("httpx"), "HTTPError", OSError))


def _plain(value: Any) -> Any:
    """Return a row as JSON would hold it: no bytes, no dates, structures without their empty fields."""
    if isinstance(value, dict):
        own = cast(dict[str, Any], value)
        return {key: _plain(inner) for key, inner in own.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in cast(list[Any], value)]
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return value
