"""How far judges agree: Krippendorff's alpha with bootstrap intervals, and a report on ratings."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harken.errors import DataError
from harken.preferences.resolve import AxisRatings, ratings_on_axis
from harken.records import Completion, Judgment

Metric = Literal["nominal", "ordinal", "interval"]
_Floats = NDArray[np.float64]
_NUM_EXAMPLES = 3
_MAX_HISTOGRAM_BARS = 101


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float


class _Coincidences:
    """Pairable values of many units, kept so that alpha of any reweighting of the units is cheap.

    Krippendorff's coincidence matrix is never built. With the value of rank c placed at x_c, the
    squared differences of all ordered pairs within unit u sum to 2 (m_u sum x^2 - (sum x)^2), and
    the expected disagreement is the same expression over all values. Interval data stand at their
    values, ordinal data at their mid-ranks (the ordinal metric is the difference of mid-ranks, and
    these change with the weights); nominal data use pair counts instead.
    """

    def __init__(self, units: Sequence[Sequence[float]], metric: Metric) -> None:
        pairable = [unit for unit in units if len(unit) >= 2]
        self.metric = metric
        self.num_units = len(pairable)
        self._sizes: _Floats = np.array([len(unit) for unit in pairable], dtype=np.float64)
        flat: _Floats = np.array([x for unit in pairable for x in unit], dtype=np.float64)
        if not np.isfinite(flat).all():
            raise DataError("ratings must be finite numbers; leave missing ones out")
        self._values, self._rank = np.unique(flat, return_inverse=True)
        # Centered: sums of squares of values far from 0 would lose digits.
        self._values = self._values - flat.mean() if len(flat) else self._values
        self._unit = np.repeat(np.arange(self.num_units), self._sizes.astype(np.int64))
        self._starts = np.concatenate([[0], np.cumsum(self._sizes.astype(np.int64))[:-1]])
        if self.num_units and metric != "ordinal":
            self._within = self._disagreement_within(self._values)

    def _disagreement_within(self, positions: _Floats) -> _Floats:
        """Per unit: sum of squared differences over ordered pairs, over (m_u - 1)."""
        if self.metric == "nominal":
            num_values = len(self._values)
            cells, counts = np.unique(self._unit * num_values + self._rank, return_counts=True)
            same = np.bincount(cells // num_values, weights=counts.astype(np.float64) ** 2)
            return (self._sizes**2 - same) / (self._sizes - 1)
        x = positions[self._rank]
        sums = np.add.reduceat(x, self._starts)
        squares = np.add.reduceat(x * x, self._starts)
        return 2 * (self._sizes * squares - sums**2) / (self._sizes - 1)

    def alpha(self, weights: _Floats) -> float | None:
        """Return alpha when unit u counts `weights[u]` times; None where it is undefined."""
        if self.num_units == 0:
            return None
        counts = np.bincount(self._rank, weights=weights[self._unit], minlength=len(self._values))
        if np.count_nonzero(counts) < 2:
            return None
        total = float(counts.sum())
        if self.metric == "nominal":
            observed = float(weights @ self._within)
            expected = total**2 - float(counts @ counts)
        else:
            positions = self._values
            within = self._within if self.metric == "interval" else None
            if within is None:
                positions = np.cumsum(counts) - counts / 2
                positions = positions - float(counts @ positions) / total
                within = self._disagreement_within(positions)
            observed = float(weights @ within)
            moment = float(counts @ positions)
            expected = 2 * (total * float(counts @ positions**2) - moment**2)
        return 1 - (total - 1) * observed / expected


def krippendorff_alpha(units: Sequence[Sequence[float]], metric: Metric) -> float | None:
    """Return Krippendorff's alpha, 1 - D_o / D_e.

    Args:
        units: the ratings of each item, missing ones left out; items with fewer than two do not
            count.
        metric: how far two different values are apart.

    Returns:
        At most 1 (1 = perfect, 0 = chance); None where alpha is undefined: no item has two ratings,
        or all ratings are equal.

    Raises:
        DataError: a rating is not finite.

    Source: Krippendorff, Content Analysis (2004), section 11.3.
    """
    coincidences = _Coincidences(units, metric)
    return coincidences.alpha(np.ones(coincidences.num_units))


def alpha_interval(
    units: Sequence[Sequence[float]],
    metric: Metric,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate | None:
    """Return alpha with a percentile bootstrap interval over items (with two ratings or more).

    Resamples whose alpha is undefined (all values equal) are left out of the interval. None where
    alpha itself is undefined.
    """
    coincidences = _Coincidences(units, metric)
    num_units = coincidences.num_units
    value = coincidences.alpha(np.ones(num_units))
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(resamples):
        chosen = rng.integers(0, num_units, num_units)
        weights = np.bincount(chosen, minlength=num_units).astype(np.float64)
        alpha = coincidences.alpha(weights)
        if alpha is not None:
            drawn.append(alpha)
    if not drawn:
        return Estimate(value, value, value)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def split_half_correlation(units: Sequence[Sequence[float]], *, seed: int = 0) -> float | None:
    """Return the correlation over items of the mean ratings of two random halves of their raters.

    Items with fewer than two ratings do not count; of an odd number one is left out. Not corrected
    for the halved length (Spearman-Brown). None where undefined: under two items, or no spread.
    """
    rng = np.random.default_rng(seed)
    halves: list[tuple[float, float]] = []
    for unit in units:
        size = len(unit) // 2
        if size:
            mixed = rng.permutation(np.asarray(unit, dtype=np.float64))
            halves.append((float(mixed[:size].mean()), float(mixed[size : 2 * size].mean())))
    if len(halves) < 2:
        return None
    first, second = np.array(halves).T
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def agreement_report(
    judgments: Iterable[Judgment],
    completions: Iterable[Completion],
    *,
    axis: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Describe ratings and how far they agree, as JSON-able values.

    `num_judges_named` is None where no judge rated two items: then the ids do not say who is who.
    Undefined statistics are None.

    Raises:
        DataError: as `harken.preferences.resolve.ratings_on_axis`, or a rated completion is
            missing.
    """
    ratings = ratings_on_axis(judgments, axis)
    units = [[e.rating.value for e in entries] for entries in ratings.by_completion.values()]
    sizes = [len(unit) for unit in units]
    alphas = {
        metric: alpha_interval(units, metric, resamples=resamples, seed=seed) for metric in ("ordinal", "interval")
    }
    return {
        "num_judgments": sum(sizes),
        "num_items": len(units),
        "num_judges_named": _num_judges_named(ratings),
        "ratings_per_item": {
            "min": min(sizes),
            "mean": statistics.fmean(sizes),
            "max": max(sizes),
        },
        "axis": ratings.axis,
        "scale": [ratings.low, ratings.high],
        "histogram": _histogram(ratings, [value for unit in units for value in unit]),
        "alpha_ordinal": _jsonable(alphas["ordinal"]),
        "alpha_interval": _jsonable(alphas["interval"]),
        "mean_item_std": statistics.fmean(float(np.std(unit)) for unit in units),
        "split_half_correlation": split_half_correlation(units, seed=seed),
        **_examples(ratings, completions),
    }


def _jsonable(estimate: Estimate | None) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _num_judges_named(ratings: AxisRatings) -> int | None:
    pairs = {(e.judge_id, e.completion_id) for es in ratings.by_completion.values() for e in es}
    num_judges = len({judge_id for judge_id, _ in pairs})
    return num_judges if num_judges < len(pairs) else None


def _histogram(ratings: AxisRatings, values: Sequence[float]) -> dict[str, int]:
    bars = set(values)
    low, high = ratings.low, ratings.high
    if all(float(x).is_integer() for x in (low, high, *bars)) and high - low < _MAX_HISTOGRAM_BARS:
        bars |= {float(value) for value in range(int(low), int(high) + 1)}
    counts = dict.fromkeys(sorted(bars), 0)
    for value in values:
        counts[value] += 1
    return {f"{value:g}": count for value, count in counts.items()}


def _examples(ratings: AxisRatings, completions: Iterable[Completion]) -> dict[str, Any]:
    texts = {completion.id: completion.message.content for completion in completions}
    rows: list[dict[str, Any]] = []
    for completion_id, entries in ratings.by_completion.items():
        if completion_id not in texts:
            raise DataError(
                f"judgment {entries[0].judgment_id!r} rates completion {completion_id!r}, which is "
                "not among the completions; export them together"
            )
        values = [entry.rating.value for entry in entries]
        if len(values) >= 2:
            rows.append(
                {
                    "text": texts[completion_id],
                    "mean": statistics.fmean(values),
                    "std": float(np.std(values)),
                    "n": len(values),
                }
            )
    # Among equal spreads: more raters first, then the clearer verdict. Sorting is stable by id.
    middle = (ratings.low + ratings.high) / 2
    agreed = sorted(rows, key=lambda row: (row["std"], -row["n"], -abs(row["mean"] - middle)))
    disputed = sorted(rows, key=lambda row: (-row["std"], -row["n"]))
    return {"most_disputed": disputed[:_NUM_EXAMPLES], "most_agreed": agreed[:_NUM_EXAMPLES]}
