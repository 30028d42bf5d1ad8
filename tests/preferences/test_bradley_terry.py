"""Scores from votes: published numbers, other libraries, finite differences, and what must not matter."""

import choix
import evalica
import numpy as np
import pytest
from numpy.typing import NDArray

from harken.errors import DataError
from harken.preferences.bradley_terry import PairVotes, Ties, _Problem, fit_scores
from harken.preferences.links import CutPoints, Davidson, HalfWins, Link
from harken.preferences.outcomes import margins_of, pair_votes
from tests.preferences.crowd import votes_of

# A-B 12 / 5 / 3 ties, A-C 15 / 4 / 1, B-C 9 / 7 / 4
TABLE = [(0, 1, 12, 5, 3), (0, 2, 15, 4, 1), (1, 2, 9, 7, 4)]


def _table(rows: list[tuple[int, int, int, int, int]] = TABLE, num_items: int = 3) -> PairVotes:
    cells = [
        (one, other, outcome, count)
        for one, other, *counts in rows
        for outcome, count in zip((1, -1, 0), counts, strict=True)
    ]
    first, second, outcome, count = np.array(cells).T
    return PairVotes(num_items, first, second, outcome, count.astype(np.float64), np.zeros((len(cells), 0)))


def _random(seed: int, size: int = 300, num_items: int = 6) -> PairVotes:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=num_items)
    first = rng.integers(0, num_items - 1, size)
    second = first + 1 + rng.integers(0, num_items, size) % (num_items - 1 - first)
    side = rng.choice([-1.0, 1.0], size)
    latent = scores[first] - scores[second] + 0.4 * side + rng.logistic(size=size)
    is_tie = np.abs(latent) < 0.5  # the width of the tie band, no tolerance
    outcome = np.where(is_tie, 0, np.sign(latent)).astype(np.int64)
    strength = np.where(outcome == 0, -1, np.minimum(np.abs(latent) // 1, 3)).astype(np.int64)
    return PairVotes(num_items, first, second, outcome, np.ones(size), side[:, None], strength)


@pytest.mark.parametrize(
    ("ties", "b", "c", "log_likelihood"),
    [
        ("half", -0.830255, -1.117857, None),
        ("davidson", -0.978509, -1.317200, -54.375949),
        ("rao_kupper", -0.870244, -1.181440, -54.206662),
    ],
)
def test_the_reference_table(ties: Ties, b: float, c: float, log_likelihood: float | None) -> None:
    # shared reference feedback.md, 4.12
    fit = fit_scores(_table(), ties=ties, ridge=0)
    assert fit.scores[1:] - fit.scores[0] == pytest.approx([b, c], abs=2e-6)
    assert abs(fit.scores.sum()) < 1e-12
    if log_likelihood is not None:
        assert fit.log_likelihood == pytest.approx(log_likelihood, abs=1e-6)
    if ties == "davidson":
        assert np.exp(fit.shape[0].value) == pytest.approx(0.342982, abs=1e-6)
    if ties == "rao_kupper":
        assert np.exp(fit.cuts[1]) == pytest.approx(1.372235, abs=1e-6)


def test_bradley_terry_equals_choix_and_evalica_on_random_wins() -> None:
    votes = _random(1)
    won = votes.outcome != 0
    first, second, outcome = votes.first[won], votes.second[won], votes.outcome[won]
    none = np.zeros((int(won.sum()), 0))
    ours = fit_scores(PairVotes(6, first, second, outcome, np.ones(len(first)), none), ridge=0)
    pairs = [(a, b) if o > 0 else (b, a) for a, b, o in zip(first, second, outcome, strict=True)]
    assert ours.scores == pytest.approx(choix.opt_pairwise(6, pairs), abs=1e-5)
    # choix penalizes alpha * sum of squares, too.
    ridged = fit_scores(PairVotes(6, first, second, outcome, np.ones(len(first)), none), ridge=0.5)
    assert ridged.scores == pytest.approx(choix.opt_pairwise(6, pairs, alpha=0.5), abs=1e-5)
    winners = [evalica.Winner.X if o > 0 else evalica.Winner.Y for o in outcome]
    theirs = evalica.bradley_terry(first.tolist(), second.tolist(), winners, tolerance=1e-12, limit=10_000).scores
    logs = np.log(np.array([theirs[k] for k in range(6)]))
    assert ours.scores == pytest.approx(logs - logs.mean(), abs=1e-5)


@pytest.mark.parametrize("ties", ["half", "davidson", "rao_kupper", "graded"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_finite_differences(ties: Ties, seed: int) -> None:
    problem = _Problem(_random(seed), ties, 0.3)
    vector = np.random.default_rng(seed).normal(size=len(problem.start)) * 0.5
    _, gradient = problem.objective(vector)
    numeric = [
        (problem.objective(vector + step)[0] - problem.objective(vector - step)[0]) / 2e-6
        for step in 1e-6 * np.eye(len(vector))
    ]
    assert gradient == pytest.approx(numeric, abs=1e-5)


def _links() -> list[tuple[Link, NDArray[np.float64]]]:
    outcome = np.array([1, 0, -1, 1, -1])
    cuts = CutPoints(np.array([1, -1, -2, 2, -3]), np.array([2, 1, -1, 3, -2]), 2)
    return [(HalfWins(outcome), np.zeros(0)), (Davidson(outcome), np.array([-0.4])), (cuts, np.array([-0.7, 0.2]))]


@pytest.mark.parametrize("index", range(3))
def test_slope_and_curvature_are_derivatives(index: int) -> None:
    link, shape = _links()[index]
    difference = np.array([0.3, -1.2, 2.0, -0.1, 0.7])
    found = link(difference, shape)
    above, below = link(difference + 1e-5, shape), link(difference - 1e-5, shape)
    assert found.slope == pytest.approx((above.log_likelihood - below.log_likelihood) / 2e-5, abs=1e-8)
    assert found.curvature == pytest.approx(-(above.slope - below.slope) / 2e-5, abs=1e-8)
    assert (found.curvature > 0).all()


def test_probabilities_of_all_outcomes_sum_to_one() -> None:
    difference = np.linspace(-30, 30, 13)
    for make in (
        lambda sign: Davidson(np.full(13, sign)),
        lambda sign: CutPoints(np.full(13, [-2, -1, 1][sign + 1]), np.full(13, [-1, 1, 2][sign + 1]), 1),
    ):
        total = sum(np.exp(make(sign)(difference, np.array([0.3])).log_likelihood) for sign in (-1, 0, 1))
        assert total == pytest.approx(np.ones(13), rel=1e-12)


def test_turning_a_pair_around_changes_nothing() -> None:
    votes = _random(2)
    turned = PairVotes(6, votes.second, votes.first, -votes.outcome, votes.weight, -votes.covariates, votes.strength)
    for ties in ("half", "davidson", "rao_kupper", "graded"):
        one, other = fit_scores(votes, ties=ties), fit_scores(turned, ties=ties)
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
        assert one.coefficients[0].value == pytest.approx(other.coefficients[0].value, abs=1e-6)


def test_weights_are_repetitions() -> None:
    votes = _table()
    times = votes.weight.astype(int)
    many = PairVotes(
        3,
        np.repeat(votes.first, times),
        np.repeat(votes.second, times),
        np.repeat(votes.outcome, times),
        np.ones(times.sum()),
        np.zeros((times.sum(), 0)),
    )
    one, other = fit_scores(votes, ties="davidson"), fit_scores(many, ties="davidson")
    assert one.scores == pytest.approx(other.scores, abs=1e-9)
    assert one.errors == pytest.approx(other.errors, abs=1e-9)


@pytest.mark.parametrize("ties", ["half", "davidson", "rao_kupper", "graded"])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_errors_are_those_of_the_whole_hessian(ties: Ties, ridge: float) -> None:
    votes = _random(3)
    fit = fit_scores(votes, ties=ties, ridge=ridge)
    num_shape = len(fit.shape)
    problem = _Problem(votes, ties, ridge)
    best = np.concatenate([fit.scores, [c.value for c in fit.coefficients + fit.shape]])
    hessian = np.stack(
        [
            (problem.objective(best + step)[1] - problem.objective(best - step)[1]) / 2e-5
            for step in 1e-5 * np.eye(len(best))
        ]
    )
    # Scores whose sum is 0: an orthonormal basis of those, and of the other parameters.
    centered = np.linalg.svd(np.eye(6) - 1 / 6)[0][:, :5]
    basis = np.zeros((len(best), len(best) - 1))
    basis[:6, :5], basis[6:, 5:] = centered, np.eye(1 + num_shape)
    covariance = basis @ np.linalg.inv(basis.T @ hessian @ basis) @ basis.T
    assert fit.errors == pytest.approx(np.sqrt(np.diag(covariance)[:6]), rel=1e-5)
    assert fit.coefficients[0].error == pytest.approx(np.sqrt(covariance[6, 6]), rel=1e-5)
    expected = covariance[0, 0] + covariance[4, 4] - 2 * covariance[0, 4]
    found = fit.covariance.variance_of_difference(np.array([0]), np.array([4]))
    assert found == pytest.approx([expected], rel=1e-5)


def test_intervals_of_differences_cover_the_truth() -> None:
    # 200 independent data sets, 95 % intervals: fewer than 179 or more than 199 hits have probability below 1e-3.
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        first, second = np.array([0, 0, 1]).repeat(60), np.array([1, 2, 2]).repeat(60)
        truth = np.array([0.8, 0.0, -0.3])
        outcome = np.where(rng.random(180) < 1 / (1 + np.exp(truth[second] - truth[first])), 1, -1)
        fit = fit_scores(PairVotes(3, first, second, outcome, np.ones(180), np.zeros((180, 0))), ridge=0)
        error = np.sqrt(fit.covariance.variance_of_difference(np.array([0]), np.array([2])))[0]
        hits += abs(fit.scores[0] - fit.scores[2] - 1.1) < 1.96 * error
    assert 178 < hits < 200


def test_components_are_found_and_ridge_keeps_them_finite() -> None:
    votes = _table([(0, 1, 5, 0, 0), (2, 3, 1, 1, 0)], 4)
    fit = fit_scores(votes)
    assert fit.num_components == 2
    assert np.isfinite(fit.scores).all()
    # Scores of (0, 1) are d / 2 and -d / 2: 5 sigmoid(-d) = ridge d.
    d = fit.scores[0] - fit.scores[1]
    assert 5 / (1 + np.exp(d)) == pytest.approx(0.5 * d, abs=1e-6)
    assert fit.scores[2:] == pytest.approx([0, 0], abs=1e-7)
    with pytest.raises(DataError, match="set ridge above 0"):
        fit_scores(votes, ridge=0)
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(DataError, match="no votes"):
        fit_scores(PairVotes(0, none, none, none, np.zeros(0), np.zeros((0, 0))))


def test_a_side_habit_is_found() -> None:
    # The votes are those of a logistic latent difference with a tie band, so the model is the right one.
    fit = fit_scores(_random(5, size=4000), ties="rao_kupper", ridge=0)
    low, high = fit.coefficients[0].interval(0.999)
    assert 0.25 < low < 0.4 < high < 0.6
    assert fit.cuts[1] == pytest.approx(0.5, abs=0.06)  # three standard errors


def test_cut_points_become_margins() -> None:
    rng = np.random.default_rng(6)
    size, cuts = 60_000, np.array([0.4, 1.2, 2.0])
    scores = rng.normal(size=40)
    first = rng.integers(0, 20, size)
    second = rng.integers(20, 40, size)
    latent = scores[first] - scores[second] + rng.logistic(size=size)
    outcome = np.where(np.abs(latent) < cuts[0], 0, np.sign(latent)).astype(np.int64)
    strength = np.where(outcome == 0, -1, np.searchsorted(cuts, np.abs(latent))).astype(np.int64)
    votes = votes_of(40, 1, first, second, outcome, strength=strength)
    fit = fit_scores(pair_votes(votes, side=False), ties="graded")
    # Standard errors of the cuts are about 0.01 here.
    assert fit.cuts == pytest.approx([0, *cuts], abs=0.05)  # five standard errors
    # Strengths 1, 2, 3 were used; 0 was not and has the margin of the weakest.
    assert margins_of(votes, fit) == pytest.approx((fit.cuts[1], *fit.cuts[1:]))
    assert np.corrcoef(fit.scores, scores)[0, 1] > 0.99


def test_without_strengths_and_ties_graded_is_bradley_terry() -> None:
    votes = _table([(0, 1, 12, 5, 0), (0, 2, 15, 4, 0), (1, 2, 9, 7, 0)])
    kept = votes.weight > 0
    wins = PairVotes(
        3, votes.first[kept], votes.second[kept], votes.outcome[kept], votes.weight[kept], votes.covariates[kept]
    )
    graded = fit_scores(wins, ties="graded")
    assert graded.scores == pytest.approx(fit_scores(wins).scores, abs=1e-7)
    assert graded.cuts.tolist() == [0.0]


def test_an_uncertain_difference_says_little() -> None:
    few, many = (fit_scores(_table([(0, 1, 3 * n, n, 0)], 2), ridge=0) for n in (1, 1000))
    ends = np.array([0]), np.array([1])
    assert few.scores == pytest.approx(many.scores, abs=1e-6)
    # 3000 of 4000: 0.75; of 4 votes the variance is 1 / (4 * 3/16) = 4/3: sigmoid(log 3 / sqrt(1 + pi / 6)).
    assert many.preference(*ends) == pytest.approx([0.75], abs=1e-3)
    expected = 1 / (1 + np.exp(-np.log(3) / np.sqrt(1 + np.pi / 6)))
    assert few.preference(*ends) == pytest.approx([expected], abs=1e-6)
