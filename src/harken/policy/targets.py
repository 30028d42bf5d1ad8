"""From scores to what an update learns: rewards of tokens, then advantages (and returns, where there is a critic)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harken.config import (
    GaeConfig,
    GroupConfig,
    OwnSamplerConfig,
    PpoConfig,
    ReinforceConfig,
    RemaxConfig,
    RlooConfig,
)
from harken.core.advantages import gae, scale_to_unit_std, whiten
from harken.core.aggregate import zero_outside
from harken.core.group_advantages import group_advantages, leave_one_out_advantages
from harken.core.importance import truncated_importance_weights
from harken.core.kl import kl_k1
from harken.core.rewards import apply_stop_penalty, clip_scores, overlong_penalty, token_rewards
from harken.errors import UsageError
from harken.policy.rollout import Rollout


@dataclass(frozen=True)
class Targets:
    """What the minibatches of one update learn."""

    advantages: Tensor
    """(B, S), standardized if the estimator says so, then weighted if a foreign sampler drew."""
    returns: Tensor
    """(B, S), made before standardizing."""
    old_values: Tensor
    """(B, S), the critic's before the update, in the units of the returns; zero without a critic."""


def make_rewards(experience: Rollout, scores: Tensor, config: PpoConfig, kl_coef: float) -> Tensor:
    """Return (B, S) rewards: -kl_coef * k1 at each token, and the clipped, penalized score at the last one.

    Scores (B, S) of tokens are clipped each and stay at their tokens; penalties come to the last one.
    """
    mask = experience.batch.completion_mask
    settings = config.score
    clipped = clip_scores(scores, settings.clip)
    at_tokens = zero_outside(clipped, mask) if clipped.ndim == 2 else None
    total = clipped if at_tokens is None else at_tokens.sum(dim=1)
    penalized = total
    lengths = mask.sum(dim=1)
    if settings.stop_penalty != "none":
        ended_well = experience.stopped & (lengths >= settings.min_length)
        penalized = apply_stop_penalty(total, ended_well, mode=settings.stop_penalty, value=settings.stop_value)
    if settings.overlong_buffer:
        limit = config.sampling.max_new_tokens
        excess = overlong_penalty(lengths, max_length=limit, buffer=settings.overlong_buffer)
        penalized = penalized + settings.overlong_penalty * excess
    kl = kl_k1(experience.old_logprobs, experience.ref_logprobs)
    at_last = penalized if at_tokens is None else penalized - total
    rewards = token_rewards(at_last, kl, mask, kl_coef if config.kl.place == "reward" else 0.0)
    rewards = rewards if at_tokens is None else rewards + at_tokens
    return scale_to_unit_std(rewards, mask) if settings.whiten_rewards else rewards


def make_targets(experience: Rollout, rewards: Tensor, config: PpoConfig, baseline: Tensor | None = None) -> Targets:
    """Return advantages by the estimator that the config names, and the returns that a critic learns.

    Args:
        experience: of the current policy; values in reward units.
        rewards: (B, S), of `make_rewards`.
        config: of PPO.
        baseline: (B,), scores of greedy completions, for ReMax.

    Raises:
        UsageError: ReMax without a baseline.
    """
    mask, values = experience.batch.completion_mask, experience.values
    match config.advantage:
        case GaeConfig() as settings:
            advantages, returns = gae(rewards, values, mask, gamma=settings.gamma, gae_lambda=settings.gae_lambda)
            return Targets(whiten(advantages, mask) if settings.whiten else advantages, returns, values)
        case RlooConfig():
            whole = leave_one_out_advantages(rewards.sum(dim=1), config.completions_per_prompt)
            advantages = zero_outside(whole[:, None].expand_as(rewards), mask)
        case GroupConfig() as settings:
            whole = group_advantages(
                rewards.sum(dim=1), config.completions_per_prompt, divide_by_std=settings.divide_by_std
            )
            advantages = zero_outside(whole[:, None].expand_as(rewards), mask)
        case ReinforceConfig() as settings:
            advantages = _to_go(rewards, mask, settings.gamma)
            if settings.group_baseline:
                size = config.completions_per_prompt
                means = rewards.sum(dim=1).unflatten(0, (-1, size)).mean(dim=1).repeat_interleave(size)
                advantages = zero_outside(advantages - means[:, None], mask)
            advantages = whiten(advantages, mask)
        case RemaxConfig() as settings:
            if baseline is None:
                raise UsageError("ReMax needs the scores of greedy completions; pass update(..., baseline=...)")
            advantages = zero_outside(_to_go(rewards, mask, settings.gamma) - baseline[:, None], mask)
    return Targets(advantages, torch.zeros_like(advantages), torch.zeros_like(advantages))


def _to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return (B, S), the discounted sum of the rewards from each token on."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, gae_lambda=1.0)[1]


def weighted_for_sampler(targets: Targets, experience: Rollout, config: PpoConfig) -> tuple[Targets, dict[str, float]]:
    """Return targets with advantages weighted for a foreign sampler's tokens, and metrics; as they are for our own."""
    if isinstance(config.sampler, OwnSamplerConfig):
        return targets, {}
    weights, metrics = truncated_importance_weights(
        experience.old_logprobs,
        experience.sampler_logprobs,
        experience.batch.completion_mask,
        cap=config.sampler.importance_cap,
    )
    weighted = replace(targets, advantages=targets.advantages * weights)
    return weighted, {name: float(value) for name, value in metrics.items()}
