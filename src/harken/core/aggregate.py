"""The one place where per-token values become one number."""

from typing import Literal, NamedTuple, assert_never

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


def row_weights(
    completion_mask: Tensor, aggregation: Literal["token_mean", "sequence_mean", "constant"], *, length: int
) -> Tensor:
    """Weights of the rows that turn a token mean over the batch into another mean.

    A loss term times its row's weight, summed over all completion tokens and divided by their number, is

    - ``token_mean``: the mean over tokens (every weight is 1);
    - ``sequence_mean``: the mean over rows of each row's mean over tokens;
    - ``constant``: the mean over rows of each row's sum, divided by ``length``.

    Args:
        completion_mask: (B, S) bool, True = completion token, of the whole batch of the optimizer step.
        aggregation: which mean.
        length: tokens, at least 1.

    Returns:
        (B, 1) fp32; 0 for a row without completion tokens.

    Raises:
        ValueError: if the length is below 1.

    Source:
        token_mean: arXiv:2503.14476 section 3.3; sequence_mean: arXiv:2402.03300 eq. 3; constant: arXiv:2503.20783.
    """
    if length < 1:
        raise ValueError(f"length is {length}, expected at least 1")
    counts = completion_mask.sum(dim=1, keepdim=True).float()
    per_row = counts.sum() / len(counts)
    match aggregation:
        case "token_mean":
            return (counts > 0).float()
        case "sequence_mean":
            return torch.where(counts > 0, per_row / counts.clamp(min=1), 0.0)
        case "constant":
            return torch.where(counts > 0, per_row / length, 0.0)
        case _:
            assert_never(aggregation)
