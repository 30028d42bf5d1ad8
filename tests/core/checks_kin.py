"""Value checks of what PPO's kin and its options need; see checks.py."""

import math
from types import ModuleType

import torch

from tests.core.samples import NAN, close, flags, random_rows, row, vector
from tests.reference import kin

LOG = math.log


# ------------------------------------------------------------------------ group advantages


def check_leave_one_out(module: ModuleType) -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2; the second group is alike: exactly 0, in fp32 too.
    close(module.leave_one_out_advantages(vector(1, 2, 6, 5, 5, 5), 3), [-3.0, -1.5, 4.5, 0, 0, 0])
    assert not module.leave_one_out_advantages(torch.full((7,), -1000.1), 7).any()
    _, (x,) = random_rows(70, 1)
    rewards = x.flatten()
    close(module.leave_one_out_advantages(rewards, 4), kin.rloo(rewards.tolist(), 4))


def check_group_advantages(module: ModuleType) -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, over n - 1 = 2: deviation sqrt(7).
    rewards, size = vector(1, 2, 6, 5, 5, 5), math.sqrt(7) + 1e-6
    close(module.group_advantages(rewards, 3, divide_by_std=False), [-2.0, -1, 3, 0, 0, 0])
    close(module.group_advantages(rewards, 3, divide_by_std=True), [-2 / size, -1 / size, 3 / size, 0, 0, 0])
    # A spread of 1e-8 is not blown up to 1: 1e-8 / (1e-8 sqrt(2) + 1e-6).
    tiny = module.group_advantages(vector(1e-8, -1e-8), 2, divide_by_std=True)
    close(tiny, [1e-8 / (1e-8 * math.sqrt(2) + 1e-6), -1e-8 / (1e-8 * math.sqrt(2) + 1e-6)])
    assert not module.group_advantages(torch.full((7,), -1000.1), 7, divide_by_std=True).any()
    _, (x,) = random_rows(71, 1)
    for divide in (True, False):
        actual = module.group_advantages(x.flatten(), 6, divide_by_std=divide)
        close(actual, kin.group(x.flatten().tolist(), 6, divide))


def check_equal_groups(module: ModuleType) -> None:
    found = module.groups_with_equal_rewards(vector(1, 1, 2, 3, 3, 3, 4, 4.5, 4), 3)
    assert found.tolist() == [False, True, False]


# --------------------------------------------------------------------------- sequence losses


def check_reinforce(module: ModuleType) -> None:
    # -(2 * -1 + -3 * -2) / 4 = -1; ratios e^.5 and e^-1: squares .25 + 1.
    policy, old = row(NAN, -1.0, -2.0, -9.0), row(0.0, -1.5, -1.0, NAN)
    result = module.reinforce_policy_loss(policy, old, row(7.0, 2.0, -3.0, NAN), flags(".xx."), denominator=4)
    close(result.loss, -1.0)
    close(result.metrics["ratio"], (math.exp(0.5) + math.exp(-1)) / 4)
    close(result.metrics["approx_kl"], 1.25 / 8)
    close(result.metrics["clip_fraction"], 0.0)
    mask, (policy, old, advantages) = random_rows(72, 3)
    result = module.reinforce_policy_loss(policy, old, advantages, mask, denominator=int(mask.sum()))
    close(result.loss, kin.reinforce(policy.tolist(), advantages.tolist(), mask.tolist()))
    far = module.reinforce_policy_loss(row(0.0, 1000.0), row(0.0, 0.0), row(0.0, 1.0), flags(".x"), denominator=1)
    close(far.metrics["ratio"], math.exp(20))


def check_reinforce_gradient(module: ModuleType) -> None:
    # d / d logprob = -A / denominator, whatever the ratio.
    policy = row(0.0, -1.0, -2.0).requires_grad_()
    loss = module.reinforce_policy_loss(policy, row(0.0, -3.0, -2.0), row(9.0, 2.0, -3.0), flags(".xx"), denominator=4)
    loss.loss.backward()
    assert policy.grad is not None
    close(policy.grad, [[0.0, -0.5, 0.75]])


def check_gspo(module: ModuleType) -> None:
    # Log-ratios ln 2 and ln 8 in one row: the ratio is sqrt(2 * 8) = 4. Bounds [.5, 1.5]: A = 1 gives -1.5, A = -2: 8.
    old = row(0.0, -5.0, -5.0, NAN)
    policy = old + row(0.0, LOG(2), LOG(8), 0.0)
    settings = {"clip_low": 0.5, "clip_high": 0.5, "denominator": 4}
    result = module.gspo_policy_loss(policy, old, row(3.0, 1.0, -2.0, NAN), flags(".xx."), **settings)
    close(result.loss, (-1.5 + 8) / 4)
    close(result.metrics["ratio"], 2 * 4 / 4)
    close(result.metrics["clip_fraction"], 1 / 4)
    close(result.metrics["approx_kl"], (LOG(2) ** 2 + LOG(8) ** 2) / 8)
    mask, (policy, old, advantages) = random_rows(73, 3)
    expected = kin.gspo(policy.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), (0.2, 0.4))
    settings = {"clip_low": 0.2, "clip_high": 0.4, "denominator": int(mask.sum())}
    result = module.gspo_policy_loss(policy, old, advantages, mask, **settings)
    close(result.loss, expected["loss"])
    close(result.metrics["ratio"], expected["ratio"])
    close(result.metrics["clip_fraction"], expected["clip_fraction"])


def check_gspo_gradient(module: ModuleType) -> None:
    # Ratio 1, two tokens of one row with A = 3: each token's log-ratio moves both tokens' terms by half of -3.
    policy = row(0.0, -1.0, -2.0).requires_grad_()
    settings = {"clip_low": 0.2, "clip_high": 0.2, "denominator": 4}
    loss = module.gspo_policy_loss(policy, policy.detach(), row(0.0, 3.0, 3.0), flags(".xx"), **settings)
    loss.loss.backward()
    assert policy.grad is not None
    close(policy.grad, [[0.0, -0.75, -0.75]])


def check_cispo(module: ModuleType) -> None:
    # Ratios 2, .25, 1.1 with weights in [.5, 1.5]: 1.5, .5, 1.1. -(1.5 * 2 * -1 + .5 * -4 * -2 + 1.1 * 1 * -3) / 4.
    policy = row(NAN, -1.0, -2.0, -3.0, -1.0)
    old = policy - row(0.0, LOG(2), LOG(0.25), LOG(1.1), 0.0)
    settings = {"clip_low": 0.5, "clip_high": 0.5, "denominator": 4}
    result = module.cispo_policy_loss(policy, old, row(5.0, 2.0, -4.0, 1.0, NAN), flags(".xxx."), **settings)
    close(result.loss, -(-3.0 + 4.0 - 3.3) / 4)
    close(result.metrics["clip_fraction"], 2 / 4)
    close(result.metrics["ratio"], 3.35 / 4)
    close(result.metrics["approx_kl"], (LOG(2) ** 2 + LOG(4) ** 2 + LOG(1.1) ** 2) / 8)
    mask, (policy, old, advantages) = random_rows(74, 3)
    expected = kin.cispo(policy.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), (0.3, 0.2))
    settings = {"clip_low": 0.3, "clip_high": 0.2, "denominator": int(mask.sum())}
    result = module.cispo_policy_loss(policy, old, advantages, mask, **settings)
    close(result.loss, expected["loss"])
    close(result.metrics["ratio"], expected["ratio"])
    close(result.metrics["clip_fraction"], expected["clip_fraction"])


def check_cispo_gradient(module: ModuleType) -> None:
    # A clipped token keeps its gradient: -1.5 * 2 / 4 with ratio 2; the weight itself has none.
    policy = row(0.0, LOG(2) - 1.0, -2.0).requires_grad_()
    settings = {"clip_low": 0.5, "clip_high": 0.5, "denominator": 4}
    loss = module.cispo_policy_loss(policy, row(0.0, -1.0, -2.0), row(0.0, 2.0, -3.0), flags(".xx"), **settings)
    loss.loss.backward()
    assert policy.grad is not None
    close(policy.grad, [[0.0, -0.75, 0.75]])


# ---------------------------------------------------------------------------- running moments


def check_moments(module: ModuleType) -> None:
    empty = module.Moments()
    assert (empty.mean, empty.std) == (0.0, 1.0)
    # One batch is all there is, whatever the decay: 1 and 3, mean 2, deviation 1.
    mask = flags(".xx.")
    first = module.update_moments(empty, row(NAN, 1.0, 3.0, 8.0), mask, decay=0.75)
    close(first.mean, 2.0)
    close(first.std, 1.0)
    # Then 5 and 5: weights 3/16 and 1/4 of 7/16, so mean (3 * 2 + 4 * 5) / 7 = 26/7, square (3 * 5 + 4 * 25) / 7.
    second = module.update_moments(first, row(NAN, 5.0, 5.0, 8.0), mask, decay=0.75)
    close(second.mean, 26 / 7)
    close(second.std, math.sqrt(115 / 7 - (26 / 7) ** 2))
    # Returns that do not vary have the smallest deviation, not 0.
    close(module.update_moments(empty, row(5.0, 5.0), flags("xx"), decay=0.5).std, 1e-4)
    batches = [random_rows(seed, 1) for seed in (75, 76, 77)]
    found = module.Moments()
    for mask, (x,) in batches:
        found = module.update_moments(found, x, mask, decay=0.9)
    mean, std = kin.decayed_moments([x[mask].tolist() for mask, (x,) in batches], 0.9)
    close(found.mean, mean)
    close(found.std, std)


def check_normalization(module: ModuleType) -> None:
    # Weight 1/2, mean 2, squares 13: deviation 3.
    moments = module.Moments(weight=0.5, mean_sum=1.0, square_sum=6.5)
    close(module.normalize(vector(2.0, 8.0), moments), [0.0, 2.0])
    close(module.denormalize(vector(0.0, 2.0), moments), [2.0, 8.0])


def check_rescaled_head(module: ModuleType) -> None:
    # Old: mean 2, deviation 3. New: mean -1, deviation 2. Output 2 h - 1 means 3 (2 h - 1) + 2 = 6 h - 1,
    # which is 2 (3 h + 0) - 1 in the new units.
    old = module.Moments(weight=0.5, mean_sum=1.0, square_sum=6.5)
    new = module.Moments(weight=0.5, mean_sum=-0.5, square_sum=2.5)
    weight, bias = module.rescaled_head(row(2.0), vector(-1.0), old, new)
    close(weight, [[3.0]])
    close(bias, [0.0])


# --------------------------------------------------------------------------- options of PPO


def check_row_weights(module: ModuleType) -> None:
    # Rows of 1 and 3 tokens: 2 a row. By sequence 2/1 and 2/3; by the constant 5: 2/5 each.
    mask = torch.cat([flags(".x.."), flags(".xxx")])
    close(module.row_weights(mask, "token_mean", length=5), [[1.0], [1.0]])
    close(module.row_weights(mask, "sequence_mean", length=5), [[2.0], [2 / 3]], rtol=1e-6)
    close(module.row_weights(mask, "constant", length=5), [[0.4], [0.4]], rtol=1e-6)
    close(module.row_weights(flags("..."), "sequence_mean", length=5), [[0.0]])
    mask, (x,) = random_rows(78, 1)
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        weights = module.row_weights(mask, aggregation, length=6)
        actual = module.masked_sum(x * weights, mask, int(mask.sum()))
        close(actual, kin.aggregated(x.tolist(), mask.tolist(), aggregation, 6), rtol=1e-6)


def check_kl_loss_terms(module: ModuleType) -> None:
    # Delta ln 2, drawn where the policy had half as much: ratio 2. k2: 2 * (ln 2)^2 / 2; k3: 2 * (1/2 - 1 + ln 2).
    ref, old = row(NAN, -3.0, NAN), row(NAN, LOG(2) - 3.0 - LOG(2), NAN)
    policy = row(NAN, LOG(2) - 3.0, NAN).requires_grad_()
    found = module.kl_loss_terms(policy, old, ref, flags(".x."), estimator="k2")
    close(found, [[0.0, LOG(2) ** 2, 0.0]])
    (gradient,) = torch.autograd.grad(found.sum(), policy)
    close(gradient, [[0.0, 2 * LOG(2), 0.0]])
    found = module.kl_loss_terms(policy, old, ref, flags(".x."), estimator="k3")
    close(found, [[0.0, 2 * (LOG(2) - 0.5), 0.0]])
    # d k3 / d logprob = 1 - exp(-Delta) = 1/2, times the ratio.
    (gradient,) = torch.autograd.grad(found.sum(), policy)
    close(gradient, [[0.0, 1.0, 0.0]])
    # A token given up, Delta -5: the loss grows with it, e^5 - 1 - 5 = 142.4, where the measure ends at 10.
    found = module.kl_loss_terms(row(-6.0), row(-6.0), row(-1.0), flags("x"), estimator="k3")
    close(found, [[math.exp(5) - 6]])
    far = module.kl_loss_terms(row(1000.0), row(0.0), row(1000.0 - 1.0), flags("x"), estimator="k2")
    close(far, [[math.exp(20) / 2]])


def check_huber_value_loss(module: ModuleType) -> None:
    # Range .2 about 1, delta .5. V 1.5, R 2: .5^2 / 2 against error .8: .5 * (.8 - .25) = .275. V 1, R 1.25: .03125.
    result = module.clipped_value_loss(
        row(NAN, 1.5, 1.0), row(0.0, 1.0, 1.0), row(0.0, 2.0, 1.25), flags(".xx"),
        clip_range=0.2, denominator=4, huber_delta=0.5,
    )  # fmt: skip
    close(result.loss, (0.275 + 0.03125) / 4)
    mask, (values, old, returns) = random_rows(79, 3)
    expected = kin.huber_value_loss(values.tolist(), old.tolist(), returns.tolist(), mask.tolist(), 0.5, 0.7)
    settings = {"clip_range": 0.5, "denominator": int(mask.sum()), "huber_delta": 0.7}
    close(module.clipped_value_loss(values, old, returns, mask, **settings).loss, expected)


def check_overlong_penalty(module: ModuleType) -> None:
    # Limit 20, buffer 5: nothing up to 15, then -1/5 a token, -1 at 20.
    close(module.overlong_penalty(torch.tensor([1, 15, 16, 18, 20]), max_length=20, buffer=5), [0, 0, -0.2, -0.6, -1],
          rtol=1e-6)  # fmt: skip


def check_adaptive_entropy_coef(module: ModuleType) -> None:
    settings = {"target": 1.0, "change": 0.25, "upper": 1.0}
    close(module.adaptive_entropy_coef(0.5, 0.9, **settings), 0.75)
    close(module.adaptive_entropy_coef(0.5, 1.1, **settings), 0.25)
    close(module.adaptive_entropy_coef(0.5, 1.0, **settings), 0.25)
    close(module.adaptive_entropy_coef(0.1, 2.0, **settings), 0.0)
    close(module.adaptive_entropy_coef(0.9, 0.0, **settings), 1.0)


def check_gae_over_several_turns(module: ModuleType) -> None:
    # Two tokens of another between the policy's two: the same numbers as without them (see check_gae).
    rewards, values = row(7.0, 1.0, NAN, 9.0, 2.0, 7.0), row(7.0, 0.5, 9.0, NAN, 0.25, 7.0)
    advantages, returns = module.gae(rewards, values, flags(".x..x."), gamma=0.5, gae_lambda=0.8)
    close(advantages, [[0.0, 1.325, 0.0, 0.0, 1.75, 0.0]])
    close(returns, [[0.0, 1.825, 0.0, 0.0, 2.0, 0.0]])


def check_token_kl(module: ModuleType) -> None:
    # Logits (ln 3, 0) against (0, ln 3): the other way round, so (2 p - 1) ln(p / (1 - p)) nats,
    # with odds p / (1 - p) of 3, at temperature 1/2 of 9.
    hidden, ref = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    hidden[0, 0, 0] = ref[0, 0, 1] = LOG(3)
    ids = torch.tensor([[0, 1]])
    for temperature, p, odds in ((1.0, 0.75, 3), (0.5, 0.9, 9)):
        reference = (ref, lambda h: h)
        found = module.token_logprobs(
            hidden, ids, flags(".x"), lambda h: h, temperature=temperature, reference=reference
        )
        close(found.kl, [[0.0, (2 * p - 1) * LOG(odds)]])
    # (ln 3, 0) against (0, 0): not the same the other way round.
    found = module.token_logprobs(hidden, ids, flags(".x"), lambda h: h, reference=(0 * ref, lambda h: h))
    close(found.kl, [[0.0, 0.75 * LOG(1.5) + 0.25 * LOG(0.5)]])
    assert module.token_logprobs(hidden, ids, flags(".x"), lambda h: h).kl is None
