"""Products with a layer's weights, by the faster of the libraries that torch carries."""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

WIDE = 1024
"""Outputs from which on MKL was measured to be slower on processors with AVX2 only (docs/performance.md)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias, as `torch.nn.functional.linear`; differentiable.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).
    """
    is_plain = x.dim() == 2 and len(x) > 0 and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if is_plain and len(weight) >= WIDE and prefers_onednn():
        return cast(Tensor, _OneDnnLinear.apply(x, weight, bias))
    return functional.linear(x, weight, bias)


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
