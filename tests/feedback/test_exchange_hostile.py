"""Files made to do harm are refused with a clear error, in bounded memory."""

import collections
import csv
import gzip
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harken.errors import DataError
from harken.feedback.exchange import rows
from harken.feedback.exchange.entry import BadRow, Entry, Reading
from harken.feedback.exchange.label_studio_config import read_config
from harken.feedback.exchange.read import open_data
from harken.feedback.exchange.rows import read_rows
from harken.feedback.exchange.table import plain_cell, safe_cell
from harken.feedback.exchange.write import Style, write

GOOD = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def gzip_bomb(folder: Path) -> Path:
    path = folder / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(100):
            file.write(GOOD[:-1] + b" " * (1 << 20) + b"\n")
    return path


def zip_bomb(folder: Path) -> Path:
    path = folder / "bomb.jsonl.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.jsonl", "w") as file:
        for _ in range(100):
            file.write(GOOD[:-1] + b" " * (1 << 20) + b"\n")
    return path


def long_line(folder: Path) -> Path:
    path = folder / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        file.truncate(1 << 30)  # a sparse file: 1 GB in one line
    return path


def long_row(folder: Path) -> Path:
    path = folder / "long.json"
    path.write_bytes(b'[{"prompt": "' + b"a" * (80 << 20) + b'"}]')
    return path


def deep_array(folder: Path) -> Path:
    path = folder / "deep.json"
    path.write_bytes(b'[{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]")
    return path


def utf16(folder: Path) -> Path:
    path = folder / "utf16.jsonl"
    path.write_bytes(GOOD.decode().encode("utf-16"))
    return path


def utf16_without_mark(folder: Path) -> Path:
    path = folder / "utf16.json"
    path.write_bytes(GOOD.decode().encode("utf-16-le"))
    return path


def latin_table(folder: Path) -> Path:
    path = folder / "latin.csv"
    path.write_bytes("prompt,completion\né,b\n".encode("latin-1"))
    return path


def escaping_archive(folder: Path) -> Path:
    path = folder / "escape.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.jsonl", GOOD)
    return path


def linked_archive(folder: Path) -> Path:
    path = folder / "link.zip"
    link = zipfile.ZipInfo("a.jsonl")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return path


def pipe(folder: Path) -> Path:
    path = folder / "pipe.jsonl"
    os.mkfifo(path)
    return path


def damaged(folder: Path) -> Path:
    path = folder / "damaged.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 1000)[:-20])
    return path


HOSTILE: dict[Callable[[Path], Path], str] = {
    gzip_bomb: "more than 200 times its size",
    zip_bomb: "more than 200 times its size",
    long_line: "the line is longer than 32 MB",
    long_row: "longer than 32 MB",
    deep_array: "brackets more than 200 deep",
    utf16: "UTF-16",
    utf16_without_mark: "UTF-16",
    latin_table: "latin.csv:2: not UTF-8",
    escaping_archive: "a path out of it",
    linked_archive: "a symbolic link",
    pipe: "not an ordinary file",
    damaged: "damaged archive",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_files_are_refused_in_bounded_memory(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=HOSTILE[make]):
            collections.deque(read_rows(path), maxlen=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Four times the longest row: its bytes, its text (up to 4 bytes a sign) and one copy.
    assert peak < 8 * rows.MAX_ROW


def test_a_deep_row_is_one_bad_row_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = [b'{"a": ' + b"[" * size + b"]" * size + b"}\n" for size in (201, 100_000)]
    path.write_bytes(GOOD + deep[0] + deep[1] + b'{"prompt": NaN}\n' + b'{"prompt": "\\ud800"}\n' + GOOD)
    found = list(read_rows(path))
    assert [isinstance(row, BadRow) for _, row in found] == [False, True, True, True, True, False]
    assert "200 deep" in str(found[1][1])
    assert "200 deep" in str(found[2][1])


def test_a_list_has_bad_rows_among_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"prompt": "a"}, {"prompt": "\\ud800"}, 3, {"a": ' + b"[" * 201 + b"]" * 201 + b"}, {}\n]")
    found = list(read_rows(path))
    assert [isinstance(row, BadRow) for _, row in found] == [False, True, True, True, False]


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text("id,prompt,model_x,model_y,worker,winner,left,right\n")
    (folder / "crowd-comparisons.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(DataError, match="a symbolic link out of the folder"):
        open_data(Reading(folder))


def test_entities_in_a_labeling_config_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "bb">]><View>&b;</View>')
    with pytest.raises(DataError, match="no declarations"):
        read_config(path)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "'=1", "''@a", "\uff1d1", "\n=1"])
def test_formulas_are_made_harmless_and_read_back(text: str, tmp_path: Path) -> None:
    cell = safe_cell(text)
    assert isinstance(cell, str)
    assert cell.startswith("'")
    assert plain_cell(cell) == text
    source = tmp_path / "a.csv"
    source.write_text('prompt,completion\n"a","b"\n')
    (entry,) = [item for item in open_data(Reading(source), "csv") if isinstance(item, Entry)]
    answer = entry.judgments[0].answer.model_copy(update={"text": text + "x"})
    judgment = entry.judgments[0].model_copy(update={"answer": answer})
    written = Entry(1, entry.prompt, (), (judgment,))
    write([written], tmp_path / "out.csv", "csv", Style(), {})
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell and cell[0] in "=+-@\t\r\n\uff1d"]
    (back,) = [item for item in open_data(Reading(tmp_path / "out.csv"), "csv") if isinstance(item, Entry)]
    assert back.judgments[0].answer == answer


@pytest.mark.parametrize("text", ["a=b", "'a", "", "1-1"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert safe_cell(text) == plain_cell(text) == text
