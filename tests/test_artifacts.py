"""Artifacts: atomic writes, hashes that are checked, errors that name file and line."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from harken.artifacts import (
    artifact_digest,
    atomic_file,
    manifest_path,
    read_json,
    read_manifest,
    read_records,
    sha256_file,
    verify,
    write_folder_manifest,
    write_json,
    write_records,
    write_text,
)
from harken.errors import DataError, StorageError
from harken.records import Message

HELLO = Message(role="user", content="héllo")
# What the line of HELLO must be, written by hand.
HELLO_LINE = '{"role":"user","content":"héllo"}\n'.encode()


def _disk_full(*arguments: object) -> NoReturn:
    del arguments
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_hello(path: Path) -> None:
    write_records(path, [HELLO], kind="Message")


def test_records_are_written_one_line_each_with_the_hash_in_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    manifest = write_records(path, [HELLO, HELLO], kind="Message", parents={"a": "1"}, seeds={"run": 7}, info={"x": 1})
    assert path.read_bytes() == HELLO_LINE * 2
    assert manifest.files == {"m.jsonl": hashlib.sha256(HELLO_LINE * 2).hexdigest()}
    assert (manifest.num_records, manifest.parents, manifest.seeds) == (2, {"a": "1"}, {"run": 7})
    assert manifest_path(path) == tmp_path / "m.jsonl.manifest.json"
    assert read_manifest(path) == manifest
    assert read_records(path, Message) == [HELLO, HELLO]


def test_a_plain_file_without_manifest_is_read_and_blank_lines_skipped(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(HELLO_LINE + b"\n" + HELLO_LINE)
    assert read_manifest(path) is None
    assert read_records(path, Message) == [HELLO, HELLO]
    assert artifact_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    _write_hello(path)
    path.write_bytes(HELLO_LINE * 3)
    with pytest.raises(DataError, match=r"m\.jsonl: sha256 is .* the manifest says .* changed"):
        read_records(path, Message)


def test_a_changed_or_missing_file_of_a_folder_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "in" / "a.txt", "a")
    manifest = write_folder_manifest(tmp_path, "stage")
    assert list(manifest.files) == ["in/a.txt"]
    verify(tmp_path)
    (tmp_path / "in" / "a.txt").write_text("b")
    with pytest.raises(DataError, match="changed after it was written"):
        verify(tmp_path)
    (tmp_path / "in" / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.txt: cannot be read: No such file"):
        verify(tmp_path)


def test_digest_of_an_artifact_covers_its_ancestry(tmp_path: Path) -> None:
    one = write_records(tmp_path / "m.jsonl", [HELLO], kind="Message", parents={"a": "1"})
    other = write_records(tmp_path / "m.jsonl", [HELLO], kind="Message", parents={"a": "2"})
    assert one.files == other.files
    assert one.digest() != other.digest()
    assert artifact_digest(tmp_path / "m.jsonl") == other.digest()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"role":"user"', "Invalid JSON"),
        (b'{"role":"user"}', "content: Field required"),
        (b'{"role":"user","content":"x","y":1}', "y: Extra inputs"),
        (b'{"role":"user","content":"\xe9"}', "Invalid JSON"),
    ],
    ids=["cut", "field missing", "unknown field", "latin-1"],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(HELLO_LINE + line + b"\n")
    with pytest.raises(DataError, match=rf"m\.jsonl:2: not a Message: {problem}"):
        read_records(path, Message)


def test_bad_json_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{\n"a": 1,\n}')
    with pytest.raises(DataError, match=r"x\.json:3: bad JSON"):
        read_json(path)
    path.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DataError, match=r"x\.json: not UTF-8 text at byte 7"):
        read_json(path)


def test_a_broken_manifest_is_an_error_not_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(HELLO_LINE)
    manifest_path(path).write_text('{"kind": "Message"}')
    with pytest.raises(DataError, match="not a manifest: files: Field required"):
        read_records(path, Message)


def test_missing_and_unreadable_files_are_data_errors(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read: No such file"):
        read_records(missing, Message)
    with pytest.raises(DataError, match="cannot be read"):
        sha256_file(missing)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "m.jsonl"
    _write_hello(path)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    monkeypatch.setattr(os, call, _disk_full)
    with pytest.raises(StorageError, match=r"m\.jsonl: .*disk is full.*before is untouched"):
        write_records(path, [HELLO] * 5, kind="Message")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_a_failing_source_leaves_the_old_file_and_keeps_its_own_error(tmp_path: Path) -> None:
    def records() -> Iterator[Message]:
        yield HELLO
        raise DataError("line 7 is bad")

    path = tmp_path / "m.jsonl"
    _write_hello(path)
    with pytest.raises(DataError, match="line 7 is bad"):
        write_records(path, records(), kind="Message")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "m.jsonl",
        "m.jsonl.manifest.json",
    ]
    assert path.read_bytes() == HELLO_LINE


def test_writing_where_a_file_is_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(StorageError, match="could not be written"):
        write_text(tmp_path / "folder" / "x.txt", "x")


def test_written_files_get_the_mode_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "x.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o640


def test_a_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with atomic_file(path) as file:
        file.write(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    write_json(tmp_path / "x.json", {"text": "é"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"text": "é"}
