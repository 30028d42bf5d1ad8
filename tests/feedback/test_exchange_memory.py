"""The memory of a process that reads files made to do harm, as the system measures it: libraries' own memory counts."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.feedback.test_exchange_hostile import HOSTILE

CHILD = """
import json, resource, sys
from pathlib import Path
from harken.errors import DataError
from harken.feedback.exchange import optional
from harken.feedback.exchange.rows import read_rows
import pyarrow.parquet
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {}
for name in sys.argv[1:]:
    rows = 0
    try:
        for _ in read_rows(Path(name)):
            rows += 1
        found[name] = f"{rows} rows"
    except DataError as error:
        found[name] = str(error)
    found[name] = [found[name], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start]
print(json.dumps(found))
"""
LIMIT = 450 << 10
"""Kilobytes: twelve rows of the longest that is read, and what one part of a Parquet file may take."""


def _cell(size: int) -> str:
    return "a" * (size << 20)


def many_references(folder: Path) -> Path:
    """One text of 4 MB that 400 rows refer to: 1.6 GB, in a file of some kilobytes."""
    path = folder / "references.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 400, type=pa.int32()), pa.array([_cell(4)]))
    pq.write_table(pa.table({"prompt": texts}), path, compression="zstd", write_statistics=False, store_schema=False)
    return path


def packed_cell(folder: Path) -> Path:
    path = folder / "packed.parquet"
    pq.write_table(pa.table({"prompt": [_cell(300)]}), path, compression="zstd", write_statistics=False)
    return path


def long_cell(folder: Path) -> Path:
    path = folder / "cell.parquet"
    table = pa.table({"prompt": [_cell(80)]})
    pq.write_table(table, path, compression="snappy", write_statistics=False, use_dictionary=False)
    return path


PARQUET = {packed_cell: "more than 200 times its size", long_cell: "longer than 32 MB", many_references: "400 rows"}


def test_no_hostile_file_makes_a_process_large(tmp_path: Path) -> None:
    expected = {str(make(tmp_path)): words for make, words in (HOSTILE | PARQUET).items()}
    command = [sys.executable, "-c", CHILD, *expected]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    found: dict[str, tuple[str, int]] = json.loads(ended.stdout)
    for name, words in expected.items():
        said, peak = found[name]
        assert words in said
        assert peak < LIMIT, (name, peak)
