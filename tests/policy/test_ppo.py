"""PPO: it raises what is rewarded, keeps its accounts, and starts its critic as the reward model."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.artifacts import read_json
from harken.config import (
    AdaptiveKl,
    ComputeConfig,
    FixedKl,
    FullConfig,
    GaeConfig,
    LoraConfig,
    OptimizerConfig,
    PpoConfig,
    PpoLossConfig,
    SamplingConfig,
    ScoreConfig,
    ValueConfig,
)
from harken.core.advantages import gae, whiten
from harken.errors import DataError, RewardError
from harken.lm.batch import Tokens, pad
from harken.policy.ppo import ppo, prepare
from harken.policy.rollout import CRITIC, POLICY, Rollout, draw_prompts, rollout, score
from harken.policy.targets import make_rewards
from harken.policy.update import PpoState, update
from harken.protocols import Reward
from harken.records import Completion, Prompt
from harken.reward.functions import WeightedSum, load_reward
from harken.reward.model import RewardModel, StoredRewardModel
from harken.reward.train import train_reward
from tests.policy import material


def _start(model: Path, config: PpoConfig, reward: Reward = material.count_letter) -> tuple[PpoState, Rollout]:
    """Return the state before training, and the first rollout."""
    state = prepare(model, reward, config)
    return state, rollout(state.trunk, draw_prompts(material.prompts(), config, 0), config, step=0)


def _run(model: Path, out: Path, config: PpoConfig, reward: Reward = material.count_letter) -> list[dict[str, Any]]:
    ppo(model, material.prompts(), reward, out, config)
    return material.rows(out / "metrics.jsonl")


def test_ppo_raises_the_frequency_of_a_rewarded_token(tiny_model_dir: Path, tmp_path: Path) -> None:
    rates = OptimizerConfig(learning_rate=1e-2, eps=1e-5, schedule="constant", warmup_fraction=0.0)
    config = material.ppo_config(
        steps=15,
        prompts_per_step=6,
        completions_per_prompt=8,
        minibatch_size=24,
        kl=FixedKl(coef=0.01),
        tune=FullConfig(),
        policy_optimizer=rates,
        critic_optimizer=rates,
    )
    scores = [row["score_mean"] for row in _run(tiny_model_dir, tmp_path, config)]
    # At most 6 letters; the random model writes one of 259 tokens at a time. Measured: 0.0 and 5.6.
    assert scores[0] < 0.5
    assert scores[-1] > 3.0


def test_the_critic_learns_to_foresee_the_return(tiny_model_dir: Path, tmp_path: Path) -> None:
    # The policy does not move, and the score is the length of the prompt: a critic can know it before the first token.
    def length(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [float(len(prompt.messages[0].content)) for prompt in prompts]

    config = material.ppo_config(
        steps=12,
        prompts_per_step=6,
        completions_per_prompt=4,
        minibatch_size=12,
        epochs=4,
        tune=FullConfig(),
        value=ValueConfig(critic="own", clip=10.0),
        advantage=GaeConfig(gae_lambda=1.0),
        policy_optimizer=OptimizerConfig(learning_rate=1e-9, eps=1e-5),
        critic_optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-5, schedule="constant"),
    )
    found = [row["explained_variance"] for row in _run(tiny_model_dir, tmp_path, config, length)]
    assert found[0] < 0.1
    assert found[-1] > 0.7


def test_a_constant_reward_teaches_nothing_and_breaks_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    def constant(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [3.0] * len(completions)

    config = material.ppo_config(steps=2, kl=FixedKl(coef=0.0))
    for row in _run(tiny_model_dir, tmp_path, config, constant):
        assert all(math.isfinite(value) for value in row.values())
        assert row["score_std"] == 0.0
        assert row["reward_mean"] == pytest.approx(3.0, rel=1e-6)
    # One token each and a critic that knows: every advantage is equal, so every whitened one is 0.
    config = material.ppo_config(kl=FixedKl(coef=0.0), sampling=SamplingConfig(max_new_tokens=1))
    state, experience = _start(tiny_model_dir, config, constant)
    before = state.trunk.state(POLICY)
    known = replace(experience, values=torch.full_like(experience.values, 2.0))
    rewards = make_rewards(known, torch.full((8,), 3.0), config, 0.0)
    advantages, _ = gae(rewards, known.values, known.batch.completion_mask, gamma=1.0, gae_lambda=0.95)
    assert torch.equal(whiten(advantages, known.batch.completion_mask), torch.zeros_like(advantages))
    update(state, known, torch.full((8,), 3.0), config, step=0)
    after = state.trunk.state(POLICY)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_microbatches_change_neither_metrics_nor_weights(tiny_model_dir: Path) -> None:
    results: list[tuple[dict[str, float], dict[str, torch.Tensor]]] = []
    for size in (8192, 40):
        compute = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=size, chunk_tokens=size)
        config = material.ppo_config(compute=compute, minibatch_size=8, loss=PpoLossConfig(entropy_coef=0.01))
        state, experience = _start(tiny_model_dir, config)
        metrics = update(state, experience, score(experience, material.count_letter), config, step=0)
        assert (len(state.trunk.microbatches(experience.batch.lengths.tolist(), size)) > 1) == (size == 40)
        weights = {
            f"{role} {name}": value for role in (POLICY, CRITIC) for name, value in state.trunk.state(role).items()
        }
        results.append((metrics, weights))
    (one, weights_one), (many, weights_many) = results
    for name in one:
        assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    for name, value in weights_one.items():
        torch.testing.assert_close(weights_many[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("minibatch", "steps_an_epoch"), [(8, 1), (4, 2), (3, 3), (100, 1)])
def test_optimizer_steps_are_epochs_times_minibatches(
    minibatch: int, steps_an_epoch: int, tiny_model_dir: Path
) -> None:
    config = material.ppo_config(minibatch_size=minibatch, epochs=3)  # 4 prompts with 2 completions: 8 rollouts
    state, experience = _start(tiny_model_dir, config)
    metrics = update(state, experience, score(experience, material.count_letter), config, step=0)
    assert metrics["epochs_run"] == 3
    assert [optimizer.steps for optimizer in state.optimizers.values()] == [3 * steps_an_epoch] * 2
    assert [optimizer.total_steps for optimizer in state.optimizers.values()] == [4 * 3 * steps_an_epoch] * 2


def test_the_epochs_stop_when_the_policy_moved_too_far(tiny_model_dir: Path) -> None:
    fast = OptimizerConfig(learning_rate=0.1, eps=1e-5, warmup_fraction=0.0)
    runs: dict[float | None, dict[str, float]] = {}
    for limit in (None, 0.01):
        config = material.ppo_config(epochs=5, policy_optimizer=fast, approx_kl_limit=limit)
        state, experience = _start(tiny_model_dir, config)
        runs[limit] = update(state, experience, torch.randn(8), config, step=0)
    assert runs[None]["epochs_run"] == 5
    assert runs[0.01]["epochs_run"] < 5
    assert runs[0.01]["approx_kl_last"] > 0.01


def test_training_stops_when_the_kl_budget_is_spent_and_a_resumed_run_stops_there_too(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    fast = OptimizerConfig(learning_rate=3e-3)
    config = material.ppo_config(steps=4, policy_optimizer=fast, save_every=2)
    free = tmp_path / "free"
    _run(tiny_model_dir, free, config)
    spent = [row["kl_sequence"] for row in material.rows(free / "metrics.jsonl")]
    assert spent[2] > spent[1] > 0  # else another step must be looked at
    config = config.model_copy(update={"kl": config.kl.model_copy(update={"budget": spent[2]})})
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    _run(tiny_model_dir, whole, config)
    rows = material.rows(whole / "metrics.jsonl")
    assert [row["kl_sequence"] for row in rows] == spent[:2]
    assert read_json(whole / "manifest.json")["info"]["iterations"] == 2
    # Killed before the third step: its completions are drawn again, and the budget is found spent.
    with pytest.raises(material.Stopped):
        ppo(tiny_model_dir, material.prompts(), material.count_letter, halves, config, reporter=material.StopsAfter(2))
    _run(tiny_model_dir, halves, config)
    assert material.hashes(halves / "model") == material.hashes(whole / "model")
    assert material.rows(halves / "metrics.jsonl") == rows


@pytest.mark.parametrize(("target", "rises"), [(0.001, True), (1000.0, False)])
def test_the_adaptive_kl_coefficient_moves_toward_its_target(target: float, rises: bool, tiny_model_dir: Path) -> None:
    config = material.ppo_config(kl=AdaptiveKl(coef=0.2, target=target, horizon=100.0))
    state, experience = _start(tiny_model_dir, config)
    # As if the policy had left the reference: half a nat for each token drawn.
    moved = replace(experience, ref_logprobs=experience.old_logprobs - 0.5 * experience.batch.completion_mask)
    metrics = update(state, moved, score(moved, material.count_letter), config, step=1)
    assert metrics["kl_sequence"] == pytest.approx(0.5 * metrics["length_mean"], rel=1e-5)
    assert metrics["kl_coef"] == 0.2, "the step is charged with the coefficient it began with"
    # The error is clipped at 0.2 either way: 0.2 * (1 +- 0.2 * 8 episodes / 100).
    assert state.kl_coef == pytest.approx(0.2 * (1.016 if rises else 0.984), rel=1e-9)


def test_rewards_are_the_kl_cost_everywhere_and_the_score_at_the_end(tiny_model_dir: Path) -> None:
    config = material.ppo_config(score=ScoreConfig(clip=2.0, stop_penalty="subtract", stop_value=0.5))
    _, experience = _start(tiny_model_dir, config)
    stopped = torch.tensor([True, False] * 4)
    shifted = replace(experience, stopped=stopped, ref_logprobs=experience.old_logprobs - 0.25)
    rewards = make_rewards(shifted, torch.tensor([5.0, 1.0] * 4), config, kl_coef=0.1)
    for row in range(8):
        wanted = [0.0] * rewards.shape[1]
        places = experience.batch.completion_mask[row].nonzero().squeeze(1).tolist()
        for place in places:
            wanted[place] = -0.1 * 0.25
        # 5 is clipped to 2; 1 is a completion that was cut off: 1 - 0.5.
        wanted[places[-1]] += 2.0 if bool(stopped[row]) else 0.5
        assert rewards[row].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.fixture(scope="module")
def reward_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model on adapters of the tiny model."""
    out = tmp_path_factory.mktemp("reward")
    return train_reward(tiny_model_dir, material.pairs(32), out, material.reward_config())


def _prepared(model: Path, reward_dir: Path, config: PpoConfig) -> tuple[PpoState, RewardModel]:
    """Return a state whose base also carries the reward model."""
    reward = StoredRewardModel(reward_dir)
    state = prepare(model, reward, config)
    assert reward.model().trunk is state.trunk, "one base in memory"
    return state, reward.model()


def test_the_critic_starts_as_the_reward_model(tiny_model_dir: Path, reward_dir: Path) -> None:
    state, reward = _prepared(tiny_model_dir, reward_dir, material.ppo_config(tune=LoraConfig(rank=3)))
    asked = material.prompts(3)
    given = [material.completion_of(prompt, text) for prompt, text in zip(asked, ("eee", "a", "tree"), strict=True)]
    sequences = [reward.encode(prompt, item.message.content) for prompt, item in zip(asked, given, strict=True)]
    batch = pad(sequences)
    last = torch.arange(3), batch.last_index()
    with torch.no_grad():
        values = state.trunk.head(CRITIC, state.trunk.hidden(CRITIC, batch)[last])
    torch.testing.assert_close(values, torch.tensor(reward(asked, given)), rtol=1e-5, atol=1e-5)


def test_a_value_is_the_score_of_what_was_written_before_the_token(tiny_model_dir: Path, reward_dir: Path) -> None:
    config = material.ppo_config()
    state, reward = _prepared(tiny_model_dir, reward_dir, config)
    normalization = json.loads((reward_dir / "reward.json").read_text())
    experience = rollout(state.trunk, material.prompts(2), config, step=0)
    batch = experience.batch
    for row, place in batch.completion_mask.nonzero().tolist():
        before = Tokens(batch.ids[row, :place].tolist(), [])
        wanted = normalization["gain"] * float(reward.score_tokens([before])) + normalization["bias"]
        assert float(experience.values[row, place]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_policy_trained_in_full_has_a_critic_of_its_own(tiny_model_dir: Path, reward_dir: Path) -> None:
    state, _ = _prepared(tiny_model_dir, reward_dir, material.ppo_config(tune=FullConfig()))
    assert state.trunk.roles[CRITIC].full_model is not None
    assert state.trunk.roles[CRITIC].full_model is not state.trunk.roles[POLICY].full_model


def test_ppo_on_a_reward_model_leaves_the_reward_model_as_it_was(
    tiny_model_dir: Path, reward_dir: Path, tmp_path: Path
) -> None:
    asked = material.prompts(3)
    given = [material.completion_of(prompt, "free") for prompt in asked]
    before = load_reward(str(reward_dir), compute=material.COMPUTE)(asked, given)
    reward = StoredRewardModel(reward_dir)
    both = WeightedSum([(1.0, reward), (0.5, material.count_letter)])
    config = material.ppo_config(steps=2, score=ScoreConfig(stop_penalty="none", accept_chance=True))
    ppo(tiny_model_dir, material.prompts(), both, tmp_path, config)
    assert "policy" in reward.model().trunk.roles, "it was on the policy's base"
    assert reward(asked, given) == pytest.approx(before, rel=1e-5)


def test_two_reward_models_live_on_one_base(tiny_model_dir: Path, reward_dir: Path, tmp_path: Path) -> None:
    config = material.reward_config(tune=LoraConfig(rank=2), optimizer=OptimizerConfig(learning_rate=1e-2), seed=5)
    other_dir = train_reward(tiny_model_dir, material.pairs(16, seed=5), tmp_path / "other", config)
    asked = material.prompts(3)
    given = [material.completion_of(prompt, text) for prompt, text in zip(asked, ("eee", "a", "tree"), strict=True)]
    one, two = (load_reward(str(path), compute=material.COMPUTE)(asked, given) for path in (reward_dir, other_dir))
    both = WeightedSum([(1.0, StoredRewardModel(reward_dir)), (-2.0, StoredRewardModel(other_dir))])
    prepare(tiny_model_dir, both, material.ppo_config())
    wanted = [first - 2 * second for first, second in zip(one, two, strict=True)]
    assert both(asked, given) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_prompts_are_drawn_without_replacement_and_then_in_a_fresh_order() -> None:
    prompts = material.prompts(6)
    config = material.ppo_config(prompts_per_step=4)
    drawn = [prompt.id for step in range(6) for prompt in draw_prompts(prompts, config, step)]
    laps = [drawn[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(lap) == sorted(prompt.id for prompt in prompts) for lap in laps)
    assert any(one != other for one, other in itertools.pairwise(laps))


def test_what_is_rewarded_is_what_the_samples_file_shows(tiny_model_dir: Path, tmp_path: Path) -> None:
    _run(tiny_model_dir, tmp_path, material.ppo_config(steps=2, num_samples=3))
    found = material.rows(tmp_path / "samples.jsonl")
    assert [row["step"] for row in found] == [1, 1, 1, 2, 2, 2]
    for row in found:
        assert row["score"] == row["completion"].count(material.LETTER)
        assert row["finish_reason"] in {"stop", "length"}


def _scores(case: str) -> Reward:
    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        values = material.count_letter(prompts, completions)
        for index, prompt in enumerate(prompts):
            if prompt.id == material.prompts()[2].id:
                if case == "raises":
                    raise KeyError("no such word")
                if case == "nan":
                    values[index] = math.nan
        return values[1:] if case == "short" else values

    return reward


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("raises", r"raised KeyError.* for prompt \"prompt 'tell ccc'\""),
        ("nan", r"returned nan for prompt \"prompt 'tell ccc'\""),
        ("short", r"returned 11 scores for 12 completions \(prompts "),
    ],
)
def test_a_reward_that_fails_stops_the_run_and_names_the_prompt(
    case: str, message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = material.ppo_config(prompts_per_step=6)  # all six prompts, each twice
    with pytest.raises(RewardError, match=message):
        ppo(tiny_model_dir, material.prompts(), _scores(case), tmp_path, config)


def test_ppo_without_prompts_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompts"):
        ppo(tiny_model_dir, [], material.count_letter, tmp_path, material.ppo_config())


def test_a_prompt_that_leaves_no_room_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    long = material.prompt("x" * 252)  # the tiny model's context is 256, 6 of them for the completion
    with pytest.raises(DataError, match=r"x'\" has 252 tokens, the limit is 250"):
        ppo(tiny_model_dir, [long], material.count_letter, tmp_path, material.ppo_config())
