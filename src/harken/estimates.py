"""Means, differences and win rates with intervals over prompts.

Completions of one prompt resemble each other, so the prompt is what is resampled (a cluster
bootstrap): intervals that resample completions are too narrow. Every prompt counts the same,
however many completions it has.
"""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harken.errors import DataError

Groups: TypeAlias = Sequence[Sequence[float]] | NDArray[Any]
"""Values by prompt: a sequence of floats a prompt, of any lengths, or (prompts, completions)."""

_BLOCK_SIZE = 2_000_000  # resampled indices held at once: 16 MB, whatever the number of prompts


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are None where the data cannot give one."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Return {"value", "low", "high"} for JSON."""
        return dataclasses.asdict(self)


def bootstrap_mean(values_by_prompt: Groups, *, resamples: int = 10_000, seed: int, level: float = 0.95) -> Estimate:
    """Mean over prompts of each prompt's mean, with a percentile bootstrap interval over prompts.

    Args:
        values_by_prompt: values of each prompt's completions, in the metric's unit; at least one a
            prompt.
        resamples: number of bootstrap samples.
        seed: seed of the resampling; the same seed and values give the same interval.
        level: coverage of the interval, in (0, 1).

    Returns:
        The mean with its interval. One prompt says nothing about others: its interval is None, not
        of width 0. Below about 30 prompts the interval is a little too narrow (a percentile
        bootstrap uses no t correction).

    Raises:
        DataError: if there is no prompt, a prompt has no value, or a value is NaN or infinite.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile
        interval); clusters as units as in Field and Welsh 2007,
        doi:10.1111/j.1467-9868.2007.00593.x.
    """
    return _bootstrap(_prompt_means(values_by_prompt, "values"), resamples, seed, level)


def paired_difference(
    a_by_prompt: Groups,
    b_by_prompt: Groups,
    *,
    resamples: int = 10_000,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Mean over prompts of (mean of a - mean of b), with a bootstrap interval over prompts.

    Both sides are resampled together, so what makes a prompt hard for both cancels.

    Args:
        a_by_prompt: values of one side by prompt.
        b_by_prompt: values of the other side, the same prompts in the same order; counts a prompt
            may differ.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.
        level: coverage of the interval, in (0, 1).

    Returns:
        The difference, positive where a is larger; the interval is None for one prompt.

    Raises:
        DataError: as `bootstrap_mean`, and if the numbers of prompts differ.
    """
    a, b = _prompt_means(a_by_prompt, "a"), _prompt_means(b_by_prompt, "b")
    if len(a) != len(b):
        raise DataError(f"a has {len(a)} prompts and b {len(b)}; give the same prompts in the same order")
    return _bootstrap(a - b, resamples, seed, level)


def win_rate(
    a_by_prompt: Groups,
    b_by_prompt: Groups,
    *,
    resamples: int = 10_000,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Share of pairs that a wins, ties counting half, with an interval over prompts.

    Args:
        a_by_prompt: scores of one side by prompt, larger is better.
        b_by_prompt: scores of the other side; the i-th completion of a prompt meets the i-th of the
            same prompt.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.
        level: coverage of the interval, in (0, 1).

    Returns:
        The win rate of a, in [0, 1]; 0.5 is no difference. Where every prompt is won (or lost)
        outright the bootstrap would give width 0, so the interval is Wilson's over prompts; for one
        prompt it is None.

    Raises:
        DataError: as `bootstrap_mean`, and if the numbers of prompts or of completions of a prompt
            differ.
    """
    wins = _wins(a_by_prompt, b_by_prompt)
    total = float(wins.sum())
    if len(wins) > 1 and total in (0.0, float(len(wins))):
        return wilson(total, len(wins), level=level)
    return _bootstrap(wins, resamples, seed, level)


def length_controlled_win_rate(
    a_by_prompt: Groups,
    b_by_prompt: Groups,
    a_lengths: Groups,
    b_lengths: Groups,
    *,
    resamples: int = 2_000,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Win rate of a as it would be if both sides were equally long, with an interval over prompts.

    A logistic regression on the prompts: log odds of a win = theta + phi tanh(difference of lengths / its standard
    deviation); the value is sigmoid(theta). What the regression calls length may be content that needs room: where it
    is far from `win_rate`, read both.

    Args:
        a_by_prompt: scores of one side by prompt, larger is better.
        b_by_prompt: scores of the other side, as for `win_rate`.
        a_lengths: lengths of a's completions by prompt, in any unit.
        b_lengths: those of b's, in the same unit.
        resamples: number of bootstrap samples, each with a regression of its own.
        seed: seed of the resampling.
        level: coverage of the interval, in (0, 1).

    Returns:
        The rate, inside (0, 1): half a win and half a loss at equal lengths are added, so that it is also known where
        every pair is won. Where no lengths differ it is (wins + 1/2) / (prompts + 1). The interval is None for one
        prompt.

    Raises:
        DataError: as `win_rate`.

    Source: Dubois et al. 2024, arXiv:2404.04475, eq. 1, without its term for the difficulty of the instruction, which
        needs other models' answers.
    """
    wins = _wins(a_by_prompt, b_by_prompt)
    differences = _prompt_means(a_lengths, "a_lengths") - _prompt_means(b_lengths, "b_lengths")
    if len(differences) != len(wins):
        raise DataError(f"lengths are of {len(differences)} prompts and scores of {len(wins)}; give those of the same")
    spread = differences.std()
    longer = np.tanh(differences / spread) if spread > 0 else np.zeros(len(wins))
    value = float(_rate_at_equal_lengths(wins[None], longer[None])[0])
    tail = (1 - _checked_level(level)) / 2
    if len(wins) == 1:
        return Estimate(value, None, None)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_SIZE // (10 * len(wins)))
    samples: list[NDArray[np.float64]] = []
    for start in range(0, resamples, block):
        rows = generator.integers(0, len(wins), (min(block, resamples - start), len(wins)))
        samples.append(_rate_at_equal_lengths(wins[rows], longer[rows]))
    low, high = np.quantile(np.concatenate(samples), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _rate_at_equal_lengths(wins: NDArray[np.float64], longer: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (S,) sigmoid(theta) of S logistic regressions of (S, P) wins on (S, P) `longer`, by Newton's method.

    Half a win and half a loss at length 0 are added; a ridge of 1e-3 on phi settles it where nothing differs in length.
    """
    theta, phi = np.zeros((2, len(wins)))
    for _ in range(100):
        rates = 1 / (1 + np.exp(-np.clip(theta[:, None] + phi[:, None] * longer, -30, 30)))
        middle = 1 / (1 + np.exp(-theta))
        weights = rates * (1 - rates)
        slope_theta = (wins - rates).sum(1) + 0.5 - middle
        slope_phi = ((wins - rates) * longer).sum(1) - 1e-3 * phi
        a = weights.sum(1) + middle * (1 - middle)
        b = (weights * longer).sum(1)
        c = (weights * longer**2).sum(1) + 1e-3
        determinant = a * c - b * b
        # A step of at most 1 keeps Newton's method from leaping over the optimum of nearly separable data.
        step_theta = np.clip((c * slope_theta - b * slope_phi) / determinant, -1, 1)
        step_phi = np.clip((a * slope_phi - b * slope_theta) / determinant, -1, 1)
        theta, phi = theta + step_theta, phi + step_phi
        if max(np.abs(step_theta).max(), np.abs(step_phi).max()) < 1e-10:
            break
    return 1 / (1 + np.exp(-theta))


def wilson(successes: float, n: int, *, level: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval.

    Args:
        successes: number of successes, in [0, n]; ties may count half.
        n: number of independent trials, at least 1.
        level: coverage of the interval, in (0, 1).

    Returns:
        successes / n with an interval inside [0, 1] that never has width 0.

    Raises:
        DataError: if n is below 1 or successes lies outside [0, n] or is NaN.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n}; expected 0 <= successes <= n and n >= 1")
    z = NormalDist().inv_cdf((1 + _checked_level(level)) / 2)
    share = successes / n
    scale = 1 + z**2 / n
    center = (share + z**2 / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / scale
    # Rounding may leave the ends of a share of 0 or 1 a hair outside [0, 1] or off the share
    # itself.
    return Estimate(share, min(max(0.0, center - half), share), max(min(1.0, center + half), share))


def share(successes: float, n: int) -> dict[str, float | int | None]:
    """Return a share with Wilson's interval at 95 % and n, as JSON holds it; None where n is 0."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {**wilson(successes, n).as_dict(), "n": n}


def _wins(a_by_prompt: Groups, b_by_prompt: Groups) -> NDArray[np.float64]:
    """Return (P,), the share of a's completions of each prompt that win, ties half."""
    if len(a_by_prompt) != len(b_by_prompt):
        raise DataError(
            f"a has {len(a_by_prompt)} prompts and b {len(b_by_prompt)}; give the same prompts in the same order"
        )
    _prompt_means(a_by_prompt, "a")
    _prompt_means(b_by_prompt, "b")
    wins: list[float] = []
    for index, (a, b) in enumerate(zip(a_by_prompt, b_by_prompt, strict=True)):
        if len(a) != len(b):
            raise DataError(f"prompt {index}: a has {len(a)} completions and b {len(b)}; give equally many of both")
        wins.append(float(np.mean((np.sign(np.subtract(a, b)) + 1) / 2)))
    return np.array(wins)


def _prompt_means(values_by_prompt: Groups, side: str) -> NDArray[np.float64]:
    if len(values_by_prompt) == 0:
        raise DataError(f"{side}: no prompts; give at least one")
    means: list[float] = []
    for index, values in enumerate(values_by_prompt):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or array.size == 0:
            raise DataError(
                f"{side}: prompt {index} has shape {array.shape}; expected one value a completion, at least one"
            )
        if not np.isfinite(array).all():
            raise DataError(f"{side}: prompt {index} holds a value that is NaN or infinite; mend or drop it")
        means.append(float(array.mean()))
    return np.array(means)


def _bootstrap(means: NDArray[np.float64], resamples: int, seed: int, level: float) -> Estimate:
    if resamples < 1:
        raise DataError(f"resamples is {resamples}; expected at least 1")
    tail = (1 - _checked_level(level)) / 2
    value = float(means.mean())
    if len(means) == 1:
        return Estimate(value, None, None)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_SIZE // len(means))
    samples = [
        means[generator.integers(0, len(means), (min(block, resamples - start), len(means)))].mean(1)
        for start in range(0, resamples, block)
    ]
    low, high = np.quantile(np.concatenate(samples), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise DataError(f"level is {level}; expected a coverage in (0, 1), e.g. 0.95")
    return level
