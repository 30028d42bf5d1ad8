"""The policy losses of GRPO, Dr. GRPO, DAPO, GSPO, CISPO and RLOO equal those of TRL's trainers on shared
log-probabilities, value and gradient. TRL has no PPO any more, but its clipped loss is the one of `dapo`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from harken.config import CispoLossConfig, GspoLossConfig, PolicyLoss, PpoLossConfig, ReinforceLossConfig
from harken.core.aggregate import masked_sum, row_weights
from harken.core.importance import truncated_importance_weights
from harken.core.kl import kl_loss_terms
from harken.core.policy_loss import entropy_bonus
from harken.policy.update import policy_loss
from tests.core.test_preference_against_trl import Defaults

ROWS, LENGTH, LIMIT, CAP = 6, 7, 9, 1.2


def _sample() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(ROWS, LENGTH, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([7, 1, 4, 6, 2, 5])
    return {
        "old": old,
        "policy": old + 0.3 * torch.randn(old.shape, generator=generator, dtype=torch.float64),
        "ref": old + 0.5 * torch.randn(old.shape, generator=generator, dtype=torch.float64),
        "mask": torch.arange(LENGTH) < sizes[:, None],
        "advantages": torch.randn(ROWS, generator=generator, dtype=torch.float64),
        "entropy": torch.rand(old.shape, generator=generator, dtype=torch.float64),
        "sampler": old + 0.4 * torch.randn(old.shape, generator=generator, dtype=torch.float64),
    }


def _theirs(trainer: Any, policy: Tensor, sample: dict[str, Tensor], **settings: Any) -> Tensor:
    """Return TRL's loss; a stand-in for the trainer has the settings, and answers with our log-probabilities."""
    mask = sample["mask"]
    usual: dict[str, Any] = {
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "top_entropy_quantile": 1.0,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": LIMIT,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (policy, sample["entropy"], None),  # pyright: ignore[reportUnknownLambdaType]
    }
    names = ("delta", "use_bias_correction_kl", "steps_per_generation")
    arguments = Defaults(**{name: settings.pop(name) for name in names if name in settings})
    self = Defaults.of(args=arguments, **(usual | settings))
    self.accelerator.num_processes = 1
    self.accelerator.reduce = lambda x, **_: x  # pyright: ignore[reportUnknownLambdaType]
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": sample["advantages"],
        "old_per_token_logps": sample["old"],
        "old_logps": (sample["old"] * mask).sum(1),
        "ref_per_token_logps": sample["ref"],
        "num_items_in_batch": mask.sum(),
        "importance_sampling_ratio": (sample["old"] - sample["sampler"]).exp().clamp(max=CAP),
    }
    return trainer._compute_loss(self, None, inputs)


def _ours(
    policy: Tensor,
    sample: dict[str, Tensor],
    settings: PolicyLoss,
    kl_coef: float = 0.0,
    *,
    weights: Tensor | float = 1.0,
) -> Tensor:
    mask, count = sample["mask"], float(sample["mask"].sum())
    rows = row_weights(mask, settings.aggregation, length=1 if settings.kind == "reinforce" else LIMIT)
    advantages = sample["advantages"][:, None].expand_as(policy) * rows * weights
    loss = policy_loss(policy, sample["old"], advantages, mask, settings, count).loss
    if kl_coef:
        terms = kl_loss_terms(policy, sample["old"], sample["ref"], mask, estimator="k3")
        loss = loss + kl_coef * masked_sum(terms * rows, mask, count)
    return loss


def _compare(trainer: Any, settings: PolicyLoss, sample: dict[str, Tensor], **trl: Any) -> None:
    found: list[Tensor] = []
    for number in range(2):
        policy = sample["policy"].clone().requires_grad_()
        loss = _theirs(trainer, policy, sample, **trl) if number else _ours(policy, sample, settings)
        torch.autograd.backward(loss)
        assert policy.grad is not None
        found += [loss.detach(), policy.grad]
    torch.testing.assert_close(found[0], found[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], found[3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "trl"),
    [
        (PpoLossConfig(aggregation="sequence_mean"), {"loss_type": "grpo"}),
        (PpoLossConfig(clip_high=0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
        # The batch is one microbatch; TRL's divisor is that of the microbatch, ours that of the optimizer step.
        (PpoLossConfig(), {"loss_type": "bnpo"}),
        (PpoLossConfig(aggregation="constant"), {"loss_type": "dr_grpo"}),
        (PpoLossConfig(dual_clip=1.3), {"loss_type": "dapo", "delta": 1.3}),
        (
            GspoLossConfig(clip_low=0.03, clip_high=0.04, aggregation="sequence_mean"),
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon_low": 0.03,
                "epsilon_high": 0.04,
            },
        ),
        (CispoLossConfig(clip_high=0.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
    ],
    ids=["grpo", "dapo", "bnpo", "dr-grpo", "dual-clip", "gspo", "cispo"],
)
def test_losses_of_grpo_and_its_kin_equal_those_of_trl(settings: PolicyLoss, trl: dict[str, Any]) -> None:
    _compare(GRPOTrainer, settings, _sample(), **trl)


def test_the_value_of_the_kl_as_a_loss_equals_that_of_trl() -> None:
    # With the ratio in front, which TRL has as an option; its gradient goes through that ratio, ours does not
    # (core/kl.py), so only where the policy drew do both have the value of TRL's default.
    sample, settings = _sample(), PpoLossConfig()
    kl: dict[str, Any] = {"loss_type": "dapo", "beta": 0.3}
    corrected = _theirs(GRPOTrainer, sample["policy"], sample, **kl, use_bias_correction_kl=True)
    torch.testing.assert_close(_ours(sample["policy"], sample, settings, 0.3), corrected, rtol=1e-6, atol=1e-6)
    usual = _theirs(GRPOTrainer, sample["old"], sample, **kl)
    torch.testing.assert_close(_ours(sample["old"], sample, settings, 0.3), usual, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo", "cispo"])
def test_weights_for_a_foreign_sampler_act_as_in_trl(kind: str) -> None:
    # TRL multiplies the loss of a token by its truncated weight, Harken its advantage: the same, cispo's too.
    sample, aggregation = _sample(), {"grpo": "sequence_mean", "dr_grpo": "constant"}.get(kind, "token_mean")
    sizes: dict[str, Any] = {"loss_type": kind, "epsilon_high": 1.2 if kind == "cispo" else 0.2}
    theirs = _theirs(
        GRPOTrainer,
        sample["policy"],
        sample,
        **sizes,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
    )
    weights, _ = truncated_importance_weights(sample["old"], sample["sampler"], sample["mask"], cap=CAP)
    loss = CispoLossConfig if kind == "cispo" else PpoLossConfig
    settings = loss(aggregation=aggregation, clip_high=0.2)  # pyright: ignore[reportArgumentType]
    ours = _ours(sample["policy"], sample, settings, weights=weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_entropy_bonus_equals_that_of_trl() -> None:
    sample, settings = _sample(), PpoLossConfig()
    usual: dict[str, Any] = {"loss_type": "dapo"}
    plain = _theirs(GRPOTrainer, sample["policy"], sample, **usual)
    with_bonus = _theirs(GRPOTrainer, sample["policy"], sample, **usual, _entropy_bonus_enabled=True, entropy_coef=0.3)
    bonus = entropy_bonus(sample["entropy"], sample["mask"], sample["mask"].sum())
    torch.testing.assert_close(plain - with_bonus, 0.3 * bonus, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(_ours(sample["policy"], sample, settings), plain, rtol=1e-6, atol=1e-6)


def test_the_loss_of_rloo_has_the_gradient_of_trl_where_the_policy_drew() -> None:
    # TRL clips a ratio of whole completions; at ratio 1 that is REINFORCE, summed over a completion's tokens.
    sample = _sample()
    sample["policy"] = sample["old"]
    found: list[Tensor] = []
    for number in range(2):
        policy = sample["policy"].clone().requires_grad_()
        settings = ReinforceLossConfig(aggregation="constant")
        loss = _theirs(RLOOTrainer, policy, sample) if number else _ours(policy, sample, settings)
        torch.autograd.backward(loss)
        assert policy.grad is not None
        found.append(policy.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
