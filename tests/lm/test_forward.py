"""Log-probabilities, values and scores: equal to the plain formula, read at the right place."""

import copy

import pytest
import torch

from harken.config import LoraConfig
from harken.lm.batch import Tokens, pad
from harken.lm.forward import completion_logprobs, completion_values, sequence_scores
from harken.lm.trunk import Trunk
from tests.lm.archs import ARCHITECTURES, make_trunk, plain_logits, plain_logprobs, plain_model, random_tokens, shake

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def _with_head(name: str = "llama") -> Trunk:
    trunk = make_trunk(name)
    trunk.add_role("critic", LoraConfig(rank=2), seed=0, head=True)
    shake(trunk, "critic", seed=1)
    return trunk


@every_architecture
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completion_logprobs_equal_the_log_softmax_of_the_models_own_logits(name: str, temperature: float) -> None:
    items = random_tokens(2, [(3, 6), (7, 2), (1, 11)])
    batch = pad(items)
    ours = completion_logprobs(make_trunk(name), None, batch, temperature=temperature, chunk_tokens=4).logprobs
    model = plain_model(name)
    for row, item in enumerate(items):
        theirs = plain_logprobs(model, item, temperature)
        start = len(item.prompt)
        assert ours[row, start : item.size].tolist() == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert torch.equal(ours[~batch.completion_mask], torch.zeros(int((~batch.completion_mask).sum())))


def test_entropy_is_that_of_the_tempered_distribution_before_each_token() -> None:
    item = random_tokens(2, [(3, 4)])[0]
    found = completion_logprobs(make_trunk(), None, pad([item]), temperature=0.7, with_entropy=True).entropy
    assert found is not None
    chances = (plain_logits(plain_model("llama"), [*item.prompt, *item.completion]).double() / 0.7).softmax(-1)
    expected = -(chances * chances.log()).sum(-1)[2:-1]
    assert found[0, 3:].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_gradients_do_not_depend_on_the_chunk_size() -> None:
    batch = pad(random_tokens(2, [(3, 6), (7, 2)]))
    found: list[list[torch.Tensor]] = []
    for chunk_tokens in (1, 3, 1024):
        trunk = _with_head()
        completion_logprobs(trunk, "critic", batch, chunk_tokens=chunk_tokens).logprobs.sum().backward()
        found.append([value.grad for value in trunk.parameters("critic").values() if value.grad is not None])
    assert len(found[0]) == 28  # 14 layers, two matrices each
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


@every_architecture
@torch.no_grad()
def test_a_value_is_read_before_its_token(name: str) -> None:
    trunk = _with_head(name)
    item = random_tokens(4, [(4, 8)])[0]
    before = completion_values(trunk, "critic", pad([item]))[0]
    assert before[:4].tolist() == [0.0] * 4
    place = 6  # the third completion token
    changed = copy.deepcopy(item)
    changed.completion[place - 4] = (changed.completion[place - 4] + 1) % 256
    after = completion_values(trunk, "critic", pad([changed]))[0]
    assert after[: place + 1].tolist() == pytest.approx(before[: place + 1].tolist(), abs=1e-6)
    assert abs(float(after[place + 1] - before[place + 1])) > 1e-3
    states = trunk.hidden("critic", pad([item]))[0]
    expected = [float(trunk.head("critic", states[index - 1 : index])) for index in range(4, 12)]
    assert before[4:].tolist() == pytest.approx(expected, abs=1e-6)


@every_architecture
@torch.no_grad()
def test_a_score_reads_the_last_real_token_whatever_stands_behind_it(name: str) -> None:
    trunk = _with_head(name)
    items = random_tokens(4, [(4, 8), (2, 3), (5, 20)])
    scores = sequence_scores(trunk, "critic", pad(items))
    for row, item in enumerate(items):
        alone = pad([item])
        state = trunk.hidden("critic", alone)[0, -1:]
        assert float(scores[row]) == pytest.approx(float(trunk.head("critic", state)), abs=2e-5)
    items[1].completion[-1] = (items[1].completion[-1] + 1) % 256
    again = sequence_scores(trunk, "critic", pad(items))
    assert abs(float(again[1] - scores[1])) > 1e-3
    assert [float(again[0]), float(again[2])] == pytest.approx([float(scores[0]), float(scores[2])], abs=1e-6)


@torch.no_grad()
def test_an_empty_completion_has_no_logprobs_and_still_a_score() -> None:
    trunk = _with_head()
    batch = pad([Tokens([5, 6, 7], []), Tokens([5], [6])])
    assert not bool(completion_logprobs(trunk, "critic", batch).logprobs[0].any())
    assert bool(sequence_scores(trunk, "critic", batch).isfinite().all())


@torch.no_grad()
def test_heads_compute_in_fp32_on_a_bf16_base() -> None:
    trunk = make_trunk(dtype=torch.bfloat16)
    trunk.add_role("critic", LoraConfig(rank=2), seed=0, head=True)
    batch = pad(random_tokens(4, [(4, 8)]))
    assert trunk.hidden("critic", batch).dtype == torch.bfloat16
    assert sequence_scores(trunk, "critic", batch).dtype == torch.float32
    assert completion_values(trunk, "critic", batch).dtype == torch.float32
    assert completion_logprobs(trunk, "critic", batch).logprobs.dtype == torch.float32
