"""The critic-free kin of PPO: each does what it is named for, and refuses what makes no sense."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.config import (
    ComputeConfig,
    GaeConfig,
    GroupConfig,
    OptimizerConfig,
    PpoConfig,
    PpoLossConfig,
    ReinforceConfig,
    RlooConfig,
    build,
    load_preset,
    preset,
    preset_names,
)
from harken.errors import ConfigError, UsageError
from harken.lm.optim import Optimizer
from harken.policy import kin
from harken.policy.ppo import gather, prepare
from harken.policy.rollout import POLICY, Rollout, merged, score, score_greedy
from harken.policy.targets import make_rewards, make_targets
from harken.policy.update import update
from harken.records import Completion, Prompt
from harken.runs import Timer
from tests.policy import material
from tests.policy.learning import constant, learn, lengths, small, start

KIN = ["rloo", "grpo", "dr-grpo", "reinforce-pp", "remax", "gspo", "cispo", "dapo"]


@pytest.mark.parametrize("name", [*KIN, "reinforce-pp-baseline"])
def test_constant_rewards_move_no_policy_and_make_no_nan(name: str, tiny_model_dir: Path) -> None:
    base = {"group_baseline": True} if name == "reinforce-pp-baseline" else {}
    name = name.removesuffix("-baseline")
    config = small(name, kl={"coef": 0.0}, **({"advantage": base} if base else {}))
    state = prepare(tiny_model_dir, constant, config)
    before = state.trunk.state(POLICY)
    state, metrics = learn(tiny_model_dir, config, constant)
    assert all(math.isfinite(value) for value in metrics.values())
    if name != "reinforce-pp":
        # REINFORCE++ whitens sums of equal scores over tokens: 0 as well, see the next line.
        assert metrics["policy_loss"] == 0.0
    assert metrics["grad_norm_policy"] == pytest.approx(0.0, abs=1e-6)
    after = state.trunk.state(POLICY)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", KIN)
def test_optimizer_steps_are_epochs_times_minibatches_for_every_kin(name: str, tiny_model_dir: Path) -> None:
    config = small(name)
    state, _ = learn(tiny_model_dir, config, lengths)
    assert set(state.optimizers) == {POLICY}, "no critic"
    assert state.optimizers[POLICY].steps == config.updates_per_step == 8 // config.minibatch_size


@pytest.mark.parametrize("name", [*KIN, "ppo"])
def test_rows_one_by_one_give_the_gradients_of_all_at_once(name: str, tiny_model_dir: Path) -> None:
    # Weights after one step of plain gradient descent, in effect: Adam with a huge epsilon steps by the gradient.
    ends: list[dict[str, torch.Tensor]] = []
    for size in (8192, 1):
        compute = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=size, chunk_tokens=64)
        plain = OptimizerConfig(learning_rate=1.0, eps=1e4, warmup_fraction=0.0, max_grad_norm=1e9)
        changes = {"compute": compute, "minibatch_size": 8, "policy_optimizer": plain, "epochs": 1}
        config = material.ppo_config(**changes) if name == "ppo" else small(name, **changes)
        state, _ = learn(tiny_model_dir, config, lengths)
        ends.append({key: value * 1e4 for key, value in state.trunk.state(POLICY).items() if "lora_B" in key})
    moved = max(float(value.abs().max()) for value in ends[0].values())
    assert moved > 1e-3
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key] / moved, value / moved, rtol=0, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", [*KIN, "ppo"])
def test_eight_microbatches_of_one_have_the_gradient_of_one_of_eight(
    name: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In fp64, so that nothing but the arithmetic of the parts is compared; in fp32 rounding alone is 1e-6.
    taken: list[dict[str, torch.Tensor]] = []

    def take(self: Optimizer) -> float:
        taken.append({key: item.grad.clone() for key, item in self.parameters.items() if item.grad is not None})
        self.clear()
        return 0.0

    monkeypatch.setattr(Optimizer, "step", take)
    changes = {"minibatch_size": 8, "epochs": 1}
    config = material.ppo_config(**changes) if name == "ppo" else small(name, **changes)
    state, experience = start(tiny_model_dir, config, lengths)
    state.trunk.model.double()
    # What the lower layers gave is fp32 still.
    experience = replace(experience, batch=replace(experience.batch, lower_states=None))
    scores, baseline = score(experience, lengths), score_greedy(experience, lengths)
    for size in (8192, 1):
        compute = config.compute.model_copy(update={"microbatch_tokens": size})
        parts = state.trunk.microbatches(experience.batch.lengths.tolist(), size)
        assert len(parts) == (1 if size > 1 else 8)
        update(state, experience, scores, config.model_copy(update={"compute": compute}), step=1, baseline=baseline)
    roles = list(state.optimizers)
    for role, one, many in zip(roles, taken[: len(roles)], taken[len(roles) :], strict=True):
        largest = max(float(value.abs().max()) for value in one.values())
        assert largest > 0
        bound = 1e-9 if role == POLICY else 1e-6  # values are fp32 always
        for key, value in one.items():
            torch.testing.assert_close(many[key] / largest, value / largest, rtol=0, atol=bound, msg=key)


def test_kin_without_others_to_compare_with_are_refused() -> None:
    for name in ("rloo", "grpo", "dr-grpo", "gspo", "cispo", "dapo"):
        with pytest.raises(ConfigError, match="compares the completions of a prompt, found completions_per_prompt = 1"):
            preset(name, completions_per_prompt=1)
    with pytest.raises(ConfigError, match="completions_per_prompt"):
        preset("reinforce-pp", advantage={"group_baseline": True})
    assert preset("reinforce-pp").completions_per_prompt == preset("remax").completions_per_prompt == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kl": {"estimator": "k3"}}, "k3 in the reward has not the gradient"),
        ({"kl": {"estimator": "full"}}, "full in the reward"),
        ({"kl": {"place": "loss"}}, "k1 as a loss has a gradient of mean zero"),
        ({"loss": {"kind": "reinforce"}}, "found 8 optimizer steps an iteration"),
        ({"score": {"overlong_buffer": 99}}, "overlong_buffer is 99, expected at most"),
        ({"score": {"min_length": 3, "stop_penalty": "none"}}, "min_length charges the stop penalty"),
        ({"advantage": {"kind": "reinforce"}, "value": {"warmup_steps": 2}}, "has no critic"),
        ({"loss": {"clip_low": 1.5}}, "less than or equal to 1"),
        ({"loss": {"dual_clip": 1.0}}, "greater than 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PpoConfig, values, where="test")


def test_presets_say_what_is_published(tmp_path: Path) -> None:
    assert set(preset_names()) == {*KIN, "openai-2019", "n-details", "instructgpt", "llama-2"}
    openai = preset("openai-2019")
    assert (openai.kl.coef, openai.sampling.temperature, openai.score.whiten_rewards) == (0.15, 0.7, True)
    assert openai.updates_per_step == 4
    assert preset("instructgpt").updates_per_step == preset("llama-2").updates_per_step == 8
    # Rates, epochs and minibatches, rollouts, clips, gamma and lambda, KL, temperature: 2019's tasks, N+ details,
    # InstructGPT's appendix C.4 (its actor's rate is DeepSpeed-Chat's), Llama 2's section 3.4.3.
    published = {
        "openai-2019": (1e-5, 1e-5, 4, 512, 512, 0.2, 0.2, 1.0, 0.95, 0.15, 0.7),
        "n-details": (3e-6, 3e-6, 4, 512, 512, 0.2, 0.2, 1.0, 0.95, 0.05, 0.7),
        "instructgpt": (9.65e-6, 9e-6, 1, 64, 512, 0.2, 0.2, 1.0, 0.95, 0.02, 1.0),
        "llama-2": (1e-6, 1e-6, 1, 64, 512, 0.2, 0.2, 1.0, 0.95, 0.01, 1.0),
    }
    for name, expected in published.items():
        found = preset(name)
        assert isinstance(found.loss, PpoLossConfig)
        assert isinstance(found.advantage, GaeConfig)
        rates = found.policy_optimizer.learning_rate, found.critic_optimizer.learning_rate
        sizes = found.epochs, found.minibatch_size, found.rollouts
        factors = found.advantage.gamma, found.advantage.gae_lambda, found.kl.coef, found.sampling.temperature
        assert (*rates, *sizes, found.loss.clip_high, found.value.clip, *factors) == expected, name
    instruct, llama = preset("instructgpt"), preset("llama-2")
    assert (instruct.ptx.coef, instruct.policy_optimizer.ema_decay) == (27.8, 0.992)
    assert instruct.ptx.batch_size == 8 * instruct.minibatch_size
    assert instruct.policy_optimizer.warmup_fraction * instruct.steps == 10
    assert (llama.policy_optimizer.weight_decay, llama.policy_optimizer.eps) == (0.1, 1e-5)
    groups = {"grpo": 0.04, "rloo": 0.05, "reinforce-pp": 0.01, "dapo": 0.0, "dr-grpo": 0.0, "gspo": 0.0, "cispo": 0.0}
    assert {name: preset(name).kl.coef for name in groups} == groups
    # A file is laid over the preset, the overrides over both; another kind starts from its own defaults.
    (tmp_path / "mine.toml").write_text('steps = 3\n[advantage]\nkind = "rloo"\n[kl]\ncoef = 0.3\n')
    mine = load_preset("grpo", tmp_path / "mine.toml", ["kl.coef=0.4"])
    assert (mine.steps, mine.kl.coef, mine.kl.estimator, mine.advantage) == (3, 0.4, "k3", RlooConfig())
    with pytest.raises(ConfigError, match="'gpro': there is none of that name; there are cispo, dapo"):
        preset("gpro")
    with pytest.raises(ConfigError, match=r"preset 'grpo': unknown config key 'stpes'; did you mean 'steps'"):
        preset("grpo", stpes=3)


def test_a_kin_refuses_the_settings_of_another(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"grpo: advantage\.kind is 'gae', expected 'group'; make the settings with"):
        kin.grpo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, material.ppo_config())
    with pytest.raises(ConfigError, match=r"gspo: loss\.kind is 'ppo'"):
        kin.gspo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, small("grpo"))
    folder = kin.rloo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, small("rloo", steps=1))
    assert (folder / "model.safetensors").is_file()


# ------------------------------------------------------------------------------------ advantages


def targets_of(model: Path, config: PpoConfig, scores: list[float], **changes: Any) -> tuple[torch.Tensor, Rollout]:
    _, experience = start(model, config)
    experience = replace(experience, ref_logprobs=experience.old_logprobs, **changes)
    rewards = make_rewards(experience, torch.tensor(scores), config, 0.0)
    return make_targets(experience, rewards, config, torch.full((8,), 2.0)).advantages, experience


def test_every_token_of_a_completion_has_its_groups_advantage(tiny_model_dir: Path) -> None:
    scores = [1.0, 3.0, 2.0, 2.0, 0.0, 4.0, -1.0, 0.0]
    deviation = math.sqrt(2.0)  # of 1 and 3: 1 above and below the mean, over n - 1 = 1
    wanted = {"rloo": -2.0, "dr-grpo": -1.0, "grpo": -1.0 / (deviation + 1e-6)}
    for name, first in wanted.items():
        found, experience = targets_of(tiny_model_dir, small(name), scores)
        for row, value in ((0, first), (1, -first), (2, 0.0), (3, 0.0)):
            own = experience.batch.completion_mask[row]
            assert found[row][own].tolist() == pytest.approx([value] * int(own.sum()), rel=1e-6)
        assert not found[~experience.batch.completion_mask].any()


def test_remax_subtracts_the_greedy_score(tiny_model_dir: Path) -> None:
    found, experience = targets_of(tiny_model_dir, small("remax"), [float(n) for n in range(8)])
    for row in range(8):
        own = experience.batch.completion_mask[row]
        assert found[row][own].tolist() == pytest.approx([row - 2.0] * int(own.sum()))
    with pytest.raises(UsageError, match="baseline"):
        make_targets(experience, torch.zeros_like(experience.old_logprobs), small("remax"))


def test_greedy_completions_are_the_likeliest_tokens(tiny_model_dir: Path) -> None:
    state, experience = start(tiny_model_dir, small("remax"))
    assert len(experience.greedy) == 4
    baseline = score_greedy(experience, lengths)
    assert baseline is not None
    assert baseline.tolist() == [float(len(item.message.content)) for item in experience.greedy for _ in range(2)]
    prompt, greedy = experience.prompts[2], experience.greedy[1]
    assert greedy.token_ids is not None
    ids = [*state.trunk.chat.encode_prompt(prompt), *greedy.token_ids]
    network: Any = state.trunk.network(POLICY)
    likeliest = network(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    assert likeliest[-len(greedy.token_ids) - 1 : -1] == list(greedy.token_ids)


def test_reinforce_pp_standardizes_sums_to_go_with_and_without_a_baseline(tiny_model_dir: Path) -> None:
    scores = [1.0, 3.0, 2.0, 2.0, 0.0, 4.0, -1.0, 0.0]
    for baseline in (False, True):
        config = small("reinforce-pp", advantage=ReinforceConfig(group_baseline=baseline))
        found, experience = targets_of(tiny_model_dir, config, scores)
        mask = experience.batch.completion_mask
        assert float(found[mask].mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(found[mask].var(correction=0)) == pytest.approx(1.0, rel=1e-5)
        # The third and fourth completion differ from the first only through their group, if there is a baseline.
        assert bool((found[2][mask[2]] > found[0][mask[0]].max()).all())


def test_dynamic_sampling_fills_the_step_with_groups_that_differ(tiny_model_dir: Path) -> None:
    prompts = material.prompts(8)
    liked = {prompts[index].id for index in (1, 4, 6)}

    def reward(asked: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [index % 2 * float(prompt.id in liked) for index, prompt in enumerate(asked)]

    config = small("dapo", advantage=GroupConfig(sampling_rounds=2), prompts_per_step=4)
    state = prepare(tiny_model_dir, reward, config)
    experience, scores, found = gather(state, prompts, reward, config, step=0, timer=Timer())
    assert found == {"sampling_rounds": 2.0}, "3 of 8 prompts are good, so both batches are needed"
    kept = [prompt.id for prompt in experience.prompts[::2]]
    assert set(kept[:3]) == liked
    assert kept[3] not in liked, "the last place is filled with what is left over"
    assert scores.tolist() == [0.0, 1.0] * 3 + [0.0, 0.0]
    metrics = update(state, experience, scores, config, step=0)
    assert metrics["groups_equal"] == 0.25
    # Rows were moved whole: a fresh pass reads what the merged rollout says.
    again = merged([experience], [(0, row) for row in reversed(range(8))])
    assert torch.equal(again.old_logprobs.flip(0), experience.old_logprobs[:, : again.old_logprobs.shape[1]])
    assert [item.id for item in again.completions] == [item.id for item in reversed(experience.completions)]
