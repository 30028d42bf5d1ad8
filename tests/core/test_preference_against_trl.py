"""The losses equal those of TRL's trainers, called on shared log-probabilities.

TRL computes its losses inside methods of its trainers. They are called here as they are, with a stand-in for the
trainer that has only the settings they read, and one for the model: it answers with log-probabilities that we made up.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

from harken.core.kto_loss import Labeled, kto_baseline, kto_loss
from harken.core.preference_loss import (
    Pairs,
    conservative_labels,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    orpo_loss,
    robust_labels,
    simpo_loss,
)
from harken.core.reward_loss import bradley_terry_loss

COUNT, LENGTH = 5, 8
# They take any tensors, and say that they take torch.FloatTensor, which no tensor is.
TRL_CPO: Any = CPOTrainer.cpo_loss
TRL_ORPO: Any = ORPOTrainer.odds_ratio_loss
TRL_REWARD: Any = RewardTrainer.compute_loss


class Defaults(SimpleNamespace):
    """Settings of a trainer; what is not set is off."""

    def __getattr__(self, name: str) -> Any:
        return None

    @classmethod
    def of(cls, **settings: Any) -> Any:
        accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
        metrics = {"train": Metrics(), "eval": Metrics()}
        model = SimpleNamespace(training=False)
        return cls(accelerator=accelerator, model=model, _metrics=metrics, precompute_ref_logps=True, **settings)


class Metrics(dict[str, list[float]]):
    """What TRL logs into."""

    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


def _same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def _tokens(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Mask (rows, LENGTH + 1), its first column a prompt; log-probabilities (rows, LENGTH) of the tokens after it."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (rows, 1), generator=generator)
    mask = torch.arange(LENGTH + 1)[None] <= lengths
    mask[:, 0] = False
    logprobs = (torch.rand(rows, LENGTH, generator=generator, dtype=torch.float64) * -3 - 0.01) * mask[:, 1:]
    return mask.long(), logprobs


def _model(logprobs: Tensor) -> Any:
    rest = {"entropy": logprobs, "mean_logits": logprobs, "is_top1": logprobs > 0}
    return lambda **_: SimpleNamespace(log_probs=logprobs, **rest)


def _pairs(seed: int) -> tuple[Pairs, Tensor, Tensor]:
    """Certain pairs, and the tokens they stand for."""
    mask, logprobs = _tokens(seed, 2 * COUNT)
    generator = torch.Generator().manual_seed(seed + 1)
    reference = logprobs.sum(1) + torch.randn(2 * COUNT, generator=generator, dtype=torch.float64) * 3
    lengths, ones = mask.sum(1).double(), torch.ones(COUNT, dtype=torch.float64)
    sides = [part for value in (logprobs.sum(1), reference, lengths) for part in value.chunk(2)]
    return Pairs(sides[0], sides[1], sides[2], sides[3], sides[4], sides[5], ones, ones), mask, logprobs


def _trl_dpo(pairs: Pairs, mask: Tensor, logprobs: Tensor, **settings: Any) -> Tensor:
    trainer = Defaults.of(f_divergence_type="reverse_kl", **{"loss_weights": [1.0], **settings})
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": pairs.ref_chosen_logprobs,
        "ref_rejected_logps": pairs.ref_rejected_logprobs,
    }
    return DPOTrainer._compute_loss(trainer, _model(logprobs), inputs, False)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_losses_with_a_reference_equal_those_of_trl(beta: float, seed: int) -> None:
    pairs, mask, logprobs = _pairs(seed)
    robust = pairs._replace(soft_labels=robust_labels(pairs.soft_labels, 0.2))
    ours = {
        "sigmoid": dpo_loss(pairs, beta=beta, denominator=COUNT),
        "sigmoid_norm": dpo_loss(pairs, beta=beta, length_normalized=True, denominator=COUNT),
        "robust": dpo_loss(robust, beta=beta, denominator=COUNT),
        "ipo": ipo_loss(pairs, beta=beta, length_normalized=True, denominator=COUNT),
        "hinge": hinge_loss(pairs, beta=beta, denominator=COUNT),
    }
    for kind, result in ours.items():
        theirs = _trl_dpo(pairs, mask, logprobs, loss_types=[kind], beta=beta, label_smoothing=0.2)
        _same(result.loss, theirs)


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_norm", "robust", "ipo", "hinge"])
def test_losses_with_a_reference_have_the_gradients_of_trl(kind: str) -> None:
    pairs, mask, logprobs = _pairs(5)
    found: list[Tensor] = []
    for number in range(2):
        own = logprobs.clone().requires_grad_()
        if number:
            loss = _trl_dpo(pairs, mask, own, loss_types=[kind], beta=0.3, label_smoothing=0.2)
        else:
            chosen, rejected = own.sum(1).chunk(2)
            mine = pairs._replace(chosen_logprobs=chosen, rejected_logprobs=rejected)
            robust = mine._replace(soft_labels=robust_labels(mine.soft_labels, 0.2))
            loss = {
                "sigmoid": dpo_loss(mine, beta=0.3, denominator=COUNT),
                "sigmoid_norm": dpo_loss(mine, beta=0.3, length_normalized=True, denominator=COUNT),
                "robust": dpo_loss(robust, beta=0.3, denominator=COUNT),
                "ipo": ipo_loss(mine, beta=0.3, length_normalized=True, denominator=COUNT),
                "hinge": hinge_loss(mine, beta=0.3, denominator=COUNT),
            }[kind].loss
        torch.autograd.backward(loss)
        assert own.grad is not None
        found.append(own.grad * mask[:, 1:])
    assert float(found[0].abs().max()) > 0
    _same(found[0], found[1])


def test_ipo_of_whole_completions_equals_trl_where_these_have_one_token() -> None:
    # TRL divides by the tokens always; of one token the two conventions are the same, however it was set.
    pairs, mask, logprobs = _pairs(6)
    mask[:, 2:] = 0
    logprobs = logprobs * mask[:, 1:]
    chosen, rejected = logprobs.sum(1).chunk(2)
    one = torch.ones(COUNT, dtype=torch.float64)
    pairs = pairs._replace(chosen_logprobs=chosen, rejected_logprobs=rejected, chosen_lengths=one, rejected_lengths=one)
    theirs = _trl_dpo(pairs, mask, logprobs, loss_types=["ipo"], beta=0.3)
    for length_normalized in (False, True):
        _same(ipo_loss(pairs, beta=0.3, length_normalized=length_normalized, denominator=COUNT).loss, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_losses_without_a_reference_equal_those_of_trl(seed: int) -> None:
    # TRL has them in its CPO trainer: conservative labels, hinge (SLiC), and IPO per token.
    pairs, _, _ = _pairs(seed)
    sides = pairs.chosen_logprobs, pairs.rejected_logprobs
    free = pairs.without_reference()
    means = sides[0] / pairs.chosen_lengths, sides[1] / pairs.rejected_lengths
    smooth = free._replace(soft_labels=conservative_labels(free.soft_labels, 0.2))
    for kind, smoothing, shown, ours in (
        ("sigmoid", 0.2, sides, dpo_loss(smooth, beta=0.3, denominator=COUNT)),
        ("sigmoid", 0.2, sides, cpo_loss(smooth, beta=0.3, nll_coef=0.0, denominator=COUNT)),
        ("hinge", 0.0, sides, hinge_loss(free, beta=0.3, denominator=COUNT)),
        ("ipo", 0.0, means, ipo_loss(free, beta=0.3, length_normalized=True, denominator=COUNT)),
        ("ipo", 0.0, sides, ipo_loss(free, beta=0.3, denominator=COUNT)),
    ):
        settings = Defaults.of(loss_type=kind, beta=0.3, alpha=0.0, label_smoothing=smoothing)
        _same(ours.loss, TRL_CPO(settings, *shown)[0].mean())


@pytest.mark.parametrize("centering", [None, 0.01])
@pytest.mark.parametrize("has_margin", [False, True])
def test_the_loss_of_reward_models_equals_that_of_trl(has_margin: bool, centering: float | None) -> None:
    generator = torch.Generator().manual_seed(8)
    scores = 3 * torch.randn(2 * COUNT, generator=generator, dtype=torch.float64)
    margins = torch.rand(COUNT, generator=generator, dtype=torch.float64) * float(has_margin)
    trainer = Defaults.of(args=Defaults(center_rewards_coefficient=centering), _tp_size=1, _total_train_tokens=0)
    inputs = {"margin": margins} if has_margin else {}
    theirs = TRL_REWARD(trainer, lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    chosen, rejected = scores.chunk(2)
    ones = torch.ones(COUNT, dtype=torch.float64)
    ours = bradley_terry_loss(
        chosen,
        rejected,
        soft_labels_P=ones,
        margins_P=margins,
        weights_P=ones,
        denominator=COUNT,
        centering=centering or 0.0,
    )
    assert isinstance(theirs, Tensor)
    _same(ours.loss, theirs)


def test_dpo_with_likelihood_equals_trl_where_chosen_sides_are_equally_long() -> None:
    # TRL divides by the tokens of the batch, Harken by those of each completion.
    pairs, mask, logprobs = _pairs(7)
    mask[:COUNT, 1:] = 1
    logprobs = torch.where(logprobs == 0, -0.7, logprobs) * mask[:, 1:]
    chosen, rejected = logprobs.sum(1).chunk(2)
    pairs = pairs._replace(
        chosen_logprobs=chosen, rejected_logprobs=rejected, chosen_lengths=torch.full((COUNT,), float(LENGTH))
    )
    result = dpo_loss(pairs, beta=0.3, nll_coef=0.4, denominator=COUNT)
    theirs = _trl_dpo(pairs, mask, logprobs, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.4], beta=0.3)
    _same(result.loss, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_losses_of_cpo_and_simpo_equal_those_of_trl(seed: int) -> None:
    pairs, _, _ = _pairs(seed)
    settings = Defaults.of(loss_type="sigmoid", beta=0.3, alpha=0.0, label_smoothing=0.0)
    losses, chosen, _ = TRL_CPO(settings, pairs.chosen_logprobs, pairs.rejected_logprobs)
    result = cpo_loss(pairs, beta=0.3, nll_coef=0.0, denominator=COUNT)
    _same(result.loss, losses.mean())
    _same(result.metrics["chosen_reward"], chosen.mean())
    settings = Defaults.of(loss_type="simpo", beta=2.0, alpha=0.0, label_smoothing=0.0, simpo_gamma=0.7)
    means = pairs.chosen_logprobs / pairs.chosen_lengths, pairs.rejected_logprobs / pairs.rejected_lengths
    losses, chosen, rejected = TRL_CPO(settings, *means)
    result = simpo_loss(pairs, beta=2.0, margin=0.7, denominator=COUNT)
    _same(result.loss, losses.mean())
    _same(result.metrics["reward_margin"], (chosen - rejected).mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_orpo_equals_that_of_trl(seed: int) -> None:
    # TRL takes the likelihood of the prompt too, and per token of the batch; only its odds are compared here.
    pairs, _, _ = _pairs(seed)
    means = pairs.chosen_logprobs / pairs.chosen_lengths, pairs.rejected_logprobs / pairs.rejected_lengths
    losses, *_ = TRL_ORPO(Defaults.of(beta=0.3), *means)
    result = orpo_loss(pairs, odds_coef=0.3, denominator=COUNT)
    _same((result.loss + means[0].mean()).float(), -losses.mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_kto_equals_that_of_trl(seed: int) -> None:
    mask, logprobs = _tokens(seed, 2 * COUNT)
    generator = torch.Generator().manual_seed(seed + 9)
    noise = torch.randn(3, 2 * COUNT, generator=generator, dtype=torch.float64)
    own, other = logprobs.sum(1), noise[2] - 9
    reference, other_reference = own + 3 * noise[0], other + noise[1] - 1
    labels = torch.arange(2 * COUNT) % 3 == 0
    trainer = Defaults.of(
        calculate_KL=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.2,
        undesirable_weight=0.9,
        _compute_kl_logps=lambda *_: other,
    )
    batch = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": labels,
        "ref_logps": reference,
        "ref_KL_logps": other_reference,
    }
    theirs = KTOTrainer._compute_loss(trainer, _model(logprobs), batch, False)
    ones = torch.ones(2 * COUNT, dtype=torch.float64)
    result = kto_loss(
        Labeled(own, reference, labels.double(), ones),
        beta=0.3,
        baseline=kto_baseline(other, other_reference),
        good_weight=1.2,
        bad_weight=0.9,
        good_share=float(labels.double().mean()),
        denominator=2 * COUNT,
    )
    _same(result.loss, theirs)
    logged = trainer._metrics["eval"]
    assert float(result.metrics["chosen_reward"]) == pytest.approx(logged["rewards/chosen"][0], rel=1e-6)
    assert float(result.metrics["rejected_reward"]) == pytest.approx(logged["rewards/rejected"][0], rel=1e-6)
    assert logged["kl"][0] > 0.0
