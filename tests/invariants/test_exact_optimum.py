"""PPO finds the best policy there is, where that can be computed: pi* = pi_ref exp(value / beta) / Z.

Where every completion can be listed, the policy that maximizes E[value] - beta KL(policy || reference) is known
exactly (arXiv:1909.08593, section 2.2; arXiv:2305.18290, eq. 4). The test lists them, in fp64 and with the model's own
forward pass, and knows nothing of Harken's losses. A wrong sign, a missing KL term, a shift by one or a biased
advantage ends elsewhere.
"""

from pathlib import Path

import pytest
import torch

from harken.config import (
    ChatConfig,
    ComputeConfig,
    FixedKl,
    FullConfig,
    OptimizerConfig,
    PpoConfig,
    SamplingConfig,
    ScoreConfig,
)
from harken.policy.ppo import prepare, update
from harken.policy.rollout import POLICY, rollout, score
from tests.invariants.toy import Optimum, World

BETA = 0.5


def _config(world: World, steps: int, episodes: int, seed: int) -> PpoConfig:
    def rate(peak: float) -> OptimizerConfig:
        return OptimizerConfig(learning_rate=peak, eps=1e-5, warmup_fraction=0.0)

    return PpoConfig(
        steps=steps,
        prompts_per_step=1,
        completions_per_prompt=episodes,
        epochs=4,
        minibatch_size=episodes,
        sampling_batch_size=episodes,
        approx_kl_limit=None,
        sampling=SamplingConfig(max_new_tokens=world.length),
        kl=FixedKl(coef=BETA),
        score=ScoreConfig(stop_penalty="none"),
        tune=FullConfig(),
        policy_optimizer=rate(1e-3),
        critic_optimizer=rate(4e-3),
        chat=ChatConfig(template="raw"),
        compute=ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=65536, chunk_tokens=65536),
        seed=seed,
    )


def _train(world: World, config: PpoConfig, folder: Path) -> tuple[Optimum, torch.Tensor]:
    """Return the optimum, and the log-probabilities of all sequences under the trained policy."""
    state = prepare(world.save_model(folder, config.seed), world.reward, config)
    exact = Optimum.of(world, world.logprobs(state.trunk.network(None)), BETA)
    for step in range(config.steps):
        experience = rollout(state.trunk, [world.prompt], config, step=step)
        update(state, experience, score(experience, world.reward), config, step=step)
    return exact, world.logprobs(state.trunk.network(POLICY))


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


def test_ppo_reaches_the_exact_optimum_of_a_small_world(tmp_path: Path) -> None:
    # Measured over seeds 0, 1, 2: KL 0.0032, 0.0025, 0.0024, from 0.82 at the start; 4.5 s.
    world = World(num_tokens=4, length=3)
    exact, policy = _train(world, _config(world, steps=40, episodes=128, seed=1), tmp_path / "model")
    assert exact.divergence(exact.reference) > 0.5
    assert exact.divergence(policy) < 0.01
    assert exact.best - exact.objective(policy) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_reaches_the_exact_optimum(seed: int, tmp_path: Path) -> None:
    world = World(num_tokens=6, length=4)
    exact, policy = _train(world, _config(world, steps=100, episodes=512, seed=seed), tmp_path / "model")
    assert exact.divergence(exact.reference) > 0.5
    assert exact.divergence(policy) < 0.01
    assert exact.best - exact.objective(policy) < 0.01
