"""Value checks of rewards, advantages and losses; see checks.py."""

import math
from types import ModuleType

import torch
from torch import Tensor

from tests.core.samples import NAN, close, flags, random_rows, row
from tests.reference import distributions, ppo

# --------------------------------------------------------------------------------- rewards


def check_scores(module: ModuleType) -> None:
    scores = torch.tensor([-7.0, 1.0, 6.0], dtype=torch.float64)
    close(module.clip_scores(scores, 5.0), [-5.0, 1.0, 5.0])
    stopped = torch.tensor([True, False, False])
    close(module.apply_stop_penalty(scores, stopped, mode="replace", value=-1.0), [-7, -1, -1])
    close(module.apply_stop_penalty(scores, stopped, mode="subtract", value=2.0), [-7, -1, 4])


def check_token_rewards(module: ModuleType) -> None:
    # -0.1 * 0.5; 2 - 0.1 * -0.25.
    rewards = module.token_rewards(
        torch.tensor([2.0], dtype=torch.float64), row(9.0, 0.5, -0.25, NAN), flags(".xx."), 0.1
    )
    close(rewards, [[0.0, -0.05, 2.025, 0.0]])
    mask, (kl, scores) = random_rows(9, 2)
    expected = ppo.token_rewards(scores[:, 0].tolist(), kl.tolist(), mask.tolist(), 0.3)
    close(module.token_rewards(scores[:, 0], kl, mask, 0.3), expected)


def check_score_normalization(module: ModuleType) -> None:
    # 1 and 5: mean 3, biased deviation 2; to mean 1, deviation 4: gain 2, bias 1 - 2 * 3 = -5.
    scores = torch.tensor([1.0, 5.0])
    gain, bias = module.fit_score_normalization(scores, target_mean=1.0, target_std=4.0)
    close(gain, 2.0)
    close(bias, -5.0)
    close(module.normalize_scores(scores, gain, bias), [-3.0, 5.0])


# ------------------------------------------------------------------------------ advantages


def check_gae(module: ModuleType) -> None:
    # gamma .5, lambda .8. Last token: 2 - .25 = 1.75. First: delta = 1 + .5 * .25 - .5 = .625,
    # advantage .625 + .4 * 1.75 = 1.325. What stands outside the mask must not enter.
    for outside in (7.0, NAN):
        rewards, values = row(outside, 1.0, 2.0, outside), row(outside, 0.5, 0.25, outside)
        advantages, returns = module.gae(rewards, values, flags(".xx."), gamma=0.5, gae_lambda=0.8)
        close(advantages, [[0.0, 1.325, 1.75, 0.0]])
        close(returns, [[0.0, 1.825, 2.0, 0.0]])
    mask, (rewards, values) = random_rows(10, 2)
    for gamma, gae_lambda in [(1.0, 0.95), (0.9, 0.6), (0.7, 0.0)]:
        expected = ppo.gae(rewards.tolist(), values.tolist(), mask.tolist(), gamma, gae_lambda)
        actual = module.gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
        close(actual[0], expected[0])
        close(actual[1], expected[1])


def check_whiten(module: ModuleType) -> None:
    # 1 and 3: mean 2, biased variance 1.
    x, mask = row(8.0, 1.0, 3.0, NAN), flags(".xx.")
    close(module.whiten(x, mask), [[0.0, -1.0, 1.0, 0.0]], rtol=1e-7)
    # 1 and 5: mean 3, deviation 2, so 2 and 4.
    close(module.scale_to_unit_std(row(8.0, 1.0, 5.0), flags(".xx")), [[0, 2, 4]], rtol=1e-7)
    mask, (x,) = random_rows(12, 1)
    close(module.whiten(x, mask), ppo.whiten(x.tolist(), mask.tolist()))
    # Variance 1e-12 is far below the guard: deviations of 1e-6 become 1e-6 / 1e-4, nearly.
    close(module.whiten(row(1e-6, -1e-6), flags("xx")), [[0.01, -0.01]], rtol=1e-4)


# ----------------------------------------------------------------------------- policy loss


def check_ppo_policy_loss(module: ModuleType) -> None:
    # Bounds [.8, 1.3]; (ratio, A) -> loss: (1.5, 2) -> -2.6 clipped; (.5, 1) -> -.5;
    # (.5, -1) -> .8 clipped; (1.5, -2) -> 3, with dual clip 1.4 -> 2.8; (1.1, 1) -> -1.1;
    # (2, 1) -> -1.3 clipped. Sums -1.7 and -1.9.
    ratios = row(NAN, 1.5, 0.5, 0.5, 1.5, 1.1, 2.0, 9.0)
    advantages, mask = row(NAN, 2.0, 1.0, -1.0, -2.0, 1.0, 1.0, 4.0), flags(".xxxxxx.")
    old = torch.full_like(ratios, -3.0)
    settings = {"clip_low": 0.2, "clip_high": 0.3, "denominator": 6}
    plain = module.ppo_policy_loss(old + ratios.log(), old, advantages, mask, **settings)
    close(plain.loss, -1.7 / 6)
    close(plain.metrics["clip_fraction"], 3 / 6)
    close(plain.metrics["ratio"], 7.1 / 6)
    squares = 2 * math.log(1.5) ** 2 + 3 * math.log(2) ** 2 + math.log(1.1) ** 2
    close(plain.metrics["approx_kl"], squares / 12)
    dual = module.ppo_policy_loss(old + ratios.log(), old, advantages, mask, **settings, dual_clip=1.4)
    close(dual.loss, -1.9 / 6)
    # A log-ratio of 1000 is clamped to 20, so the loss stays finite.
    far = module.ppo_policy_loss(row(0.0, 1000.0), row(0.0, 0.0), row(0.0, -1.0), flags(".x"), **settings)
    close(far.loss, math.exp(20) / 6)


def check_ppo_policy_loss_at_random(module: ModuleType) -> None:
    mask, (policy, old, advantages) = random_rows(13, 3)
    count = int(mask.sum())
    for dual_clip in (None, 1.5):
        expected = ppo.ppo_policy_loss(
            policy.tolist(),
            old.tolist(),
            advantages.tolist(),
            mask.tolist(),
            (0.2, 0.28),
            dual_clip,
        )
        settings = {"clip_low": 0.2, "clip_high": 0.28, "denominator": count}
        actual = module.ppo_policy_loss(policy, old, advantages, mask, **settings, dual_clip=dual_clip)
        close(actual.loss, expected.pop("loss"))
        assert actual.metrics.keys() == expected.keys()
        for name, value in expected.items():
            close(actual.metrics[name], value)


def check_ppo_gradient(module: ModuleType) -> None:
    # At ratio 1 d(-A ratio)/d logprob = -A; ratio 1.5 with A > 0 is clipped: no gradient.
    policy = row(0.0, -1.0, -2.0, math.log(1.5) - 1.0).requires_grad_()
    old, advantages = row(0.0, -1.0, -2.0, -1.0), row(5.0, 2.0, -3.0, 1.0)
    settings = {"clip_low": 0.2, "clip_high": 0.2, "denominator": 8}
    module.ppo_policy_loss(policy, old, advantages, flags(".xxx"), **settings).loss.backward()
    assert policy.grad is not None
    close(policy.grad, [[0.0, -2 / 8, 3 / 8, 0.0]])


def check_entropy_bonus(module: ModuleType) -> None:
    close(module.entropy_bonus(row(NAN, 1.0, 2.0, 8.0), flags(".xx."), 4), 0.75)


# ------------------------------------------------------------------------ importance weights


def check_importance_weights(module: ModuleType) -> None:
    # Ratios 1.5, 0.5, 4 with cap 2: weights 1.5, 0.5, 2; sum 4, squares 2.25 + .25 + 4 = 6.5.
    sampler = row(NAN, -1.0, -2.0, -3.0, -1.0)
    old = sampler + row(0.0, math.log(1.5), math.log(0.5), math.log(4.0), 5.0)
    weights, metrics = module.truncated_importance_weights(old, sampler, flags(".xxx."), cap=2.0)
    close(weights, [[0.0, 1.5, 0.5, 2.0, 0.0]])
    close(metrics["importance_weight_mean"], 4 / 3)
    close(metrics["importance_truncated"], 1 / 3)
    close(metrics["importance_effective"], 16 / (3 * 6.5))
    # A token that the sampler called impossible has the weight of the cap, not inf.
    far, _ = module.truncated_importance_weights(row(0.0, -1.0), row(-math.inf, -1.0), flags("xx"), cap=2.0)
    close(far, [[2.0, 1.0]])
    # At the cap nothing was cut.
    _, metrics = module.truncated_importance_weights(row(0.0, 0.0), row(0.0, 0.0), flags("xx"), cap=1.0)
    close(metrics["importance_truncated"], 0.0)


def check_importance_weights_at_random(module: ModuleType) -> None:
    mask, (old, sampler) = random_rows(18, 2)
    expected = ppo.truncated_importance_weights(old.tolist(), sampler.tolist(), mask.tolist(), 1.5)
    weights, metrics = module.truncated_importance_weights(old, sampler, mask, cap=1.5)
    close(weights[mask], expected["weights"])
    close(metrics["importance_weight_mean"], expected["mean"])
    close(metrics["importance_truncated"], expected["truncated"])
    close(metrics["importance_effective"], expected["effective"])


def check_importance_weights_have_no_gradient(module: ModuleType) -> None:
    old = row(-1.0, -2.0).requires_grad_()
    weights, _ = module.truncated_importance_weights(old, row(-1.5, -1.5), flags("xx"), cap=2.0)
    assert not weights.requires_grad


# ------------------------------------------------------------------------------ value loss


def check_clipped_value_loss(module: ModuleType) -> None:
    # Range .2 about 1. V 1.5, R 2: .25 against (1.2 - 2)^2 = .64, clipped. V .5, R 2: 2.25
    # against (.8 - 2)^2 = 1.44. Half of (.64 + 2.25) / 4 = .36125.
    values, old = row(NAN, 1.5, 0.5, 3.0), row(0.0, 1.0, 1.0, 1.0)
    result = module.clipped_value_loss(
        values, old, row(0.0, 2.0, 2.0, 9.0), flags(".xx."), clip_range=0.2, denominator=4
    )
    close(result.loss, 0.36125)
    close(result.metrics["value_clip_fraction"], 0.25)
    mask, (values, old, returns) = random_rows(14, 3)
    expected = ppo.clipped_value_loss(values.tolist(), old.tolist(), returns.tolist(), mask.tolist(), 0.5)
    result = module.clipped_value_loss(values, old, returns, mask, clip_range=0.5, denominator=int(mask.sum()))
    close(result.loss, expected["loss"])
    close(result.metrics["value_clip_fraction"], expected["value_clip_fraction"])


def check_explained_variance(module: ModuleType) -> None:
    # R 1, 3: variance 1. R - V = 0, 1: variance .25.
    mask = flags(".xx.")
    close(module.explained_variance(row(5, 1, 2, NAN), row(0, 1, 3, 0), mask), 0.75)
    close(module.explained_variance(row(5, 1, 2, 0), row(0, 4, 4, 0), mask), 0.0)
    mask, (values, returns) = random_rows(15, 2)
    expected = ppo.explained_variance(values.tolist(), returns.tolist(), mask.tolist())
    close(module.explained_variance(values, returns, mask), expected)


# ----------------------------------------------------------------------------- reward loss


def bradley_terry(
    module: ModuleType, pairs: list[tuple[float, ...]], centering: float, denominator: float
) -> dict[str, Tensor]:
    """Loss and metrics of (chosen, rejected, label, margin, weight) pairs in one dictionary."""
    chosen, rejected, labels, margins, weights = torch.tensor(pairs, dtype=torch.float64).T
    result = module.bradley_terry_loss(
        chosen,
        rejected,
        soft_labels_P=labels,
        margins_P=margins,
        weights_P=weights,
        denominator=denominator,
        centering=centering,
    )
    return {"loss": result.loss, **result.metrics}


def check_bradley_terry(module: ModuleType) -> None:
    # Pair 1: delta = ln 3, sigmoid 3/4, label .9. Pair 2: equal scores, weight 2: 2 ln 2.
    first = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    pairs = [(math.log(3) + 1.5, 0.5, 0.9, 1.0, 1.0), (0.2, 0.2, 1.0, 0.0, 2.0)]
    result = bradley_terry(module, pairs, centering=0.0, denominator=3.0)
    close(result["loss"], (first + 2 * math.log(2)) / 3)
    close(result["accuracy"], (1 + 2 * 0.5) / 3)
    close(result["score_margin"], (math.log(3) + 1) / 3)
    # Centering adds .01 * ((ln 3 + 2)^2 + 2 * .4^2).
    centered = bradley_terry(module, pairs, centering=0.01, denominator=3.0)
    extra = 0.01 * ((math.log(3) + 2) ** 2 + 2 * 0.16) / 3
    close(centered["loss"], (first + 2 * math.log(2)) / 3 + extra)


def check_bradley_terry_at_random(module: ModuleType) -> None:
    generator = torch.Generator().manual_seed(16)
    scores = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    others = torch.rand(9, 3, generator=generator, dtype=torch.float64)
    pairs = [(*a, *b) for a, b in zip(scores.tolist(), others.tolist(), strict=True)]
    expected = distributions.bradley_terry(pairs, 0.05)
    actual = bradley_terry(module, pairs, 0.05, float(others[:, 2].sum()))
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        close(actual[name], value)


# -------------------------------------------------------------------------------- sft loss


def check_completion_nll(module: ModuleType) -> None:
    # -(ln 1/2 + ln 1/4) / 3 = ln 2.
    logprobs = row(NAN, math.log(0.5), math.log(0.25), -100.0)
    result = module.completion_nll(logprobs, flags(".xx."), 3)
    close(result.loss, math.log(2))
    close(result.metrics["nll"], math.log(2))
