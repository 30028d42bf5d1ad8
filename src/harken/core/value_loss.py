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
) -> LossOutput:
    """Half the larger squared error of the value and of the clipped value, token mean.

    Args:
        values: (B, S), reward units, with gradient.
        old_values: (B, S), reward units, at rollout; taken as constant.
        returns: (B, S), reward units; taken as constant.
        completion_mask: (B, S) bool, True = completion token.
        clip_range: how far the value may move from ``old_values``, reward units, above zero;
            ``math.inf`` = no clipping.
        denominator: completion tokens in the whole batch of the optimizer step.

    Returns:
        LossOutput with metric ``value_clip_fraction`` (tokens whose clipped error is the larger).

    Raises:
        ValueError: if shapes differ or clip_range is not above zero.

    Source:
        openai/lm-human-preferences, train_policy.py.
    """
    if not clip_range > 0:
        raise ValueError(f"clip_range is {clip_range}, expected a value above zero")
    check_same_shape(values, old_values=old_values, returns=returns)
    mask = completion_mask
    values = zero_outside(values, mask)
    old_values = zero_outside(old_values.detach(), mask)
    returns = zero_outside(returns.detach(), mask)
    # Not old + clamp(difference): its rounding would count values inside the range as clipped.
    clipped_values = values.clamp(old_values - clip_range, old_values + clip_range)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    loss = 0.5 * masked_sum(torch.maximum(unclipped, clipped), mask, denominator)
    is_clipped = (clipped > unclipped).to(values.dtype)
    return LossOutput(loss, {"value_clip_fraction": masked_sum(is_clipped, mask, denominator)})


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
