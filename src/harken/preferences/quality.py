"""A report on ratings: how many, how far they agree, and where they do not."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from harken.errors import DataError
from harken.preferences.agreement import Estimate, alpha_interval
from harken.preferences.resolve import AxisRatings, ratings_on_axis
from harken.records import Completion, Judgment

_NUM_EXAMPLES = 3
_MAX_HISTOGRAM_BARS = 101


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
        "alpha_ordinal": _as_dict(alphas["ordinal"]),
        "alpha_interval": _as_dict(alphas["interval"]),
        "mean_item_std": statistics.fmean(float(np.std(unit)) for unit in units),
        "split_half_correlation": split_half_correlation(units, seed=seed),
        **_examples(ratings, completions),
    }


def _as_dict(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else estimate.as_dict()


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
