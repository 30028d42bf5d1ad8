"""A head fitted by least squares, against ordinary solvers, slopes of the loss as it is written, and closed forms."""

import pytest
import torch
from torch import Tensor

from harken.core.ridge import no_observations, ridge_head, with_batch


def batch(n: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator) + 0.5
    return x, x @ torch.arange(1.0, width + 1) - 2.0 + torch.randn(n, generator=generator)


def test_a_tiny_ridge_on_one_batch_gives_ordinary_least_squares() -> None:
    x, y = batch(200, 5, 0)
    weight, bias = ridge_head(with_batch(no_observations(5), x, y, decay=1.0), ridge=1e-6)
    wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(200, 1)], 1).double(), y.double()[:, None]).solution[:, 0]
    torch.testing.assert_close(weight, wanted[:5], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias, wanted[5], rtol=1e-6, atol=1e-6)


def test_it_is_the_minimum_of_the_loss_of_its_docstring() -> None:
    seen, batches = no_observations(4), [batch(30, 4, seed) for seed in range(3)]
    for x, y in batches:
        seen = with_batch(seen, x, y, decay=0.7)
    weight, bias = ridge_head(seen, ridge=10.0)
    w = weight.clone().requires_grad_()
    shares = [0.7 ** (2 - age) for age in range(3)]
    centered = [(x.double() - x.double().mean(0), y.double() - y.double().mean()) for x, y in batches]
    variances = sum(share * x.square().sum(0) for share, (x, _) in zip(shares, centered, strict=True))
    v = torch.as_tensor(variances).mean() / (30 * sum(shares))
    errors = [share * (x @ w - y).square().sum() for share, (x, y) in zip(shares, centered, strict=True)]
    loss = torch.stack(errors).sum() + 10.0 * v * w.square().sum()
    (slope,) = torch.autograd.grad(loss, w)
    assert float(slope.abs().max()) < 1e-8
    assert float(weight.abs().max()) > 0.5, "not at 0, where little would be tested"
    x, y = batches[-1]
    assert float((x.double() @ weight + bias - y).mean()) == pytest.approx(0.0, abs=1e-6)


def test_rewards_that_drift_between_batches_do_not_turn_the_head() -> None:
    x, y = batch(100, 3, 4)
    still = with_batch(with_batch(no_observations(3), x, y, decay=0.9), x, y, decay=0.9)
    # The second batch's states and returns are shifted as a whole: no relation within a batch has changed.
    moved = with_batch(with_batch(no_observations(3), x, y, decay=0.9), x + 5.0, y + 50.0, decay=0.9)
    for name in ("covariance", "cross"):
        torch.testing.assert_close(getattr(moved, name), getattr(still, name), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(moved.mean_return, still.mean_return + 50.0, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("x", [torch.full((6, 3), 0.1), torch.zeros(6, 3)])
def test_states_that_never_vary_are_not_fitted(x: Tensor) -> None:
    weight, bias = ridge_head(with_batch(no_observations(3), x, torch.arange(6.0), decay=1.0), ridge=1.0)
    assert float(weight.abs().max()) < 1e-3
    assert float(x[0].double() @ weight + bias) == pytest.approx(2.5)


def test_fewer_tokens_than_features_is_no_trouble() -> None:
    x, y = batch(3, 50, 2)
    weight, bias = ridge_head(with_batch(no_observations(50), x, y, decay=0.9), ridge=1.0)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias)


def test_wrong_arguments_are_refused() -> None:
    x, y = batch(4, 3, 3)
    with pytest.raises(ValueError, match="no token was seen"):
        ridge_head(no_observations(3), ridge=1.0)
    with pytest.raises(ValueError, match="ridge is 0"):
        ridge_head(with_batch(no_observations(3), x, y, decay=1.0), ridge=0.0)
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        with_batch(no_observations(3), x, y, decay=1.5)
    for states, returns, width in ((x, y[:2], 3), (x, y, 5), (x[:0], y[:0], 3)):
        with pytest.raises(ValueError, match=rf"expected \(N, {width}\)"):
            with_batch(no_observations(width), states, returns, decay=1.0)
