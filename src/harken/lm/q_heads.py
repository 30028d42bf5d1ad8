"""Heads that say what a token (Q) and a state (V) are worth, and a policy guided by them."""

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from harken.artifacts import read_json, write_json
from harken.core.logprobs import preceding_states
from harken.errors import DataError, UsageError
from harken.lm.checkpoint import load_tensors, save_tensors
from harken.lm.trunk import Role, Trunk
from harken.runs import derive_seed

GUIDED = "guided"
"""The role that writes: the policy's logits plus beta times the least target Q."""

HEADS_FILE, GUIDE_FILE = "q_heads.safetensors", "guide.json"


class Head(nn.Module):
    """States (N, H) to (N, outputs) through one hidden layer, 2 H wide unless said otherwise."""

    def __init__(self, width: int, outputs: int, seed: int, inner: int | None = None) -> None:
        """Draw the weights as N(0, 1/inputs), those of the last layer ten times smaller; biases are 0."""
        super().__init__()
        inner = inner or 2 * width
        self.inner = nn.Linear(width, inner, dtype=torch.float32)
        self.outer = nn.Linear(inner, outputs, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer, scale in ((self.inner, 1.0), (self.outer, 0.1)):
                drawn = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(drawn * scale / math.sqrt(layer.in_features))
                layer.bias.zero_()

    def forward(self, states_NH: Tensor) -> Tensor:
        """Return (N, outputs) fp32."""
        return self.outer(self.inner(states_NH.float()).relu())

    def at(self, states_NH: Tensor, ids_N: Tensor) -> Tensor:
        """Return (N,) fp32, one output for each state, without computing the others."""
        inner = self.inner(states_NH.float()).relu()
        return (inner * self.outer.weight[ids_N]).sum(dim=-1) + self.outer.bias[ids_N]


class QHeads(nn.Module):
    """Two heads for Q, each with one output a token; the least of both counts, since one alone overestimates."""

    def __init__(self, width: int, vocab_size: int, seed: int, inner: int | None = None) -> None:
        """Make two heads with different weights."""
        super().__init__()
        self.first = Head(width, vocab_size, derive_seed(seed, "first"), inner)
        self.second = Head(width, vocab_size, derive_seed(seed, "second"), inner)

    @property
    def both(self) -> tuple[Head, Head]:
        """Return the two heads."""
        return self.first, self.second

    def forward(self, states_NH: Tensor) -> Tensor:
        """Return (N, V) fp32, the lesser Q of each token."""
        return torch.minimum(self.first(states_NH), self.second(states_NH))

    @torch.no_grad()
    def follow(self, other: "QHeads", rate: float) -> None:
        """Move every weight toward those of another pair by a share."""
        for own, new in zip(self.parameters(), other.parameters(), strict=True):
            own.lerp_(new, rate)


class ValueHeads(nn.Module):
    """Q and V on one model's states."""

    def __init__(self, width: int, vocab_size: int, seed: int, inner: int | None = None) -> None:
        """Make the heads."""
        super().__init__()
        self.q = QHeads(width, vocab_size, derive_seed(seed, "q"), inner)
        self.v = Head(width, 1, derive_seed(seed, "v"), inner)


def at_completions(head: Head, hidden_BSH: Tensor, ids_BS: Tensor, completion_mask_BS: Tensor) -> Tensor:
    """Return (B, S) fp32, the output for each completion token of the state before it, 0 elsewhere; differentiable.

    Args:
        head: one output a token (Q), or one in all (V).
        hidden_BSH: states of the whole rows.
        ids_BS: token ids.
        completion_mask_BS: True = completion token.
    """
    states, ids = preceding_states(hidden_BSH, completion_mask_BS), ids_BS[completion_mask_BS]
    found = head.at(states, ids if head.outer.out_features > 1 else torch.zeros_like(ids))
    return found.new_zeros(completion_mask_BS.shape).masked_scatter(completion_mask_BS, found)


def vocabulary(trunk: Trunk) -> int:
    """Return the number of outputs of the model's output layer."""
    return trunk.logits_fn(None)(torch.zeros(1, trunk.hidden_size, dtype=trunk.dtype, device=trunk.device)).shape[1]


def frozen_copy(heads: QHeads) -> QHeads:
    """Return a copy that no gradient reaches."""
    return copy.deepcopy(heads).requires_grad_(requires_grad=False)


def add_guided_role(trunk: Trunk, policy: str | None, heads: QHeads, beta: float) -> str:
    """Add the role that writes with Q: it draws from the policy times exp(beta Q), normalized; return its name.

    V, which the papers subtract from Q, is the same for all tokens and so changes nothing.

    Args:
        trunk: base and roles.
        policy: the role that is guided; None is the base itself.
        heads: the target heads.
        beta: how much Q counts; at 0 the policy writes alone.
    """
    own = Role() if policy is None else trunk.roles[policy]
    through = policy if own.lora is not None else own.through

    @torch.no_grad()
    def guide(states: Tensor, logits: Tensor) -> Tensor:
        return logits.float().log_softmax(dim=-1) + beta * heads(states)

    trunk.roles[GUIDED] = Role(full_model=own.full_model, through=through, guide=guide)
    return GUIDED


def save_guide(folder: Path, heads: QHeads, beta: float) -> None:
    """Write the heads and beta beside a model."""
    save_tensors(folder / HEADS_FILE, {name: value.detach().cpu() for name, value in heads.state_dict().items()})
    write_json(folder / GUIDE_FILE, {"beta": beta})


def read_guide(trunk: Trunk, model: str | Path, beta: float | None) -> str | None:
    """Add the guided role if a model's folder holds heads for it; return the role to write with (None: the base).

    Args:
        trunk: the loaded model.
        model: its folder, or another name of a model, which holds no heads.
        beta: how much Q counts; None is what the model was trained to be used with.

    Raises:
        UsageError: a beta is given and there are no heads.
        DataError: the heads are damaged or belong to another model.
    """
    path = Path(model) / HEADS_FILE
    if not path.is_file():
        if beta is not None:
            raise UsageError(f"guidance = {beta:g}: {model} holds no Q heads; train them with `harken ilql`")
        return None
    tensors = load_tensors(path)
    try:
        heads = QHeads(trunk.hidden_size, vocabulary(trunk), seed=0, inner=len(tensors["first.inner.bias"]))
        heads.load_state_dict(tensors)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: does not fit the model beside it: {reason}; take both from one run") from error
    heads.to(trunk.device).requires_grad_(requires_grad=False)
    trained: float = read_json(Path(model) / GUIDE_FILE)["beta"]
    return add_guided_role(trunk, None, heads, trained if beta is None else beta)
