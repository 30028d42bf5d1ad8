"""Decoding for any causal model: prompts once, then one token a row, over key-value memory that is taken up front.

    decoder = ModelDecoder(network)
    states = decoder.prefill(prompts, n=4, new_tokens=64)     # (R, H) after each prompt's last token
    states = decoder.step(tokens)                             # (R, H) after one more token in each row
    decoder.keep(rows)                                        # rows that stopped leave

`decode_llama` does the same with fewer operations for the architectures it knows.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Decoder(Protocol):
    """What the sampler needs of a model."""

    lower_states: Tensor | None
    """What the layers below all adapters gave for the tokens that were read last, where they were asked for: (P, S, H)
    of the padded prompts after `prefill`, (R, H) after `step`."""

    def prefill(self, prompts: Sequence[list[int]], *, n: int, new_tokens: int) -> Tensor:
        """Read prompts once, give each `n` rows with room for `new_tokens` more; return states (R, H)."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; return states (R, H)."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order (see `kept_rows`)."""
        ...


def kept_rows(alive: Sequence[bool]) -> list[int]:
    """Return the rows that go on, in an order that moves as few as possible: the last ones fill the gaps.

    Moving a row costs a copy of its keys and values; with this order only as many move as stopped.
    """
    count = sum(alive)
    fillers = iter([row for row in range(count, len(alive)) if alive[row]])
    return [row if alive[row] else next(fillers) for row in range(count)]


def pad_left(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (P, S) token ids with the prompts at the right end, and (P,) the number of positions in front of each."""
    size = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), size, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, size - len(prompt) :] = torch.tensor(prompt)
    padding = torch.tensor([size - len(prompt) for prompt in prompts])
    return ids.to(device), padding.to(device)


class PairedDecoder:
    """Two decoders on the same tokens, whose states stand side by side: (R, 2 H)."""

    def __init__(self, *parts: tuple[Decoder, Callable[[], object]]) -> None:
        """Take the decoders, each with what switches its role on."""
        self.parts = parts
        self.lower_states: Tensor | None = None

    def prefill(self, prompts: Sequence[list[int]], *, n: int, new_tokens: int) -> Tensor:
        """Read prompts once, give each `n` rows with room for `new_tokens` more; return states (R, 2 H)."""
        return self._together(lambda decoder: decoder.prefill(prompts, n=n, new_tokens=new_tokens))

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; return states (R, 2 H)."""
        return self._together(lambda decoder: decoder.step(tokens))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        for decoder, _ in self.parts:
            decoder.keep(rows)

    def _together(self, read: Callable[[Decoder], Tensor]) -> Tensor:
        states: list[Tensor] = []
        for decoder, switch_on in self.parts:
            switch_on()
            states.append(read(decoder))
        return torch.cat(states, dim=-1)


class RoomyLayer(DynamicLayer):
    """One layer's keys and values in memory taken once, so that a new token copies itself and not all before it."""

    def __init__(self, room: int) -> None:
        """Take memory for `room` positions a row at the first use."""
        super().__init__()
        self.room = room
        self._all: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, D) and return all keys and values so far."""
        del args, options
        if self._all is None:
            self.lazy_initialization(key_states, value_states)
            self._all = (self._take(key_states), self._take(value_states))
            self._set_views(len(key_states), 0)
        keys, values = self._all
        rows, start, end = len(key_states), self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        keys[:rows, :, start:end], values[:rows, :, start:end] = key_states, value_states
        self._set_views(rows, end)
        return keys[:rows, :, :end], values[:rows, :, :end]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Give each row `repeats` copies."""
        assert self._all is not None
        keys, values = self._all
        length = self.get_seq_length()
        self._all = keys.repeat_interleave(repeats, dim=0), values.repeat_interleave(repeats, dim=0)
        self._set_views(len(self._all[0]), length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these rows; only those that change their place are copied."""
        assert self._all is not None
        length = self.get_seq_length()
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        for memory in self._all:
            memory[moved, :, :length] = memory[indices[moved], :, :length]
        self._set_views(len(indices), length)

    def _take(self, like: Tensor) -> Tensor:
        rows, heads, _, width = like.shape
        return like.new_empty(rows, heads, self.room, width)

    def _set_views(self, rows: int, length: int) -> None:
        assert self._all is not None
        self.keys, self.values = (memory[:rows, :, :length] for memory in self._all)


class ModelDecoder:
    """Any Hugging Face causal model, through its own forward pass."""

    def __init__(self, network: Any) -> None:
        """Decode with a model as it is (its adapters switched as they are)."""
        self.lower_states: Tensor | None = None
        self.network = network.base_model
        self.config = network.config
        self.device: torch.device = network.device

    def prefill(self, prompts: Sequence[list[int]], *, n: int, new_tokens: int) -> Tensor:
        """Read prompts once, give each `n` rows with room for `new_tokens` more; return states (R, H)."""
        ids, padding = pad_left(prompts, self.device)
        size = ids.shape[1]
        self.cache = DynamicCache(config=self.config)
        # Layers with a short window keep their own memory.
        self.cache.layers = [
            RoomyLayer(size + new_tokens) if type(layer) is DynamicLayer else layer for layer in self.cache.layers
        ]
        self.attention = (torch.arange(size, device=self.device) >= padding[:, None]).long()
        # Position 0 is the first real token, so that left padding shifts nothing (algorithms: 5.1, 2).
        positions = (torch.arange(size, device=self.device) - padding[:, None]).clamp(min=0)
        states = self._read(ids, positions)
        if n > 1:
            self.cache.batch_repeat_interleave(n)
        self.positions = positions[:, -1].repeat_interleave(n)
        self.attention = self.attention.repeat_interleave(n, dim=0)
        return states.repeat_interleave(n, dim=0)

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; return states (R, H)."""
        self.positions = self.positions + 1
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        return self._read(tokens[:, None], self.positions[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        index = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index)
        self.attention, self.positions = self.attention[index], self.positions[index]

    def _read(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.network(
            input_ids=ids,
            attention_mask=self.attention,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
