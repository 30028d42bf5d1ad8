"""Running mean and spread of the returns, with which a critic learns normalized values."""

from typing import NamedTuple

from torch import Tensor

from harken.core.aggregate import masked_moments

MIN_STD = 1e-4
"""Smallest standard deviation that is divided by: returns that do not vary are not blown up."""


class Moments(NamedTuple):
    """Decayed sums from which mean and deviation follow; empty at the start.

    Attributes:
        weight: sum of the decayed weights, in [0, 1); 0 before the first batch.
        mean_sum: weighted sum of the batches' means.
        square_sum: weighted sum of the batches' mean squares.
    """

    weight: float = 0.0
    mean_sum: float = 0.0
    square_sum: float = 0.0

    @property
    def mean(self) -> float:
        """Mean, without the bias to 0 of the start; 0 before the first batch."""
        return self.mean_sum / self.weight if self.weight else 0.0

    @property
    def std(self) -> float:
        """Standard deviation, at least 1e-4; 1 before the first batch."""
        if not self.weight:
            return 1.0
        return max(self.square_sum / self.weight - self.mean**2, MIN_STD**2) ** 0.5


def update_moments(moments: Moments, x: Tensor, mask: Tensor, *, decay: float) -> Moments:
    """Moments after one more batch.

    Args:
        moments: before it.
        x: (B, S), of the whole rollout batch.
        mask: (B, S) bool, True = counts.
        decay: share that what was seen before keeps, in [0, 1); 0 is the last batch alone.

    Returns:
        The new moments.

    Raises:
        ValueError: if the shapes differ or the decay is outside its range.

    Source:
        arXiv:1602.07714 (Pop-Art) eq. 9, debiased as in ReaL's value normalization.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}, expected a value in [0, 1)")
    mean, variance = (float(value) for value in masked_moments(x.detach().double(), mask))
    share = 1.0 - decay
    return Moments(
        weight=decay * moments.weight + share,
        mean_sum=decay * moments.mean_sum + share * mean,
        square_sum=decay * moments.square_sum + share * (variance + mean**2),
    )


def normalize(x: Tensor, moments: Moments) -> Tensor:
    """Values in units of the moments: (x - mean) / std.

    Args:
        x: any shape, reward units.
        moments: of the returns.

    Returns:
        Same shape.
    """
    return (x - moments.mean) / moments.std


def denormalize(x: Tensor, moments: Moments) -> Tensor:
    """Values in reward units again: x * std + mean.

    Args:
        x: any shape, units of the moments.
        moments: of the returns.

    Returns:
        Same shape.
    """
    return x * moments.std + moments.mean


def rescaled_head(weight: Tensor, bias: Tensor, old: Moments, new: Moments) -> tuple[Tensor, Tensor]:
    """Linear head whose outputs mean the same in units of the new moments as before in those of the old.

    Args:
        weight: (1, H) of the head.
        bias: (1,) of the head.
        old: moments in whose units the head speaks.
        new: moments in whose units it shall speak.

    Returns:
        weight and bias.

    Source:
        arXiv:1602.07714 eq. 6-7 (preserving outputs precisely).
    """
    return weight * (old.std / new.std), (bias * old.std + old.mean - new.mean) / new.std
