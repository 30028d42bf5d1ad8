"""Loss and quality of the critic."""

import torch
from torch import Tensor

from harken.core.aggregate import (
    LossOutput,
    check_same_shape,
    masked_moments,
    masked_sum,
    zero_outside,
)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    completion_mask: Tensor,
    *,
    clip_range: float,
    denominator: float | Tensor,
    huber_delta: float | None = None,
) -> LossOutput:
    """Half the larger squared error of the value and of the clipped value, token mean.

    With ``huber_delta`` d the squared error x^2 is 2 d |x| - d^2 where |x| is above d.

    Args:
        values: (B, S), reward units, with gradient.
        old_values: (B, S), reward units, at rollout; taken as constant.
        returns: (B, S), reward units; taken as constant.
        completion_mask: (B, S) bool, True = completion token.
        clip_range: how far the value may move from ``old_values``, reward units, above zero;
            ``math.inf`` = no clipping.
        denominator: completion tokens in the whole batch of the optimizer step.
        huber_delta: error beyond which the loss grows linearly, reward units, above zero; None = never.

    Returns:
        LossOutput with metric ``value_clip_fraction`` (tokens whose clipped error is the larger).

    Raises:
        ValueError: if shapes differ or clip_range or huber_delta is not above zero.

    Source:
        openai/lm-human-preferences, train_policy.py; Huber: as selectable in ReaL (delta 10).
    """
    if not clip_range > 0:
        raise ValueError(f"clip_range is {clip_range}, expected a value above zero")
    if huber_delta is not None and not huber_delta > 0:
        raise ValueError(f"huber_delta is {huber_delta}, expected a value above zero")
    check_same_shape(values, old_values=old_values, returns=returns)
    mask = completion_mask
    values = zero_outside(values, mask)
    old_values = zero_outside(old_values.detach(), mask)
    returns = zero_outside(returns.detach(), mask)
    # Not old + clamp(difference): its rounding would count values inside the range as clipped.
    clipped_values = values.clamp(old_values - clip_range, old_values + clip_range)
    unclipped = _penalty(values - returns, huber_delta)
    clipped = _penalty(clipped_values - returns, huber_delta)
    loss = 0.5 * masked_sum(torch.maximum(unclipped, clipped), mask, denominator)
    is_clipped = (clipped > unclipped).to(values.dtype)
    return LossOutput(loss, {"value_clip_fraction": masked_sum(is_clipped, mask, denominator)})


def _penalty(error: Tensor, huber_delta: float | None) -> Tensor:
    """Return the squared error, or twice the Huber loss."""
    if huber_delta is None:
        return error.square()
    linear = 2.0 * huber_delta * error.abs() - huber_delta**2
    return torch.where(error.abs() > huber_delta, linear, error.square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Share of the variance of the returns that the critic foresaw.

    It does not add up over microbatches: compute it on the whole rollout batch.

    Args:
        values: (B, S), reward units, at rollout.
        returns: (B, S), reward units.
        mask: (B, S) bool, True = counts.

    Returns:
        0-d, 1 - Var(returns - values) / Var(returns), at most 1; 0 if the returns do not vary.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(values, returns=returns)
    _, variance = masked_moments(returns.detach(), mask)
    _, residual = masked_moments((returns - values).detach(), mask)
    varies = variance > 0
    share = 1.0 - residual / torch.where(varies, variance, torch.ones_like(variance))
    return torch.where(varies, share, torch.zeros_like(share))
