"""What must not change the losses on preferences, and what must; their values at policy = reference."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from harken.core.aggregate import LossOutput
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

Loss = Callable[..., LossOutput]

LOSSES: dict[str, Loss] = {
    "dpo": partial(dpo_loss, beta=0.3),
    "dpo per token": partial(dpo_loss, beta=3.0, length_normalized=True),
    "dpo with likelihood": partial(dpo_loss, beta=0.3, nll_coef=0.5),
    "ipo": partial(ipo_loss, beta=0.3),
    "ipo per token": partial(ipo_loss, beta=0.3, length_normalized=True),
    "hinge": partial(hinge_loss, beta=0.3, nll_coef=0.2),
    "cpo": partial(cpo_loss, beta=0.3),
    "simpo": partial(simpo_loss, beta=2.0, margin=0.5),
    "orpo": partial(orpo_loss, odds_coef=0.3),
}
KTO = partial(kto_loss, beta=0.3, baseline=0.4, good_weight=1.0, bad_weight=1.2)
BOTH = pytest.mark.parametrize("name", LOSSES)


def _pairs(seed: int, count: int = 6) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.rand(4, count, generator=generator, dtype=torch.float64) * -12 - 0.5
    lengths = torch.randint(1, 9, (2, count), generator=generator).double()
    labels = torch.rand(count, generator=generator, dtype=torch.float64)
    weights = torch.linspace(0.0, 2.0, count, dtype=torch.float64)
    return Pairs(logprobs[0], logprobs[1], logprobs[2], logprobs[3], lengths[0], lengths[1], labels, weights)


def _at_reference(pairs: Pairs) -> Pairs:
    ones = torch.ones_like(pairs.weights)
    here = {"ref_chosen_logprobs": pairs.chosen_logprobs, "ref_rejected_logprobs": pairs.rejected_logprobs}
    return pairs._replace(**here, soft_labels=ones, weights=ones)


def _numbers(result: LossOutput) -> dict[str, float]:
    return {"loss": float(result.loss.detach()), **{name: float(value) for name, value in result.metrics.items()}}


def _rows(pairs: Pairs, rows: Tensor) -> Pairs:
    return Pairs(*(value[rows] for value in pairs))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dpo", math.log(2)), ("dpo per token", math.log(2)), ("ipo", 1 / (4 * 0.09)), ("ipo per token", 1 / (4 * 0.09))],
)
def test_value_at_the_reference(name: str, expected: float) -> None:
    found = _numbers(LOSSES[name](_at_reference(_pairs(61)), denominator=6.0))
    assert found["loss"] == pytest.approx(expected)
    assert (found["accuracy"], found["reward_margin"], found["chosen_reward"]) == (0.5, 0.0, 0.0)


def test_value_of_hinge_and_robust_dpo_at_the_reference() -> None:
    pairs = _at_reference(_pairs(61))
    assert float(hinge_loss(pairs, beta=0.3, denominator=6.0).loss) == pytest.approx(1.0)
    robust = pairs._replace(soft_labels=robust_labels(pairs.soft_labels, 0.2))
    assert float(dpo_loss(robust, beta=0.3, denominator=6.0).loss) == pytest.approx(math.log(2))


def test_value_without_reference_where_both_sides_are_equally_likely() -> None:
    # With leads of 0: log 2 (cpo), log 2 (simpo without margin), odds_coef log 2 (orpo); plus the likelihood, 2 nats.
    lengths = torch.full((1,), 3.0, dtype=torch.float64)
    one, six = torch.ones_like(lengths), -2 * lengths
    pairs = Pairs(six, six, one, one, lengths, lengths, one, one)
    assert float(cpo_loss(pairs, beta=0.3, denominator=1.0).loss) == pytest.approx(math.log(2) + 2)
    assert float(simpo_loss(pairs, beta=2.0, margin=0.0, denominator=1.0).loss) == pytest.approx(math.log(2))
    assert float(orpo_loss(pairs, odds_coef=0.3, denominator=1.0).loss) == pytest.approx(0.3 * math.log(2) + 2)


@BOTH
def test_a_swapped_pair_with_inverted_label_is_the_same_pair(name: str) -> None:
    pairs = _pairs(63)
    swapped = Pairs(pairs[1], pairs[0], pairs[3], pairs[2], pairs[5], pairs[4], 1 - pairs[6], pairs[7])
    one, other = (LOSSES[name](each, denominator=5.0) for each in (pairs, swapped))
    torch.testing.assert_close(other.loss, one.loss)
    torch.testing.assert_close(other.metrics["reward_margin"], -one.metrics["reward_margin"])
    torch.testing.assert_close(other.metrics["chosen_reward"], one.metrics["rejected_reward"])


@BOTH
def test_microbatches_and_row_order_add_up(name: str) -> None:
    pairs = _pairs(64)

    def some(rows: Tensor) -> dict[str, float]:
        return _numbers(LOSSES[name](_rows(pairs, rows), denominator=6.0))

    expected = some(torch.arange(6))
    assert some(torch.tensor([3, 0, 5, 1, 2, 4])) == pytest.approx(expected)
    first, second = some(torch.arange(2)), some(torch.arange(2, 6))
    assert {key: first[key] + second[key] for key in expected} == pytest.approx(expected)


@BOTH
def test_only_losses_with_a_reference_read_it(name: str) -> None:
    pairs = _pairs(65)
    plain = LOSSES[name](pairs, denominator=6.0).loss
    moved = pairs._replace(ref_chosen_logprobs=pairs.ref_chosen_logprobs + 1)
    is_equal = bool(LOSSES[name](moved, denominator=6.0).loss == plain)
    assert is_equal == (name in {"cpo", "simpo", "orpo"})


@BOTH
def test_certain_pairs_push_the_sides_apart(name: str) -> None:
    pairs = _at_reference(_pairs(66))
    chosen, rejected = pairs.chosen_logprobs.clone().requires_grad_(), pairs.rejected_logprobs.clone().requires_grad_()
    LOSSES[name](pairs._replace(chosen_logprobs=chosen, rejected_logprobs=rejected), denominator=6.0).loss.backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert bool((chosen.grad < 0).all())
    assert bool((rejected.grad > 0).all())


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_what_both_sides_gain_changes_nothing(name: str) -> None:
    # A constant on both sides cancels in the lead: the partition function of arXiv:2305.18290, eq. 5.
    pairs = _pairs(62)
    risen = pairs._replace(chosen_logprobs=pairs.chosen_logprobs + 3, rejected_logprobs=pairs.rejected_logprobs + 3)
    torch.testing.assert_close(LOSSES[name](risen, denominator=6.0).loss, LOSSES[name](pairs, denominator=6.0).loss)


def test_conservative_dpo_is_best_met_by_the_log_odds() -> None:
    # Minimum at sigmoid(h) = 1 - e: h = log(.9 / .1) for noise .1.
    one = torch.ones(1, dtype=torch.float64)
    label, zero = conservative_labels(one, 0.1), torch.zeros_like(one)
    chosen = (label.logit() / 0.3).requires_grad_()
    dpo_loss(Pairs(chosen, zero, zero, zero, one, one, label, one), beta=0.3, denominator=1).loss.backward()
    assert chosen.grad is not None
    torch.testing.assert_close(chosen.grad, zero)


def test_robust_dpo_averages_over_flips_to_the_loss_of_the_clean_labels() -> None:
    pairs, noise = _pairs(67), 0.3
    clean = (pairs.soft_labels > 0.5).double()

    def loss(labels: Tensor) -> Tensor:
        return dpo_loss(pairs._replace(soft_labels=labels), beta=0.3, denominator=6.0).loss

    kept, flipped = loss(robust_labels(clean, noise)), loss(robust_labels(1 - clean, noise))
    torch.testing.assert_close((1 - noise) * kept + noise * flipped, loss(clean))


def test_cpo_is_dpo_without_reference_and_simpo_is_that_per_token() -> None:
    pairs = _pairs(68)
    free = pairs.without_reference()
    expected = dpo_loss(free, beta=0.3, denominator=6.0)
    assert _numbers(cpo_loss(pairs, beta=0.3, nll_coef=0.0, denominator=6.0)) == pytest.approx(_numbers(expected))
    expected = dpo_loss(free, beta=2.0, length_normalized=True, denominator=6.0)
    assert _numbers(simpo_loss(pairs, beta=2.0, margin=0.0, denominator=6.0)) == pytest.approx(_numbers(expected))


@BOTH
def test_far_logprobs_give_finite_losses_and_gradients(name: str) -> None:
    # Also at probability 1, where the odds are infinite.
    chosen, rejected = (
        torch.tensor([-1000.0, 0.0], requires_grad=True),
        torch.tensor([0.0, -1000.0], requires_grad=True),
    )
    ones, zeros = torch.ones(2), torch.zeros(2)
    result = LOSSES[name](Pairs(chosen, rejected, zeros, zeros, ones, ones, ones, ones), denominator=2.0)
    result.loss.backward()
    assert all(math.isfinite(value) for value in _numbers(result).values())
    for side in (chosen, rejected):
        assert side.grad is not None
        assert bool(side.grad.isfinite().all())


@BOTH
def test_what_would_be_silently_wrong_is_refused(name: str) -> None:
    pairs = _pairs(65)
    with pytest.raises(ValueError, match="rejected_lengths has shape"):
        LOSSES[name](pairs._replace(rejected_lengths=pairs.rejected_lengths[:, None]), denominator=6.0)
    setting = "odds_coef" if name == "orpo" else "beta"
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        LOSSES[name](pairs, **{setting: 0.0}, denominator=6.0)
    with pytest.raises(ValueError, match="denominator"):
        LOSSES[name](pairs, denominator=0.0)


def test_coefficients_and_noise_out_of_range_are_refused() -> None:
    pairs = _pairs(65)
    with pytest.raises(ValueError, match="nll_coef is -1"):
        dpo_loss(pairs, beta=0.3, nll_coef=-1.0, denominator=6.0)
    with pytest.raises(ValueError, match="margin is -1"):
        simpo_loss(pairs, beta=0.3, margin=-1.0, denominator=6.0)
    for labels in (conservative_labels, robust_labels):
        with pytest.raises(ValueError, match=r"noise is 0\.5"):
            labels(pairs.soft_labels, 0.5)


def _labeled(seed: int) -> Labeled:
    pairs = _pairs(seed)
    return Labeled(pairs.chosen_logprobs, pairs.ref_chosen_logprobs, pairs.soft_labels, pairs.weights)


def test_kto_at_the_reference_is_one_half() -> None:
    items = _labeled(71)
    items = items._replace(ref_logprobs=items.logprobs, soft_labels=items.soft_labels.round())
    baseline = kto_baseline(items.logprobs, items.ref_logprobs)
    share = float((items.weights * items.soft_labels).sum() / items.weights.sum())
    found = kto_loss(
        items, beta=0.3, baseline=baseline, good_weight=1.0, bad_weight=1.0, good_share=share, denominator=6.0
    )
    assert float(found.loss) == pytest.approx(0.5)
    assert float(found.metrics["reward_margin"]) == 0.0


def test_kto_microbatches_and_row_order_add_up() -> None:
    items = _labeled(72)

    def some(rows: Tensor) -> dict[str, float]:
        return _numbers(KTO(Labeled(*(value[rows] for value in items)), good_share=0.4, denominator=6.0))

    expected = some(torch.arange(6))
    assert some(torch.tensor([3, 0, 5, 1, 2, 4])) == pytest.approx(expected)
    first, second = some(torch.arange(2)), some(torch.arange(2, 6))
    assert {key: first[key] + second[key] for key in expected} == pytest.approx(expected)


def test_kto_of_a_mixture_is_the_mixture() -> None:
    items = _labeled(73)

    def loss(labels: Tensor) -> Tensor:
        return KTO(items._replace(soft_labels=labels, weights=weights), good_share=0.5, denominator=6.0).loss

    zeros, weights = torch.zeros_like(items.weights), torch.ones_like(items.weights)
    torch.testing.assert_close(loss(zeros + 0.25), 0.25 * loss(zeros + 1) + 0.75 * loss(zeros))


def test_kto_metrics_of_a_kind_that_is_missing_are_zero() -> None:
    items = _labeled(74)._replace(soft_labels=torch.ones(6, dtype=torch.float64))
    found = _numbers(KTO(items, good_share=1.0, denominator=6.0))
    assert (found["rejected_reward"], found["rejected_logprob"]) == (0.0, 0.0)
    assert found["chosen_reward"] != 0.0


def test_kto_refuses_what_would_be_silently_wrong() -> None:
    items = _labeled(75)
    with pytest.raises(ValueError, match="soft_labels has shape"):
        KTO(items._replace(soft_labels=items.soft_labels[:1]), good_share=0.5, denominator=6.0)
    with pytest.raises(ValueError, match="bad_weight is 0"):
        KTO(items, good_share=0.5, denominator=6.0, bad_weight=0.0)
    with pytest.raises(ValueError, match="ref_logprobs has shape"):
        kto_baseline(items.logprobs, items.ref_logprobs[:1])
