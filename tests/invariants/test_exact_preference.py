"""DPO, IPO and online DPO find the policies that they are said to, where these can be computed.

With labels sigmoid(value(a) - value(b)) the minimum of DPO's loss, on any pairs, is pi_ref exp(value / beta) / Z, which
is PPO's optimum too (arXiv:2305.18290, section 4). That of IPO, on pairs drawn independently from mu, is
pi_ref exp(E_{b ~ mu}[P(a beats b)] / tau) / Z (arXiv:2310.12036, eq. 7 and proposition 3).
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from harken.config import (
    ChatConfig,
    ComputeConfig,
    DpoConfig,
    DpoLossConfig,
    FullConfig,
    IpoLossConfig,
    OnlineDpoConfig,
    OptimizerConfig,
    SamplingConfig,
)
from harken.lm.batch import Tokens
from harken.lm.load import load_model
from harken.lm.optim import Optimizer
from harken.lm.trunk import Trunk
from harken.policy.online_dpo import draw, judged, learn, prepare
from harken.policy.preference_step import Examples, train_step
from harken.policy.sft import ROLE
from tests.invariants.toy import START, Optimum, World

SMALL, LARGE = World(num_tokens=4, length=3), World(num_tokens=6, length=4)
SEEDS = range(5)
BETAS = (0.5, 0.2)
COMPUTE = ComputeConfig(dtype="float32", device="cpu", microbatch_tokens=65536, chunk_tokens=65536)


def _shared_settings(peak: float, seed: int) -> dict[str, Any]:
    return {
        "tune": FullConfig(),
        "optimizer": OptimizerConfig(learning_rate=peak, warmup_fraction=0.05, schedule="cosine"),
        "chat": ChatConfig(template="raw"),
        "compute": COMPUTE,
        "seed": seed,
    }


def _offline(world: World, config: DpoConfig, folder: Path, *, steps: int, pairs: int) -> tuple[Optimum, torch.Tensor]:
    """Learn from pairs of uniform completions; return the optimum and the policy."""
    folder = world.save_model(folder, config.seed)
    trunk = Trunk(load_model(folder, compute=config.compute, chat=config.chat))
    trunk.add_role(ROLE, config.tune, seed=0)
    optimizer = Optimizer(trunk.parameters(ROLE), config.optimizer, steps)
    exact = Optimum.of(world, world.logprobs(trunk.network(None)), config.loss.beta)  # pyright: ignore[reportAttributeAccessIssue]
    chances = torch.sigmoid(exact.values[:, None] - exact.values[None, :])
    sequences = world.sequences()
    rng = random.Random(config.seed)
    for _ in range(steps):
        drawn = [(rng.randrange(len(sequences)), rng.randrange(len(sequences))) for _ in range(pairs)]
        groups = [tuple(Tokens([START], list(sequences[row])) for row in pair) for pair in drawn]
        labels = torch.tensor([chances[one, other] for one, other in drawn], dtype=torch.float32)
        reference = exact.reference[torch.tensor(drawn)].float()
        train_step(trunk, optimizer, Examples(groups, reference, labels, torch.ones(pairs), False), config)
    if isinstance(config.loss, IpoLossConfig):
        # The tilt is the chance to beat a uniform completion, over tau.
        exact = Optimum(chances.mean(1), exact.reference, config.loss.beta)
    return exact, world.logprobs(trunk.network(ROLE))


def _online(world: World, config: OnlineDpoConfig, folder: Path) -> tuple[Optimum, torch.Tensor]:
    state = prepare(world.save_model(folder, config.seed), [world.prompt], world.reward, config)
    exact = Optimum.of(world, world.logprobs(state.trunk.network(None)), config.loss.beta)  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(config.steps):
        drawn = draw(state, [world.prompt] * config.prompts_per_step, config, step=step)
        examples, _ = judged(drawn, world.reward, config, shared=state.shared)
        learn(state, examples, config, step=step)
    return exact, world.logprobs(state.trunk.network(ROLE))


def _online_config(world: World, beta: float, seed: int, *, steps: int, pairs: int) -> OnlineDpoConfig:
    return OnlineDpoConfig(
        steps=steps,
        prompts_per_step=pairs,
        epochs=2,
        minibatch_size=pairs,
        sampling_batch_size=2 * pairs,
        sampling=SamplingConfig(max_new_tokens=world.length),
        loss=DpoLossConfig(beta=beta),
        **_shared_settings(2e-3, seed),
    )


def _assert_reached(exact: Optimum, policy: torch.Tensor) -> None:
    # IPO's optimum is nearer than DPO's: its tilt is at most 1 / tau.
    assert exact.divergence(policy) < min(0.01, 0.1 * exact.divergence(exact.reference))
    assert exact.best - exact.objective(policy) < 0.01


@pytest.mark.parametrize("loss", [DpoLossConfig(beta=0.5), IpoLossConfig(beta=0.2)], ids=["dpo", "ipo"])
def test_offline_losses_reach_their_optimum_in_a_small_world(
    loss: DpoLossConfig | IpoLossConfig, tmp_path: Path
) -> None:
    config = DpoConfig(loss=loss, **_shared_settings(2e-3, 1))
    _assert_reached(*_offline(SMALL, config, tmp_path / "model", steps=60, pairs=128))


def test_online_dpo_reaches_the_optimum_of_ppo_in_a_small_world(tmp_path: Path) -> None:
    config = _online_config(SMALL, 0.5, 1, steps=35, pairs=128)
    _assert_reached(*_online(SMALL, config, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("loss", [DpoLossConfig, IpoLossConfig], ids=["dpo", "ipo"])
def test_offline_losses_reach_their_optimum(
    loss: type[DpoLossConfig] | type[IpoLossConfig], beta: float, seed: int, tmp_path: Path
) -> None:
    config = DpoConfig(loss=loss(beta=beta), **_shared_settings(2e-3, seed))
    _assert_reached(*_offline(LARGE, config, tmp_path / "model", steps=400, pairs=256))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", BETAS)
def test_online_dpo_reaches_the_optimum_of_ppo(beta: float, seed: int, tmp_path: Path) -> None:
    config = _online_config(LARGE, beta, seed, steps=120, pairs=256)
    _assert_reached(*_online(LARGE, config, tmp_path / "model"))
