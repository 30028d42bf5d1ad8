"""Models built like llama, computed with few operations a layer: forward and backward, and for decoding.

The same mathematics as the model's own forward pass, from the same weights, but query, key and value projections are
one product, gate and up another (their weights become views into joined ones, so nothing is kept twice), and the
adapters of a role are joined likewise. Every other architecture goes through its own forward pass.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harken.lm.attention import (
    SHORT,
    plain_attention,
    prefers_products,
    span_attention,
    split_heads,
    takes_spans,
)
from harken.lm.batch import Batch
from harken.lm.elementwise import gated, normed, rotated
from harken.lm.lora import LoraLinear
from harken.lm.products import linear, packed

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are known to be computed as here; tests compare each with its own forward pass."""

Attend = Callable[[int, Tensor], Tensor]
"""Maps a layer's number and its heads (N, heads + 2 key heads, D), queries, keys and values, to what was read (N, heads
x D)."""


@dataclass(frozen=True)
class Projection:
    """Linear layers that read the same input, as one."""

    weight: Tensor
    """(out, in) of all of them; packed for decoding (`lm.products`), it is no plain tensor."""
    bias: Tensor | None
    down: Tensor | None
    """(ranks, in): the role's adapters, one below the other."""
    up: Tensor | None
    """(ranks, out), scaled; each adapter reaches its own layer's outputs only."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, in) to (N, out)."""
        y = linear(x, self.weight, self.bias)
        if self.down is not None and self.up is not None:
            y.addmm_(functional.linear(x, self.down), self.up)
        return y

    def packed(self, rows: int) -> "Projection":
        """Return the same with a weight that is packed for products of about so many rows."""
        return replace(self, weight=packed(self.weight, rows))


@dataclass(frozen=True)
class Layer:
    """One transformer block."""

    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    norm: tuple[Tensor, float]
    mlp_norm: tuple[Tensor, float]
    query_norm: tuple[Tensor, float] | None
    key_norm: tuple[Tensor, float] | None
    act: nn.Module

    def packed(self, rows: int) -> "Layer":
        """Return the same with packed weights."""
        parts = {name: getattr(self, name).packed(rows) for name in ("qkv", "out", "gate_up", "down")}
        return replace(self, **parts)


def is_supported(network: Any) -> bool:
    """Whether `LlamaDecoder` computes what this model computes: a known type, plain layers, no sliding window."""
    config = network.config
    if config.model_type not in ARCHITECTURES:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return False  # these change with the sequence's length
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (config.model_type == "mistral" and config.sliding_window):
        return False
    return all(
        type(_plain(module)) is nn.Linear
        for block in network.base_model.layers
        for module in (*_attention_inputs(block), block.self_attn.o_proj, *_mlp_inputs(block), block.mlp.down_proj)
    )


class LlamaLayers:
    """The layers of a model built like llama, as one role computes them at this moment."""

    def __init__(self, network: Any, role: str | None, first: int = 0, end: int | None = None) -> None:
        """Join weights (once a model) and the role's adapters (each time: they change in training).

        Args:
            network: a model that `is_supported`.
            role: whose adapters are on; None = none.
            first: the first layer wanted.
            end: the layer after the last one wanted; None = all that follow.
        """
        base, config = network.base_model, network.config
        self.first = first
        self.layers = [_layer(block, role) for block in base.layers[first:end]]
        self.key_heads: int = config.num_key_value_heads
        self.groups: int = config.num_attention_heads // config.num_key_value_heads
        self.width: int = base.layers[0].self_attn.head_dim
        self.scale: float = base.layers[0].self_attn.scaling
        self.device: torch.device = network.device
        self.dtype: torch.dtype = network.dtype
        self.hidden_size: int = config.hidden_size
        self.embed: nn.Module = base.embed_tokens
        self._norm = _norm(base.norm)
        self._rotary = base.rotary_emb

    def packed(self, rows: int) -> "LlamaLayers":
        """Return the same with weights packed for products of about so many rows."""
        found = copy.copy(self)
        found.layers = [layer.packed(rows) for layer in self.layers]
        return found

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what turns the heads at each of (N,) positions: cosine and signed sine, (N, 1, width) each."""
        cos, sin = self._rotary(torch.empty(0, dtype=self.dtype, device=self.device), positions[None])
        # The first half of a head takes the second with a minus, the second half the first with a plus.
        first, second = sin[0].chunk(2, dim=-1)
        return cos[0][:, None], torch.cat([-first, second], dim=-1)[:, None]

    def __call__(self, x: Tensor, rotations: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Return states (N, H) after the last layer and before the last norm, of states (N, H) before the first."""
        for number, layer in enumerate(self.layers, self.first):
            # In place of a new tensor: autograd does not need what the projections gave.
            x = layer.out(attend(number, self._project(layer, x, rotations))).add_(x)
            x = layer.down(gated(layer.act, layer.gate_up(normed(x, layer.mlp_norm)))).add_(x)
        return x

    def normed(self, x: Tensor) -> Tensor:
        """Return the states as the output layer and the heads read them."""
        return normed(x, self._norm)

    def split(self, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (N, heads, D), keys and values (N, key heads, D) of what `attend` is given."""
        return split_heads(heads, self.key_heads)

    def _project(self, layer: Layer, x: Tensor, rotations: tuple[Tensor, Tensor]) -> Tensor:
        """Return queries, keys and values, (N, heads + 2 key heads, D), of tokens (N, H)."""
        heads = layer.qkv(normed(x, layer.norm)).view(len(x), -1, self.width)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys, values = self.split(heads)
            heads = torch.cat([normed(queries, layer.query_norm), normed(keys, layer.key_norm), values], dim=1)
        return rotated(heads, rotations, heads.shape[1] - self.key_heads)


@dataclass(frozen=True)
class RealTokens:
    """The N tokens of a batch of B x S positions, without its padding: only attention needs rows of equal length."""

    shape: tuple[int, int]
    """(B, S)."""
    places: Tensor
    """(N,) long, where they stand in B x S."""
    ids: Tensor
    """(N,) long."""
    positions: Tensor
    """(N,) long, counted in each sequence."""
    attend: Attend
    """Attention within sequences, for `LlamaLayers`."""

    def spread(self, x: Tensor) -> Tensor:
        """Return (B, S, ...) of (N, ...), 0 where there is padding."""
        return _spread(x, self.places, self.shape).unflatten(0, self.shape)


def real_tokens(layers: LlamaLayers, batch: Batch) -> RealTokens:
    """Return the tokens of a batch, ready for these layers."""
    count, size = batch.ids.shape
    steps = torch.arange(size, device=batch.ids.device)
    positions = steps.expand(count, size) if batch.position_ids is None else batch.position_ids
    places = (steps < batch.lengths[:, None]).flatten().nonzero().squeeze(1)
    if takes_spans(layers.dtype, layers.device, layers.width, size):
        spans = torch.tensor(batch.spans())

        def attend(number: int, heads: Tensor) -> Tensor:
            del number
            return span_attention(heads, layers.key_heads, spans, layers.scale)
    else:
        allowed = _allowed(batch)

        def attend(number: int, heads: Tensor) -> Tensor:
            del number
            q, k, v = layers.split(_spread(heads, places, (count, size)))
            read = attend_whole(layers, count, q, k, v, allowed)
            return read if len(places) == count * size else read[places]

    ids, positions = (part.flatten()[places] for part in (batch.ids, positions))
    return RealTokens((count, size), places, ids, positions, attend)


def _allowed(batch: Batch) -> Tensor | None:
    """Return (B, 1, S, S) bool, which positions each may read; None = all before it."""
    allowed = batch.attention_mask()
    if batch.position_ids is None or allowed is not None:
        return allowed
    sequence = (batch.position_ids == 0).cumsum(1)
    steps = torch.arange(sequence.shape[1], device=sequence.device)
    return ((sequence[:, :, None] == sequence[:, None]) & (steps[:, None] >= steps))[:, None]


def hidden_states(network: Any, role: str | None, batch: Batch, *, num_layers: int | None = None) -> Tensor:
    """Return (B, S, H), the last layer's states of a batch, 0 where there is padding; differentiable.

    Args:
        network: a model that `is_supported`.
        role: whose adapters are on; None = none.
        batch: B rows of S tokens; it begins after the layers whose states it brings.
        num_layers: stop after so many layers, before the last norm.
    """
    lower = batch.lower_states
    layers = LlamaLayers(network, role, 0 if lower is None else batch.num_lower_layers, num_layers)
    tokens = real_tokens(layers, batch)
    x = layers.embed(tokens.ids) if lower is None else lower.flatten(0, 1)[tokens.places]
    states = layers(x, layers.rotations(tokens.positions), tokens.attend)
    if num_layers is None:
        states = layers.normed(states)
    return tokens.spread(states)


def _spread(x: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """Put (N, ...) where `places` says among zeros, one for each of B x S positions."""
    size = shape[0] * shape[1]
    return x if len(places) == size else x.new_zeros(size, *x.shape[1:]).index_copy(0, places, x)


def attend_whole(
    layers: LlamaLayers, count: int, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None
) -> Tensor:
    """Attend within whole rows.

    Args:
        layers: for the scale.
        count: B, rows of S tokens each; the tensors hold B x S tokens.
        queries: (B x S, heads, D).
        keys: (B x S, key heads, D).
        values: likewise.
        allowed: (B, 1, S, S) bool, True = may read; None is causal.

    Returns: (B x S, heads x D).
    """
    q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in (queries, keys, values))
    if prefers_products(q.dtype, q.device) and q.shape[2] <= SHORT:
        read = plain_attention(q, k, v, allowed, scale=layers.scale, is_causal=allowed is None)
    else:
        read = functional.scaled_dot_product_attention(
            q, k, v, allowed, is_causal=allowed is None, scale=layers.scale, enable_gqa=True
        )
    return read.transpose(1, 2).reshape(len(queries), -1)


def _layer(block: Any, role: str | None) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    return Layer(
        qkv=_join(_attention_inputs(block), role),
        out=_join([attention.o_proj], role),
        gate_up=_join(_mlp_inputs(block), role),
        down=_join([mlp.down_proj], role),
        norm=_norm(block.input_layernorm),
        mlp_norm=_norm(block.post_attention_layernorm),
        query_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        act=mlp.act_fn,
    )


def _attention_inputs(block: Any) -> list[nn.Module]:
    return [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]


def _mlp_inputs(block: Any) -> list[nn.Module]:
    return [block.mlp.gate_proj, block.mlp.up_proj]


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _plain(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, LoraLinear) else module


def _join(modules: Sequence[nn.Module], role: str | None) -> Projection:
    linears: list[Any] = [_plain(module) for module in modules]
    biases = [linear.bias for linear in linears if linear.bias is not None]
    bias = None
    if biases:
        zeros = [torch.zeros(len(linear.weight)).to(linear.weight) for linear in linears]
        bias = torch.cat(
            [zero if linear.bias is None else linear.bias for linear, zero in zip(linears, zeros, strict=True)]
        )
    adapters = [module for module in modules if isinstance(module, LoraLinear) and role in module.scale]
    weight = linears[0].weight if len(linears) == 1 else _joined_weight(linears)
    if role is None or not adapters:
        return Projection(weight, bias, None, None)
    down = torch.cat([layer.down[role] for layer in adapters]).to(weight.dtype)
    up = torch.block_diag(*[(layer.up[role] * layer.scale[role]).T for layer in adapters]).to(weight.dtype)
    return Projection(weight, bias, down, up)


def _joined_weight(linears: Sequence[Any]) -> Tensor:
    """Return the layers' weights as one tensor: of which theirs are views from now on, or a copy in training."""
    if torch.is_grad_enabled() and any(linear.weight.requires_grad for linear in linears):
        return torch.cat([linear.weight for linear in linears])
    first = linears[0].weight
    storage, place = first.untyped_storage().data_ptr(), first.data_ptr()
    is_joined = True
    for part in linears:
        weight = part.weight
        is_joined &= weight.data_ptr() == place and weight.untyped_storage().data_ptr() == storage
        place += weight.numel() * weight.element_size()
    if not is_joined:
        with torch.no_grad():
            whole = torch.cat([linear.weight for linear in linears])
            for linear, part in zip(linears, whole.split([len(linear.weight) for linear in linears]), strict=True):
                linear.weight.data = part
    size = (sum(len(linear.weight) for linear in linears), first.shape[1])
    return linears[0].weight.data.as_strided(size, (first.shape[1], 1))
