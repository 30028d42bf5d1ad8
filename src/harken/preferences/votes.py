"""Judgments -> votes: who preferred which of two completions, as arrays in a canonical order."""

from array import array
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
    found = _Found()
    kinds: list[tuple[str, str]] = []
    for judgment in judgments:
        if judgment.supersedes is not None:
            superseded.add(judgment.supersedes)
        answer = judgment.answer
        match answer:
            case Comparison():
                kinds.append((judgment.id, answer.outcome))
                strength = -1 if answer.strength is None else answer.strength
                found.add(judgment, strength, _of_comparison(judgment.shown, answer, both_bad))
            case RankingAnswer() if rankings:
                kinds.append((judgment.id, "ranking"))
                found.add(judgment, -1, _of_ranking(judgment.shown, answer))
            case Abstention():
                kinds.append((judgment.id, "abstention"))
            case _:
                pass
    counts = Counter("superseded" if name in superseded else kind for name, kind in kinds)
    return found.votes(superseded, dict(sorted(counts.items())))


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


class _Numbers(dict[str, int]):
    """Names, numbered as they come."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


class _Found:
    """Votes as they are read: numbers in flat arrays, so that a million of them are no million objects."""

    def __init__(self) -> None:
        self._items, self._judges, self._prompts = _Numbers(), _Numbers(), _Numbers()
        self._names: list[str] = []
        self._judgments = array("q")
        """Four numbers a judgment: judge, prompt, strength, how many votes it gives."""
        self._votes = array("q")
        """Three numbers a vote: the one, the other, outcome; those of a judgment together."""

    def add(self, judgment: Judgment, strength: int, votes: Iterable[_Vote]) -> None:
        """Take the votes of one judgment; without any it is passed over."""
        size = 0
        for one, other, outcome in votes:
            self._votes.extend((self._items[one], self._items[other], outcome))
            size += 1
        if size:
            self._names.append(judgment.id)
            numbers = (self._judges[judgment.judge.id], self._prompts[judgment.prompt_id], strength, size)
            self._judgments.extend(numbers)

    def votes(self, superseded: set[str], counts: dict[str, int]) -> Votes:
        """Return the votes that count, judgments and names sorted, so that the order of reading is gone."""
        names = self._names
        order = sorted((n for n, name in enumerate(names) if name not in superseded), key=names.__getitem__)
        of_judgment = np.array(self._judgments, dtype=np.int64).reshape(-1, 4)
        start = np.cumsum(of_judgment[:, 3]) - of_judgment[:, 3]
        by_id = np.array(order, dtype=np.int64)
        judge, prompt, strength, size = of_judgment[by_id].T
        judgment = np.repeat(np.arange(len(order)), size)
        within = np.arange(len(judgment)) - np.repeat(np.cumsum(size) - size, size)
        one, other, outcome = np.array(self._votes, dtype=np.int64).reshape(-1, 3)[start[by_id][judgment] + within].T
        items, item_place = _sorted(self._items, np.concatenate([one, other]))
        judges, judge_place = _sorted(self._judges, judge)
        left, right = item_place[one], item_place[other]
        prompts = list(self._prompts)
        prompt_of = np.zeros(len(items), dtype=np.int64)
        prompt_of[np.stack([left, right], axis=1).ravel()] = np.repeat(prompt[judgment], 2)
        side = np.where(left < right, 1, -1)
        return Votes(
            items=items,
            judges=judges,
            judgment_ids=tuple(names[n] for n in order),
            prompt_of=tuple(prompts[n] for n in prompt_of.tolist()),
            first=np.minimum(left, right),
            second=np.maximum(left, right),
            outcome=outcome * side,
            side=side,
            strength=strength[judgment],
            judge=judge_place[judge[judgment]],
            judgment=judgment,
            weight=1 / size[judgment].astype(np.float64),
            counts=counts,
        )


def _sorted(numbers: _Numbers, used: Ints) -> tuple[tuple[str, ...], Ints]:
    """Return the names in use, sorted, and for each number its place among them."""
    names = list(numbers)
    in_use: list[int] = np.unique(used).tolist()
    kept = sorted(in_use, key=names.__getitem__)
    place = np.zeros(len(names), dtype=np.int64)
    place[kept] = np.arange(len(kept))
    return tuple(names[n] for n in kept), place
