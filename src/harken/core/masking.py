"""Which tokens count: masks from lengths, never from token ids."""

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """Mask that is True at the first ``lengths[b]`` indices of row b.

    Args:
        lengths: (B,) integer, in tokens, each in [0, size].
        size: number of columns S.

    Returns:
        (B, S) bool, True = within the length.

    Raises:
        ValueError: if a length is outside [0, size].
    """
    is_outside = (lengths < 0) | (lengths > size)
    if bool(is_outside.any()):
        raise ValueError(f"lengths of rows {true_rows(is_outside)} are outside [0, {size}]")
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def completion_mask_from_lengths(prompt_lengths: Tensor, completion_lengths: Tensor, size: int) -> Tensor:
    """Mask of the completion tokens in rows laid out as prompt, completion, padding.

    Args:
        prompt_lengths: (B,) integer, in tokens, at least 1.
        completion_lengths: (B,) integer, in tokens, at least 0.
        size: number of columns S.

    Returns:
        (B, S) bool, True = completion token.

    Raises:
        ValueError: if a prompt is empty, a completion length is negative, or a row does not fit.
    """
    is_empty, is_negative = prompt_lengths < 1, completion_lengths < 0
    if bool(is_empty.any()):
        raise ValueError(f"prompts of rows {true_rows(is_empty)} are empty, expected a token")
    if bool(is_negative.any()):
        raise ValueError(f"completion lengths of rows {true_rows(is_negative)} are negative")
    within_row = lengths_to_mask(prompt_lengths + completion_lengths, size)
    return within_row & ~lengths_to_mask(prompt_lengths, size)


def last_true_index(mask: Tensor) -> Tensor:
    """Index of the last True of each row.

    Args:
        mask: (B, S) bool.

    Returns:
        (B,) long.

    Raises:
        ValueError: if a row has no True.
    """
    is_empty = ~mask.any(dim=1)
    if bool(is_empty.any()):
        raise ValueError(f"rows {true_rows(is_empty)} of the mask have no True")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)


def check_completion_mask(mask: Tensor) -> None:
    """Refuse a mask that cannot be one of completion tokens.

    A row without completion tokens passes: padding rows are legal. So does one with gaps: in a conversation of several
    turns, what others said stands between the policy's own tokens.

    Args:
        mask: (B, S), to be bool, True = completion token.

    Raises:
        ValueError: if mask is not a bool matrix, or is True at index 0 (no token comes before it, so
            its log-probability does not exist).
    """
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"completion mask: {mask.ndim}-d {mask.dtype}, expected 2-d torch.bool")
    is_at_zero = mask[:, :1].any(dim=1)
    if bool(is_at_zero.any()):
        raise ValueError(
            f"rows {true_rows(is_at_zero)} of the completion mask are True at index 0, expected a prompt token there"
        )


def true_rows(flags: Tensor) -> list[int]:
    """Rows of a (B,) bool tensor that are True, for an error message."""
    return [row for row in range(len(flags)) if bool(flags[row])]
