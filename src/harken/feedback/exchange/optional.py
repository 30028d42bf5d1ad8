"""Rows out of Parquet files (`harken[parquet]`) and data sets of the Hugging Face hub (`harken[hub]`).

Both packages are loaded when a file needs them: everything else works without.
"""

import datetime
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from harken.artifacts import atomic_file
from harken.errors import DataError
from harken.feedback.exchange.entry import BadRow, Row

_ROWS = 1000
"""Rows of a Parquet file in memory at once."""
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
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _plain(row)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {error}; fetch it again") from error


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as a Parquet file, atomically, and return their number."""
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    own = [dict(row) for row in rows]
    with atomic_file(path) as file:
        parquet.write_table(arrow.Table.from_pylist(own), file)
    return len(own)


def hub_rows(name: str) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield (number, row) of a data set by name, `owner/name` or `owner/name#split`; rows are fetched as they are read.

    Raises:
        DataError: there is no such data set or split, or the network cannot be reached.
    """
    datasets: Any = importlib.import_module("datasets")
    source, _, split = name.partition("#")
    try:
        # Data sets that bring code of their own are refused by the library.
        rows: Any = datasets.load_dataset(source, split=split or "train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield number, _plain(row)
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise DataError(
            f"hub:{name}: {problem}; expected hub:owner/name or hub:owner/name#split, and a way to reach the hub"
        ) from error


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
