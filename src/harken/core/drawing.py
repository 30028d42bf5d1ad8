"""Tokens drawn from logits: temperature, top-k, top-p, and one uniform number a token.

``core.logprobs`` gives the same tokens their log-probabilities when a sequence is read.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harken.core.logprobs import check_temperature, entropy_of, rows_in_cache, tempered
from harken.core.masking import true_rows

BLOCK = 128
"""Tokens whose mass is added up together when a token is drawn."""


def sampling_logprobs(logits_NV: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Log-probabilities from which the sampler draws, renormalized over the kept tokens.

    First the ``top_k`` most probable tokens are kept, then, of the distribution renormalized over
    them, the smallest set whose mass reaches ``top_p``, never fewer than one token. Among equal
    logits at the edge of either set the lowest token ids are kept, so exactly k tokens remain.

    Args:
        logits_NV: (N, V), any float type.
        temperature: logits are divided by it; above zero.
        top_k: number of tokens to keep; 0 keeps all.
        top_p: mass to keep, in (0, 1]; 1 keeps all.

    Returns:
        (N, V) fp32 (fp64 for fp64 logits), nats, -inf outside the kept set.

    Raises:
        ValueError: if a setting is outside its range.

    Source:
        top-p: arXiv:1904.09751 eq. 2-3.
    """
    check_temperature(temperature)
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, expected 0 (off) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected a value in (0, 1]")
    logits = tempered(logits_NV, temperature)
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(~_top_k_tokens(logits, top_k), -torch.inf)
    logprobs = logits.log_softmax(dim=-1)
    if top_p < 1:
        logprobs = logprobs.masked_fill(~_top_p_tokens(logprobs, top_p), -torch.inf)
        logprobs = logprobs.log_softmax(dim=-1)
    return logprobs


def nucleus(logits_NV: Tensor, top_p: float) -> Tensor:
    """Smallest set of tokens whose mass reaches ``top_p``: True = in it.

    Args:
        logits_NV: (N, V), any float type.
        top_p: mass to keep, in (0, 1].

    Returns:
        (N, V) bool; the set of ``sampling_logprobs``.

    Raises:
        ValueError: if top_p is outside its range.

    Source:
        arXiv:1904.09751 eq. 2-3.
    """
    return sampling_logprobs(logits_NV, temperature=1.0, top_k=0, top_p=top_p) > -torch.inf


def inverse_cdf_sample(logprobs_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """Token drawn from each row with one uniform number.

    The same uniforms give the same tokens whatever else is in the batch. A token of no mass is
    never drawn, whatever the rounding of the cumulative sum.

    Args:
        logprobs_NV: (N, V), nats; rows need not be normalized, -inf = never drawn.
        uniforms_N: (N,) float in [0, 1).

    Returns:
        (N,) long, the first token whose cumulative mass exceeds uniform times the row's mass.

    Raises:
        ValueError: if a uniform is outside [0, 1), or a row holds a NaN or no mass.
    """
    return _draw(logprobs_NV, uniforms_N, 1.0, sum_blocks(logprobs_NV, 1.0, with_entropy=False)).tokens


class Blocks(NamedTuple):
    """What each row's B blocks of BLOCK tokens hold, the last perhaps fewer; logits are those over the temperature."""

    largest: Tensor
    """(N, B) fp32 (fp64 for fp64 logits), the largest logit; -inf where none is finite."""
    mass: Tensor
    """(N, B) likewise, sum of e^(logit - largest)."""
    below: Tensor | None
    """(N, B) likewise, sum of e^(logit - largest) (logit - largest), if an entropy is asked for."""


def sum_blocks(logits_NV: Tensor, temperature: float, *, with_entropy: bool) -> Blocks:
    """Go over the vocabulary, some rows at a time, so that a processor finds them in its cache.

    Args:
        logits_NV: (N, V), any float type; a token of -inf has no mass.
        temperature: logits are divided by it; above zero.
        with_entropy: also return ``below``, which goes over the vocabulary once more.
    """
    count, size = logits_NV.shape
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    found = Blocks(*(logits_NV.new_empty(count, -(-size // BLOCK), dtype=dtype) for _ in range(3)))
    for rows in rows_in_cache(logits_NV):
        logits = tempered(logits_NV[rows], temperature)
        missing = -size % BLOCK
        # Padding copies the vocabulary, so it is left out where nothing is missing.
        padded = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits
        blocks = padded.reshape(len(logits), -1, BLOCK)
        found.largest[rows] = largest = blocks.amax(dim=-1)
        # Where nothing has mass, -inf - -inf would be NaN.
        below = blocks - largest.clamp(min=torch.finfo(dtype).min).unsqueeze(-1)
        mass = below.exp()
        found.mass[rows] = mass.sum(dim=-1)
        if found.below is not None and with_entropy:
            # Tokens of no mass are -inf below; their 0 x -inf is 0.
            found.below[rows] = mass.mul_(below.clamp_(min=torch.finfo(dtype).min)).sum(dim=-1)
    return found if with_entropy else found._replace(below=None)


class DrawnTokens(NamedTuple):
    """What was drawn, and from what."""

    tokens: Tensor
    """(N,) long."""
    logprobs: Tensor
    """(N,) fp32 (fp64 for fp64 logits), nats, of the tokens."""
    entropies: Tensor | None
    """(N,) likewise, of the distributions that the tokens were drawn from, if asked for."""


def draw_tokens(
    logits_NV: Tensor,
    uniforms_N: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    with_entropy: bool = False,
    sum_blocks: Callable[..., Blocks] = sum_blocks,
) -> DrawnTokens:
    """One token for each row and its log-probability: `sampling_logprobs`, then `inverse_cdf_sample`.

    Without top-k and top-p nothing of the vocabulary's size is kept: it is summed up by blocks, the block is drawn, and
    then the token in it.

    Args:
        logits_NV: (N, V), any float type.
        uniforms_N: (N,) float in [0, 1).
        temperature: as in ``sampling_logprobs``.
        top_k: likewise.
        top_p: likewise.
        with_entropy: also return the entropies.
        sum_blocks: goes over the vocabulary, as the function of this name does.

    Raises:
        ValueError: if a setting or a uniform is outside its range, or a row holds a NaN or no mass.
    """
    if top_k or top_p < 1:
        logprobs = sampling_logprobs(logits_NV, temperature=temperature, top_k=top_k, top_p=top_p)
        tokens = inverse_cdf_sample(logprobs, uniforms_N)
        drawn = logprobs.gather(1, tokens[:, None]).squeeze(1)
        return DrawnTokens(tokens, drawn, entropy_of(logprobs) if with_entropy else None)
    check_temperature(temperature)
    blocks = sum_blocks(logits_NV, temperature, with_entropy=with_entropy)
    return _draw(logits_NV, uniforms_N, temperature, blocks)


def _draw(logits_NV: Tensor, uniforms_N: Tensor, temperature: float, blocks: Blocks) -> DrawnTokens:
    _check_uniforms(uniforms_N, len(logits_NV))
    top = blocks.largest.amax(dim=-1, keepdim=True)
    below_top = blocks.largest - top
    # First the block, then the token in it: cumulative sums in fp64 are then of short rows only.
    scale = below_top.double().exp()
    block_mass = blocks.mass.double() * scale
    total = block_mass.sum(dim=-1)
    is_sound = (total > 0) & total.isfinite()
    if not bool(is_sound.all()):
        raise ValueError(f"rows {true_rows(~is_sound)} hold NaN, +inf or no mass; the model diverged")
    target = uniforms_N.double() * total
    block, before = _first_past(block_mass, target)
    places = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
    is_token = places < logits_NV.shape[1]
    inside = tempered(logits_NV.gather(1, places.where(is_token, 0)), temperature) - top
    mass = inside.double().exp().masked_fill(~is_token, 0.0)
    index, _ = _first_past(mass, target - before)
    logprobs = inside.gather(1, index[:, None]).squeeze(1) - total.log().to(inside.dtype)
    entropies = None
    if blocks.below is not None:
        # Blocks of no mass are -inf below; their 0 x -inf is 0.
        finite = below_top.clamp(min=torch.finfo(below_top.dtype).min).double()
        below = (blocks.below.double() + blocks.mass.double() * finite) * scale
        entropies = (total.log() - below.sum(dim=-1) / total).to(inside.dtype)
    return DrawnTokens(block * BLOCK + index, logprobs, entropies)


def _first_past(mass_NK: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Index (N,) of the first entry whose cumulative mass exceeds the target, and the mass (N,) before it."""
    cumulative = mass_NK.cumsum(dim=-1)
    has_mass = mass_NK > 0
    is_past = has_mass & (cumulative > target_N[:, None])
    last_with_mass = mass_NK.shape[-1] - 1 - has_mass.flip(-1).int().argmax(dim=-1)
    # The target may round up to the total, or the blocks were summed with other rounding: nothing exceeds it then.
    index = torch.where(is_past.any(dim=-1), is_past.int().argmax(dim=-1), last_with_mass)
    return index, (cumulative - mass_NK).gather(1, index[:, None]).squeeze(1)


def _check_uniforms(uniforms_N: Tensor, num_rows: int) -> None:
    if uniforms_N.shape != (num_rows,):
        raise ValueError(f"{tuple(uniforms_N.shape)} uniforms, {num_rows} rows")
    if bool(((uniforms_N < 0) | (uniforms_N >= 1)).any()):
        raise ValueError("uniforms outside [0, 1)")


def _top_k_tokens(logits_NV: Tensor, top_k: int) -> Tensor:
    edge = logits_NV.topk(top_k, dim=-1).values[:, -1:]
    is_above, is_edge = logits_NV > edge, logits_NV == edge
    num_missing = top_k - is_above.sum(dim=-1, keepdim=True)
    return is_above | (is_edge & (is_edge.cumsum(dim=-1) <= num_missing))


def _top_p_tokens(logprobs_NV: Tensor, top_p: float) -> Tensor:
    ordered, order = logprobs_NV.sort(dim=-1, descending=True, stable=True)
    probs = ordered.exp()
    mass_before = probs.cumsum(dim=-1) - probs
    is_kept = mass_before < top_p
    is_kept[:, 0] = True
    return torch.zeros_like(is_kept).scatter(-1, order, is_kept)
