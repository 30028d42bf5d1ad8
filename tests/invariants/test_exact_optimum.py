"""PPO and its kin find the best policy there is, where that can be computed: pi* = pi_ref exp(value / beta) / Z.

Where every completion can be listed, the policy that maximizes E[value] - beta KL(policy || reference) is known
exactly (arXiv:1909.08593, section 2.2; arXiv:2305.18290, eq. 4). The test lists them, in fp64 and with the model's own
forward pass, and knows nothing of Harken's losses. A wrong sign, a missing KL term, a shift by one or a biased
advantage ends elsewhere. With the KL as a loss every method ends elsewhere too; where, is derived in
`toy.kl_loss_fixed_point` and reached here.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from harken.config import (
    ChatConfig,
    ComputeConfig,
    FixedKl,
    FullConfig,
    GroupConfig,
    OptimizerConfig,
    PpoConfig,
    PpoLossConfig,
    ReinforceConfig,
    ReinforceLossConfig,
    RlooConfig,
    SamplingConfig,
    ScoreConfig,
)
from harken.policy.ppo import prepare
from harken.policy.rollout import POLICY, rollout, score
from harken.policy.update import update
from tests.invariants.toy import Optimum, World, group_fixed_point, kl_loss_fixed_point

BETA = 0.5
SMALL = World(num_tokens=4, length=3)

# What differs from PPO, and the steps that take each there.
KIN: dict[str, tuple[int, dict[str, Any]]] = {
    "ppo": (60, {}),
    "rloo": (120, {"advantage": RlooConfig(), "loss": ReinforceLossConfig(), "epochs": 1}),
    "dr-grpo": (60, {"advantage": GroupConfig(divide_by_std=False), "loss": PpoLossConfig(aggregation="constant")}),
    "reinforce-pp": (160, {"advantage": ReinforceConfig()}),
}


def _config(world: World, steps: int, episodes: int, seed: int, **changes: Any) -> PpoConfig:
    def rate(peak: float) -> OptimizerConfig:
        return OptimizerConfig(learning_rate=peak, eps=1e-5, warmup_fraction=0.0)

    settings: dict[str, Any] = {
        "steps": steps,
        "prompts_per_step": 1,
        "completions_per_prompt": episodes,
        "epochs": 4,
        "minibatch_size": episodes,
        "sampling_batch_size": episodes,
        "approx_kl_limit": None,
        "sampling": SamplingConfig(max_new_tokens=world.length),
        "kl": FixedKl(coef=BETA),
        "score": ScoreConfig(stop_penalty="none"),
        "tune": FullConfig(),
        "policy_optimizer": rate(1e-3),
        "critic_optimizer": rate(4e-3),
        "chat": ChatConfig(template="raw"),
        "compute": ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=65536, chunk_tokens=65536),
        "seed": seed,
    }
    return PpoConfig(**(settings | changes))


def _train(world: World, config: PpoConfig, folder: Path) -> tuple[Optimum, torch.Tensor]:
    """Return the optimum, and the log-probabilities of all sequences under the trained policy."""
    state = prepare(world.save_model(folder, config.seed), world.reward, config)
    exact = Optimum.of(world, world.logprobs(state.trunk.network(None)), config.kl.coef)
    for step in range(config.steps):
        experience = rollout(state.trunk, [world.prompt], config, step=step)
        update(state, experience, score(experience, world.reward), config, step=step)
    return exact, world.logprobs(state.trunk.network(POLICY))


def _assert_optimal(exact: Optimum, policy: torch.Tensor) -> None:
    assert exact.divergence(exact.reference) > 0.5
    assert exact.divergence(policy) < 0.01
    assert exact.best - exact.objective(policy) < 0.01


def test_enumeration_agrees_with_itself() -> None:
    # For any policy the objective falls short of the best by beta KL(policy || optimum).
    world = World(num_tokens=4, length=3)
    generator = torch.Generator().manual_seed(0)
    reference, policy = torch.randn(2, 64, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = Optimum.of(world, reference, BETA)
    assert exact.best - exact.objective(policy) == pytest.approx(BETA * exact.divergence(policy), rel=1e-9)
    assert exact.divergence(exact.logprobs) == pytest.approx(0.0, abs=1e-12)
    # (0, 1, 2): one token 0 of 3 (expected 3/4) and two ascents (expected 2 * 3/8).
    assert world.value((0, 1, 2)) == pytest.approx(0.7 * (1 - 0.75) + 0.5 * (2 - 0.75), rel=1e-12)
    assert float(exact.values.sum()) == pytest.approx(0.0, abs=1e-9)


def test_fixed_points_of_kl_losses_are_where_they_are_said_to_be() -> None:
    # One token: none stands before another, so the KL as a loss is the KL in the reward, and k2 ends at the optimum.
    world = World(num_tokens=4, length=1)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    exact = Optimum.of(world, reference, BETA)
    torch.testing.assert_close(kl_loss_fixed_point(world, exact, BETA, "k2"), exact.logprobs)
    # k3: where the gradient of E[value] - beta KL(ref || pi) over the simplex is the same for all tokens.
    policy = kl_loss_fixed_point(world, exact, BETA, "k3").exp()
    slopes = exact.values + BETA * reference.exp() / policy
    torch.testing.assert_close(slopes, slopes.mean().expand_as(slopes))
    # Longer ones end elsewhere, and short of the best.
    reference = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    exact = Optimum.of(SMALL, reference, BETA)
    for estimator in ("k2", "k3"):
        point = kl_loss_fixed_point(SMALL, exact, BETA, estimator)
        assert float(point.exp().sum()) == pytest.approx(1.0, rel=1e-9)
        assert exact.best - exact.objective(point) > 1e-3


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_the_exact_optimum_of_a_small_world_is_reached(name: str, tmp_path: Path) -> None:
    # Measured at seed 0: KL 0.0032 (PPO) and 0.0031 (RLOO), from 0.82 at the start; 4.5 and 1.7 s.
    config = _config(SMALL, 40, 128, 0, **KIN[name][1])
    _assert_optimal(*_train(SMALL, config, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.5, 0.2])
@pytest.mark.parametrize("name", KIN)
def test_every_kin_reaches_the_exact_optimum(name: str, beta: float, seed: int, tmp_path: Path) -> None:
    steps, changes = KIN[name]
    config = _config(SMALL, steps, 256, seed, kl=FixedKl(coef=beta), **changes)
    _assert_optimal(*_train(SMALL, config, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_reaches_the_exact_optimum_of_a_larger_world(seed: int, tmp_path: Path) -> None:
    world = World(num_tokens=6, length=4)
    _assert_optimal(*_train(world, _config(world, steps=100, episodes=512, seed=seed), tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_a_kl_loss_ends_at_its_own_fixed_point(estimator: Any, seed: int, tmp_path: Path) -> None:
    kl = FixedKl(coef=BETA, estimator=estimator, place="loss")
    config = _config(SMALL, 150, 256, seed, kl=kl, epochs=1, advantage=GroupConfig(divide_by_std=False))
    exact, policy = _train(SMALL, config, tmp_path / "model")
    point = kl_loss_fixed_point(SMALL, exact, BETA, estimator)
    assert float((policy.exp() * (policy - point)).sum()) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_grpo_ends_at_its_own_fixed_point(seed: int, tmp_path: Path) -> None:
    kl = FixedKl(coef=BETA, estimator="k3", place="loss")
    loss = PpoLossConfig(aggregation="sequence_mean")
    config = _config(SMALL, 150, 256, seed, kl=kl, epochs=1, advantage=GroupConfig(), loss=loss)
    exact, policy = _train(SMALL, config, tmp_path / "model")
    point = group_fixed_point(SMALL, exact, "k3")
    assert float((policy.exp() * (policy - point)).sum()) < 0.01
    # A spread of about 0.5 makes beta 0.5 count as half of that: the point is beyond the optimum.
    assert exact.best - exact.objective(point) > 0.03
