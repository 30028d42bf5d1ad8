"""What was made of what: exports in which a person's judgments stand, and everything trained on them.

Manifests name their parents by digest, so walking them forward from an export leads to preference pairs, reward models
and policies. An export from which a person was taken keeps its old digest in `info.replaces`, so that the walk does not
end there.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harken.artifacts import Manifest, atomic_file, manifest_path, parse_line, read_manifest, write_text
from harken.errors import DataError
from harken.records import Judgment

REPLACES = "replaces"
_FOLDER_MANIFEST = "manifest.json"
_FILE_MANIFEST = ".manifest.json"
# Quotation marks inside a text are escaped, so these are found where they mean something only. The ids of prompts from
# a live chat are hexadecimal.
_PROMPT_ID = re.compile(rb'"prompt_id":"([0-9a-f]+)"')
_CONVERSATION = b'"conversation:'


@dataclass(frozen=True)
class Artifact:
    """A file or folder with a manifest."""

    path: Path
    manifest: Manifest

    @property
    def digests(self) -> set[str]:
        """Under which names children may know it: its digest now and those before people were taken out."""
        return {self.manifest.digest(), *self.manifest.info.get(REPLACES, [])}


def find_artifacts(roots: Iterable[Path]) -> list[Artifact]:
    """Return every artifact in these folders, at any depth; files that only look like manifests are left out."""
    found: dict[Path, Artifact] = {}
    for root in roots:
        for path in sorted(root.rglob(f"*{_FOLDER_MANIFEST}")):
            is_folder = path.name == _FOLDER_MANIFEST
            artifact = path.parent if is_folder else path.with_name(path.name.removesuffix(_FILE_MANIFEST))
            try:
                manifest = read_manifest(artifact)
            except DataError:
                continue  # of another program
            if manifest is not None and manifest_path(artifact) == path:
                found[artifact.resolve()] = Artifact(artifact, manifest)
    return list(found.values())


def artifact_of(path: Path) -> Artifact | None:
    """Return a file or folder with its manifest, or None where it has none."""
    manifest = read_manifest(path)
    return None if manifest is None else Artifact(path, manifest)


def made_from(artifacts: Sequence[Artifact], digests: set[str]) -> list[Artifact]:
    """Return what has one of these digests among its ancestors, nearest first."""
    reached, made = set(digests), list[Artifact]()
    waiting = list(artifacts)
    while True:
        new = [artifact for artifact in waiting if reached & set(artifact.manifest.parents.values())]
        if not new:
            return made
        made += new
        waiting = [artifact for artifact in waiting if artifact not in new]
        for artifact in new:
            reached |= artifact.digests


def is_export(artifact: Artifact) -> bool:
    """Return True for a folder that `harken collect export` wrote."""
    return artifact.manifest.kind == "feedback" and (artifact.path / "judgments.jsonl").is_file()


@dataclass(frozen=True)
class Gone:
    """Who and what is to be taken out of one export."""

    people: set[str]
    """How the person is called there."""
    prompts: set[str]
    """Prompts there that hold what the person wrote; everything about them goes too."""

    def has(self, judgment: Judgment) -> bool:
        """Return True for a judgment by the person, or about something they wrote."""
        return judgment.judge.id in self.people or judgment.prompt_id in self.prompts

    def may_be_in(self, line: bytes) -> bool:
        """Return True for the line of a judgment that has to be read to know."""
        names = (json.dumps(name, ensure_ascii=False).encode() for name in self.people)
        return self.is_about(line) or any(name in line for name in names)

    def is_about(self, line: bytes) -> bool:
        """Return True for the line of a record about one of the prompts."""
        found = _PROMPT_ID.search(line) if self.prompts else None
        return found is not None and found[1].decode() in self.prompts

    def is_one_of_them(self, line: bytes) -> bool:
        """Return True for the line of one of the prompts."""
        return _CONVERSATION in line and json.loads(line)["id"] in self.prompts


def conversations(export: Artifact) -> set[str]:
    """Return the ids of the prompts in an export that come from a live chat."""
    with (export.path / "prompts.jsonl").open("rb") as file:
        lines = (json.loads(line) for line in file if _CONVERSATION in line)
        return {line["id"] for line in lines if line.get("source") == "chat"}


def count_judgments(export: Artifact, gone: Gone) -> int:
    """Return how many judgments in an export are by the person, or about what they wrote."""
    return sum(gone.has(record) for record, _ in _judgments(export, gone))


def take_out(export: Artifact, gone: Gone) -> None:
    """Rewrite an export without a person's judgments and texts.

    Its manifest gets new hashes and remembers its old digest.
    """
    ids = {record.id for record, _ in _judgments(export, gone) if gone.has(record)}
    if not ids and not gone.prompts:
        return
    # Prompts last: after a kill in between they still say that there is something to take out.
    kept = {"judgments": _write(export, "judgments", _without(export, ids))}
    if gone.prompts:
        kept["completions"] = _write(export, "completions", _unless(export, "completions", gone.is_about))
        kept["prompts"] = _write(export, "prompts", _unless(export, "prompts", gone.is_one_of_them))
    old = export.manifest
    counts = {**old.info.get("counts", {}), **{name: count for name, (_, count) in kept.items()}}
    info: dict[str, Any] = {**old.info, REPLACES: [*old.info.get(REPLACES, []), old.digest()], "counts": counts}
    changes: dict[str, Any] = {
        "files": {**old.files, **{f"{name}.jsonl": digest for name, (digest, _) in kept.items()}},
        "num_records": sum(counts.values()),
        "info": info,
    }
    manifest = old.model_copy(update=changes)
    write_text(manifest_path(export.path), manifest.model_dump_json(indent=2) + "\n")


def _without(export: Artifact, gone: set[str]) -> Iterator[bytes]:
    """Yield the lines of all judgments but these, without links to them."""
    for record, line in _judgments(export, None):
        if record.supersedes in gone:
            mended = record.model_copy(update={"supersedes": None})
            line = mended.model_dump_json(exclude_none=True).encode() + b"\n"
        if record.id not in gone:
            yield line


def _unless(export: Artifact, name: str, goes: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Yield the lines of one kind of record but those that go."""
    with (export.path / f"{name}.jsonl").open("rb") as file:
        yield from (line for line in file if not goes(line))


def _write(export: Artifact, name: str, lines: Iterable[bytes]) -> tuple[str, int]:
    """Write the records of one kind anew; return their sha256 and their number."""
    digest, count = hashlib.sha256(), 0
    with atomic_file(export.path / f"{name}.jsonl") as file:
        for line in lines:
            digest.update(line)
            file.write(line)
            count += 1
    return digest.hexdigest(), count


def _judgments(export: Artifact, gone: Gone | None) -> Iterator[tuple[Judgment, bytes]]:
    """Yield judgments with their lines; with `gone` only those that may have to go."""
    path = export.path / "judgments.jsonl"
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if gone is None or gone.may_be_in(line):
                yield parse_line(path, number, line, Judgment), line


def find_bytes(paths: Iterable[Path], needles: Sequence[bytes]) -> list[tuple[Path, bytes]]:
    """Return the files that hold one of these byte strings, read in pieces."""
    overlap = max((len(needle) for needle in needles), default=1) - 1
    hits: list[tuple[Path, bytes]] = []
    for path in paths:
        missing, tail = set(needles), b""
        with path.open("rb") as file:
            while missing and (piece := file.read(1 << 20)):
                window = tail + piece
                found = {needle for needle in missing if needle in window}
                hits += [(path, needle) for needle in sorted(found)]
                missing -= found
                tail = window[-overlap:] if overlap else b""
    return hits
