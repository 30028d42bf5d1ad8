"""What a layer built like llama computes between its products: norm, gate and rotation, forward and backward.

Each goes through `lm.kernels` where those are, else through torch; both keep little for the backward pass.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from harken.lm.kernels import Kernels, find


def _kernels(x: Tensor, parts: int = 1) -> Kernels | None:
    return find(x.dtype, x.device, x.shape[-1] // parts)


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up; only gate and up are kept for the backward pass (arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        if compiled := _kernels(gate_up, 2):
            return compiled.swiglu(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grad = grads[0]
        if compiled := _kernels(gate_up, 2):
            return compiled.swiglu_backward(grad, gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        through = torch.ops.aten.silu_backward(grad * up, gate)
        return torch.cat([through, functional.silu(gate).mul_(grad)], dim=-1)


def gated(act: nn.Module, gate_up: Tensor) -> Tensor:
    """Return act(gate) * up, (N, I) of (N, 2 I) with the gates first."""
    if isinstance(act, nn.SiLU | SiLUActivation):
        return cast(Tensor, _SwiGlu.apply(gate_up))
    gate, up = gate_up.chunk(2, dim=-1)
    return act(gate) * up


class _Rotation(torch.autograd.Function):
    """Heads turned by their positions, which keeps nothing: turning back is the backward pass (arXiv:2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, turned: int, compiled: Kernels) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.turned, ctx.compiled = turned, compiled
        return compiled.rotate(x, (cos, sin), turned)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.compiled.rotate(grads[0], ctx.saved_tensors, ctx.turned, back=True), None, None, None, None


def rotated(x: Tensor, rotations: tuple[Tensor, Tensor], turned: int) -> Tensor:
    """Return (N, heads, D) with the first `turned` heads turned by cosine and signed sine, (N, 1, D) each (RoPE)."""
    cos, sin = rotations
    if compiled := _kernels(x, 2):
        return cast(Tensor, _Rotation.apply(x, cos, sin, turned, compiled))
    part, rest = x.split([turned, x.shape[1] - turned], dim=1)
    return torch.cat([torch.addcmul(part * cos, part.roll(x.shape[-1] // 2, dims=-1), sin), rest], dim=1)


class _RmsNorm(torch.autograd.Function):
    """x / root mean square * weight, in fp32 at least; only x is kept, in its own type (arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _plain_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        unit = for_weight = None
        if (compiled := _kernels(x)) and weight.dtype == x.dtype:
            for_x, inverse = compiled.rms_norm_backward(grad, x, weight, ctx.eps)
        else:
            unit, inverse = _unit(x, ctx.eps)
            wanted = grad * weight.to(unit.dtype)
            # What would only make x longer or shorter changes nothing.
            along = torch.linalg.vecdot(wanted, unit).unsqueeze(-1) / x.shape[-1]
            for_x = wanted.sub_(unit * along).mul_(inverse).to(x.dtype)
        if ctx.needs_input_grad[1]:
            unit = x * inverse if unit is None else unit
            for_weight = (unit * grad).flatten(0, -2).sum(0).to(weight.dtype)
        return for_x, for_weight, None


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, fp32 (fp64 for fp64), and the factor, (..., 1)."""
    single = x.to(torch.promote_types(x.dtype, torch.float32))
    squares = torch.linalg.vecdot(single, single).unsqueeze(-1)
    inverse = (squares / x.shape[-1]).add_(eps).rsqrt_()
    return single * inverse, inverse


def _plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if (compiled := _kernels(x)) and weight.dtype == x.dtype:
        return compiled.rms_norm(x, weight, eps)
    return functional.rms_norm(x, weight.shape, weight, eps)


def normed(x: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    """Return x / root mean square * weight, (..., H), of a norm's weight (H,) and what it adds to the mean square."""
    # Our own keeps less for a backward pass on a CPU; elsewhere torch's is one kernel.
    if torch.is_grad_enabled() and x.device.type == "cpu":
        return cast(Tensor, _RmsNorm.apply(x, *norm))
    return _plain_norm(x, *norm)
