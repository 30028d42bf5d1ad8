"""Scores of completions and of those who judge them: careless, reversed and one-sided judges found together."""

from dataclasses import dataclass

import numpy as np

from harken.errors import DataError
from harken.preferences.bradley_terry import moderated
from harken.preferences.covariance import Covariance, fits_jointly
from harken.preferences.numeric import Floats, Ints, components, count, log_sigmoid, minimize, normal_quantile, sigmoid
from harken.preferences.votes import Votes

MAX_RELIABILITY_VOTES = 200_000
"""Votes up to which reports fit this model; larger ones take minutes."""


@dataclass(frozen=True)
class ReliabilityFit:
    """Scores in the logits of a judge of reliability 1, and what is known of each judge."""

    scores: Floats
    """(K,), with mean 0 in each component."""
    errors: Floats
    """(K,) standard errors; NaN in components too large to invert."""
    covariance: Covariance
    component: Ints
    reliability: Floats
    """(J,) factor of a judge's differences: 1 typical, 0 careless, below 0 reversed; its mean size over votes is 1."""
    reliability_errors: Floats
    bias: Floats
    """(J,) logits added for the side shown first. Drawn towards 0 by the prior."""
    bias_errors: Floats
    log_likelihood: float

    def preference(self, first: Ints, second: Ints) -> Floats:
        """Return the probabilities (N,) that a judge of reliability 1 and without a bias prefers first."""
        variance = np.nan_to_num(self.covariance.variance_of_difference(first, second), nan=0.0)
        return moderated(self.scores[first] - self.scores[second], variance)

    def intervals(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return the ends of the normal intervals of the reliabilities, each (J,)."""
        reach = normal_quantile(level) * self.reliability_errors
        return self.reliability - reach, self.reliability + reach


def fit_reliability(
    votes: Votes, *, ridge: float = 0.5, spread: float = 1.0, bias_spread: float = 1.0
) -> ReliabilityFit:
    """Fit logit P(judge a prefers first) = reliability_a (score_first - score_second) + bias_a side.

    `side` is 1 where first was shown first, else -1. A tie is half a win of each. The priors, which make the scale and
    the sign of the scores known: score ~ N(0, 1 / (2 ridge)), reliability ~ N(1, spread^2), which allows a reversed
    judge, and bias ~ N(0, bias_spread^2). The likelihood has several maxima; the search begins at the scores of equal
    judges, so most judges must be on the side of the truth.

    Args:
        votes: V votes on K completions by J judges.
        ridge: coefficient of the sum of squared scores, above 0.
        spread: standard deviation of the judges' reliabilities.
        bias_spread: standard deviation of their biases, logits.

    Raises:
        DataError: no votes.

    Source: a factor for each judge as in Dawid and Skene's spirit for pairs: Chen et al. 2013 (CrowdBT),
        doi:10.1145/2433396.2433420; here with a normal prior instead of a mixture, and with a side term.
    """
    if len(votes) == 0:
        raise DataError("no votes; expected at least one comparison that was won or tied")
    problem = _Problem(votes, ridge, spread, bias_spread)
    num_items, num_judges = len(votes.items), len(votes.judges)
    equal_judges = problem.start.copy()

    def scores_only(scores: Floats) -> tuple[float, Floats]:
        equal_judges[:num_items] = scores
        value, gradient = problem.objective(equal_judges)
        return value, gradient[:num_items]

    equal_judges[:num_items] = minimize(scores_only, np.zeros(num_items))
    best = minimize(problem.objective, equal_judges.copy())
    component = components(votes.first, votes.second, num_items)
    covariance, judge_variance = problem.covariance(best, component)
    scores, reliability, bias = problem.split(best)
    means = np.bincount(component, weights=scores) / np.bincount(component)
    # Far more scores than judges are drawn to their prior, so the optimum has small scores and large reliabilities,
    # whatever the judges are like. Only their products are in the likelihood: here the judges' mean size becomes 1.
    num_votes = count(votes.judge, num_judges, votes.weight)
    typical = float(num_votes @ np.abs(reliability)) / float(num_votes.sum())
    covariance = covariance.scaled(typical)
    return ReliabilityFit(
        scores=typical * (scores - means[component]),
        errors=covariance.errors(),
        covariance=covariance,
        component=component,
        reliability=reliability / typical,
        reliability_errors=np.sqrt(judge_variance[:num_judges]) / typical,
        bias=bias,
        bias_errors=np.sqrt(judge_variance[num_judges:]),
        log_likelihood=problem.log_likelihood(best),
    )


class _Problem:
    """Minus the log posterior of scores (K,), reliabilities (J,) and biases (J,) in one vector."""

    def __init__(self, votes: Votes, ridge: float, spread: float, bias_spread: float) -> None:
        self.num_items, self.num_judges = len(votes.items), len(votes.judges)
        self.ridge, self.precision, self.bias_precision = ridge, 1 / spread**2, 1 / bias_spread**2
        # Equal votes are added up, whatever their order: 2 sides, at most 3 outcomes.
        key = (votes.first * self.num_items + votes.second) * self.num_judges + votes.judge
        key = (key * 2 + (votes.side > 0)) * 3 + (votes.outcome + 1)
        cells, chosen, cell = np.unique(key, return_index=True, return_inverse=True)
        self.weight: Floats = count(cell, len(cells), votes.weight)
        self.first, self.second, self.judge = votes.first[chosen], votes.second[chosen], votes.judge[chosen]
        self.side = votes.side[chosen].astype(np.float64)
        self.share = (votes.outcome[chosen] + 1) / 2
        self.start: Floats = np.concatenate(
            [np.zeros(self.num_items), np.ones(self.num_judges), np.zeros(self.num_judges)]
        )

    def split(self, vector: Floats) -> tuple[Floats, Floats, Floats]:
        """Return scores, reliabilities and biases."""
        end = self.num_items + self.num_judges
        return vector[: self.num_items], vector[self.num_items : end], vector[end:]

    def _logits(self, vector: Floats) -> tuple[Floats, Floats]:
        scores, reliability, bias = self.split(vector)
        difference = scores[self.first] - scores[self.second]
        return difference, reliability[self.judge] * difference + bias[self.judge] * self.side

    def log_likelihood(self, vector: Floats) -> float:
        """Return the log-likelihood of the votes, the priors left out."""
        _, logits = self._logits(vector)
        return float(self.weight @ (self.share * log_sigmoid(logits) + (1 - self.share) * log_sigmoid(-logits)))

    def objective(self, vector: Floats) -> tuple[float, Floats]:
        """Return minus the log posterior (up to a constant) and its gradient."""
        scores, reliability, bias = self.split(vector)
        difference, logits = self._logits(vector)
        value = self.ridge * float(scores @ scores) - self.log_likelihood(vector)
        value += 0.5 * self.precision * float((reliability - 1) @ (reliability - 1))
        value += 0.5 * self.bias_precision * float(bias @ bias)
        slope = self.weight * (self.share - sigmoid(logits))
        towards = slope * reliability[self.judge]
        gradient = [
            2 * self.ridge * scores
            - np.bincount(self.first, weights=towards, minlength=self.num_items)
            + np.bincount(self.second, weights=towards, minlength=self.num_items),
            self.precision * (reliability - 1) - self._by_judge(slope * difference),
            self.bias_precision * bias - self._by_judge(slope * self.side),
        ]
        return value, np.concatenate(gradient)

    def _by_judge(self, values: Floats) -> Floats:
        return count(self.judge, self.num_judges, values)

    def covariance(self, vector: Floats, component: Ints) -> tuple[Covariance, Floats]:
        """Return the scores' covariance and the variances (2J,) of reliabilities and biases.

        From the Fisher information plus the priors, which unlike the Hessian of this likelihood is always positive.
        With too many judges for a joint inverse, the judges' variances are those given the scores.
        """
        _, reliability, _ = self.split(vector)
        difference, logits = self._logits(vector)
        information = self.weight * sigmoid(logits) * sigmoid(-logits)
        factor = reliability[self.judge]
        edges = (self.first, self.second, information * factor**2)
        diagonal = [
            self._by_judge(information * difference**2) + self.precision,
            self._by_judge(information) + self.bias_precision,
        ]
        mixed = self._by_judge(information * difference * self.side)
        num_others = 2 * self.num_judges
        if not fits_jointly(self.num_items, num_others):
            determinant = diagonal[0] * diagonal[1] - mixed**2
            variances = np.concatenate([diagonal[1] / determinant, diagonal[0] / determinant])
            return Covariance(edges, component, ridge=2 * self.ridge), variances
        cross = np.zeros(self.num_items * num_others)
        for offset, values in ((0, difference), (self.num_judges, self.side)):
            for item, sign in ((self.first, 1), (self.second, -1)):
                cells = item * num_others + self.judge + offset
                cross += np.bincount(cells, weights=sign * information * factor * values, minlength=len(cross))
        other = np.diag(np.concatenate(diagonal))
        other[: self.num_judges, self.num_judges :] = other[self.num_judges :, : self.num_judges] = np.diag(mixed)
        matrix = cross.reshape(self.num_items, num_others)
        found = Covariance(edges, component, ridge=2 * self.ridge, cross=matrix, other=other)
        return found, np.diagonal(found.other)
