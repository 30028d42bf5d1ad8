"""Batches hold each sequence once, stay within the token budget, and do not change what a model computes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harken.lm.batch import Batch, Tokens, microbatches, pack, pad, padding_waste, shuffled_batches
from harken.lm.forward import by_microbatch, completion_logprobs
from tests.lm.archs import ARCHITECTURES, make_trunk, plain_logprobs, plain_model, random_tokens

some_ids = st.lists(st.integers(0, 255), min_size=1, max_size=12)
sequences = st.lists(st.builds(Tokens, some_ids, st.lists(st.integers(0, 255), max_size=12)), min_size=1, max_size=12)
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def _read_packed(batch: Batch) -> list[Tokens]:
    """Take a packed batch apart again: a sequence begins at every position id 0."""
    assert batch.position_ids is not None
    found: list[Tokens] = []
    for row in range(batch.num_rows):
        length = int(batch.lengths[row])
        positions = batch.position_ids[row, :length].tolist()
        starts = [place for place in range(length) if positions[place] == 0]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            assert positions[start:end] == list(range(end - start))
            mask = batch.completion_mask[row, start:end].tolist()
            middle = start + mask.count(False)
            assert mask == sorted(mask), "prompt tokens stand before completion tokens"
            found.append(Tokens(batch.ids[row, start:middle].tolist(), batch.ids[row, middle:end].tolist()))
    return found


@given(sequences)
def test_padding_keeps_every_token_and_marks_the_completions(items: list[Tokens]) -> None:
    batch = pad(items)
    assert batch.ids.shape == (len(items), max(item.size for item in items))
    for row, item in enumerate(items):
        size = item.size
        assert batch.ids[row].tolist() == [*item.prompt, *item.completion] + [0] * (batch.ids.shape[1] - size)
        expected = [False] * len(item.prompt) + [True] * len(item.completion)
        assert batch.completion_mask[row].tolist() == expected + [False] * (batch.ids.shape[1] - size)
        assert int(batch.lengths[row]) == size
        assert int(batch.last_index()[row]) == size - 1


@given(sequences)
def test_selecting_rows_equals_padding_them_alone(items: list[Tokens]) -> None:
    rows = list(range(len(items)))[::-1][: max(1, len(items) // 2)]
    chosen, alone = pad(items).select(rows), pad([items[row] for row in rows])
    assert torch.equal(chosen.ids, alone.ids)
    assert torch.equal(chosen.completion_mask, alone.completion_mask)
    assert torch.equal(chosen.lengths, alone.lengths)


@given(sequences, st.integers(24, 60))
def test_packing_holds_each_sequence_once_within_the_row_length(items: list[Tokens], row_length: int) -> None:
    batch = pack(items, row_length)
    assert sorted(_read_packed(batch)) == sorted(items)
    assert batch.ids.shape[1] == int(batch.lengths.max()) <= row_length
    # Masked tokens have a predecessor in their own sequence, or the loss would read a neighbor's state.
    assert batch.position_ids is not None
    assert not bool((batch.completion_mask & (batch.position_ids == 0)).any())


def test_packing_fills_rows_first_fit_decreasing() -> None:
    # Sizes 7, 5, 4, 3, 1 into rows of 10: 7 + 3, 5 + 4 + 1.
    items = [Tokens([9] * (size - 1), [1]) for size in (3, 5, 1, 7, 4) if size > 1] + [Tokens([9], [])]
    batch = pack(items, 10)
    assert batch.lengths.tolist() == [10, 10]


def test_a_sequence_longer_than_a_row_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="11 tokens does not fit into a row of 10"):
        pack([Tokens([1] * 10, [2])], 10)


@given(sizes, st.integers(1, 120))
def test_microbatches_hold_each_row_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    groups = microbatches(lengths, max_tokens)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= max_tokens


def test_microbatches_group_rows_of_similar_length() -> None:
    # Longest first: 10 and 9 fit into 20 tokens, then 3, 2, 2. A pass costs more than such padding.
    assert microbatches([2, 10, 3, 9, 2], 20) == [[1, 3], [2, 0, 4]]
    # 700 beside two of 400 would pad 600 of 2,100; a pass costs 128. 400 and 390 pad 10.
    assert microbatches([400, 700, 390], 2100) == [[1], [0, 2]]


@given(st.lists(st.integers(1, 900), min_size=1, max_size=7), st.sampled_from([500, 2048, 20_000]))
def test_microbatches_cost_the_least_of_all_ways_to_cut(lengths: list[int], max_tokens: int) -> None:
    def cost(groups: list[list[int]]) -> float:
        return sum(len(group) * max(group) + max(128, max_tokens / 64) for group in groups)

    ordered = sorted(lengths, reverse=True)
    ways: list[list[list[int]]] = []
    for cuts in itertools.product([False, True], repeat=len(ordered) - 1):
        groups = [[ordered[0]]]
        for length, is_cut in zip(ordered[1:], cuts, strict=True):
            groups = [*groups, [length]] if is_cut else [*groups[:-1], [*groups[-1], length]]
        if all(len(group) == 1 or len(group) * max(group) <= max_tokens for group in groups):
            ways.append(groups)
    found = [[lengths[row] for row in group] for group in microbatches(lengths, max_tokens)]
    assert cost(found) == pytest.approx(min(cost(groups) for groups in ways))


def test_each_epoch_shows_each_row_once_in_a_fresh_order() -> None:
    rows = [3, 5, 8, 13, 21, 34, 55, 89, 144, 233]
    batches = shuffled_batches(rows, 4, epochs=3, seed=0)
    # ceil(10 / 4) = 3 batches an epoch, the last of 2.
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[row for batch in batches[start : start + 3] for row in batch] for start in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [rows] * 3
    assert epochs[0] != epochs[1], "a fresh order; equal by chance 1 in 10!"
    assert batches == shuffled_batches(rows, 4, epochs=3, seed=0)
    assert batches != shuffled_batches(rows, 4, epochs=3, seed=1)


def test_rows_of_a_group_meet_in_a_batch() -> None:
    groups = [str(row // 3) for row in range(60)]
    batches = shuffled_batches(range(60), 6, epochs=2, seed=0, groups=groups)
    for batch in batches:
        assert len({groups[row] for row in batch}) == 2  # 6 rows are two groups of 3
    epochs = [[row for batch in batches[start : start + 10] for row in batch] for start in (0, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(60))] * 2
    assert epochs[0] != epochs[1]
    same = ["one"] * 60
    plain = shuffled_batches(range(60), 6, epochs=2, seed=0)
    assert shuffled_batches(range(60), 6, epochs=2, seed=0, groups=same) == plain, "one group is no group"


def test_padding_waste_is_the_share_of_positions_without_token() -> None:
    # 2 rows of 10 for 10 + 9 tokens, 3 rows of 3 for 3 + 2 + 2: 29 positions, 26 tokens.
    assert padding_waste([2, 10, 3, 9, 2], [[1, 3], [2, 0, 4]]) == pytest.approx(3 / 29)
    assert padding_waste([5, 5], [[0, 1]]) == 0.0


@given(sizes, st.integers(1, 120))
def test_padding_waste_counts_positions_one_by_one(lengths: list[int], max_tokens: int) -> None:
    groups = microbatches(lengths, max_tokens)
    cells = [place < lengths[row] for group in groups for row in group for place in range(lengths[group[0]])]
    assert padding_waste(lengths, groups) == pytest.approx(cells.count(False) / len(cells))


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(name: str) -> None:
    items = random_tokens(5, [(4, 9), (2, 5), (6, 3), (1, 8), (3, 1), (7, 14)])
    batch = pack(items, 24)
    assert batch.num_rows < len(items)
    packed = completion_logprobs(make_trunk(name), None, batch).logprobs[batch.completion_mask].tolist()
    model = plain_model(name)
    plain = [value for item in _read_packed(batch) for value in plain_logprobs(model, item)]
    assert packed == pytest.approx(plain, rel=1e-4, abs=1e-4)
    assert sum(packed) == pytest.approx(sum(plain), rel=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_padding_row_order_and_microbatches_change_no_logprob(name: str) -> None:
    trunk = make_trunk(name)
    items = random_tokens(6, [(4, 9), (2, 5), (6, 3), (1, 30), (3, 1)])
    batch = pad(items)
    whole = completion_logprobs(trunk, None, batch).logprobs
    ids, mask = (torch.nn.functional.pad(part, (0, 7)) for part in (batch.ids, batch.completion_mask))
    wide = Batch(ids, mask, batch.lengths)
    torch.testing.assert_close(completion_logprobs(trunk, None, wide).logprobs[:, :-7], whole, rtol=0, atol=2e-5)
    order = [3, 0, 4, 2, 1]
    moved = completion_logprobs(trunk, None, batch.select(order)).logprobs
    torch.testing.assert_close(moved, whole[order], rtol=0, atol=2e-5)
    for max_tokens in (1, 16, 64):
        parts = by_microbatch(
            batch, lambda part: completion_logprobs(trunk, None, part).logprobs, max_tokens=max_tokens
        )
        torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)


def test_results_by_row_come_back_in_the_batchs_order() -> None:
    batch = pad(random_tokens(1, [(1, 3), (4, 5), (2, 1)]))
    assert by_microbatch(batch, lambda part: part.lengths, max_tokens=1).tolist() == [4, 9, 3]
