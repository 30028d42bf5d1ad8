"""Best of n: what drawing n completions and keeping the best one gains, and how far it is from drawing one."""

import math
from typing import cast

import torch
from torch import Tensor


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n to the policy that draws, where no two completions score alike: log n - (n - 1) / n.

    For any other reward and policy it is an upper bound.

    Args:
        n: draws, at least 1.

    Returns:
        Nats.

    Raises:
        ValueError: if n is below 1.

    Source:
        arXiv:2009.01325 appendix G.3; that it is a bound: arXiv:2401.01879.
    """
    _check_draws(n)
    return math.log(n) - (n - 1) / n


def best_of_n_logprobs(logprobs_N: Tensor, scores_N: Tensor, n: int) -> Tensor:
    """Exact log-probabilities of best-of-n where every completion is listed.

    The best of n draws scores s with probability F(s)^n - F(s-)^n, where F is the distribution function of the score
    under the policy. Among draws that score alike the first is kept, so completions of equal score share that
    probability as they do under the policy.

    Args:
        logprobs_N: (N,) float, nats, of all completions under the policy that draws; they sum to 1.
        scores_N: (N,), their scores.
        n: draws, at least 1.

    Returns:
        (N,), nats.

    Raises:
        ValueError: if n is below 1, shapes differ, or the probabilities do not sum to 1.
    """
    _check_draws(n)
    if logprobs_N.shape != scores_N.shape or logprobs_N.dim() != 1:
        raise ValueError(f"logprobs {tuple(logprobs_N.shape)} and scores {tuple(scores_N.shape)}, expected (N,) both")
    total = float(logprobs_N.logsumexp(0))
    if not abs(total) < 1e-4:
        raise ValueError(f"the probabilities sum to {math.exp(total):.6f}, expected 1: list every completion once")
    # pyright does not know what torch's `unique` returns.
    level = cast(tuple[Tensor, Tensor], scores_N.unique(sorted=True, return_inverse=True))[1]  # pyright: ignore[reportUnknownMemberType]
    level_mass = logprobs_N.new_zeros(int(level.max()) + 1).scatter_add(0, level, logprobs_N.exp())
    up_to = level_mass.cumsum(0).clamp(max=1.0)
    below = up_to - level_mass
    gained = (up_to**n - below**n) / level_mass
    return logprobs_N + gained.log()[level]


def expected_best_of_n(scores_M: Tensor, n: int) -> Tensor:
    """Estimate the mean score of the best of n draws from m >= n scores of one prompt, without bias.

    It is the mean of the best over all subsets of n of the m scores: the i-th smallest is the best of
    C(i - 1, n - 1) of the C(m, n) subsets.

    Args:
        scores_M: (..., M), scores of independent draws.
        n: draws, 1 to M.

    Returns:
        (...), fp64.

    Raises:
        ValueError: if n is not between 1 and M.

    Source:
        arXiv:2112.09332 (WebGPT); the estimator of pass@k in arXiv:2107.03374 is the same for scores of 0 and 1.
    """
    count = scores_M.shape[-1]
    _check_draws(n)
    if n > count:
        raise ValueError(f"n is {n} with {count} scores, expected at least as many scores")
    ordered = scores_M.double().sort(dim=-1).values
    total = math.comb(count, n)
    # Whole numbers first: C(m, n) of a hundred draws is beyond a float's digits, the quotient is not.
    weights = [math.comb(place, n - 1) / total for place in range(count)]
    return (ordered * torch.tensor(weights, dtype=torch.float64, device=scores_M.device)).sum(dim=-1)


def soft_choice_logprobs(scores_GM: Tensor, beta: float) -> Tensor:
    """Log-probabilities of keeping each of M draws in proportion to exp(score / beta).

    With many draws the one kept is distributed as the policy that maximizes E[score] - beta KL, which is the one that
    drew times exp(score / beta), normalized. As beta goes to 0 it is best-of-n.

    Args:
        scores_GM: (G, M), scores of M draws for each of G prompts.
        beta: what a nat of KL is worth, above zero.

    Returns:
        (G, M), nats, fp64.

    Raises:
        ValueError: if beta is not above zero.

    Source:
        Self-normalized importance sampling of arXiv:2305.18290 eq. 4.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, expected a number above zero; best-of-n is its limit at 0")
    return (scores_GM.double() / beta).log_softmax(dim=-1)


def _check_draws(n: int) -> None:
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1 draw")
