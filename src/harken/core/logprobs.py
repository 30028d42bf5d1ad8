"""Log-probabilities of tokens from hidden states, without ever holding (B, S, V) logits.

The shift by one (the state before a token predicts it) happens in ``preceding_states`` and nowhere
else. ``core.drawing`` draws tokens from the same distribution.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from harken.core.kl import full_kl

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

CACHED_LOGITS = 2**20
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
    check_temperature(temperature)
    states = preceding_states(hidden_BSH, completion_mask_BS)
    token_ids = ids_BS[completion_mask_BS]
    output, support_fn = logits_fn if isinstance(logits_fn, MaskedLogits) else (logits_fn, None)
    ref_states = states if reference is None else preceding_states(reference[0], completion_mask_BS)

    def one_chunk(chunk_states: Tensor, chunk_ids: Tensor, chunk_ref_states: Tensor) -> Parts:
        logits = output(chunk_states)
        if support_fn is None and reference is None:
            logprobs, entropy = _read_logits(logits, chunk_ids, temperature, with_entropy=with_entropy)
            return logprobs, entropy, logprobs.detach(), logprobs.detach()
        allowed = None if support_fn is None else support_fn(chunk_states)
        ref_logits = None if reference is None else tempered(reference[1](chunk_ref_states), temperature)
        return _read_beside(tempered(logits, temperature), chunk_ids, allowed, ref_logits, with_entropy=with_entropy)

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

    def logprobs_of(own: Tensor) -> Tensor:
        return read(own, *others)[0]

    logprobs = cast(Tensor, _ReadOnce.apply(states, logprobs_of))  # pyright: ignore[reportUnknownMemberType]
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


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above zero.

    Raises:
        ValueError: it is not.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a value above zero")


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature, in fp32 (fp64 for fp64); perhaps the same tensor."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Dividing by 1 would cost one more (N, V) tensor.
    return logits if temperature == 1.0 else logits / temperature


def rows_in_cache(logits_NV: Tensor) -> list[slice]:
    """Rows to go over at a time: all, or on a CPU some."""
    count, size = logits_NV.shape
    step = max(1, CACHED_LOGITS // size) if logits_NV.device.type == "cpu" else max(1, count)
    return [slice(start, start + step) for start in range(0, count, step)]


def _read_logits(logits_NV: Tensor, ids_N: Tensor, temperature: float, *, with_entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of tokens, and entropies (N,), which mean nothing where they are not asked for."""
    if not with_entropy:
        chosen = cast(Tensor, _Chosen.apply(logits_NV, ids_N, temperature))  # pyright: ignore[reportUnknownMemberType]
        return chosen, chosen.detach()
    # Slices would cost a tensor of all logits each in the backward pass.
    parts = [slice(None)] if torch.is_grad_enabled() or not len(ids_N) else rows_in_cache(logits_NV)
    read = [_gather_logprobs(tempered(logits_NV[rows], temperature), ids_N[rows], with_entropy=True) for rows in parts]
    chosen, entropy = (torch.cat(part) for part in zip(*read, strict=True))
    return chosen, entropy


def _read_beside(
    logits_NV: Tensor, ids_N: Tensor, allowed_NV: Tensor | None, ref_logits_NV: Tensor | None, *, with_entropy: bool
) -> Parts:
    """All that is asked about tokens where only some may be drawn, or a reference is compared."""
    inside = logits_NV
    if allowed_NV is not None:
        # Rounding may have put the token that was drawn outside.
        inside = logits_NV.masked_fill(~allowed_NV.scatter(1, ids_N[:, None], value=True), -torch.inf)
    logprobs, entropy = _gather_logprobs(inside, ids_N, with_entropy=with_entropy)
    kl = log_mass = logprobs.detach()
    if ref_logits_NV is not None:
        kl = full_kl(inside, ref_logits_NV)
    if allowed_NV is not None:
        log_mass = inside.logsumexp(dim=-1) - logits_NV.logsumexp(dim=-1)
    return logprobs, entropy, kl, log_mass


def _gather_logprobs(logits_NV: Tensor, ids_N: Tensor, *, with_entropy: bool) -> tuple[Tensor, Tensor]:
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    logprobs = logprobs_NV.gather(1, ids_N[:, None]).squeeze(1)
    if not with_entropy:
        return logprobs, logprobs.detach()
    return logprobs, entropy_of(logprobs_NV)


def entropy_of(logprobs_NV: Tensor) -> Tensor:
    """Entropy (N,) of distributions, nats; tokens of no probability (-inf) count as 0."""
    finite_logprobs = logprobs_NV.masked_fill(logprobs_NV == -torch.inf, 0.0)
    return -(logprobs_NV.exp() * finite_logprobs).sum(dim=-1)


class _Chosen(torch.autograd.Function):
    """Log-probabilities (N,) of tokens; backward their one-hot rows minus the softmax, some rows at a time.

    Whole chunks are memory that a CPU gives back and takes anew: forward and backward took five times as long.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_N: Tensor, temperature: float) -> Tensor:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        logprobs, normalizers = (logits_NV.new_empty(len(ids_N), dtype=dtype) for _ in range(2))
        for rows in rows_in_cache(logits_NV):
            values = tempered(logits_NV[rows], temperature)
            normalizers[rows] = values.logsumexp(dim=-1)
            logprobs[rows] = values.gather(1, ids_N[rows, None]).squeeze(1) - normalizers[rows]
        ctx.save_for_backward(logits_NV, ids_N, normalizers)
        ctx.temperature = temperature
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, ids_N, normalizers = ctx.saved_tensors
        given = grads[0][:, None] / ctx.temperature
        grad = torch.empty_like(logits_NV)
        for rows in rows_in_cache(logits_NV):
            values = tempered(logits_NV[rows], ctx.temperature) - normalizers[rows, None]
            grad[rows] = values.exp_().mul_(-given[rows]).scatter_add_(1, ids_N[rows, None], given[rows])
        return grad, None, None


def _chunks(x: Tensor, size: int) -> list[Tensor]:
    return [x[start : start + size] for start in range(0, max(len(x), 1), size)]


def _scatter(chunks: list[Tensor], mask_BS: Tensor) -> Tensor:
    values = torch.cat(chunks)
    return values.new_zeros(mask_BS.shape).masked_scatter(mask_BS, values)
