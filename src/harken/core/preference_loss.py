"""Losses that train a policy on preference pairs directly, without a reward model."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harken.core.aggregate import LossOutput, check_denominator, check_same_shape


def dpo_loss(
    chosen_logprobs_P: Tensor,
    rejected_logprobs_P: Tensor,
    ref_chosen_logprobs_P: Tensor,
    ref_rejected_logprobs_P: Tensor,
    *,
    beta: float,
    soft_labels_P: Tensor | None = None,
    weights_P: Tensor | None = None,
    denominator: float | Tensor,
) -> LossOutput:
    """Direct preference optimization of pairs, with soft labels and weights.

    The implicit reward of a completion is beta * (log pi - log pi_ref). Per pair, with h the reward of
    the chosen minus that of the rejected completion and label p:
    weight * (-p log sigmoid(h) - (1 - p) log sigmoid(-h)). Conservative DPO with label noise e is
    p = 1 - e.

    Args:
        chosen_logprobs_P: (P,) nats, sums over the completion's tokens under the policy, with gradient.
        rejected_logprobs_P: (P,), likewise.
        ref_chosen_logprobs_P: (P,) nats, the same under the reference; no gradient flows into it.
        ref_rejected_logprobs_P: (P,), likewise.
        beta: what a nat of leaving the reference is worth, above zero.
        soft_labels_P: (P,), probability in [0, 1] that chosen is the better one; None: all 1.
        weights_P: (P,), at least zero; None: all 1.
        denominator: sum of the weights in the whole batch of the optimizer step.

    Returns:
        LossOutput with metrics ``accuracy`` (chosen has the higher implicit reward; equal ones count
        one half), ``reward_margin`` (chosen minus rejected), ``chosen_reward`` and
        ``rejected_reward``, weighted means.

    Raises:
        ValueError: if shapes differ, or beta or the denominator is not above zero.

    Source:
        arXiv:2305.18290 eq. 7; soft labels: arXiv:2305.18290 appendix A.2 and E. Mitchell's note on
        conservative DPO (2023).
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, expected a number above zero")
    ones = torch.ones_like(chosen_logprobs_P)
    labels = ones if soft_labels_P is None else soft_labels_P
    weights = ones if weights_P is None else weights_P
    check_same_shape(
        chosen_logprobs_P,
        rejected_logprobs_P=rejected_logprobs_P,
        ref_chosen_logprobs_P=ref_chosen_logprobs_P,
        ref_rejected_logprobs_P=ref_rejected_logprobs_P,
        soft_labels_P=labels,
        weights_P=weights,
    )
    check_denominator(denominator)
    chosen_rewards = beta * (chosen_logprobs_P - ref_chosen_logprobs_P.detach())
    rejected_rewards = beta * (rejected_logprobs_P - ref_rejected_logprobs_P.detach())
    margins = chosen_rewards - rejected_rewards
    per_pair = -labels * logsigmoid(margins) - (1.0 - labels) * logsigmoid(-margins)
    metrics = _reward_metrics(chosen_rewards.detach(), rejected_rewards.detach(), weights, denominator)
    return LossOutput((weights * per_pair).sum() / denominator, metrics)


def _reward_metrics(
    chosen_P: Tensor, rejected_P: Tensor, weights_P: Tensor, denominator: float | Tensor
) -> dict[str, Tensor]:
    """Weighted means of implicit rewards (P,), of their difference, and of who is ahead."""
    lead = chosen_P - rejected_P
    is_right = (lead > 0).to(lead.dtype) + 0.5 * (lead == 0).to(lead.dtype)
    return {
        "accuracy": (weights_P * is_right).sum() / denominator,
        "reward_margin": (weights_P * lead).sum() / denominator,
        "chosen_reward": (weights_P * chosen_P).sum() / denominator,
        "rejected_reward": (weights_P * rejected_P).sum() / denominator,
    }
