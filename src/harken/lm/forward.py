"""What the loops compute with a role: log-probabilities, values, scores."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harken.core.logprobs import MaskedLogits, TokenLogprobs, preceding_states, token_logprobs
from harken.lm.batch import Batch, Tokens, microbatches, pad, pad_shared
from harken.lm.trunk import Trunk

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest mean |difference| of log-probabilities of equal tokens, nats. A bf16 logit near 20 is rounded to 0.125."""


def completion_logprobs(
    trunk: Trunk,
    role: str | None,
    batch: Batch,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = False,
    with_kl: bool = False,
    hidden: Tensor | None = None,
) -> TokenLogprobs:
    """Return log-probabilities (and entropy, and KL) of the completion tokens under a role, differentiable.

    Args:
        trunk: base and roles.
        role: a role's name, or None for the reference.
        batch: B rows of S tokens.
        temperature: the one the tokens were sampled with; logits are divided by it.
        chunk_tokens: tokens whose logits exist at the same time.
        with_entropy: also return the entropy of each token's distribution.
        with_kl: also return the exact KL of each token's distribution to the reference's, which reads the batch too.
        hidden: (B, S, H), the role's states, if they are at hand.
    """
    reference = None
    if with_kl:
        with torch.no_grad():
            reference = (trunk.hidden(None, batch), trunk.logits_fn(None))
    logits_fn, support_fn = trunk.logits_fn(role), trunk.support_fn(role)
    return token_logprobs(
        trunk.hidden(role, batch) if hidden is None else hidden,
        batch.ids,
        batch.completion_mask,
        logits_fn if support_fn is None else MaskedLogits(logits_fn, support_fn),
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        with_entropy=with_entropy,
        reference=reference,
    )


def group_logprobs(
    trunk: Trunk, role: str | None, groups: Sequence[Sequence[Tokens]], *, shared: bool, chunk_tokens: int = 1024
) -> Tensor:
    """Return (B, K), the summed log-probability of each completion of each group under a role, differentiable.

    Args:
        trunk: base and roles.
        role: a role's name, or None for the reference.
        groups: B groups of K completions of one prompt; a preference pair is a group of two.
        shared: compute each prompt once, in one row with its completions; else each completion has a row with the
            prompt in it. The result is the same where `can_share_prompts` says so.
        chunk_tokens: tokens whose logits exist at the same time.
    """
    if not shared:
        batch = pad([sequence for group in groups for sequence in group], trunk.device)
        logprobs = completion_logprobs(trunk, role, batch, chunk_tokens=chunk_tokens).logprobs
        return logprobs.sum(dim=1).unflatten(0, (len(groups), -1))
    batch = pad_shared(groups, trunk.device)
    assert batch.segments is not None
    logprobs = completion_logprobs(trunk, role, batch, chunk_tokens=chunk_tokens).logprobs
    parts = [torch.where(batch.segments == number, logprobs, 0.0) for number in range(1, len(groups[0]) + 1)]
    return torch.stack(parts, dim=1).sum(dim=2)


@torch.no_grad()
def can_share_prompts(trunk: Trunk, longest: Sequence[Tokens]) -> bool:
    """Say whether this model gives a completion the same log-probability in a row that it shares.

    Not so where attention has a window that a mask of our own would replace, where positions come from the mask, or
    where states do not pass through attention at all. Told by the model's settings, and by trying.

    Args:
        trunk: the reference is asked.
        longest: the group of completions with most tokens.
    """
    settings: Any = trunk.model.config
    windows = [getattr(settings, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window is not None and max(item.size for item in longest) > window for window in windows):
        return False
    apart, shared = (group_logprobs(trunk, None, [longest], shared=shared)[0] for shared in (False, True))
    counts = torch.tensor([len(item.completion) for item in longest], device=apart.device)
    return bool(((apart - shared).abs() / counts <= TOLERANCE[trunk.dtype]).all())


def completion_values(trunk: Trunk, role: str, batch: Batch) -> Tensor:
    """Return (B, S) fp32, the critic's estimate before each completion token, 0 elsewhere; differentiable."""
    states = completion_states(trunk.hidden(role, batch), batch.completion_mask)
    return values_of_states(trunk, role, states, batch.completion_mask)


def completion_states(hidden: Tensor, completion_mask: Tensor) -> Tensor:
    """Return (B, S, H), of each completion token the state before it, 0 elsewhere; differentiable."""
    before = preceding_states(hidden, completion_mask)
    return torch.zeros_like(hidden).masked_scatter(completion_mask[..., None], before)


def values_of_states(trunk: Trunk, role: str, states: Tensor, completion_mask: Tensor) -> Tensor:
    """Return (B, S) fp32, what a role's head reads from `completion_states`; differentiable."""
    values = trunk.head(role, states[completion_mask])
    return values.new_zeros(completion_mask.shape).masked_scatter(completion_mask, values)


def sequence_scores(trunk: Trunk, role: str, batch: Batch) -> Tensor:
    """Return (B,) fp32, the head's reading at the last real token of each row; differentiable."""
    hidden = trunk.hidden(role, batch)
    rows = torch.arange(batch.num_rows, device=hidden.device)
    return trunk.head(role, hidden[rows, batch.last_index()])


def group_scores(trunk: Trunk, role: str, groups: Sequence[Sequence[Tokens]]) -> Tensor:
    """Return (B, K) fp32, the head's reading at the end of each completion, each prompt computed once; differentiable.

    Args:
        trunk: base and roles.
        role: a role with a head.
        groups: B groups of K completions of one prompt.
    """
    batch = pad_shared(groups, trunk.device)
    sizes = [[len(group[0].prompt), *(1 + len(item.completion) for item in group)] for group in groups]
    ends = torch.tensor(sizes, device=trunk.device).cumsum(1)[:, 1:] - 2
    rows = torch.arange(len(groups), device=trunk.device)[:, None]
    states = trunk.hidden(role, batch)[rows, ends]
    return trunk.head(role, states.flatten(0, 1)).reshape(ends.shape)


@torch.no_grad()
def by_microbatch(batch: Batch, compute: Callable[[Batch], Tensor], *, max_tokens: int, padded: bool = True) -> Tensor:
    """Run `compute` without gradients on length-sorted microbatches and put the rows back in order.

    Args:
        batch: all rows.
        compute: maps a microbatch to (b, s, ...) or (b,) values.
        max_tokens: upper bound of rows x padded length in a microbatch.
        padded: whether padding counts (`Trunk.computes_padding`).

    Returns: (B, S, ...) or (B,), 0 beyond a microbatch's width.
    """
    result: Tensor | None = None
    for rows in microbatches(batch.lengths.tolist(), max_tokens, padded=padded):
        part = compute(batch.select(rows))
        if result is None:
            sizes = (batch.num_rows, batch.ids.shape[1], *part.shape[2:])
            result = part.new_zeros(sizes if part.dim() > 1 else sizes[:1])
        index = torch.tensor(rows, device=part.device)
        if part.dim() == 1:
            result[index] = part
        else:
            result[index, : part.shape[1]] = part
    assert result is not None, "a batch has at least one row"
    return result
