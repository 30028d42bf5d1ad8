"""True labels from the labels of judges who err in their own ways: Dawid and Skene's model, by EM."""

from dataclasses import dataclass

import numpy as np

from harken.errors import DataError
from harken.preferences.numeric import Floats, Ints, beta_interval, count, log_sum_exp

_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Labels:
    """V labels, each given by one of J judges to one of N units; labels are 0 to C - 1."""

    unit: Ints
    judge: Ints
    label: Ints
    num_units: int
    num_judges: int
    num_labels: int

    def __post_init__(self) -> None:
        if len(self.label) == 0:
            raise DataError("no labels; expected at least one")

    def shares(self) -> Floats:
        """Return the share (N, C) of each label in each unit; equal shares where there is none."""
        counts = self.counted(self.unit, np.ones(len(self.unit)), self.num_units)
        totals = counts.sum(1, keepdims=True)
        return np.where(totals > 0, counts / np.maximum(totals, 1), 1 / self.num_labels)

    def counted(self, index: Ints, weights: Floats, size: int) -> Floats:
        """Return (size, C): the sum of weights of the votes with each index and label."""
        cells = count(index * self.num_labels + self.label, size * self.num_labels, weights)
        return cells.reshape(size, self.num_labels)


@dataclass(frozen=True)
class LabelFit:
    """Probabilities of the true labels, and how well each judge names them."""

    posterior: Floats
    """(N, C), rows sum to 1."""
    prior: Floats
    """(C,) share of each label among the units."""
    accuracy: Floats
    """(J,) probability that the judge gives the true label to a unit of the mix it saw."""
    accuracy_low: Floats
    accuracy_high: Floats
    """Ends of 95 % intervals: of a Beta distribution with the expected right and wrong labels, and the smoothing."""
    log_likelihood: float
    num_iterations: int
    confusion: Floats
    """(J, C, C) probability of the label in the column where the truth is the row."""


def fit_dawid_skene(
    labels: Labels,
    *,
    smoothing: float = 1.0,
    diagonal: float = 2.0,
    one_coin: bool = False,
    mirrored: bool = False,
    tolerance: float = 1e-9,
) -> LabelFit:
    """Fit the true labels and each judge's confusion by smoothed EM, from the shares of the votes.

    Args:
        labels: what the judges said.
        smoothing: pseudo-count of every cell of a judge's confusion. 0 is plain maximum likelihood, which with few
            labels calls itself certain.
        diagonal: further pseudo-count of the right label.
        one_coin: a judge is right with one probability, whatever the truth; errors are spread evenly.
        mirrored: labels k and C - 1 - k are the two sides of a pair in an order that means nothing (first, tie, second
            of two ids), so prior and confusion are the same with both orders turned around.
        tolerance: stop when the mean log-likelihood of a unit rises by less.

    Raises:
        DataError: no labels, or a negative pseudo-count.

    Source: Dawid and Skene 1979, doi:10.2307/2346806.
    """
    if smoothing < 0 or diagonal < 0:
        raise DataError(f"smoothing is {smoothing} and diagonal {diagonal}; expected at least 0")
    pseudo = np.full((labels.num_labels, labels.num_labels), smoothing) + diagonal * np.eye(labels.num_labels)
    posterior = labels.shares()
    previous = -np.inf
    iteration = 0
    while True:
        iteration += 1
        prior = posterior.mean(0)
        counts = np.stack(
            [labels.counted(labels.judge, posterior[labels.unit, k], labels.num_judges) for k in range(len(prior))], 1
        )
        if mirrored:
            prior, counts = (prior + prior[::-1]) / 2, (counts + counts[:, ::-1, ::-1]) / 2
        confusion = _confusion(counts, pseudo, one_coin)
        with np.errstate(divide="ignore"):
            log_prior, log_confusion = np.log(prior), np.log(confusion)
        joint = log_prior + np.stack(
            [
                np.bincount(labels.unit, log_confusion[labels.judge, k, labels.label], labels.num_units)
                for k in range(len(prior))
            ],
            1,
        )
        totals = log_sum_exp(joint, axis=1)
        posterior = np.exp(joint - totals[:, None])
        log_likelihood = float(totals.sum())
        target = log_likelihood + _log_prior(log_confusion, pseudo)
        if target - previous < tolerance * labels.num_units or iteration == _MAX_ITERATIONS:
            break
        previous = target
    accuracy, low, high = _accuracies(labels, posterior, diagonal + smoothing, max(smoothing, 1e-6))
    return LabelFit(posterior, prior, accuracy, low, high, log_likelihood, iteration, confusion)


def _accuracies(
    labels: Labels, posterior: Floats, right_pseudo: float, wrong_pseudo: float
) -> tuple[Floats, Floats, Floats]:
    """Return the judges' accuracies (J,) and the ends of their intervals, from the expected right and wrong labels."""
    right = count(labels.judge, labels.num_judges, posterior[labels.unit, labels.label])
    wrong = count(labels.judge, labels.num_judges) - right + wrong_pseudo
    right = right + right_pseudo
    low, high = beta_interval(right, wrong, 0.95)
    return right / (right + wrong), low, high


def _confusion(counts: Floats, pseudo: Floats, one_coin: bool) -> Floats:
    """Return the judges' confusion (J, C, C) for expected counts (J, C, C)."""
    counts = counts + pseudo
    num_labels = counts.shape[1]
    if one_coin:
        right: Floats = np.einsum("akk->a", counts) / np.maximum(counts.sum((1, 2)), 1e-300)
        right = right[:, None, None]
        return np.where(np.eye(num_labels) > 0, right, (1 - right) / max(1, num_labels - 1))
    totals = counts.sum(2, keepdims=True)
    return np.where(totals > 0, counts / np.where(totals > 0, totals, 1), 1 / num_labels)


def _log_prior(log_confusion: Floats, pseudo: Floats) -> float:
    """Return the part of the target that the pseudo-counts are; 0 without them, where logs may be infinite."""
    return float((pseudo * np.where(pseudo > 0, log_confusion, 0)).sum())
