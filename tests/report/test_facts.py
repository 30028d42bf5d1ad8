"""Sentences for good, bad and uncertain results; the numbers are made up here, not by Harken."""

import pytest

from harken.report import facts, stage_facts
from harken.report.run_folder import (
    Agreement,
    Curve,
    Evaluation,
    Interval,
    PreferenceSummary,
    RewardEvaluation,
    RunFolder,
    RunInfo,
)
from tests.report import fixture

UP, DOWN, FLAT = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.05, -0.1, 0.2)


def interval(ends: tuple[float, float | None, float | None]) -> Interval:
    value, low, high = ends
    return Interval(value=value, low=low, high=high)


def evaluation(**difference: tuple[float, float | None, float | None]) -> Evaluation:
    return Evaluation(
        num_prompts=96,
        completions_per_prompt=4,
        policy={name: Interval(value=1.0 + ends[0]) for name, ends in difference.items()},
        against={name: Interval(value=1.0) for name in difference},
        difference={name: interval(ends) for name, ends in difference.items()},
    )


@pytest.mark.parametrize(
    ("reward", "lexicon", "says", "verdict"),
    [
        (UP, UP, "an independent judge agrees", "good"),
        (UP, FLAT, "sees no clear gain", "unclear"),
        (UP, DOWN, "learned to please the reward model", "bad"),
        (FLAT, UP, "reward did not clearly rise", "unclear"),
        (FLAT, FLAT, "no clear gain", "unclear"),
        (FLAT, DOWN, "finds the trained model worse", "bad"),
        (DOWN, UP, "though its reward fell", "unclear"),
        (DOWN, FLAT, "lowered the reward", "bad"),
        (DOWN, DOWN, "made the model worse", "bad"),
    ],
)
def test_the_verdict_follows_both_intervals(reward, lexicon, says, verdict):
    fact = facts.verdict(evaluation(reward_score=reward, lexicon=lexicon))
    assert says in fact.text
    assert fact.verdict == verdict


def test_without_intervals_or_a_judge_no_verdict_is_pretended():
    assert "not been evaluated" in facts.verdict(None).text
    unknown = (0.4, None, None)
    fact = facts.verdict(evaluation(reward_score=unknown, lexicon=unknown))
    assert (fact.text.startswith("Too few prompts"), fact.verdict) == (True, "unclear")
    assert "no independent judge was asked" in facts.verdict(evaluation(reward_score=UP)).text


@pytest.mark.parametrize(
    ("difference", "better", "text", "verdict"),
    [
        (UP, "higher", "better (higher)", "good"),
        (UP, "lower", "worse (higher)", "bad"),
        (DOWN, "lower", "better (lower)", "good"),
        (DOWN, "higher", "worse (lower)", "bad"),
        (FLAT, "higher", "no clear change", "unclear"),
        (UP, None, "higher", "neutral"),
        ((0.1, None, None), "higher", "no interval, so no verdict", "neutral"),
        ((0.1, 0.05, None), "higher", "no interval, so no verdict", "neutral"),
        # An end on the line leaves a doubt.
        ((0.1, 0.0, 0.2), "higher", "no clear change", "unclear"),
    ],
)
def test_a_difference_is_read_by_its_interval_and_direction(difference, better, text, verdict):
    assert facts.reading(interval(difference), better) == facts.Fact(text, verdict)


def test_a_comparison_names_levels_difference_and_interval():
    fact = facts.comparison(Evaluation.model_validate(fixture.evaluation()), "lexicon")
    assert fact == facts.Fact(
        "The independent judge's score rose from 0.12 to 0.58, a difference of +0.46 (95% interval 0.40 to 0.52).",
        "good",
    )


def test_an_unclear_comparison_says_so_and_shows_an_interval_that_holds_zero():
    fact = facts.comparison(evaluation(lexicon=FLAT), "lexicon")
    assert fact is not None
    assert "shows no clear change" in fact.text
    assert "\N{MINUS SIGN}0.10 to 0.20" in fact.text
    assert fact.verdict == "unclear"


@pytest.mark.parametrize(
    ("rate", "says", "verdict"),
    [
        ((0.74, 0.70, 0.78), "prefers the completion after training in 74% of pairs", "good"),
        ((0.52, 0.47, 0.57), "no clear preference", "unclear"),
        ((0.40, 0.35, 0.45), "in only 40%", "bad"),
    ],
)
def test_win_rates_are_read_against_one_half(rate, says, verdict):
    found = evaluation(lexicon=UP).model_copy(update={"win_rate": {"lexicon": interval(rate)}})
    fact = facts.wins(found, "lexicon")
    assert fact is not None
    assert says in fact.text
    assert fact.verdict == verdict


def test_a_win_rate_that_goes_with_length_is_said_to():
    for controlled, says, verdict in ((0.72, "would be 72%", "neutral"), (0.55, "much of the preference", "unclear")):
        rates = {"win_rate": {"lexicon": interval((0.74, 0.70, 0.78))}}
        rates["win_rate_length_controlled"] = {"lexicon": interval((controlled, controlled - 0.05, controlled + 0.05))}
        fact = facts.length_control(evaluation(lexicon=UP).model_copy(update=rates), "lexicon")
        assert fact is not None
        assert says in fact.text
        assert fact.verdict == verdict
    assert facts.length_control(evaluation(lexicon=UP), "lexicon") is None


def test_side_effects_are_named_when_clear_and_only_then():
    worse = facts.side_effects(evaluation(distinct_2=DOWN, repetition=UP, distinct_1=FLAT))
    assert worse is not None
    assert worse.verdict == "bad"
    # Levels 1.0 before and 0.8 and 1.2 after; distinct_1 holds zero and is not named.
    assert worse.text == (
        "What got worse: different word pairs down from 1.00 to 0.80, repetition up from 1.00 to 1.20."
    )
    none = facts.side_effects(evaluation(distinct_2=FLAT, repetition=DOWN))
    assert none is not None
    assert none.verdict == "good"
    assert facts.side_effects(evaluation(lexicon=UP)) is None


def test_side_effects_without_intervals_are_told_but_not_claimed():
    unknown = (None, None)
    small = evaluation(distinct_2=(-0.2, *unknown), perplexity_reference=(0.1, *unknown))
    assert facts.hints(small) == facts.Fact(
        "Measured without an interval: different word pairs 1.00 to 0.80, perplexity 1.00 to 1.10."
    )
    # A loss of 40 % of the variety, or 40 % more repetition, is no matter of intervals.
    for large in (evaluation(distinct_2=(-0.4, *unknown)), evaluation(repetition=(0.4, *unknown))):
        fact = facts.hints(large)
        assert fact is not None
        assert (fact.text.endswith("a large loss."), fact.verdict) == (True, "bad")
    more_variety = facts.hints(evaluation(distinct_2=(0.4, *unknown)))
    assert more_variety is not None
    assert more_variety.verdict == "neutral"
    assert facts.hints(evaluation(distinct_2=DOWN)) is None


def reward(accuracy: tuple[float, float, float], **others: object) -> RewardEvaluation:
    value, low, high = accuracy
    fields = {"num_pairs": 800, "accuracy": {"value": value, "low": low, "high": high}, **others}
    return RewardEvaluation.model_validate(fields)


@pytest.mark.parametrize(
    ("accuracy", "says", "verdict"),
    [
        ((0.739, 0.709, 0.769), "74% of 800 held-out pairs (95% interval 71% to 77%)", "good"),
        ((0.53, 0.48, 0.58), "not clearly better than a coin", "bad"),
        ((0.41, 0.36, 0.46), "worse than a coin", "bad"),
    ],
)
def test_the_reward_model_is_measured_against_a_coin(accuracy, says, verdict):
    fact = stage_facts.reward_accuracy(reward(accuracy))
    assert says in fact.text
    assert fact.verdict == verdict


def test_clear_pairs_are_expected_to_be_easier():
    clear = {"value": 0.815, "low": 0.78, "high": 0.85}
    easier = reward((0.739, 0.7, 0.77), accuracy_difference_1_or_more=clear)
    harder = reward((0.83, 0.8, 0.86), accuracy_difference_1_or_more=clear)
    good, bad = stage_facts.reward_buckets(easier), stage_facts.reward_buckets(harder)
    assert good is not None
    assert "close calls" in good.text
    assert bad is not None
    assert (bad.verdict, "does no better" in bad.text) == ("bad", True)
    assert stage_facts.reward_buckets(reward((0.7, 0.6, 0.8))) is None


@pytest.mark.parametrize(
    ("ece", "temperature", "says"),
    [
        (0.02, 1.3, "taken at its word: it is off by 2.0 percentage points"),
        (0.09, 1.6, "too sure of itself"),
        (0.09, 0.7, "more often right than it says"),
        (0.09, None, "Its confidence is off by 9.0"),
    ],
)
def test_calibration_in_words(ece, temperature, says):
    calibration = {"ece": ece, "temperature": temperature}
    fact = stage_facts.calibration(reward((0.7, 0.6, 0.8), calibration=calibration))
    assert fact is not None
    assert says in fact.text


@pytest.mark.parametrize(
    ("r", "says", "verdict"),
    [(-0.05, "hardly depend", "neutral"), (0.2, "a little", "neutral"), (-0.5, "depend on", "bad")],
)
def test_dependence_on_length_in_words(r, says, verdict):
    fact = stage_facts.length_bias(reward((0.7, 0.6, 0.8), length_correlation=r))
    assert fact is not None
    assert says in fact.text
    assert fact.verdict == verdict


def agreement(**changes: object) -> Agreement:
    return Agreement.model_validate({**fixture.agreement(), **changes})


@pytest.mark.parametrize(
    ("alpha", "says", "verdict"),
    [
        (0.85, "agree well:", "good"),
        (0.70, "tentative", "neutral"),
        (0.56, "only partly", "unclear"),
        (0.10, "hardly", "bad"),
        (-0.05, "not agree more than chance", "bad"),
    ],
)
def test_alpha_in_words(alpha, says, verdict):
    fact = stage_facts.agreement_level(agreement(alpha_ordinal={"value": alpha}))
    assert says in fact.text
    assert fact.verdict == verdict


def test_undefined_agreement_is_called_undefined():
    fact = stage_facts.agreement_level(agreement(alpha_ordinal=None, alpha_interval=None))
    assert "cannot be told" in fact.text


def test_the_mean_of_many_ratings_is_steadier_by_spearman_brown():
    # alpha 0.5, 4 ratings: 4 * 0.5 / (1 + 3 * 0.5) = 0.8.
    ratings = {"min": 4, "mean": 4, "max": 4}
    found = agreement(alpha_interval={"value": 0.5}, ratings_per_item=ratings, split_half_correlation=None)
    fact = stage_facts.agreement_of_means(found)
    assert fact is not None
    assert "mean of about 4 ratings" in fact.text
    assert "about 0.80" in fact.text
    unknown = agreement(alpha_interval=None, split_half_correlation=None)
    assert stage_facts.agreement_of_means(unknown) is None


def test_measured_steadiness_of_means_is_preferred():
    fact = stage_facts.agreement_of_means(agreement(split_half_correlation=0.914))
    assert fact is not None
    assert "two random halves of the raters correlate at 0.91" in fact.text


@pytest.mark.parametrize(
    ("histogram", "says"),
    [
        ({"-1": 10, "0": 20, "2": 70}, "more often above 0 than below it: 70% of the ratings"),
        ({"-1": 70, "0": 20, "2": 10}, "more often below 0 than above it"),
        ({"-1": 50, "2": 51}, "about as often above 0 as below it"),
        ({}, "No rating"),
    ],
)
def test_which_way_ratings_lean(histogram, says):
    assert says in stage_facts.leaning(agreement(histogram=histogram)).text


def test_people_and_pairs_are_counted():
    assert stage_facts.people(agreement()).text == (
        "People gave 44,730 ratings of 2,500 texts, 17.9 a text, on a scale from \N{MINUS SIGN}4 to 4."
    )
    summary = PreferenceSummary.model_validate(fixture.preferences())
    # Strengths 2 and 3: 1,900 + 1,100 of 6,400 = 47 %.
    assert "6,400 preference pairs to train on and 800 held out; in 47%" in (stage_facts.pairs(summary).text)


def curve(**values: list[float]) -> Curve:
    length = len(next(iter(values.values())))
    return [{"step": i + 1.0, **{key: v[i] for key, v in values.items()}} for i in range(length)]


def zigzag(first: float, last: float, noise: float, n: int = 30) -> list[float]:
    return [first + (last - first) * i / (n - 1) + (noise if i % 2 else -noise) for i in range(n)]


@pytest.mark.parametrize(
    ("last", "noise", "says", "verdict"),
    [
        (1.0, 0.05, "score rose from", "good"),
        (-1.0, 0.05, "score fell from", "bad"),
        (0.05, 0.5, "did not clearly move", "unclear"),
    ],
)
def test_ppo_is_told_by_the_ends_of_the_score(last, noise, says, verdict):
    fact = stage_facts.ppo(curve(score_mean=zigzag(0.0, last, noise)))
    assert says in fact.text
    assert fact.verdict == verdict


def test_ppo_names_steps_levels_and_drift():
    # First 3 scores 0, last 3 scores 1; the last 3 of the drift mean 5.
    scores = [0.0] * 10 + [1.0] * 10
    drift = [0.0] * 17 + [4.0, 5.0, 6.0]
    assert stage_facts.ppo(curve(score_mean=scores, kl_sequence=drift)).text == (
        "The mean score rose from 0.00 to 1.00 over 20 steps (means of the first and last 3), "
        "and the policy drifted 5.0 nats from its reference."
    )


def test_too_few_steps_make_no_trend():
    fact = stage_facts.ppo(curve(score_mean=[0.0, 1.0, 2.0, 3.0, 4.0]))
    assert "too few to see a trend" in fact.text


@pytest.mark.parametrize(
    ("metric", "first", "last", "says"),
    [
        ("entropy", 3.0, 1.0, "collapsing"),
        ("length_mean", 20.0, 30.0, "reward may go with length"),
        ("length_mean", 30.0, 20.0, "reward may go with length"),
        ("clip_fraction", 0.1, 0.5, "steps are too large"),
        ("explained_variance", 0.2, -0.4, "worse than a constant"),
    ],
)
def test_trouble_in_the_curves_is_named(metric, first, last, says):
    warnings = stage_facts.ppo_warnings(curve(**{metric: zigzag(first, last, 0.0)}))
    assert [says in fact.text for fact in warnings] == [True]


def test_a_run_that_its_guard_stopped_says_so():
    (fact,) = stage_facts.stopped({"stopped": "60% of the completions hold no text", "best_step": 1200})
    wanted = "stopped because 60% of the completions hold no text. What was given out is the policy of iteration 1,200."
    assert (wanted in fact.text, fact.verdict) == (True, "bad")
    assert stage_facts.stopped({"iterations": 3}) == []


def test_healthy_curves_give_no_warning():
    assert stage_facts.ppo_warnings(fixture.ppo_curve()) == []


def test_fine_tuning_prefers_the_held_out_loss():
    falling = curve(loss=[4.0, 3.0], heldout_loss=[4.1, 3.6])
    assert "held-out loss fell from 4.10 to 3.60" in stage_facts.fine_tuning(falling).text
    rising = stage_facts.fine_tuning(curve(loss=[3.0, 4.0]))
    assert ("training loss rose" in rising.text, rising.verdict) == (True, "bad")


def run_with(info: RunInfo | None) -> RunFolder:
    return RunFolder(info, None, None, None, [], [], None, [], [], None, [], {}, {})


def test_cost_names_total_machine_and_longest_stage():
    info = RunInfo(seconds={"sft": 60.0, "ppo": 180.0}, machine={"cores": 2})
    fact = facts.cost(run_with(info))
    assert fact == facts.Fact("The run took 4 min 0 s on 2 CPU cores; 75% of it went into PPO.")
    assert facts.cost(run_with(RunInfo())) is None
    assert facts.cost(run_with(None)) is None
