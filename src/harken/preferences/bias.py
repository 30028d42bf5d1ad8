"""What moves votes besides the completions' worth: the side they stood on, their length and their style."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from harken.estimates import share
from harken.preferences.bradley_terry import Coefficient, PairVotes, fit_scores
from harken.preferences.covariance import UndeterminedError
from harken.preferences.numeric import Floats, Ints, binomial_p, chi_square_p, normal_p
from harken.preferences.votes import Votes

STYLE = {
    "headers": re.compile(r"^#{1,6} ", re.MULTILINE),
    "list items": re.compile(r"^\s*(?:[-*+]|\d+[.)]) ", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
}
"""What Chatbot Arena's style control counts in Markdown."""
LENGTH_STRATA = (0.1, 0.3)
"""Bounds of the relative differences of length that are told apart."""
_MIN_EXPECTED = 5
"""Votes of each side expected in a cell of the chi-square test, below which it is left out."""


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p values: calling those below q findings makes a share of at most q of them false.

    Source: Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if len(p) == 0:
        return []
    order = np.argsort(-p)
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(np.minimum(scaled, 1))
    return adjusted.tolist()


def position_bias(votes: Votes) -> dict[str, Any]:
    """Measure how often the completion shown first wins, ties left out; and whether the sides were drawn fairly.

    `p` is of the exact two-sided binomial test against 1/2, which holds where sides were drawn at random: of that,
    `sides` has a chi-square test. `logits` is the side term of a Bradley-Terry model, which also holds where they were
    not.
    """
    won = votes.outcome != 0
    first_shown = int((votes.outcome * votes.side > 0).sum())
    found: dict[str, Any] = {"shown_first_wins": share(first_shown, int(won.sum()))}
    found["p"] = binomial_p(first_shown, int(won.sum())) if won.any() else None
    found["logits"] = None
    # Without votes on both sides the side cannot be told from the order of the ids.
    if won.any() and len(np.unique(votes.side)) == 2:
        side = votes.side[:, None].astype(np.float64)
        own = PairVotes(len(votes.items), votes.first, votes.second, votes.outcome, votes.weight, side)
        for coefficient in _determined(own):
            low, high = coefficient.interval()
            found["logits"] = {"value": coefficient.value, "low": low, "high": high}
    return found


def sides_are_fair(votes: Votes, models: Sequence[str]) -> dict[str, Any]:
    """Test that each of two models was shown first equally often: chi-square over the pairs of models.

    Without models, or with one, the completion whose id sorts first takes the model's place. A pair of models that was
    shown fewer than 10 times does not count.
    """
    names = np.unique(np.asarray(models, dtype=np.str_), return_inverse=True)[1].astype(np.int64)
    one, other = names[votes.first], names[votes.second]
    differ = one != other
    if differ.any():
        side = np.where(one < other, votes.side, -votes.side)[differ]
        key = (np.minimum(one, other) * (names.max() + 1) + np.maximum(one, other))[differ]
    else:
        side, key = votes.side, np.zeros(len(votes), dtype=np.int64)
    _, cell = np.unique(key, return_inverse=True)
    shown = np.bincount(cell)
    surplus = np.bincount(cell, weights=side)
    enough = shown >= 2 * _MIN_EXPECTED
    degrees = int(enough.sum())
    statistic = float((surplus[enough] ** 2 / shown[enough]).sum())
    p = chi_square_p(statistic, degrees) if degrees else None
    return {"chi_square": statistic if degrees else None, "degrees": degrees, "p": p}


def length_bias(votes: Votes, texts: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    """Measure how far longer and more decorated completions win.

    `longer_wins` is the plain share, ties left out; `strata` the same by the relative difference of the lengths |l_i -
    l_j| / (l_i + l_j). `coefficients` are of logit P(i wins) = s_model(i) - s_model(j) + sum of gamma (x_i - x_j) /
    (x_i + x_j) over length (characters), headers, list items and bold parts; without models the scores are left out.
    A longer completion may be the better one: only a probe with padded copies shows bias (`harken.preferences.probes`).

    Args:
        votes: V votes on K completions.
        texts: (K,) their texts.
        models: (K,) their models, "" where not known.

    Source: Chiang et al. 2024, arXiv:2403.04132, with the style terms of Chatbot Arena's style control.
    """
    counts = np.array(
        [[len(text), *(len(pattern.findall(text)) for pattern in STYLE.values())] for text in texts], dtype=np.float64
    ).reshape(-1, 1 + len(STYLE))
    one, other = counts[votes.first], counts[votes.second]
    relative = (one - other) / np.maximum(one + other, 1)
    decided = (votes.outcome != 0) & (relative[:, 0] != 0)
    longer = votes.outcome * relative[:, 0] > 0
    bounds = (0.0, *LENGTH_STRATA, 1.0)
    strata: list[dict[str, Any]] = []
    for low, high in pairwise(bounds):
        inside = decided & (np.abs(relative[:, 0]) > low) & (np.abs(relative[:, 0]) <= high)
        strata.append({"from": low, "to": high, "longer_wins": share(int(longer[inside].sum()), int(inside.sum()))})
    return {
        "longer_wins": share(int(longer[decided].sum()), int(decided.sum())),
        "strata": strata,
        "coefficients": _coefficients(votes, relative, models),
    }


def _coefficients(votes: Votes, relative: Floats, models: Sequence[str]) -> dict[str, Any]:
    names, index = np.unique(np.asarray(models, dtype=np.str_), return_inverse=True)
    known = len(names) > 1 and "" not in names.tolist()
    item: Ints = index.astype(np.int64) if known else np.zeros(len(index), dtype=np.int64)
    varies = (relative != 0).any(0)
    if not varies.any():
        return {}
    columns = relative[:, varies]
    num_items = int(item.max()) + 1
    own = PairVotes(num_items, item[votes.first], item[votes.second], votes.outcome, votes.weight, columns)
    labels = [name for name, used in zip(("length", *STYLE), varies.tolist(), strict=True) if used]
    found: dict[str, Any] = {}
    for label, coefficient in zip(labels, _determined(own), strict=False):
        low, high = coefficient.interval()
        p = normal_p(coefficient.value / coefficient.error) if coefficient.error > 0 else None
        found[label] = {"value": coefficient.value, "low": low, "high": high, "p": p}
    return found


def _determined(votes: PairVotes) -> tuple[Coefficient, ...]:
    """Return the coefficients of the votes' covariates; none where the votes are too few to tell."""
    try:
        return fit_scores(votes).coefficients
    except UndeterminedError:
        return ()
