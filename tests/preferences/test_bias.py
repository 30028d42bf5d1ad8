"""Kappas, sides, lengths, judges, groups and probes: published numbers, other libraries, simulations."""

import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats import inter_rater
from statsmodels.stats.multitest import multipletests

from harken.errors import DataError
from harken.estimates import share
from harken.preferences.agreement import cohen_kappa, fleiss_kappa
from harken.preferences.bias import benjamini_hochberg, length_bias, position_bias, sides_are_fair
from harken.preferences.covariance import UndeterminedError, _covariance  # pyright: ignore[reportPrivateUsage]
from harken.preferences.judges import agreement_by_group, gold_votes, judge_table, meetings, shrunken
from harken.preferences.numeric import binomial_p
from harken.preferences.probes import Probe, probe_report
from harken.preferences.votes import Votes, read_votes
from harken.preferences.votes_report import votes_report
from tests.preferences.crowd import comparison, completion, llmfao, ranking, simulated, votes_of

FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def test_kappas_of_the_reference_tables() -> None:
    # shared reference feedback.md, 4.12
    assert cohen_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    table = [[10, 3, 1], [2, 12, 4], [0, 3, 15]]
    assert cohen_kappa(table) == pytest.approx(0.605583, abs=5e-7)
    assert cohen_kappa(table, quadratic=True) == pytest.approx(0.744898, abs=5e-7)
    assert fleiss_kappa(FLEISS) == pytest.approx(0.209931, abs=5e-7)


def test_kappas_equal_those_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.integers(0, 9, (4, 4)).astype(float)
        assert cohen_kappa(table) == pytest.approx(inter_rater.cohens_kappa(table, return_results=False))
        quadratic = inter_rater.cohens_kappa(table, wt="quadratic", return_results=False)
        assert cohen_kappa(table, quadratic=True) == pytest.approx(quadratic)
        counts = rng.multinomial(5, [0.2, 0.3, 0.5], size=12)
        assert fleiss_kappa(counts.astype(float)) == pytest.approx(inter_rater.fleiss_kappa(counts))


def test_undefined_kappas_are_none_and_wrong_tables_are_refused() -> None:
    assert cohen_kappa([[0, 0], [0, 7]]) is None
    assert cohen_kappa([[0, 0], [0, 0]]) is None
    assert fleiss_kappa([[3, 0], [3, 0]]) is None
    assert fleiss_kappa([]) is None
    with pytest.raises(DataError, match=r"shape \(2, 3\)"):
        cohen_kappa([[1, 2, 3], [1, 2, 3]])
    with pytest.raises(DataError, match="2 to 3 raters"):
        fleiss_kappa([[2, 0], [2, 1]])


def test_the_exact_test_of_the_reference() -> None:
    assert binomial_p(1080, 2000) == pytest.approx(0.000375, abs=5e-7)
    assert share(1080, 2000)["low"] == pytest.approx(0.5181, abs=1e-4)
    assert share(0, 0)["value"] is None


def test_adjusted_p_values_equal_those_of_statsmodels() -> None:
    p = np.random.default_rng(1).random(30) ** 2
    assert benjamini_hochberg(p.tolist()) == pytest.approx(multipletests(p, method="fdr_bh")[1])
    assert benjamini_hochberg([]) == []


def _always_left(bias: float, seed: int = 0) -> Votes:
    reliability, biases = np.ones(20), np.zeros(20)
    reliability[0], biases[0] = 0, bias
    return simulated(300, 6, reliability, biases, seed=seed).votes


def test_a_judge_who_clicks_left_is_found_among_twenty() -> None:
    rows = judge_table(votes := _always_left(4.0), meetings(votes))
    found = {row["judge"] for row in rows if row["shown_first_q"] < 0.01}
    assert found == {"j0000"}
    assert min(rows, key=lambda row: row["agreement"]["value"])["judge"] == "j0000"


def test_position_bias_of_fair_and_of_biased_judges() -> None:
    fair = position_bias(simulated(400, 5, np.ones(8), np.zeros(8), seed=1).votes)
    assert fair["p"] > 0.001
    assert fair["logits"]["low"] < 0 < fair["logits"]["high"]
    biased = position_bias(simulated(400, 5, np.ones(8), np.full(8, 0.5), seed=1).votes)
    assert biased["p"] < 1e-6
    # Scores are drawn towards 0 by their prior, and the bias with them.
    assert 0.3 < biased["logits"]["low"] < biased["logits"]["high"] < 0.7


def test_unfair_sides_are_found() -> None:
    rng = np.random.default_rng(0)
    first, second = np.zeros(400, dtype=np.int64), np.ones(400, dtype=np.int64)
    outcome = rng.choice([-1, 1], 400)
    for chance, is_fair in ((0.5, True), (0.7, False)):
        side = np.where(rng.random(400) < chance, 1, -1)
        found = sides_are_fair(votes_of(2, 1, first, second, outcome, side=side), ["m", "n"])
        assert found["degrees"] == 1
        assert (found["p"] > 0.001) is is_fair
        # (n_1 - n_2)^2 / n by hand.
        assert found["chi_square"] == pytest.approx(side.sum() ** 2 / 400)


def test_a_taste_for_length_is_found_beside_the_models_worth() -> None:
    rng = np.random.default_rng(2)
    size, num_items = 6000, 200
    lengths = rng.integers(20, 400, num_items)
    worth = np.array([0.0, 0.7, -0.4])
    model = np.arange(num_items) % 3
    first = rng.integers(0, num_items - 1, size)
    second = first + 1 + rng.integers(0, num_items, size) % (num_items - 1 - first)
    relative = (lengths[first] - lengths[second]) / (lengths[first] + lengths[second])
    logits = worth[model[first]] - worth[model[second]] + 1.5 * relative
    outcome = np.where(rng.random(size) < 1 / (1 + np.exp(-logits)), 1, -1)
    votes = votes_of(num_items, 1, first, second, outcome)
    found = length_bias(votes, ["x" * n for n in lengths], [f"m{k}" for k in model])
    coefficient = found["coefficients"]["length"]
    assert coefficient["low"] < 1.5 < coefficient["high"]
    assert set(found["coefficients"]) == {"length"}, "no text has headers, lists or bold parts"
    assert found["longer_wins"]["low"] > 0.5
    assert [row["longer_wins"]["value"] for row in found["strata"]] == sorted(
        row["longer_wins"]["value"] for row in found["strata"]
    )


def test_shares_are_drawn_towards_the_mean_the_more_the_fewer_the_votes() -> None:
    rng = np.random.default_rng(3)
    truth = rng.beta(8, 4, 200)
    n = rng.integers(2, 60, 200)
    right = rng.binomial(n, truth)
    value, low, high = shrunken(right.astype(float), n.astype(float))
    assert ((value - truth) ** 2).mean() < ((right / n - truth) ** 2).mean()
    # 95 % intervals of 200: below 178 with probability 1e-3.
    assert ((low < truth) & (truth < high)).sum() > 177
    assert shrunken(np.array([0.0, 9.0]), np.array([0.0, 9.0]))[0][0] == pytest.approx(0.999, abs=1e-3)


def test_meetings_by_hand() -> None:
    judgments = [
        comparison("1", ("a", "b"), "a", judge="ann"),
        comparison("2", ("b", "a"), "a", judge="bob"),
        comparison("3", ("a", "b"), "b", judge="cem"),
        comparison("4", ("c", "d"), None, judge="ann"),
        comparison("5", ("c", "d"), "c", judge="bob"),
    ]
    met = meetings(read_votes(judgments))
    # On a-b each meeting weighs 1/2, on c-d 1; ann and bob agree on the one and not on the other.
    assert met.one.tolist() == [0, 0, 1]
    assert met.other.tolist() == [1, 2, 2]
    assert met.weight.tolist() == [1.5, 0.5, 0.5]
    assert met.differing.tolist() == [1.0, 0.5, 0.5]


def _two_camps(opposed: bool) -> tuple[Votes, dict[str, str]]:
    reliability = np.where(np.arange(16) < 8, 2.0, -2.0 if opposed else 2.0)
    votes = simulated(200, 6, reliability, np.zeros(16), seed=4).votes
    return votes, {name: "left" if k < 8 else "right" for k, name in enumerate(votes.judges)}


@pytest.mark.parametrize("opposed", [True, False])
def test_groups_that_differ_are_told_from_groups_that_do_not(opposed: bool) -> None:
    votes, groups = _two_camps(opposed)
    found = agreement_by_group(meetings(votes), groups, votes.judges, permutations=300)
    assert (found["p"] < 0.01) is opposed
    assert (found["within"] > found["between"] + 0.1) is opposed
    assert found["groups"]["left"]["judges"] == 8


def test_small_groups_are_not_shown() -> None:
    votes, groups = _two_camps(True)
    groups["j0000"] = "alone"
    found = agreement_by_group(meetings(votes), groups, votes.judges, permutations=10)
    assert set(found["groups"]) == {"left", "right"}
    assert found["judges_left_out"] == 1
    assert "alone" not in json.dumps(found)
    nobody = agreement_by_group(meetings(votes), {}, votes.judges)
    assert (nobody["p"], nobody["within"], nobody["groups"]) == (None, None, {})


def test_gold_answers_measure_each_judge() -> None:
    votes = read_votes(
        [
            comparison("1", ("a", "b"), "a", judge="ann"),
            comparison("2", ("a", "b"), "b", judge="bob"),
            comparison("3", ("a", "c"), "c", judge="ann"),
        ]
    )
    gold = gold_votes([comparison("g", ("b", "a"), "a", judge="gold")])
    rows = {row["judge"]: row for row in judge_table(votes, meetings(votes), gold=gold)}
    assert (rows["ann"]["gold"]["value"], rows["ann"]["gold"]["n"]) == (1, 1)
    assert (rows["bob"]["gold"]["value"], rows["bob"]["gold"]["n"]) == (0, 1)
    with pytest.raises(DataError, match="contradict each other on 'a' and 'b'"):
        gold_votes([comparison("g", ("a", "b"), "a"), comparison("h", ("a", "b"), "b")])
    with pytest.raises(DataError, match="no comparisons"):
        gold_votes([])


def test_sycophancy_is_measured_against_the_baseline() -> None:
    judgments, probes = [], []
    for k in range(20):
        # 12 of 20 fall for it with the opinion stated, 2 without; the 2 are among the 12.
        judgments.append(comparison(f"p{k}", (f"t{k}", f"s{k}"), f"t{k}" if k < 12 else f"s{k}"))
        judgments.append(comparison(f"b{k}", (f"T{k}", f"S{k}"), f"T{k}" if k < 2 else f"S{k}"))
        probes.append(Probe(id=str(k), kind="sycophancy", tempting=f"t{k}", sound=f"s{k}"))
        probes.append(Probe(id=str(k), kind="sycophancy", tempting=f"T{k}", sound=f"S{k}", baseline=True))
    found = probe_report(read_votes(judgments), probes)["sycophancy"]
    assert (found["tempted"]["value"], found["baseline"]["value"]) == (0.6, 0.1)
    assert (found["only_with_temptation"], found["only_without"]) == (10, 0)
    assert found["p"] == pytest.approx(2 / 2**10)  # McNemar: 10 of 10 heads, two-sided
    padded = [Probe(id=str(k), kind="padding", tempting=f"t{k}", sound=f"s{k}") for k in range(21)]
    report = probe_report(read_votes(judgments), padded)["padding"]
    assert report["not_judged"] == 1
    assert report["p"] == pytest.approx(binomial_p(12, 20))
    with pytest.raises(DataError, match="two probes of kind"):
        probe_report(read_votes(judgments), [padded[0], padded[0]])


def test_report_on_the_real_crowd(realdata: Path) -> None:
    _, completions, judgments = llmfao(realdata)
    found = votes_report(judgments, completions, resamples=100)
    assert found is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    # shared data README
    assert found["outcomes"] == {"shown first": 2911, "tie": 3471, "shown second": 2549}
    assert (found["num_pairs"], found["num_judges"]) == (2139, 124)
    # 0.2906 by sides; by the order of ids first and second are other votes, so chance is a little different.
    assert found["alpha_nominal"]["value"] == pytest.approx(0.2906, abs=1e-3)
    assert found["position"]["shown_first_wins"]["value"] == pytest.approx(2911 / 5460)


def test_report_on_rankings_and_on_nothing() -> None:
    ranks = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 2, "b": 3}]
    judgments = [ranking(str(k), given, judge=f"j{k}") for k, given in enumerate(ranks)]
    found = votes_report(judgments, [completion(name) for name in "abc"], resamples=10)
    assert found is not None
    # tau 1 once, and 1/3 twice.
    assert found["kendall_tau"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert votes_report([], []) is None
    with pytest.raises(DataError, match="completion 'b', which is not among"):
        votes_report(judgments, [completion("a")])


def test_all_equal_votes_have_no_alpha() -> None:
    judgments = [comparison(str(k), ("a", "b"), "a", judge=f"j{k}") for k in range(3)]
    found = votes_report(judgments, [completion(name) for name in "ab"], resamples=10)
    assert found is not None
    assert found["alpha_nominal"] is None
    assert found["raw_agreement"] == 1


def test_what_the_scores_explain_but_for_rounding_is_not_determined() -> None:
    # The Hessian of two parameters of which nothing is left: its inverse would have a variance of -1e9 or 1e9.
    for rest in (-1e-9, 1e-9):
        with pytest.raises(UndeterminedError, match="do not determine 2 parameters"):
            _covariance(np.array([[0.5, 0.0], [0.0, rest]]), 1.0)
    assert np.allclose(_covariance(np.array([[0.5, 0.0], [0.0, 1e-4]]), 1.0), [[2.0, 0.0], [0.0, 1e4]])


@pytest.mark.parametrize("seed", range(60))
def test_one_or_a_few_votes_are_measured_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 7))
    pairs = np.sort(np.array([rng.choice(5, 2, replace=False) for _ in range(size)]), axis=1)
    votes = votes_of(
        5,
        1,
        pairs[:, 0],
        pairs[:, 1],
        rng.integers(-1, 2, size),
        side=rng.choice([-1, 1], size),
        judge=np.zeros(size, dtype=np.int64),
    )
    texts = ["a", "**b** " * 3, "- c\n- d", "# e\n\nlong " * 9, "f" * 50]
    models = ["one", "two", "three", "one", "two"] if seed % 2 else [""] * 5
    found = length_bias(votes, texts, models)
    assert found["longer_wins"]["n"] <= size
    for one in found["coefficients"].values():
        assert one["low"] <= one["value"] <= one["high"]
    assert json.loads(json.dumps(position_bias(votes), allow_nan=False))["shown_first_wins"]["n"] <= size
