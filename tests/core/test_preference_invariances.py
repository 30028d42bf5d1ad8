"""What must not change the losses on preference pairs, and what must."""

import math

import pytest
import torch
from torch import Tensor

from harken.core.aggregate import LossOutput
from harken.core.preference_loss import dpo_loss


def _sides(seed: int) -> list[Tensor]:
    """Log-probabilities of chosen and rejected under policy and reference, 6 pairs."""
    generator = torch.Generator().manual_seed(seed)
    return list((torch.randn(4, 6, generator=generator, dtype=torch.float64) * 2 - 9).unbind())


def _loss(sides: list[Tensor], **changes: Tensor | float) -> LossOutput:
    settings = {"beta": 0.3, "denominator": float(len(sides[0]))}
    return dpo_loss(*sides, **{**settings, **changes})  # pyright: ignore[reportArgumentType]


def _numbers(result: LossOutput) -> dict[str, float]:
    return {"loss": float(result.loss), **{name: float(value) for name, value in result.metrics.items()}}


def test_dpo_at_the_reference_is_log_2() -> None:
    chosen, rejected, _, _ = _sides(61)
    found = _numbers(_loss([chosen, rejected, chosen, rejected]))
    expected = {"loss": math.log(2), "accuracy": 0.5, "reward_margin": 0, "chosen_reward": 0, "rejected_reward": 0}
    assert found == pytest.approx(expected)


def test_dpo_does_not_change_with_what_both_sides_gain() -> None:
    # A constant on both sides cancels in the margin: the partition function of arXiv:2305.18290, eq. 5.
    chosen, rejected, ref_chosen, ref_rejected = _sides(62)
    plain, risen = _loss(_sides(62)), _loss([chosen + 3, rejected + 3, ref_chosen, ref_rejected])
    torch.testing.assert_close(risen.loss, plain.loss)
    torch.testing.assert_close(risen.metrics["chosen_reward"], plain.metrics["chosen_reward"] + 0.9)
    same = _loss([chosen + 3, rejected - 2, ref_chosen + 3, ref_rejected - 2])
    assert _numbers(same) == pytest.approx(_numbers(plain))


def test_dpo_of_a_swapped_pair_with_inverted_label_is_the_same_pair() -> None:
    chosen, rejected, ref_chosen, ref_rejected = _sides(63)
    labels = torch.linspace(0, 1, 6, dtype=torch.float64)
    one = _loss([chosen, rejected, ref_chosen, ref_rejected], soft_labels_P=labels)
    other = _loss([rejected, chosen, ref_rejected, ref_chosen], soft_labels_P=1 - labels)
    torch.testing.assert_close(other.loss, one.loss)
    torch.testing.assert_close(other.metrics["accuracy"], 1 - one.metrics["accuracy"])


def test_dpo_with_label_noise_is_best_met_by_the_log_odds() -> None:
    # Minimum at sigmoid(h) = 1 - e: h = log(.9 / .1) for noise .1.
    label = torch.tensor([0.9], dtype=torch.float64)
    zero = torch.zeros_like(label)
    chosen = (label.logit() / 0.3).requires_grad_()
    _loss([chosen, zero, zero, zero], soft_labels_P=label).loss.backward()
    assert chosen.grad is not None
    torch.testing.assert_close(chosen.grad, zero)


def test_dpo_microbatches_and_row_order_add_up() -> None:
    sides = _sides(64)
    weights = torch.linspace(0.0, 2, 6, dtype=torch.float64)
    labels = torch.linspace(1, 0.5, 6, dtype=torch.float64)
    total = float(weights.sum())

    def some(rows: Tensor) -> dict[str, float]:
        part = [side[rows] for side in sides]
        return _numbers(_loss(part, weights_P=weights[rows], soft_labels_P=labels[rows], denominator=total))

    expected = some(torch.arange(6))
    assert some(torch.tensor([3, 0, 5, 1, 2, 4])) == pytest.approx(expected)
    first, second = some(torch.arange(1)), some(torch.arange(1, 6))
    assert {name: first[name] + second[name] for name in expected} == pytest.approx(expected)


def test_dpo_stays_finite_for_far_logprobs() -> None:
    chosen = torch.tensor([-1000.0], requires_grad=True)
    zero = torch.zeros(1)
    result = _loss([chosen, zero, zero, zero])
    result.loss.backward()
    assert result.loss.item() == pytest.approx(300.0)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.3)


def test_dpo_refuses_what_would_be_silently_wrong() -> None:
    chosen, rejected, ref_chosen, ref_rejected = _sides(65)
    with pytest.raises(ValueError, match="ref_rejected_logprobs_P has shape"):
        _loss([chosen, rejected, ref_chosen, ref_rejected[:, None]])
    with pytest.raises(ValueError, match="beta is 0"):
        _loss([chosen, rejected, ref_chosen, ref_rejected], beta=0.0)
    with pytest.raises(ValueError, match="denominator"):
        _loss([chosen, rejected, ref_chosen, ref_rejected], denominator=0.0)
