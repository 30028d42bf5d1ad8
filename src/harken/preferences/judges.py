"""Each judge by itself and beside others: agreement, sides, gold, groups; shrunken, as few votes prove little."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harken.errors import DataError
from harken.estimates import share
from harken.preferences.bias import benjamini_hochberg
from harken.preferences.numeric import Floats, Ints, beta_interval, binomial_p, count, rows
from harken.preferences.votes import Votes, read_votes
from harken.records import Comparison, Judge, Judgment, RankingAnswer, content_id

_MIN_STRENGTH, _MAX_STRENGTH = 2.0, 1000.0
"""Bounds of the weight, in votes, of what judges have in common."""


@dataclass(frozen=True)
class Meetings:
    """Pairs of judges who voted on the same thing, added up over things: M rows, each with the smaller judge first."""

    one: Ints
    other: Ints
    weight: Floats
    """(M,) sum over things of 1 / (votes on the thing - 1), Krippendorff's weight of a meeting."""
    differing: Floats
    """(M,) the part of it in which they gave different answers."""
    num_judges: int


def meetings(votes: Votes) -> Meetings:
    """Return who met whom on a pair, and how often they differed; a judge does not meet itself."""
    _, _, pair = votes.pairs()
    order = np.argsort(pair, kind="stable")
    unit, judge, answer = pair[order], votes.judge[order], votes.outcome[order]
    size = np.bincount(unit, minlength=1)[unit]
    num_judges = len(votes.judges)
    keys: list[Ints] = []
    weights: list[Floats] = []
    differing: list[Floats] = []
    for offset in range(1, int(size.max(initial=1))):
        same = np.flatnonzero((unit[offset:] == unit[:-offset]) & (judge[offset:] != judge[:-offset]))
        one, other = judge[same], judge[same + offset]
        keys.append(np.minimum(one, other) * num_judges + np.maximum(one, other))
        weights.append(1 / (size[same] - 1))
        differing.append(weights[-1] * (answer[same] != answer[same + offset]))
    if not keys:
        none: Ints = np.zeros(0, dtype=np.int64)
        return Meetings(none, none, np.zeros(0), np.zeros(0), num_judges)
    key, cell = np.unique(np.concatenate(keys), return_inverse=True)
    weight, differs = (count(cell, len(key), np.concatenate(parts)) for parts in (weights, differing))
    return Meetings(key // num_judges, key % num_judges, weight, differs, num_judges)


def shrunken(successes: Floats, n: Floats) -> tuple[Floats, Floats, Floats]:
    """Return shares drawn towards their common mean, and the ends of their 95 % intervals.

    Empirical Bayes: the shares are taken to come from a Beta distribution, whose mean and weight are found by the
    method of moments (Kleinman 1973, doi:10.1080/01621459.1973.10481332).

    Args:
        successes: (J,) at most n.
        n: (J,) trials; may be 0, which gives the common mean.
    """
    total = max(float(n.sum()), 1e-12)
    mean = min(max(float(successes.sum()) / total, 1e-3), 1 - 1e-3)
    seen = n > 0
    noise = mean * (1 - mean)
    strength = _MAX_STRENGTH
    if seen.sum() > 1:
        shares = successes[seen] / n[seen]
        spread = float((n[seen] * (shares - mean) ** 2).sum()) / total
        # Expected of chance alone: noise / n a judge, weighted by n.
        between = (spread - noise * float(seen.sum()) / total) / max(1 - float((n[seen] ** 2).sum()) / total**2, 1e-12)
        if between > 0:
            strength = min(max(noise / between - 1, _MIN_STRENGTH), _MAX_STRENGTH)
    right, wrong = successes + strength * mean, np.maximum(n - successes, 0) + strength * (1 - mean)
    low, high = beta_interval(right, wrong, 0.95)
    return right / (right + wrong), low, high


def judge_table(votes: Votes, met: Meetings, *, gold: Votes | None = None) -> list[dict[str, Any]]:
    """Return a row for each judge: votes, agreement with others, side shown first, and gold accuracy.

    `agreement` is the share of others' votes on the same pairs that are the same, shrunken; None for those who met
    nobody. `shown_first_p` is of the exact test, `shown_first_q` adjusted for the number of judges.
    """
    num = met.num_judges
    weight = count(met.one, num, met.weight) + count(met.other, num, met.weight)
    differing = count(met.one, num, met.differing) + count(met.other, num, met.differing)
    value, low, high = shrunken(weight - differing, weight)
    won = votes.outcome != 0
    decided = np.bincount(votes.judge[won], minlength=num)
    first = np.bincount(votes.judge[won & (votes.outcome * votes.side > 0)], minlength=num)
    p = [binomial_p(a, b) for a, b in zip(first.tolist(), decided.tolist(), strict=True)]
    q = benjamini_hochberg(p)
    right, tried = _gold(votes, gold) if gold is not None else (np.zeros(num), np.zeros(num))
    num_votes = np.bincount(votes.judge, minlength=num)
    table: list[dict[str, Any]] = []
    for index, name in enumerate(votes.judges):
        agreement = {"value": float(value[index]), "low": float(low[index]), "high": float(high[index])}
        row: dict[str, Any] = {
            "judge": name,
            "votes": int(num_votes[index]),
            "tie_share": 1 - int(decided[index]) / int(num_votes[index]),
            "agreement": agreement if weight[index] > 0 else None,
            "shown_first_wins": share(int(first[index]), int(decided[index])),
            "shown_first_p": p[index],
            "shown_first_q": q[index],
        }
        if gold is not None:
            row["gold"] = share(float(right[index]), int(tried[index]))
        table.append(row)
    return table


def gold_of_task(judgment: Judgment) -> Judgment | None:
    """Return the right answer of the task that a judgment was made under, as a judgment; None if it has none."""
    task = judgment.assignment
    answer = task.gold if task else None
    if task is None or not (
        isinstance(answer, RankingAnswer) or (isinstance(answer, Comparison) and answer.outcome in ("win", "tie"))
    ):
        return None
    return Judgment(
        id=content_id("gold", task.task_id),
        judge=Judge(id="gold", kind="rule"),
        prompt_id=judgment.prompt_id,
        shown=judgment.shown,
        answer=answer,
    )


def gold_votes(judgments: Iterable[Judgment]) -> Votes:
    """Return what is known to be right, from judgments that say it.

    Raises:
        DataError: they hold no comparisons or rankings, or two of them say different things of a pair.
    """
    gold = read_votes(judgments)
    if len(gold) == 0:
        raise DataError("the gold judgments hold no comparisons or rankings; expected at least one")
    _, _, pair = gold.pairs()
    outcome = np.zeros(int(pair.max()) + 1, dtype=np.int64)
    outcome[pair] = gold.outcome
    if (wrong := np.flatnonzero(outcome[pair] != gold.outcome)).size:
        number = int(wrong[0])
        one, other = gold.items[int(gold.first[number])], gold.items[int(gold.second[number])]
        raise DataError(f"the gold judgments contradict each other on {one!r} and {other!r}; leave one answer")
    return gold


def _gold(votes: Votes, gold: Votes) -> tuple[Floats, Floats]:
    known = {(gold.items[a], gold.items[b]): int(o) for a, b, o in rows(gold.first, gold.second, gold.outcome)}
    first, second, pair = votes.pairs()
    none = 2  # no outcome
    found = [known.get((votes.items[a], votes.items[b]), none) for a, b in rows(first, second)]
    answers = np.array(found, dtype=np.int64)[pair]
    tried = answers != none
    num = len(votes.judges)
    return count(votes.judge[tried & (answers == votes.outcome)], num), count(votes.judge[tried], num)


def agreement_by_group(
    met: Meetings,
    group_of: Mapping[str, str],
    judges: tuple[str, ...],
    *,
    min_judges: int = 5,
    permutations: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare agreement within groups of judges with agreement between them, by a permutation test.

    The groups' labels are shuffled over judges, not over judgments, as the votes of one judge hang together. The
    statistic is the disagreement between groups less that within them; `p` is one-sided: groups that differ disagree
    more with each other than chance would have it. Judges of no group, and groups of fewer than `min_judges`, are left
    out altogether, and how many is said for all of them together.

    Returns:
        `groups`: name -> number of judges and agreement within; `within`, `between`: shares of agreeing meetings;
        `difference` and `p`: None where there are not two groups that meet.

    Source: Ernst 2004, doi:10.1214/088342304000000396.
    """
    sizes = Counter(group_of[name] for name in judges if name in group_of)
    shown = sorted(name for name, size in sizes.items() if size >= min_judges)
    labels = np.array([shown.index(group_of[n]) if group_of.get(n) in shown else -1 for n in judges], dtype=np.int64)
    members = np.flatnonzero(labels >= 0)
    kept = (labels[met.one] >= 0) & (labels[met.other] >= 0) if len(judges) else np.zeros(0, dtype=np.bool_)
    one, other, weight, differing = met.one[kept], met.other[kept], met.weight[kept], met.differing[kept]

    def disagreement(given: Ints) -> tuple[float, float]:
        within = given[one] == given[other]
        sums = [(float(differing[c].sum()), float(weight[c].sum())) for c in (within, ~within)]
        inner, between = (d / w if w > 0 else np.nan for d, w in sums)
        return inner, between

    def within_one(number: int) -> float | None:
        return _agreeing(weight, differing, (labels[one] == number) & (labels[other] == number))

    within, between = disagreement(labels)
    difference = between - within
    p: float | None = None
    if np.isfinite(difference):
        rng = np.random.default_rng(seed)
        shuffled = labels.copy()
        at_least = 0
        for _ in range(permutations):
            shuffled[members] = rng.permutation(labels[members])
            drawn_within, drawn_between = disagreement(shuffled)
            # A draw in which one of them cannot be computed speaks for neither side: counted as extreme.
            at_least += not drawn_between - drawn_within < difference - 1e-12
        p = (1 + at_least) / (1 + permutations)
    return {
        "groups": {name: {"judges": sizes[name], "agreement": within_one(k)} for k, name in enumerate(shown)},
        "judges_left_out": len(judges) - len(members),
        "within": None if np.isnan(within) else 1 - within,
        "between": None if np.isnan(between) else 1 - between,
        "difference": float(difference) if np.isfinite(difference) else None,
        "p": p,
    }


def _agreeing(weight: Floats, differing: Floats, chosen: NDArray[np.bool_]) -> float | None:
    total = float(weight[chosen].sum())
    return 1 - float(differing[chosen].sum()) / total if total > 0 else None
