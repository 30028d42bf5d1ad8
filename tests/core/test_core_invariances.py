"""What must not change a loss, and what must be so at special points."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from harken.core.advantages import gae, scale_to_unit_std, whiten
from harken.core.aggregate import LossOutput
from harken.core.policy_loss import entropy_bonus, ppo_policy_loss
from harken.core.reward_loss import bradley_terry_loss
from harken.core.sft_loss import completion_nll
from harken.core.value_loss import clipped_value_loss, explained_variance
from tests.core.samples import random_rows

TokenLoss = Callable[[list[Tensor], Tensor, float | Tensor], LossOutput]
"""(per-token inputs, completion mask, denominator) to loss; the first input has the gradient."""


def policy_loss(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    policy, old, advantages = inputs
    settings = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
    return ppo_policy_loss(policy, old, advantages, mask, denominator=denominator, **settings)


def value_loss(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    values, old, returns = inputs
    return clipped_value_loss(values, old, returns, mask, clip_range=0.3, denominator=denominator)


def nll(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    return completion_nll(inputs[0], mask, denominator)


def entropy(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    return LossOutput(entropy_bonus(inputs[0], mask, denominator), {})


per_token_loss = pytest.mark.parametrize("loss_fn", [policy_loss, value_loss, nll, entropy])


def numbers(result: LossOutput) -> dict[str, Tensor]:
    return {"loss": result.loss.detach(), **result.metrics}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@per_token_loss
def test_padding_columns_rows_and_row_order_change_nothing(loss_fn: TokenLoss) -> None:
    mask, inputs = random_rows(31, 3)
    count = float(mask.sum())
    expected = numbers(loss_fn(inputs, mask, count))
    wide = [pad(x, (0, 3), value=math.nan) for x in inputs]
    assert_same(numbers(loss_fn(wide, pad(mask, (0, 3)), count)), expected)
    tall = [pad(x, (0, 0, 0, 2), value=math.inf) for x in inputs]
    assert_same(numbers(loss_fn(tall, pad(mask, (0, 0, 0, 2)), count)), expected)
    order = torch.tensor([2, 0, 3, 1])
    assert_same(numbers(loss_fn([x[order] for x in inputs], mask[order], count)), expected)


@per_token_loss
def test_microbatches_add_up_in_loss_metrics_and_gradient(loss_fn: TokenLoss) -> None:
    mask, inputs = random_rows(32, 3)
    count = float(mask.sum())
    whole = inputs[0].clone().requires_grad_()
    result = loss_fn([whole, *inputs[1:]], mask, count)
    result.loss.backward()
    parts = inputs[0].clone().requires_grad_()
    total: dict[str, Tensor] = {}
    # Rows of 8, 1, 5 and 4 tokens: a mean of means would differ.
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        part = loss_fn([parts[rows], *(x[rows] for x in inputs[1:])], mask[rows], count)
        part.loss.backward()
        for name, value in numbers(part).items():
            total[name] = total.get(name, torch.zeros(())) + value
    assert_same(total, numbers(result))
    torch.testing.assert_close(parts.grad, whole.grad)


@per_token_loss
def test_nan_outside_the_mask_reaches_neither_loss_nor_gradient(loss_fn: TokenLoss) -> None:
    mask, inputs = random_rows(33, 3)
    count = float(mask.sum())
    gradients: list[Tensor] = []
    for outside in (0.0, math.nan, math.inf):
        first, *rest = (torch.where(mask, x, torch.full_like(x, outside)) for x in inputs)
        first.requires_grad_()
        result = loss_fn([first, *rest], mask, count)
        result.loss.backward()
        assert all(value.isfinite() for value in numbers(result).values())
        assert first.grad is not None
        gradients.append(first.grad)
    assert gradients[0].equal(gradients[1])
    assert gradients[0].equal(gradients[2])
    assert not gradients[0][~mask].any()


@per_token_loss
def test_metrics_have_no_gradient_and_losses_have_one(loss_fn: TokenLoss) -> None:
    mask, inputs = random_rows(34, 3)
    result = loss_fn([x.requires_grad_() for x in inputs], mask, 5.0)
    assert result.loss.requires_grad
    assert result.loss.shape == ()
    assert all(not value.requires_grad and value.shape == () for value in result.metrics.values())


@per_token_loss
def test_shapes_that_would_broadcast_and_zero_denominators_are_refused(loss_fn: TokenLoss) -> None:
    mask, inputs = random_rows(35, 3)
    with pytest.raises(ValueError, match="shape"):
        loss_fn(inputs, mask[:1], 1.0)
    with pytest.raises(ValueError, match="denominator"):
        loss_fn(inputs, mask, 0.0)
    if loss_fn in (policy_loss, value_loss):
        with pytest.raises(ValueError, match="shape"):
            loss_fn([inputs[0], inputs[1][:1], inputs[2]], mask, 1.0)


def test_denominator_may_be_a_tensor() -> None:
    mask, inputs = random_rows(36, 3)
    assert_same(
        numbers(policy_loss(inputs, mask, torch.tensor(7.0))),
        numbers(policy_loss(inputs, mask, 7.0)),
    )


def test_ppo_at_ratio_1_is_minus_the_mean_advantage_with_gradient_minus_a_over_n() -> None:
    mask, (logprobs, advantages) = random_rows(37, 2)
    policy = logprobs.clone().requires_grad_()
    count = int(mask.sum())
    for dual_clip in (None, 3.0):
        policy.grad = None
        result = ppo_policy_loss(
            policy,
            logprobs,
            advantages,
            mask,
            clip_low=0.2,
            clip_high=0.2,
            denominator=count,
            dual_clip=dual_clip,
        )
        result.loss.backward()
        torch.testing.assert_close(result.loss.detach(), -advantages[mask].mean())
        assert result.metrics["clip_fraction"] == 0.0
        assert result.metrics["approx_kl"] == 0.0
        torch.testing.assert_close(result.metrics["ratio"].item(), 1.0)
        assert policy.grad is not None
        torch.testing.assert_close(policy.grad, torch.where(mask, -advantages / count, 0.0))


def test_ppo_old_logprobs_and_advantages_are_constants() -> None:
    mask, (policy, old, advantages) = random_rows(38, 3)
    old.requires_grad_()
    advantages.requires_grad_()
    result = policy_loss([policy.requires_grad_(), old, advantages], mask, 3.0)
    result.loss.backward()
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_low": -0.1, "clip_high": 0.2},
        {"clip_low": 1.1, "clip_high": 0.2},
        {"clip_low": 0.2, "clip_high": -0.1},
        {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 1.0},
    ],
)
def test_ppo_refuses_settings_outside_their_range(settings: dict[str, float]) -> None:
    mask, (policy, old, advantages) = random_rows(39, 3)
    with pytest.raises(ValueError, match="expected"):
        ppo_policy_loss(policy, old, advantages, mask, denominator=1.0, **settings)


def test_gae_at_gamma_and_lambda_1_returns_the_sums_to_go() -> None:
    mask, (rewards, values) = random_rows(40, 2)
    _, returns = gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_go)


def test_gae_at_lambda_0_is_the_one_step_error() -> None:
    mask, (rewards, values) = random_rows(41, 2)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.0)
    next_values = pad((values * mask)[:, 1:], (0, 1))
    expected = (rewards + 0.9 * next_values - values) * mask
    torch.testing.assert_close(advantages, expected)


def test_gae_is_zero_when_the_critic_knows_the_returns() -> None:
    mask, (rewards, _) = random_rows(42, 2)
    exact = (rewards * mask).flip(1).cumsum(1).flip(1)
    advantages, _ = gae(rewards, exact, mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages))


def test_gae_ignores_padding_and_works_in_fp32_for_bf16() -> None:
    mask, (rewards, values) = random_rows(43, 2)
    expected = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    wide = gae(
        pad(rewards, (0, 2), value=math.nan),
        pad(values, (0, 2), value=math.nan),
        pad(mask, (0, 2)),
        gamma=0.9,
        gae_lambda=0.8,
    )
    for actual, wanted in zip(wide, expected, strict=True):
        torch.testing.assert_close(actual[:, :9], wanted)
        assert not actual[:, 9:].any()
        assert not wanted[~mask].any()
    half = gae(rewards.bfloat16(), values.bfloat16(), mask, gamma=0.9, gae_lambda=0.8)
    assert half[0].dtype == half[1].dtype == torch.float32


def test_gae_refuses_factors_above_1() -> None:
    mask, (rewards, values) = random_rows(44, 2)
    with pytest.raises(ValueError, match="gamma"):
        gae(rewards, values, mask, gamma=1.1, gae_lambda=1.0)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1000.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_rewards_give_zero_whitened_advantages(constant: float, dtype: torch.dtype) -> None:
    mask, _ = random_rows(45, 0)
    x = torch.full(mask.shape, constant, dtype=dtype)
    assert not whiten(x, mask).any()
    torch.testing.assert_close(scale_to_unit_std(x, mask), x * mask)


def test_whitened_values_have_mean_0_and_biased_variance_1() -> None:
    mask, (x,) = random_rows(46, 1)
    kept = whiten(3 * x + 50, mask)[mask]
    torch.testing.assert_close(kept.mean().item(), 0.0, rtol=0, atol=1e-12)
    torch.testing.assert_close(kept.var(correction=0).item(), 1.0, rtol=1e-8, atol=0)
    scaled = scale_to_unit_std(3 * x + 50, mask)[mask]
    torch.testing.assert_close(scaled.mean().item(), (3 * x + 50)[mask].mean().item())
    torch.testing.assert_close(scaled.var(correction=0).item(), 1.0, rtol=1e-8, atol=0)


def test_whitening_does_not_see_what_is_masked_out() -> None:
    mask, (x,) = random_rows(47, 1)
    expected = whiten(x, mask)
    assert whiten(torch.where(mask, x, torch.full_like(x, math.nan)), mask).equal(expected)
    assert not whiten(x, torch.zeros_like(mask)).any()


def test_value_inside_the_clip_range_is_never_counted_as_clipped() -> None:
    # In fp32, where old + (value - old) is often not value.
    generator = torch.Generator().manual_seed(48)
    old = torch.randn(50, 40, generator=generator)
    values = old + 0.19 * (2 * torch.rand(50, 40, generator=generator) - 1)
    mask = torch.ones(50, 40, dtype=torch.bool)
    result = clipped_value_loss(values, old, torch.zeros_like(old), mask, clip_range=0.2, denominator=2000)
    assert result.metrics["value_clip_fraction"] == 0.0


def test_value_loss_without_clipping_is_half_the_squared_error() -> None:
    mask, (values, old, returns) = random_rows(49, 3)
    result = clipped_value_loss(values, old, returns, mask, clip_range=math.inf, denominator=int(mask.sum()))
    torch.testing.assert_close(result.loss, 0.5 * (values - returns)[mask].square().mean())
    with pytest.raises(ValueError, match="clip_range"):
        clipped_value_loss(values, old, returns, mask, clip_range=0.0, denominator=1.0)


def test_explained_variance_is_1_for_the_returns_and_0_for_a_constant() -> None:
    mask, (returns,) = random_rows(50, 1)
    torch.testing.assert_close(explained_variance(returns, returns, mask).item(), 1.0)
    # A constant offset is not seen by a variance; a constant critic explains nothing.
    torch.testing.assert_close(explained_variance(returns + 5, returns, mask).item(), 1.0)
    constant = torch.full_like(returns, 3.0)
    torch.testing.assert_close(explained_variance(constant, returns, mask).item(), 0.0)
    assert explained_variance(returns, constant, mask) == 0.0
    assert explained_variance(returns, returns, torch.zeros_like(mask)) == 0.0


def pair_loss(chosen: Tensor, rejected: Tensor, **changes: Tensor | float) -> LossOutput:
    ones = torch.ones_like(chosen)
    settings = {
        "soft_labels_P": ones,
        "margins_P": 0 * ones,
        "weights_P": ones,
        "denominator": float(len(chosen)),
    }
    return bradley_terry_loss(chosen, rejected, **{**settings, **changes})  # pyright: ignore[reportArgumentType]


def pairs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(6, 2, generator=generator, dtype=torch.float64).unbind(1))  # pyright: ignore[reportReturnType]


def test_bradley_terry_does_not_change_when_both_scores_rise() -> None:
    chosen, rejected = pairs(51)
    assert_same(numbers(pair_loss(chosen + 9, rejected + 9)), numbers(pair_loss(chosen, rejected)))
    risen = pair_loss(chosen + 9, rejected + 9, centering=0.01)
    assert risen.loss > pair_loss(chosen, rejected, centering=0.01).loss


def test_bradley_terry_of_equal_scores_is_log_2_with_gradient_minus_one_half() -> None:
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    result = pair_loss(scores, torch.zeros(4, dtype=torch.float64))
    result.loss.backward()
    torch.testing.assert_close(result.loss.item(), math.log(2))
    assert result.metrics["accuracy"] == 0.5
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.full_like(scores, -0.5 / 4))


def test_bradley_terry_swapped_pair_with_inverted_label_is_the_same_pair() -> None:
    chosen, rejected = pairs(52)
    labels = torch.linspace(0, 1, 6, dtype=torch.float64)
    margins = torch.linspace(-1, 1, 6, dtype=torch.float64)
    swapped = pair_loss(rejected, chosen, soft_labels_P=1 - labels, margins_P=-margins)
    expected = pair_loss(chosen, rejected, soft_labels_P=labels, margins_P=margins)
    torch.testing.assert_close(swapped.loss, expected.loss)
    torch.testing.assert_close(swapped.metrics["accuracy"], 1 - expected.metrics["accuracy"])


def test_bradley_terry_soft_label_is_best_met_by_its_own_log_odds() -> None:
    # d/d delta of the loss is sigmoid(delta) - p, zero at delta = log(p / (1 - p)).
    label = torch.tensor([0.8], dtype=torch.float64)
    chosen = label.logit().requires_grad_()
    pair_loss(chosen, torch.zeros_like(label), soft_labels_P=label).loss.backward()
    assert chosen.grad is not None
    torch.testing.assert_close(chosen.grad, torch.zeros_like(label))


def test_bradley_terry_microbatches_and_row_order_add_up() -> None:
    chosen, rejected = pairs(53)
    weights = torch.linspace(0.2, 2, 6, dtype=torch.float64)
    total = float(weights.sum())
    expected = numbers(pair_loss(chosen, rejected, weights_P=weights, denominator=total))
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled = pair_loss(chosen[order], rejected[order], weights_P=weights[order], denominator=total)
    assert_same(numbers(shuffled), expected)
    parts = [
        numbers(pair_loss(chosen[r], rejected[r], weights_P=weights[r], denominator=total))
        for r in (slice(0, 1), slice(1, 6))
    ]
    assert_same({name: parts[0][name] + parts[1][name] for name in expected}, expected)


def test_bradley_terry_pair_of_weight_zero_counts_for_nothing() -> None:
    chosen, rejected = pairs(54)
    more = pair_loss(
        torch.cat([chosen, chosen[:1] + 3]),
        torch.cat([rejected, rejected[:1]]),
        weights_P=torch.tensor([1.0] * 6 + [0.0], dtype=torch.float64),
        denominator=6.0,
    )
    assert_same(numbers(more), numbers(pair_loss(chosen, rejected)))


def test_bradley_terry_stays_finite_for_far_scores() -> None:
    chosen = torch.tensor([-300.0], requires_grad=True)
    result = pair_loss(chosen, torch.tensor([300.0]))
    result.loss.backward()
    torch.testing.assert_close(result.loss.item(), 600.0)
    assert chosen.grad is not None
    torch.testing.assert_close(chosen.grad.item(), -1.0)


def test_bradley_terry_refuses_shapes_that_would_broadcast() -> None:
    chosen, rejected = pairs(55)
    with pytest.raises(ValueError, match="rejected_scores_P has shape"):
        pair_loss(chosen, rejected[:, None])
    with pytest.raises(ValueError, match="denominator"):
        pair_loss(chosen, rejected, denominator=0.0)
