"""Decoding for models built like llama: keys and values lie where the products of a step read them, uncopied.

Batched products on a CPU copy what does not lie in one piece, such as the positions so far of a longer memory. So a
step reads a layer's whole memory, masked beyond the position it is at, and the memory grows as it is filled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harken.lm.batch import Batch, Tokens, microbatches, pad
from harken.lm.decode_compiled import CompiledLayers, Rotations, find_compiled
from harken.lm.kernels import empty_in_large_pages, find_attention
from harken.lm.llama import Attend, LlamaLayers, real_tokens

PREFILL_TOKENS = 1024
"""Prompt tokens read in one pass; larger ones leave the processor's cache."""
GROWTH = 64
"""Positions that memory for keys and values grows by; a step reads half of them in vain on average."""

Part = tuple[LlamaLayers, CompiledLayers | None]
Call = Callable[[CompiledLayers, Tensor, Rotations], Tensor]
"""Takes states (N, H) through compiled layers, given what turns their heads."""


class LlamaDecoder:
    """A model built like llama under one role, ready to decode."""

    def __init__(self, network: Any, role: str | None, *, num_lower: int = 0, pack_rows: int | None = None) -> None:
        """Prepare the layers; they are of this moment's adapters.

        Args:
            network: a model that `is_supported`.
            role: whose adapters are on; None = none.
            num_lower: keep the `lower_states` after so many layers; 0 = keep none.
            pack_rows: pack the weights for so many rows; None = leave them as they are.
        """
        ends = [(0, num_lower), (num_lower, None)] if num_lower else [(0, None)]
        self.parts = [_part(network, role, first, end, pack_rows) for first, end in ends]
        self.layers = self.parts[-1][0]
        self.num_layers = num_lower + len(self.layers.layers)
        self.lower_states: Tensor | None = None
        self.kernels = find_attention(self.layers.dtype, self.layers.device, self.layers.width)

    def prefill(self, prompts: Sequence[list[int]], *, n: int, new_tokens: int) -> Tensor:
        """Read prompts once, give each `n` rows with room for `new_tokens` more; return states (R, H)."""
        layers, count = self.layers, len(prompts)
        lengths = [len(prompt) for prompt in prompts]
        self.length = max(lengths)
        self.limit = self.length + new_tokens
        # All rows end at the same position, so that a step writes one.
        self.padding = self.length - torch.tensor(lengths, device=layers.device)
        self.rotations = layers.rotations(torch.arange(self.limit, device=layers.device))
        shape = (count * n, layers.key_heads, self._room(), layers.width)
        self.memory = [self._memory(shape) for _ in range(self.num_layers)]
        states = torch.empty(count, layers.hidden_size, dtype=layers.dtype, device=layers.device)
        self._bind()
        lower = states.new_zeros(count, self.length, layers.hidden_size) if len(self.parts) > 1 else None
        for rows in microbatches(lengths, PREFILL_TOKENS, padded=False):
            places = torch.tensor(rows, device=layers.device)
            batch = pad([Tokens(prompts[row], []) for row in rows], layers.device)
            states[places] = self._read_prompts(batch, places, lower, n)
        self.lower_states = lower
        self._set_padding(self.padding.repeat_interleave(n))
        return states.repeat_interleave(n, dim=0)

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; return states (R, H)."""
        layers, here, rows = self.layers, self.length, len(tokens)
        self.length = here + 1
        if here == self.hiding.shape[-1]:
            self._grow()
        self.hiding[..., here] = 0.0
        positions = here - self.padding

        def attend(number: int, heads: Tensor) -> Tensor:
            queries, keys, values = layers.split(heads)
            if self.kernels is not None:
                parts = queries, keys, values
                return self.kernels.attend_step(parts, self.memory[number], self.padding, here, layers.scale)
            seen, read = self.memory[number][:, :rows]
            seen[:, :, here], read[:, :, here] = keys, values
            # Query heads that share a key head are side by side: (rows x key heads, groups, width).
            grouped = (queries * layers.scale).reshape(-1, layers.groups, layers.width)
            scores = torch.bmm(grouped, seen.flatten(0, 1).transpose(1, 2))
            scores.view(rows, -1, scores.shape[-1]).add_(self.hiding)  # a `masked_fill_` takes three times as long
            weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
            return torch.bmm(weights, read.flatten(0, 1)).view(rows, -1)

        def call(compiled: CompiledLayers, x: Tensor, rotations: Rotations) -> Tensor:
            return compiled.step(x, rotations, self.padding, here)

        return layers.normed(self._through_layers(tokens, positions, attend, call))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; only those that change their place are copied."""
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        if moved:
            places, sources = torch.tensor(moved, device=self.padding.device).T
            for memory in self.memory:
                memory[:, places, :, : self.length] = memory[:, sources, :, : self.length]
        self._set_padding(self.padding[torch.tensor(rows, device=self.padding.device)])

    def _through_layers(self, tokens: Tensor, positions: Tensor, attend: Attend, call: Call) -> Tensor:
        """Return states (N, H) of tokens (N,) after the last layer; note those between the parts."""
        cos, sin = self.rotations
        rotations = cos[positions], sin[positions]
        x = self.layers.embed(tokens)
        for number, (layers, compiled) in enumerate(self.parts):
            if number:
                self.lower_states = x
            x = layers(x, rotations, attend) if compiled is None else call(compiled, x, rotations)
        return x

    def _bind(self) -> None:
        """Tell compiled layers where their memory is."""
        for layers, compiled in self.parts:
            if compiled is not None:
                own = slice(layers.first, layers.first + len(layers.layers))
                compiled.bind(self.memory[own])

    def _room(self) -> int:
        """Return how many positions the memory should hold now."""
        return min(self.limit, self.length + GROWTH)

    def _memory(self, shape: tuple[int, ...]) -> Tensor:
        """Return memory for a layer's keys and values, (2, *shape)."""
        # torch's products read all of it, and 0 x what happens to lie there may be NaN.
        if self.layers.device.type == "cpu":
            return empty_in_large_pages((2, *shape), self.layers.dtype)
        return torch.zeros(2, *shape, dtype=self.layers.dtype, device=self.layers.device)

    def _grow(self) -> None:
        """Make room for further positions, of the rows that are left."""
        rows = len(self.padding)
        for number, filled in enumerate(self.memory):
            _, _, heads, room, width = filled.shape
            self.memory[number] = self._memory((rows, heads, self._room(), width))
            self.memory[number][:, :, :, :room] = filled[:, :rows]
        self._bind()
        self._set_padding(self.padding)

    def _set_padding(self, padding: Tensor) -> None:
        """Remember where each row begins, and what it may not read: (R, 1, room), -inf there and 0 elsewhere."""
        self.padding = padding
        steps = torch.arange(self.memory[0].shape[3], device=padding.device)
        is_hidden = ((steps < padding[:, None]) | (steps >= self.length))[:, None]
        self.hiding = torch.zeros_like(is_hidden, dtype=self.layers.dtype).masked_fill_(is_hidden, -torch.inf)

    def _read_prompts(self, batch: Batch, rows: Tensor, lower: Tensor | None, n: int) -> Tensor:
        """Read some prompts into memory, `n` rows each, and what the lower layers give into `lower` (prompts, S, H).

        Returns: (P, H), states after the last token of each.
        """
        tokens = real_tokens(self.layers, batch)
        row = rows[tokens.places // tokens.shape[1]]
        column = tokens.positions + self.padding[row]
        copies = (row[:, None] * n + torch.arange(n, device=row.device)).flatten()
        columns = column.repeat_interleave(n)

        def attend(number: int, heads: Tensor) -> Tensor:
            _, keys, values = self.layers.split(heads)
            for memory, part in zip(self.memory[number], (keys, values), strict=True):
                memory[copies, :, columns] = part.repeat_interleave(n, dim=0)
            return tokens.attend(number, heads)

        def call(compiled: CompiledLayers, x: Tensor, rotations: Rotations) -> Tensor:
            return compiled.read(x, rotations, batch.spans(), (row, column), n)

        states = self._through_layers(tokens.ids, tokens.positions, attend, call)
        if lower is not None:
            assert self.lower_states is not None
            lower[row, column] = self.lower_states
        return self.layers.normed(states[batch.lengths.cumsum(0) - 1])


def _part(network: Any, role: str | None, first: int, end: int | None, pack_rows: int | None) -> Part:
    """Return some layers, and if their weights may be packed and the processor can, these compiled."""
    layers = LlamaLayers(network, role, first, end)
    if pack_rows is None:
        return layers, None
    if kernels := find_compiled(layers):
        return layers, CompiledLayers(kernels, layers)
    return layers.packed(pack_rows), None
