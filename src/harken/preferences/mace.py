"""True labels from judges some of whom do not look: a label is the truth, or drawn from the judge's habit."""

import numpy as np

from harken.errors import DataError
from harken.preferences.dawid_skene import LabelFit, Labels
from harken.preferences.numeric import Floats, beta_interval, log_sum_exp

_MAX_ITERATIONS = 500


def fit_mace(
    labels: Labels,
    *,
    restarts: int = 10,
    smoothing: float = 0.5,
    mirrored: bool = False,
    seed: int = 0,
    tolerance: float = 1e-7,
) -> LabelFit:
    """Fit the true labels, how often each judge looks, and what each writes otherwise, by EM with restarts.

    The truth has equal chances of all labels; judge a gives it with probability 1 - s_a, and else a label drawn from
    habit_a. `accuracy` is 1 - s_a: the competence, not the share of right labels, as habits may be right by chance.

    Args:
        labels: what the judges said.
        restarts: searches, the first from equal judges and the others from random ones; the likeliest is kept.
        smoothing: pseudo-count of looking, of not looking, and of each label of a habit.
        mirrored: as in `harken.preferences.dawid_skene.fit_dawid_skene`.
        seed: of the random starts.
        tolerance: stop when the mean log-likelihood of a unit rises by less.

    Raises:
        DataError: no labels, restarts below 1, or a negative pseudo-count.

    Source: Hovy et al. 2013, Learning whom to trust with MACE, NAACL, section 3; there 10 restarts of 50 iterations.
    """
    if restarts < 1 or smoothing < 0:
        raise DataError(f"restarts is {restarts} and smoothing {smoothing}; expected at least 1 and at least 0")
    rng = np.random.default_rng(seed)
    shape = (labels.num_judges, labels.num_labels)
    best: LabelFit | None = None
    best_target = -np.inf
    for restart in range(restarts):
        spam = np.full(shape[0], 0.5) if restart == 0 else rng.uniform(0.05, 0.95, shape[0])
        habit = np.full(shape, 1 / shape[1]) if restart == 0 else rng.dirichlet(np.ones(shape[1]), shape[0])
        found, target = _search(labels, spam, habit, smoothing, mirrored, tolerance)
        if best is None or target > best_target:
            best, best_target = found, target
    assert best is not None
    return best


def _search(
    labels: Labels, spam: Floats, habit: Floats, smoothing: float, mirrored: bool, tolerance: float
) -> tuple[LabelFit, float]:
    """Return the fit that EM reaches from a start, and the target it reached: log-likelihood plus log prior."""
    unit, judge, label = labels.unit, labels.judge, labels.label
    num_given = np.bincount(judge, minlength=labels.num_judges)
    prior = np.full(labels.num_labels, 1 / labels.num_labels)
    target = -np.inf
    iteration = 0
    while True:
        iteration += 1
        by_habit = spam[judge] * habit[judge, label]
        by_truth = 1 - spam[judge] + by_habit
        with np.errstate(divide="ignore"):
            log_habit, log_truth = np.log(by_habit), np.log(by_truth)
        # log P(votes | truth k) = sum of log by_habit, but log by_truth for the votes that say k.
        base = np.bincount(unit, np.maximum(log_habit, -1e9), labels.num_units)
        joint = base[:, None] + labels.counted(unit, log_truth - np.maximum(log_habit, -1e9), labels.num_units)
        joint += np.log(prior)
        totals = log_sum_exp(joint, axis=1)
        posterior = np.exp(joint - totals[:, None])
        log_likelihood = float(totals.sum())
        previous, target = target, log_likelihood + _log_prior(spam, habit, smoothing)
        if target - previous < tolerance * labels.num_units or iteration == _MAX_ITERATIONS:
            break
        # A vote that is not the truth is a habit's; one that is may be either.
        true = posterior[unit, label]
        of_habit = 1 - true + true * by_habit / np.maximum(by_truth, 1e-300)
        counts = labels.counted(judge, of_habit, labels.num_judges)
        if mirrored:
            counts = (counts + counts[:, ::-1]) / 2
        spam = (counts.sum(1) + smoothing) / np.maximum(num_given + 2 * smoothing, 1e-300)
        totals_of_habit = counts.sum(1, keepdims=True) + labels.num_labels * smoothing
        habit = (counts + smoothing) / np.maximum(totals_of_habit, 1e-300)
    looked = (1 - spam) * (num_given + 2 * smoothing)
    low, high = beta_interval(looked + 1e-6, spam * (num_given + 2 * smoothing) + 1e-6, 0.95)
    confusion = spam[:, None, None] * habit[:, None, :] + (1 - spam)[:, None, None] * np.eye(labels.num_labels)
    return LabelFit(posterior, prior, 1 - spam, low, high, log_likelihood, iteration, confusion), target


def _log_prior(spam: Floats, habit: Floats, smoothing: float) -> float:
    if smoothing == 0:
        return 0.0
    with np.errstate(divide="ignore"):
        return smoothing * float((np.log(spam) + np.log(1 - spam)).sum() + np.log(habit).sum())
