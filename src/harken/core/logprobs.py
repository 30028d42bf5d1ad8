"""Log-probabilities of tokens from hidden states, without ever holding (B, S, V) logits.

The shift by one (the state before a token predicts it) happens in ``preceding_states`` and nowhere
else. ``sampling_logprobs`` and ``inverse_cdf_sample`` draw tokens from the same distribution.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from harken.core.kl import full_kl
from harken.core.masking import true_rows

LogitsFn = Callable[[Tensor], Tensor]
"""Output layer of a model: states (N, H) to logits (N, V)."""

SupportFn = Callable[[Tensor], Tensor]
"""States (N, H) to (N, V) bool, True = token may be drawn."""


class MaskedLogits(NamedTuple):
    """An output layer some of whose tokens are never drawn."""

    logits_fn: LogitsFn
    support_fn: SupportFn


Parts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of some tokens: log-probabilities, entropy, KL, logarithm of the mass inside."""

BLOCK = 128
"""Tokens whose mass is added up together when a token is drawn."""

_CACHED_LOGITS = 2**20
"""Logits that a CPU goes over at a time in drawing: beyond 6 MB memory is given back and taken anew at each step, which
made drawing four times slower."""


class TokenLogprobs(NamedTuple):
    """Per-token results at each token's own index.

    Attributes:
        logprobs: (B, S) fp32, nats, zero where masked out.
        entropy: (B, S) fp32, nats, of the distribution the token was drawn from, zero where masked
            out; None if it was not asked for.
        kl: (B, S) fp32, nats, KL(policy || reference) of that whole distribution, zero where masked out; None if it
            was not asked for.
        log_mass: (B, S) fp32, nats, logarithm of the mass that the tokens which may be drawn have
            among all, zero where masked out; None if all may be drawn.
    """

    logprobs: Tensor
    entropy: Tensor | None
    kl: Tensor | None = None
    log_mass: Tensor | None = None


def preceding_states(hidden_BSH: Tensor, mask_BS: Tensor) -> Tensor:
    """State just before each masked token: the shift by one.

    Args:
        hidden_BSH: (B, S, H); ``hidden[b, s]`` has read the tokens up to and including s. A critic
            passes its states here too: the value of a token is read before the token is drawn.
        mask_BS: (B, S) bool, True = token wanted; False at index 0.

    Returns:
        (N, H), ``hidden[b, s - 1]`` for each True (b, s) in row-major order.

    Raises:
        ValueError: if the shapes differ or the mask is True at index 0.
    """
    if hidden_BSH.shape[:2] != mask_BS.shape:
        raise ValueError(f"hidden {tuple(hidden_BSH.shape)} and mask {tuple(mask_BS.shape)} differ")
    if bool(mask_BS[:, :1].any()):
        raise ValueError("the mask is True at index 0, where no state comes before the token")
    return hidden_BSH[:, :-1][mask_BS[:, 1:]]


def token_logprobs(
    hidden_BSH: Tensor,
    ids_BS: Tensor,
    completion_mask_BS: Tensor,
    logits_fn: LogitsFn | MaskedLogits,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = False,
    reference: tuple[Tensor, LogitsFn] | None = None,
) -> TokenLogprobs:
    """Log-probability (and entropy, and exact KL) of every completion token, in chunks of tokens.

    At most ``chunk_tokens`` rows of logits exist at a time, forward and backward: where the output layer learns, or
    more than log-probabilities is wanted, each chunk is recomputed in the backward pass; else it is read once.

    Args:
        hidden_BSH: (B, S, H), states after each token, any float type.
        ids_BS: (B, S) long.
        completion_mask_BS: (B, S) bool, True = completion token; False at index 0.
        logits_fn: states (N, H) to logits (N, V), each row by itself; called once per chunk, and with N = 0 to see
            whether it learns and so that the result always has a gradient. With a mask the softmax is over what may be
            drawn, and the token that was.
        temperature: logits are divided by it, as in sampling; above zero.
        chunk_tokens: rows per call of ``logits_fn``, at least 1.
        with_entropy: also compute -sum p log p over the vocabulary, differentiable.
        reference: states (B, S, H) and output layer of the reference: also compute the exact KL to it, which costs a
            second chunk of logits.

    Returns:
        TokenLogprobs; the softmax is computed in fp32 (in fp64 for fp64 logits).

    Raises:
        ValueError: if shapes differ, the mask is True at index 0, temperature is not above zero or chunk_tokens is
            below 1.
    """
    _check_temperature(temperature)
    states = preceding_states(hidden_BSH, completion_mask_BS)
    token_ids = ids_BS[completion_mask_BS]
    output, support_fn = logits_fn if isinstance(logits_fn, MaskedLogits) else (logits_fn, None)
    ref_states = states if reference is None else preceding_states(reference[0], completion_mask_BS)

    def one_chunk(chunk_states: Tensor, chunk_ids: Tensor, chunk_ref_states: Tensor) -> Parts:
        logits = _tempered(output(chunk_states), temperature)
        inside = logits
        if support_fn is not None:
            # Rounding may have put the token that was drawn outside.
            allowed = support_fn(chunk_states).scatter(1, chunk_ids[:, None], value=True)
            inside = logits.masked_fill(~allowed, -torch.inf)
        logprobs, entropy = _gather_logprobs(inside, chunk_ids, with_entropy=with_entropy)
        kl = log_mass = logprobs.detach()
        if reference is not None:
            kl = full_kl(inside, _tempered(reference[1](chunk_ref_states), temperature))
        if support_fn is not None:
            log_mass = inside.logsumexp(dim=-1) - logits.logsumexp(dim=-1)
        return logprobs, entropy, kl, log_mass

    is_alone = not with_entropy and support_fn is None and reference is None
    if is_alone and states.requires_grad and not output(states[:0].detach()).requires_grad:
        read: Callable[..., Parts] = functools.partial(_read_once, one_chunk)
    else:
        read = functools.partial(_read_again, one_chunk)
    found = _in_chunks(read, (states, token_ids, ref_states), chunk_tokens)
    logprobs, entropy, kl, log_mass = (_scatter(list(part), completion_mask_BS) for part in zip(*found, strict=True))
    found_kl, found_mass = (None if reference is None else kl), (None if support_fn is None else log_mass)
    return TokenLogprobs(logprobs, entropy if with_entropy else None, found_kl, found_mass)


def _in_chunks(read: Callable[..., Parts], rows: Sequence[Tensor], size: int) -> list[Parts]:
    """Read rows in chunks."""
    if size < 1:
        raise ValueError(f"chunk_tokens is {size}, expected at least 1")
    return [read(*chunk) for chunk in zip(*(_chunks(x, size) for x in rows), strict=True)]


def _read_again(read: Callable[..., Parts], *chunk: Tensor) -> Parts:
    """Keep nothing of a chunk for the backward pass, which reads it again."""
    return cast(Parts, checkpoint(read, *chunk, use_reentrant=False)) if torch.is_grad_enabled() else read(*chunk)


def _read_once(read: Callable[..., Parts], states: Tensor, *others: Tensor) -> Parts:
    """Keep the slope of each log-probability, whatever the loss will make of it, and nothing of the logits."""
    logprobs = cast(Tensor, _ReadOnce.apply(states, lambda own: read(own, *others)[0]))
    rest = logprobs.detach()
    return logprobs, rest, rest, rest


class _ReadOnce(torch.autograd.Function):
    """Log-probabilities (N,) of states (N, H): each depends on its own state only, so the sum's gradient is theirs."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, logprobs_fn: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            own = states.detach().requires_grad_()
            logprobs = logprobs_fn(own)
            (slope,) = torch.autograd.grad(logprobs.sum(), own)
        ctx.save_for_backward(slope)
        return logprobs.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grads[0][:, None]).to(slope.dtype), None


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
    _check_temperature(temperature)
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, expected 0 (off) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected a value in (0, 1]")
    logits = _tempered(logits_NV, temperature)
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
    _check_uniforms(uniforms_N, len(logprobs_NV))
    return _draw(logprobs_NV.exp(), uniforms_N)[0]


def _draw(mass_NV: Tensor, uniforms_N: Tensor, *, first_row: int = 0) -> tuple[Tensor, Tensor]:
    """Token (N,) drawn in proportion to mass, and the mass (N,) fp64 of each row; errors count from `first_row`."""
    # First the block, then the token in it: cumulative sums in fp64 are then of short rows only.
    missing = -mass_NV.shape[1] % BLOCK
    # Padding copies the vocabulary, so it is left out where nothing is missing.
    padded = torch.nn.functional.pad(mass_NV, (0, missing)) if missing else mass_NV
    blocks = padded.reshape(len(padded), -1, BLOCK)
    # Summed in its own type: in fp64 torch would first copy the whole vocabulary.
    block_mass = blocks.sum(dim=-1).double()
    total = block_mass.sum(dim=-1)
    is_sound = (total > 0) & total.isfinite()
    if not bool(is_sound.all()):
        rows = [first_row + row for row in true_rows(~is_sound)]
        raise ValueError(f"rows {rows} hold NaN, +inf or no mass; the model diverged")
    target = uniforms_N.double() * total
    block, before = _first_past(block_mass, target)
    inside = blocks[torch.arange(len(block), device=block.device), block].double()
    return block * BLOCK + _first_past(inside, target - before)[0], total


def draw_tokens(
    logits_NV: Tensor, uniforms_N: Tensor, *, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """One token for each row and its log-probability: `sampling_logprobs`, then `inverse_cdf_sample`.

    Without top-k and top-p the vocabulary is gone over three times only: for the largest logit, the
    exponentials and the sums of blocks; some rows at a time, so that a processor finds them in its cache.

    Args:
        logits_NV: (N, V), any float type.
        uniforms_N: (N,) float in [0, 1).
        temperature: as in ``sampling_logprobs``.
        top_k: likewise.
        top_p: likewise.

    Returns:
        tokens (N,) long, and their log-probabilities (N,) fp32 (fp64 for fp64 logits), nats.

    Raises:
        ValueError: if a setting or a uniform is outside its range, or a row holds a NaN or no mass.
    """
    if top_k or top_p < 1:
        logprobs = sampling_logprobs(logits_NV, temperature=temperature, top_k=top_k, top_p=top_p)
        tokens = inverse_cdf_sample(logprobs, uniforms_N)
        return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)
    _check_temperature(temperature)
    _check_uniforms(uniforms_N, len(logits_NV))
    rows = max(1, _CACHED_LOGITS // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else len(logits_NV)
    tokens = logits_NV.new_empty(len(logits_NV), dtype=torch.long)
    found: list[Tensor] = []
    for start in range(0, len(logits_NV), rows):
        chosen = slice(start, start + rows)
        tempered = _tempered(logits_NV[chosen], temperature)
        largest = tempered.amax(dim=-1, keepdim=True)
        tokens[chosen], total = _draw((tempered - largest).exp_(), uniforms_N[chosen], first_row=start)
        drawn = tempered.gather(1, tokens[chosen, None]).squeeze(1)
        found.append(drawn - largest.squeeze(1) - total.log().to(tempered.dtype))
    return tokens, torch.cat(found)


def _first_past(mass_NK: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Index (N,) of the first entry whose cumulative mass exceeds the target, and the mass (N,) before it."""
    cumulative = mass_NK.cumsum(dim=-1)
    has_mass = mass_NK > 0
    is_past = has_mass & (cumulative > target_N[:, None])
    last_with_mass = mass_NK.shape[-1] - 1 - has_mass.flip(-1).int().argmax(dim=-1)
    # The target may round up to the total, which no cumulative mass exceeds.
    index = torch.where(is_past.any(dim=-1), is_past.int().argmax(dim=-1), last_with_mass)
    return index, (cumulative - mass_NK).gather(1, index[:, None]).squeeze(1)


def _check_uniforms(uniforms_N: Tensor, num_rows: int) -> None:
    if uniforms_N.shape != (num_rows,):
        raise ValueError(f"{tuple(uniforms_N.shape)} uniforms, {num_rows} rows")
    if bool(((uniforms_N < 0) | (uniforms_N >= 1)).any()):
        raise ValueError("uniforms outside [0, 1)")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a value above zero")


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Dividing by 1 would cost one more (N, V) tensor.
    return logits if temperature == 1.0 else logits / temperature


def _chunks(x: Tensor, size: int) -> list[Tensor]:
    return [x[start : start + size] for start in range(0, max(len(x), 1), size)]


def _gather_logprobs(logits_NV: Tensor, ids_N: Tensor, *, with_entropy: bool) -> tuple[Tensor, Tensor]:
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    logprobs = logprobs_NV.gather(1, ids_N[:, None]).squeeze(1)
    if not with_entropy:
        return logprobs, logprobs.detach()
    # Forbidden tokens have logit -inf and probability 0; their 0 * -inf is 0, not NaN.
    finite_logprobs = logprobs_NV.masked_fill(logprobs_NV == -torch.inf, 0.0)
    return logprobs, -(logprobs_NV.exp() * finite_logprobs).sum(dim=-1)


def _scatter(chunks: list[Tensor], mask_BS: Tensor) -> Tensor:
    values = torch.cat(chunks)
    return values.new_zeros(mask_BS.shape).masked_scatter(mask_BS, values)


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
