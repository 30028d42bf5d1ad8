"""Dawid-Skene, MACE and judges' reliability: published tables, naive code, simulated judges of known quality."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from harken.config.preferences import (
    BradleyTerryConfig,
    DawidSkeneConfig,
    MaceConfig,
    MajorityConfig,
    ReliabilityConfig,
    Resolve,
)
from harken.errors import DataError
from harken.preferences.dawid_skene import Labels, fit_dawid_skene
from harken.preferences.mace import fit_mace
from harken.preferences.numeric import Floats
from harken.preferences.outcomes import outcomes
from harken.preferences.reliability import _Problem, fit_reliability
from tests.preferences.crowd import Crowd, simulated, votes_of


@pytest.fixture
def anesthesia(realdata: Path) -> Labels:
    """The table of Dawid and Skene 1979."""
    with (realdata / "dawid-skene-1979" / "anesthesia.csv").open(newline="") as file:
        rows = [[int(row[name]) - 1 for name in ("patient", "observer", "label")] for row in csv.DictReader(file)]
    patient, observer, label = np.array(rows).T
    return Labels(patient, observer, label, 45, 5, 4)


def test_the_table_of_1979(anesthesia: Labels) -> None:
    # shared data README: EM started from vote shares
    fit = fit_dawid_skene(anesthesia, smoothing=0, diagonal=0)
    assert fit.prior == pytest.approx([0.3996, 0.4220, 0.1118, 0.0667], abs=5e-5)
    assert fit.log_likelihood == pytest.approx(-192.8909, abs=5e-5)
    assert np.bincount(fit.posterior.argmax(1)).tolist() == [18, 19, 5, 3]
    assert fit.confusion[0, 0] == pytest.approx([0.889, 0.111, 0, 0], abs=5e-4)
    # Patient 1 was called 1 by all five: certain.
    assert fit.posterior[0] == pytest.approx([1, 0, 0, 0], abs=1e-6)


def test_smoothed_fits_rank_the_observers_alike(anesthesia: Labels) -> None:
    smoothed, one_coin, mace = (
        fit_dawid_skene(anesthesia),
        fit_dawid_skene(anesthesia, one_coin=True),
        fit_mace(anesthesia),
    )
    for fit in (smoothed, one_coin, mace):
        assert fit.posterior.sum(1) == pytest.approx(np.ones(45))
        assert fit.confusion.sum(2) == pytest.approx(np.ones((5, 4)))
        assert (fit.accuracy_low < fit.accuracy).all()
        assert (fit.accuracy < fit.accuracy_high).all()
        assert fit.accuracy.argmin() == 1, "observer 2 errs most"
        assert (fit.posterior.argmax(1) == smoothed.posterior.argmax(1)).mean() > 0.9
    right = np.diagonal(one_coin.confusion, axis1=1, axis2=2)
    assert right == pytest.approx(np.repeat(right[:, :1], 4, axis=1))


def _naive_dawid_skene(labels: Labels, smoothing: float, diagonal: float, iterations: int) -> list[list[float]]:
    """The formulas of the paper, one sum at a time, with products in place of logs."""
    given = list(zip(labels.unit.tolist(), labels.judge.tolist(), labels.label.tolist(), strict=True))
    size = range(labels.num_labels)
    posterior = [
        [sum(u == i and y == k for u, _, y in given) / sum(u == i for u, _, _ in given) for k in size]
        for i in range(labels.num_units)
    ]
    for _ in range(iterations):
        prior = [sum(row[k] for row in posterior) / len(posterior) for k in size]
        confusion: list[list[list[float]]] = []
        for a in range(labels.num_judges):
            table = [
                [
                    smoothing + diagonal * (k == y) + sum(posterior[u][k] for u, j, z in given if (j, z) == (a, y))
                    for y in size
                ]
                for k in size
            ]
            confusion.append([[cell / sum(row) for cell in row] for row in table])
        for i in range(labels.num_units):
            joint = [prior[k] * math.prod(confusion[j][k][y] for u, j, y in given if u == i) for k in size]
            posterior[i] = [value / sum(joint) for value in joint]
    return posterior


def _small(seed: int = 0) -> Labels:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, 12)
    unit, judge = np.divmod(np.arange(48), 4)
    label = np.where(rng.random(48) < 0.7, truth[unit], rng.integers(0, 3, 48))
    return Labels(unit, judge, label, 12, 4, 3)


def test_em_equals_the_formulas_written_out() -> None:
    labels = _small()
    found = fit_dawid_skene(labels, smoothing=1, diagonal=2, tolerance=1e-13)
    assert found.posterior == pytest.approx(np.array(_naive_dawid_skene(labels, 1, 2, 300)), abs=1e-6)


def test_the_fit_is_a_maximum() -> None:
    labels = _small(3)
    fit = fit_dawid_skene(labels, tolerance=1e-14)

    def target(confusion: Floats) -> float:
        total = float((np.log(confusion) * (1 + 2 * np.eye(3))).sum())
        for i in range(labels.num_units):
            own = labels.unit == i
            rows = confusion[labels.judge[own], :, labels.label[own]]
            total += math.log(float((fit.prior * rows.prod(0)).sum()))
        return total

    best = target(fit.confusion)
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = fit.confusion * np.exp(0.02 * rng.normal(size=fit.confusion.shape))
        assert target(moved / moved.sum(2, keepdims=True)) < best


def test_mirrored_labels_do_not_see_the_order_of_the_ids() -> None:
    labels = _small(1)
    turned = Labels(labels.unit, labels.judge, 2 - labels.label, 12, 4, 3)
    for fit in (fit_dawid_skene, fit_mace):
        one, other = fit(labels, mirrored=True), fit(turned, mirrored=True)
        assert one.posterior == pytest.approx(other.posterior[:, ::-1], abs=1e-4)


def test_smoothing_keeps_a_tiny_example_from_certainty() -> None:
    rng = np.random.default_rng(2)
    unit, judge = np.divmod(np.arange(24), 3)
    labels = Labels(unit, judge, rng.integers(0, 2, 24), 8, 3, 2)
    assert fit_dawid_skene(labels, smoothing=0, diagonal=0).posterior.min() < 1e-9
    assert fit_dawid_skene(labels).posterior.min() > 1e-3


def test_mace_finds_who_does_not_look() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    unit, judge = np.divmod(np.arange(300 * 5), 5)
    label = np.where(rng.random(1500) < 0.85, truth[unit], rng.integers(0, 3, 1500))
    label[judge == 4] = 1  # always the same
    label[judge == 3] = rng.integers(0, 3, 300)  # at random
    fit = fit_mace(Labels(unit, judge, label, 300, 5, 3), restarts=3)
    # 0.85 looks, the rest at random.
    assert fit.accuracy[:3] == pytest.approx([0.85] * 3, abs=0.08)  # three standard errors of 300 labels
    assert fit.accuracy[3:].max() < 0.15
    assert (fit.posterior.argmax(1) == truth).mean() > 0.95


def test_bad_pseudo_counts_are_refused() -> None:
    with pytest.raises(DataError, match="at least 0"):
        fit_dawid_skene(_small(), smoothing=-1)
    with pytest.raises(DataError, match="at least 1"):
        fit_mace(_small(), restarts=0)
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(DataError, match="no labels"):
        Labels(none, none, none, 0, 0, 2)


def _rank_correlation(one: Floats, other: Floats) -> float:
    return float(np.asarray(spearmanr(one, other))[0])


def _mixed(seed: int, num_pairs: int = 600, per_pair: int = 10) -> Crowd:
    rng = np.random.default_rng(seed)
    reliability = np.concatenate([rng.uniform(0.7, 3, 24), rng.uniform(-0.05, 0.05, 6), rng.uniform(-2.5, -1, 5)])
    reliability = np.concatenate([reliability, np.zeros(5)])
    bias = np.concatenate([np.zeros(35), np.full(5, 4.0)])
    return simulated(num_pairs, per_pair, reliability, bias, seed=seed)


def test_gradients_of_the_reliability_model_are_those_of_finite_differences() -> None:
    problem = _Problem(_mixed(0, 10, 6).votes, 0.5, 1.0, 0.7)
    vector = np.random.default_rng(0).normal(size=len(problem.start))
    _, gradient = problem.objective(vector)
    numeric = [
        (problem.objective(vector + step)[0] - problem.objective(vector - step)[0]) / 2e-6
        for step in 1e-6 * np.eye(len(vector))
    ]
    assert gradient == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_reliability_recovers_judges_and_scores(seed: int) -> None:
    crowd = _mixed(seed)
    fit = fit_reliability(crowd.votes)
    assert _rank_correlation(fit.reliability, crowd.reliability) > 0.95
    reversed_judges = crowd.reliability < -0.5
    assert (fit.intervals()[1][reversed_judges] < 0).all()
    assert (fit.reliability[crowd.reliability > 0.5] > 0).all()
    # The always-left stand out by their bias, and nobody else does.
    assert set(np.argsort(-fit.bias)[:5].tolist()) == set(range(35, 40))
    truth, found = (scores[::2] - scores[1::2] for scores in (crowd.scores, fit.scores))
    assert _rank_correlation(truth, found) > 0.9
    plain = outcomes(crowd.votes, BradleyTerryConfig(ridge=0.5)).probability
    assert _rank_correlation(truth, found) > _rank_correlation(truth, plain)


def test_reliability_of_equal_judges_is_bradley_terry() -> None:
    crowd = simulated(30, 8, np.ones(10), np.zeros(10), seed=1)
    tight = fit_reliability(crowd.votes, spread=1e-4, bias_spread=1e-4)
    plain = outcomes(crowd.votes, BradleyTerryConfig())
    assert tight.preference(plain.first, plain.second) == pytest.approx(plain.probability, abs=1e-3)


def _log_loss(crowd: Crowd, config: Resolve) -> float:
    """Mean loss, on each pair's true preference, of the labels that a method gives: what a reward model would learn."""
    found = outcomes(crowd.votes, config)
    truth = 1 / (1 + np.exp(crowd.scores[1::2] - crowd.scores[::2]))
    p = np.clip(found.probability, 1e-6, 1 - 1e-6)
    return float(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean())


@pytest.mark.parametrize("seed", [2, 3])
def test_soft_labels_of_the_reliability_model_are_likelier_than_those_of_the_majority(seed: int) -> None:
    crowd = _mixed(seed, per_pair=6)
    assert _log_loss(crowd, ReliabilityConfig()) < _log_loss(crowd, MajorityConfig()) - 0.01


@pytest.mark.parametrize("config", [DawidSkeneConfig(), DawidSkeneConfig(one_coin=True), MaceConfig(restarts=2)])
def test_methods_that_weigh_judges_beat_the_majority_where_quality_varies(config: Resolve) -> None:
    rng = np.random.default_rng(7)
    num_pairs, per_pair, num_judges = 800, 5, 30
    accuracy = np.where(np.arange(num_judges) < 12, 0.95, 0.52)
    judge = np.concatenate([rng.choice(num_judges, per_pair, replace=False) for _ in range(num_pairs)])
    first = np.repeat(np.arange(num_pairs) * 2, per_pair)
    truth = rng.choice([-1, 1], num_pairs)
    is_right = rng.random(len(first)) < accuracy[judge]
    outcome = np.where(is_right, 1, -1) * truth[first // 2]
    votes = votes_of(2 * num_pairs, num_judges, first, first + 1, outcome, judge=judge)

    def share_right(method: Resolve) -> float:
        return float(((outcomes(votes, method).probability > 0.5) == (truth > 0)).mean())

    # Majority of 5 is right in about 85 %; the difference of 40 pairs in 800 is over three standard errors.
    assert share_right(config) > share_right(MajorityConfig()) + 0.05
