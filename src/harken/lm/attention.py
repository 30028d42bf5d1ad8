"""Attention for short sequences in bf16 on a CPU, where torch's fused kernel is slower than plain products.

Registered with transformers as one more implementation; everything else (long sequences, other devices and types) goes
on to torch's `scaled_dot_product_attention` as before. Same mathematics, other rounding.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "harken_short"

SHORT = 96
"""Longest sequence for which plain products were measured to be faster."""


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
    scores = (stacked @ key.transpose(-1, -2)).float().unflatten(2, (groups, length))
    if is_causal:
        causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~causal, torch.finfo(scores.dtype).min)
    elif allowed is not None:
        scores = scores.masked_fill(~allowed[:, :, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).to(value.dtype).flatten(2, 3)
    return (weights @ value).reshape(rows, heads, length, width)


AttentionInterface.register(NAME, short_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def prefers_plain(query: Tensor) -> bool:
    """Whether plain products are faster than torch's fused kernel for these queries: short, bf16, on a CPU."""
    return query.shape[2] <= SHORT and query.dtype == torch.bfloat16 and query.device.type == "cpu"


def use_short_attention(model: PreTrainedModel) -> None:
    """Switch a model to this attention where it pays: bf16 on a CPU, and the model would use torch's fused kernel."""
    config: Any = model.config
    is_plain = config._attn_implementation == "sdpa" and not getattr(config, "attn_logit_softcapping", None)
    if is_plain and model.dtype == torch.bfloat16 and model.device.type == "cpu":
        model.set_attn_implementation(NAME)
