"""How far judges agree: Cohen's and Fleiss' kappa, and Krippendorff's alpha with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harken.errors import DataError
from harken.preferences.numeric import Floats, Ints

Metric = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return {"value", "low", "high"} for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Units:
    """Values given to units, flat: value[n] was given to unit[n]. Units with fewer than two do not count."""

    unit: Ints
    value: Floats

    @classmethod
    def of(cls, units: "Sequence[Sequence[float]] | Units") -> "Units":
        """Return lists of values, one a unit, as flat arrays."""
        if isinstance(units, Units):
            return units
        sizes = [len(unit) for unit in units]
        values = np.array([x for unit in units for x in unit], dtype=np.float64)
        return cls(np.repeat(np.arange(len(sizes)), sizes), values)


class _Coincidences:
    """Pairable values of many units, kept so that alpha of any reweighting of the units is cheap.

    Krippendorff's coincidence matrix is never built. With the value of rank c placed at x_c, the
    squared differences of all ordered pairs within unit u sum to 2 (m_u sum x^2 - (sum x)^2), and
    the expected disagreement is the same expression over all values. Interval data stand at their
    values, ordinal data at their mid-ranks (the ordinal metric is the difference of mid-ranks, and
    these change with the weights); nominal data use pair counts instead.
    """

    def __init__(self, units: Units, metric: Metric) -> None:
        if not np.isfinite(units.value).all():
            raise DataError("ratings must be finite numbers; leave missing ones out")
        self.metric = metric
        names, unit, sizes = np.unique(units.unit, return_inverse=True, return_counts=True)
        del names
        pairable = sizes >= 2
        self.num_units = int(pairable.sum())
        kept = pairable[unit]
        self._sizes: Floats = sizes[pairable].astype(np.float64)
        self._values, rank = np.unique(units.value[kept], return_inverse=True)
        # Centered: sums of squares of values far from 0 would lose digits.
        self._values = self._values - units.value[kept].mean() if kept.any() else self._values
        # How often unit u has the value of rank c, for the u and c where it does: a few numbers a unit.
        renumbered = (np.cumsum(pairable) - 1)[unit[kept]]
        cells, counts = np.unique(renumbered * max(1, len(self._values)) + rank, return_counts=True)
        self._unit, self._rank = cells // max(1, len(self._values)), cells % max(1, len(self._values))
        self._count: Floats = counts.astype(np.float64)
        if self.num_units:
            self._starts = np.flatnonzero(np.diff(self._unit, prepend=-1))
            if metric != "ordinal":
                self._within = self._disagreement_within(self._values)

    def _disagreement_within(self, positions: Floats) -> Floats:
        """Per unit: sum of squared differences over ordered pairs, over (m_u - 1)."""
        if self.metric == "nominal":
            same = np.add.reduceat(self._count**2, self._starts)
            return (self._sizes**2 - same) / (self._sizes - 1)
        x = positions[self._rank]
        sums = np.add.reduceat(self._count * x, self._starts)
        squares = np.add.reduceat(self._count * x * x, self._starts)
        return 2 * (self._sizes * squares - sums**2) / (self._sizes - 1)

    def alpha(self, weights: Floats) -> float | None:
        """Return alpha when unit u counts `weights[u]` times; None where it is undefined."""
        if self.num_units == 0:
            return None
        counts = np.bincount(self._rank, weights=weights[self._unit] * self._count, minlength=len(self._values))
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


def krippendorff_alpha(units: Sequence[Sequence[float]] | Units, metric: Metric) -> float | None:
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
    coincidences = _Coincidences(Units.of(units), metric)
    return coincidences.alpha(np.ones(coincidences.num_units))


def alpha_interval(
    units: Sequence[Sequence[float]] | Units,
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
    coincidences = _Coincidences(Units.of(units), metric)
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


def cohen_kappa(table: Sequence[Sequence[float]] | Floats, *, quadratic: bool = False) -> float | None:
    """Return Cohen's kappa of two raters, 1 - observed / expected disagreement.

    Args:
        table: (C, C) counts: how often the one gave the row and the other the column.
        quadratic: weigh a disagreement by the squared distance of the grades, for ordered ones; else all are equal.

    Returns:
        At most 1 (0 = chance); None where it is undefined: no counts, or both gave one and the same grade only.

    Raises:
        DataError: the table is not square.

    Source: Cohen 1960, doi:10.1177/001316446002000104, and 1968, doi:10.1037/h0026256.
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise DataError(
            f"the table has shape {counts.shape}; expected a square one, with the same grades on both sides"
        )
    grades = np.arange(len(counts))
    distance = grades[:, None] - grades
    weight = (distance / max(1, len(counts) - 1)) ** 2 if quadratic else (distance != 0).astype(np.float64)
    total = counts.sum()
    expected = float((weight * np.outer(counts.sum(1), counts.sum(0))).sum())
    return None if expected == 0 else 1 - float((weight * counts).sum()) * float(total) / expected


def fleiss_kappa(counts: Sequence[Sequence[float]] | Floats) -> float | None:
    """Return Fleiss' kappa of many raters.

    Args:
        counts: (units, labels): how many raters gave a unit a label; the same number of raters, at least 2, for each.

    Returns:
        At most 1 (0 = chance); None where it is undefined: no units, or one label only.

    Raises:
        DataError: units with different numbers of raters; `krippendorff_alpha` takes them.

    Source: Fleiss 1971, doi:10.1037/h0031619.
    """
    table = np.asarray(counts, dtype=np.float64)
    if len(table) == 0:
        return None
    raters = table.sum(1)
    if raters.min() != raters.max() or raters[0] < 2:
        raise DataError(
            f"units have {raters.min():g} to {raters.max():g} raters; expected the same number, at least 2, for each "
            "(Krippendorff's alpha takes any)"
        )
    n = float(raters[0])
    observed = float((((table**2).sum(1) - n) / (n * (n - 1))).mean())
    expected = float(((table.sum(0) / table.sum()) ** 2).sum())
    return None if expected == 1 else (observed - expected) / (1 - expected)
