"""What the loops compute with a role: log-probabilities, values, scores."""

from collections.abc import Callable

import torch
from torch import Tensor

from harken.core.logprobs import TokenLogprobs, preceding_states, token_logprobs
from harken.lm.batch import Batch, microbatches
from harken.lm.trunk import Trunk


def completion_logprobs(
    trunk: Trunk,
    role: str | None,
    batch: Batch,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = False,
) -> TokenLogprobs:
    """Return log-probabilities (and entropy) of the completion tokens under a role, differentiable.

    Args:
        trunk: base and roles.
        role: a role's name, or None for the reference.
        batch: B rows of S tokens.
        temperature: the one the tokens were sampled with; logits are divided by it.
        chunk_tokens: tokens whose logits exist at the same time.
        with_entropy: also return the entropy of each token's distribution.
    """
    return token_logprobs(
        trunk.hidden(role, batch),
        batch.ids,
        batch.completion_mask,
        trunk.logits_fn(role),
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        with_entropy=with_entropy,
    )


def completion_values(trunk: Trunk, role: str, batch: Batch) -> Tensor:
    """Return (B, S) fp32, the critic's estimate before each completion token, 0 elsewhere; differentiable."""
    return values_of_states(trunk, role, completion_states(trunk, role, batch), batch.completion_mask)


def completion_states(trunk: Trunk, role: str, batch: Batch) -> Tensor:
    """Return (B, S, H), a role's state before each completion token, 0 elsewhere; differentiable."""
    hidden = trunk.hidden(role, batch)
    mask = batch.completion_mask
    return torch.zeros_like(hidden).masked_scatter(mask[..., None], preceding_states(hidden, mask))


def values_of_states(trunk: Trunk, role: str, states: Tensor, completion_mask: Tensor) -> Tensor:
    """Return (B, S) fp32, what a role's head reads from `completion_states`; differentiable."""
    values = trunk.head(role, states[completion_mask])
    return values.new_zeros(completion_mask.shape).masked_scatter(completion_mask, values)


def sequence_scores(trunk: Trunk, role: str, batch: Batch) -> Tensor:
    """Return (B,) fp32, the head's reading at the last real token of each row; differentiable."""
    hidden = trunk.hidden(role, batch)
    rows = torch.arange(batch.num_rows, device=hidden.device)
    return trunk.head(role, hidden[rows, batch.last_index()])


@torch.no_grad()
def by_microbatch(batch: Batch, compute: Callable[[Batch], Tensor], *, max_tokens: int) -> Tensor:
    """Run `compute` without gradients on length-sorted microbatches and put the rows back in order.

    Args:
        batch: all rows.
        compute: maps a microbatch to (b, s, ...) or (b,) values.
        max_tokens: upper bound of rows x padded length in a microbatch.

    Returns: (B, S, ...) or (B,), 0 beyond a microbatch's width.
    """
    result: Tensor | None = None
    for rows in microbatches(batch.lengths.tolist(), max_tokens):
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
