"""From one score per completion to one reward per token."""

from typing import Literal, assert_never

import torch
from torch import Tensor

from harken.core.aggregate import check_same_shape, zero_outside
from harken.core.masking import check_completion_mask, last_true_index

MIN_RELATIVE_STD = 1e-6
"""Scores that vary less than this, relative to their mean (or 1), count as constant."""


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Scores limited to [-limit, limit].

    Args:
        scores: any shape, score units.
        limit: above zero.

    Returns:
        Same shape.

    Raises:
        ValueError: if limit is not above zero.
    """
    if not limit > 0:
        raise ValueError(f"score limit is {limit}, expected a value above zero")
    return scores.clamp(-limit, limit)


def apply_stop_penalty(
    scores_B: Tensor, stopped_B: Tensor, *, mode: Literal["replace", "subtract"], value: float
) -> Tensor:
    """Scores after the penalty for completions that were cut off instead of stopping.

    Args:
        scores_B: (B,), score units.
        stopped_B: (B,) bool, True = the sampler met a stop token.
        mode: "replace" sets the score of a cut completion to ``value``; "subtract" lowers it by
            ``value``.
        value: score units.

    Returns:
        (B,), unchanged where stopped.

    Raises:
        ValueError: if the shapes differ or stopped_B is not bool.

    Source:
        "replace": openai/lm-human-preferences; "subtract": TRL missing_eos_penalty.
    """
    check_same_shape(scores_B, stopped_B=stopped_B)
    if stopped_B.dtype != torch.bool:
        raise ValueError(f"stopped_B has dtype {stopped_B.dtype}, expected torch.bool")
    match mode:
        case "replace":
            return torch.where(stopped_B, scores_B, torch.full_like(scores_B, value))
        case "subtract":
            return torch.where(stopped_B, scores_B, scores_B - value)
        case _:
            assert_never(mode)


def overlong_penalty(lengths_B: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """Penalty that grows linearly over the last ``buffer`` tokens before the limit.

    Args:
        lengths_B: (B,) completion lengths, tokens.
        max_length: longest completion, tokens.
        buffer: tokens before the limit in which the penalty grows, in [1, max_length].

    Returns:
        (B,) fp32, 0 up to max_length - buffer tokens, then falling to -1 at max_length.

    Raises:
        ValueError: if the buffer is outside its range.

    Source:
        arXiv:2503.14476 eq. 13 (DAPO, soft overlong punishment).
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer is {buffer}, expected 1 to {max_length} tokens")
    return ((max_length - buffer - lengths_B.float()) / buffer).clamp(-1.0, 0.0)


def token_rewards(scores_B: Tensor, kl_BS: Tensor, completion_mask: Tensor, kl_coef: float | Tensor) -> Tensor:
    """Reward of each token: the KL penalty everywhere, plus the score at the last one.

    Args:
        scores_B: (B,), score units, of the whole completions.
        kl_BS: (B, S), nats, estimate per token (k1 gives the exact gradient of the KL).
        completion_mask: (B, S) bool, True = completion token.
        kl_coef: score units per nat.

    Returns:
        (B, S): -kl_coef * kl at completion tokens, plus the score at the last one; zero elsewhere.

    Raises:
        ValueError: if shapes do not fit or a row has no completion token.

    Source:
        arXiv:1909.08593 eq. 2.
    """
    check_completion_mask(completion_mask)
    if scores_B.shape != kl_BS.shape[:1]:
        raise ValueError(f"{tuple(scores_B.shape)} scores, {kl_BS.shape[0]} rows of KL")
    rewards = -kl_coef * zero_outside(kl_BS, completion_mask)
    last = last_true_index(completion_mask)
    return rewards.scatter_add(1, last[:, None], scores_B.to(rewards.dtype)[:, None])


def normalize_scores(scores: Tensor, gain: float, bias: float) -> Tensor:
    """Scores on the common scale: gain * scores + bias.

    Args:
        scores: any shape, units of the reward model.
        gain: from ``fit_score_normalization``.
        bias: likewise.

    Returns:
        Same shape, normalized units.
    """
    return gain * scores + bias


def fit_score_normalization(
    scores: Tensor, *, target_mean: float = 0.0, target_std: float = 1.0
) -> tuple[float, float]:
    """Gain and bias that give these scores the target mean and standard deviation.

    Fitted on scores of the reference policy's completions, it gives ``kl_coef`` one meaning for
    all reward models. The standard deviation is the biased one (divided by the count).

    Args:
        scores: (N,), at least 2.
        target_mean: normalized units.
        target_std: normalized units, above zero.

    Returns:
        gain and bias, for ``normalize_scores``.

    Raises:
        ValueError: for fewer than 2 scores, scores that are not finite, or scores all alike.

    Source:
        openai/lm-human-preferences, train_reward.py.
    """
    if scores.numel() < 2:
        raise ValueError(f"{scores.numel()} scores, expected at least 2 to fit a normalization")
    if not target_std > 0:
        raise ValueError(f"target_std is {target_std}, expected a value above zero")
    values = scores.detach().double()
    mean, std = float(values.mean()), float(values.std(correction=0))
    if not std > MIN_RELATIVE_STD * max(1.0, abs(mean)):
        raise ValueError(f"scores have mean {mean} and standard deviation {std}: nothing to scale")
    gain = target_std / std
    return gain, target_mean - gain * mean
