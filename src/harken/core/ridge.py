"""Ridge regression for a linear critic: what it has seen, and the head that fits it best."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

MIN_VARIANCE = 1e-9
"""Least mean variance of the features that the penalty is taken from; states are of order 1."""


class Observations(NamedTuple):
    """Decayed sums over batches, from which the best linear head follows. In fp64: products lose half of the digits.

    Each batch is centered at its own means. Rewards drift as the policy learns, and a head that explains the
    difference between iterations foresees less within the next one.

    Attributes:
        weight: 0-d, decayed number of tokens; 0 before the first batch.
        covariance: (H, H), sum of (x - mean x) (x - mean x)^T.
        cross: (H,), sum of (x - mean x) (y - mean y).
        mean_state: (H,), of the newest batch.
        mean_return: 0-d, of the newest batch.
    """

    weight: Tensor
    covariance: Tensor
    cross: Tensor
    mean_state: Tensor
    mean_return: Tensor


def no_observations(width: int, device: torch.device | None = None) -> Observations:
    """Nothing seen yet.

    Args:
        width: H, of the states.
        device: where the sums live.

    Returns:
        Zeros.
    """
    sizes = ((), (width, width), (width,), (width,), ())
    return Observations(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))


def with_batch(seen: Observations, states: Tensor, returns: Tensor, *, decay: float) -> Observations:
    """Sums after one more batch.

    Args:
        seen: before it.
        states: (N, H), of the tokens that count.
        returns: (N,), reward units.
        decay: share of its weight that what was seen before keeps, in [0, 1].

    Returns:
        The new sums.

    Raises:
        ValueError: if the shapes differ, no token counts, or the decay is outside its range.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}, expected a value in [0, 1]")
    if not len(returns) or states.shape != (len(returns), len(seen.cross)):
        raise ValueError(
            f"states are {tuple(states.shape)} and returns {tuple(returns.shape)}, expected (N, {len(seen.cross)}) and "
            "(N,) with N at least 1"
        )
    x, y = states.detach().double(), returns.detach().double()
    mean_state, mean_return = x.mean(dim=0), y.mean()
    x = x - mean_state
    return Observations(
        decay * seen.weight + len(y),
        decay * seen.covariance + x.T @ x,
        decay * seen.cross + x.T @ (y - mean_return),
        mean_state,
        mean_return,
    )


def ridge_head(seen: Observations, *, ridge: float) -> tuple[Tensor, Tensor]:
    """The linear head with the least squared error, drawn to 0 by `ridge`.

    It minimizes the decayed sum of (w x - y)^2 over centered batches + ridge * v * |w|^2, v the mean variance of the H
    features: the penalty weighs as much as `ridge` tokens. The bias makes it right on average for the newest batch.

    Args:
        seen: at least one batch.
        ridge: tokens that weights of 0 are worth, above zero.

    Returns:
        weight (H,) and bias (), fp64.

    Raises:
        ValueError: if nothing was seen or `ridge` is not above zero.

    Source:
        Hoerl and Kennard 1970; without the penalty it is where the squared value loss ends on fixed states.
    """
    if not float(seen.weight) > 0:
        raise ValueError("no token was seen, expected at least one; call with_batch first")
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}, expected a value above zero")
    penalty = ridge * (seen.covariance.diagonal().mean() / seen.weight).clamp_min(MIN_VARIANCE)
    system = seen.covariance + penalty * torch.eye(len(seen.cross), dtype=torch.float64, device=seen.cross.device)
    weight = cast("Tensor", torch.linalg.solve(system, seen.cross))  # pyright: ignore[reportUnknownMemberType]
    return weight, seen.mean_return - weight @ seen.mean_state
