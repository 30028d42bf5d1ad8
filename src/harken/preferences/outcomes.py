"""Votes -> one outcome for each pair: how likely the one is preferred, and whether it is a tie."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harken.config.preferences import (
    BradleyTerryConfig,
    DawidSkeneConfig,
    MaceConfig,
    MajorityConfig,
    OrderedLogitConfig,
    PlackettLuceConfig,
    ReliabilityConfig,
    Resolve,
)
from harken.preferences.bradley_terry import PairVotes, ScoreFit, Ties, fit_scores
from harken.preferences.dawid_skene import LabelFit, Labels, fit_dawid_skene
from harken.preferences.mace import fit_mace
from harken.preferences.numeric import Floats, Ints, beta_interval, count, normal_quantile, rows, sigmoid
from harken.preferences.plackett_luce import fit_rankings
from harken.preferences.reliability import fit_reliability
from harken.preferences.votes import Votes

Margins = tuple[float, float, float, float]


@dataclass(frozen=True)
class Outcomes:
    """What the votes on N pairs come to."""

    first: Ints
    second: Ints
    pair: Ints
    """(V,) which pair each vote is on."""
    probability: Floats
    """(N,) that first is preferred."""
    low: Floats
    high: Floats
    """(N,) ends of the 95 % interval of the probability; the probability itself where a model gives only that."""
    is_tie: NDArray[np.bool_]
    margins: Margins | None = None
    """Cut point below each strength, in logits, where strengths were fitted."""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """What was fitted besides, JSON-able."""


def outcomes(votes: Votes, config: Resolve) -> Outcomes:
    """Resolve the votes on each pair by the method that `config` names.

    Raises:
        DataError: no votes, or as the method says.
    """
    match config:
        case MajorityConfig():
            return _by_majority(votes)
        case DawidSkeneConfig():
            labels = _labels(votes)
            fit = fit_dawid_skene(
                labels,
                smoothing=config.smoothing,
                diagonal=config.diagonal,
                one_coin=config.one_coin,
                mirrored=True,
            )
            return _by_labels(votes, fit)
        case MaceConfig():
            fit = fit_mace(_labels(votes), restarts=config.restarts, smoothing=config.smoothing, mirrored=True)
            return _by_labels(votes, fit)
        case BradleyTerryConfig():
            return _by_scores(votes, config.ties, side=config.side, ridge=config.ridge)
        case OrderedLogitConfig():
            return _by_scores(votes, "graded", side=config.side, ridge=config.ridge)
        case ReliabilityConfig():
            fit = fit_reliability(votes, ridge=config.ridge, spread=config.spread, bias_spread=config.bias_spread)
            first, second, pair = votes.pairs()
            low, high = _score_interval(fit.scores, fit.covariance.variance_of_difference(first, second), first, second)
            p = fit.preference(first, second)
            facts = {
                "num_components": int(fit.component.max()) + 1,
                "reversed_judges": int((fit.intervals()[1] < 0).sum()),
            }
            return Outcomes(first, second, pair, p, low, high, p == 0.5, facts=facts)
        case PlackettLuceConfig():
            return _by_rankings(votes, config.ridge)


def _by_majority(votes: Votes) -> Outcomes:
    first, second, pair = votes.pairs()
    num_votes = count(pair, len(first))
    wins = count(pair, len(first), (votes.outcome + 1) / 2)
    # Laplace's rule of succession, as for ratings.
    p = (wins + 1) / (num_votes + 2)
    low, high = beta_interval(wins + 1, num_votes - wins + 1, 0.95)
    return Outcomes(first, second, pair, p, low, high, 2 * wins == num_votes)


def _labels(votes: Votes) -> Labels:
    """Return the votes as labels of pairs: 0 first, 1 tie, 2 second; without a class for ties where there is none."""
    first, _, pair = votes.pairs()
    if (votes.outcome != 0).all():
        return Labels(pair, votes.judge, (1 - votes.outcome) // 2, len(first), len(votes.judges), 2)
    return Labels(pair, votes.judge, 1 - votes.outcome, len(first), len(votes.judges), 3)


def _by_labels(votes: Votes, fit: LabelFit) -> Outcomes:
    first, second, pair = votes.pairs()
    posterior = fit.posterior
    p = posterior[:, 0]
    is_tie = posterior[:, 0] == posterior[:, -1]
    if posterior.shape[1] == 3:
        p = p + posterior[:, 1] / 2
        is_tie |= posterior.argmax(1) == 1
    facts = {"accuracy_of_judges": {"min": float(fit.accuracy.min()), "median": float(np.median(fit.accuracy))}}
    return Outcomes(first, second, pair, p, p, p, is_tie, facts=facts)


def pair_votes(votes: Votes, *, side: bool, covariates: Floats | None = None) -> PairVotes:
    """Return the votes as `fit_scores` reads them, with the side as the first covariate if it is wanted."""
    columns = [votes.side[:, None].astype(np.float64)] if side else []
    columns += [] if covariates is None else [covariates]
    matrix = np.concatenate(columns, axis=1) if columns else np.zeros((len(votes), 0))
    return PairVotes(len(votes.items), votes.first, votes.second, votes.outcome, votes.weight, matrix, votes.strength)


def _by_scores(votes: Votes, ties: Ties, *, side: bool, ridge: float) -> Outcomes:
    fit = fit_scores(pair_votes(votes, side=side), ties=ties, ridge=ridge)
    first, second, pair = votes.pairs()
    difference = fit.scores[first] - fit.scores[second]
    low, high = _score_interval(fit.scores, fit.covariance.variance_of_difference(first, second), first, second)
    # With ties as outcomes of their own, a pair is one where that is the likeliest.
    is_tie = difference == 0
    facts: dict[str, Any] = {"num_components": fit.num_components}
    if ties == "davidson":
        is_tie |= np.abs(difference) / 2 < fit.shape[0].value
        facts["log_nu"] = fit.shape[0].value
    elif len(fit.cuts) > 1 and (votes.outcome == 0).any():
        cut = fit.cuts[1]
        is_tie |= sigmoid(np.abs(difference) - cut) < sigmoid(cut - np.abs(difference)) - sigmoid(
            -cut - np.abs(difference)
        )
        facts["cuts"] = fit.cuts[1:].tolist()
    if side:
        side_low, side_high = fit.coefficients[0].interval()
        facts["side"] = {"value": fit.coefficients[0].value, "low": side_low, "high": side_high}
    margins = margins_of(votes, fit) if ties == "graded" else None
    if margins is not None:
        facts["margins"] = list(margins)
    return Outcomes(first, second, pair, fit.preference(first, second), low, high, is_tie, margins, facts)


def margins_of(votes: Votes, fit: ScoreFit) -> Margins:
    """Return for each strength the cut point below it: the margin with which a reward model should learn it.

    P(a vote says at least this strong | difference) = sigmoid(difference - cut), which is the reward model's likelihood
    with a margin. A strength that nobody gave has the margin of the next weaker one; where no strength was given, all
    have the first cut.
    """
    has_tie = int((votes.outcome == 0).any())
    given = np.unique(votes.strength[(votes.outcome != 0) & (votes.strength >= 0)])
    level = np.maximum(np.searchsorted(given, np.arange(4), side="right") - 1, 0)
    zero, one, two, three = fit.cuts[np.minimum(level + has_tie, len(fit.cuts) - 1)].tolist()
    return zero, one, two, three


def _score_interval(scores: Floats, variance: Floats, first: Ints, second: Ints) -> tuple[Floats, Floats]:
    difference = scores[first] - scores[second]
    reach = normal_quantile(0.95) * np.sqrt(np.maximum(variance, 0))
    return sigmoid(difference - reach), sigmoid(difference + reach)


def _by_rankings(votes: Votes, ridge: float) -> Outcomes:
    fit = fit_rankings(list(rankings(votes).values()), ridge=ridge)
    first, second, pair = votes.pairs()
    index = {name: number for number, name in enumerate(fit.items)}
    place = np.array([index[name] for name in votes.items])
    p = fit.preference(place[first], place[second])
    low, high = _score_interval(fit.scores, fit.variance(place[first], place[second]), place[first], place[second])
    facts = {"num_components": int(fit.component.max()) + 1}
    return Outcomes(first, second, pair, p, low, high, p == 0.5, facts=facts)


def rankings(votes: Votes) -> dict[str, dict[str, int]]:
    """Return judgment id -> (completion id -> rank): 1 plus the number of completions that this judgment put above."""
    found: dict[str, dict[str, int]] = {}
    for number, one, other, outcome in rows(votes.judgment, votes.first, votes.second, votes.outcome):
        ranks = found.setdefault(votes.judgment_ids[number], {})
        for item, is_below in ((votes.items[one], outcome < 0), (votes.items[other], outcome > 0)):
            ranks[item] = ranks.get(item, 1) + is_below
    return found
