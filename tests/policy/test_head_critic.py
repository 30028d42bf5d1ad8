"""A critic that is a head on the reference's states: one fit an iteration, to what the reference's pass gave anyway."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from harken.config import FixedKl, FullConfig, GaeConfig, LoraConfig, OptimizerConfig, PpoConfig, Tune, ValueConfig
from harken.lm.forward import completion_values
from harken.policy.ppo import ppo, prepare
from harken.policy.rollout import CRITIC, POLICY, rollout, score
from harken.policy.update import update
from harken.records import Completion, Prompt
from tests.policy import material


def likes_long_prompts(prompts: Sequence[Prompt], _: Sequence[Completion]) -> list[float]:
    return [float(len(prompt.messages[-1].content)) for prompt in prompts]


@pytest.mark.parametrize("tune", [LoraConfig(rank=4), LoraConfig(rank=4, top_layers=1), FullConfig()])
def test_the_head_is_fitted_to_the_reference_s_states(tune: Tune, tiny_model_dir: Path) -> None:
    config = material.ppo_config(
        value=ValueConfig(critic="head", fit_ridge=5.0),
        advantage=GaeConfig(gae_lambda=1.0),
        kl=FixedKl(coef=0.0),
        tune=tune,
    )
    state = prepare(tiny_model_dir, likes_long_prompts, config)
    assert set(state.optimizers) == {POLICY}, "nothing of the critic is trained"
    assert set(state.trunk.parameters(CRITIC)) == {"head.weight", "head.bias"}
    experience = rollout(state.trunk, material.prompts(4), config, step=0)
    assert not experience.values.any(), "nothing is foreseen before the first rollout"
    # Without a KL the return of each token is the completion's score.
    scores, mask = score(experience, likes_long_prompts), experience.batch.completion_mask
    with torch.no_grad():
        hidden = state.trunk.hidden(None, experience.batch)
    x, y = hidden[:, :-1][mask[:, 1:]].double(), scores[:, None].expand_as(mask)[mask].double()
    x_mean, y_mean = x.mean(0), y.mean()
    system = (x - x_mean).T @ (x - x_mean)
    system += 5.0 * (x - x_mean).square().mean() * torch.eye(x.shape[1], dtype=torch.float64)
    wanted = (x - x_mean) @ (torch.linalg.inv(system) @ (x - x_mean).T @ (y - y_mean)) + y_mean

    metrics = update(state, experience, scores, config, step=0)
    assert "grad_norm_critic" not in metrics
    assert metrics["explained_variance"] == 0.0, "of the values before the update"
    assert metrics["value_loss"] == pytest.approx(0.5 * float((wanted - y).square().mean()), rel=1e-3)
    with torch.no_grad():
        found = completion_values(state.trunk, CRITIC, experience.batch)[mask].double()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    # The next rollout's values are those of the fitted head.
    later = rollout(state.trunk, material.prompts(4), config, step=1)
    with torch.no_grad():
        fresh = completion_values(state.trunk, CRITIC, later.batch)
    torch.testing.assert_close(later.values, fresh, rtol=1e-4, atol=1e-5)


def test_it_foresees_returns_it_has_not_seen(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.ppo_config(
        steps=6,
        prompts_per_step=8,
        completions_per_prompt=8,
        value=ValueConfig(critic="head", fit_ridge=30.0),
        policy_optimizer=OptimizerConfig(learning_rate=1e-5),
    )
    ppo(tiny_model_dir, material.prompts(), likes_long_prompts, tmp_path, config)
    explained = [row["explained_variance"] for row in material.rows(tmp_path / "metrics.jsonl")]
    assert explained[0] == 0.0
    assert min(explained[2:]) > 0.1, explained


def test_a_head_is_fitted_in_any_units() -> None:
    with pytest.raises(ValueError, match="any units"):
        ValueConfig(critic="head", normalize=True)
    with pytest.raises(ValueError, match=r"clip, huber_delta: .*any units"):
        ValueConfig(critic="head", huber_delta=10.0, clip=1.0)
    with pytest.raises(ValueError, match=r"critic_optimizer: .*fitted"):
        PpoConfig(critic_optimizer=OptimizerConfig(learning_rate=1.0))
