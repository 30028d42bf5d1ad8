"""Truncated importance weights: what must not change them, and what must be so at special points."""

import math

import pytest
import torch
from torch.nn.functional import pad

from harken.core.importance import truncated_importance_weights
from tests.core.samples import random_rows
from tests.core.test_core_invariances import assert_same, policy_loss


def test_weighted_advantages_weight_each_tokens_loss() -> None:
    mask, (policy, old, advantages) = random_rows(46, 3)
    weights, _ = truncated_importance_weights(old, old + random_rows(47, 1)[1][0], mask, cap=2.0)
    weighted = policy_loss([policy, old, advantages * weights], mask, 1.0).loss
    # Token by token: a mask with one token in it gives that token's loss.
    alone = torch.zeros((), dtype=torch.float64)
    for place in mask.nonzero().tolist():
        only = torch.zeros_like(mask)
        only[tuple(place)] = True
        alone += weights[tuple(place)] * policy_loss([policy, old, advantages], only, 1.0).loss
    torch.testing.assert_close(weighted, alone, rtol=1e-12, atol=1e-12)


def test_a_sampler_that_agrees_has_weights_of_exactly_1() -> None:
    mask, (old,) = random_rows(48, 1)
    weights, metrics = truncated_importance_weights(old, old.clone(), mask, cap=2.0)
    assert torch.equal(weights, mask.to(old.dtype))
    assert float(metrics["importance_weight_mean"]) == float(metrics["importance_effective"]) == 1.0
    assert float(metrics["importance_truncated"]) == 0.0


def test_padding_and_row_order_change_no_importance_weight() -> None:
    mask, (old, sampler) = random_rows(49, 2)
    weights, metrics = truncated_importance_weights(old, sampler, mask, cap=2.0)
    wide = [pad(x, (0, 3), value=math.nan) for x in (old, sampler)]
    again, same = truncated_importance_weights(wide[0], wide[1], pad(mask, (0, 3)), cap=2.0)
    assert torch.equal(again, pad(weights, (0, 3)))
    assert_same(same, metrics)
    order = torch.tensor([2, 0, 3, 1])
    again, same = truncated_importance_weights(old[order], sampler[order], mask[order], cap=2.0)
    assert torch.equal(again, weights[order])
    assert_same(same, metrics)


def test_importance_weights_are_right_on_average_without_truncation() -> None:
    # E_q[p / q] = 1 exactly: summed over all tokens of a small vocabulary, weighted with q.
    generator = torch.Generator().manual_seed(50)
    p, q = torch.randn(2, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    weights, _ = truncated_importance_weights(p[None], q[None], torch.ones(1, 7, dtype=torch.bool), cap=1e9)
    torch.testing.assert_close((weights[0] * q.exp()).sum(), torch.ones((), dtype=torch.float64))


def test_importance_weights_refuse_a_cap_below_1_and_other_shapes() -> None:
    mask, (old, sampler) = random_rows(51, 2)
    with pytest.raises(ValueError, match=r"cap is 0\.5"):
        truncated_importance_weights(old, sampler, mask, cap=0.5)
    with pytest.raises(ValueError, match="sampler_logprobs has shape"):
        truncated_importance_weights(old, sampler[:1], mask, cap=2.0)
