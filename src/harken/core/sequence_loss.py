"""Policy losses of the kin of PPO: REINFORCE, one ratio a sequence (GSPO), a clipped weight (CISPO)."""

import torch
from torch import Tensor

from harken.core.aggregate import LossOutput, check_same_shape, masked_sum, zero_outside
from harken.core.kl import MAX_LOG_RATIO, approx_kl
from harken.core.policy_loss import ppo_policy_loss


def reinforce_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    denominator: float | Tensor,
) -> LossOutput:
    """Minus advantage times log-probability: the policy gradient itself, for completions of the policy as it is.

    Args:
        policy_logprobs: (B, S), nats, with gradient.
        old_logprobs: (B, S), nats, of the policy before the update; for the metrics only.
        advantages: (B, S), taken as constant.
        completion_mask: (B, S) bool, True = completion token.
        denominator: completion tokens in the whole batch of the optimizer step.

    Returns:
        LossOutput with metrics ``clip_fraction`` (always 0), ``approx_kl`` and ``ratio``, as of PPO.

    Raises:
        ValueError: if shapes differ.

    Source:
        R. J. Williams 1992; per token as in arXiv:2402.14740 eq. 6.
    """
    check_same_shape(policy_logprobs, old_logprobs=old_logprobs, advantages=advantages)
    mask = completion_mask
    per_token = -zero_outside(advantages.detach(), mask) * zero_outside(policy_logprobs, mask)
    ratio = _ratio(policy_logprobs, old_logprobs, mask).detach()
    metrics = _metrics(ratio, torch.zeros_like(mask), policy_logprobs, old_logprobs, mask, denominator)
    return LossOutput(masked_sum(per_token, mask, denominator), metrics)


def gspo_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    denominator: float | Tensor,
) -> LossOutput:
    """PPO's clipped loss with one ratio for all tokens of a completion: exp of the mean log-ratio.

    With the aggregation "sequence mean" this is the loss of the paper.

    Args:
        policy_logprobs: (B, S), nats, with gradient.
        old_logprobs: (B, S), nats, of the policy before the update; taken as constant.
        advantages: (B, S), taken as constant; one value a row in the paper.
        completion_mask: (B, S) bool, True = completion token.
        clip_low: how far below 1 the sequence's ratio still counts, in [0, 1].
        clip_high: how far above 1, at least 0.
        denominator: completion tokens in the whole batch of the optimizer step.

    Returns:
        LossOutput with metrics ``clip_fraction`` and ``ratio`` of the sequence's ratio, and ``approx_kl`` of the
        tokens', all token means.

    Raises:
        ValueError: if shapes differ or a setting is outside its range.

    Source:
        arXiv:2507.18071 eq. 5-7.
    """
    check_same_shape(policy_logprobs, old_logprobs=old_logprobs, advantages=advantages)
    mask = completion_mask
    log_ratio = zero_outside(policy_logprobs - old_logprobs.detach(), mask)
    mean_log_ratio = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    output = ppo_policy_loss(
        mean_log_ratio.expand_as(log_ratio),
        torch.zeros_like(log_ratio),
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        denominator=denominator,
    )
    moved = approx_kl(policy_logprobs.detach(), old_logprobs.detach(), mask, denominator)
    return LossOutput(output.loss, {**output.metrics, "approx_kl": moved})


def cispo_policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    denominator: float | Tensor,
) -> LossOutput:
    """REINFORCE weighted by the clipped ratio, which is taken as constant: no token loses its gradient.

    Args:
        policy_logprobs: (B, S), nats, with gradient.
        old_logprobs: (B, S), nats, of the policy before the update; taken as constant.
        advantages: (B, S), taken as constant.
        completion_mask: (B, S) bool, True = completion token.
        clip_low: weights are at least 1 - clip_low; in [0, 1], 1 is no lower bound.
        clip_high: weights are at most 1 + clip_high, at least 0.
        denominator: completion tokens in the whole batch of the optimizer step.

    Returns:
        LossOutput with metrics ``clip_fraction`` (tokens whose weight was clipped), ``approx_kl`` and ``ratio``.

    Raises:
        ValueError: if shapes differ or a setting is outside its range.

    Source:
        arXiv:2506.13585 eq. 4-5 (MiniMax-M1).
    """
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(f"clip_low {clip_low} and clip_high {clip_high}, expected [0, 1] and >= 0")
    check_same_shape(policy_logprobs, old_logprobs=old_logprobs, advantages=advantages)
    mask = completion_mask
    ratio = _ratio(policy_logprobs, old_logprobs, mask).detach()
    weights = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    per_token = -weights * zero_outside(advantages.detach(), mask) * zero_outside(policy_logprobs, mask)
    metrics = _metrics(ratio, weights != ratio, policy_logprobs, old_logprobs, mask, denominator)
    return LossOutput(masked_sum(per_token, mask, denominator), metrics)


def _ratio(policy_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    log_ratio = zero_outside(policy_logprobs - old_logprobs, mask)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _metrics(
    ratio: Tensor, is_clipped: Tensor, policy: Tensor, old: Tensor, mask: Tensor, denominator: float | Tensor
) -> dict[str, Tensor]:
    return {
        "clip_fraction": masked_sum(is_clipped.to(ratio.dtype), mask, denominator),
        "approx_kl": approx_kl(policy.detach(), old.detach(), mask, denominator),
        "ratio": masked_sum(ratio, mask, denominator),
    }
