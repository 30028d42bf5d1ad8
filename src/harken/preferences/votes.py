"""Judgments -> votes: who preferred which of two completions, as arrays in a canonical order."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from harken.preferences.numeric import Floats, Ints
from harken.records import Abstention, Comparison, Judgment, RankingAnswer

BothBad = Literal["tie", "drop"]

_Vote = tuple[str, str, int]
"""Two completion ids in the order shown, and 1 (the one is better), 0 (tie) or -1 (the other)."""


@dataclass(frozen=True)
class Votes:
    """V votes on pairs of K completions by J judges.

    A vote is on completions `first` < `second`, which are indices into the sorted ids: the order is that of the ids,
    whatever order was shown, so the side on which something stood changes no statistic but those about sides.
    """

    items: tuple[str, ...]
    """(K,) completion ids, sorted."""
    judges: tuple[str, ...]
    """(J,) pseudonyms, sorted."""
    judgment_ids: tuple[str, ...]
    """One a judgment, sorted; a ranking gives several votes."""
    prompt_of: tuple[str, ...]
    """(K,) id of the prompt of the judgments that an item is in."""
    first: Ints
    second: Ints
    outcome: Ints
    """(V,) 1 where first won, 0 for a tie, -1 where second won."""
    side: Ints
    """(V,) 1 where first was shown before second, else -1."""
    strength: Ints
    """(V,) 0 to 3, or -1 where none was given."""
    judge: Ints
    judgment: Ints
    weight: Floats
    """(V,) 1, or 1 / (number of votes of the same judgment) where one judgment gives several."""
    counts: dict[str, int]
    """How many judgments of each kind there were, counted and not counted."""

    def __len__(self) -> int:
        return len(self.first)

    def pairs(self) -> tuple[Ints, Ints, Ints]:
        """Return (first (N,), second (N,), pair (V,)): the N pairs voted on, and which of them each vote is on."""
        keys, pair = np.unique(self.first * len(self.items) + self.second, return_inverse=True)
        num_items = max(1, len(self.items))
        return keys // num_items, keys % num_items, pair.astype(np.int64)


def counting(judgments: Iterable[Judgment]) -> list[Judgment]:
    """Return the judgments that none supersedes, sorted by id, so that the order of the input is gone."""
    found = list(judgments)
    superseded = {judgment.supersedes for judgment in found if judgment.supersedes is not None}
    return sorted((judgment for judgment in found if judgment.id not in superseded), key=lambda item: item.id)


def read_votes(judgments: Iterable[Judgment], *, both_bad: BothBad = "tie", rankings: bool = True) -> Votes:
    """Collect the votes of comparisons and rankings; superseded judgments and other kinds of answer do not count.

    `unsure`, `skip` and abstentions are no votes, but counted. A win among more than two completions is a vote against
    each of the others. A ranking of k completions is a vote on each of its k (k - 1) / 2 pairs; equal ranks are ties.
    The votes of one judgment share its weight.

    Args:
        judgments: in any order; read once.
        both_bad: whether "both bad" is a tie (neither is preferred) or no vote. It is counted either way.
        rankings: False to leave rankings out.
    """
    superseded: set[str] = set()
    rows: list[tuple[str, str, str, int, list[_Vote]]] = []
    counts: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    for judgment in judgments:
        if judgment.supersedes is not None:
            superseded.add(judgment.supersedes)
        answer = judgment.answer
        match answer:
            case Comparison():
                kinds[judgment.id] = answer.outcome
                votes = list(_of_comparison(judgment.shown, answer, both_bad))
                strength = -1 if answer.strength is None else answer.strength
            case RankingAnswer() if rankings:
                kinds[judgment.id] = "ranking"
                votes = list(_of_ranking(judgment.shown, answer))
                strength = -1
            case Abstention():
                kinds[judgment.id] = "abstention"
                continue
            case _:
                continue
        if votes:
            rows.append((judgment.id, judgment.judge.id, judgment.prompt_id, strength, votes))
    for name, kind in kinds.items():
        counts["superseded" if name in superseded else kind] += 1
    return _arrays(sorted(row for row in rows if row[0] not in superseded), dict(sorted(counts.items())))


def _of_comparison(shown: tuple[str, ...], answer: Comparison, both_bad: BothBad) -> Iterator[_Vote]:
    if answer.outcome == "win":
        for position, other in enumerate(shown):
            if other == answer.winner:
                continue
            won_before = answer.winner in shown[:position]
            yield (str(answer.winner), other, 1) if won_before else (other, str(answer.winner), -1)
    elif answer.outcome == "tie" or (answer.outcome == "both_bad" and both_bad == "tie"):
        yield from ((one, other, 0) for one, other in combinations(shown, 2))


def _of_ranking(shown: tuple[str, ...], answer: RankingAnswer) -> Iterator[_Vote]:
    ranked = [name for name in shown if name in answer.ranks]
    for one, other in combinations(ranked, 2):
        difference = answer.ranks[other] - answer.ranks[one]
        yield one, other, (difference > 0) - (difference < 0)


def _arrays(rows: list[tuple[str, str, str, int, list[_Vote]]], counts: dict[str, int]) -> Votes:
    items = sorted({name for row in rows for vote in row[4] for name in vote[:2]})
    judges = sorted({row[1] for row in rows})
    item_index = {name: index for index, name in enumerate(items)}
    judge_index = {name: index for index, name in enumerate(judges)}
    prompt_of = [""] * len(items)
    columns: list[tuple[int, int, int, int, int, int, int]] = []
    sizes = np.array([len(row[4]) for row in rows], dtype=np.int64)
    for number, (_, judge, prompt, strength, votes) in enumerate(rows):
        for one, other, outcome in votes:
            left, right = item_index[one], item_index[other]
            prompt_of[left] = prompt_of[right] = prompt
            side = 1 if left < right else -1
            first, second = (left, right) if left < right else (right, left)
            columns.append((first, second, outcome * side, side, strength, judge_index[judge], number))
    table = np.array(columns, dtype=np.int64).reshape(-1, 7).T.copy()
    return Votes(
        items=tuple(items),
        judges=tuple(judges),
        judgment_ids=tuple(row[0] for row in rows),
        prompt_of=tuple(prompt_of),
        first=table[0],
        second=table[1],
        outcome=table[2],
        side=table[3],
        strength=table[4],
        judge=table[5],
        judgment=table[6],
        weight=1 / np.repeat(sizes, sizes).astype(np.float64),
        counts=counts,
    )
