"""Loss of implicit language Q-learning: what a token is worth, learned from completions that others wrote."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harken.core.aggregate import LossOutput, check_same_shape, masked_sum, zero_outside
from harken.core.kl import MAX_LOG_RATIO


def next_values(values: Tensor, completion_mask: Tensor) -> Tensor:
    """Value of the state that each token leads to: the one read before the next token, 0 after the last.

    Args:
        values: (B, S), the value before each completion token; NaN outside the mask does not leak.
        completion_mask: (B, S) bool, True = completion token; in each row one run of them.

    Returns:
        (B, S), zero where masked out.

    Raises:
        ValueError: if the shapes differ.
    """
    inside = zero_outside(values, completion_mask)
    shifted = torch.cat([inside[:, 1:], torch.zeros_like(inside[:, :1])], dim=1)
    return zero_outside(shifted, completion_mask)


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """Asymmetric square |expectile - 1[error < 0]| error^2 of each error.

    The constant that minimizes its mean over x - constant is the expectile of x: the mean at 1/2, the maximum as the
    expectile goes to 1.

    Args:
        errors: any shape.
        expectile: in (0, 1).

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: if the expectile is outside (0, 1).

    Source:
        Implicit Q-learning, arXiv:2110.06169.
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile is {expectile}, expected a value in (0, 1)")
    weight = torch.full_like(errors, expectile).masked_fill(errors < 0, 1.0 - expectile)
    return weight * errors.square()


class IlqlTensors(NamedTuple):
    """What the loss reads, per token, at the token's own index.

    Attributes:
        q_values: of each of K heads (B, S), Q of the token written, with gradient.
        q_logprobs: of each head (B, S), its log-softmax over the vocabulary at that token, with gradient.
        target_q_values: of each head's slow copy (B, S); taken as constant.
        values: (B, S), V read before the token, with gradient.
        policy_logprobs: (B, S), nats, with gradient.
        rewards: (B, S), taken as constant.
        completion_mask: (B, S) bool, True = completion token; in each row one run of them.
    """

    q_values: Sequence[Tensor]
    q_logprobs: Sequence[Tensor]
    target_q_values: Sequence[Tensor]
    values: Tensor
    policy_logprobs: Tensor
    rewards: Tensor
    completion_mask: Tensor


def ilql_loss(
    read: IlqlTensors,
    *,
    gamma: float,
    expectile: float,
    cql_coef: float,
    awac_coef: float,
    awac_beta: float,
    denominator: float | Tensor,
) -> LossOutput:
    """Implicit language Q-learning, token mean: Q by one step, V by an expectile, the policy by weighted imitation.

    Per token, with Qbar the least target Q of the token written and V' the value after it (without gradient):

        sum_k (Q_k - (r + gamma V'))^2               Q learns the reward to come
        + |expectile - 1[Qbar < V]| (Qbar - V)^2     V learns what the better tokens of the data are worth
        - cql_coef sum_k log softmax(Q_k)(token)     Q of tokens that the data lack falls
        - awac_coef exp(awac_beta (Qbar - V)) log pi(token)

    Args:
        read: heads and policy at the tokens written, and their rewards.
        gamma: discount per token, in [0, 1].
        expectile: in (0, 1); 1/2 learns the value of the data's policy, near 1 that of the best tokens in it.
        cql_coef: weight of the third term.
        awac_coef: weight of the fourth term.
        awac_beta: how much more tokens are imitated whose advantage is high; 0 imitates all alike.
        denominator: completion tokens in the whole batch of the optimizer step.

    Returns:
        LossOutput with metrics ``q_loss``, ``value_loss``, ``cql_loss``, ``awac_loss`` (each as in the sum, before its
        coefficient), and the token means ``q_mean`` (of the least target Q), ``value_mean`` and ``advantage_mean``.

    Raises:
        ValueError: if shapes or the numbers of heads differ, or a setting is outside its range.

    Source:
        arXiv:2206.11871; the four terms and the least of two target heads as in trlX (`modeling_ilql.py`).
    """
    _check(read, gamma)
    mask = read.completion_mask
    least = zero_outside(torch.stack(list(read.target_q_values)).amin(dim=0).detach(), mask)
    own = zero_outside(read.values, mask)
    goal = zero_outside(read.rewards, mask).detach() + gamma * next_values(own.detach(), mask)
    per_head = [(zero_outside(q, mask) - goal).square() for q in read.q_values]
    advantages = least - own.detach()
    # Clamp so that exp() cannot overflow.
    weights = (awac_beta * advantages).clamp(max=MAX_LOG_RATIO).exp()
    terms = {
        "q_loss": masked_sum(torch.stack(per_head).sum(dim=0), mask, denominator),
        "value_loss": masked_sum(expectile_loss(least - own, expectile), mask, denominator),
        "cql_loss": -masked_sum(
            torch.stack([zero_outside(q, mask) for q in read.q_logprobs]).sum(dim=0), mask, denominator
        ),
        "awac_loss": -masked_sum(weights * zero_outside(read.policy_logprobs, mask), mask, denominator),
    }
    loss = terms["q_loss"] + terms["value_loss"] + cql_coef * terms["cql_loss"] + awac_coef * terms["awac_loss"]
    means = {"q_mean": least, "value_mean": own, "advantage_mean": advantages}
    found = terms | {name: masked_sum(x, mask, denominator) for name, x in means.items()}
    return LossOutput(loss, {name: value.detach() for name, value in found.items()})


def _check(read: IlqlTensors, gamma: float) -> None:
    heads = {name: getattr(read, name) for name in ("q_values", "q_logprobs", "target_q_values")}
    if len({len(head) for head in heads.values()}) != 1 or not read.q_values:
        raise ValueError(f"heads: {', '.join(f'{len(head)} {name}' for name, head in heads.items())}; expected equal")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}, expected a value in [0, 1]")
    for name, head in heads.items():
        check_same_shape(read.values, **{f"{name}[{k}]": tensor for k, tensor in enumerate(head)})
    check_same_shape(read.values, rewards=read.rewards, policy_logprobs=read.policy_logprobs)
