"""What was made of what: exports in which a person's judgments stand, and everything trained on them.

Manifests name their parents by digest, so walking them forward from an export leads to preference pairs, reward models
and policies. An export from which a person was taken keeps its old digest in `info.replaces`, so that the walk does not
end there.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harken.artifacts import Manifest, atomic_file, manifest_path, parse_line, read_manifest, write_text
from harken.errors import DataError
from harken.records import Judgment

REPLACES = "replaces"
_FOLDER_MANIFEST = "manifest.json"
_FILE_MANIFEST = ".manifest.json"


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


def count_judgments(export: Artifact, people: set[str]) -> int:
    """Return how many judgments in an export are by someone who has one of these names."""
    return sum(record.judge.id in people for record, _ in _lines(export.path / "judgments.jsonl", people))


def take_out(export: Artifact, people: set[str]) -> int:
    """Rewrite an export without the judgments of someone who has one of these names; return how many those were.

    Its manifest gets new hashes and remembers its old digest.
    """
    path = export.path / "judgments.jsonl"
    gone = {record.id for record, _ in _lines(path, people) if record.judge.id in people}
    if not gone:
        return 0
    digest = hashlib.sha256()
    count = 0
    with atomic_file(path) as file:
        for record, line in _lines(path, None):
            if record.id in gone:
                continue
            if record.supersedes in gone:
                line = (
                    record.model_copy(update={"supersedes": None}).model_dump_json(exclude_none=True).encode() + b"\n"
                )
            digest.update(line)
            file.write(line)
            count += 1
    old = export.manifest
    info: dict[str, Any] = {**old.info, REPLACES: [*old.info.get(REPLACES, []), old.digest()]}
    changes: dict[str, Any] = {
        "files": {**old.files, path.name: digest.hexdigest()},
        "num_records": None if old.num_records is None else old.num_records - len(gone),
        "info": {**info, "counts": {**old.info.get("counts", {}), "judgments": count}},
    }
    manifest = old.model_copy(update=changes)
    write_text(manifest_path(export.path), manifest.model_dump_json(indent=2) + "\n")
    return len(gone)


def _lines(path: Path, people: set[str] | None) -> Iterator[tuple[Judgment, bytes]]:
    """Yield judgments with their lines; with `people` only lines in which one of these names stands."""
    wanted = None if people is None else [json.dumps(name, ensure_ascii=False).encode() for name in people]
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if wanted is None or any(name in line for name in wanted):
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
