"""Entries -> a file in another format, after saying what the format loses.

`plan` looks at everything once and returns the losses; `write` writes. Both group the judgments of the same completions
where a format has one row for them.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from harken.artifacts import Manifest, atomic_file, manifest_path, sha256_file, write_records, write_text
from harken.feedback.exchange import arena, argilla, helpsteer, hh_rlhf, oasst, table, trl
from harken.feedback.exchange.derive import demonstrations_of, pairs_of
from harken.feedback.exchange.entry import BadRow, Entry, Row
from harken.feedback.exchange.facts import ANSWERS, Fact, answer_fact, facts_of
from harken.feedback.exchange.label_studio_config import config_path
from harken.feedback.exchange.label_studio_write import KEEPS as LABEL_STUDIO_KEEPS
from harken.feedback.exchange.label_studio_write import Written
from harken.feedback.exchange.optional import write_parquet
from harken.records import Completion, Demonstration, Judgment, PreferencePair, Prompt

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
    "csv",
    "harken-pairs",
    "harken-demonstrations",
    "harken-prompts",
]
TARGETS: tuple[Target, ...] = get_args(Target)
Ties = Literal["drop", "both-ways"]
_DERIVED = frozenset({Fact.rankings, Fact.many})
MAKES_PAIRS: frozenset[Target] = frozenset({"hh-rlhf", "trl-preference", "trl-implicit", "openrlhf", "harken-pairs"})
_MAKES_DEMONSTRATIONS: frozenset[Target] = frozenset(
    {"trl-completions", "trl-messages", "trl-text", "harken-demonstrations"}
)


_FORMS: Mapping[Target, trl.Form] = {
    "trl-preference": "preference",
    "openrlhf": "preference",
    "trl-implicit": "implicit",
    "trl-unpaired": "unpaired",
    "trl-prompts": "prompts",
    "harken-prompts": "prompts",
    "trl-completions": "completions",
    "harken-demonstrations": "completions",
    "trl-messages": "messages",
    "trl-text": "text",
    "trl-steps": "steps",
}
"""Formats that are TRL's, or hold the same -> its form."""
_KEEPS: Mapping[Target, frozenset[Fact]] = {
    **{target: trl.KEEPS[form] for target, form in _FORMS.items()},
    "harken-pairs": trl.KEEPS["preference"] | {Fact.splits, Fact.soft},
    "hh-rlhf": hh_rlhf.KEEPS,
    "oasst": oasst.KEEPS,
    "label-studio": LABEL_STUDIO_KEEPS,
    "argilla": argilla.KEEPS,
    "arena": arena.KEEPS,
    "helpsteer": helpsteer.KEEPS,
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
    for row in _rows(entries, target, style, found.left_out):
        del row
        found.num_rows += 1
    found.losses += [f"{count} judgments cannot be written: {why}" for why, count in found.left_out.items()]
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
    """Write a file with its manifest; what was left out is in the returned plan."""
    found = Plan()
    if target in ("harken-pairs", "harken-demonstrations", "harken-prompts"):
        records = list(_own_records(entries, target))
        found.num_rows = len(records)
        write_records(path, records, kind=target.removeprefix("harken-"), info=info)
        return found
    written = Written()
    rows = _rows(entries, target, style, found.left_out, written)
    if path.suffix == ".parquet":
        found.num_rows = write_parquet(path, rows)
    else:
        found.num_rows = _write_text(path, rows, target)
    files = {path.name: sha256_file(path)}
    if target == "label-studio":
        write_text(config_path(path), written.config())
        files[config_path(path).name] = sha256_file(config_path(path))
    manifest = Manifest(kind=target, files=files, num_records=found.num_rows, info=dict(info))
    write_text(manifest_path(path), manifest.model_dump_json(indent=2) + "\n")
    return found


def _write_text(path: Path, rows: Iterable[Row], target: Target) -> int:
    count = 0
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        if target == "csv":
            cells = csv.DictWriter(text, table.COLUMNS)
            cells.writeheader()
            for row in rows:
                cells.writerow(row)
                count += 1
        else:
            # Label Studio reads a list, all others read lines; both are read as lines here.
            is_list = target == "label-studio"
            text.write("[" if is_list else "")
            for row in rows:
                text.write(",\n" if is_list and count else "")
                text.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + ("" if is_list else "\n"))
                count += 1
            text.write("]\n" if is_list else "")
        text.detach()
    return count


def _own_records(entries: Iterable[Entry], target: Target) -> Iterator[PreferencePair | Demonstration | Prompt]:
    seen: set[str] = set()
    for entry in entries:
        match target:
            case "harken-pairs":
                yield from pairs_of(entry)
            case "harken-demonstrations":
                yield from demonstrations_of(entry)
            case _:
                if entry.prompt.id not in seen:
                    seen.add(entry.prompt.id)
                    yield entry.prompt


def _rows(
    entries: Iterable[Entry], target: Target, style: Style, left_out: Counter[str], written: Written | None = None
) -> Iterator[Row]:
    """Yield the rows of a format; judgments that cannot be written are counted by reason."""
    own = written or Written()
    kept = keeps(target)
    is_by_row = target not in ("oasst", "label-studio", "argilla", "helpsteer")
    seen: set[str] = set()
    for entry in entries if is_by_row else grouped(entries):
        if target in ("trl-prompts", "harken-prompts"):
            if entry.prompt.id in seen:
                continue
            seen.add(entry.prompt.id)
        for one in _single(entry) if is_by_row else [_writable(entry, target, kept, left_out)]:
            try:
                rows = _row(one, target, style, own)
                if style.ties == "both-ways" and target in MAKES_PAIRS:
                    rows += [row for tie in _tied(one) for row in _row(tie, target, style, own)]
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


def _writable(entry: Entry, target: Target, kept: frozenset[Fact], left_out: Counter[str]) -> Entry:
    """Return the entry with only the judgments that a format with one row for several can hold."""
    good: list[Judgment] = []
    for judgment in entry.judgments:
        if not answer_fact(judgment) <= kept:
            continue
        alone = Entry(entry.row, entry.prompt, entry.completions, (judgment,))
        try:
            _row(alone, target, Style(), Written())
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


def _row(entry: Entry, target: Target, style: Style, own: Written) -> list[Row]:
    match target:
        case "hh-rlhf":
            return hh_rlhf.write(entry)
        case "oasst":
            return oasst.write(entry)
        case "label-studio":
            return own.rows(entry)
        case "argilla":
            return argilla.write(entry)
        case "arena":
            return arena.write(entry)
        case "helpsteer":
            return helpsteer.write(entry)
        case "csv":
            return table.write(entry)
        case "harken-pairs":
            return [{} for _ in pairs_of(entry)]
        case _:
            return trl.write(entry, _FORMS[target], texts=style.texts)


def grouped(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Join the judgments of the same completions of a prompt, in the order of their first."""
    found: dict[tuple[str, frozenset[str]], tuple[Entry, dict[str, Completion], list[Judgment]]] = {}
    for entry in entries:
        for judgment in entry.judgments or (None,):
            names = frozenset(judgment.shown if judgment else (one.id for one in entry.completions))
            own = {one.id: one for one in entry.completions if one.id in names}
            _, _, judgments = found.setdefault((entry.prompt.id, names), (entry, own, []))
            if judgment:
                judgments.append(judgment)
    for entry, own, judgments in found.values():
        yield Entry(entry.row, entry.prompt, tuple(own.values()), tuple(judgments), entry.split)
