"""One PPO step's experience: `rollout` samples and reads it, `score` asks the reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harken.config import PpoConfig
from harken.core.kl import kl_k1
from harken.lm.batch import Batch, Tokens, pad
from harken.lm.forward import (
    by_microbatch,
    completion_logprobs,
    completion_states,
    completion_values,
    values_of_states,
)
from harken.lm.sample import completion_seeds, to_completion
from harken.lm.samplers import OwnSampler, Sampler
from harken.lm.trunk import Trunk
from harken.protocols import Reward, checked_scores
from harken.records import Completion, Prompt, SamplingSettings

POLICY, CRITIC = "policy", "critic"


@dataclass(frozen=True)
class Rollout:
    """Completions of one step and what was known about them before any update.

    Example: prompt `The film` (2 tokens), completion ` is great<end>` (3 tokens), one column of padding:

        ids              the  film  is  great  end  0
        completion_mask  F    F     T   T      T    F
        old_logprobs     0    0     .   .      .    0     of `is`, `great`, `end`, each at its own index
        values           0    0     .   .      .    0     read before each token was drawn
    """

    prompts: list[Prompt]
    """B prompts, one for each completion."""
    completions: list[Completion]
    """B completions."""
    batch: Batch
    """(B, S) token ids with completion mask."""
    sampler_logprobs: Tensor
    """(B, S) nats, as drawn."""
    old_logprobs: Tensor
    """(B, S) nats, the policy before the update, from the training forward pass."""
    ref_logprobs: Tensor
    """(B, S) nats, adapters off."""
    values: Tensor
    """(B, S) score units, the critic before the update."""
    critic_states: Tensor | None
    """(B, S, H) states before the completion tokens, where only the critic's head learns: they stay as they are."""
    entropy: float
    """Mean over completion tokens, nats, before the update."""
    stopped: Tensor
    """(B,) bool, True = ended with a stop token."""

    @property
    def sequence_kl(self) -> float:
        """Mean over completions of their summed k1 to the reference, nats, before the update."""
        k1 = kl_k1(self.old_logprobs, self.ref_logprobs) * self.batch.completion_mask
        return float(k1.sum(1).mean())


@torch.no_grad()
def rollout(
    trunk: Trunk, prompts: Sequence[Prompt], config: PpoConfig, *, step: int, sampler: Sampler | None = None
) -> Rollout:
    """Sample completions with the policy and read them under policy, reference and critic.

    Args:
        trunk: holds the roles `policy` and `critic`.
        prompts: each gets `completions_per_prompt` completions.
        config: of PPO.
        step: together with the seed it decides every random draw.
        sampler: who draws; None is Harken's own sampler.

    Raises:
        DataError: a prompt leaves no room for `max_new_tokens`; the message names it.
    """
    n = config.completions_per_prompt
    asked = [prompt for prompt in prompts for _ in range(n)]
    limit = min(config.max_length, trunk.context_length) - config.sampling.max_new_tokens
    ids = [trunk.chat.encode_prompt(prompt, max_length=limit) for prompt in prompts]
    seeds = completion_seeds(len(asked), config.seed, "rollout", step)
    settings = SamplingSettings(**config.sampling.model_dump())
    sampler = sampler or OwnSampler(trunk, config.sampling_batch_size)
    drawn = sampler(POLICY, ids, settings, seeds=seeds, n=n)
    batch = pad([Tokens(ids[row // n], item.token_ids) for row, item in enumerate(drawn)], trunk.device)
    batch = trunk.with_lower_states(batch, max_tokens=config.compute.scoring_tokens)
    completions = [
        to_completion(trunk.chat, prompt, item, settings, seed=seed, model=f"{trunk.source}+ppo@{step}")
        for prompt, item, seed in zip(asked, drawn, seeds, strict=True)
    ]
    sampler_logprobs = torch.zeros(batch.ids.shape, device=trunk.device)
    flat = [value for item in drawn for value in item.logprobs]
    sampler_logprobs[batch.completion_mask] = torch.tensor(flat, device=trunk.device)
    room: Any = {"max_tokens": config.compute.scoring_tokens, "padded": trunk.computes_padding}
    old = by_microbatch(batch, _reader(trunk, POLICY, config), **room)
    ref = by_microbatch(batch, _reader(trunk, None, config), **room)
    states = None
    if trunk.has_frozen_body(CRITIC):
        states = by_microbatch(batch, lambda part: completion_states(trunk, CRITIC, part), **room)
        values = values_of_states(trunk, CRITIC, states, batch.completion_mask)
    else:
        values = by_microbatch(batch, lambda part: completion_values(trunk, CRITIC, part), **room)
    return Rollout(
        prompts=asked,
        completions=completions,
        batch=batch,
        sampler_logprobs=sampler_logprobs,
        old_logprobs=old[..., 0],
        ref_logprobs=ref[..., 0],
        values=values,
        critic_states=states,
        entropy=float(old[..., 1].sum() / batch.completion_mask.sum()),
        stopped=torch.tensor([item.finish_reason == "stop" for item in drawn], device=trunk.device),
    )


def _reader(trunk: Trunk, role: str | None, config: PpoConfig) -> Callable[[Batch], Tensor]:
    """Return a function from a batch to (B, S, 2): log-probability and, for the policy, entropy of each token."""

    def read(part: Batch) -> Tensor:
        found = completion_logprobs(
            trunk,
            role,
            part,
            temperature=config.sampling.temperature,
            chunk_tokens=config.compute.chunk_tokens,
            with_entropy=role is not None,
        )
        entropy = torch.zeros_like(found.logprobs) if found.entropy is None else found.entropy
        return torch.stack([found.logprobs, entropy], dim=-1)

    return read


def score(experience: Rollout, reward: Reward) -> Tensor:
    """Return (B,) fp32, one score per completion, from any callable.

    Raises:
        RewardError: the reward raised, gave the wrong number of scores, or one that is not finite; the message names
            the prompt.
    """
    scores = checked_scores(reward, experience.prompts, experience.completions)
    return torch.tensor(scores, dtype=torch.float32, device=experience.batch.ids.device)
