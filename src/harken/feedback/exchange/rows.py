"""Rows out of files of any kind: JSON Lines, JSON arrays, CSV, Parquet; packed or not; in bounded memory.

Files come from strangers. Nothing is read whole: a line, a row or a table cell has a largest size, a packed file a
largest ratio to what it holds, and JSON a largest depth. No path is ever taken from inside a file.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import stat
import zipfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from harken.artifacts import MAX_LINE, bounded_lines
from harken.errors import DataError
from harken.feedback.exchange.entry import BadRow, Row
from harken.feedback.exchange.optional import hub_rows, parquet_rows

MAX_ROW = MAX_LINE
"""Bytes of the largest line, row or cell; a longer one is refused."""
MAX_RATIO = 200
"""Text packs to a fifth or a tenth; what packs better than this is made to fill memory or disk."""
FREE = 64 << 20
"""Unpacked bytes below which the ratio does not matter."""
MAX_DEPTH = 200
"""Brackets within brackets; real conversation trees have a few dozen."""
HUB = "hub:"
"""Beginning of a name of a data set on the Hugging Face hub: `hub:owner/name` or `hub:owner/name#split`."""
_CHUNK = 1 << 20
_TABLES = {".csv", ".tsv"}


def read_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield (number, row): the line of JSON Lines, else the row counted from 1; a bad row is a `BadRow`.

    Raises:
        DataError: the file as a whole cannot be read, or is made to do harm.
    """
    if str(path).startswith(HUB):
        yield from hub_rows(str(path).removeprefix(HUB))
        return
    if kind_of(path) == ".parquet":
        check_regular(path)
        yield from parquet_rows(path)
        return
    with open_unpacked(path) as file:
        if kind_of(path) in _TABLES:
            yield from _table_rows(path, file)
            return
        start = file.peek(4)[:4]
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
            raise DataError(f"{path}: UTF-16 or binary data instead of UTF-8 text; convert the file to UTF-8")
        if start.startswith(codecs.BOM_UTF8):
            file.read(3)
        first = _first_byte(file)
        yield from _array_rows(path, file) if first == b"[" and not _is_lines(file) else _line_rows(path, file)


def kind_of(path: Path) -> str:
    """Return the suffix that says what a file is, without `.gz` or `.zip`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".zip")), "")


def check_regular(path: Path) -> None:
    """Refuse what is no ordinary file: a pipe would block, a device never ends.

    Raises:
        DataError: so it is, or there is nothing.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: a folder; name one file in it")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: not an ordinary file (a pipe or a device); write the data to a file first")


def check_inside(folder: Path, name: str) -> Path:
    """Return a file of a folder that somebody brought.

    Raises:
        DataError: it is a symbolic link that leads out of the folder.
    """
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path}: a symbolic link out of the folder; copy the file there instead")
    return path


@contextlib.contextmanager
def open_unpacked(path: Path) -> Generator[io.BufferedReader]:
    """Open a plain, .gz or .zip file (with one file in it) for reading bytes.

    Raises:
        DataError: it cannot be read, is damaged, unpacks to absurdly much, or the archive is not of one plain file.
    """
    check_regular(path)
    size = path.stat().st_size
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            magic = raw.read(4)
            raw.seek(0)
            if magic.startswith(b"\x1f\x8b"):
                packed = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
            elif magic == b"PK\x03\x04":
                packed = _only_member(path, stack.enter_context(zipfile.ZipFile(raw)))
            elif magic == b"PAR1":
                raise DataError(f"{path}: a Parquet file; give it a name that ends in .parquet")
            else:
                yield raw
                return
            yield io.BufferedReader(_Unpacked(path, packed, size), _CHUNK)
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged archive: {error}; fetch it again") from error
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; check the path") from error


def _only_member(path: Path, archive: zipfile.ZipFile) -> IO[bytes]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f"{path}: the archive holds {member.filename!r}, a path out of it; unpack it with care")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{path}: the archive holds a symbolic link, {member.filename!r}; pack the file itself")
    if len(members) != 1:
        names = ", ".join(member.filename for member in members[:5])
        raise DataError(f"{path}: the archive holds {len(members)} files ({names}); unpack it and name one of them")
    if members[0].flag_bits & 1:
        raise DataError(f"{path}: the archive is encrypted; unpack it first")
    return archive.open(members[0])


class _Unpacked(io.RawIOBase):
    """What an archive holds, refused where it is too much for its size."""

    def __init__(self, path: Path, packed: IO[bytes], size: int) -> None:
        self._path, self._packed, self._size, self._count = path, packed, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes and count them."""
        piece = self._packed.read(len(buffer))
        buffer[: len(piece)] = piece
        self._count += len(piece)
        if self._count > FREE and self._count > MAX_RATIO * self._size:
            raise DataError(
                f"{self._path}: unpacks to more than {MAX_RATIO} times its size ({self._size} bytes), as no real data "
                "does; unpack it by hand if you trust it"
            )
        return len(piece)


def _first_byte(file: io.BufferedReader) -> bytes:
    while (start := file.peek(1)[:1]) and start in b" \t\r\n":
        file.read(1)
    return start


def _is_lines(file: io.BufferedReader) -> bool:
    """Say whether a file that begins with `[` is JSON Lines of lists all the same: its first line is complete."""
    start = file.peek(_CHUNK)
    line, end, rest = start.partition(b"\n")
    if not end or not rest.strip():
        return False
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(line)
        return True
    return False


def _line_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row | BadRow]]:
    for number, line in bounded_lines(path, file):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode())
        except BadRow as problem:
            if number == 1 and line.strip() == b"{":
                raise DataError(
                    f"{path}: one JSON object over many lines; expected one object a line, or a list"
                ) from (problem)
            row = problem
        except UnicodeDecodeError as error:
            row = BadRow(f"not UTF-8 text (byte {error.start}); convert the file")
        yield number, _object(row)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_json(text: str) -> object:
    """Parse JSON of bounded depth whose texts can be written again.

    Raises:
        BadRow: it is not such.
    """
    try:
        value: object = _DECODER.decode(text)
        _check(text, value)
    except RecursionError as error:
        raise BadRow(f"brackets more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise BadRow(f"bad JSON: {error.msg if isinstance(error, json.JSONDecodeError) else error}") from error
    return value


def _check(text: str, value: object) -> None:
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise RecursionError
    if "\\ud" in text.lower():
        # Half of a surrogate pair is valid JSON, but no text: it could not be hashed or written again.
        json.dumps(value, ensure_ascii=False).encode()


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(cast(dict[str, object], item).values())
            elif isinstance(item, list):
                inner.extend(cast(list[object], item))
        level = inner
    return depth - 1


def _object(row: object) -> Row | BadRow:
    if isinstance(row, BadRow):
        return row
    if isinstance(row, dict):
        return cast(Row, row)
    return BadRow(f"{type(row).__name__} instead of an object")


def _array_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield the elements of a JSON array without reading it whole."""
    texts = codecs.getincrementaldecoder("utf-8")()
    buffer, position, number, is_end = "", 0, 0, False
    file.read(1)
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n,":
            position += 1
        if buffer[position : position + 1] == "]":
            return
        try:
            value, end = _DECODER.raw_decode(buffer, position)
        except RecursionError as error:
            raise DataError(f"{path}: row {number + 1}: brackets more than {MAX_DEPTH} deep") from error
        except ValueError as error:
            if is_end:
                raise DataError(f"{path}: row {number + 1}: bad JSON: {error}; expected a list of objects") from error
            end = len(buffer)
        else:
            number += 1
            yield number, _checked(buffer[position:end], value)
            position = end
            continue
        if end - position > MAX_ROW:
            raise DataError(
                f"{path}: row {number + 1}: longer than {MAX_ROW >> 20} MB, or bad JSON; nothing more is read"
            )
        # Twice as much each time, so that a long row is not parsed anew for every piece.
        piece = file.read(min(MAX_ROW, max(_CHUNK, end - position)))
        is_end = not piece
        try:
            buffer, position = buffer[position:] + texts.decode(piece, is_end), 0
        except UnicodeDecodeError as problem:
            raise DataError(f"{path}: row {number + 1}: not UTF-8 text; convert the file") from problem


def _checked(text: str, value: object) -> Row | BadRow:
    try:
        _check(text, value)
    except RecursionError:
        return BadRow(f"brackets more than {MAX_DEPTH} deep")
    except ValueError as error:
        return BadRow(f"bad JSON: {error}")
    return BadRow(f"the row is longer than {MAX_ROW >> 20} MB") if len(text) > MAX_ROW else _object(value)


def _table_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row | BadRow]]:
    csv.field_size_limit(MAX_ROW)
    lines = _decoded(path, file)
    try:
        head = next(lines)
    except StopIteration:
        raise DataError(f"{path}: the file is empty; expected a line with the names of the columns") from None
    delimiter = max(",;\t", key=lambda sign: (head.count(sign), sign == ","))

    def again() -> Iterator[str]:
        yield head
        yield from lines

    try:
        table = csv.reader(again(), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(table)]
        if len(set(names)) != len(names):
            raise DataError(f"{path}:1: a column name stands there twice; give each column its own")
        for number, cells in enumerate(table, start=1):
            if not cells:
                continue
            if len(cells) != len(names):
                yield number, BadRow(f"{len(cells)} cells, the table has {len(names)} columns")
            else:
                yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a table that can be read: {error}; write it anew as CSV in UTF-8") from error


def _decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a table as text, their ends kept: a cell may hold some."""
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise DataError(f"{path}:{number}: the line is longer than {MAX_ROW >> 20} MB; expected one row a line")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 text (byte {error.start}); convert the file") from error
