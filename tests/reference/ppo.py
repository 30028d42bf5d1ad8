"""PPO's formulas on nested lists, one loop per equation, written from the papers."""

import math
from typing import Any

Rows = list[list[float]]
Flags = list[list[bool]]


def token_rewards(scores: list[float], kl: Rows, mask: Flags, kl_coef: float) -> Rows:
    """arXiv:1909.08593 eq. 2, the score on the last token of the completion."""
    rewards = [[0.0] * len(row) for row in kl]
    for b, row in enumerate(mask):
        tokens = [s for s, counts in enumerate(row) if counts]
        for s in tokens:
            rewards[b][s] = -kl_coef * kl[b][s]
        rewards[b][tokens[-1]] += scores[b]
    return rewards


def gae(rewards: Rows, values: Rows, mask: Flags, gamma: float, gae_lambda: float) -> tuple[Rows, Rows]:
    """arXiv:1506.02438 eq. 16 as the explicit double sum, not the recursion."""
    advantages = [[0.0] * len(row) for row in values]
    returns = [[0.0] * len(row) for row in values]
    for b, row in enumerate(mask):
        tokens = [s for s, counts in enumerate(row) if counts]
        deltas = []
        for i, s in enumerate(tokens):
            next_value = values[b][tokens[i + 1]] if i + 1 < len(tokens) else 0.0
            deltas.append(rewards[b][s] + gamma * next_value - values[b][s])
        for i, s in enumerate(tokens):
            terms = [(gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas[i:])]
            advantages[b][s] = math.fsum(terms)
            returns[b][s] = advantages[b][s] + values[b][s]
    return advantages, returns


def moments(x: Rows, mask: Flags) -> tuple[float, float]:
    """Mean and biased variance of the masked entries."""
    kept = masked_entries(x, mask)
    mean = math.fsum(kept) / len(kept)
    return mean, math.fsum((value - mean) ** 2 for value in kept) / len(kept)


def masked_entries(x: Rows, mask: Flags) -> list[float]:
    """Entries of x where the mask is True, row-major."""
    return [
        value
        for values, flags in zip(x, mask, strict=True)
        for value, counts in zip(values, flags, strict=True)
        if counts
    ]


def whiten(x: Rows, mask: Flags) -> Rows:
    """(x - mean) / sqrt(variance + 1e-8), zero outside the mask."""
    mean, variance = moments(x, mask)
    return [
        [
            (value - mean) / math.sqrt(variance + 1e-8) if counts else 0.0
            for value, counts in zip(values, flags, strict=True)
        ]
        for values, flags in zip(x, mask, strict=True)
    ]


def clip(x: float, low: float, high: float) -> float:
    """x limited to [low, high]."""
    return min(max(x, low), high)


def ppo_policy_loss(
    policy_logprobs: Rows,
    old_logprobs: Rows,
    advantages: Rows,
    mask: Flags,
    clip_range: tuple[float, float],
    dual_clip: float | None,
) -> dict[str, float]:
    """arXiv:1707.06347 eq. 7 as a surrogate to maximize; arXiv:1912.09729 eq. 5."""
    policy, old, adv = (masked_entries(x, mask) for x in (policy_logprobs, old_logprobs, advantages))
    surrogate = clipped_tokens = ratio_sum = squares = 0.0
    for log_new, log_old, advantage in zip(policy, old, adv, strict=True):
        ratio = math.exp(log_new) / math.exp(log_old)
        plain = ratio * advantage
        clipped = clip(ratio, 1 - clip_range[0], 1 + clip_range[1]) * advantage
        token = min(plain, clipped)
        if dual_clip is not None and advantage < 0:
            token = max(token, dual_clip * advantage)
        surrogate += token
        clipped_tokens += clipped < plain
        ratio_sum += ratio
        squares += (log_new - log_old) ** 2
    count = len(adv)
    return {
        "loss": -surrogate / count,
        "clip_fraction": clipped_tokens / count,
        "approx_kl": squares / 2 / count,
        "ratio": ratio_sum / count,
    }


def truncated_importance_weights(old_logprobs: Rows, sampler_logprobs: Rows, mask: Flags, cap: float) -> dict[str, Any]:
    """Ionides 2008: probability under the target over that under the proposal, at most the cap; Kong 1992."""
    old, drawn = (masked_entries(x, mask) for x in (old_logprobs, sampler_logprobs))
    ratios = [math.exp(p) / math.exp(q) for p, q in zip(old, drawn, strict=True)]
    weights = [min(ratio, cap) for ratio in ratios]
    count = len(weights)
    return {
        "weights": weights,
        "mean": math.fsum(weights) / count,
        "truncated": sum(ratio > cap for ratio in ratios) / count,
        "effective": math.fsum(weights) ** 2 / count / math.fsum(weight**2 for weight in weights),
    }


def clipped_value_loss(
    values: Rows, old_values: Rows, returns: Rows, mask: Flags, clip_range: float
) -> dict[str, float]:
    """Half the larger of two squared errors, as in openai/lm-human-preferences."""
    new, old, targets = (masked_entries(x, mask) for x in (values, old_values, returns))
    total = clipped_tokens = 0.0
    for value, old_value, target in zip(new, old, targets, strict=True):
        plain = (value - target) ** 2
        clipped = (clip(value, old_value - clip_range, old_value + clip_range) - target) ** 2
        total += max(plain, clipped)
        clipped_tokens += clipped > plain
    return {"loss": total / 2 / len(new), "value_clip_fraction": clipped_tokens / len(new)}


def explained_variance(values: Rows, returns: Rows, mask: Flags) -> float:
    """1 - Var(R - V) / Var(R)."""
    residuals = [
        [r - v for r, v in zip(row_r, row_v, strict=True)] for row_r, row_v in zip(returns, values, strict=True)
    ]
    return 1 - moments(residuals, mask)[1] / moments(returns, mask)[1]


def k1(log_p: float, log_q: float) -> float:
    """log(p / q)."""
    return math.log(math.exp(log_p) / math.exp(log_q))


def k2(log_p: float, log_q: float) -> float:
    """Half the squared log(p / q)."""
    return k1(log_p, log_q) ** 2 / 2


def k3(log_p: float, log_q: float) -> float:
    """q / p - 1 - log(q / p)."""
    ratio = math.exp(log_q) / math.exp(log_p)
    return ratio - 1 - math.log(ratio)
