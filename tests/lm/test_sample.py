"""The sampler: draws from the model's distribution, knows the log-probability of what it drew, and is repeatable."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from harken.config import LoraConfig
from harken.lm import decode_llama, llama, products
from harken.lm import trunk as trunk_module
from harken.lm.batch import Tokens, pad
from harken.lm.forward import completion_logprobs
from harken.lm.sample import Sampled, completion_seeds, sample
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings
from tests.lm.archs import ARCHITECTURES, make_trunk, plain_logits, plain_model, random_tokens, shake
from tests.tiny import END_ID

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
# About an eighth of all tokens: rows then stop at different times, and some not at all.
MANY_STOPS = tuple(range(0, 256, 8))


def _prompts(seed: int = 0) -> list[list[int]]:
    return [item.prompt for item in random_tokens(seed, [(3, 0), (9, 0), (1, 0), (6, 0), (14, 0)])]


def _settings(**values: Any) -> SamplingSettings:
    return SamplingSettings(**{"max_new_tokens": 10, **values})


def _scored(trunk: Trunk, role: str | None, prompts: list[list[int]], drawn: list[Sampled], n: int, t: float) -> float:
    """Return the largest difference between the sampler's and the scorer's log-probabilities."""
    items = [Tokens(prompts[index // n], item.token_ids) for index, item in enumerate(drawn)]
    scored = completion_logprobs(trunk, role, pad(items), temperature=t).logprobs
    gaps = [
        abs(ours - theirs)
        for row, item in enumerate(drawn)
        for ours, theirs in zip(
            item.logprobs, scored[row, len(items[row].prompt) : items[row].size].tolist(), strict=True
        )
    ]
    return max(gaps)


@every_architecture
def test_near_zero_temperature_is_the_greedy_search_of_transformers(name: str) -> None:
    trunk = make_trunk(name)
    model = plain_model(name)
    prompts = _prompts()
    drawn = sample(trunk, None, prompts, _settings(temperature=1e-4), seeds=list(range(5)))
    for prompt, item in zip(prompts, drawn, strict=True):
        greedy = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=10,
        )
        assert item.token_ids == greedy[0, len(prompt) :].tolist()


@every_architecture
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_the_samplers_logprobs_are_the_scorers(name: str, temperature: float) -> None:
    trunk = make_trunk(name, stop_ids=MANY_STOPS)
    prompts = _prompts(1)
    drawn = sample(trunk, None, prompts, _settings(temperature=temperature, max_new_tokens=12), seeds=range(15), n=3)
    assert "stop" in {item.finish_reason for item in drawn}
    assert len({len(item.token_ids) for item in drawn}) > 4  # rows stopped at different times
    assert _scored(trunk, None, prompts, drawn, 3, temperature) <= 2e-5


@torch.no_grad()
@pytest.mark.parametrize("growth", [1, 3, 5])
def test_memory_that_grows_while_rows_leave_changes_nothing(growth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = make_trunk(stop_ids=MANY_STOPS)
    prompts = _prompts(1)
    whole = sample(trunk, None, prompts, _settings(max_new_tokens=17), seeds=range(15), n=3)
    monkeypatch.setattr(decode_llama, "GROWTH", growth)
    grown = sample(trunk, None, prompts, _settings(max_new_tokens=17), seeds=range(15), n=3)
    assert [item.token_ids for item in grown] == [item.token_ids for item in whole]
    assert len({len(item.token_ids) for item in grown}) > 4  # rows left at different times
    assert _scored(trunk, None, prompts, grown, 3, 1.0) <= 2e-5


@torch.no_grad()
def test_a_role_samples_with_its_own_adapters() -> None:
    trunk = make_trunk()
    trunk.add_role("policy", LoraConfig(rank=2), seed=0)
    shake(trunk, "policy", seed=1)
    prompts = _prompts(1)
    drawn = sample(trunk, "policy", prompts, _settings(), seeds=range(5))
    assert _scored(trunk, "policy", prompts, drawn, 1, 1.0) <= 2e-5
    assert _scored(trunk, None, prompts, drawn, 1, 1.0) > 0.1


@every_architecture
@torch.no_grad()
def test_packed_weights_draw_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = make_trunk(name, stop_ids=MANY_STOPS)
    trunk.add_role("policy", LoraConfig(rank=2), seed=0)
    shake(trunk, "policy", seed=1)
    packed: list[tuple[int, ...]] = []
    real = products.packed

    def counted(weight: torch.Tensor, rows: int) -> torch.Tensor:
        packed.append(tuple(weight.shape))
        return real(weight, rows)

    for module in (llama, trunk_module):
        monkeypatch.setattr(module, "packed", counted)
    prompts, settings = _prompts(1), _settings(max_new_tokens=products.PACKED_STEPS)
    drawn = sample(trunk, "policy", prompts, settings, seeds=range(15), n=3)
    # The output layer, and four products of each layer of models like llama.
    expected = (1, 1 + 4 * 2) if torch.backends.mkldnn.is_available() else (0,)
    assert len(packed) in expected
    assert _scored(trunk, "policy", prompts, drawn, 3, 1.0) <= 2e-5
    monkeypatch.setattr(products, "PACKED_BYTES", 0)
    count = len(packed)
    plain = sample(trunk, "policy", prompts, settings, seeds=range(15), n=3)
    assert [item.token_ids for item in plain] == [item.token_ids for item in drawn]
    assert len(packed) == count


@every_architecture
def test_a_completion_depends_on_its_seed_and_prompt_only(name: str) -> None:
    trunk = make_trunk(name, stop_ids=MANY_STOPS)
    prompts = _prompts(2)
    seeds = completion_seeds(10, "a run")
    first = [item.token_ids for item in sample(trunk, None, prompts, _settings(), seeds=seeds, n=2)]
    for batch_size in (1, 2, 4, 7):
        again = sample(trunk, None, prompts, _settings(), seeds=seeds, n=2, batch_size=batch_size)
        assert [item.token_ids for item in again] == first
    order = [3, 0, 4]
    moved_seeds = [seeds[2 * index + copy] for index in order for copy in range(2)]
    moved = sample(trunk, None, [prompts[index] for index in order], _settings(), seeds=moved_seeds, n=2)
    assert [item.token_ids for item in moved] == [first[2 * index + copy] for index in order for copy in range(2)]
    alone = sample(trunk, None, [prompts[3]], _settings(), seeds=[seeds[7]])
    assert alone[0].token_ids == first[7]


def test_other_seeds_give_other_completions() -> None:
    # At temperature 100 all 259 tokens are about equally likely: of 190 pairs of draws one coincides with probability
    # 190 / 259^2 = 0.3% (both end at once), and else not (the seeds are fixed).
    settings = _settings(temperature=100.0)
    drawn = sample(make_trunk(), None, _prompts()[:1], settings, seeds=completion_seeds(20, 0), n=20)
    assert len({tuple(item.token_ids) for item in drawn}) == 20


def test_seeds_depend_on_everything_they_are_derived_from() -> None:
    assert completion_seeds(3, 1, "step", 2) == completion_seeds(3, 1, "step", 2)
    assert completion_seeds(2, 1) == completion_seeds(3, 1)[:2]
    several = [*completion_seeds(50, 1), *completion_seeds(50, 2), *completion_seeds(50, "1"), *completion_seeds(50)]
    assert len(set(several)) == 200
    assert all(0 <= seed < 2**63 for seed in several)


def test_a_stop_token_stands_only_at_the_end_and_gives_the_finish_reason() -> None:
    trunk = make_trunk(stop_ids=MANY_STOPS)
    drawn = sample(trunk, None, _prompts(3), _settings(), seeds=range(40), n=8)
    stops = trunk.chat.stop_ids
    for item in drawn:
        assert not stops & set(item.token_ids[:-1])
        assert (item.finish_reason == "stop") == (item.token_ids[-1] in stops)
        assert len(item.token_ids) == 10 or item.finish_reason == "stop"
        assert len(item.logprobs) == len(item.token_ids)
    assert len({item.token_ids[-1] for item in drawn if item.finish_reason == "stop"}) > 3


def test_a_stop_token_at_the_last_place_is_a_stop_and_any_other_is_length() -> None:
    found = [
        sample(make_trunk(stop_ids=stops), None, [[1, 2]], _settings(max_new_tokens=1), seeds=[4])[0]
        for stops in (tuple(range(256)), ())
    ]
    assert found[0].token_ids == found[1].token_ids != [END_ID]
    assert [(len(item.token_ids), item.finish_reason) for item in found] == [(1, "stop"), (1, "length")]


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.6), (20, 0.5), (1, 1.0)])
def test_truncated_sampling_has_logprobs_renormalized_over_the_kept_tokens(top_k: int, top_p: float) -> None:
    trunk, model = make_trunk(), plain_model("llama")
    prompts = _prompts()
    settings = _settings(top_k=top_k, top_p=top_p, temperature=0.8)
    for prompt, item in zip(prompts, sample(trunk, None, prompts, settings, seeds=range(5)), strict=True):
        logits = plain_logits(model, [*prompt, *item.token_ids]).double() / 0.8
        for place, (token, logprob) in enumerate(zip(item.token_ids, item.logprobs, strict=True)):
            chances = logits[len(prompt) + place - 1].softmax(-1).tolist()
            ranked = sorted(range(len(chances)), key=lambda index: -chances[index])
            kept = ranked[: top_k or None]
            mass = sum(chances[index] for index in kept)
            nucleus: list[int] = []
            while sum(chances[index] for index in nucleus) / mass < top_p and len(nucleus) < len(kept):
                nucleus.append(kept[len(nucleus)])
            assert token in nucleus
            total = sum(chances[index] for index in nucleus)
            assert logprob == pytest.approx(math.log(chances[token] / total), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_frequencies_are_those_of_the_models_distribution(temperature: float) -> None:
    # A sound sampler fails with probability 1e-4 per case; the seeds are fixed, so it passes always or never.
    trunk, prompt, draws = make_trunk(), [7, 8, 9], 4000
    settings = _settings(temperature=temperature, max_new_tokens=1)
    drawn = sample(trunk, None, [prompt], settings, seeds=completion_seeds(draws, "chi"), n=draws)
    expected = (plain_logits(plain_model("llama"), prompt)[-1].double() / temperature).softmax(-1) * draws
    counts = torch.bincount(torch.tensor([item.token_ids[0] for item in drawn]), minlength=len(expected)).double()
    common = expected >= 5  # rarer tokens together are one cell
    cells = [torch.cat([part[common], part[~common].sum()[None]]) for part in (counts, expected)]
    assert len(cells[0]) > 20
    assert chisquare(cells[0].numpy(), cells[1].numpy()).pvalue > 1e-4


def test_later_tokens_follow_the_model_too() -> None:
    # Second tokens behind one frequent first token. A sound sampler fails with probability 1e-4 (fixed seeds).
    trunk, prompt, draws = make_trunk(), [7, 8, 9], 4000
    settings = _settings(max_new_tokens=2, temperature=3.0, top_k=6)
    drawn = sample(trunk, None, [prompt], settings, seeds=completion_seeds(draws, "late"), n=draws)
    pairs = [tuple(item.token_ids) for item in drawn if len(item.token_ids) == 2]
    first = max({pair[0] for pair in pairs}, key=lambda token: sum(pair[0] == token for pair in pairs))
    followers = [pair[1] for pair in pairs if pair[0] == first]
    best = plain_logits(plain_model("llama"), [*prompt, first])[-1].double().div(3.0).topk(6)
    counts = [followers.count(token) for token in best.indices.tolist()]
    assert sum(counts) == len(followers) > 500
    assert chisquare(counts, (best.values.softmax(-1) * len(followers)).numpy()).pvalue > 1e-4


@torch.no_grad()
def test_a_bf16_model_samples_close_to_its_scorer() -> None:
    trunk = make_trunk(dtype=torch.bfloat16, stop_ids=MANY_STOPS)
    prompts = _prompts()
    drawn = sample(trunk, None, prompts, _settings(), seeds=range(10), n=2)
    assert len(drawn) == 10
    assert _scored(trunk, None, prompts, drawn, 2, 1.0) < 0.3  # bf16 keeps 8 bits of logits up to 8: steps of 1/32


def test_more_completions_than_fit_into_a_batch_are_all_drawn() -> None:
    drawn = sample(make_trunk(), None, _prompts()[:2], _settings(max_new_tokens=2), seeds=range(10), n=5, batch_size=3)
    assert len(drawn) == 10
