"""Log-probabilities that tokens were drawn with stand for a pass of the policy over them, where they are as good."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.config import MaskConfig, OwnSamplerConfig, PpoConfig, SamplingConfig
from harken.lm.sample import Sampled
from harken.lm.speed import Meter
from harken.policy import online_dpo as online
from harken.policy.ppo import prepare, step_flops
from harken.policy.rollout import Rollout, rollout, score
from harken.policy.update import update
from tests.policy import material


def _config(*, reread: bool, **changes: Any) -> PpoConfig:
    return material.ppo_config(sampler=OwnSamplerConfig(reread=reread), **changes)


def _second(model: Path, config: PpoConfig, *, dtype: torch.dtype = torch.float32) -> Rollout:
    """Return the rollout after one update, so that policy and reference differ."""
    state = prepare(model, material.count_letter, config)
    assert state.trunk.dtype == dtype
    first = rollout(state.trunk, material.prompts(), config, step=0)
    assert first.was_reread, "the first rollout is always read, for the self-test"
    update(state, first, score(first, material.count_letter), config, step=0)
    return rollout(state.trunk, material.prompts(), config, step=1, sampler=state.sampler)


@pytest.mark.parametrize(
    "changes",
    [{}, {"sampling": SamplingConfig(temperature=0.7, max_new_tokens=8)}, {"mask": MaskConfig(top_p=0.8)}],
    ids=["plain", "temperature", "mask"],
)
def test_what_was_drawn_with_is_what_a_pass_reads(tiny_model_dir: Path, changes: dict[str, Any]) -> None:
    read, drawn = (_second(tiny_model_dir, _config(reread=reread, **changes)) for reread in (True, False))
    assert read.was_reread
    assert not drawn.was_reread
    assert torch.equal(read.batch.ids, drawn.batch.ids)
    assert torch.equal(drawn.old_logprobs, drawn.sampler_logprobs)
    assert not torch.equal(read.old_logprobs, read.sampler_logprobs), "two computations, which round differently"
    torch.testing.assert_close(drawn.old_logprobs, read.old_logprobs, rtol=1e-4, atol=1e-4)
    assert drawn.entropy == pytest.approx(read.entropy, abs=1e-4)
    assert drawn.sequence_kl == pytest.approx(read.sequence_kl, abs=1e-3)
    assert abs(read.sequence_kl) > 0.01, "the policy has left the reference, so that old log-probabilities matter"


def test_what_was_not_read_again_is_compared_in_the_first_minibatch(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(reread=False)
    state = prepare(tiny_model_dir, material.count_letter, config)
    found: list[dict[str, float]] = []
    for step in range(3):
        experience = rollout(state.trunk, material.prompts(), config, step=step, sampler=state.sampler)
        if step == 2:
            # A sampler that is off by a tenth of a nat at each token.
            off = experience.old_logprobs - 0.1 * experience.batch.completion_mask
            experience = replace(experience, old_logprobs=off, sampler_logprobs=off)
        found.append(update(state, experience, score(experience, material.count_letter), config, step=step))
    assert [row["sampler_mismatch"] < 1e-4 for row in found] == [True, True, False]
    assert found[2]["sampler_mismatch"] == pytest.approx(0.1, abs=1e-4)
    assert ["sampler_mismatch_max" in row for row in found] == [True, False, False]
    assert all("moved" not in row for row in found)


def test_by_default_nothing_but_the_first_rollout_is_read_again(tiny_model_dir: Path) -> None:
    config = material.ppo_config()
    assert config.sampler == OwnSamplerConfig(reread=False)
    assert not _second(tiny_model_dir, config).was_reread


def test_in_bf16_what_was_drawn_with_differs_by_its_rounding(tiny_model_dir: Path) -> None:
    coarse = {"compute": material.COMPUTE.model_copy(update={"dtype": "bfloat16"})}
    read, drawn = (
        _second(tiny_model_dir, _config(reread=reread, **coarse), dtype=torch.bfloat16) for reread in (True, False)
    )
    assert not drawn.was_reread
    assert torch.equal(drawn.old_logprobs, drawn.sampler_logprobs)
    assert torch.equal(read.batch.ids, drawn.batch.ids)
    count = drawn.batch.completion_mask.sum()
    gap = float((drawn.old_logprobs - read.old_logprobs).abs().sum() / count)
    assert 0 < gap < 0.02  # bf16 keeps 8 bits of logits of up to 4
    assert drawn.entropy == pytest.approx(read.entropy, abs=0.02)  # likewise


def test_a_sampler_that_tells_no_entropies_is_read_again(tiny_model_dir: Path) -> None:
    config = _config(reread=False)
    state = prepare(tiny_model_dir, material.count_letter, config)

    def silent(*arguments: Any, **options: Any) -> list[Sampled]:
        return [replace(item, entropies=[]) for item in state.sampler(*arguments, **options)]

    assert rollout(state.trunk, material.prompts(), config, step=1, sampler=silent).was_reread
    assert not rollout(state.trunk, material.prompts(), config, step=1, sampler=state.sampler).was_reread


def test_a_pass_that_is_saved_does_not_count_as_work(tiny_model_dir: Path) -> None:
    read, drawn = (_second(tiny_model_dir, _config(reread=reread)) for reread in (True, False))
    state = prepare(tiny_model_dir, material.count_letter, _config(reread=True))
    meter = Meter(state.trunk, _config(reread=True).tune)
    counted = [step_flops(meter, one, 1, has_critic=True)["sample"] for one in (read, drawn)]
    batch = read.batch
    one_pass = meter.reading(int(batch.lengths.sum()), batch.num_rows, int(batch.completion_mask.sum()))
    assert counted[0] - counted[1] == pytest.approx(one_pass)


def test_online_dpo_saves_the_pass_too(tiny_model_dir: Path) -> None:
    found: dict[bool, list[online.Drawn]] = {}
    for reread in (True, False):
        config = material.online_dpo_config(sampler=OwnSamplerConfig(reread=reread))
        state = online.prepare(tiny_model_dir, material.prompts(), material.count_letter, config)
        found[reread] = [online.draw(state, material.prompts(), config, step=step) for step in (0, 1)]
    for reread, (first, second) in found.items():
        assert not torch.equal(first.policy_logprobs, first.sampler_logprobs)
        assert torch.equal(second.policy_logprobs, second.sampler_logprobs) != reread
    saved, read = (found[reread][1].policy_logprobs for reread in (False, True))
    torch.testing.assert_close(saved, read, rtol=1e-4, atol=1e-4)
