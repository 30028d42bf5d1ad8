"""Value checks of ridge regression: ordinary solvers, the slope of the loss as it is written, and closed forms."""

from types import ModuleType

import torch
from torch import Tensor

from tests.core.samples import close, vector


def batch(n: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """States around 0.5, (n, width), and returns that depend on them, fp64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64) + 0.5
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return x, x @ torch.arange(1.0, width + 1, dtype=torch.float64) - 2.0 + noise


def check_by_hand(module: ModuleType) -> None:
    # One feature. Batch 1: x = 0, 2 (mean 1), y = 1, 5 (mean 3): weight 2, covariance 2, cross 4.
    # Batch 2: x = 1, 5 (mean 3), y = 10, 14 (mean 12): covariance 8, cross 8. With decay 0.5 the sums are weight 3,
    # covariance 9, cross 10. The penalty of 6 tokens is 6 * 9 / 3 = 18, so w = 10 / 27 and b = 12 - 3 w.
    first = module.with_batch(module.no_observations(1), vector(0.0, 2.0)[:, None], vector(1.0, 5.0), decay=0.5)
    second = module.with_batch(first, vector(1.0, 5.0)[:, None], vector(10.0, 14.0), decay=0.5)
    weight, bias = module.ridge_head(second, ridge=6.0)
    close(weight, [10 / 27])
    close(bias, 12 - 30 / 27)


def check_least_squares(module: ModuleType) -> None:
    x, y = batch(200, 5, 0)
    weight, bias = module.ridge_head(module.with_batch(module.no_observations(5), x, y, decay=1.0), ridge=1e-9)
    features = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    wanted = torch.linalg.lstsq(features, y[:, None]).solution[:, 0]
    close(weight, wanted[:5], rtol=1e-7)
    close(bias, wanted[5], rtol=1e-7)


def check_minimum(module: ModuleType) -> None:
    seen, batches = module.no_observations(4), [batch(30, 4, seed) for seed in range(3)]
    for x, y in batches:
        seen = module.with_batch(seen, x, y, decay=0.7)
    weight, bias = module.ridge_head(seen, ridge=10.0)
    w = weight.clone().requires_grad_()
    shares = [0.7 ** (2 - age) for age in range(3)]
    centered = [(x - x.mean(0), y - y.mean()) for x, y in batches]
    spreads = [share * x.square().sum(0) for share, (x, _) in zip(shares, centered, strict=True)]
    v = torch.stack(spreads).sum(0).mean() / (30 * sum(shares))
    errors = [share * (x @ w - y).square().sum() for share, (x, y) in zip(shares, centered, strict=True)]
    loss = torch.stack(errors).sum() + 10.0 * v * w.square().sum()
    (slope,) = torch.autograd.grad(loss, w)
    close(slope, torch.zeros(4))
    x, y = batches[-1]
    close((x @ weight + bias - y).mean(), 0.0)


def check_states_without_variance(module: ModuleType) -> None:
    for x in (torch.full((6, 3), 0.1), torch.zeros(6, 3)):
        y = torch.arange(6.0)
        weight, bias = module.ridge_head(module.with_batch(module.no_observations(3), x, y, decay=1.0), ridge=1.0)
        assert float(weight.abs().max()) < 1e-3
        close(x[0].double() @ weight + bias, 2.5)


def check_fewer_tokens_than_features(module: ModuleType) -> None:
    x, y = batch(3, 50, 2)
    weight, bias = module.ridge_head(module.with_batch(module.no_observations(50), x, y, decay=0.9), ridge=1e-6)
    close(x @ weight + bias, y, rtol=1e-4)
