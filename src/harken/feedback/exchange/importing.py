"""Entries -> the parts that a store adds, and what to tell people about rows that were refused."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from harken.feedback.exchange.check import Problem
from harken.feedback.exchange.entry import Refusal
from harken.feedback.exchange.read import Data
from harken.feedback.source import ImportSource
from harken.records import Completion, Judgment, Prompt

_PART = 2000
"""Entries added at once."""
_PART_TEXT = 32 << 20
"""Characters of new texts after which a part ends earlier."""
_ROWS_NAMED = 10


@dataclass
class Importing:
    """One import: the parts of a file, each record once, and what was refused on the way."""

    data: Data
    refused: dict[str, Problem] = field(default_factory=dict[str, Problem])
    num_judgments: int = 0
    _known: set[str] = field(default_factory=set[str])

    def parts(
        self, tell: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[list[Prompt], list[Completion], list[Judgment]]]:
        """Yield prompts, completions and judgments of some rows; `tell` is called with the judgments so far."""
        prompts: list[Prompt] = []
        completions: list[Completion] = []
        judgments: list[Judgment] = []
        count = text = 0
        for item in self.data:
            if isinstance(item, Refusal):
                self.refused.setdefault(item.message, Problem()).add(item.row)
                continue
            if item.prompt.id not in self._known:
                self._known.add(item.prompt.id)
                prompts.append(item.prompt)
                text += sum(len(message.content) for message in item.prompt.messages)
            for completion in item.completions:
                if completion.id not in self._known:
                    self._known.add(completion.id)
                    completions.append(completion)
                    text += len(completion.message.content)
            for judgment in item.judgments:
                judgments.append(judgment)
                text += len(judgment.rationale) + len(getattr(judgment.answer, "text", ""))
            count += 1
            self.num_judgments += len(item.judgments)
            if count == _PART or text > _PART_TEXT:
                tell(self.num_judgments)
                yield prompts, completions, judgments
                prompts, completions, judgments, count, text = [], [], [], 0, 0
        if count:
            tell(self.num_judgments)
            yield prompts, completions, judgments

    def notes(self) -> tuple[str, ...]:
        """Return the reader's notes, and one for each reason for which rows were refused."""
        return (*self.data.reading.noted(), *refusal_notes(self.refused))

    def source(self) -> ImportSource:
        """Return what the store keeps about this import."""
        return ImportSource(self.data.format, self.data.reading.path.name, self.data.digest(), self.notes())


def refusal_notes(refused: dict[str, Problem]) -> list[str]:
    """Return one sentence for each reason, with the first row numbers."""
    return [f"{problem.count} rows were left out, {message}: {rows(problem)}" for message, problem in refused.items()]


def rows(problem: Problem) -> str:
    """Return the numbers of a problem's first rows, for people."""
    named = ", ".join(map(str, problem.rows[:_ROWS_NAMED]))
    return f"rows {named}, ..." if problem.count > _ROWS_NAMED else f"row{'s' * (problem.count > 1)} {named}"
