"""Scores of completions (or of anything compared in pairs) from votes: Bradley-Terry and its kin with ties."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from harken.errors import DataError
from harken.preferences.covariance import Covariance, fits_jointly
from harken.preferences.links import CutPoints, Davidson, HalfWins, Link
from harken.preferences.numeric import (
    Floats,
    Ints,
    components,
    minimize,
    normal_quantile,
    num_strong_components,
    sigmoid,
)

Ties = Literal["half", "davidson", "rao_kupper", "graded"]
"""half: a tie is half a win of each; graded: cut points from the votes' strengths."""

_STEP = 1e-5
"""Step of the central differences of the gradient that give the curvature of a link's parameters."""


@dataclass(frozen=True)
class PairVotes:
    """What the models of scores read: V votes on pairs of K things."""

    num_items: int
    first: Ints
    second: Ints
    outcome: Ints
    """(V,) 1 where first won, 0 for a tie, -1 where second won."""
    weight: Floats
    covariates: Floats
    """(V, E) what else moves a vote to first, such as the side it stood on: 1 or -1."""
    strength: Ints | None = None
    """(V,) 0 to 3, or -1 where none was given; read by `graded` only."""


@dataclass(frozen=True)
class Coefficient:
    """An estimate with its standard error."""

    value: float
    error: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the ends of the normal interval."""
        reach = normal_quantile(level) * self.error
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class ScoreFit:
    """Scores in logits: sigmoid(difference of two) is the probability that the one is preferred."""

    scores: Floats
    """(K,), with mean 0 in each component."""
    errors: Floats
    """(K,) standard errors; NaN in components too large to invert."""
    covariance: Covariance
    component: Ints
    """(K,) number of the connected component; scores of different ones cannot be compared."""
    coefficients: tuple[Coefficient, ...]
    """One for each covariate."""
    shape: tuple[Coefficient, ...]
    """log nu (Davidson), or logs of the steps between cut points."""
    cuts: Floats
    """T_0 = 0 to T_S, the cut points of `rao_kupper` and `graded`; else empty."""
    log_likelihood: float
    """Of the votes; the prior left out."""

    @property
    def num_components(self) -> int:
        """Number of connected components."""
        return int(self.component.max(initial=-1)) + 1

    def preference(self, first: Ints, second: Ints) -> Floats:
        """Return the probabilities (N,) that first is preferred, drawn towards 1/2 by what is not known of the scores.

        The normal posterior of the difference is integrated over (MacKay 1992, doi:10.1162/neco.1992.4.5.720):
        sigmoid(difference / sqrt(1 + pi / 8 variance)).
        """
        variance = np.nan_to_num(self.covariance.variance_of_difference(first, second), nan=0.0)
        return moderated(self.scores[first] - self.scores[second], variance)


def moderated(difference: Floats, variance: Floats) -> Floats:
    """Return the mean of sigmoid over normal differences, by MacKay's approximation."""
    return sigmoid(difference / np.sqrt(1 + np.pi / 8 * np.maximum(variance, 0)))


def fit_scores(votes: PairVotes, *, ties: Ties = "half", ridge: float = 0.5) -> ScoreFit:
    """Fit scores, coefficients of covariates and the link's parameters by penalized maximum likelihood.

    The penalty is ridge * sum of squared scores: a normal prior with variance 1 / (2 ridge) on each score. With it,
    what never lost and what is not connected to the rest stays finite. Coefficients have no prior.

    Raises:
        DataError: no votes, or ridge 0 and something has won (or lost) all it had with the others of its component.
    """
    if not (votes.weight > 0).any():
        raise DataError("no votes; expected at least one comparison that was won or tied")
    votes = _aggregated(votes, ties)
    component = components(votes.first, votes.second, votes.num_items)
    if ridge == 0:
        _check_finite(votes, component)
    problem = _Problem(votes, ties, ridge)
    best = minimize(problem.objective, problem.start)
    return problem.result(best, component)


def _check_finite(votes: PairVotes, component: Ints) -> None:
    """Ford's condition: within a component everything has beaten everything, if only along a chain."""
    first_won, second_won = votes.outcome >= 0, votes.outcome <= 0
    winner = np.concatenate([votes.first[first_won], votes.second[second_won]])
    loser = np.concatenate([votes.second[first_won], votes.first[second_won]])
    if num_strong_components(winner, loser, votes.num_items) > int(component.max()) + 1:
        raise DataError(
            "ridge is 0, but something has won or lost all its comparisons with the others, so its score is infinite; "
            "set ridge above 0"
        )


def _aggregated(votes: PairVotes, ties: Ties) -> PairVotes:
    """Return the votes with equal ones added up: a million votes on a few models are a few rows."""
    strength = votes.strength if ties == "graded" and votes.strength is not None else np.full_like(votes.first, -1)
    columns = [votes.first, votes.second, votes.outcome, strength, *votes.covariates.T]
    counted = votes.weight > 0
    cells = np.stack([np.asarray(column, dtype=np.float64)[counted] for column in columns], axis=1)
    order = np.lexsort(cells.T[::-1])
    cells = cells[order]
    starts = np.flatnonzero(np.concatenate([[True], (cells[1:] != cells[:-1]).any(1)]))
    rows, weight = cells[starts], np.add.reduceat(votes.weight[counted][order], starts)
    first, second, outcome, strength = (rows[:, index].astype(np.int64) for index in range(4))
    return PairVotes(votes.num_items, first, second, outcome, weight, rows[:, 4:], strength)


def _link(votes: PairVotes, ties: Ties) -> Link:
    match ties:
        case "half":
            return HalfWins(votes.outcome)
        case "davidson":
            return Davidson(votes.outcome)
        case "rao_kupper":
            has_tie = 1
            levels = np.ones_like(votes.outcome)
            num_levels = 1
        case "graded":
            assert votes.strength is not None
            has_tie = int((votes.outcome == 0).any())
            given = np.unique(votes.strength[(votes.outcome != 0) & (votes.strength >= 0)])
            num_levels = max(1, len(given))
            levels = np.searchsorted(given, votes.strength) + 1
    # A win without a strength says that the difference is beyond the first cut, and no more.
    unknown = levels > num_levels if ties == "rao_kupper" or votes.strength is None else votes.strength < 0
    low = np.where(unknown, has_tie, levels - 1 + has_tie)
    high = np.where(unknown, num_levels + has_tie, levels + has_tie)
    sign = votes.outcome
    return CutPoints(
        low=np.where(sign == 0, -1, np.where(sign > 0, low, -high)),
        high=np.where(sign == 0, 1, np.where(sign > 0, high, -low)),
        num_shape=num_levels - 1 + has_tie,
    )


class _Problem:
    """The penalized likelihood, as a function of scores (K,), coefficients (E,) and shape (S,) in one vector."""

    def __init__(self, votes: PairVotes, ties: Ties, ridge: float) -> None:
        self.votes, self.ridge = votes, ridge
        self.link = _link(votes, ties)
        self.num_covariates = votes.covariates.shape[1]
        self.start: Floats = np.zeros(votes.num_items + self.num_covariates + self.link.num_shape)

    def _split(self, vector: Floats) -> tuple[Floats, Floats, Floats]:
        end = self.votes.num_items + self.num_covariates
        return vector[: self.votes.num_items], vector[self.votes.num_items : end], vector[end:]

    def _difference(self, vector: Floats) -> Floats:
        scores, coefficients, _ = self._split(vector)
        return scores[self.votes.first] - scores[self.votes.second] + self.votes.covariates @ coefficients

    def objective(self, vector: Floats) -> tuple[float, Floats]:
        """Return minus the penalized log-likelihood and its gradient."""
        votes = self.votes
        scores, _, shape = self._split(vector)
        found = self.link(self._difference(vector), shape)
        slope = votes.weight * found.slope
        value = -float(votes.weight @ found.log_likelihood) + self.ridge * float(scores @ scores)
        score_slope = np.bincount(votes.first, weights=slope, minlength=votes.num_items)
        score_slope = score_slope - np.bincount(votes.second, weights=slope, minlength=votes.num_items)
        rest = [votes.covariates.T @ slope, found.shape_slope.T @ votes.weight]
        return value, -np.concatenate([score_slope - 2 * self.ridge * scores, *rest])

    def result(self, vector: Floats, component: Ints) -> ScoreFit:
        """Return the fit at the optimum, with standard errors from the penalized Hessian."""
        votes, num_items = self.votes, self.votes.num_items
        scores, coefficients, shape = self._split(vector)
        found = self.link(self._difference(vector), shape)
        curvature = votes.weight * found.curvature
        edges = (votes.first, votes.second, curvature)
        num_others = len(coefficients) + len(shape)
        cross: Floats | None = None
        other: Floats | None = None
        if num_others and fits_jointly(num_items, num_others):
            columns = np.stack([self._second_derivatives(vector, num_items + e) for e in range(num_others)], axis=1)
            cross, other = columns[:num_items], columns[num_items:]
        covariance = Covariance(edges, component, ridge=2 * self.ridge, cross=cross, other=other)
        errors = np.sqrt(np.diagonal(covariance.other)) if covariance.joint else np.full(num_others, np.nan)
        others = [Coefficient(float(v), float(e)) for v, e in zip(vector[num_items:], errors, strict=True)]
        means = np.bincount(component, weights=scores) / np.bincount(component)
        return ScoreFit(
            scores=scores - means[component],
            errors=covariance.errors(),
            covariance=covariance,
            component=component,
            coefficients=tuple(others[: len(coefficients)]),
            shape=tuple(others[len(coefficients) :]),
            cuts=self.link.cuts(shape)[:-1] if isinstance(self.link, CutPoints) else np.zeros(0),
            log_likelihood=float(votes.weight @ found.log_likelihood),
        )

    def _second_derivatives(self, vector: Floats, parameter: int) -> Floats:
        step = np.zeros_like(vector)
        step[parameter] = _STEP
        return (self.objective(vector + step)[1] - self.objective(vector - step)[1]) / (2 * _STEP)
