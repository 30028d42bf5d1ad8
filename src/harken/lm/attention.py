"""Attention on a CPU, where torch's fused kernel is slower: through `lm.kernels`, or in bf16 by products and a softmax.

Without kernels, short rows are one product for all of them, keys that a query may not read included, and longer ones a
product for each block of queries with the keys that it may read. Short rows are also registered with transformers as
one more implementation; everything else (other devices and types, long rows of a model's own forward pass) goes on to
torch's `scaled_dot_product_attention`. Same mathematics, other rounding.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from harken.lm.batch import Span
from harken.lm.kernels import Kernels, find_attention

NAME = "harken_short"

SHORT = 96
"""Longest row for which products over whole rows were measured to be faster."""

BLOCK = 128
"""About so many queries of a span are multiplied at once: the keys behind them are skipped, and the scores stay in the
cache."""


def short_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend, by plain products where the sequences are short.

    Args:
        module: the attention layer.
        query: (B, heads, Q, D).
        key: (B, key heads, K, D); several query heads may share a key head.
        value: like `key`.
        attention_mask: (B or 1, 1, Q, K) bool, True = may attend; None is causal.
        options: what transformers passes on; `scaling` is used.

    Returns: (B, Q, heads, D), and no weights.
    """
    length, num_keys = query.shape[2], key.shape[2]
    is_causal = attention_mask is None and length > 1
    special = options.get("dropout") or options.get("position_bias") is not None
    if num_keys > SHORT or (is_causal and length != num_keys) or special:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    read = plain_attention(query, key, value, attention_mask, scale=scale, is_causal=is_causal)
    return read.transpose(1, 2).contiguous(), None


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, scale: float, is_causal: bool
) -> Tensor:
    """Attend by two products and a softmax in fp32.

    Args:
        query: (B, heads, Q, D).
        key: (B, key heads, K, D); several query heads may share a key head.
        value: like `key`.
        allowed: (B or 1, 1, Q, K) bool, True = may attend; None = all.
        scale: of the products.
        is_causal: a query reads only keys up to its own place; Q and K are equal then.

    Returns: (B, heads, Q, D).
    """
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    # Query heads that share a key head are stacked along the queries, so that keys need not be repeated.
    stacked = query.reshape(rows, key.shape[1], groups * length, width) * scale
    scores = (stacked @ key.transpose(-1, -2)).unflatten(2, (groups, length))
    # Added in place: a `masked_fill` that is spread over the heads takes six times as long.
    if is_causal:
        scores += _behind(length, scores.dtype, scores.device)
    elif allowed is not None:
        scores += torch.zeros_like(allowed, dtype=scores.dtype).masked_fill_(~allowed, _never(scores.dtype))[:, :, None]
    weights = _softmax(scores).to(value.dtype).flatten(2, 3)
    return (weights @ value).reshape(rows, heads, length, width)


def takes_spans(dtype: torch.dtype, device: torch.device, width: int, size: int) -> bool:
    """Whether `span_attention` is the faster one for rows of `size` tokens with heads of a width."""
    return find_attention(dtype, device, width) is not None or (prefers_products(dtype, device) and size > SHORT)


def span_attention(heads: Tensor, key_heads: int, spans: Tensor, scale: float) -> Tensor:
    """Attend within spans; scores are computed again in the backward pass, so that none are kept.

    Args:
        heads: (N, heads + 2 key heads, D), queries, keys and values of all real tokens of a batch, row after row;
            several query heads may share a key head.
        key_heads: how many.
        spans: (S, 4) long, of all N tokens (`Batch.spans`).
        scale: of the products.

    Returns: (N, heads x D).
    """
    if compiled := find_attention(heads.dtype, heads.device, heads.shape[-1]):
        return cast(Tensor, _CompiledSpans.apply(heads, key_heads, spans, scale, compiled))
    return cast(Tensor, _SpanAttention.apply(*split_heads(heads, key_heads), spans.tolist(), scale))


def split_heads(heads: Tensor, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (N, heads, D), keys and values (N, key heads, D) of (N, heads + 2 key heads, D)."""
    queries, keys, values = heads.split([heads.shape[1] - 2 * key_heads, key_heads, key_heads], dim=1)
    return queries, keys, values


class _CompiledSpans(torch.autograd.Function):
    """Through `lm.kernels`: products and softmax in fp32."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, key_heads: int, spans: Tensor, scale: float, compiled: Kernels) -> Tensor:
        heads = heads.contiguous()
        ctx.save_for_backward(heads, spans)
        ctx.key_heads, ctx.scale, ctx.compiled = key_heads, scale, compiled
        return compiled.attend_spans(split_heads(heads, key_heads), spans, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        heads, spans = ctx.saved_tensors
        parts = split_heads(heads, ctx.key_heads)
        return ctx.compiled.attend_spans_backward(grads[0], parts, spans, ctx.scale), None, None, None, None


class _SpanAttention(torch.autograd.Function):
    """Blocks of queries against the keys they may read (arXiv:2205.14135); softmax in fp32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float) -> Tensor:
        queries, keys, values = (_by_key_head(part, key.shape[1]) for part in (query * scale, key, value))
        read = torch.empty_like(queries)
        for asking, known in _blocks(spans):
            asked = queries[:, :, asking]
            weights = _weights(asked, _part(keys, known)).to(value.dtype)
            read[:, :, asking] = (weights @ _part(values, known)).view_as(asked)
        ctx.save_for_backward(query, key, value)
        ctx.spans, ctx.scale = spans, scale
        return read.permute(2, 0, 1, 3).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        given = (query * ctx.scale, key, value, grads[0].view_as(query))
        queries, keys, values, grad = (_by_key_head(part, key.shape[1]) for part in given)
        for_queries = torch.empty_like(queries)
        for_keys, for_values = (torch.zeros(keys.shape, device=key.device) for _ in range(2))
        for asking, known in _blocks(ctx.spans):
            asked, wanted = queries[:, :, asking], grad[:, :, asking].flatten(1, 2)
            own_keys, own_values = _part(keys, known), _part(values, known)
            weights = _weights(asked, own_keys)
            _add(for_values, known, weights.to(grad.dtype).transpose(1, 2) @ wanted)
            for_weights = (wanted @ own_values.transpose(1, 2)).to(weights.dtype)
            errors = torch.ops.aten._softmax_backward_data(for_weights, weights, -1, weights.dtype).to(grad.dtype)
            for_queries[:, :, asking] = (errors @ own_keys).view_as(asked)
            _add(for_keys, known, errors.transpose(1, 2) @ asked.flatten(1, 2))
        whole = for_queries.permute(2, 0, 1, 3).reshape(query.shape) * ctx.scale
        for_key, for_value = (part.squeeze(1).transpose(0, 1).to(key.dtype) for part in (for_keys, for_values))
        return whole, for_key, for_value, None, None


Known = tuple[slice, slice]
"""Keys that a block reads: shared ones, and its own span's up to the block's end."""


def _blocks(spans: Sequence[Span]) -> Iterator[tuple[slice, Known]]:
    for start, end, shared_start, shared_end in spans:
        # Equal blocks: one of a single query takes almost as long as one of many.
        size = -(-(end - start) // max(1, round((end - start) / BLOCK)))
        for first in range(start, end, size):
            last = min(first + size, end)
            yield slice(first, last), (slice(shared_start, shared_end), slice(start, last))


def _by_key_head(x: Tensor, heads: int) -> Tensor:
    """Return (key heads, heads of each, N, D) of (N, heads, D), without gaps."""
    return x.unflatten(1, (heads, -1)).permute(1, 2, 0, 3).contiguous()


def _part(x: Tensor, known: Known) -> Tensor:
    """Return (key heads, keys, D) of keys or values (key heads, 1, N, D)."""
    shared, own = known
    if shared.start == shared.stop:
        return x[:, 0, own]
    return torch.cat([x[:, 0, shared], x[:, 0, own]], dim=1)


def _add(x: Tensor, known: Known, part: Tensor) -> None:
    """Add to keys or values (key heads, 1, N, D) where they were read."""
    shared, own = known
    size = shared.stop - shared.start
    x[:, 0, shared] += part[:, :size]
    x[:, 0, own] += part[:, size:]


def _weights(asked: Tensor, keys: Tensor) -> Tensor:
    """Return (key heads, heads of each x Q, K) fp32: what Q queries (key heads, heads of each, Q, D) take of K keys."""
    scores = asked.flatten(1, 2) @ keys.transpose(1, 2)
    size = asked.shape[2]
    # The last keys are the queries' own tokens; all others stand before each of them.
    scores.unflatten(1, (-1, size))[..., -size:].add_(_behind(size, scores.dtype, scores.device))
    return _softmax(scores)


def _softmax(scores: Tensor) -> Tensor:
    # In bf16 torch takes two to five times as long for rows that are no multiple of its vectors.
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))


@functools.lru_cache(maxsize=256)
def _behind(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (size, size), what is added to the scores of tokens that read each other: 0 up to the own place."""
    return torch.full((size, size), _never(dtype), dtype=dtype, device=device).triu_(1)


def _never(dtype: torch.dtype) -> float:
    """Return a score that no token is read with, not infinite: where nothing may be read it would give NaN."""
    return torch.finfo(dtype).min


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def prefers_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products are faster than torch's fused kernel for this type on this device."""
    return dtype == torch.bfloat16 and device.type == "cpu"


def use_short_attention(model: PreTrainedModel) -> None:
    """Switch a model to this attention where it pays: bf16 on a CPU, and the model would use torch's fused kernel."""
    config: Any = model.config
    is_plain = config._attn_implementation == "sdpa" and not getattr(config, "attn_logit_softcapping", None)
    if is_plain and prefers_products(model.dtype, model.device):
        model.set_attn_implementation(NAME)
