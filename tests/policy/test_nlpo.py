"""NLPO: the policy writes and learns over the tokens that its mask leaves it, and moves its mass there."""

import math
from pathlib import Path

import pytest
import torch

from harken.artifacts import read_json
from harken.config import FullConfig, LoraConfig, MaskConfig, Tune, VllmServerConfig
from harken.errors import SelfTestError
from harken.lm.batch import Tokens, pad
from harken.lm.forward import completion_logprobs
from harken.lm.sample import sample
from harken.policy.nlpo import MASK, add_mask, outside_loss, remove_mask, renew_mask, renew_mask_if_due
from harken.policy.ppo import ppo, prepare
from harken.policy.rollout import POLICY, rollout, score
from harken.policy.selftest import check_first_rollout
from harken.policy.update import update
from harken.records import SamplingSettings
from tests.lm.archs import make_trunk, plain_logits, shake
from tests.policy import material

TOP_P = 0.6
MASKED = MaskConfig(top_p=TOP_P, refresh_every=2)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("tune", [LoraConfig(rank=4), FullConfig()], ids=lambda tune: tune.kind)
def test_sampler_and_scorer_take_the_policy_over_the_likely_tokens_of_the_mask(arch: str, tune: Tune) -> None:
    trunk = make_trunk(arch)
    trunk.add_role(POLICY, tune, seed=0)
    add_mask(trunk, POLICY, MASKED, tune)
    shake(trunk, POLICY, seed=1)
    prompts = [[5, 6, 7], [9], [11, 12]]
    settings = SamplingSettings(max_new_tokens=5)
    drawn = sample(trunk, POLICY, prompts, settings, seeds=list(range(12)), n=4)
    texts = [Tokens(prompts[row // 4], item.token_ids) for row, item in enumerate(drawn)]
    batch = pad(texts)
    read = completion_logprobs(trunk, POLICY, batch)
    assert read.log_mass is not None
    scored, log_mass = read.logprobs.detach(), read.log_mass.detach()
    outside = 0
    for row, item in enumerate(drawn):
        prompt = prompts[row // 4]
        # The model's own forward pass, whole texts at once.
        ids = [*prompt, *item.token_ids]
        policy, mask = (plain_logits(trunk.network(role), ids)[len(prompt) - 1 : -1] for role in (POLICY, MASK))
        for place, token in enumerate(item.token_ids):
            probs = mask[place].softmax(0)
            ranked = probs.argsort(descending=True).tolist()
            count = next(n for n in range(1, len(ranked) + 1) if float(probs[ranked[:n]].sum()) >= TOP_P)
            allowed = ranked[:count]
            assert token in allowed
            outside += int(policy[place].argmax()) not in allowed
            expected = float(policy[place][token] - policy[place][allowed].logsumexp(0))
            assert item.logprobs[place] == pytest.approx(expected, abs=1e-4)
            assert float(scored[row, len(prompt) + place]) == pytest.approx(expected, abs=1e-4)
            mass = float(policy[place].softmax(0)[allowed].sum())
            assert float(log_mass[row, len(prompt) + place]) == pytest.approx(math.log(mass), abs=1e-4)
    # Gradients reach the policy and not the mask.
    read.logprobs.sum().backward()
    assert any(value.grad is not None and value.grad.any() for value in trunk.parameters(POLICY).values())
    assert all(value.grad is None for value in trunk.parameters(MASK).values())
    assert outside > 0, "else the mask changes nothing here"


def test_the_masked_policy_starts_as_the_reference_over_the_tokens_left(tiny_model_dir: Path) -> None:
    config = material.ppo_config(mask=MASKED)
    state = prepare(tiny_model_dir, material.count_letter, config)
    experience = rollout(state.trunk, material.prompts(4), config, step=0, sampler=state.sampler)
    gain = (experience.old_logprobs - experience.ref_logprobs)[experience.batch.completion_mask]
    # The mask is the policy's own nucleus, which has a mass from TOP_P to 1.
    assert float(gain.min()) > 0.0
    assert float(gain.max()) <= -math.log(TOP_P) + 1e-5
    torch.testing.assert_close(experience.sampler_logprobs, experience.old_logprobs, rtol=1e-4, atol=1e-4)
    check_first_rollout(state.trunk, experience, mask=MASKED)
    with pytest.raises(SelfTestError, match="does not start as the reference"):
        check_first_rollout(state.trunk, experience)


def test_the_term_beside_the_loss_moves_the_mass_inside(tiny_model_dir: Path) -> None:
    config = material.ppo_config(mask=MASKED, tune=FullConfig())
    state = prepare(tiny_model_dir, material.count_letter, config)
    batch = rollout(state.trunk, material.prompts(4), config, step=0, sampler=state.sampler).batch
    count = float(batch.completion_mask.sum())
    found: list[float] = []
    for _ in range(20):
        read = completion_logprobs(state.trunk, POLICY, batch)
        loss = outside_loss(read, batch.completion_mask, count, MASKED)
        assert isinstance(loss, torch.Tensor)
        torch.autograd.backward(loss)
        state.optimizers[POLICY].step()
        found.append(float(loss.detach()))
    assert 0 < found[-1] < 0.75 * found[0]
    read = completion_logprobs(state.trunk, POLICY, batch)
    assert outside_loss(read, batch.completion_mask, count, None) == 0.0


def test_the_mask_is_renewed_after_every_so_many_iterations(tiny_model_dir: Path) -> None:
    config = material.ppo_config(mask=MASKED)
    state = prepare(tiny_model_dir, material.count_letter, config)
    trunk = state.trunk
    for step, is_renewed in enumerate([False, True, False, True], start=1):
        experience = rollout(trunk, material.prompts(4), config, step=step, sampler=state.sampler)
        update(state, experience, score(experience, material.count_letter), config, step=step)
        renew_mask_if_due(trunk, POLICY, config.mask, step)
        policy, mask = trunk.state(POLICY), trunk.state(MASK)
        assert all(torch.equal(policy[name], mask[name]) for name in policy) == is_renewed
    assert all(value.grad is None for value in trunk.parameters(MASK).values())


def test_a_renewed_mask_leaves_the_nucleus_so_the_saved_model_needs_top_p_only(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trunk = make_trunk("llama")
    trunk.add_role(POLICY, LoraConfig(rank=4), seed=0)
    add_mask(trunk, POLICY, MASKED, LoraConfig(rank=4))
    shake(trunk, POLICY, seed=1)
    renew_mask(trunk, POLICY)
    prompts, seeds = [[5, 6, 7], [9]], list(range(16))
    masked = sample(trunk, POLICY, prompts, SamplingSettings(max_new_tokens=5), seeds=seeds, n=8)
    remove_mask(trunk, POLICY, MASKED)
    plain = sample(trunk, POLICY, prompts, SamplingSettings(max_new_tokens=5, top_p=TOP_P), seeds=seeds, n=8)
    assert [item.token_ids for item in plain] == [item.token_ids for item in masked]
    for one, other in zip(plain, masked, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    # And the folder of a run says so, where transformers looks for it.
    config = material.ppo_config(mask=MASKED)
    folder = ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, config)
    saved = read_json(folder / "generation_config.json")
    assert (saved["do_sample"], saved["top_p"], saved.get("top_k", 0)) == (True, TOP_P, 0)


def test_a_foreign_engine_cannot_draw_under_a_mask() -> None:
    with pytest.raises(ValueError, match="cannot draw from a masked policy"):
        material.ppo_config(mask=MASKED, sampler=VllmServerConfig())
