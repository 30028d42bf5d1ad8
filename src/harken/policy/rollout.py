"""One PPO step's experience: `rollout` samples and reads it, `score` asks the reward."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harken.config import OnlineDpoConfig, OwnSamplerConfig, PpoConfig, RemaxConfig, SamplerConfig
from harken.core.kl import kl_k1
from harken.lm.batch import Batch, Tokens, at_tokens, pad
from harken.lm.forward import (
    by_microbatch,
    completion_logprobs,
    completion_states,
    completion_values,
    values_of_states,
)
from harken.lm.sample import Sampled, completion_seeds, to_completion
from harken.lm.samplers import OwnSampler, Sampler
from harken.lm.trunk import Trunk
from harken.protocols import Reward, ScoresTokens, checked_scores, checked_token_scores
from harken.records import Completion, Prompt, SamplingSettings
from harken.runs import derive_seed

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
    """(B, S) nats, the policy before the update: read again, or as drawn (`sampler.reread`)."""
    ref_logprobs: Tensor
    """(B, S) nats, adapters off."""
    values: Tensor
    """(B, S) score units (normalized ones where `value.normalize`), the critic before the update; 0 without one."""
    critic_states: Tensor | None
    """(B, S, H) states of the base before the completion tokens, where the critic is a head on them."""
    entropy: float
    """Mean over completion tokens, nats, before the update."""
    stopped: Tensor
    """(B,) bool, True = ended with a stop token."""
    was_reread: bool = True
    """Whether the policy read the completions again."""
    greedy: tuple[Completion, ...] = ()
    """One for each of the B / n prompts, always the most likely token, where ReMax compares with it."""

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
    source = f"{trunk.source}+ppo@{step}"
    asked = [prompt for prompt in prompts for _ in range(n)]
    limit = min(config.max_length, trunk.context_length) - config.sampling.max_new_tokens
    ids = [trunk.chat.encode_prompt(prompt, max_length=limit) for prompt in prompts]
    seeds = completion_seeds(len(asked), config.seed, "rollout", step)
    settings = SamplingSettings(**config.sampling.model_dump())
    sampler = sampler or OwnSampler(trunk, config.sampling_batch_size, with_entropy=True)
    drawn = sampler(POLICY, ids, settings, seeds=seeds, n=n)
    batch = pad([Tokens(ids[row // n], item.token_ids) for row, item in enumerate(drawn)], trunk.device)
    known = [item.lower_states for item in drawn]
    batch = trunk.with_lower_states(batch, max_tokens=config.compute.scoring_tokens, known=known)
    completions = [
        to_completion(trunk.chat, prompt, item, settings, seed=seed, model=source)
        for prompt, item, seed in zip(asked, drawn, seeds, strict=True)
    ]
    sampler_logprobs = at_tokens(batch, [item.logprobs for item in drawn])
    was_reread = step == 0 or must_reread(drawn, config.sampler)
    if was_reread:
        old = _read(trunk, batch, config, _reader(trunk, POLICY, config))
    else:
        entropies = at_tokens(batch, [item.entropies for item in drawn])
        old = torch.stack([sampler_logprobs, entropies], dim=-1)
    ref_logprobs, values, states = _read_reference_and_critic(trunk, batch, config)
    return Rollout(
        prompts=asked,
        completions=completions,
        batch=batch,
        sampler_logprobs=sampler_logprobs,
        old_logprobs=old[..., 0],
        ref_logprobs=ref_logprobs,
        values=values,
        critic_states=states,
        entropy=float(old[..., 1].sum() / batch.completion_mask.sum()),
        stopped=torch.tensor([item.finish_reason == "stop" for item in drawn], device=trunk.device),
        was_reread=was_reread,
        greedy=_greedy(sampler, trunk, list(zip(prompts, ids, seeds[::n], strict=True)), config, source),
    )


def _read_reference_and_critic(trunk: Trunk, batch: Batch, config: PpoConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return log-probabilities under the reference, values, and the states that a critic's head reads; each (B, S)."""
    if not config.has_head_critic:
        ref = _read(trunk, batch, config, _reader(trunk, None, config))[..., 0]
        if not config.has_critic:
            return ref, torch.zeros_like(ref), None
        return ref, _read(trunk, batch, config, lambda part: completion_values(trunk, CRITIC, part)), None
    # A head reads the base, as the reference does: one pass gives both.
    found = _read(trunk, batch, config, _reader(trunk, None, config, with_states=True))
    states = found[..., 2:].to(trunk.dtype)
    return found[..., 0], values_of_states(trunk, CRITIC, states, batch.completion_mask), states


def must_reread(drawn: Sequence[Sampled], settings: SamplerConfig) -> bool:
    """Whether the policy's log-probabilities of what it drew must come from a pass of its own."""
    is_own = isinstance(settings, OwnSamplerConfig)
    return not is_own or settings.reread or not all(item.entropies for item in drawn)


def _greedy(
    sampler: Sampler,
    trunk: Trunk,
    asked: Sequence[tuple[Prompt, list[int], int]],
    config: PpoConfig,
    source: str,
) -> tuple[Completion, ...]:
    """Return each prompt's completion of always the most likely token, if ReMax is to compare with it."""
    if not isinstance(config.advantage, RemaxConfig):
        return ()
    settings = SamplingSettings(**{**config.sampling.model_dump(), "top_k": 1})
    drawn = sampler(POLICY, [ids for _, ids, _ in asked], settings, seeds=[seed for _, _, seed in asked], n=1)
    return tuple(
        to_completion(trunk.chat, prompt, item, settings, seed=seed, model=source)
        for (prompt, _, seed), item in zip(asked, drawn, strict=True)
    )


def _read(trunk: Trunk, batch: Batch, config: PpoConfig, compute: Callable[[Batch], Tensor]) -> Tensor:
    """Return what `compute` gives for a whole rollout, in passes as large as the settings allow."""
    return by_microbatch(batch, compute, max_tokens=config.compute.scoring_tokens, padded=trunk.computes_padding)


def _reader(
    trunk: Trunk, role: str | None, config: PpoConfig, *, with_states: bool = False
) -> Callable[[Batch], Tensor]:
    """Return a function from a batch to (B, S, 2): log-probability and, for the policy, entropy of each token.

    With states it is (B, S, 2 + H), the state before each token behind them.
    """

    def read(part: Batch) -> Tensor:
        hidden = trunk.hidden(role, part)
        found = completion_logprobs(
            trunk,
            role,
            part,
            temperature=config.sampling.temperature,
            chunk_tokens=config.compute.chunk_tokens,
            with_entropy=role is not None,
            hidden=hidden,
        )
        entropy = torch.zeros_like(found.logprobs) if found.entropy is None else found.entropy
        both = torch.stack([found.logprobs, entropy], dim=-1)
        return torch.cat([both, completion_states(hidden, part.completion_mask)], dim=-1) if with_states else both

    return read


def score(experience: Rollout, reward: Reward) -> Tensor:
    """Return (B,) fp32, one score per completion, from any callable; (B, S) from one that scores tokens.

    Raises:
        RewardError: the reward raised, gave the wrong number of scores, or one that is not finite; the message names
            the prompt.
    """
    device, mask = experience.batch.ids.device, experience.batch.completion_mask
    if not isinstance(reward, ScoresTokens):
        scores = checked_scores(reward, experience.prompts, experience.completions)
        return torch.tensor(scores, dtype=torch.float32, device=device)
    rows = checked_token_scores(reward, experience.prompts, experience.completions)
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.float32, device=device)
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def score_greedy(experience: Rollout, reward: Reward) -> Tensor | None:
    """Return (B,) fp32, for each completion the score of its prompt's greedy one; None where none was drawn.

    Raises:
        RewardError: as `score`.
    """
    if not experience.greedy:
        return None
    n = len(experience.completions) // len(experience.greedy)
    prompts = experience.prompts[::n]
    if isinstance(reward, ScoresTokens):
        scores = [sum(row) for row in checked_token_scores(reward, prompts, experience.greedy)]
    else:
        scores = checked_scores(reward, prompts, experience.greedy)
    device = experience.batch.ids.device
    return torch.tensor(scores, dtype=torch.float32, device=device).repeat_interleave(n)


def merged(rollouts: Sequence[Rollout], rows: Sequence[tuple[int, int]]) -> Rollout:
    """Return chosen rows of several rollouts as one.

    Args:
        rollouts: of one policy, without greedy completions.
        rows: (which rollout, which of its rows), in the order wanted.
    """
    if len(rollouts) == 1 and [row for _, row in rows] == list(range(rollouts[0].batch.num_rows)):
        return rollouts[0]
    width = max(int(rollouts[which].batch.lengths[row]) for which, row in rows)

    def gather(read: Callable[[Rollout], Tensor]) -> Tensor:
        chosen = [read(rollouts[which])[row] for which, row in rows]
        if chosen[0].ndim == 0:
            return torch.stack(chosen)
        wide = chosen[0].new_zeros(len(chosen), width, *chosen[0].shape[1:])
        for place, value in enumerate(chosen):
            size = min(width, len(value))
            wide[place, :size] = value[:size]
        return wide

    batch = Batch(
        gather(lambda one: one.batch.ids),
        gather(lambda one: one.batch.completion_mask),
        gather(lambda one: one.batch.lengths),
    )
    if rollouts[0].batch.lower_states is not None:
        states = gather(_lower_states)
        batch = replace(batch, lower_states=states, num_lower_layers=rollouts[0].batch.num_lower_layers)
    counts = [float(one.batch.completion_mask.sum()) for one in rollouts]
    return Rollout(
        prompts=[rollouts[which].prompts[row] for which, row in rows],
        completions=[rollouts[which].completions[row] for which, row in rows],
        batch=batch,
        sampler_logprobs=gather(lambda one: one.sampler_logprobs),
        old_logprobs=gather(lambda one: one.old_logprobs),
        ref_logprobs=gather(lambda one: one.ref_logprobs),
        values=gather(lambda one: one.values),
        critic_states=None,
        entropy=sum(one.entropy * count for one, count in zip(rollouts, counts, strict=True)) / sum(counts),
        stopped=gather(lambda one: one.stopped),
        was_reread=any(one.was_reread for one in rollouts),
    )


def _lower_states(one: Rollout) -> Tensor:
    states = one.batch.lower_states
    assert states is not None, "rollouts of one policy have their lower layers read, all or none"
    return states


def draw_prompts(prompts: Sequence[Prompt], config: PpoConfig | OnlineDpoConfig, batch: int) -> list[Prompt]:
    """Return a batch's prompts: without replacement until all were used, then in a fresh order.

    Args:
        prompts: all.
        config: how many make a batch, and the seed.
        batch: which batch of the run, counted from 0.
    """
    size = config.prompts_per_step
    return [prompts[row] for row in in_laps(len(prompts), batch * size, size, config.seed, "prompts")]


def in_laps(total: int, start: int, count: int, seed: int, name: str) -> list[int]:
    """Return `count` of `total` places from position `start` on: each lap goes through all of them in a fresh order."""
    laps: list[int] = []
    first = start // total
    for lap in range(first, (start + count - 1) // total + 1):
        order = list(range(total))
        random.Random(derive_seed(seed, name, lap)).shuffle(order)
        laps += order
    return laps[start - first * total :][:count]
