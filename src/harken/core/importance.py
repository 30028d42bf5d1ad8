"""Correction for completions that were drawn by another program than the one that learns from them."""

from torch import Tensor

from harken.core.aggregate import check_same_shape, masked_sum, zero_outside


def truncated_importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, completion_mask: Tensor, *, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights that turn means over a foreign sampler's tokens into means over the policy's own.

    Per token min(exp(old_logprobs - sampler_logprobs), cap). Without the cap the correction would be exact and its
    variance without bound; the cap keeps rare tokens from deciding the step. A policy loss is weighted by scaling its
    advantages: each of its branches is proportional to them.

    Args:
        old_logprobs: (B, S), nats, of the policy before the update, by the program that trains it.
        sampler_logprobs: (B, S), nats, by the program that drew the tokens, of the distribution it drew from.
        completion_mask: (B, S) bool, True = completion token.
        cap: largest weight, at least 1.

    Returns:
        weights (B, S) without gradient, zero outside the mask; and metrics over the batch's completion tokens:
        ``importance_weight_mean``, ``importance_truncated`` (share of tokens whose weight met the cap) and
        ``importance_effective`` (share of the tokens that as many equal weights would be worth).

    Raises:
        ValueError: if shapes differ or the cap is below 1.

    Source:
        E. L. Ionides 2008, Truncated Importance Sampling; per token between an engine that samples and one that
        trains: verl, pull request 2953; slime (cap 2).
    """
    if not cap >= 1:
        raise ValueError(f"cap is {cap}, expected at least 1")
    check_same_shape(old_logprobs, sampler_logprobs=sampler_logprobs)
    ratio = zero_outside((old_logprobs - sampler_logprobs).detach(), completion_mask).exp()
    weights = zero_outside(ratio.clamp(max=cap), completion_mask)
    count = completion_mask.sum().clamp(min=1)
    metrics = {
        "importance_weight_mean": masked_sum(weights, completion_mask, count),
        "importance_truncated": masked_sum((ratio > cap).to(weights.dtype), completion_mask, count),
        # (sum w)^2 / (n sum w^2): Kong 1992.
        "importance_effective": weights.sum().square() / (count * weights.square().sum()),
    }
    return weights, metrics
