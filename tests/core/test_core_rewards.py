"""KL estimators, masks, scores and rewards: identities, bounds and refusals."""

import math

import pytest
import torch
from torch import Tensor

from harken.core.kl import adaptive_kl_coef, approx_kl, full_kl, kl_k1, kl_k2, kl_k3
from harken.core.masking import (
    check_completion_mask,
    completion_mask_from_lengths,
    last_true_index,
    lengths_to_mask,
)
from harken.core.rewards import (
    apply_stop_penalty,
    clip_scores,
    fit_score_normalization,
    normalize_scores,
    token_rewards,
)
from tests.core.samples import flags, random_rows


def logits(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 7, generator=generator, dtype=torch.float64))  # pyright: ignore[reportReturnType]


def test_expected_k1_and_k3_are_the_exact_kl() -> None:
    # The expectation over the policy is enumerated, so it is exact, not sampled.
    policy_logits, ref_logits = logits(61)
    policy, ref = policy_logits.log_softmax(-1), ref_logits.log_softmax(-1)
    exact = full_kl(policy_logits, ref_logits)
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((policy.exp() * estimator(policy, ref)).sum(-1), exact)


def test_kl_of_equal_distributions_is_zero() -> None:
    policy_logits, _ = logits(62)
    policy = policy_logits.log_softmax(-1)
    for estimator in (kl_k1, kl_k2, kl_k3):
        assert not estimator(policy, policy).any()
    assert not full_kl(policy_logits, policy_logits).any()


def test_gradients_of_k2_and_the_exact_kl_agree_and_that_of_k1_vanishes() -> None:
    # E_policy[grad k2] = grad KL(policy || ref); E_policy[grad k1] = 0 (the score has mean zero).
    policy_logits, ref_logits = logits(63)
    ref = ref_logits.log_softmax(-1)
    gradients: dict[str, Tensor] = {}
    for name, estimator in {"k1": kl_k1, "k2": kl_k2, "full": None}.items():
        z = policy_logits.clone().requires_grad_()
        if estimator is None:
            loss = full_kl(z, ref_logits).sum()
        else:
            policy = z.log_softmax(-1)
            loss = (policy.detach().exp() * estimator(policy, ref)).sum()
        (gradients[name],) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(gradients["k2"], gradients["full"])
    torch.testing.assert_close(gradients["k1"], torch.zeros_like(gradients["k1"]))


def test_k3_is_never_negative_and_exact_to_fp32_near_zero() -> None:
    delta = torch.logspace(-6, 0, 200)
    for sign in (1, -1):
        estimate = kl_k3(sign * delta, torch.zeros_like(delta))
        assert (estimate >= 0).all()
        exact = torch.expm1(-sign * delta.double()) + sign * delta.double()
        torch.testing.assert_close(estimate.double(), exact, rtol=1e-4, atol=1e-8)
    assert kl_k3(torch.tensor([-math.inf, 1e9]), torch.zeros(2)).tolist() == [10.0, 10.0]


def test_full_kl_of_a_forbidden_token_has_a_finite_gradient() -> None:
    z = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    bias = torch.tensor([[0.0, 0.0, -math.inf]])
    kl = full_kl(z + bias, torch.tensor([[0.0, 0.0, 0.0]]) + bias)
    kl.sum().backward()
    assert kl.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_kl_refuses_shapes_that_would_broadcast() -> None:
    for function in (kl_k1, kl_k2, kl_k3, full_kl):
        with pytest.raises(ValueError, match="shape"):
            function(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="shape"):
        approx_kl(torch.zeros(2, 3), torch.zeros(2, 3), flags("xxx"), 3)


def test_kl_controller_settles_on_its_target() -> None:
    # A policy whose KL is 1 / coefficient: the fixed point of target 4 is a coefficient of 1/4.
    coef = 2.0
    for _ in range(500):
        coef = adaptive_kl_coef(coef, 1 / coef, target=4.0, horizon=1000, num_episodes=100, lower=1e-3, upper=10.0)
    assert coef == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("observed", "changes"),
    [
        (math.nan, {}),
        (math.inf, {}),
        (1.0, {"target": 0.0}),
        (1.0, {"horizon": 0.0}),
        (1.0, {"num_episodes": 0}),
        (1.0, {"lower": 2.0}),
        (1.0, {"lower": 0.0}),
    ],
)
def test_kl_controller_refuses_what_it_cannot_use(observed: float, changes: dict[str, float]) -> None:
    settings = {"target": 6.0, "horizon": 100.0, "num_episodes": 8, "lower": 0.1, "upper": 1.0}
    with pytest.raises(ValueError, match="KL"):
        adaptive_kl_coef(0.2, observed, **{**settings, **changes})  # pyright: ignore[reportArgumentType]


def test_token_rewards_of_a_row_add_up_to_score_minus_its_kl() -> None:
    mask, (kl, scores) = random_rows(64, 2)
    rewards = token_rewards(scores[:, 0], kl, mask, 0.2)
    torch.testing.assert_close(rewards.sum(1), scores[:, 0] - 0.2 * (kl * mask).sum(1))
    assert not rewards[~mask].any()


def test_token_rewards_refuses_rows_without_completion_and_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        token_rewards(torch.ones(1), torch.zeros(1, 3), flags("..."), 0.1)
    with pytest.raises(ValueError, match="scores"):
        token_rewards(torch.ones(2), torch.zeros(1, 3), flags(".xx"), 0.1)
    with pytest.raises(ValueError, match="shape"):
        token_rewards(torch.ones(1), torch.zeros(1, 4), flags(".xx"), 0.1)


def test_normalized_scores_have_the_target_moments() -> None:
    scores = 7 + 3 * torch.randn(100, generator=torch.Generator().manual_seed(65))
    gain, bias = fit_score_normalization(scores, target_mean=0.5, target_std=2.0)
    normalized = normalize_scores(scores.double(), gain, bias)
    torch.testing.assert_close(normalized.mean().item(), 0.5)
    torch.testing.assert_close(normalized.std(correction=0).item(), 2.0)


@pytest.mark.parametrize("scores", [[1.0], [0.3, 0.3, 0.3], [1.0, math.nan], [1.0, math.inf]])
def test_scores_that_fix_no_scale_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="scores"):
        fit_score_normalization(torch.tensor(scores))


def test_score_settings_outside_their_range_are_refused() -> None:
    scores = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="limit"):
        clip_scores(scores, 0.0)
    with pytest.raises(ValueError, match="target_std"):
        fit_score_normalization(scores, target_std=0.0)
    with pytest.raises(ValueError, match="bool"):
        apply_stop_penalty(scores, torch.tensor([1, 0]), mode="replace", value=0.0)
    with pytest.raises(ValueError, match="shape"):
        apply_stop_penalty(scores, torch.tensor([True]), mode="subtract", value=0.0)


def test_masks_that_are_none_of_completions_are_refused() -> None:
    check_completion_mask(flags("..xx."))
    check_completion_mask(flags("....."))
    check_completion_mask(flags(".x.x"))  # two turns
    with pytest.raises(ValueError, match="index 0"):
        check_completion_mask(flags("xx.."))
    with pytest.raises(ValueError, match="bool"):
        check_completion_mask(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="bool"):
        check_completion_mask(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        last_true_index(torch.cat([flags(".x"), flags("..")]))


def test_lengths_that_do_not_fit_are_refused() -> None:
    def mask(prompt: int, completion: int) -> Tensor:
        return completion_mask_from_lengths(torch.tensor([prompt]), torch.tensor([completion]), 4)

    assert mask(4, 0).sum() == 0
    for prompt, completion in [(0, 2), (2, -1), (3, 2)]:
        with pytest.raises(ValueError, match=r"rows \[0\]"):
            mask(prompt, completion)
    for length in (-1, 4):
        with pytest.raises(ValueError, match="lengths"):
            lengths_to_mask(torch.tensor([length]), 3)
