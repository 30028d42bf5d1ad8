"""PPO's options and its critic-free kin: each does what it is named for, and refuses what makes no sense."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.config import (
    ChatConfig,
    ComputeConfig,
    FixedKl,
    FullConfig,
    GaeConfig,
    GroupConfig,
    OptimizerConfig,
    PpoConfig,
    PpoLossConfig,
    PtxConfig,
    ReinforceConfig,
    RemaxConfig,
    RlooConfig,
    SamplingConfig,
    ScoreConfig,
    ValueConfig,
    build,
    load_preset,
    preset,
    preset_names,
)
from harken.core.moments import Moments, denormalize
from harken.errors import ConfigError, DataError, RewardError, UsageError
from harken.lm.forward import completion_values
from harken.policy import kin
from harken.policy.ppo import gather, ppo, prepare
from harken.policy.rollout import CRITIC, POLICY, Rollout, draw_prompts, merged, rollout, score, score_greedy
from harken.policy.targets import make_rewards, make_targets
from harken.policy.update import PpoState, update
from harken.protocols import Reward
from harken.records import Completion, Prompt
from harken.runs import Timer
from tests.cli.calling import write_rows
from tests.policy import material

KIN = ["rloo", "grpo", "dr-grpo", "reinforce-pp", "remax", "gspo", "cispo", "dapo"]


def small(name: str, **changes: Any) -> PpoConfig:
    """A kin's preset in the sizes of `material.ppo_config`: 4 prompts, 2 completions, minibatches of 4 if allowed."""
    base = material.ppo_config()
    kept = ("steps", "prompts_per_step", "completions_per_prompt", "sampling", "chat", "compute", "policy_optimizer")
    sizes = {key: getattr(base, key) for key in kept} | {"approx_kl_limit": 1e9, "num_samples": 2}
    batch = 8 if name in ("rloo", "remax") else 4
    settings: dict[str, Any] = {"minibatch_size": batch, "score": {"stop_penalty": "none", "overlong_buffer": 0}}
    return preset(name, **(sizes | settings | changes))


def start(model: Path, config: PpoConfig, reward: Reward = material.count_letter) -> tuple[PpoState, Rollout]:
    state = prepare(model, reward, config)
    return state, rollout(state.trunk, draw_prompts(material.prompts(), config, 0), config, step=0)


def learn(model: Path, config: PpoConfig, reward: Reward = material.count_letter) -> tuple[PpoState, dict[str, float]]:
    state, experience = start(model, config, reward)
    scores, baseline = score(experience, reward), score_greedy(experience, reward)
    return state, update(state, experience, scores, config, step=0, baseline=baseline)


def constant(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [3.1] * len(completions)


def lengths(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [float(len(item.message.content)) for item in completions]


@pytest.mark.parametrize("name", KIN)
def test_constant_rewards_move_no_policy_and_make_no_nan(name: str, tiny_model_dir: Path) -> None:
    config = small(name, kl={"coef": 0.0})
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


# --------------------------------------------------------------------------------------- rewards


class PerToken:
    """One point for each token that is a certain byte, at that token."""

    def __init__(self, spoil: str = "") -> None:
        self.spoil = spoil

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        raise AssertionError("a loop asks for the scores of tokens")

    def token_scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[list[float]]:
        rows = [[float(token % 3) for token in item.token_ids or ()] for item in completions]
        if self.spoil == "short":
            rows[3] = rows[3][1:]
        return rows[1:] if self.spoil == "few" else rows


def test_scores_of_tokens_stay_at_their_tokens(tiny_model_dir: Path) -> None:
    config = material.ppo_config(score=ScoreConfig(clip=1.5, stop_penalty="subtract", stop_value=0.5))
    _, experience = start(tiny_model_dir, config, PerToken())
    scores = score(experience, PerToken())
    assert scores.shape == experience.batch.ids.shape
    stopped = torch.tensor([True, False] * 4)
    calm = replace(experience, ref_logprobs=experience.old_logprobs, stopped=stopped)
    rewards = make_rewards(calm, scores, config, 0.1)
    for row, item in enumerate(experience.completions):
        wanted = [min(float(token % 3), 1.5) for token in item.token_ids or ()]
        wanted[-1] -= 0.0 if bool(stopped[row]) else 0.5
        own = experience.batch.completion_mask[row]
        assert rewards[row][own].tolist() == pytest.approx(wanted)
        assert not rewards[row][~own].any()


@pytest.mark.parametrize(("spoil", "message"), [("short", "one for each of"), ("few", "returned 7 rows for 8")])
def test_wrong_scores_of_tokens_are_named(spoil: str, message: str, tiny_model_dir: Path) -> None:
    _, experience = start(tiny_model_dir, material.ppo_config())
    with pytest.raises(RewardError, match=message):
        score(experience, PerToken(spoil))


def test_a_run_learns_from_scores_of_tokens(tiny_model_dir: Path, tmp_path: Path) -> None:
    ppo(tiny_model_dir, material.prompts(), PerToken(), tmp_path, material.ppo_config(steps=2))
    assert material.rows(tmp_path / "metrics.jsonl")[-1]["score_mean"] > 0


def test_short_and_overlong_completions_are_charged_at_their_end(tiny_model_dir: Path) -> None:
    settings = ScoreConfig(stop_penalty="replace", stop_value=-3.0, min_length=3)
    config = material.ppo_config(score=settings)
    _, experience = start(tiny_model_dir, config)
    experience = replace(experience, stopped=torch.ones(8, dtype=torch.bool))
    count = experience.batch.completion_mask.sum(1)
    rewards = make_rewards(experience, torch.ones(8), config, 0.0).sum(1)
    assert rewards.tolist() == [1.0 if size >= 3 else -3.0 for size in count.tolist()]
    config = material.ppo_config(score=ScoreConfig(stop_penalty="none", overlong_buffer=4, overlong_penalty=2.0))
    rewards = make_rewards(experience, torch.ones(8), config, 0.0).sum(1)
    # 6 tokens at most: free up to 2, then half a point a token.
    assert rewards.tolist() == pytest.approx([1.0 - 0.5 * max(0, size - 2) for size in count.tolist()])


# ------------------------------------------------------------------------------ options of the loss


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_kl_as_a_loss_pulls_back_and_is_not_in_the_reward(estimator: Any, tiny_model_dir: Path) -> None:
    kl = FixedKl(coef=5.0, estimator=estimator, place="loss")
    # Equal scores have no advantage over each other, so nothing but the KL moves the policy.
    rate = OptimizerConfig(learning_rate=3e-4, eps=1e-5, schedule="constant", warmup_fraction=0.0)
    config = material.ppo_config(
        kl=kl,
        epochs=1,
        tune=FullConfig(),
        completions_per_prompt=16,
        minibatch_size=64,
        advantage=RlooConfig(),
        policy_optimizer=rate,
    )
    state, experience = start(tiny_model_dir, config)
    with torch.no_grad():
        for value in state.trunk.parameters(POLICY).values():
            value.mul_(1.1)
    experience = rollout(state.trunk, material.prompts(4), config, step=0)
    distances: list[float] = []
    for step in range(1, 11):
        metrics = update(state, experience, torch.zeros(64), config, step=step)
        assert metrics["reward_mean"] == 0.0
        assert metrics["kl_loss"] > 0
        distances.append(metrics["kl_k3"])
        experience = rollout(state.trunk, material.prompts(4), config, step=0)
    assert distances[0] > 1e-3
    assert distances[-1] < 0.8 * distances[0], distances


def test_the_entropy_coefficient_follows_its_target(tiny_model_dir: Path) -> None:
    found: dict[float, float] = {}
    for target in (0.0, 100.0):
        loss = PpoLossConfig(entropy_coef=0.02, entropy_target=target, entropy_change=0.005)
        state, metrics = learn(tiny_model_dir, material.ppo_config(loss=loss))
        assert metrics["entropy_coef"] == 0.02, "the step used the coefficient it began with"
        found[target] = state.entropy_coef
    assert found == pytest.approx({0.0: 0.015, 100.0: 0.025})


def test_an_update_ends_before_a_minibatch_whose_ratio_is_too_large(tiny_model_dir: Path) -> None:
    config = material.ppo_config(loss=PpoLossConfig(ratio_limit=1.5), epochs=2)
    state, experience = start(tiny_model_dir, config)
    before = state.trunk.state(POLICY)
    # As if the tokens had been drawn by a policy that thought them half as likely: the ratio is 2 from the start.
    moved = replace(experience, old_logprobs=experience.old_logprobs - math.log(2) * experience.batch.completion_mask)
    metrics = update(state, moved, score(moved, lengths), config, step=1)
    assert metrics["ratio_stops"] == 1.0
    assert metrics["ratio"] == pytest.approx(2.0, rel=1e-4)
    assert [optimizer.steps for optimizer in state.optimizers.values()] == [0, 0]
    assert all(torch.equal(state.trunk.state(POLICY)[name], value) for name, value in before.items())
    assert update(state, experience, score(experience, lengths), config, step=1)["ratio_stops"] == 0.0


def test_aggregations_weigh_rows_as_they_say(tiny_model_dir: Path) -> None:
    losses: dict[str, float] = {}
    for how in ("token_mean", "sequence_mean", "constant"):
        loss = PpoLossConfig(aggregation=how)
        config = material.ppo_config(loss=loss, epochs=1, minibatch_size=8, advantage=GaeConfig(whiten=False))
        state, experience = start(tiny_model_dir, config)
        # At ratio 1 a token's loss is minus its advantage.
        scores = score(experience, lengths)
        rewards = make_rewards(experience, scores, config, state.kl_coef)
        advantages = make_targets(experience, rewards, config).advantages
        count = experience.batch.completion_mask.sum(1)
        rows = advantages.sum(1)
        wanted = {
            "token_mean": rows.sum() / count.sum(),
            "sequence_mean": (rows / count).mean(),
            "constant": (rows / 6).mean(),
        }
        losses[how] = update(state, experience, scores, config, step=0)["policy_loss"]
        assert losses[how] == pytest.approx(-float(wanted[how]), rel=1e-4)


# ------------------------------------------------------------------------------------ critic, ptx


def test_a_critic_warms_up_before_the_policy_moves(tiny_model_dir: Path) -> None:
    config = material.ppo_config(value=ValueConfig(warmup_steps=1))
    state, experience = start(tiny_model_dir, config)
    policy, critic = state.trunk.state(POLICY), state.trunk.state(CRITIC)
    scores = score(experience, lengths)
    metrics = update(state, experience, scores, config, step=0)
    assert metrics["ratio"] == pytest.approx(1.0, rel=1e-4)
    assert all(torch.equal(state.trunk.state(POLICY)[name], value) for name, value in policy.items())
    assert not torch.equal(state.trunk.state(CRITIC)["head.weight"], critic["head.weight"])
    assert state.optimizers[POLICY].steps == 0
    # The schedule of the policy knows: 4 iterations of 4 steps, less one.
    assert (state.optimizers[POLICY].total_steps, state.optimizers[CRITIC].total_steps) == (12, 16)
    update(state, experience, scores, config, step=1)
    assert state.optimizers[POLICY].steps == 4


def test_normalized_values_mean_the_same_before_and_after_the_moments_change(tiny_model_dir: Path) -> None:
    config = material.ppo_config(
        score=ScoreConfig(clip=1e9, stop_penalty="none"),
        value=ValueConfig(normalize=True, normalize_decay=0.5),
        critic_optimizer=OptimizerConfig(learning_rate=1e-12, eps=1e-5),
    )
    state, experience = start(tiny_model_dir, config)
    assert state.moments == Moments()
    assert state.critic_is_random
    state.critic_is_random = False  # as if it had started as a reward model
    meant = experience.values
    for step, scale in enumerate((10.0, 50.0)):
        update(state, experience, 5.0 + scale * score(experience, lengths), config, step=step + 1)
        assert state.moments.std > 1
        with torch.no_grad():
            raw = completion_values(state.trunk, CRITIC, experience.batch)
        # In units of a spread of tens, fp32 leaves about 1e-5 of it.
        values = denormalize(raw, state.moments) * experience.batch.completion_mask
        torch.testing.assert_close(values, meant, rtol=1e-3, atol=1e-3)
        experience = replace(experience, values=raw)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_critic_of_large_scores_learns_faster_in_normalized_units(normalize: bool, tiny_model_dir: Path) -> None:
    def far(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [1000.0 + 100.0 * len(prompt.messages[0].content) for prompt in prompts]

    config = material.ppo_config(
        steps=8,
        minibatch_size=8,
        epochs=4,
        kl=FixedKl(coef=0.0),
        score=ScoreConfig(clip=1e9, stop_penalty="none"),
        value=ValueConfig(normalize=normalize, clip=1e9, huber_delta=10.0, normalize_decay=0.9),
        advantage=GaeConfig(gae_lambda=1.0),
        policy_optimizer=OptimizerConfig(learning_rate=1e-9, eps=1e-5),
        critic_optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-5, schedule="constant"),
    )
    state = prepare(tiny_model_dir, far, config)
    found: list[float] = []
    for step in range(config.steps):
        experience = rollout(state.trunk, draw_prompts(material.prompts(), config, step), config, step=step)
        found.append(update(state, experience, score(experience, far), config, step=step)["explained_variance"])
    assert (found[-1] > 0.5) == normalize


def write_demonstrations(folder: Path) -> Path:
    rows = [{"prompt": f"ask {index}:", "completion": "yes it is"} for index in range(6)]
    return write_rows(folder / "demonstrations.jsonl", rows)


@pytest.mark.parametrize("relative", [True, False])
def test_ptx_makes_demonstrations_likelier(relative: bool, tiny_model_dir: Path, tmp_path: Path) -> None:
    mix = PtxConfig(data=str(write_demonstrations(tmp_path)), coef=1.0, relative=relative, batch_size=4)
    rates = OptimizerConfig(learning_rate=1e-2, eps=1e-5, schedule="constant", warmup_fraction=0.0)
    config = material.ppo_config(steps=6, ptx=mix, tune=FullConfig(), policy_optimizer=rates)
    ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path / "run", config)
    found = [row["ptx_loss"] for row in material.rows(tmp_path / "run" / "metrics.jsonl")]
    assert found[-1] < found[0] - 1.0


def test_a_relative_ptx_gradient_has_the_norm_it_is_given(tiny_model_dir: Path, tmp_path: Path) -> None:
    norms: dict[float, float] = {}
    for coef in (0.0, 1.0, 1000.0):
        mix = PtxConfig(data=str(write_demonstrations(tmp_path)), coef=coef)
        config = material.ppo_config(ptx=mix, epochs=1, minibatch_size=8)
        _, metrics = learn(tiny_model_dir, config, lengths)
        norms[coef] = metrics["grad_norm_policy"]
    own = norms[0.0]
    assert own > 0
    assert norms[1.0] < 2.001 * own
    assert norms[1000.0] == pytest.approx(1000 * own, rel=2e-3)  # the two directions differ: 1000 +- 1


def test_a_rollout_of_several_turns_leaves_what_others_wrote_out(tiny_model_dir: Path) -> None:
    # The third and fourth completion token become somebody else's: no loss, reward, value or metric sees them.
    config = material.ppo_config(epochs=1, minibatch_size=8)
    results: list[dict[str, float]] = []
    for spoil in (0.0, 7.0):
        state, experience = start(tiny_model_dir, config)
        mask = experience.batch.completion_mask.clone()
        for row in range(8):
            places = mask[row].nonzero().squeeze(1)
            if len(places) > 4:
                mask[row, places[2:4]] = False
        gaps = experience.batch.completion_mask & ~mask
        turns = replace(
            experience,
            batch=replace(experience.batch, completion_mask=mask),
            old_logprobs=experience.old_logprobs + spoil * gaps,
            values=experience.values + spoil * gaps,
        )
        results.append(update(state, turns, score(experience, lengths), config, step=1))
        assert bool(gaps.any())
    assert results[0] == results[1]
    assert results[0]["ratio"] == pytest.approx(1.0, rel=1e-4)


def test_an_unused_setting_of_sampling_is_still_refused_for_kin() -> None:
    with pytest.raises(ConfigError, match="top_p = 1 and top_k = 0"):
        preset("remax", sampling=SamplingConfig(top_k=1))
    assert isinstance(preset("remax").advantage, RemaxConfig)


def test_completions_end_at_every_stop_token_that_was_named(tiny_model_dir: Path) -> None:
    # Half of the bytes stop: completions are short, end with one of them, and count as stopped.
    letters = tuple(chr(code) for code in range(33, 97))
    chat = ChatConfig(template="raw", stop=letters)
    state, experience = start(tiny_model_dir, material.ppo_config(chat=chat))
    assert len(state.trunk.chat.stop_ids) == 64 + 1
    ended = [item for item in experience.completions if item.finish_reason == "stop"]
    assert ended
    for item in ended:
        assert item.token_ids is not None
        assert item.token_ids[-1] in state.trunk.chat.stop_ids
        assert not any(token in state.trunk.chat.stop_ids for token in item.token_ids[:-1])
    with pytest.raises(DataError, match=r"chat.stop: 'ab' is 2 tokens of this model"):
        prepare(tiny_model_dir, material.count_letter, material.ppo_config(chat=ChatConfig(stop=("ab",))))
