"""Kullback-Leibler divergence: per-token estimators, the exact value, and its controller."""

import math
from typing import Literal, assert_never

import torch
from torch import Tensor

from harken.core.aggregate import check_same_shape, masked_sum, zero_outside

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size before exp, so that it cannot overflow."""

MAX_K3 = 10.0
"""Largest k3 of one token; one strange token must not decide an update."""

MAX_KL_ERROR = 0.2
"""Largest relative error the controller reacts to."""


def kl_k1(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token by log policy - log reference.

    Unbiased for tokens drawn from the policy, may be negative. In the reward it gives the exact
    policy gradient of the KL; as a loss its gradient has mean zero.

    Args:
        policy_logprobs: any shape, nats, of tokens drawn from the policy.
        ref_logprobs: same shape, nats, of the same tokens.

    Returns:
        Same shape, nats.

    Raises:
        ValueError: if the shapes differ.

    Source:
        J. Schulman, "Approximating KL divergence" (2020), k1.
    """
    check_same_shape(policy_logprobs, ref_logprobs=ref_logprobs)
    return policy_logprobs - ref_logprobs


def kl_k2(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token by half the squared log-ratio.

    Biased, of low variance; as a loss its gradient is that of the KL.

    Args:
        policy_logprobs: any shape, nats, of tokens drawn from the policy.
        ref_logprobs: same shape, nats, of the same tokens.

    Returns:
        Same shape, nats, at least zero.

    Raises:
        ValueError: if the shapes differ.

    Source:
        J. Schulman, "Approximating KL divergence" (2020), k2.
    """
    return 0.5 * kl_k1(policy_logprobs, ref_logprobs).square()


def kl_k3(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token by exp(-delta) - 1 + delta.

    Unbiased for tokens drawn from the policy as long as no bound is reached; never negative.

    Args:
        policy_logprobs: any shape, nats, of tokens drawn from the policy.
        ref_logprobs: same shape, nats, of the same tokens; delta = policy - reference.

    Returns:
        Same shape, nats, in [0, 10]; delta is clamped to +-20 first.

    Raises:
        ValueError: if the shapes differ.

    Source:
        J. Schulman, "Approximating KL divergence" (2020), k3.
    """
    return _unbounded_k3(policy_logprobs, ref_logprobs).clamp(0.0, MAX_K3)


def _unbounded_k3(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    delta = kl_k1(policy_logprobs, ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1 keeps the digits that exp(-delta) - 1 loses near delta = 0.
    return torch.expm1(-delta) + delta


def kl_loss_terms(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    estimator: Literal["k2", "k3"],
) -> Tensor:
    """Per-token terms of a KL loss, each times the ratio to the policy that drew the token, taken as constant.

    In expectation over the policy the gradient of k2 is that of KL(policy || reference), and that of k3 the gradient
    of KL(reference || policy). k1 is none: its gradient has mean zero. k3 is not bounded here as it is where it is
    measured: a bound would take the gradient from just the tokens that the policy gave up.

    Args:
        policy_logprobs: (B, S), nats, with gradient.
        old_logprobs: (B, S), nats, of the policy before the update; taken as constant.
        ref_logprobs: (B, S), nats; taken as constant.
        mask: (B, S) bool, True = completion token.
        estimator: which.

    Returns:
        (B, S), nats, zero outside the mask.

    Raises:
        ValueError: if the shapes differ.

    Source:
        k3 as a loss: arXiv:2402.03300 eq. 4; k2 and the ratio: Y. Tang and R. Munos, arXiv:2506.09477.
    """
    policy = zero_outside(policy_logprobs, mask)
    old, ref = (zero_outside(x.detach(), mask) for x in (old_logprobs, ref_logprobs))
    ratio = torch.clamp(kl_k1(policy.detach(), old), -MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    match estimator:
        case "k2":
            return ratio * kl_k2(policy, ref)
        case "k3":
            return ratio * _unbounded_k3(policy, ref)
        case _:
            assert_never(estimator)


def full_kl(policy_logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL(policy || reference) of each row's whole distribution.

    Args:
        policy_logits: (..., V); -inf = token of probability zero.
        ref_logits: same shape.

    Returns:
        (...) fp32 (fp64 for fp64 logits), nats, without averaging.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(policy_logits, ref_logits=ref_logits)
    dtype = torch.promote_types(policy_logits.dtype, torch.float32)
    policy_logprobs = policy_logits.to(dtype).log_softmax(dim=-1)
    ref_logprobs = ref_logits.to(dtype).log_softmax(dim=-1)
    has_mass = policy_logprobs > -torch.inf
    return (policy_logprobs.exp() * zero_outside(policy_logprobs - ref_logprobs, has_mass)).sum(-1)


def approx_kl(policy_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """Distance the policy moved since the rollout: half the mean squared log-ratio.

    Args:
        policy_logprobs: (B, S), nats.
        old_logprobs: (B, S), nats, of the policy before the update.
        mask: (B, S) bool, True = counts.
        denominator: counted tokens in the whole batch.

    Returns:
        0-d, nats per token; adds up over microbatches.

    Raises:
        ValueError: if the shapes differ.
    """
    return masked_sum(kl_k2(policy_logprobs, old_logprobs), mask, denominator)


def adaptive_kl_coef(
    kl_coef: float,
    observed_kl: float,
    *,
    target: float,
    horizon: float,
    num_episodes: int,
    lower: float,
    upper: float,
) -> float:
    """KL coefficient for the next batch, moved toward the target KL.

    Args:
        kl_coef: coefficient used for this batch, above zero.
        observed_kl: mean over sequences of the summed k1, nats.
        target: wanted value of ``observed_kl``, nats, above zero.
        horizon: episodes over which a full error changes the coefficient e-fold, about.
        num_episodes: completions in this batch.
        lower: smallest coefficient.
        upper: largest coefficient.

    Returns:
        kl_coef * (1 + clip(observed / target - 1, +-0.2) * num_episodes / horizon), in
        [lower, upper].

    Raises:
        ValueError: if observed_kl is not finite, or a setting is outside its range.

    Source:
        arXiv:1909.08593 section 2.2.
    """
    if not math.isfinite(observed_kl):
        raise ValueError(f"observed KL is {observed_kl}; the policy diverged")
    if not (target > 0 and horizon > 0 and num_episodes > 0 and 0 < lower <= upper):
        raise ValueError(
            f"KL controller: target {target}, horizon {horizon}, num_episodes {num_episodes}, "
            f"bounds [{lower}, {upper}]; expected all above zero and lower <= upper"
        )
    error = min(max(observed_kl / target - 1.0, -MAX_KL_ERROR), MAX_KL_ERROR)
    return min(max(kl_coef * (1.0 + error * num_episodes / horizon), lower), upper)
