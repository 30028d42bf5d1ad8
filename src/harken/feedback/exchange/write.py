"""Entries -> a file in another format, after saying what the format loses.

`plan` looks at everything once and returns the losses; `write` writes. Both group the judgments of the same completions
where a format has one row for them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from harken.artifacts import Manifest, manifest_path, sha256_file, write_text
from harken.errors import DataError, UsageError
from harken.feedback.exchange import (
    arena,
    argilla,
    helpsteer,
    hh_rlhf,
    label_studio_write,
    llmfao,
    oasst,
    prism,
    table,
    trl,
)
from harken.feedback.exchange.derive import demonstrations_of, num_repeated, pairs_of
from harken.feedback.exchange.entry import BadRow, Entry, Row
from harken.feedback.exchange.facts import ANSWERS, Fact, answer_fact, facts_of
from harken.feedback.exchange.files import write_rows
from harken.records import Completion, Judgment, Record

Target = Literal[
    "hh-rlhf",
    "trl-preference",
    "trl-implicit",
    "trl-unpaired",
    "trl-prompts",
    "trl-completions",
    "trl-messages",
    "trl-text",
    "trl-steps",
    "openrlhf",
    "oasst",
    "label-studio",
    "argilla",
    "arena",
    "helpsteer",
    "llmfao",
    "prism",
    "csv",
    "harken-pairs",
    "harken-demonstrations",
    "harken-prompts",
]
TARGETS: tuple[Target, ...] = get_args(Target)
Ties = Literal["drop", "both-ways"]
_DERIVED = frozenset({Fact.rankings, Fact.many})
MAKES_PAIRS: frozenset[Target] = frozenset({"hh-rlhf", "trl-preference", "trl-implicit", "openrlhf", "harken-pairs"})
MIXES_JUDGES: frozenset[Target] = MAKES_PAIRS | frozenset[Target](
    {"trl-unpaired", "oasst", "argilla", "helpsteer", "llmfao", "prism"}
)
"""Formats from which a model's judgment comes back as a person's, or nobody's."""
_MAKES_DEMONSTRATIONS: frozenset[Target] = frozenset(
    {"trl-completions", "trl-messages", "trl-text", "harken-demonstrations"}
)


_FORMS: Mapping[Target, trl.Form] = {
    "trl-preference": "preference",
    "openrlhf": "preference",
    "trl-implicit": "implicit",
    "trl-unpaired": "unpaired",
    "trl-prompts": "prompts",
    "trl-completions": "completions",
    "trl-messages": "messages",
    "trl-text": "text",
    "trl-steps": "steps",
}
"""Formats that are TRL's, or hold the same -> its form."""
_MARGINS: frozenset[Target] = frozenset({"trl-preference", "trl-implicit"})
_OWN: frozenset[Target] = frozenset({"harken-pairs", "harken-demonstrations", "harken-prompts"})
_TABLES: Mapping[Target, Sequence[str]] = {"csv": table.COLUMNS, "llmfao": llmfao.COLUMNS}
"""Formats that are tables -> their columns."""
_GROUPED: frozenset[Target] = frozenset({"oasst", "label-studio", "argilla", "helpsteer", "prism"})
"""Formats of which one row holds several judgments."""
_KEEPS: Mapping[Target, frozenset[Fact]] = {
    **{target: trl.KEEPS[form] for target, form in _FORMS.items()},
    "harken-pairs": trl.KEEPS["preference"] | {Fact.splits, Fact.soft},
    "harken-demonstrations": trl.KEEPS["completions"],
    "harken-prompts": trl.KEEPS["prompts"],
    "hh-rlhf": hh_rlhf.KEEPS,
    "oasst": oasst.KEEPS,
    "label-studio": label_studio_write.KEEPS,
    "argilla": argilla.KEEPS,
    "arena": arena.KEEPS,
    "helpsteer": helpsteer.KEEPS,
    "llmfao": llmfao.KEEPS,
    "prism": prism.KEEPS,
    "csv": table.KEEPS,
}


@dataclass(frozen=True)
class Style:
    """How to write."""

    texts: bool = False
    """TRL: texts instead of lists of messages."""
    ties: Ties = "drop"
    """Formats without ties: leave them out, or write each as two pairs, one in either direction."""


@dataclass
class Plan:
    """What a format will lose, as sentences, and what was counted."""

    losses: list[str] = field(default_factory=list[str])
    num_rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Reason -> judgments that cannot be written."""


def keeps(target: Target) -> frozenset[Fact]:
    """Return the facts that come back when a file of the format is read."""
    return _KEEPS[target]


def plan(entries: Iterable[Entry], target: Target, style: Style) -> Plan:
    """Find out what writing would lose, and write nothing."""
    found = Plan()
    kept = keeps(target)
    lost: Counter[Fact] = Counter()
    for entry in entries:
        lost.update(facts_of(entry) - kept)
    for fact, count in sorted(lost.items()):
        found.losses.append(_loss(fact, count, target, style))
    margins = _margins(_rows(entries, target, style, found.left_out, _writer(target)))
    found.num_rows = margins.num_with + margins.num_without
    if target in _MARGINS and margins.is_partial:
        found.losses.append(
            f"{Fact.strengths.value} ({margins.num_with}) is not kept: {margins.num_without} pairs do not say it, and "
            "trainers need a margin in all rows or in none"
        )
    found.losses += [f"{count} judgments cannot be written: {why}" for why, count in found.left_out.items()]
    return found


@dataclass
class _Margins:
    """How many rows say a margin. TRL's trainer for reward models stops at a row that lacks what others have."""

    num_with: int = 0
    num_without: int = 0

    @property
    def is_partial(self) -> bool:
        return self.num_with > 0 and self.num_without > 0


def _margins(rows: Iterable[Row]) -> _Margins:
    found = _Margins()
    for row in rows:
        if "margin" in row:
            found.num_with += 1
        else:
            found.num_without += 1
    return found


def _loss(fact: Fact, count: int, target: Target, style: Style) -> str:
    if fact in _DERIVED and target in MAKES_PAIRS:
        return f"{fact.value} ({count}) are written as all their pairs"
    if fact is Fact.ties and target in MAKES_PAIRS and style.ties == "both-ways":
        return f"{fact.value} ({count}) are written as two pairs, one in either direction"
    if fact in (Fact.wins, Fact.both_bad) and target == "trl-unpaired":
        return f"{fact.value} ({count}): each completion becomes a row of its own, wanted or not"
    if fact in (Fact.wins, Fact.rankings, Fact.corrections, Fact.many) and target in _MAKES_DEMONSTRATIONS:
        return f"{fact.value} ({count}): only the best completion or corrected text is written"
    if target in ("trl-prompts", "harken-prompts") and fact in ANSWERS:
        return f"{fact.value} ({count}): only prompts are written"
    if fact in ANSWERS:
        return f"{fact.value} ({count}) are left out"
    return f"{fact.value} (in {count} entries) is not kept"


def write(entries: Iterable[Entry], path: Path, target: Target, style: Style, info: Mapping[str, Any]) -> Plan:
    """Write a file with its manifest; what was left out is in the returned plan.

    Raises:
        UsageError: a name that says another kind of file.
        DataError: another export's file is in the way.
    """
    check_name(path, target)
    found = Plan()
    writer = _writer(target, entries)
    rows = _rows(entries, target, style, found.left_out, writer)
    if target in _MARGINS and _margins(_rows(entries, target, style, Counter(), None)).is_partial:
        rows = ({key: value for key, value in row.items() if key != "margin"} for row in rows)
    found.num_rows = write_rows(path, rows, _TABLES.get(target, ()))
    for other, content in (writer.beside(path) if writer else {}).items():
        write_text(other, content)
    files = {one.name: sha256_file(one) for one in (path, *(writer.beside(path) if writer else ()))}
    manifest = Manifest(kind=target.removeprefix("harken-"), files=files, num_records=found.num_rows, info=dict(info))
    write_text(manifest_path(path), manifest.model_dump_json(indent=2) + "\n")
    return found


def suffixes(target: Target) -> tuple[str, ...]:
    """Return how names of files of a format may end; `.json` is one list, `.jsonl` has a row a line."""
    if target in _TABLES:
        return (".csv", ".parquet")
    # Label Studio reads lists, and has texts and lists of them in one place, which no column of Parquet holds.
    return (".json",) if target == "label-studio" else (".jsonl", ".json", ".parquet")


def check_name(path: Path, target: Target) -> None:
    """Find out before the work whether a file can be written under a name, so that it is read again as what it is.

    Raises:
        UsageError: the name says another kind of file.
        DataError: another export's file is in the way.
    """
    if path.suffix not in suffixes(target):
        raise UsageError(f"--out {path}: {target} is written as {' or '.join(suffixes(target))}; give such a name")
    texts = path.with_name(llmfao.TEXTS)
    if target == "llmfao" and texts.exists() and not manifest_path(path).exists():
        raise DataError(f"{texts}: is there already, and the texts of {path.name} need its name; choose another folder")


class _Writer(Protocol):
    """A format whose rows depend on those before them, or that needs other files beside."""

    def rows(self, entry: Entry) -> list[Row]: ...

    def beside(self, path: Path) -> dict[Path, str]: ...


def _writer(target: Target, entries: Iterable[Entry] = ()) -> _Writer | None:
    match target:
        case "label-studio":
            shown = (len(one.shown) for entry in entries for one in entry.judgments)
            return label_studio_write.Written(max(shown, default=0))
        case "llmfao":
            return llmfao.Written()
        case _:
            return None


def _rows(
    entries: Iterable[Entry], target: Target, style: Style, left_out: Counter[str], writer: _Writer | None
) -> Iterator[Row]:
    """Yield the rows of a format; judgments that cannot be written are counted by reason."""
    seen: set[str] = set()
    for entry in _parts(entries, target, left_out):
        if target in ("trl-prompts", "harken-prompts"):
            if entry.prompt.id in seen:
                continue
            seen.add(entry.prompt.id)
        if target == "harken-demonstrations" and (again := num_repeated(entry)):
            left_out["another says the same of the same prompt"] += again
        for one in [entry] if target in _GROUPED | _OWN else _single(entry):
            try:
                rows = _row(one, target, style, writer)
                if style.ties == "both-ways" and target in MAKES_PAIRS:
                    rows += [row for tie in _tied(one) for row in _row(tie, target, style, writer)]
            except BadRow as problem:
                left_out[str(problem)] += 1
            else:
                yield from rows


def _single(entry: Entry) -> Iterator[Entry]:
    """Yield an entry for each judgment, so that one which cannot be written takes no other with it."""
    if len(entry.judgments) < 2:
        yield entry
        return
    by_id = {one.id: one for one in entry.completions}
    for judgment in entry.judgments:
        shown = tuple(by_id[name] for name in judgment.shown)
        yield Entry(entry.row, entry.prompt, shown, (judgment,), entry.split, entry.pair)


def _parts(entries: Iterable[Entry], target: Target, left_out: Counter[str]) -> Iterator[Entry]:
    """Yield the entries, joined where a format has one row for several judgments."""
    if target not in _GROUPED:
        yield from entries
        return
    for entry in grouped(entries, by_prompt=target == "prism"):
        yield _writable(entry, target, left_out)


def _writable(entry: Entry, target: Target, left_out: Counter[str]) -> Entry:
    """Return the entry with only the judgments that a format with one row for several can hold."""
    kept = keeps(target)
    good: list[Judgment] = []
    for judgment in entry.judgments:
        if not answer_fact(judgment) <= kept:
            continue
        alone = Entry(entry.row, entry.prompt, entry.completions, (judgment,))
        try:
            _row(alone, target, Style(), _writer(target))
        except BadRow as problem:
            left_out[str(problem)] += 1
        else:
            good.append(judgment)
    return Entry(entry.row, entry.prompt, entry.completions, tuple(good), entry.split)


def _tied(entry: Entry) -> Iterator[Entry]:
    """Yield a tie as two wins."""
    for judgment in entry.judgments:
        answer = judgment.answer
        if answer.type == "comparison" and answer.outcome == "tie" and len(judgment.shown) == 2:
            for name in judgment.shown:
                won = answer.model_copy(update={"outcome": "win", "winner": name, "strength": 0})
                yield Entry(entry.row, entry.prompt, entry.completions, (judgment.model_copy(update={"answer": won}),))


def _row(entry: Entry, target: Target, style: Style, writer: _Writer | None) -> list[Row]:
    if writer is not None:
        return writer.rows(entry)
    match target:
        case "hh-rlhf":
            return hh_rlhf.write(entry)
        case "oasst":
            return oasst.write(entry)
        case "argilla":
            return argilla.write(entry)
        case "arena":
            return arena.write(entry)
        case "helpsteer":
            return helpsteer.write(entry)
        case "prism":
            return prism.write(entry)
        case "csv":
            return table.write(entry)
        case "harken-pairs":
            return [_record(pair) for pair in pairs_of(entry)]
        case "harken-demonstrations":
            return [_record(item) for item in demonstrations_of(entry)]
        case "harken-prompts":
            return [_record(entry.prompt)]
        case _:
            return trl.write(entry, _FORMS[target], texts=style.texts)


def _record(record: Record) -> Row:
    return record.model_dump(mode="json", exclude_none=True)


def grouped(entries: Iterable[Entry], *, by_prompt: bool = False) -> Iterator[Entry]:
    """Join the judgments of a prompt, or else of the same completions of it, in the order of their first."""
    found: dict[tuple[str, frozenset[str]], tuple[Entry, dict[str, Completion], list[Judgment]]] = {}
    for entry in entries:
        for judgment in entry.judgments or (None,):
            names = frozenset(judgment.shown if judgment else (one.id for one in entry.completions))
            key = (entry.prompt.id, frozenset[str]() if by_prompt else names)
            _, own, judgments = found.setdefault(key, (entry, {}, []))
            own |= {one.id: one for one in entry.completions if one.id in names}
            if judgment:
                judgments.append(judgment)
    for entry, own, judgments in found.values():
        yield Entry(entry.row, entry.prompt, tuple(own.values()), tuple(judgments), entry.split)
