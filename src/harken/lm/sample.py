"""Harken's sampler: batched decoding with a key-value cache.

Each completion draws from its own random stream, one uniform a token, so what it becomes does not depend on which
other rows are in the batch, nor on when they stop. Prompts are read once and shared by their completions; a row that
stopped leaves the batch. The log-probability of a drawn token is the one it was drawn with: over the kept set, after
the temperature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harken.core.drawing import draw_tokens, sum_blocks
from harken.lm.chat import Chat
from harken.lm.decode import Decoder, ModelDecoder, PairedDecoder, kept_rows
from harken.lm.decode_llama import LlamaDecoder
from harken.lm.kernels import LANES, find
from harken.lm.llama import is_supported
from harken.lm.products import can_pack
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
    entropies: list[float] = field(default_factory=list[float])
    """Of the distribution each token was drawn from, nats; empty unless asked for."""
    lower_states: Tensor | None = field(default=None, compare=False)
    """(prompt + completion - 1, H), what the layers below all adapters gave for each token but the last, which is never
    read; None where the sampler does not tell."""


Watch = Callable[[int], bool]
"""Is told each token as it is drawn; False ends the completion there, with reason `length`."""


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
    with_entropy: bool = False,
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
        with_entropy: also tell the entropy of each token's distribution.

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
            with_entropy=with_entropy,
        )
        for row, completion in zip(rows, drawn, strict=True):
            results[row] = completion
    return [completion for completion in results if completion is not None]


@torch.no_grad()
def sample_watched(
    trunk: Trunk, role: str | None, prompt: list[int], settings: SamplingSettings, *, seed: int, watch: Watch
) -> Sampled:
    """Draw one completion of one prompt, as `sample` does; `watch` sees it grow, and may end it."""
    return _decode(trunk, role, [prompt], settings, [seed], 1, watch=watch)[0]


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


def _open_decoder(trunk: Trunk, role: str | None, pack_rows: int | None) -> Decoder:
    def one(name: str | None, num_lower: int = 0) -> Decoder:
        network: Any = trunk.network(name)
        if not is_supported(network):
            return ModelDecoder(network)
        return LlamaDecoder(network, trunk.switch.role, num_lower=num_lower, pack_rows=pack_rows)

    mask = trunk.mask(role)
    if mask is None:
        return one(role, trunk.num_lower_layers)
    # A model's own forward pass computes with the adapters that are switched on at that moment.
    return PairedDecoder(*((one(name), partial(trunk.network, name)) for name in (role, mask.role)))


def _decode(
    trunk: Trunk,
    role: str | None,
    prompts: list[list[int]],
    settings: SamplingSettings,
    seeds: list[int],
    n: int,
    *,
    with_entropy: bool = False,
    watch: Watch | None = None,
) -> list[Sampled]:
    pack_rows = len(seeds) if can_pack(trunk.network(role), settings.max_new_tokens) else None
    logits_fn, support_fn = trunk.logits_fn(role, pack_rows=pack_rows), trunk.support_fn(role)
    decoder = _open_decoder(trunk, role, pack_rows)
    stop_ids = torch.tensor(sorted(trunk.chat.stop_ids), device=trunk.device)
    # One stream a row, drawn up front: (rows, max_new_tokens).
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    streams = [torch.rand(settings.max_new_tokens, generator=one, dtype=torch.float64) for one in generators]
    uniforms = torch.stack(streams).to(trunk.device)
    results = [Sampled([], [], "length") for _ in seeds]
    alive = list(range(len(seeds)))
    states = decoder.prefill(prompts, n=n, new_tokens=settings.max_new_tokens)
    lower = LowerStates([len(prompt) for prompt in prompts for _ in range(n)], settings.max_new_tokens, decoder, n)
    for step in range(settings.max_new_tokens):
        logits = logits_fn(states)
        if support_fn is not None:
            logits = logits.masked_fill(~support_fn(states), -torch.inf)
        tokens, logprobs, entropies = draw_tokens(
            logits,
            uniforms[alive, step],
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            with_entropy=with_entropy,
            sum_blocks=sum_blocks
            if (compiled := find(logits.dtype, logits.device, LANES)) is None
            else compiled.sum_blocks,
        )
        goes_on = (~torch.isin(tokens, stop_ids)).tolist()
        for row, token, logprob in zip(alive, tokens.tolist(), logprobs.tolist(), strict=True):
            results[row].token_ids.append(token)
            results[row].logprobs.append(logprob)
        if entropies is not None:
            for row, entropy in zip(alive, entropies.tolist(), strict=True):
                results[row].entropies.append(entropy)
        for place, row in enumerate(alive):
            if not goes_on[place]:
                results[row] = replace(results[row], finish_reason="stop")
        if not any(goes_on) or step + 1 == settings.max_new_tokens:
            break
        if watch is not None and not watch(int(tokens[0])):
            break
        if not all(goes_on):
            rows = kept_rows(goes_on)
            decoder.keep(rows)
            alive = [alive[place] for place in rows]
            tokens = tokens[rows]
        states = decoder.step(tokens)
        lower.note(alive, decoder)
    return [replace(item, lower_states=lower.of(row, len(item.token_ids))) for row, item in enumerate(results)]


class LowerStates:
    """What the layers below all adapters gave, by completion, while the rows of the batch come and go."""

    def __init__(self, prompt_sizes: Sequence[int], new_tokens: int, decoder: Decoder, n: int) -> None:
        """Take memory for R completions, `n` a prompt, and note the prompts'."""
        self.prompt_sizes = prompt_sizes
        self.memory: Tensor | None = None
        if decoder.lower_states is not None:
            _, self.size, width = decoder.lower_states.shape
            self.memory = decoder.lower_states.new_empty(len(prompt_sizes), self.size + new_tokens, width)
            self.memory[:, : self.size] = decoder.lower_states.repeat_interleave(n, dim=0)

    def note(self, rows: Sequence[int], decoder: Decoder) -> None:
        """Note the states of a token more in each of these rows."""
        if self.memory is not None:
            assert decoder.lower_states is not None
            self.memory[rows, self.size] = decoder.lower_states
            self.size += 1

    def of(self, row: int, num_tokens: int) -> Tensor | None:
        """Return those of a completion of so many tokens, its prompt's first."""
        if self.memory is None:
            return None
        first = max(self.prompt_sizes) - self.prompt_sizes[row]
        return self.memory[row, first : max(self.prompt_sizes) + num_tokens - 1]
