"""Advantages of whole completions, each against the others of its prompt: no critic is needed."""

import torch
from torch import Tensor

STD_EPSILON = 1e-6
"""Added to a group's standard deviation before dividing by it, as in verl."""


def leave_one_out_advantages(rewards_B: Tensor, group_size: int) -> Tensor:
    """Reward of each completion less the mean reward of the others of its group (RLOO).

    The baseline does not depend on the completion itself, so the policy gradient keeps its expectation.

    Args:
        rewards_B: (B,), reward units, group by group; the KL cost of the whole completion is in them.
        group_size: completions of one prompt, at least 2.

    Returns:
        (B,) fp32 (fp64 for fp64 rewards), without gradient; exactly zero where a group's rewards are equal.

    Raises:
        ValueError: if the group size is below 2 or does not divide B.

    Source:
        arXiv:2402.14740 eq. 7.
    """
    return _centered(rewards_B, group_size).flatten() * (group_size / (group_size - 1))


def group_advantages(rewards_B: Tensor, group_size: int, *, divide_by_std: bool) -> Tensor:
    """Reward of each completion less its group's mean, in units of the group's standard deviation if asked.

    Args:
        rewards_B: (B,), reward units, group by group.
        group_size: completions of one prompt, at least 2.
        divide_by_std: by the unbiased standard deviation plus 1e-6 (GRPO); it makes prompts on which all completions
            fare nearly alike as heavy as the others. False is Dr. GRPO.

    Returns:
        (B,) fp32 (fp64 for fp64 rewards), without gradient; exactly zero where a group's rewards are equal.

    Raises:
        ValueError: if the group size is below 2 or does not divide B.

    Source:
        arXiv:2402.03300 section 4.1.2; without the division: arXiv:2503.20783.
    """
    centered = _centered(rewards_B, group_size)
    if divide_by_std:
        std = (centered.square().sum(dim=1, keepdim=True) / (group_size - 1)).sqrt()
        centered = centered / (std + STD_EPSILON)
    return centered.flatten()


def groups_with_equal_rewards(rewards_B: Tensor, group_size: int) -> Tensor:
    """Which groups teach nothing, since all their completions earned the same.

    Args:
        rewards_B: (B,), reward units, group by group.
        group_size: completions of one prompt, at least 2.

    Returns:
        (B / group_size,) bool, True = all rewards of the group are equal.

    Raises:
        ValueError: if the group size is below 2 or does not divide B.

    Source:
        arXiv:2503.14476 section 3.2 (dynamic sampling).
    """
    return (_grouped(rewards_B, group_size) == rewards_B[::group_size, None]).all(dim=1)


def _grouped(rewards_B: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}, expected at least 2: one completion has nobody to compare with")
    if rewards_B.ndim != 1 or len(rewards_B) % group_size:
        raise ValueError(
            f"rewards have shape {tuple(rewards_B.shape)}, expected (B,) with B a multiple of {group_size}"
        )
    return rewards_B.detach().to(torch.promote_types(rewards_B.dtype, torch.float32)).reshape(-1, group_size)


def _centered(rewards_B: Tensor, group_size: int) -> Tensor:
    """Return (G, K), rewards less their group's mean."""
    groups = _grouped(rewards_B, group_size)
    # Relative to one of the group: the mean of equal numbers may differ from them in the last digit.
    shifted = groups - groups[:, :1]
    return shifted - shifted.mean(dim=1, keepdim=True)
