"""What holds for all pairs, told from those that were chosen: means weighed by the inverse chance of being chosen."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harken.errors import DataError
from harken.estimates import Estimate
from harken.preferences.numeric import Floats, Ints
from harken.preferences.votes import Votes


def weighted_mean(
    values: Floats,
    probability: Floats,
    groups: Sequence[object],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean over all units from those that were chosen with known, unequal probabilities.

    Args:
        values: (N,) of the chosen units.
        probability: (N,) in (0, 1], of each being chosen.
        groups: (N,) what is resampled as a whole, such as prompts.
        resamples: bootstrap samples.
        seed: of the resampling.
        level: coverage of the interval.

    Returns: sum(values / probability) / sum(1 / probability), with a percentile bootstrap interval over groups (None
        for a single one).

    Raises:
        DataError: no units, or a probability outside (0, 1].

    Source: Hajek 1971; Sarndal, Swensson and Wretman 1992, Model Assisted Survey Sampling, section 5.7.
    """
    if len(values) == 0:
        raise DataError("no units to estimate a mean from")
    if not ((probability > 0) & (probability <= 1)).all():
        raise DataError("a selection probability lies outside (0, 1]; tasks carry the chance that they were chosen")
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.array([number[group] for group in groups], dtype=np.int64)
    tops = np.bincount(member, weights=values / probability)
    bottoms = np.bincount(member, weights=1 / probability)
    value = float(tops.sum() / bottoms.sum())
    if len(tops) == 1:
        return Estimate(value, None, None)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(tops), (resamples, len(tops)))
    low, high = np.quantile(tops[drawn].sum(1) / bottoms[drawn].sum(1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def effective_size(probability: Floats) -> float:
    """Return how many evenly chosen units would tell as much: (sum w)^2 / sum w^2, w = 1 / probability (Kish 1965)."""
    weight = 1 / probability
    return float(weight.sum() ** 2 / (weight**2).sum())


def selection_report(
    votes: Votes, chance: Mapping[str, float], models: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any] | None:
    """Estimate, for all pairs that could have been chosen, what the chosen ones show; None where no chance is known.

    Args:
        votes: of people.
        chance: judgment id -> probability that its task was chosen; judgments without one are left out.
        models: (K,) who wrote each item.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns: JSON-able. `agreement`: share of two votes on a pair that agree; `wins`: of each two models, the share that
        the first wins, ties as half. Each has `all_pairs` (weighed) and `chosen_pairs` (not weighed).
    """
    by_judgment = np.array([chance.get(name, np.nan) for name in votes.judgment_ids], dtype=np.float64)
    known = by_judgment[votes.judgment]
    kept = np.flatnonzero(np.isfinite(known))
    if kept.size == 0:
        return None
    first, second, pair = votes.pairs()
    of_pair: defaultdict[int, list[int]] = defaultdict(list)
    for index in kept.tolist():
        of_pair[int(pair[index])].append(index)
    found: defaultdict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for number, members in of_pair.items():
        outcome = votes.outcome[members]
        p, prompt = float(known[members[0]]), votes.prompt_of[int(first[number])]
        if len(members) > 1:
            found["agreement"].append((_agreeing(outcome), p, prompt))
        one, other = models[int(first[number])], models[int(second[number])]
        if one != other:
            share = float((outcome + 1).mean() / 2)
            name = f"{min(one, other)} against {max(one, other)}"
            found[name].append((share if one < other else 1 - share, p, prompt))
    told = {name: _both(rows, resamples, seed) for name, rows in sorted(found.items())}
    agreement = told.pop("agreement", None)
    probability = np.array([float(known[members[0]]) for members in of_pair.values()])
    return {
        "num_pairs": len(of_pair),
        "effective_pairs": effective_size(probability),
        "agreement": agreement,
        "wins": told,
    }


def _agreeing(outcome: Ints) -> float:
    counts = np.bincount(outcome + 1, minlength=3).astype(np.float64)
    num = counts.sum()
    return float((counts * (counts - 1)).sum() / (num * (num - 1)))


def _both(rows: Sequence[tuple[float, float, str]], resamples: int, seed: int) -> dict[str, Any]:
    values, probability = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    groups = [row[2] for row in rows]
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    return {
        "num_pairs": len(rows),
        "all_pairs": weighted_mean(values, probability, groups, **options).as_dict(),
        "chosen_pairs": weighted_mean(values, np.ones(len(rows)), groups, **options).as_dict(),
    }
