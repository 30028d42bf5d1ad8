"""What a file holds and what is wrong with it: counts, duplicates, length bias, leaks between splits, examples."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harken.estimates import share
from harken.feedback.exchange.derive import demonstrations_of, pairs_of
from harken.feedback.exchange.entry import Entry, Refusal
from harken.feedback.exchange.read import Data
from harken.records import Comparison, Prompt

SHOWN_ROWS = 1000
"""Row numbers kept of each problem; their number is always whole."""
EXAMPLES = 3

Render = Callable[[Prompt, str], str]
"""(prompt, trained text) -> the text as training sees it, the trained part marked."""


@dataclass
class Problem:
    """Rows with the same problem."""

    count: int = 0
    rows: list[int] = field(default_factory=list[int])
    example: str = ""

    def add(self, row: int, example: str = "") -> None:
        """Count a row."""
        self.count += 1
        self.example = self.example or example
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(row)


@dataclass
class Checked:
    """What was found in one file."""

    num_entries: int = 0
    answers: Counter[str] = field(default_factory=Counter[str])
    judges: set[str] = field(default_factory=set[str])
    num_pairs: int = 0
    num_demonstrations: int = 0
    num_longer: int = 0
    num_shorter: int = 0
    splits: Counter[str] = field(default_factory=Counter[str])
    refused: dict[str, Problem] = field(default_factory=dict[str, Problem])
    """Cause -> rows that cannot be used."""
    odd: dict[str, Problem] = field(default_factory=dict[str, Problem])
    """What -> rows that can be used, but should be looked at."""
    completions: set[bytes] = field(default_factory=set[bytes])
    prompts: dict[bytes, set[str]] = field(default_factory=dict[bytes, set[str]])
    """Digest of a normalized prompt -> splits in which it occurs."""
    examples: list[Entry] = field(default_factory=list[Entry])

    @property
    def num_refused(self) -> int:
        """Rows that cannot be used."""
        return sum(problem.count for problem in self.refused.values())


def check(entries: Iterable[Entry | Refusal]) -> Checked:
    """Go through a file once and count."""
    found = Checked()
    seen: set[bytes] = set()
    for item in entries:
        if isinstance(item, Refusal):
            found.refused.setdefault(item.cause, Problem()).add(item.row, item.message)
            continue
        found.num_entries += 1
        _count(item, found)
        digest = _digest(_content(item))
        if digest in seen:
            found.odd.setdefault("duplicates of an earlier row", Problem()).add(item.row)
        seen.add(digest)
        is_new = all(item.prompt.id != one.prompt.id for one in found.examples)
        if len(found.examples) < EXAMPLES and is_new and item.judgments:
            found.examples.append(item)
    return found


def _count(entry: Entry, found: Checked) -> None:
    prompt = _digest("\n".join(_normalized(one.content) for one in entry.prompt.messages))
    found.prompts.setdefault(prompt, set()).add(entry.split or "")
    found.completions.update(_digest(one.id) for one in entry.completions)
    if entry.split:
        found.splits[entry.split] += 1
    for judgment in entry.judgments:
        answer = judgment.answer
        kind = f"comparison: {answer.outcome}" if isinstance(answer, Comparison) else answer.type
        found.answers[kind] += 1
        found.judges.add(judgment.judge.id)
    if empty := [one for one in entry.completions if not one.message.content.strip()]:
        _count_empty(entry, {one.id for one in empty}, found)
    if any("\n\nHuman:" in f"\n\n{one.content}" for one in entry.prompt.messages):
        found.odd.setdefault("a whole transcript in one message of the prompt", Problem()).add(entry.row)
    for pair in pairs_of(entry):
        found.num_pairs += 1
        sizes = len(pair.chosen.content), len(pair.rejected.content)
        found.num_longer += sizes[0] > sizes[1]
        found.num_shorter += sizes[0] < sizes[1]
    found.num_demonstrations += sum(1 for _ in demonstrations_of(entry))


def _count_empty(entry: Entry, empty: set[str], found: Checked) -> None:
    found.odd.setdefault("an empty completion", Problem()).add(entry.row)
    winners = {answer.winner for answer in (one.answer for one in entry.judgments) if isinstance(answer, Comparison)}
    if winners & empty:
        found.refused.setdefault("empty", Problem()).add(entry.row, "the chosen completion is empty")


def _content(entry: Entry) -> str:
    texts = sorted(one.message.content for one in entry.completions)
    by_id = {one.id: one.message.content for one in entry.completions}
    said = [
        (judgment.judge.id, judgment.answer.model_dump_json(), [by_id[name] for name in judgment.shown])
        for judgment in entry.judgments
    ]
    return repr((entry.prompt.id, texts, said))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def leaks(files: Sequence[tuple[str, Checked]]) -> list[str]:
    """Return one sentence for each split, or file, whose prompts occur in another, too."""
    found: list[str] = []
    for name, checked in files:
        both = sum({"train", "heldout"} <= splits for splits in checked.prompts.values())
        if both:
            found.append(f"{name}: {both} prompts are in the training split and in the held-out one")
    for place, (name, checked) in enumerate(files):
        for other, compared in files[place + 1 :]:
            both = len(checked.prompts.keys() & compared.prompts.keys())
            if both:
                share = both / max(1, len(compared.prompts))
                found.append(f"{both} prompts of {other} ({share:.1%}) are also in {name}")
    return found


def summary(data: Data, checked: Checked) -> dict[str, Any]:
    """Return what was found as JSON holds it."""
    return {
        "file": str(data.reading.path),
        "format": data.format,
        "num_entries": checked.num_entries,
        "num_prompts": len(checked.prompts),
        "num_completions": len(checked.completions),
        "num_judgments": checked.answers.total(),
        "num_judges": len(checked.judges),
        "judgments": dict(sorted(checked.answers.items())),
        "num_pairs": checked.num_pairs,
        "num_demonstrations": checked.num_demonstrations,
        "splits": dict(checked.splits),
        "chosen_is_longer": share(checked.num_longer, checked.num_longer + checked.num_shorter),
        "refused": {cause: vars(problem) for cause, problem in checked.refused.items()},
        "odd": {what: vars(problem) for what, problem in checked.odd.items()},
        "notes": list(data.reading.noted()),
        "examples": [entry.row for entry in checked.examples],
    }


def example(entry: Entry, render: Render) -> list[str]:
    """Return an entry as lines to read: each text that training would raise or lower, with its mark."""
    lines: list[str] = []
    for pair in list(pairs_of(entry))[:1]:
        lines += ["chosen:", render(entry.prompt, pair.chosen.content)]
        lines += ["rejected:", render(entry.prompt, pair.rejected.content)]
    if not lines:
        for item in list(demonstrations_of(entry))[:1]:
            lines += ["demonstration:", render(entry.prompt, item.completion.content)]
    if not lines:
        texts = {one.id: one.message.content for one in entry.completions}
        judgment = entry.judgments[0]
        answer = judgment.answer.model_dump_json(exclude_none=True)
        for place, name in enumerate(judgment.shown, start=1):
            answer = answer.replace(name, f"#{place}")
            lines += [f"#{place}:", render(entry.prompt, texts[name])]
        lines.append(f"judged: {answer}")
    return lines


def plain_render(prompt: Prompt, text: str) -> str:
    """Show the messages and mark the trained text."""
    said = [f"{one.role}: {one.content}" for one in prompt.messages]
    if prompt.messages[-1].role == "assistant":
        said[-1] += mark(text)
    else:
        said.append(f"assistant: {mark(text)}")
    return visible("\n".join(said))


def visible(text: str) -> str:
    """Return a text that can be shown in a terminal, indented: signs that would steer it are shown by their number."""
    shown = "".join(
        sign if sign == "\n" or unicodedata.category(sign) not in ("Cc", "Cf", "Co", "Cs") else f"<U+{ord(sign):04X}>"
        for sign in text
    )
    return "\n".join(f"  {line}" for line in shown.split("\n"))


def mark(text: str) -> str:
    """Mark the part of a text that is trained."""
    return f"\u27e6{text}\u27e7"
