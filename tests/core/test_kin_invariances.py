"""Losses and advantages of PPO's kin: what must not change them, and what must be so at special points."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from harken.core.advantages import gae
from harken.core.aggregate import LossOutput, masked_sum, row_weights
from harken.core.group_advantages import (
    group_advantages,
    groups_with_equal_rewards,
    leave_one_out_advantages,
)
from harken.core.kl import full_kl, kl_loss_terms
from harken.core.logprobs import token_logprobs
from harken.core.moments import Moments, denormalize, normalize, rescaled_head, update_moments
from harken.core.policy_loss import adaptive_entropy_coef, ppo_policy_loss
from harken.core.rewards import overlong_penalty
from harken.core.sequence_loss import cispo_policy_loss, gspo_policy_loss, reinforce_policy_loss
from harken.core.value_loss import clipped_value_loss
from tests.core import test_core_invariances as common
from tests.core.samples import random_rows


def reinforce(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    return reinforce_policy_loss(inputs[0], inputs[1], inputs[2], mask, denominator=denominator)


def gspo(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    return gspo_policy_loss(inputs[0], inputs[1], inputs[2], mask, clip_low=0.2, clip_high=0.3, denominator=denominator)


def cispo(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    return cispo_policy_loss(
        inputs[0], inputs[1], inputs[2], mask, clip_low=0.2, clip_high=0.3, denominator=denominator
    )


def huber(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor) -> LossOutput:
    return clipped_value_loss(
        inputs[0], inputs[1], inputs[2], mask, clip_range=0.3, denominator=denominator, huber_delta=0.5
    )


def kl_loss(inputs: list[Tensor], mask: Tensor, denominator: float | Tensor, estimator: str) -> LossOutput:
    terms = kl_loss_terms(inputs[0], inputs[1], inputs[2], mask, estimator=estimator)  # pyright: ignore[reportArgumentType]
    return LossOutput(masked_sum(terms, mask, denominator), {})


LOSSES = {
    "reinforce": reinforce,
    "gspo": gspo,
    "cispo": cispo,
    "huber": huber,
    "k2": partial(kl_loss, estimator="k2"),
    "k3": partial(kl_loss, estimator="k3"),
}
SHARED = [
    common.test_padding_columns_rows_and_row_order_change_nothing,
    common.test_microbatches_add_up_in_loss_metrics_and_gradient,
    common.test_nan_outside_the_mask_reaches_neither_loss_nor_gradient,
    common.test_metrics_have_no_gradient_and_losses_have_one,
]


@pytest.mark.parametrize("check", SHARED, ids=lambda check: check.__name__[5:40])
@pytest.mark.parametrize("name", LOSSES)
def test_what_holds_for_every_loss_of_tokens(name: str, check: common.Callable[[common.TokenLoss], None]) -> None:
    check(LOSSES[name])


@pytest.mark.parametrize("name", ["reinforce", "gspo", "cispo"])
def test_at_ratio_1_every_policy_loss_has_the_gradient_of_ppo(name: str) -> None:
    mask, (logprobs, advantages) = random_rows(80, 2)
    # One advantage a row, as GSPO has it.
    advantages = advantages[:, :1].expand_as(advantages)
    gradients: list[Tensor] = []
    for loss in (LOSSES[name], common.policy_loss):
        policy = logprobs.clone().requires_grad_()
        loss([policy, logprobs, advantages], mask, 5.0).loss.backward()
        assert policy.grad is not None
        gradients.append(policy.grad)
    torch.testing.assert_close(*gradients)


def test_every_policy_loss_is_proportional_to_the_advantages() -> None:
    # So that aggregations and importance weights can be put into the advantages.
    mask, (policy, old, advantages) = random_rows(81, 3)
    for loss in (reinforce, gspo, cispo, common.policy_loss):
        whole = loss([policy, old, advantages], mask, 5.0).loss
        torch.testing.assert_close(loss([policy, old, 3.5 * advantages], mask, 5.0).loss, 3.5 * whole)


def test_gspo_of_rows_of_one_token_is_ppo() -> None:
    _, (policy, old, advantages) = random_rows(82, 3)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, 3] = True
    one = gspo([policy, old, advantages], mask, 4.0)
    other = ppo_policy_loss(policy, old, advantages, mask, clip_low=0.2, clip_high=0.3, denominator=4.0)
    common.assert_same(common.numbers(one), common.numbers(other))


@pytest.mark.parametrize("loss", [gspo_policy_loss, cispo_policy_loss])
def test_clips_outside_their_range_are_refused(loss: common.Callable[..., LossOutput]) -> None:
    mask, inputs = random_rows(83, 3)
    for low, high in ((-0.1, 0.2), (1.1, 0.2), (0.2, -0.1)):
        with pytest.raises(ValueError, match="expected"):
            loss(inputs[0], inputs[1], inputs[2], mask, clip_low=low, clip_high=high, denominator=1.0)
    with pytest.raises(ValueError, match="shape"):
        loss(inputs[0], inputs[1][:1], inputs[2], mask, clip_low=0.2, clip_high=0.2, denominator=1.0)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1000.1, 3e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_advantages_of_exactly_0(constant: float, dtype: torch.dtype) -> None:
    for size in (2, 3, 7):
        rewards = torch.full((2 * size,), constant, dtype=dtype)
        assert not leave_one_out_advantages(rewards, size).any()
        for divide in (True, False):
            assert not group_advantages(rewards, size, divide_by_std=divide).any()
        assert groups_with_equal_rewards(rewards, size).all()


def test_group_advantages_do_not_see_other_groups_nor_a_shift() -> None:
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(84), dtype=torch.float64)
    functions = [
        leave_one_out_advantages,
        partial(group_advantages, divide_by_std=True),
        partial(group_advantages, divide_by_std=False),
    ]
    for function in functions:
        whole = function(rewards, 4)
        torch.testing.assert_close(function(rewards[4:8], 4), whole[4:8])
        torch.testing.assert_close(function(rewards + 50, 4), whole)
        torch.testing.assert_close(whole.unflatten(0, (3, 4)).sum(1), torch.zeros(3, dtype=torch.float64))
    scaled = group_advantages(100 * rewards, 4, divide_by_std=True)
    torch.testing.assert_close(scaled, group_advantages(rewards, 4, divide_by_std=True), rtol=1e-4, atol=0)
    # Leave-one-out is Dr. GRPO times K / (K - 1).
    torch.testing.assert_close(
        leave_one_out_advantages(rewards, 4), 4 / 3 * group_advantages(rewards, 4, divide_by_std=False)
    )


def test_a_group_of_one_is_refused() -> None:
    rewards = torch.ones(4)
    for function in (
        leave_one_out_advantages,
        groups_with_equal_rewards,
        partial(group_advantages, divide_by_std=True),
    ):
        with pytest.raises(ValueError, match="at least 2"):
            function(rewards, 1)
        with pytest.raises(ValueError, match="multiple of 3"):
            function(rewards, 3)


def test_advantages_of_rewards_have_no_gradient() -> None:
    rewards = torch.randn(4, requires_grad=True)
    assert not leave_one_out_advantages(rewards, 2).requires_grad
    assert not group_advantages(rewards, 2, divide_by_std=True).requires_grad


def test_kl_losses_have_the_gradient_of_the_kl_they_are_said_to_have() -> None:
    # Expectations over the policy that drew, enumerated: k2 gives KL(pi || ref) and k3 KL(ref || pi), also when the
    # policy has moved since it drew.
    generator = torch.Generator().manual_seed(85)
    logits, old, ref = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    old, ref = old.log_softmax(-1), ref.log_softmax(-1)
    mask = torch.ones(1, 7, dtype=torch.bool)
    for estimator, forward in (("k2", False), ("k3", True)):
        z = logits.clone().requires_grad_()
        policy = z.log_softmax(-1)
        terms = kl_loss_terms(policy[None], old[None], ref[None], mask, estimator=estimator)  # pyright: ignore[reportArgumentType]
        (actual,) = torch.autograd.grad((old.exp() * terms[0]).sum(), z)
        exact = full_kl(ref, z) if forward else full_kl(z, ref)
        (expected,) = torch.autograd.grad(exact, z)
        torch.testing.assert_close(actual, expected)


def test_kl_losses_at_the_reference_are_zero_with_zero_gradient() -> None:
    mask, (ref, old) = random_rows(86, 2)
    for estimator in ("k2", "k3"):
        policy = ref.clone().requires_grad_()
        terms = kl_loss_terms(policy, old, ref, mask, estimator=estimator)
        terms.sum().backward()
        assert not terms.any()
        assert policy.grad is not None
        assert not policy.grad.any()


def test_the_kl_of_tokens_does_not_depend_on_chunks_and_has_a_gradient() -> None:
    mask, _ = random_rows(87, 0)
    generator = torch.Generator().manual_seed(87)
    hidden, ref = torch.randn(2, 4, 9, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    ids = torch.zeros(4, 9, dtype=torch.long)
    hidden.requires_grad_()

    def kl(chunk: int) -> Tensor:
        found = token_logprobs(
            hidden, ids, mask, lambda h: h @ weight.T, chunk_tokens=chunk, reference=(ref, lambda h: h @ weight.T)
        ).kl
        assert found is not None
        return found

    whole = kl(1000)
    torch.testing.assert_close(kl(4), whole)
    exact = full_kl(hidden @ weight.T, ref @ weight.T)
    torch.testing.assert_close(whole[:, 1:], torch.where(mask[:, 1:], exact[:, :-1], 0.0))
    (actual,) = torch.autograd.grad(kl(4).sum(), hidden)
    (expected,) = torch.autograd.grad(exact[:, :-1][mask[:, 1:]].sum(), hidden)
    torch.testing.assert_close(actual, expected)


def test_row_weights_do_not_change_with_padding_and_average_to_1() -> None:
    mask, _ = random_rows(88, 0)
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        weights = row_weights(mask, aggregation, length=8)
        assert torch.equal(row_weights(pad(mask, (0, 3)), aggregation, length=8), weights)
        order = torch.tensor([2, 0, 3, 1])
        assert torch.equal(row_weights(mask[order], aggregation, length=8), weights[order])
    # Rows of one length: all three are the same, up to that length for the constant.
    even = torch.zeros(3, 9, dtype=torch.bool)
    even[:, 2:6] = True
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        assert row_weights(even, aggregation, length=4).tolist() == [[1.0]] * 3
    with pytest.raises(ValueError, match="length"):
        row_weights(mask, "constant", length=0)


def test_a_rescaled_head_says_the_same_in_reward_units() -> None:
    generator = torch.Generator().manual_seed(89)
    states = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
    mask, (first, second) = random_rows(90, 2)
    old = update_moments(Moments(), 3 * first + 7, mask, decay=0.9)
    new = update_moments(old, 50 * second, mask, decay=0.9)
    before = denormalize(states @ weight.T + bias, old)
    again, offset = rescaled_head(weight, bias, old, new)
    torch.testing.assert_close(denormalize(states @ again.T + offset, new), before)
    torch.testing.assert_close(normalize(denormalize(states, new), new), states)
    # Before the first batch the head speaks reward units.
    assert denormalize(states, Moments()).equal(states)


def test_moments_ignore_padding_and_refuse_a_decay_of_1() -> None:
    mask, (x,) = random_rows(91, 1)
    found = update_moments(Moments(), x, mask, decay=0.5)
    wide = update_moments(Moments(), pad(x, (0, 2), value=math.nan), pad(mask, (0, 2)), decay=0.5)
    assert tuple(found) == pytest.approx(tuple(wide), rel=1e-12)
    assert found.mean == pytest.approx(float(x[mask].mean()))
    assert found.std == pytest.approx(float(x[mask].std(correction=0)))
    with pytest.raises(ValueError, match="decay"):
        update_moments(found, x, mask, decay=1.0)


def test_huber_is_the_squared_error_for_a_large_delta_and_refuses_0() -> None:
    mask, inputs = random_rows(92, 3)
    settings = {"clip_range": 0.3, "denominator": 5.0}
    wide = clipped_value_loss(inputs[0], inputs[1], inputs[2], mask, **settings, huber_delta=1e6)
    common.assert_same(
        common.numbers(wide), common.numbers(clipped_value_loss(inputs[0], inputs[1], inputs[2], mask, **settings))
    )
    with pytest.raises(ValueError, match="huber_delta"):
        clipped_value_loss(inputs[0], inputs[1], inputs[2], mask, **settings, huber_delta=0.0)


def test_overlong_penalty_refuses_a_buffer_outside_the_limit() -> None:
    for buffer in (0, 21):
        with pytest.raises(ValueError, match="buffer"):
            overlong_penalty(torch.tensor([3]), max_length=20, buffer=buffer)


def test_the_entropy_controller_settles_around_its_target() -> None:
    # A policy whose entropy is ten times the coefficient: target 0.5 is met at 0.05.
    coef = 0.0
    for _ in range(100):
        coef = adaptive_entropy_coef(coef, 10 * coef, target=0.5, change=0.005, upper=0.1)
    assert coef == pytest.approx(0.05, abs=0.0051)  # it moves by 0.005 at a time
    for settings in ({"target": -1.0}, {"change": 0.0}, {"upper": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            adaptive_entropy_coef(0.1, 1.0, **({"target": 1.0, "change": 0.1, "upper": 1.0} | settings))
    with pytest.raises(ValueError, match="diverged"):
        adaptive_entropy_coef(0.1, math.nan, target=1.0, change=0.1, upper=1.0)


def test_gae_across_turns_is_gae_without_the_tokens_between() -> None:
    mask, (rewards, values) = random_rows(93, 2)
    mask = mask.clone()
    mask[0, 3:5] = mask[2, 4] = False
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    for row in range(len(mask)):
        own = mask[row].clone()
        # The same row with the policy's tokens side by side behind one prompt token.
        packed = [torch.cat([x[row, :1], x[row][own]])[None] for x in (rewards, values)]
        alone = torch.ones(1, packed[0].shape[1], dtype=torch.bool)
        alone[:, 0] = False
        wanted = gae(packed[0], packed[1], alone, gamma=0.9, gae_lambda=0.8)
        for actual, expected in zip((advantages, returns), wanted, strict=True):
            torch.testing.assert_close(actual[row][own], expected[0, 1:])
            assert not actual[row][~own].any()
