"""Token sequences as padded or packed batches, and how to cut them into microbatches."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from harken.core.masking import completion_mask_from_lengths
from harken.runs import derive_seed

PASS_COST = 128
"""What a forward and backward pass costs beyond its tokens, as a number of tokens: 55 measured on one core of a CPU. A
device that is faster by far has a larger `microbatch_tokens`, of which 1/64 is taken."""


PACKED_ROW = 96
"""Tokens of a packed row where no sequence is longer: attention is computed between all tokens of a row, and up to this
length it takes the fast way (see `lm.attention`)."""


class Tokens(NamedTuple):
    """One prompt with one completion, as token ids."""

    prompt: list[int]
    completion: list[int]

    @property
    def size(self) -> int:
        """Number of tokens of both."""
        return len(self.prompt) + len(self.completion)


class Span(NamedTuple):
    """Tokens of one sequence that stand together, counted over all real tokens of a batch, row after row."""

    start: int
    end: int
    shared_start: int
    """From here to `shared_end`: tokens before `start` that all of the span read too; none where both are equal."""
    shared_end: int


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, padded on the right.

    Real tokens never see padding: it stands behind them and attention looks back only, so no attention mask is needed
    but where several completions of one prompt share a row.

    Attributes:
        ids: (B, S) long; 0 where there is no token.
        completion_mask: (B, S) bool, True = completion token.
        lengths: (B,) long, prompt plus completion tokens of each row.
        position_ids: (B, S) long for packed rows, starting again at 0 with each sequence; None = 0, 1, 2, ...
        segments: (B, S) long for rows of `pad_shared`: 0 = what all completions of the row share, k = the part of
            completion k, which other completions do not see; None = one sequence a row, or packed ones.
        lower_states: (B, S, H), what the first `num_lower_layers` layers gave, which no role changes
            (`Trunk.with_lower_states`, perhaps without the last token's); None = not computed yet.
        num_lower_layers: number of layers that need not be computed again.
    """

    ids: Tensor
    completion_mask: Tensor
    lengths: Tensor
    position_ids: Tensor | None = None
    segments: Tensor | None = None
    lower_states: Tensor | None = None
    num_lower_layers: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.ids.shape[0]

    def select(self, rows: Sequence[int]) -> "Batch":
        """Return some rows, cut to the longest of them."""
        index = torch.tensor(rows, device=self.ids.device)
        size = int(self.lengths[index].max())

        def cut(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[index, :size]

        return Batch(
            self.ids[index, :size],
            self.completion_mask[index, :size],
            self.lengths[index],
            cut(self.position_ids),
            cut(self.segments),
            cut(self.lower_states),
            self.num_lower_layers,
        )

    def last_index(self) -> Tensor:
        """Return (B,) long, the index of each row's last real token."""
        return self.lengths - 1

    def attention_mask(self) -> Tensor | None:
        """Return (B, 1, S, S) bool, True = may attend, where completions share a row; None: all that stands before."""
        if self.segments is None:
            return None
        size = self.ids.shape[1]
        is_before = torch.ones(size, size, dtype=torch.bool, device=self.ids.device).tril()
        asking, seen = self.segments[:, :, None], self.segments[:, None, :]
        return (is_before & ((seen == 0) | (seen == asking)))[:, None]

    def spans(self) -> list[Span]:
        """Return what `attention_mask` says, and packing and padding, as spans: each token reads those up to itself."""
        found: list[Span] = []
        begin = 0
        for row, length in enumerate(self.lengths.tolist()):
            if self.segments is not None:
                part = self.segments[row, :length]
                starts = [0, *((part[1:] != part[:-1]).nonzero().flatten() + 1).tolist()]
            elif self.position_ids is not None:
                starts = (self.position_ids[row, :length] == 0).nonzero().flatten().tolist()
            else:
                starts = [0]
            is_shared = self.segments is not None and int(self.segments[row, 0]) == 0
            shared_end = begin + starts[1] if is_shared and len(starts) > 1 else begin
            for start, end in pairwise((*starts, length)):
                sees = shared_end if start else begin
                found.append(Span(begin + start, begin + end, begin, sees))
            begin += length
        return found


def pad(sequences: Sequence[Tokens], device: torch.device | str = "cpu") -> Batch:
    """Put sequences into a batch, padded on the right to the longest."""
    size = max(sequence.size for sequence in sequences)
    ids = torch.zeros(len(sequences), size, dtype=torch.long)
    for row, (prompt, completion) in enumerate(sequences):
        ids[row, : len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
    prompt_lengths = torch.tensor([len(sequence.prompt) for sequence in sequences])
    completion_lengths = torch.tensor([len(sequence.completion) for sequence in sequences])
    mask = completion_mask_from_lengths(prompt_lengths, completion_lengths, size)
    lengths = prompt_lengths + completion_lengths
    return Batch(ids.to(device), mask.to(device), lengths.to(device))


def pack(sequences: Sequence[Tokens], row_length: int, device: torch.device | str = "cpu") -> Batch:
    """Put several sequences into each row; position ids keep them apart in attention.

    First-fit decreasing, so rows are nearly full. `completion_mask` is not contiguous within a row here; the losses
    that need that (PPO's) do not pack.

    Raises:
        ValueError: a sequence is longer than `row_length`.
    """
    rows: list[list[Tokens]] = []
    room: list[int] = []
    for sequence in sorted(sequences, key=lambda item: -item.size):
        size = sequence.size
        if size > row_length:
            raise ValueError(f"a sequence of {size} tokens does not fit into a row of {row_length}")
        row = next((index for index, free in enumerate(room) if free >= size), None)
        if row is None:
            rows.append([])
            room.append(row_length)
            row = len(rows) - 1
        rows[row].append(sequence)
        room[row] -= size
    size = row_length - min(room)
    ids = torch.zeros(len(rows), size, dtype=torch.long)
    mask = torch.zeros(len(rows), size, dtype=torch.bool)
    positions = torch.zeros(len(rows), size, dtype=torch.long)
    for row, members in enumerate(rows):
        start = 0
        for prompt, completion in members:
            middle, end = start + len(prompt), start + len(prompt) + len(completion)
            ids[row, start:end] = torch.tensor([*prompt, *completion])
            mask[row, middle:end] = True
            positions[row, start:end] = torch.arange(end - start)
            start = end
        positions[row, start:] = torch.arange(size - start)
    lengths = torch.tensor([row_length - free for free in room])
    return Batch(ids.to(device), mask.to(device), lengths.to(device), positions.to(device))


def at_tokens(batch: Batch, values: Sequence[Sequence[float]]) -> Tensor:
    """Put the numbers of each row's completion tokens where these stand.

    Args:
        batch: B rows of S tokens.
        values: B rows, a number for each completion token.

    Returns: (B, S) fp32, 0 elsewhere.
    """
    found = torch.zeros(batch.ids.shape, device=batch.ids.device)
    found[batch.completion_mask] = torch.tensor([value for row in values for value in row], device=found.device)
    return found


def pad_shared(groups: Sequence[Sequence[Tokens]], device: torch.device | str = "cpu") -> Batch:
    """Put all completions of one prompt into one row, so that the prompt is computed once.

    The last token of the prompt is repeated before each completion: the state after it predicts the completion's first
    token, and must stand right before that for the shift by one.

        prompt but its last token | last, first completion | last, second completion

    Args:
        groups: one a row; all sequences of a group have the same prompt.
        device: where the batch lives.
    """
    size = max(shared_size(group) for group in groups)
    ids = torch.zeros(len(groups), size, dtype=torch.long)
    mask = torch.zeros(len(groups), size, dtype=torch.bool)
    positions = torch.zeros(len(groups), size, dtype=torch.long)
    segments = torch.zeros(len(groups), size, dtype=torch.long)
    for row, group in enumerate(groups):
        prompt = group[0].prompt
        assert all(sequence.prompt == prompt for sequence in group), "a group has one prompt"
        start = len(prompt) - 1
        ids[row, :start] = torch.tensor(prompt[:-1], dtype=torch.long)
        positions[row, :start] = torch.arange(start)
        for number, (_, completion) in enumerate(group, start=1):
            end = start + 1 + len(completion)
            ids[row, start:end] = torch.tensor([prompt[-1], *completion])
            mask[row, start + 1 : end] = True
            positions[row, start:end] = torch.arange(end - start) + len(prompt) - 1
            segments[row, start:end] = number
            start = end
    lengths = torch.tensor([shared_size(group) for group in groups])
    return Batch(ids.to(device), mask.to(device), lengths.to(device), positions.to(device), segments.to(device))


def shared_size(group: Sequence[Tokens]) -> int:
    """Return the number of tokens of a group's row in `pad_shared`."""
    return len(group[0].prompt) - 1 + sum(1 + len(sequence.completion) for sequence in group)


def microbatches(lengths: Sequence[int], max_tokens: int, *, padded: bool = True) -> list[list[int]]:
    """Group rows of similar length so that rows x longest stays within `max_tokens` (one row always fits).

    Of all ways to cut the rows, sorted by length, the cheapest is taken: many small passes pad less, but each has a
    price of its own (PASS_COST). Where padding is not computed (`padded` False) tokens alone count.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    best = [(0.0, 0)]  # for the first 0, 1, 2, ... rows: the least cost, and where the last group of it starts
    price = max(PASS_COST, max_tokens / 64)
    for end in range(1, len(order) + 1):
        options: list[tuple[float, int]] = []
        for start in range(end - 1, -1, -1):
            size = (end - start) * lengths[order[start]] if padded else sum(lengths[row] for row in order[start:end])
            if size > max_tokens and start < end - 1:
                break
            options.append((best[start][0] + size + price, start))
        best.append(min(options))
    groups: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


def shuffled_batches(
    rows: Sequence[int], batch_size: int, *, epochs: int, seed: int, groups: Sequence[str] | None = None
) -> list[list[int]]:
    """Return the rows of every optimizer step: each epoch in a fresh order; a last partial batch is kept.

    Rows of one group (`groups` names each row's) follow one another, so that texts they share meet in a batch.
    """
    batches: list[list[int]] = []
    for epoch in range(epochs):
        order = list(rows)
        random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
        if groups is not None:
            place: dict[str, int] = {}
            for row in order:
                place.setdefault(groups[row], len(place))
            order.sort(key=lambda row: place[groups[row]])
        batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches


def padding_waste(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> float:
    """Return the share of computed positions that hold no token."""
    computed = sum(len(group) * max(lengths[row] for row in group) for group in groups)
    return 1.0 - sum(lengths[row] for group in groups for row in group) / computed
