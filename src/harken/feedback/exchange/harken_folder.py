"""Import of a folder that `FeedbackStore.export` wrote."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from harken.artifacts import artifact_digest, iterate_records, manifest_path, verify
from harken.errors import DataError
from harken.feedback.exchange.own import FILES
from harken.feedback.exchange.rows import check_inside
from harken.feedback.source import Imported, ImportSource
from harken.records import Completion, Judgment, Prompt

ModelT = TypeVar("ModelT", bound=BaseModel)


class RecordFile(Collection[ModelT], Generic[ModelT]):
    """The records of a JSON Lines file, read anew each time; 200,000 judgments fill 700 MB."""

    def __init__(self, path: Path, model: type[ModelT]) -> None:
        self._path = path
        self._model = model
        self._length = sum(1 for _ in self)

    def __iter__(self) -> Iterator[ModelT]:
        return iterate_records(self._path, self._model)

    def __len__(self) -> int:
        return self._length

    def __contains__(self, record: object) -> bool:
        return any(record == own for own in self)


def read_harken(path: Path) -> Imported:
    """Read an exported folder (three .jsonl files and a manifest) into records.

    Raises:
        DataError: a file is missing, is not what its manifest says, or holds a bad line
            (file:line).
    """
    if not path.is_dir():
        raise DataError(
            f"{path}: not a folder; expected one that `harken collect export` wrote, with "
            "prompts.jsonl, completions.jsonl and judgments.jsonl"
        )
    for name in FILES:
        check_inside(path, name)
    verify(path)
    notes: tuple[str, ...] = ()
    if not manifest_path(path).exists():
        notes = ("no manifest.json: whether the files were changed could not be checked",)
    return Imported(
        prompts=RecordFile(path / FILES[0], Prompt),
        completions=RecordFile(path / FILES[1], Completion),
        judgments=RecordFile(path / FILES[2], Judgment),
        source=ImportSource("harken", path.resolve().name, artifact_digest(path), notes),
    )
