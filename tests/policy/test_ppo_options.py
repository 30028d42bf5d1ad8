"""PPO's options: each does what it is named for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.config import (
    ChatConfig,
    FixedKl,
    FullConfig,
    GaeConfig,
    OptimizerConfig,
    PpoLossConfig,
    PtxConfig,
    RemaxConfig,
    RlooConfig,
    SamplingConfig,
    ScoreConfig,
    ValueConfig,
    preset,
)
from harken.core.moments import Moments, denormalize
from harken.errors import ConfigError, DataError, RewardError
from harken.lm.forward import completion_values
from harken.policy.ppo import ppo, prepare
from harken.policy.rollout import CRITIC, POLICY, draw_prompts, rollout, score
from harken.policy.targets import make_rewards, make_targets
from harken.policy.update import update
from harken.records import Completion, Prompt
from tests.cli.calling import write_rows
from tests.policy import material
from tests.policy.learning import learn, lengths, start

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
    config = material.ppo_config(value=ValueConfig(critic="own", warmup_steps=1))
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
        value=ValueConfig(critic="own", normalize=True, normalize_decay=0.5),
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
        value=ValueConfig(critic="own", normalize=normalize, clip=1e9, huber_delta=10.0, normalize_decay=0.9),
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
