"""Completions in one row with the prompt that they share: the same numbers as in rows of their own."""

from typing import Any

import pytest
import torch

from harken.config import FullConfig, LoraConfig
from harken.lm.batch import Batch, Tokens, pad, pad_shared, shared_size
from harken.lm.forward import can_share_prompts, group_logprobs, group_scores, sequence_scores
from harken.lm.trunk import Trunk
from tests.lm.archs import ARCHITECTURES, make_trunk, plain_logprobs, plain_model, random_tokens, shake

# Layers of these see 6 tokens back only, which a mask of our own would lift.
WINDOWED = ("gemma2", "mistral")
SHAREABLE = [name for name in ARCHITECTURES if name not in WINDOWED]
every_architecture = pytest.mark.parametrize("name", SHAREABLE)


def _groups(seed: int, sizes: list[tuple[int, ...]]) -> list[list[Tokens]]:
    """Groups of (prompt size, completion size, completion size, ...)."""
    found: list[list[Tokens]] = []
    for number, (prompt, *completions) in enumerate(sizes):
        items = random_tokens(100 * seed + number, [(prompt, size) for size in completions])
        found.append([Tokens(items[0].prompt, item.completion) for item in items])
    return found


# Equal and unequal lengths, a prompt of one token (nothing is shared), a completion of one token.
PAIRS = [(5, 4, 7), (1, 3, 2), (9, 1, 6), (3, 5, 5)]


def test_a_row_holds_the_prompt_once_and_its_last_token_before_each_completion() -> None:
    batch = pad_shared([[Tokens([1, 2, 3], [4, 5]), Tokens([1, 2, 3], [6])], [Tokens([7], [8]), Tokens([7], [9])]])
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 3, 6], [7, 8, 7, 9, 0, 0, 0]]
    assert batch.segments is not None
    assert batch.position_ids is not None
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 0, 1, 0, 0, 0]]
    assert batch.completion_mask.int().tolist() == [[0, 0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0, 0]]
    assert batch.lengths.tolist() == [7, 4] == [shared_size([Tokens([1, 2, 3], [4, 5]), Tokens([1, 2, 3], [6])]), 4]
    assert batch.select([1]).segments is not None
    assert batch.select([1]).ids.tolist() == [[7, 8, 7, 9]]


def test_a_token_sees_what_stands_before_it_in_the_prompt_and_in_its_own_completion() -> None:
    mask = pad_shared([[Tokens([1, 2], [3]), Tokens([1, 2], [4, 5])]]).attention_mask()
    assert mask is not None
    # Columns: 1 | 2 3 | 2 4 5.
    rows = ["x.....", "xx....", "xxx...", "x..x..", "x..xx.", "x..xxx"]
    assert ["".join(".x"[int(flag)] for flag in row) for row in mask[0, 0]] == rows
    assert Batch(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([2])).attention_mask() is None


@every_architecture
@torch.no_grad()
def test_shared_rows_give_the_logprobs_of_the_models_own_forward_pass(name: str) -> None:
    trunk, model = make_trunk(name), plain_model(name)
    groups = _groups(1, PAIRS)
    expected = torch.tensor([[sum(plain_logprobs(model, item)) for item in group] for group in groups])
    for shared in (True, False):
        found = group_logprobs(trunk, None, groups, shared=shared, chunk_tokens=5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@every_architecture
@pytest.mark.parametrize("tune", [LoraConfig(rank=2), FullConfig()], ids=["lora", "full"])
def test_shared_and_separate_rows_agree_in_value_and_gradient(name: str, tune: LoraConfig | FullConfig) -> None:
    groups = _groups(2, PAIRS)
    values: list[torch.Tensor] = []
    gradients: list[dict[str, torch.Tensor]] = []
    for shared in (True, False):
        trunk = make_trunk(name)
        trunk.add_role("policy", tune, seed=0)
        shake(trunk, "policy", seed=1, size=0.03)
        found = group_logprobs(trunk, "policy", groups, shared=shared)
        weights = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
        (found * weights).sum().backward()
        values.append(found.detach())
        parameters = trunk.parameters("policy").items()
        gradients.append({key: value.grad for key, value in parameters if value.grad is not None})
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(
            value, gradients[1][key], rtol=1e-4, atol=1e-4, msg=lambda text, k=key: f"{k}: {text}"
        )


@torch.no_grad()
def test_groups_may_have_more_than_two_completions() -> None:
    groups = _groups(3, [(6, 2, 5, 3, 4), (2, 1, 1, 7, 2)])
    trunk = make_trunk()
    apart, shared = (group_logprobs(trunk, None, groups, shared=shared) for shared in (False, True))
    assert shared.shape == (2, 4)
    torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)


@every_architecture
@torch.no_grad()
def test_scores_of_shared_rows_are_those_of_separate_ones(name: str) -> None:
    trunk = make_trunk(name)
    trunk.add_role("reward", LoraConfig(rank=2), seed=0, head=True)
    shake(trunk, "reward", seed=1, size=0.03)
    groups = _groups(8, PAIRS)
    apart = [sequence_scores(trunk, "reward", pad(group)) for group in groups]
    torch.testing.assert_close(group_scores(trunk, "reward", groups), torch.stack(apart), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_plain_attention_of_transformers_gets_a_mask_it_can_add() -> None:
    groups = _groups(4, PAIRS)
    trunk = make_trunk("granite")
    expected = group_logprobs(trunk, None, groups, shared=True)
    trunk.model.set_attn_implementation("eager")
    found = group_logprobs(trunk, None, groups, shared=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_architecture
def test_models_with_plain_attention_can_share_prompts(name: str) -> None:
    assert can_share_prompts(make_trunk(name), _groups(5, [(9, 4, 7)])[0])


@pytest.mark.parametrize("name", WINDOWED)
def test_a_model_whose_window_is_shorter_than_a_sequence_cannot(name: str) -> None:
    trunk = make_trunk(name)
    assert can_share_prompts(trunk, _groups(6, [(3, 2, 3)])[0])
    assert not can_share_prompts(trunk, _groups(6, [(3, 2, 4)])[0])


def test_a_model_that_gives_other_numbers_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = make_trunk()
    hidden: Any = Trunk.hidden

    def without_mask(self: Trunk, role: str | None, batch: Batch) -> torch.Tensor:
        return hidden(self, role, Batch(batch.ids, batch.completion_mask, batch.lengths, batch.position_ids))

    monkeypatch.setattr(Trunk, "hidden", without_mask)
    assert not can_share_prompts(trunk, _groups(7, [(9, 4, 7)])[0])
