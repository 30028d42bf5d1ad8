"""The examination of a reward model, against numbers worked out by hand and simulations whose truth is known."""

import math
from typing import Any

import numpy as np
import pytest

from harken.records import PreferencePair
from harken.reward.examine import calibration, correlation, log_loss, summarize
from tests.policy import material


def _pairs(**columns: list[Any]) -> list[PreferencePair]:
    (template,) = material.pairs(1, 0)
    count = len(next(iter(columns.values())))
    return [template.model_copy(update={name: values[row] for name, values in columns.items()}) for row in range(count)]


def test_accuracy_counts_a_tie_half_by_difference_of_ratings() -> None:
    margins = np.array([2.0, -1.0, 0.0, 1.0, 1.0, -3.0])
    found = summarize(margins, _pairs(difference=[3.5, 3.0, 2.0, 1.0, 0.5, 0.6]))
    assert found["num_pairs"] == 6
    # Right: 1, 0, 1/2, 1, 1, 0.
    assert found["accuracy"]["value"] == pytest.approx(3.5 / 6, rel=1e-12)
    assert found["accuracy"]["n"] == 6
    # Differences of 1 or more are the first four.
    assert found["accuracy_difference_1_or_more"]["value"] == pytest.approx(2.5 / 4, rel=1e-12)
    buckets = [(row["label"], row["n"], row["accuracy"]["value"]) for row in found["buckets"]]
    assert buckets == [("3 or more", 2, 0.5), ("2 to 3", 1, 0.5), ("1 to 2", 1, 1.0), ("under 1", 2, 0.5)]


def test_accuracy_falls_back_on_strength_where_no_ratings_are_known() -> None:
    margins = np.array([1.0, 1.0, -1.0, 1.0])
    found = summarize(margins, _pairs(strength=[3, 1, 0, 0], difference=[None, None, None, 2.0]))
    buckets = [(row["label"], row["n"], row["accuracy"]["value"]) for row in found["buckets"]]
    assert buckets == [
        ("significantly", 1, 1.0),
        ("clearly", 0, None),
        ("slightly", 1, 1.0),
        ("negligibly", 2, 0.5),
    ]
    assert found["accuracy_difference_1_or_more"]["value"] == 1.0


def test_intervals_are_wilsons() -> None:
    # 8 of 10 at 95 %: (p + z2/2n +- z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) with z = 1.959964: 0.4902 to 0.9433.
    found = summarize(np.array([1.0] * 8 + [-1.0] * 2), _pairs(difference=[1.0] * 10))["accuracy"]
    assert (found["low"], found["high"]) == pytest.approx((0.490162, 0.943318), abs=1e-6)


def test_a_model_that_is_sure_and_right_has_no_error() -> None:
    found = calibration(np.full(50, 40.0), np.ones(50))
    assert found["ece"] == pytest.approx(0.0, abs=1e-9)
    assert found["brier"] == pytest.approx(0.0, abs=1e-9)
    assert found["nll"] == pytest.approx(0.0, abs=1e-9)


def test_a_model_that_is_sure_and_wrong_has_every_error() -> None:
    # Confidence 1 and accuracy 0; the loss of a margin of -40 with label 1 is 40 nats.
    found = calibration(np.full(50, -40.0), np.ones(50))
    assert found["ece"] == pytest.approx(1.0, rel=1e-9)
    assert found["brier"] == pytest.approx(1.0, rel=1e-9)
    assert found["nll"] == pytest.approx(40.0, rel=1e-9)


def test_errors_of_a_mixed_case_are_those_worked_out_by_hand() -> None:
    # Margin log 3 is a confidence of 3/4; labels 1, 1, 1, 0 make it right 3/4 of the time: no calibration error.
    # Brier: (3 * (1/4)^2 + (3/4)^2) / 4 = 0.1875. Loss: -(3 log 3/4 + log 1/4) / 4 = 0.56234.
    found = calibration(np.full(4, math.log(3.0)), np.array([1.0, 1.0, 1.0, 0.0]))
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)
    assert found["brier"] == pytest.approx(0.1875, rel=1e-12)
    assert found["nll"] == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4, rel=1e-12)
    # Labels 1, 1, 0, 0: right half of the time, off by 1/4.
    assert calibration(np.full(4, math.log(3.0)), np.array([1.0, 1.0, 0.0, 0.0]))["ece"] == pytest.approx(
        0.25, rel=1e-9
    )


def test_soft_labels_count_as_they_are() -> None:
    # A confidence of 3/4 against a label of 0.9: off by 0.15; Brier 0.15^2.
    found = calibration(np.full(6, math.log(3.0)), np.full(6, 0.9))
    assert found["ece"] == pytest.approx(0.15, rel=1e-9)
    assert found["brier"] == pytest.approx(0.0225, rel=1e-9)
    assert found["nll"] == pytest.approx(-(0.9 * math.log(0.75) + 0.1 * math.log(0.25)), rel=1e-9)


def _simulated(scale: float, count: int = 20_000) -> tuple[Any, Any]:
    """Return margins `scale` times too large for the labels drawn."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0.0, 1.5, count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(float)
    return scale * logits, labels


def test_a_perfectly_calibrated_model_has_a_small_error() -> None:
    # Expected from chance alone: about sqrt(2 / pi) * sqrt(0.19 / 2000) = 0.008 a bin. The seed is fixed.
    found = calibration(*_simulated(1.0))
    assert found["ece"] < 0.03
    assert found["temperature"] == pytest.approx(1.0, rel=0.05)  # 10,000 labels fix a scale to about 2 %


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_the_temperature_recovers_a_known_scale(scale: float) -> None:
    margins, labels = _simulated(scale)
    found = calibration(margins, labels)
    assert found["temperature"] == pytest.approx(scale, rel=0.05)  # 10,000 labels fix a scale to about 2 %
    assert found["ece"] > 0.1
    # Measured on the half that the temperature was not fitted to.
    assert found["nll_after_temperature"] < found["nll"] - 0.01
    assert found["nll_after_temperature"] == pytest.approx(log_loss(margins[1::2] / scale, labels[1::2]), abs=1e-3)


def test_turning_pairs_around_changes_no_score() -> None:
    margins, labels = _simulated(2.0, 500)
    one, other = calibration(margins, labels), calibration(-margins, 1 - labels)
    for name in ("ece", "brier", "nll", "temperature"):
        assert one[name] == pytest.approx(other[name], rel=1e-9)


def test_bins_hold_all_pairs_and_lie_side_by_side() -> None:
    found = calibration(*_simulated(1.0, 3000))["bins"]
    assert sum(row["n"] for row in found) == 3000
    assert [row["low"] for row in found] == pytest.approx([0.5 + 0.05 * index for index in range(10)], rel=1e-9)
    for row in found:
        assert row["low"] <= row["confidence"] <= row["high"]
        assert 0 <= row["accuracy"] <= 1


def test_correlation_is_pearsons_or_none() -> None:
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0, rel=1e-12)
    # Deviations (-1, 0, 1) and (1, -2, 1): no correlation.
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 0.0, 3.0])) == pytest.approx(0.0, abs=1e-12)
    assert correlation(np.array([1.0, 1.0]), np.array([2.0, 4.0])) is None
