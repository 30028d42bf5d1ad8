"""Losses of the policy in PPO."""

import math

import torch
from torch import Tensor

from harken.core.aggregate import LossOutput, check_same_shape, masked_sum, zero_outside
from harken.core.kl import MAX_LOG_RATIO, approx_kl


def ppo_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    denominator: float | Tensor,
    dual_clip: float | None = None,
) -> LossOutput:
    """Clipped policy loss, token mean.

    Per token max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)); with ``dual_clip`` c, at
    most c |A| where A is negative.

    Args:
        policy_logprobs: (B, S), nats, with gradient.
        old_logprobs: (B, S), nats, of the policy before the update; taken as constant.
        advantages: (B, S), taken as constant.
        completion_mask: (B, S) bool, True = completion token.
        clip_low: how far below 1 the ratio still counts, in [0, 1].
        clip_high: how far above 1, at least 0.
        denominator: completion tokens in the whole batch of the optimizer step.
        dual_clip: bound on the ratio where the advantage is negative, above 1; None = off.

    Returns:
        LossOutput with metrics ``clip_fraction`` (tokens whose clipped branch is the larger),
        ``approx_kl`` (half the squared log-ratio) and ``ratio``, all token means.

    Raises:
        ValueError: if shapes differ or a setting is outside its range.

    Source:
        arXiv:1707.06347 eq. 7; two bounds: arXiv:2503.14476 (DAPO); dual clip: arXiv:1912.09729.
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low {clip_low} and clip_high {clip_high}, expected [0, 1] and >= 0")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}, expected a value above 1")
    check_same_shape(policy_logprobs, old_logprobs=old_logprobs, advantages=advantages)
    mask = completion_mask
    log_ratio = zero_outside(policy_logprobs - old_logprobs.detach(), mask)
    advantages = zero_outside(advantages.detach(), mask)
    # Clamp so that exp() cannot overflow.
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    per_token = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        bounded = torch.minimum(per_token, -advantages * dual_clip)
        per_token = torch.where(advantages < 0, bounded, per_token)
    with torch.no_grad():
        metrics = {
            "clip_fraction": masked_sum((clipped > unclipped).to(ratio.dtype), mask, denominator),
            "approx_kl": approx_kl(policy_logprobs, old_logprobs, mask, denominator),
            "ratio": masked_sum(ratio, mask, denominator),
        }
    return LossOutput(masked_sum(per_token, mask, denominator), metrics)


def entropy_bonus(entropy: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """Mean entropy per token, to be subtracted from the loss times its coefficient.

    Args:
        entropy: (B, S), nats, with gradient.
        mask: (B, S) bool, True = completion token.
        denominator: completion tokens in the whole batch.

    Returns:
        0-d, nats per token; adds up over microbatches.

    Raises:
        ValueError: if the shapes differ.
    """
    return masked_sum(entropy, mask, denominator)


def adaptive_entropy_coef(entropy_coef: float, entropy: float, *, target: float, change: float, upper: float) -> float:
    """Coefficient of the entropy bonus for the next batch: up while the entropy is below its target, else down.

    Args:
        entropy_coef: coefficient used for this batch, at least 0.
        entropy: of the policy that drew this batch, mean per token, nats.
        target: wanted entropy, nats, at least 0.
        change: how far the coefficient moves a batch, above zero.
        upper: largest coefficient.

    Returns:
        entropy_coef plus or minus ``change``, in [0, upper].

    Raises:
        ValueError: if entropy is not finite, or a setting is outside its range.

    Source:
        arXiv:2505.22312 section 4 (Skywork-OR1).
    """
    if not math.isfinite(entropy):
        raise ValueError(f"entropy is {entropy}; the policy diverged")
    if not (target >= 0 and change > 0 and upper >= 0):
        raise ValueError(f"target {target}, change {change}, upper {upper}; expected at least 0, above 0, at least 0")
    moved = entropy_coef + (change if entropy < target else -change)
    return min(max(moved, 0.0), upper)
