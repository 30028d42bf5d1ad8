"""Products with a layer's weights, by the faster of the libraries that torch carries."""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from harken.lm.kernels import find_tiles, load

WIDE = 1024
"""Outputs from which on MKL was measured to be slower on processors with AVX2 only (docs/performance.md)."""


PACKED_BYTES = 2**30
"""Largest weights of a model that are packed for decoding: a second copy of them, for as long as it draws."""
PACKED_STEPS = 16
"""Fewest steps for which packing pays: it takes as long as one or two steps of 64 rows."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias, as `torch.nn.functional.linear`; differentiable unless the weight is packed.

    Args:
        x: (..., in).
        weight: (out, in), or what `packed` made of it.
        bias: (out,).
    """
    if weight.dim() > 2:
        kernels = load(weight.dtype)
        assert kernels is not None
        y = kernels.multiply(x, weight)
        return y if bias is None else y.add_(bias)
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    is_plain = x.dim() == 2 and len(x) > 0 and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if is_plain and len(weight) >= WIDE and prefers_onednn():
        return cast(Tensor, _OneDnnLinear.apply(x, weight, bias))
    return functional.linear(x, weight, bias)


def packed(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of a weight (out, in) in the order in which the processor reads it, for `linear` of (N, in) only.

    A product otherwise packs its weight each time, which takes as long as the product itself where there are few rows.

    Args:
        weight: of a model that `can_pack`.
        rows: about how many rows a product has; it may have others.
    """
    if kernels := find_tiles(weight):
        return kernels.tiles(weight.detach())
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


def can_pack(network: nn.Module, steps: int) -> bool:
    """Whether to pack a model's weights for so many products with each: on a CPU, of a small model, for many steps."""
    if steps < PACKED_STEPS:
        return False
    weights = list(network.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    kinds = {(weight.device.type, weight.dtype) for weight in weights if weight.ndim == 2}
    return size <= PACKED_BYTES and all(device == "cpu" and _packs(dtype) for device, dtype in kinds)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this torch, on this processor, multiplies by packed weights of this type."""
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    if not known or not torch.backends.mkldnn.is_available():
        return False
    is_fast_bf16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or is_fast_bf16


@cache
def prefers_onednn() -> bool:
    """Whether this processor multiplies fp32 matrices with wide results faster through oneDNN than through MKL.

    Decided by what the processor is, not by a measurement, so that a resumed run computes the same bits.
    """
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"


class _OneDnnLinear(torch.autograd.Function):
    """The product forward through oneDNN, by the operator that torch.compile uses; backward as torch does it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            grad @ weight if for_x else None,
            grad.T @ x if for_weight else None,
            grad.sum(dim=0) if for_bias else None,
        )
