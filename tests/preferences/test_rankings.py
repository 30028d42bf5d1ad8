"""Plackett-Luce: all orders written out, another library, finite differences."""

import itertools
import math

import choix
import numpy as np
import pytest

from harken.errors import DataError
from harken.preferences.bradley_terry import PairVotes, fit_scores
from harken.preferences.numeric import Floats
from harken.preferences.outcomes import rankings
from harken.preferences.plackett_luce import _stages, fit_rankings, log_likelihood
from harken.preferences.votes import read_votes
from tests.preferences.crowd import comparison, ranking

RANKINGS = [
    {0: 1, 1: 2, 2: 3},
    {0: 1, 1: 1, 2: 2, 3: 2},
    {3: 1, 0: 1, 1: 1, 2: 4},
    {2: 1, 3: 2},
    {1: 1, 0: 2},
]


def _naive(scores: Floats, ranks: dict[int, int]) -> float:
    """Log of the sum of the probabilities of all orders that the ranks allow."""
    total = 0.0
    for order in itertools.permutations(ranks):
        if all(ranks[one] <= ranks[other] for one, other in itertools.pairwise(order)):
            weights = [math.exp(scores[item]) for item in order]
            total += math.prod(weights[k] / sum(weights[k:]) for k in range(len(order)))
    return math.log(total)


@pytest.mark.parametrize("seed", range(3))
def test_a_tie_is_the_sum_over_its_orders(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=4)
    value, gradient = log_likelihood(scores, _stages(RANKINGS))
    assert value == pytest.approx(sum(_naive(scores, ranks) for ranks in RANKINGS), rel=1e-12)
    numeric = [
        sum(_naive(scores + step, ranks) - _naive(scores - step, ranks) for ranks in RANKINGS) / 2e-6
        for step in 1e-6 * np.eye(4)
    ]
    assert gradient == pytest.approx(numeric, abs=1e-7)


def test_scores_equal_those_of_choix() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5)
    orders = [tuple(np.argsort(-(scores + rng.gumbel(size=5))).tolist()) for _ in range(80)]
    fit = fit_rankings([{f"c{item}": place + 1 for place, item in enumerate(order)} for order in orders], ridge=1e-6)
    assert fit.scores == pytest.approx(choix.opt_rankings(5, orders, alpha=1e-6), abs=1e-5)


def test_rankings_of_two_are_comparisons() -> None:
    ranks = [{"a": 1, "b": 2}] * 3 + [{"a": 2, "b": 1}] + [{"b": 1, "c": 2}] * 2
    first, second = np.array([0, 0, 1]), np.array([1, 1, 2])
    pairs = PairVotes(3, first, second, np.array([1, -1, 1]), np.array([3.0, 1.0, 2.0]), np.zeros((3, 0)))
    ours, theirs = fit_rankings(ranks), fit_scores(pairs)
    assert ours.scores == pytest.approx(theirs.scores, abs=1e-6)
    assert ours.errors == pytest.approx(theirs.errors, rel=1e-4)
    ends = np.array([0]), np.array([2])
    assert ours.preference(*ends) == pytest.approx(theirs.preference(*ends), abs=1e-5)


def test_completions_of_different_prompts_are_not_compared() -> None:
    fit = fit_rankings([{"a": 1, "b": 2}, {"c": 1, "d": 2}])
    assert fit.component.tolist() == [0, 0, 1, 1]
    assert fit.preference(np.array([0, 0]), np.array([1, 2]))[0] > 0.5
    assert fit.preference(np.array([0]), np.array([2])) == pytest.approx([0.5])


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="no ranking has one completion above another"):
        fit_rankings([{"a": 1, "b": 1}])
    with pytest.raises(DataError, match="11 completions of one rank"):
        fit_rankings([{f"c{k}": 1 for k in range(11)} | {"z": 2}])
    with pytest.raises(DataError, match="expected above 0"):
        fit_rankings([{"a": 1, "b": 2}], ridge=0)


def test_ranks_come_back_from_votes() -> None:
    ranks = {"b": 1, "a": 2, "d": 2, "c": 4}
    best_of = comparison("2", ("a", "b", "c"), "b")
    found = rankings(read_votes([ranking("1", ranks), best_of]))
    assert found["1"] == ranks
    # The others were not compared with each other.
    assert found["2"] == {"a": 2, "b": 1, "c": 2}
