"""Loss that trains a policy on completions that are good or bad each by itself: no pairs, no reward model."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from harken.core.aggregate import LossOutput, check_above_zero, check_denominator, check_same_shape


class Labeled(NamedTuple):
    """N completions that are good or bad each by itself, as `kto_loss` sees them.

    Attributes:
        logprobs: (N,) nats, sums over the completion's tokens under the policy, with gradient.
        ref_logprobs: (N,) nats, the same under the reference; no gradient flows into it.
        soft_labels: (N,), probability in [0, 1] that the completion is good.
        weights: (N,), at least zero.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    soft_labels: Tensor
    weights: Tensor


def kto_loss(
    completions: Labeled,
    *,
    beta: float,
    baseline: float | Tensor,
    good_weight: float,
    bad_weight: float,
    good_share: float,
    denominator: float | Tensor,
) -> LossOutput:
    """Kahneman-Tversky optimization of completions without pairs.

    With l = log pi - log pi_ref and z the baseline, a good completion costs good_weight * (1 - sigmoid(beta (l - z))),
    a bad one bad_weight * (1 - sigmoid(beta (z - l))); label p mixes the two.

    Args:
        completions: N of them.
        beta: above zero.
        baseline: z in nats, by `kto_baseline`; no gradient flows into it.
        good_weight: lambda_D; the paper keeps good_weight n_good / (bad_weight n_bad) within 1 and 4/3.
        bad_weight: lambda_U.
        good_share: weighted mean of the labels in the whole batch of the optimizer step, for the metrics.
        denominator: sum of the weights in the whole batch of the optimizer step.

    Returns:
        LossOutput with metrics ``accuracy`` (share with l on the right side of z, as the labels have it),
        ``reward_margin``, and ``chosen_reward``, ``rejected_reward`` (beta l), ``chosen_logprob``, ``rejected_logprob``
        of the good and the bad ones; 0 where there are none.

    Raises:
        ValueError: if shapes differ, or beta, a weight or the denominator is not above zero.

    Source:
        arXiv:2402.01306 eq. 7 and 8.
    """
    own = completions.logprobs
    labels, weights = completions.soft_labels, completions.weights
    check_same_shape(own, ref_logprobs=completions.ref_logprobs, soft_labels=labels, weights=weights)
    check_above_zero(beta=beta, good_weight=good_weight, bad_weight=bad_weight)
    check_denominator(denominator)
    ratios = own - completions.ref_logprobs.detach()
    ahead = beta * (ratios - torch.as_tensor(baseline).detach())
    good, bad = good_weight * torch.sigmoid(-ahead), bad_weight * torch.sigmoid(ahead)
    loss = (weights * (labels * good + (1.0 - labels) * bad)).sum() / denominator
    is_above = (ahead.detach() > 0).to(own.dtype) + 0.5 * (ahead.detach() == 0).to(own.dtype)
    is_right = labels * is_above + (1.0 - labels) * (1.0 - is_above)
    # Where there are no good (or bad) ones the sums are 0, and so are their means.
    of_good = weights * labels / (denominator * (good_share or math.inf))
    of_bad = weights * (1.0 - labels) / (denominator * ((1.0 - good_share) or math.inf))
    rewards, logprobs = beta * ratios.detach(), own.detach()
    chosen, rejected = (of_good * rewards).sum(), (of_bad * rewards).sum()
    metrics = {
        "accuracy": (weights * is_right).sum() / denominator,
        "reward_margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logprob": (of_good * logprobs).sum(),
        "rejected_logprob": (of_bad * logprobs).sum(),
    }
    return LossOutput(loss, metrics)


def kto_baseline(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) that completions are measured against: what is usual under the policy.

    Args:
        logprobs: (N,) nats under the policy, of completions that answer other prompts than those they are read behind.
        ref_logprobs: (N,) nats, the same under the reference.

    Returns:
        0-d, nats, at least zero; no gradient flows through it.

    Raises:
        ValueError: if the shapes differ.

    Source:
        arXiv:2402.01306 section 4.1.
    """
    check_same_shape(logprobs, ref_logprobs=ref_logprobs)
    return (logprobs - ref_logprobs).detach().mean().clamp(min=0.0)
