"""The one place where per-token values become one number."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """A loss and its metrics, both already divided by a global denominator.

    Attributes:
        loss: 0-d, with gradient.
        metrics: 0-d tensors without gradient; like the loss they add up over microbatches.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def check_same_shape(expected: Tensor, **tensors: Tensor) -> None:
    """Refuse tensors that would silently broadcast.

    Args:
        expected: tensor whose shape the others must have.
        tensors: the others, by the name to report.

    Raises:
        ValueError: if a shape differs.
    """
    for name, tensor in tensors.items():
        if tensor.shape != expected.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}")


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """Values of x where mask is True, zero elsewhere.

    Apply it to the inputs of a formula, not to its result: a NaN outside the mask would otherwise
    come back through the gradient as 0 * NaN.

    Args:
        x: any shape, float; NaN and inf are allowed outside the mask.
        mask: same shape, bool, True = keep.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: if the shapes differ or mask is not bool.
    """
    check_same_shape(x, mask=mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}, expected torch.bool")
    return torch.where(mask, x, torch.zeros_like(x))


def masked_sum(x: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """Sum of x where mask is True, divided by a global denominator.

    Args:
        x: any shape, float; NaN and inf outside the mask do not leak.
        mask: same shape, bool, True = counts.
        denominator: number of counted entries in the whole batch (all microbatches and ranks),
            above zero.

    Returns:
        0-d tensor; the values for the parts of a batch add up to the value for the batch.

    Raises:
        ValueError: if the shapes differ or a float denominator is not above zero.
    """
    return zero_outside(x, mask).sum() / check_denominator(denominator)


def check_denominator(denominator: float | Tensor) -> float | Tensor:
    """Pass on a denominator that is above zero.

    Args:
        denominator: a tensor is passed on unread, since reading one on a GPU would stall.

    Returns:
        The denominator.

    Raises:
        ValueError: if a float denominator is not above zero.
    """
    if not isinstance(denominator, Tensor) and not denominator > 0:
        raise ValueError(f"denominator is {denominator}, expected a number above zero")
    return denominator


def check_above_zero(**numbers: float) -> None:
    """Refuse settings that would turn a loss around or switch it off.

    Args:
        numbers: by the name to report.

    Raises:
        ValueError: if one is not above zero.
    """
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, expected a number above zero")


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of x where mask is True.

    The variance of a constant is exactly zero, however large the constant.

    Args:
        x: any shape, float.
        mask: same shape, bool, True = counts.

    Returns:
        mean and variance (denominator: the count), 0-d; both zero if nothing counts.

    Raises:
        ValueError: if the shapes differ or mask is not bool.
    """
    values = zero_outside(x, mask)
    count = mask.sum().clamp(min=1)
    # Moments about one of the values: moments about zero lose the digits of a large mean.
    smallest = torch.finfo(x.dtype).min
    origin = torch.where(mask.any(), values.masked_fill(~mask, smallest).amax(), 0.0)
    centered = zero_outside(values - origin, mask)
    shift = centered.sum() / count
    variance = zero_outside(centered - shift, mask).square().sum() / count
    return origin + shift, variance
