"""Harken's sampler: batched decoding with a key-value cache.

Each completion draws from its own random stream, one uniform a token, so what it becomes does not depend on which
other rows are in the batch, nor on when they stop. Prompts are read once and shared by their completions; a row that
stopped leaves the batch. The log-probability of a drawn token is the one it was drawn with: over the kept set, after
the temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from harken.core.logprobs import inverse_cdf_sample, sampling_logprobs
from harken.lm.chat import Chat
from harken.lm.trunk import Trunk
from harken.records import Completion, FinishReason, Message, Prompt, SamplingSettings, content_id
from harken.runs import derive_seed


@dataclass(frozen=True)
class Sampled:
    """One drawn completion."""

    token_ids: list[int]
    """Ends with a stop token exactly when `finish_reason` is `stop`."""
    logprobs: list[float]
    """Sampler log-probability of each token."""
    finish_reason: FinishReason


@torch.no_grad()
def sample(
    trunk: Trunk,
    role: str | None,
    prompts: Sequence[list[int]],
    settings: SamplingSettings,
    *,
    seeds: Sequence[int],
    n: int = 1,
    batch_size: int = 64,
) -> list[Sampled]:
    """Draw `n` completions of each prompt.

    Args:
        trunk: base and roles.
        role: who writes; None for the reference.
        prompts: token ids of each prompt, at least one token each.
        settings: temperature, top-p, top-k, and the longest completion.
        seeds: one for each completion, prompt by prompt: `len(prompts) * n` of them.
        n: completions of each prompt.
        batch_size: completions drawn at the same time.

    Returns: `len(prompts) * n` completions, prompt by prompt.
    """
    assert len(seeds) == len(prompts) * n, "one seed for each completion"
    results: list[Sampled | None] = [None] * len(seeds)
    # Prompts of similar length together: less padding in front, and all rows of a batch end at the same width.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    per_batch = max(1, batch_size // n)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        rows = [index * n + copy for index in chosen for copy in range(n)]
        drawn = _decode(
            trunk,
            role,
            [prompts[index] for index in chosen],
            settings,
            [seeds[row] for row in rows],
            n,
        )
        for row, completion in zip(rows, drawn, strict=True):
            results[row] = completion
    return [completion for completion in results if completion is not None]


def completion_seeds(count: int, *parts: object) -> list[int]:
    """Return seeds for `count` completions, derived from what identifies the draw (run seed, step, ...)."""
    return [derive_seed(*parts, index) for index in range(count)]


def to_completion(
    chat: Chat, prompt: Prompt, drawn: Sampled, settings: SamplingSettings, *, seed: int, model: str
) -> Completion:
    """Return the record of one drawn completion.

    Args:
        chat: decodes the tokens.
        prompt: what was asked.
        drawn: by `sample`.
        settings: it was drawn with these.
        seed: it was drawn with this one.
        model: stored in the record.
    """
    return Completion(
        id=content_id(prompt.id, model, seed, drawn.token_ids),
        prompt_id=prompt.id,
        message=Message(role="assistant", content=chat.decode_completion(drawn.token_ids)),
        model=model,
        sampling=settings,
        seed=seed,
        finish_reason=drawn.finish_reason,
        num_tokens=len(drawn.token_ids),
        token_ids=tuple(drawn.token_ids),
        sampler_logprobs=tuple(drawn.logprobs),
    )


def _decode(
    trunk: Trunk,
    role: str | None,
    prompts: list[list[int]],
    settings: SamplingSettings,
    seeds: list[int],
    n: int,
) -> list[Sampled]:
    network: Any = trunk.network(role).base_model
    logits_fn = trunk.logits_fn(role)
    stop_ids = torch.tensor(sorted(trunk.chat.stop_ids), device=trunk.device)
    states, cache, attention, positions = _prefill(trunk, network, prompts, n)
    # One stream a row, drawn up front: (rows, max_new_tokens).
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    streams = [torch.rand(settings.max_new_tokens, generator=one, dtype=torch.float64) for one in generators]
    uniforms = torch.stack(streams).to(trunk.device)
    tokens: list[list[int]] = [[] for _ in seeds]
    logprobs: list[list[float]] = [[] for _ in seeds]
    stopped = [False] * len(seeds)
    alive = list(range(len(seeds)))
    for step in range(settings.max_new_tokens):
        distribution = sampling_logprobs(
            logits_fn(states),
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        index = torch.tensor(alive, device=trunk.device)
        drawn = inverse_cdf_sample(distribution, uniforms[index, step])
        chances = distribution.gather(1, drawn[:, None]).squeeze(1)
        is_stop = torch.isin(drawn, stop_ids)
        for row, token, chance, stop in zip(alive, drawn.tolist(), chances.tolist(), is_stop.tolist(), strict=True):
            tokens[row].append(token)
            logprobs[row].append(chance)
            stopped[row] = stop
        if bool(is_stop.all()) or step + 1 == settings.max_new_tokens:
            break
        if bool(is_stop.any()):
            keep = (~is_stop).nonzero().squeeze(1)
            alive = [alive[position] for position in keep.tolist()]
            cache.batch_select_indices(keep)
            drawn, attention, positions = drawn[keep], attention[keep], positions[keep]
        positions = positions + 1
        attention = torch.cat([attention, attention.new_ones(len(alive), 1)], dim=1)
        states = network(
            input_ids=drawn[:, None],
            attention_mask=attention,
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    return [
        Sampled(ids, chances, "stop" if stop else "length")
        for ids, chances, stop in zip(tokens, logprobs, stopped, strict=True)
    ]


def _prefill(
    trunk: Trunk, network: Any, prompts: list[list[int]], n: int
) -> tuple[Tensor, DynamicCache, Tensor, Tensor]:
    """Read the prompts once, padded on the left, and give each its `n` rows.

    Returns: states (R, H) after the last prompt token, cache, attention mask (R, S) with 1 = real token, and the
    position (R,) of the last prompt token.
    """
    size = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), size, dtype=torch.long)
    attention = torch.zeros(len(prompts), size, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, size - len(prompt) :] = torch.tensor(prompt)
        attention[row, size - len(prompt) :] = 1
    ids, attention = ids.to(trunk.device), attention.to(trunk.device)
    # Position 0 is the first real token, so that left padding shifts nothing (algorithms: 5.1, 2).
    position_ids = (attention.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=trunk.model.config)
    states = network(
        input_ids=ids,
        attention_mask=attention,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    if n > 1:
        cache.batch_repeat_interleave(n)
    repeated = [tensor.repeat_interleave(n, dim=0) for tensor in (states, attention, position_ids[:, -1])]
    return repeated[0], cache, repeated[1], repeated[2]
