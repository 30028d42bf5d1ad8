"""Scores of completions from rankings, ties included: Plackett and Luce's model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harken.errors import DataError
from harken.preferences.bradley_terry import moderated
from harken.preferences.numeric import Floats, Ints, components, inverse, minimize

MAX_TIED = 10
"""Completions of one rank, of which all orders are summed over (2^n steps)."""
_STEP = 1e-5


@dataclass(frozen=True)
class RankingFit:
    """Scores in logits: the next in a ranking is drawn with probability exp(score) / sum over those left."""

    items: tuple[str, ...]
    scores: Floats
    """(K,), with mean 0 in each component."""
    errors: Floats
    """(K,) standard errors."""
    component: Ints
    log_likelihood: float
    _blocks: dict[int, Floats]
    _position: Ints

    def preference(self, first: Ints, second: Ints) -> Floats:
        """Return the probabilities (N,) that first is ranked before second, drawn to 1/2 by what is not known."""
        return moderated(self.scores[first] - self.scores[second], self.variance(first, second))

    def variance(self, first: Ints, second: Ints) -> Floats:
        """Return the variances (N,) of score[first] - score[second]; infinite where they share no component."""
        variance = np.full(len(first), np.inf)
        for index, (one, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            if self.component[one] == self.component[other]:
                block = self._blocks[int(self.component[one])]
                i, j = self._position[one], self._position[other]
                variance[index] = block[i, i] + block[j, j] - 2 * block[i, j]
        return variance


@dataclass(frozen=True)
class _Stage:
    """The B places of rankings at which d tied items precede R others (0 others are left out)."""

    tied: Ints
    """(B, d) items."""
    rest: Ints
    """(B, R) items, padded with -1."""


def fit_rankings(rankings: Sequence[Mapping[str, int]], *, ridge: float = 0.5) -> RankingFit:
    """Fit Plackett-Luce scores to rankings of any lengths; equal ranks are ties.

    A tie says that nothing is known of the order inside it: its likelihood is the sum over all orders, so no order is
    made up. Rankings of two are comparisons, and the model is then that of Bradley and Terry.

    Args:
        rankings: id -> rank, 1 is best; those that rank nothing above anything say nothing.
        ridge: coefficient of the sum of squared scores, above 0.

    Raises:
        DataError: nothing is ranked above anything, ridge is not above 0, or more than `MAX_TIED` share a rank.

    Source: Plackett 1975, doi:10.2307/2346567; the tie as a sum over orders is the exact method of Kalbfleisch and
        Prentice 1973, doi:10.1093/biomet/60.2.267.
    """
    if ridge <= 0:
        raise DataError(f"ridge is {ridge}; expected above 0")
    items = sorted({name for ranking in rankings for name in ranking})
    index = {name: number for number, name in enumerate(items)}
    stages = _stages([{index[name]: rank for name, rank in ranking.items()} for ranking in rankings])
    if not stages:
        raise DataError("no ranking has one completion above another; expected at least one that does")
    num_items = len(items)

    def objective(scores: Floats) -> tuple[float, Floats]:
        value, gradient = log_likelihood(scores, stages)
        return ridge * float(scores @ scores) - value, 2 * ridge * scores - gradient

    scores = minimize(objective, np.zeros(num_items))
    edges = [
        (np.broadcast_to(stage.tied[:, :1], joined.shape)[joined >= 0], joined[joined >= 0])
        for stage in stages
        for joined in [np.concatenate([stage.tied[:, 1:], stage.rest], axis=1)]
    ]
    first, second = (np.concatenate([edge[side] for edge in edges]) for side in (0, 1))
    component = components(first, second, num_items)
    blocks, position = _inverses(objective, scores, component, ridge)
    variance = np.array([blocks[int(component[k])][position[k], position[k]] for k in range(num_items)])
    means = np.bincount(component, weights=scores) / np.bincount(component)
    return RankingFit(
        items=tuple(items),
        scores=scores - means[component],
        errors=np.sqrt(variance),
        component=component,
        log_likelihood=log_likelihood(scores, stages)[0],
        _blocks=blocks,
        _position=position,
    )


def _stages(rankings: Sequence[Mapping[int, int]]) -> list[_Stage]:
    """Return the places of all rankings, those with equally many tied and left together."""
    found: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {}
    for ranking in rankings:
        levels: dict[int, list[int]] = {}
        for item, rank in ranking.items():
            levels.setdefault(rank, []).append(item)
        ordered = [levels[rank] for rank in sorted(levels)]
        for place, tied in enumerate(ordered[:-1]):
            if len(tied) > MAX_TIED:
                raise DataError(
                    f"a ranking has {len(tied)} completions of one rank; at most {MAX_TIED} can be summed over: "
                    "use bradley_terry, which reads a ranking pair by pair"
                )
            rest = [item for level in ordered[place + 1 :] for item in level]
            # Padded to a power of 2, so that a million rankings of many lengths are a few arrays.
            width = 1 << (len(rest) - 1).bit_length()
            found.setdefault((len(tied), width), []).append((tied, rest + [-1] * (width - len(rest))))
    return [
        _Stage(np.array([row[0] for row in rows], dtype=np.int64), np.array([row[1] for row in rows], dtype=np.int64))
        for _, rows in sorted(found.items())
    ]


def log_likelihood(scores: Floats, stages: Sequence[_Stage]) -> tuple[float, Floats]:
    """Return the log-likelihood of all stages and its gradient (K,).

    With w = exp(score), D the tied items and W the sum of w over those left, P(D comes first, in any order) is f(D),
    where f(S) = sum over j in S of f(S without j) w_j / (W + sum of w over S) and f(empty) = 1: the sum over all
    orders, with every subset computed once. All terms are positive, so nothing cancels.
    """
    total = 0.0
    gradient = np.zeros(len(scores))
    for stage in stages:
        is_left = stage.rest >= 0
        left = np.where(is_left, scores[stage.rest], -np.inf)
        # Only differences matter; the largest of the place is moved to 0.
        top = np.maximum(left.max(1), scores[stage.tied].max(1))[:, None]
        tied_weight, left_weight = np.exp(scores[stage.tied] - top), np.exp(left - top)
        value, slope_tied, slope_left = _orders(tied_weight, left_weight.sum(1))
        total += float(np.log(value).sum())
        np.add.at(gradient, stage.tied, slope_tied * tied_weight / value[:, None])
        slope = (slope_left / value)[:, None] * left_weight
        np.add.at(gradient, stage.rest[is_left], slope[is_left])
    return total, gradient


def _orders(weight: Floats, left: Floats) -> tuple[Floats, Floats, Floats]:
    """Return f(D) (B,), and its derivatives with respect to the weights (B, d) and to what is left (B,)."""
    rows, size = weight.shape
    values: list[Floats] = [np.ones(rows)]
    slopes: list[Floats] = [np.zeros((rows, size))]
    slopes_left: list[Floats] = [np.zeros(rows)]
    for subset in range(1, 1 << size):
        members = [j for j in range(size) if subset >> j & 1]
        below = left + weight[:, members].sum(1)
        numerator, slope, slope_left = np.zeros(rows), np.zeros((rows, size)), np.zeros(rows)
        # j is the first of the subset to be placed, with the whole subset and what is left to draw from.
        for j in members:
            without = subset ^ (1 << j)
            numerator += weight[:, j] * values[without]
            slope += weight[:, [j]] * slopes[without]
            slope[:, j] += values[without]
            slope_left += weight[:, j] * slopes_left[without]
        value = numerator / below
        slope[:, members] -= value[:, None]
        values.append(value)
        slopes.append(slope / below[:, None])
        slopes_left.append((slope_left - value) / below)
    return values[-1], slopes[-1], slopes_left[-1]


def _inverses(
    objective: Callable[[Floats], tuple[float, Floats]], scores: Floats, component: Ints, ridge: float
) -> tuple[dict[int, Floats], Ints]:
    """Return the covariance of each component, and each item's position in it.

    Components do not act on each other, so the n-th item of every component is moved at once, and the Hessian's columns
    of all of them are central differences of the gradient.
    """
    sizes = np.bincount(component)
    order = np.argsort(component, kind="stable")
    position = np.empty(len(scores), dtype=np.int64)
    position[order] = np.arange(len(scores)) - np.repeat(np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    members = np.split(order, np.cumsum(sizes)[:-1])
    hessians = [np.zeros((size, size)) for size in sizes.tolist()]
    for column in range(int(sizes.max())):
        step = np.where(position == column, _STEP, 0.0)
        change = (objective(scores + step)[1] - objective(scores - step)[1]) / (2 * _STEP)
        for number, own in enumerate(members):
            if column < len(own):
                hessians[number][:, column] = change[own]
    blocks: dict[int, Floats] = {}
    for number, hessian in enumerate(hessians):
        size = len(hessian)
        # As in `Covariance`: the mean of a component is fixed, so its variance is taken away.
        blocks[number] = inverse((hessian + hessian.T) / 2 + 1 / size) - 1 / (size * (1 + 2 * ridge))
    return blocks, position
