"""DPO, IPO and online DPO find the policies that they are said to, where these can be computed.

With labels sigmoid(value(a) - value(b)) the minimum of DPO's loss, on any pairs, is pi_ref exp(value / beta) / Z, which
is PPO's optimum too (arXiv:2305.18290, section 4). That of IPO, on pairs drawn independently from mu, is
pi_ref exp(E_{b ~ mu}[P(a beats b)] / tau) / Z (arXiv:2310.12036, eq. 7 and proposition 3).
"""

from pathlib import Path

import pytest
import torch

from harken.config import DpoConfig, DpoLossConfig, IpoLossConfig
from tests.invariants.exact_runs import (
    BETAS,
    SMALL,
    learn_from_pairs,
    learn_online,
    online_config,
    run,
    shared_settings,
)
from tests.invariants.toy import Optimum

SEEDS = range(5)


def _assert_reached(exact: Optimum, policy: torch.Tensor) -> None:
    # IPO's optimum is nearer than DPO's: its tilt is at most 1 / tau.
    assert exact.divergence(policy) < min(0.01, 0.1 * exact.divergence(exact.reference))
    assert exact.best - exact.objective(policy) < 0.01


@pytest.mark.parametrize("loss", [DpoLossConfig(beta=0.5), IpoLossConfig(beta=0.2)], ids=["dpo", "ipo"])
def test_offline_losses_reach_their_optimum_in_a_small_world(
    loss: DpoLossConfig | IpoLossConfig, tmp_path: Path
) -> None:
    config = DpoConfig(loss=loss, **shared_settings(2e-3, 1))
    _assert_reached(*learn_from_pairs(SMALL, config, tmp_path / "model", steps=60, pairs=128))


def test_online_dpo_reaches_the_optimum_of_ppo_in_a_small_world(tmp_path: Path) -> None:
    config = online_config(SMALL, 0.5, 1, steps=35, pairs=128)
    _assert_reached(*learn_online(SMALL, config, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", ["dpo", "ipo", "online-dpo"])
def test_losses_on_preferences_reach_their_optimum(name: str, beta: float, seed: int, tmp_path: Path) -> None:
    found = run(name, beta, seed, tmp_path / "model")
    # IPO's optimum is nearer than DPO's: its tilt is at most 1 / tau.
    assert found["kl"] < min(0.01, 0.1 * found["start"])
    assert found["gap"] < 0.01
    assert found["below"] < 0.01
