"""From a difference of scores to the probability of a vote: wins, ties and graded strength, with derivatives."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from harken.preferences.numeric import Floats, Ints, log_sigmoid, log_sum_exp, sigmoid


@dataclass(frozen=True)
class LinkValue:
    """Log-likelihood of C votes and its derivatives."""

    log_likelihood: Floats
    slope: Floats
    """(C,) derivative with respect to the difference of the scores."""
    curvature: Floats
    """(C,) minus the second derivative; at least 0."""
    shape_slope: Floats
    """(C, S) derivatives with respect to the parameters of the link."""


@dataclass(frozen=True)
class HalfWins:
    """Bradley-Terry: P(first) = sigmoid(difference); a tie is half a win of each.

    Source: Bradley and Terry 1952, doi:10.1093/biomet/39.3-4.324.
    """

    outcome: Ints
    """(C,) 1, 0 (tie) or -1."""
    num_shape = 0

    def __call__(self, difference: Floats, shape: Floats) -> LinkValue:
        """Evaluate; `shape` is empty."""
        share = (self.outcome + 1) / 2
        p = sigmoid(difference)
        value = share * log_sigmoid(difference) + (1 - share) * log_sigmoid(-difference)
        return LinkValue(value, share - p, p * sigmoid(-difference), np.zeros((len(p), 0)))


@dataclass(frozen=True)
class Davidson:
    """P(first) = p / Z and P(tie) = nu sqrt(p q) / Z, where p and q are exp(score) and Z makes the sum 1.

    Source: Davidson 1970, doi:10.1080/01621459.1970.10481082. The parameter is log nu.
    """

    outcome: Ints
    """(C,) 1, 0 (tie) or -1."""
    num_shape = 1

    def __call__(self, difference: Floats, shape: Floats) -> LinkValue:
        """Evaluate with `shape` = (log nu,)."""
        logits = np.stack([difference / 2, -difference / 2, np.full_like(difference, shape[0])])
        log_total = log_sum_exp(logits, axis=0)
        first, second, tie = np.exp(logits - log_total)
        is_tie = (self.outcome == 0).astype(np.float64)
        mean = (first - second) / 2
        value = self.outcome * difference / 2 + is_tie * shape[0] - log_total
        curvature = (first + second) / 4 - mean**2
        return LinkValue(value, self.outcome / 2 - mean, curvature, (is_tie - tie)[:, None])


@dataclass(frozen=True)
class CutPoints:
    """Ordered logit with symmetric cut points: P(a vote below cut c) = sigmoid(cut_c - difference).

    The cuts are 0 = T_0 < T_1 < ... < T_S < T_(S+1) = infinity and the same below 0; a vote says that difference plus
    noise lies between two of them. With one cut and ties between -T_1 and T_1 it is the model of Rao and Kupper with
    theta = exp(T_1). The parameters are log(T_c - T_(c-1)), so the cuts stay in order.

    Source: McCullagh 1980, doi:10.1111/j.2517-6161.1980.tb01109.x; Rao and Kupper 1967,
        doi:10.1080/01621459.1967.10482901.
    """

    low: Ints
    """(C,) signed number of the cut below: -2 is -T_2."""
    high: Ints
    """(C,) signed number of the cut above; more than `low`."""
    num_shape: int

    def cuts(self, shape: Floats) -> Floats:
        """Return T_0 to T_(S+1)."""
        return np.concatenate([[0.0], np.cumsum(np.exp(shape)), [np.inf]])

    def __call__(self, difference: Floats, shape: Floats) -> LinkValue:
        """Evaluate with `shape` = logs of the S steps from one cut to the next."""
        cuts = self.cuts(shape)
        low = np.sign(self.low) * cuts[np.abs(self.low)]
        high = np.sign(self.high) * cuts[np.abs(self.high)]
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which keeps its digits in the tails.
        above, below = high - difference, difference - low
        width = high - low
        value = log_sigmoid(above) + log_sigmoid(below) + np.log(-np.expm1(-width))
        slope = sigmoid(-below) - sigmoid(-above)
        curvature = sigmoid(above) * sigmoid(-above) + sigmoid(below) * sigmoid(-below)
        inside = np.exp(-width) / -np.expm1(-width)
        high_slope, low_slope = sigmoid(-above) + inside, -sigmoid(-below) - inside
        steps = np.exp(shape)
        shape_slope = (
            np.stack(
                [
                    # Step s moves every cut from T_s on, up on the one side and down on the other.
                    steps[s] * (_moves(self.high, s + 1, cuts) * high_slope + _moves(self.low, s + 1, cuts) * low_slope)
                    for s in range(self.num_shape)
                ],
                axis=1,
            )
            if self.num_shape
            else np.zeros((len(value), 0))
        )
        return LinkValue(value, slope, curvature, shape_slope)


def _moves(cut: Ints, from_cut: int, cuts: Floats) -> Floats:
    magnitude = np.abs(cut)
    return np.where((magnitude >= from_cut) & (magnitude < len(cuts) - 1), np.sign(cut), 0).astype(np.float64)


Link: TypeAlias = HalfWins | Davidson | CutPoints
