"""What an importer hands over: records, where they came from, and what to know about them."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from harken.records import Completion, Judgment, Prompt

LICENSE_NOTE = "license: "
"""Begins the note by which an import carries its license."""


@dataclass(frozen=True)
class ImportSource:
    """Where records came from; the store keeps it and exports name it as a parent."""

    format: str
    name: str
    """Name of the file or folder, without the path to it."""
    sha256: str
    """Of the file, or of the listing of all files read."""
    notes: tuple[str, ...] = ()

    def with_notes(self, *notes: str) -> Self:
        """Return the same source with more to know about it."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class Imported:
    """Records of one import, in the order of their file; a big file may be read anew each time."""

    prompts: Collection[Prompt]
    completions: Collection[Completion]
    judgments: Collection[Judgment]
    source: ImportSource

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd or is missing in the data, one sentence each."""
        return self.source.notes
