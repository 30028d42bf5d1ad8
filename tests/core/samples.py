"""Small tensors and their comparison, in fp64, for the tests of core."""

import math

import torch
from torch import Tensor

NAN = math.nan


def close(actual: Tensor | float, expected: object, rtol: float = 1e-9) -> None:
    """Compare with expected numbers, in fp64."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-9)


def row(*values: float) -> Tensor:
    """One row, (1, S), fp64."""
    return torch.tensor([values], dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def flags(text: str) -> Tensor:
    """One row of a mask: x = True."""
    return torch.tensor([[letter == "x" for letter in text]])


def random_rows(seed: int, count: int) -> tuple[Tensor, list[Tensor]]:
    """A ragged completion mask (4, 9) and normal numbers of its shape, fp64."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for b, (start, end) in enumerate([(1, 9), (3, 4), (2, 7), (5, 9)]):
        mask[b, start:end] = True
    normals = [torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(count)]
    return mask, normals
