"""Judgments -> preference pairs: votes resolved, and ratings by mean, in random pairs or in groups all with all."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from harken.artifacts import iterate_records, verify
from harken.config.preferences import PreferencesConfig
from harken.errors import DataError
from harken.preferences.machines import ByKind
from harken.preferences.resolve import rated_completions
from harken.preferences.split import assign_splits, normalized_text
from harken.preferences.vote_pairs import pairs_from_votes
from harken.records import (
    Completion,
    Judgment,
    PreferencePair,
    Prompt,
    RatedCompletion,
    Split,
    content_id,
)

_MATCHING_PASSES = 8
"""How often completions that found no partner are shuffled again; the rest stays single."""

_KIND = re.compile(rb'"answer"\s*:\s*\{\s*"type"\s*:\s*"(\w+)"')
"""Where a judgment says what kind of answer it is; quotes inside a text are escaped, so no text looks like it."""

_Pair = tuple[RatedCompletion, RatedCompletion]


def preference_share(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Share of rater pairs (one from each side) that rate the chosen side higher, ties as half.

    Source: the Mann-Whitney U statistic over n*m, also called the common-language effect size
    (McGraw and Wong 1992).
    """
    left = np.asarray(chosen, dtype=np.float64)[:, None]
    right = np.asarray(rejected, dtype=np.float64)[None, :]
    return float(0.5 + 0.5 * np.sign(left - right).mean())


def soft_label(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Estimate the probability that a judge prefers the chosen side, never 0 or 1.

    Laplace's rule of succession: (wins + 1) / (n + 2), where n is the number of raters of the side
    with fewer (the rater pairs are not independent, so n * m of them would claim too much) and wins
    = n * share.
    """
    num_raters = min(len(chosen), len(rejected))
    return (num_raters * preference_share(chosen, rejected) + 1) / (num_raters + 2)


def pairs_from_ratings(rated: Iterable[RatedCompletion], config: PreferencesConfig) -> list[PreferencePair]:
    """Draw preference pairs from ratings, training pairs first, each side in a random order.

    Both completions of a pair share prompt and split, differ in text, and differ by at least
    `config.min_difference` in mean rating; the higher mean is chosen. A completion is in at most
    `config.pairs_per_item` pairs, or in one group of `config.group_size` (training pairs only: held-out pairs stay
    independent of each other). The split is decided here, by text (`split_of`). The same config and the same data give
    the same pairs, in whatever order the data comes.
    """
    items = assign_splits(rated, heldout_fraction=config.heldout_fraction, seed=config.seed)
    groups: dict[tuple[Split, str], list[RatedCompletion]] = {}
    for item in sorted(items, key=lambda item: item.completion.id):
        groups.setdefault((item.split, item.prompt.id), []).append(item)
    limits: dict[Split, int | None] = {
        "train": config.max_pairs,
        "heldout": config.max_heldout_pairs,
    }
    pairs: list[PreferencePair] = []
    for split, limit in limits.items():
        drawn: list[list[_Pair]] = []
        for (group_split, prompt_id), members in sorted(groups.items(), key=lambda entry: entry[0]):
            if group_split == split:
                rng = random.Random(f"{config.seed}/{split}/{prompt_id}")
                if split == "train" and config.group_size is not None:
                    drawn += _draw_groups(members, config.group_size, config, rng)
                else:
                    drawn += [[pair] for pair in _draw(members, config, rng)]
        random.Random(f"{config.seed}/{split}").shuffle(drawn)
        made = [_pair(*pair, config, group=_group_id(group)) for group in drawn for pair in group]
        pairs += made[:limit]
    return pairs


def _draw_groups(
    members: Sequence[RatedCompletion], size: int, config: PreferencesConfig, rng: random.Random
) -> list[list[_Pair]]:
    """Return the pairs of each random group of `size` completions, all with all that are far enough apart."""
    order = list(members)
    rng.shuffle(order)
    texts = {item.completion.id: normalized_text(item.completion.message.content) for item in members}
    groups: list[list[_Pair]] = []
    for start in range(0, len(order), size):
        # From high to low, so that the first of two is the chosen one.
        ranked = sorted(order[start : start + size], key=lambda item: -item.mean)
        groups.append(
            [
                (one, other)
                for one, other in combinations(ranked, 2)
                if one.mean - other.mean >= config.min_difference
                and texts[one.completion.id] != texts[other.completion.id]
            ]
        )
    return groups


def _group_id(group: Sequence[_Pair]) -> str:
    """Return the group of pairs that share completions; single pairs of one prompt are a group, too."""
    if len(group) == 1:
        return group[0][0].prompt.id
    return content_id("group", *sorted({item.completion.id for pair in group for item in pair}))


def _draw(members: Sequence[RatedCompletion], config: PreferencesConfig, rng: random.Random) -> list[_Pair]:
    pairs: list[_Pair] = []
    taken: set[frozenset[str]] = set()
    texts = {item.completion.id: normalized_text(item.completion.message.content) for item in members}
    for _ in range(config.pairs_per_item):
        single = list(members)
        for _ in range(_MATCHING_PASSES):
            rng.shuffle(single)
            left: list[RatedCompletion] = single[len(single) // 2 * 2 :]
            for one, other in zip(single[::2], single[1::2], strict=False):
                chosen, rejected = (one, other) if one.mean >= other.mean else (other, one)
                ids = (chosen.completion.id, rejected.completion.id)
                key = frozenset(ids)
                far_enough = chosen.mean - rejected.mean >= config.min_difference
                if far_enough and key not in taken and texts[ids[0]] != texts[ids[1]]:
                    taken.add(key)
                    pairs.append((chosen, rejected))
                else:
                    left += [one, other]
            single = left
    return pairs


def _pair(
    chosen: RatedCompletion, rejected: RatedCompletion, config: PreferencesConfig, *, group: str
) -> PreferencePair:
    difference = chosen.mean - rejected.mean
    weak, clear, strong = config.strength_cuts
    strength = 3 if difference >= strong else 2 if difference >= clear else 1
    return PreferencePair(
        id=content_id("ratings", chosen.completion.id, rejected.completion.id),
        prompt=chosen.prompt,
        chosen=chosen.completion.message,
        rejected=rejected.completion.message,
        strength=strength if difference >= weak else 0,
        soft_label=soft_label(chosen.ratings, rejected.ratings) if config.soft_labels else 1.0,
        group=group,
        split=chosen.split,
        judgment_ids=chosen.judgment_ids + rejected.judgment_ids,
        difference=difference,
    )


@dataclass(frozen=True)
class Resolution:
    """What an export came to."""

    pairs: list[PreferencePair]
    rated: list[RatedCompletion]
    facts: dict[str, Any]
    """JSON-able: how votes were resolved, judgments and pairs by what became of them; empty for ratings only."""
    notes: tuple[str, ...] = ()
    """What a person should know, a line each."""


def preferences_from_export(
    folder: Path, config: PreferencesConfig
) -> tuple[list[PreferencePair], list[RatedCompletion]]:
    """Read a folder that `harken collect export` wrote into pairs and rated completions.

    Raises:
        DataError: as `resolve_export`.
    """
    found = resolve_export(folder, config)
    return found.pairs, found.rated


def resolve_export(folder: Path, config: PreferencesConfig) -> Resolution:
    """Read a folder that `harken collect export` wrote, and make pairs of its comparisons, rankings and ratings.

    Raises:
        DataError: the folder is missing, was changed after it was written, or holds none of the three.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; expected one that `harken collect export` wrote")
    verify(folder)
    prompts = list(iterate_records(folder / "prompts.jsonl", Prompt))
    kinds = _answer_kinds(folder / "judgments.jsonl")
    if not kinds & {"comparison", "ranking", "rating"}:
        found = f"only {', '.join(sorted(kinds))}" if kinds else "no judgments"
        raise DataError(f"{folder}: expected comparisons, rankings or ratings, found {found}")
    items: list[RatedCompletion] = []
    counted = ByKind(config.judges)
    if "rating" in kinds:
        rated = rated_completions(prompts, _completions(folder), counted(_judgments(folder)), axis=config.axis)
        items = assign_splits(rated, heldout_fraction=config.heldout_fraction, seed=config.seed)
    pairs = pairs_from_ratings(items, config)
    if not kinds & {"comparison", "ranking"}:
        return Resolution(pairs, items, {}, (counted.note,) if counted.num_left_out else ())
    by_text = "rating" in kinds  # the split of rated texts is by text, and a text is on one side only
    voted = pairs_from_votes(counted(_judgments(folder)), prompts, _completions(folder), config, by_text=by_text)
    notes = (counted.note, *voted.notes) if counted.num_left_out else voted.notes
    return Resolution(pairs + voted.pairs, items, voted.facts | {"judges": config.judges}, notes)


def _answer_kinds(path: Path) -> set[str]:
    """Return the kinds of answers in a file of judgments, without the cost of checking each record."""
    kinds: set[str] = set()
    try:
        with path.open("rb") as file:
            for line in file:
                # What the records are is checked when they are read; a line that is none has no kind.
                if found := _KIND.search(line):
                    kinds.add(found.group(1).decode())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    return kinds


def _completions(folder: Path) -> Iterator[Completion]:
    return iterate_records(folder / "completions.jsonl", Completion)


def _judgments(folder: Path) -> Iterator[Judgment]:
    return iterate_records(folder / "judgments.jsonl", Judgment)
