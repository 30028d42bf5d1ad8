"""What must not change ILQL's loss and best-of-n, and what must."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harken.core.best_of_n import best_of_n_kl, best_of_n_logprobs, expected_best_of_n, soft_choice_logprobs
from harken.core.ilql_loss import IlqlTensors, expectile_loss, ilql_loss
from tests.core.samples import random_rows

SETTINGS: dict[str, float] = {"gamma": 0.9, "expectile": 0.7, "cql_coef": 0.1, "awac_coef": 1.0, "awac_beta": 0.3}


def _tensors(seed: int) -> IlqlTensors:
    mask, normals = random_rows(seed, 9)
    return IlqlTensors(normals[0:2], normals[2:4], normals[4:6], normals[6], normals[7], normals[8], mask)


def _changed(read: IlqlTensors, change: Any) -> IlqlTensors:
    """Apply a function to every tensor."""
    parts: list[Any] = [[change(one) for one in item] if isinstance(item, list) else change(item) for item in read]
    return IlqlTensors(*parts)


def _numbers(read: IlqlTensors, denominator: float = 5.0) -> dict[str, float]:
    result = ilql_loss(read, **SETTINGS, denominator=denominator)  # pyright: ignore[reportArgumentType]
    return {"loss": float(result.loss), **{name: float(value) for name, value in result.metrics.items()}}


def test_padding_and_row_order_change_no_part_of_the_loss_and_parts_add_up() -> None:
    read = _tensors(71)
    expected = _numbers(read)
    wider = _changed(read, lambda x: torch.cat([x, torch.zeros(4, 3, dtype=x.dtype)], dim=1))
    noisy = _changed(read, lambda x: x if x.dtype == torch.bool else x.masked_fill(~read.completion_mask, math.nan))
    assert _numbers(wider) == pytest.approx(expected)
    assert _numbers(noisy) == pytest.approx(expected)
    assert _numbers(_changed(read, lambda x: x[[2, 0, 3, 1]])) == pytest.approx(expected)
    first, rest = (_numbers(_changed(read, lambda x, rows=rows: x[rows])) for rows in (slice(0, 1), slice(1, 4)))
    assert {name: first[name] + rest[name] for name in expected} == pytest.approx(expected)


def test_heads_may_be_swapped() -> None:
    read = _tensors(72)
    swapped = read._replace(
        q_values=read.q_values[::-1], q_logprobs=read.q_logprobs[::-1], target_q_values=read.target_q_values[::-1]
    )
    assert _numbers(swapped) == pytest.approx(_numbers(read))


def test_the_expectile_of_a_half_is_the_mean_and_near_one_the_maximum() -> None:
    x = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    grid = torch.linspace(-1, 6, 7001, dtype=torch.float64)

    def best(expectile: float) -> float:
        return float(grid[expectile_loss(x[:, None] - grid, expectile).mean(dim=0).argmin()])

    assert best(0.5) == pytest.approx(2.0, abs=1e-3)
    # (1 - t) (v + v - 1) = t (5 - v): v = (5 t + 1 - t) / (2 - t) = 4.9604...
    assert best(0.99) == pytest.approx(4.96 / 1.01, abs=1e-3)


def test_ilql_refuses_what_would_be_silently_wrong() -> None:
    read = _tensors(73)
    with pytest.raises(ValueError, match="expectile is 1"):
        ilql_loss(read, **SETTINGS | {"expectile": 1.0}, denominator=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="gamma is 2"):
        ilql_loss(read, **SETTINGS | {"gamma": 2.0}, denominator=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="denominator"):
        _numbers(read, denominator=0.0)
    with pytest.raises(ValueError, match=r"2 q_values, 1 q_logprobs"):
        _numbers(read._replace(q_logprobs=read.q_logprobs[:1]))
    with pytest.raises(ValueError, match=r"target_q_values\[1\] has shape"):
        _numbers(read._replace(target_q_values=[read.target_q_values[0], read.target_q_values[1][:, :1]]))


def _listed(seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(count, generator=generator, dtype=torch.float64).log_softmax(0)
    return logprobs, torch.randn(count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_best_of_n_stays_below_its_bound_and_nears_it_where_no_completion_is_likely(n: int) -> None:
    logprobs, scores = _listed(81)
    kept = best_of_n_logprobs(logprobs, scores, n)
    assert float(kept.exp().sum()) == pytest.approx(1.0)
    assert float((kept.exp() * (kept - logprobs)).sum()) < best_of_n_kl(n)
    # 100,000 equally likely completions: the bound is met.
    flat = torch.full((100_000,), -math.log(100_000), dtype=torch.float64)
    kept = best_of_n_logprobs(flat, torch.arange(100_000), n)
    assert float((kept.exp() * (kept - flat)).sum()) == pytest.approx(best_of_n_kl(n), abs=1e-3)


def test_best_of_n_depends_on_the_order_of_scores_only() -> None:
    logprobs, scores = _listed(82)
    torch.testing.assert_close(best_of_n_logprobs(logprobs, scores, 5), best_of_n_logprobs(logprobs, scores.exp(), 5))


def test_the_estimate_of_the_best_of_n_is_unbiased() -> None:
    # 20,000 times 8 draws; the exact mean is that of the exact distribution. 4 standard errors: once in 16,000.
    logprobs, scores = _listed(83)
    draws = torch.multinomial(logprobs.exp().expand(20_000, -1), 8, replacement=True)
    for n in (1, 3, 8):
        found = expected_best_of_n(scores[draws], n)
        exact = float((best_of_n_logprobs(logprobs, scores, n).exp() * scores).sum())
        assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(20_000)


def test_choosing_by_lot_goes_from_any_to_the_best() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0]])
    close = torch.testing.assert_close
    close(soft_choice_logprobs(scores, 1e9).exp(), torch.full((1, 3), 1 / 3, dtype=torch.float64))
    close(soft_choice_logprobs(scores, 1e-3).exp(), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))


def test_best_of_n_refuses_what_would_be_silently_wrong() -> None:
    logprobs, scores = _listed(84)
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n_kl(0)
    with pytest.raises(ValueError, match="sum to 0"):
        best_of_n_logprobs(logprobs[:20], scores[:20], 2)
    with pytest.raises(ValueError, match=r"expected \(N,\) both"):
        best_of_n_logprobs(logprobs, scores[:20], 2)
    with pytest.raises(ValueError, match="n is 9 with 8 scores"):
        expected_best_of_n(scores[:8], 9)
    with pytest.raises(ValueError, match="beta is 0"):
        soft_choice_logprobs(scores[None], 0.0)
