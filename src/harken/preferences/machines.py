"""Models as judges, beside people: told apart, never added up unless that is asked for."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from harken.config.preferences import Judges
from harken.errors import DataError
from harken.preferences.agreement import cohen_kappa
from harken.preferences.numeric import Floats
from harken.preferences.votes import Votes
from harken.records import Judgment

ADMISSIBLE_LOSS = 0.1
"""A judge is fit to stand in for people when its kappa with them is at most so much below theirs with each other."""


class ByKind:
    """Judgments by people, by models, or by both, and how many were left out."""

    def __init__(self, judges: Judges) -> None:
        """Choose."""
        self._judges = judges
        self.num_left_out = 0
        """In the last pass that was finished."""

    def __call__(self, judgments: Iterable[Judgment]) -> Iterator[Judgment]:
        """Yield those that count.

        Raises:
            DataError: there are judgments, but none of them counts.
        """
        left_out = num_kept = 0
        for judgment in judgments:
            if self._judges == "all" or judgment.judge.is_machine == (self._judges == "models"):
                num_kept += 1
                yield judgment
            else:
                left_out += 1
        if left_out and not num_kept:
            other = "models" if self._judges == "people" else "people"
            raise DataError(f"all {left_out} judgments are by {other}; to count them: --set judges={other}")
        self.num_left_out = left_out

    @property
    def note(self) -> str:
        """What to tell of those left out."""
        whose = "models" if self._judges == "people" else "people"
        return f"{self.num_left_out} judgments by {whose} were left out; --set judges=all counts them too"


def agreement_with_people(people: Votes, machines: Votes) -> list[dict[str, Any]]:
    """Return how far each model judge agrees with people, beside how far people agree with each other.

    Every vote of a person meets every other vote on the same pair. `kappa` is Cohen's over win, tie and loss in the
    order of the ids, so that sides do not matter; None where it is undefined.
    """
    if len(machines) == 0:
        return []
    theirs: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for pair, outcome, _ in _by_pair(people):
        theirs[pair].append(outcome)
    among = np.zeros((3, 3))
    for outcomes in theirs.values():
        counts = np.bincount(np.array(outcomes) + 1, minlength=3)
        among += np.outer(counts, counts) - np.diag(counts)
    tables: defaultdict[str, Floats] = defaultdict(lambda: np.zeros((3, 3)))
    num_judged: defaultdict[str, int] = defaultdict(int)
    for pair, outcome, judge in _by_pair(machines):
        num_judged[judge] += 1
        for other in theirs.get(pair, ()):
            tables[judge][other + 1, outcome + 1] += 1
    between_people = _agreement(among)
    rows: list[dict[str, Any]] = []
    for judge in sorted(num_judged):
        found = _agreement(tables[judge])
        limits = found["kappa"], between_people["kappa"]
        fit = None if None in limits else limits[0] >= limits[1] - ADMISSIBLE_LOSS
        rows.append({"judge": judge, "votes": num_judged[judge], **found, "admissible": fit, "people": between_people})
    return rows


def _by_pair(votes: Votes) -> Iterator[tuple[tuple[str, str], int, str]]:
    for one, other, outcome, judge in zip(
        votes.first.tolist(), votes.second.tolist(), votes.outcome.tolist(), votes.judge.tolist(), strict=True
    ):
        yield (votes.items[one], votes.items[other]), outcome, votes.judges[judge]


def _agreement(table: Floats) -> dict[str, Any]:
    total = float(table.sum())
    return {
        "meetings": int(total),
        "agreement": float(np.trace(table)) / total if total else None,
        "kappa": cohen_kappa(table) if total else None,
    }
