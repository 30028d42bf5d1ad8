"""Files that stages hand to each other: JSON Lines with a manifest, written atomically.

An artifact is one `.jsonl` file (or a folder of files) beside a manifest, `NAME.manifest.json` (or `manifest.json` in
the folder), that holds the sha256 of every file, the schema version, the hashes of its parents, the Harken version and
the seeds. A reader that finds another hash than the manifest's refuses the file.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harken.errors import DataError, StorageError
from harken.records import SCHEMA_VERSION

MAX_LINE = 32 << 20
"""Bytes of the longest line that is read; files come from strangers."""
MAX_WHOLE = 256 << 20
"""Bytes of the largest file that is read whole."""
HARKEN_VERSION = "0.1.0"
ModelT = TypeVar("ModelT", bound=BaseModel)


class Manifest(BaseModel):
    """What an artifact is made of and made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """Record type or stage name."""
    files: dict[str, str]
    """File name relative to the manifest -> sha256."""
    num_records: int | None = None
    schema_version: int = SCHEMA_VERSION
    harken_version: str = HARKEN_VERSION
    parents: dict[str, str] = {}
    """Name of each input -> digest of its manifest (or sha256 of a plain file)."""
    seeds: dict[str, int] = {}
    info: dict[str, Any] = {}
    """Settings, counts and licences worth keeping with the data."""

    def digest(self) -> str:
        """Return the sha256 that names this artifact: over contents and ancestry."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn an `OSError` while writing `path` into a `StorageError` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EACCES: "no permission; choose another folder or change its owner",
            errno.EROFS: "the file system is read-only; choose another folder",
        }.get(error.errno or 0, f"{error.strerror}; mend this and run the same command again")
        message = f"{path}: could not be written: {remedy} (what was there before is untouched)"
        raise StorageError(message) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends well, and vanishes when it does not."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes 0600; the file should get what the user's umask gives any other file.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def private_file(path: Path) -> Generator[tuple[BinaryIO, Path]]:
    """Open a file that only its owner can read, from the first byte on; it gets its name when the block ends well.

    Yields the file and where it lies until then.

    Raises:
        FileExistsError: `path` is there, perhaps since a moment ago; that file stays as it is.
        StorageError: it cannot be written.
    """
    is_there = False
    with storage_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file, temporary
                file.flush()
                os.fsync(file.fileno())
            try:
                # Fails if the file is there; a rename would replace it.
                os.link(temporary, path)
            except FileExistsError:
                is_there = True
        finally:
            temporary.unlink()
    if is_there:
        raise FileExistsError(path)


def write_private(path: Path, text: str) -> None:
    """Write a file that is not there yet, readable by its owner only from the first byte on.

    If another process was faster, its file stays.

    Raises:
        StorageError: it cannot be written.
    """
    with contextlib.suppress(FileExistsError), private_file(path) as (file, _):
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file; a `DataError` names the file and line of bad JSON."""
    try:
        return json.loads(read_bytes(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: bad JSON: {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{path}: bad JSON: brackets within brackets, too deep to read") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; convert the file") from error


def read_bytes(path: Path) -> bytes:
    """Read a whole file; a `DataError` says when it is missing, unreadable or larger than `MAX_WHOLE`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_WHOLE + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    if len(content) > MAX_WHOLE:
        raise DataError(f"{path}: larger than {MAX_WHOLE >> 20} MB; divide it into several files")
    return content


def read_text(path: Path) -> str:
    """Read a whole UTF-8 file; a `DataError` says when it is none."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from error


def bounded_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line without its end) in bounded memory; only a line feed ends a line.

    Args:
        path: of the file, for the message.
        file: what is read.

    Raises:
        DataError: a line is longer than `MAX_LINE`.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(f"{path}:{number}: the line is longer than {MAX_LINE >> 20} MB; expected one row a line")
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    return digest.hexdigest()


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an artifact (file or folder) lies."""
    return path / "manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of an artifact, or None for a plain file or folder without one."""
    where = manifest_path(path)
    if not where.exists():
        return None
    try:
        return Manifest.model_validate(read_json(where))
    except ValidationError as error:
        raise DataError(f"{where}: not a manifest: {first_problem(error)}") from error


def artifact_digest(path: Path) -> str:
    """Return what children record of a parent: its manifest's digest, else the file's sha256."""
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest.digest()
    if path.is_dir():
        names = sorted(entry for entry in path.rglob("*") if entry.is_file())
        listing = "\n".join(f"{entry.relative_to(path)} {sha256_file(entry)}" for entry in names)
        return hashlib.sha256(listing.encode()).hexdigest()
    return sha256_file(path)


def write_folder_manifest(folder: Path, kind: str, *, exclude: str = "", **fields: Any) -> Manifest:
    """Hash every file of a folder into its `manifest.json` and return the manifest.

    Args:
        folder: its files at any depth are hashed, but not `manifest.json` itself and temporary files.
        kind: record type or stage name.
        exclude: name of a subfolder to leave out.
        fields: the manifest's other fields.
    """
    names = sorted(
        entry
        for entry in folder.rglob("*")
        if entry.is_file()
        and entry != folder / "manifest.json"
        and not entry.name.endswith(".tmp")
        and entry.relative_to(folder).parts[0] != exclude
    )
    files = {str(entry.relative_to(folder)): sha256_file(entry) for entry in names}
    manifest = Manifest(kind=kind, files=files, **fields)
    write_text(folder / "manifest.json", manifest.model_dump_json(indent=2) + "\n")
    return manifest


def write_records(
    path: Path,
    records: Iterable[BaseModel],
    *,
    kind: str,
    parents: Mapping[str, str] | None = None,
    seeds: Mapping[str, int] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write records as JSON Lines with a manifest, both atomically, and return the manifest."""
    digest = hashlib.sha256()
    count = 0
    with atomic_file(path) as file:
        for record in records:
            line = record.model_dump_json(exclude_none=True).encode() + b"\n"
            digest.update(line)
            file.write(line)
            count += 1
    manifest = Manifest(
        kind=kind,
        files={path.name: digest.hexdigest()},
        num_records=count,
        parents=dict(parents or {}),
        seeds=dict(seeds or {}),
        info=dict(info or {}),
    )
    write_text(manifest_path(path), manifest.model_dump_json(indent=2) + "\n")
    return manifest


def read_records(path: Path, model: type[ModelT]) -> list[ModelT]:
    """Read JSON Lines into records; errors name file and line; a changed file is refused."""
    verify(path)
    return list(iterate_records(path, model))


def iterate_records(path: Path, model: type[ModelT]) -> Iterator[ModelT]:
    """Yield records of a JSON Lines file one by one; errors name file and line."""
    try:
        with path.open("rb") as file:
            for number, line in bounded_lines(path, file):
                if line.strip():
                    yield parse_line(path, number, line, model)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def parse_line(path: Path, number: int, line: bytes, model: type[ModelT]) -> ModelT:
    """Parse one line of a JSON Lines file; a `DataError` names file, line, field and problem."""
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        raise DataError(f"{path}:{number}: not a {model.__name__}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a validation error as one clear clause."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def verify(path: Path) -> None:
    """Raise `DataError` if a file of an artifact no longer has the hash that its manifest gives."""
    manifest = read_manifest(path)
    if manifest is None:
        return
    folder = path if path.is_dir() else path.parent
    for name, expected in manifest.files.items():
        found = sha256_file(folder / name)
        if found != expected:
            raise DataError(
                f"{folder / name}: sha256 is {found[:12]}..., the manifest says {expected[:12]}...; "
                "the file was changed after it was written: make it anew, or delete the manifest to accept it"
            )
