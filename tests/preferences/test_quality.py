"""Agreement: alpha against published numbers and two independent computations."""

import csv
import itertools
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import krippendorff
import numpy as np
import pytest

from harken.artifacts import iterate_records
from harken.errors import DataError
from harken.preferences.agreement import Metric, alpha_interval, krippendorff_alpha
from harken.preferences.quality import (
    agreement_report,
    split_half_correlation,
)
from harken.records import Completion, Judge, Judgment, Message, RatedAxis, Rating

METRICS: tuple[Metric, ...] = ("nominal", "ordinal", "interval")
# Rows are raters, columns items; "." is missing.
TABLE = """
1 2 3 3 2 1 4 1 2 . .
1 2 3 3 2 2 4 1 2 5 .
. 3 3 3 2 3 4 2 2 5 1
1 2 3 3 2 4 4 1 2 5 1
"""
UNITS = [
    [float(cell) for cell in column if cell != "."]
    for column in zip(*(row.split() for row in TABLE.split("\n") if row), strict=True)
]


def _naive_alpha(units: Sequence[Sequence[float]], metric: Metric) -> float:
    """Alpha from the coincidence matrix, as Krippendorff writes it."""
    pairable = [unit for unit in units if len(unit) >= 2]
    values = sorted({x for unit in pairable for x in unit})
    coincidences = {(c, k): 0.0 for c in values for k in values}
    for unit in pairable:
        for i, j in itertools.permutations(range(len(unit)), 2):
            coincidences[unit[i], unit[j]] += 1 / (len(unit) - 1)
    margins = {c: sum(coincidences[c, k] for k in values) for c in values}
    n = sum(margins.values())

    def delta2(c: float, k: float) -> float:
        if metric == "nominal":
            return float(c != k)
        if metric == "interval":
            return (c - k) ** 2
        low, high = min(c, k), max(c, k)
        between = sum(margins[g] for g in values if low <= g <= high)
        return (between - (margins[c] + margins[k]) / 2) ** 2

    observed = sum(count * delta2(c, k) for (c, k), count in coincidences.items()) / n
    expected = sum(margins[c] * margins[k] * delta2(c, k) for c in values for k in values)
    return 1 - observed / (expected / (n * (n - 1)))


def _random_units(rng: random.Random) -> list[list[float]]:
    values = rng.choice([[0.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0], [0.5, 1e3, 1e3 + 0.25, -7.0]])
    return [[rng.choice(values) for _ in range(rng.randint(0, 5))] for _ in range(12)]


@pytest.mark.parametrize(("metric", "expected"), [("nominal", 0.743421), ("ordinal", 0.815388), ("interval", 0.849107)])
def test_alpha_of_the_reference_table(metric: Metric, expected: float) -> None:
    # shared reference feedback.md, 4.12
    assert krippendorff_alpha(UNITS, metric) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_alpha_equals_the_package_krippendorff_on_random_data(metric: Metric) -> None:
    rng = random.Random(7)
    for _ in range(50):
        units = _random_units(rng)
        if len({x for unit in units for x in unit if len(unit) > 1}) < 2:
            continue
        table = [[unit[r] if r < len(unit) else math.nan for unit in units] for r in range(5)]
        with np.errstate(invalid="ignore"):
            expected = krippendorff.alpha(reliability_data=np.array(table), level_of_measurement=metric)
        assert krippendorff_alpha(units, metric) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_alpha_equals_the_coincidence_matrix_computed_naively(metric: Metric) -> None:
    rng = random.Random(8)
    for _ in range(50):
        units = _random_units(rng)
        if len({x for unit in units for x in unit if len(unit) > 1}) < 2:
            continue
        expected = _naive_alpha(units, metric)
        assert krippendorff_alpha(units, metric) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_alpha_is_one_when_all_agree_and_does_not_see_order_or_single_ratings(
    metric: Metric,
) -> None:
    assert krippendorff_alpha([[1, 1], [2, 2, 2], [4, 4]], metric) == pytest.approx(1, rel=1e-12)
    shuffled = [unit[::-1] for unit in UNITS[::-1]] + [[99.0], []]
    expected = krippendorff_alpha(UNITS, metric)
    assert krippendorff_alpha(shuffled, metric) == pytest.approx(expected, rel=1e-12)


def test_interval_alpha_ignores_shift_and_scale_and_ordinal_any_monotone_map() -> None:
    moved = [[1e6 + 0.1 * x for x in unit] for unit in UNITS]
    assert krippendorff_alpha(moved, "interval") == pytest.approx(0.849107, abs=5e-7)
    bent = [[x**3 for x in unit] for unit in UNITS]
    assert krippendorff_alpha(bent, "ordinal") == pytest.approx(0.815388, abs=5e-7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("units", [[], [[1.0]], [[1.0], [2.0]], [[3.0, 3.0], [3.0, 3.0]]])
def test_undefined_alpha_is_none(metric: Metric, units: list[list[float]]) -> None:
    assert krippendorff_alpha(units, metric) is None
    assert alpha_interval(units, metric, resamples=10) is None


def test_ratings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        krippendorff_alpha([[1.0, math.nan]], "interval")


@pytest.mark.parametrize("metric", METRICS)
def test_bootstrap_resamples_items(metric: Metric) -> None:
    # The same draws, each computed naively: items repeated as often as they were drawn.
    units = [unit for unit in UNITS if len(unit) >= 2]
    rng = np.random.default_rng(3)
    alphas: list[float] = []
    for _ in range(40):
        resample = [units[i] for i in rng.integers(0, len(units), len(units))]
        alphas.append(_naive_alpha(resample, metric))
    estimate = alpha_interval(UNITS, metric, resamples=40, seed=3, level=0.9)
    assert estimate is not None
    low, high = np.quantile(alphas, [0.05, 0.95])
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-9)
    assert estimate.value == pytest.approx(_naive_alpha(UNITS, metric), rel=1e-9)


def test_bootstrap_interval_covers_the_truth() -> None:
    # Two raters see the item's value (+-1) with error variance 1: the intraclass correlation, which
    # interval alpha estimates, is 1/2. At 95 % each, 40 intervals miss 9 times or more with
    # probability 1.4e-4 (binomial); at 92 %, as a percentile bootstrap may have, with 4e-3.
    rng = np.random.default_rng(5)
    misses = 0
    for trial in range(40):
        truth = rng.choice([-1.0, 1.0], size=60)
        units = (truth[:, None] + rng.normal(size=(60, 2))).tolist()
        estimate = alpha_interval(units, "interval", resamples=200, seed=trial)
        assert estimate is not None
        misses += not estimate.low <= 0.5 <= estimate.high
    assert misses <= 8


def test_split_half_correlation_of_raters_who_repeat_the_item_value_is_one() -> None:
    assert split_half_correlation([[1, 1, 1], [2, 2], [5, 5, 5, 5]]) == pytest.approx(1)
    assert split_half_correlation([[1, 2]]) is None
    assert split_half_correlation([[1, 1], [1, 1]]) is None
    # Halves of two are single raters who always differ in the same direction or the other: with
    # values (0, 1) and (1, 0) in random order the means of an item's halves sum to 1, so r = -1.
    assert split_half_correlation([[0, 1]] * 20) == pytest.approx(-1)


def test_real_crowd_votes_agree_as_published(realdata: Path) -> None:
    votes: dict[str, list[float]] = defaultdict(list)
    with (realdata / "llmfao" / "crowd-comparisons.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            votes[row["id"]].append({"left": 0.0, "right": 1.0, "tie": 2.0}[row["winner"]])
    assert sum(map(len, votes.values())) == 8931
    assert krippendorff_alpha(list(votes.values()), "nominal") == pytest.approx(0.2906, abs=5e-4)


def _judgment(name: str, completion_id: str, value: float, judge: str | None = None) -> Judgment:
    return Judgment(
        id=name,
        judge=Judge(id=judge or name, kind="person"),
        prompt_id="q",
        shown=(completion_id,),
        answer=Rating(axes={"style": RatedAxis(value=value, low=1, high=4)}),
    )


def _completions(*names: str) -> list[Completion]:
    return [Completion(id=n, prompt_id="q", message=Message(role="assistant", content=f"text {n}")) for n in names]


def test_report_describes_the_ratings() -> None:
    judgments = [
        _judgment(f"{name}{i}", name, value)
        for name, values in {"a": [1, 4], "b": [3, 3, 3], "c": [2]}.items()
        for i, value in enumerate(values)
    ]
    report = agreement_report(judgments, _completions("a", "b", "c"), resamples=20)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["num_judgments"], report["num_items"]) == (6, 3)
    assert report["num_judges_named"] is None
    assert report["ratings_per_item"] == {"min": 1, "mean": 2.0, "max": 3}
    assert (report["axis"], report["scale"]) == ("style", [1.0, 4.0])
    assert report["histogram"] == {"1": 1, "2": 1, "3": 3, "4": 1}
    # Population standard deviations 1.5, 0 and 0.
    assert report["mean_item_std"] == pytest.approx(0.5)
    assert report["most_disputed"][0] == {"text": "text a", "mean": 2.5, "std": 1.5, "n": 2}
    assert [row["text"] for row in report["most_agreed"]] == ["text b", "text a"]
    # Values 1 4 | 3 3 3, n = 5: D_o = (9 + 9) / 5; squared differences of all ordered pairs:
    # 2 (5 * 44 - 14^2) = 48, D_e = 48 / 20; alpha = 1 - 3.6 / 2.4 = -0.5.
    assert report["alpha_interval"]["value"] == pytest.approx(-0.5)
    assert report["alpha_interval"]["low"] <= -0.5


def test_report_counts_judges_where_their_ids_recur_and_says_none_for_what_is_undefined() -> None:
    judgments = [_judgment("1", "a", 2, "ann"), _judgment("2", "b", 2, "ann")]
    report = agreement_report(judgments, _completions("a", "b"))
    assert report["num_judges_named"] == 1
    assert report["alpha_ordinal"] is None
    assert report["most_disputed"] == []


def test_report_without_the_completion_is_a_data_error() -> None:
    with pytest.raises(DataError, match="judgment '1' rates completion 'a', which is not"):
        agreement_report([_judgment("1", "a", 2)], [], resamples=1)


def test_report_on_the_real_movie_ratings(movie_export: Path) -> None:
    start = time.perf_counter()
    report = agreement_report(
        iterate_records(movie_export / "judgments.jsonl", Judgment),
        iterate_records(movie_export / "completions.jsonl", Completion),
        resamples=100,
    )
    # With 1,000 resamples 5 s on two quiet cores; the bound is for a busy machine.
    assert time.perf_counter() - start < 60
    assert (report["num_judgments"], report["num_items"]) == (198810, 10605)
    assert report["num_judges_named"] is None
    # Counted with another program over the raw file.
    assert report["histogram"] == {
        "-4": 6231,
        "-3": 20690,
        "-2": 36968,
        "-1": 29308,
        "0": 9968,
        "1": 30382,
        "2": 39752,
        "3": 21316,
        "4": 4195,
    }
    assert report["alpha_interval"]["low"] < 0.798250 < report["alpha_interval"]["high"]
