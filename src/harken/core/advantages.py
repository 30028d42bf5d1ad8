"""Advantages and returns of completion tokens, and their scaling."""

import torch
from torch import Tensor

from harken.core.aggregate import check_same_shape, masked_moments, zero_outside
from harken.core.masking import check_completion_mask

VARIANCE_EPSILON = 1e-8
"""Added to a variance inside the square root, as in openai/lm-human-preferences."""


def gae(
    rewards: Tensor,
    values: Tensor,
    completion_mask: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation over completion tokens.

    The results carry no gradient and are not whitened. Tokens between completion tokens, which others wrote in a
    conversation of several turns, take no part: the next completion token follows the last one as if they were not
    there.

    Args:
        rewards: (B, S), reward units; the score sits on the last completion token.
        values: (B, S), reward units; the critic's estimate before each token, at rollout.
        completion_mask: (B, S) bool, True = completion token.
        gamma: discount per token, in [0, 1].
        gae_lambda: in [0, 1]; 1 is Monte Carlo, 0 is one-step temporal difference.

    Returns:
        advantages (B, S) and returns (B, S) = advantages + values, fp32 (fp64 for fp64 values),
        zero outside the mask.

    Raises:
        ValueError: if shapes differ, or gamma or lambda is outside [0, 1].

    Source:
        arXiv:1506.02438 eq. 16; recursion of arXiv:1707.06347 eq. 11-12, value 0 after the last
        token (a completion cut by the length limit counts as ended); several turns: as in verl and NeMo-RL.
    """
    check_same_shape(rewards, values=values, completion_mask=completion_mask)
    check_completion_mask(completion_mask)
    if not (0 <= gamma <= 1 and 0 <= gae_lambda <= 1):
        raise ValueError(f"gamma {gamma} and gae_lambda {gae_lambda}, expected values in [0, 1]")
    dtype = torch.promote_types(values.dtype, torch.float32)
    rewards = rewards.detach().to(dtype)
    values = zero_outside(values.detach().to(dtype), completion_mask)
    advantages = torch.zeros_like(values)
    next_value = values.new_zeros(values.shape[0])
    next_advantage = values.new_zeros(values.shape[0])
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * next_value - values[:, step]
        counts = completion_mask[:, step]
        # Across tokens that others wrote both are carried unchanged.
        next_advantage = torch.where(counts, delta + gamma * gae_lambda * next_advantage, next_advantage)
        next_value = torch.where(counts, values[:, step], next_value)
        advantages[:, step] = next_advantage
    advantages = zero_outside(advantages, completion_mask)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and biased variance 1 over the mask.

    Args:
        x: (B, S), of the whole rollout batch.
        mask: (B, S) bool, True = counts.

    Returns:
        (B, S), (x - mean) / sqrt(variance + 1e-8), zero outside the mask; all zero if x is
        constant.

    Raises:
        ValueError: if the shapes differ.
    """
    mean, variance = masked_moments(x, mask)
    return zero_outside((x - mean) * torch.rsqrt(variance + VARIANCE_EPSILON), mask)


def scale_to_unit_std(x: Tensor, mask: Tensor) -> Tensor:
    """Scale deviations from the mean to biased variance 1 over the mask, keeping the mean.

    Args:
        x: (B, S), of the whole rollout batch.
        mask: (B, S) bool, True = counts.

    Returns:
        (B, S), (x - mean) / sqrt(variance + 1e-8) + mean, zero outside the mask.

    Raises:
        ValueError: if the shapes differ.

    Source:
        reward whitening of openai/lm-human-preferences (``whiten(shift_mean=False)``).
    """
    mean, _ = masked_moments(x, mask)
    return zero_outside(whiten(x, mask) + mean, mask)
