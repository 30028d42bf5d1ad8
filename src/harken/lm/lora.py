"""Low-rank adapters of several roles on one frozen linear layer (arXiv:2106.09685)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class RoleSwitch:
    """Says which role's adapters are on; shared by all adapted layers of one base."""

    def __init__(self) -> None:
        """Start with all adapters off."""
        self.role: str | None = None


class LoraLinear(nn.Module):
    """A frozen linear layer plus one low-rank term for each role (arXiv:2106.09685, eq. 3).

    The adapters are fp32 whatever the base is, so that small updates are not lost; they are cast for the product.
    """

    def __init__(self, base: nn.Module, switch: RoleSwitch) -> None:
        """Wrap a linear layer (or GPT-2's transposed one)."""
        super().__init__()
        self.base = base
        self.switch = switch
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        self.scale: dict[str, float] = {}

    @property
    def sizes(self) -> tuple[int, int]:
        """Input and output width."""
        weight: Any = self.base.weight
        first, second = weight.shape
        return (first, second) if self.is_transposed else (second, first)

    @property
    def is_transposed(self) -> bool:
        """Whether the base keeps its weight as (in, out), as GPT-2 does."""
        return isinstance(self.base, Conv1D)

    def add(self, role: str, rank: int, scale: float, seed: int) -> None:
        """Add a role's adapter; it starts as zero change."""
        width_in, width_out = self.sizes
        weight: Any = self.base.weight
        generator = torch.Generator().manual_seed(seed)
        bound = math.sqrt(3.0 / width_in)  # Kaiming uniform with a = sqrt(5), as LoRA's authors do, times sqrt(3)
        down = (torch.rand(rank, width_in, generator=generator) * 2 - 1) * bound / math.sqrt(3)
        self.down[role] = nn.Parameter(down.to(weight.device))
        self.up[role] = nn.Parameter(torch.zeros(width_out, rank, device=weight.device))
        self.scale[role] = scale

    def delta(self, role: str) -> Tensor:
        """Return the change of the weight, in the layout of the base's weight, fp32."""
        change = (self.up[role] @ self.down[role]) * self.scale[role]
        return change.T if self.is_transposed else change

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base, and the adapter of the role that is on."""
        y = self.base(x)
        role = self.switch.role
        if role is None or role not in self.scale:
            return y
        down = self.down[role].to(x.dtype)
        up = (self.up[role] * self.scale[role]).to(x.dtype)
        return y + nn.functional.linear(nn.functional.linear(x, down), up)
