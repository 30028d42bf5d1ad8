"""Judgments -> votes -> pairs: which judgments count, what ties become, what the pairs say."""

import random
from collections import Counter

import pytest

from harken.config.preferences import (
    BradleyTerryConfig,
    DawidSkeneConfig,
    MaceConfig,
    MajorityConfig,
    OrderedLogitConfig,
    PlackettLuceConfig,
    PreferencesConfig,
    ReliabilityConfig,
    Resolve,
)
from harken.errors import DataError
from harken.preferences.judges import gold_of_task
from harken.preferences.vote_pairs import VotePairs, pairs_from_votes
from harken.preferences.votes import read_votes
from harken.preferences.votes_report import votes_report
from harken.records import Abstention, Assignment, Comparison, Judgment
from tests.preferences.crowd import comparison, completion, prompt, ranking

METHODS: tuple[Resolve, ...] = (
    MajorityConfig(),
    DawidSkeneConfig(),
    MaceConfig(),
    BradleyTerryConfig(),
    BradleyTerryConfig(ties="davidson"),
    BradleyTerryConfig(ties="rao_kupper", side=True),
    ReliabilityConfig(),
    OrderedLogitConfig(),
    PlackettLuceConfig(),
)


def _pairs(judgments: list[Judgment], **settings: object) -> VotePairs:
    config = PreferencesConfig.model_validate({"heldout_fraction": 0.0, **settings})
    return pairs_from_votes(judgments, [prompt()], [completion(name) for name in "abcd"], config)


def test_votes_are_in_the_order_of_ids_whatever_was_shown_first() -> None:
    votes = read_votes(
        [comparison("1", ("b", "a"), "b"), comparison("2", ("a", "b"), "b"), comparison("3", ("b", "a"), None)]
    )
    assert (votes.first.tolist(), votes.second.tolist()) == ([0] * 3, [1] * 3)
    assert votes.outcome.tolist() == [-1, -1, 0]
    assert votes.side.tolist() == [-1, 1, -1]


def test_superseded_judgments_never_count() -> None:
    judgments = [
        comparison("1", ("a", "b"), "a"),
        comparison("2", ("a", "b"), "b", supersedes="1"),
        comparison("3", ("a", "b"), None, outcome="skip", supersedes="2"),
        comparison("4", ("a", "b"), "b", judge="bob"),
    ]
    votes = read_votes(judgments)
    assert votes.judgment_ids == ("4",)
    assert votes.counts == {"skip": 1, "superseded": 2, "win": 1}


def test_every_outcome_is_counted_and_both_bad_is_a_tie_or_nothing() -> None:
    outcomes = ("tie", "both_bad", "unsure", "skip")
    judgments = [comparison(name, ("a", "b"), None, outcome=name) for name in outcomes]
    assert read_votes(judgments).counts == dict.fromkeys(sorted(outcomes), 1)
    assert len(read_votes(judgments)) == 2
    assert len(read_votes(judgments, both_bad="drop")) == 1


def test_abstentions_are_counted_and_are_no_votes() -> None:
    abstained = ranking("2", {"a": 1, "b": 2}).model_copy(update={"answer": Abstention(outcome="skip")})
    found = _pairs([comparison("1", ("a", "b"), "a"), abstained])
    assert found.facts["judgments"] == {"abstention": 1, "win": 1}
    assert "1 judgments are abstentions" in found.notes
    assert len(found.pairs) == 1


def test_gold_answers_of_tasks_are_judgments_known_to_be_right() -> None:
    right = Comparison(outcome="win", winner="a")
    task = Assignment(project="p", task_id="t", lease_id="l", gold=right)
    tested = [
        comparison(name, shown, winner, judge=name).model_copy(update={"assignment": task})
        for name, shown, winner in (("1", ("a", "b"), "a"), ("2", ("b", "a"), "b"))
    ]
    gold = [gold_of_task(one) for one in [*tested, comparison("3", ("a", "c"), "c")]]
    assert [one and (one.answer, one.shown) for one in gold] == [(right, ("a", "b")), (right, ("b", "a")), None]
    report = votes_report(tested, [completion(name) for name in "abc"], resamples=10)
    assert report is not None
    assert [row["gold"]["value"] for row in report["judges"]] == [1.0, 0.0]


def test_the_votes_of_a_ranking_share_its_weight() -> None:
    votes = read_votes([ranking("1", {"c": 1, "a": 2, "b": 2})])
    assert votes.weight.tolist() == [1 / 3] * 3
    found = {
        (votes.items[i], votes.items[j]): o for i, j, o in zip(votes.first, votes.second, votes.outcome, strict=True)
    }
    assert found == {("a", "c"): -1, ("b", "c"): -1, ("a", "b"): 0}


def test_majority_by_hand() -> None:
    judgments = [
        comparison("1", ("a", "b"), "a", strength=3),
        comparison("2", ("b", "a"), "a", strength=2, judge="bob"),
        comparison("3", ("a", "b"), "b", strength=1, judge="cem"),
        comparison("4", ("a", "b"), None, judge="dee"),
    ]
    (pair,) = _pairs(judgments).pairs
    assert (pair.chosen.content, pair.rejected.content) == ("a", "b")
    # 2 wins and a tie of 4: (2.5 + 1) / (4 + 2). Strength (3 + 2 - 1 + 0) / 4 = 1.
    assert pair.soft_label == pytest.approx(3.5 / 6)
    assert (pair.strength, pair.weight, pair.group, pair.margin) == (1, 1, "q", None)
    assert pair.judgment_ids == ("1", "2", "3", "4")
    assert _pairs(judgments, soft_labels=False).pairs[0].soft_label == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_plain_truth_and_does_not_see_sides_or_order(method: Resolve) -> None:
    judgments = [
        comparison(f"{one}{other}{judge}", (one, other), "a" if "a" in (one, other) else one, judge=judge)
        for one, other in ("ab", "ca", "bc")
        for judge in ("ann", "bob", "cem")
    ]
    judgments.append(comparison("tie", ("a", "d"), None))
    found = _pairs(judgments, resolve=method, ties="keep")
    better = {(pair.chosen.content, pair.rejected.content): pair.soft_label for pair in found.pairs if pair.strength}
    # Models of scores may say that a, which beat all others, is a little better than d, too.
    assert set(better) - {("a", "d")} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert all(0.5 < label <= 1 for label in better.values())
    assert found.facts["resolve"] == method.kind
    turned = [judgment.model_copy(update={"shown": judgment.shown[::-1]}) for judgment in judgments]
    random.Random(0).shuffle(turned)
    again = {
        (p.chosen.content, p.rejected.content): p.soft_label for p in _pairs(turned, resolve=method, ties="keep").pairs
    }
    side = isinstance(method, BradleyTerryConfig) and method.side
    for key, label in better.items():
        assert again[key] == pytest.approx(label, abs=1e-5) or side


def test_ties_are_dropped_or_kept_and_counted() -> None:
    judgments = [comparison("1", ("a", "b"), None), comparison("2", ("a", "c"), "c")]
    dropped = _pairs(judgments)
    assert dropped.facts["pairs"] == {"made": 1, "ties dropped": 1}
    assert dropped.notes == ("1 compared pairs left out: ties dropped",)
    kept = _pairs(judgments, ties="keep")
    tie = next(pair for pair in kept.pairs if pair.strength == 0)
    assert (tie.soft_label, {tie.chosen.content, tie.rejected.content}) == (0.5, {"a", "b"})
    assert kept.facts["pairs"] == {"made": 1, "ties kept": 1}


def test_margins_reach_the_pairs() -> None:
    judgments = [
        comparison(f"{k}", ("a", "b"), "a" if k % 4 else "b", strength=(1, 2, 3)[k % 3], judge=f"j{k}")
        for k in range(24)
    ]
    found = _pairs(judgments, resolve={"kind": "ordered_logit"})
    (pair,) = found.pairs
    margins = found.facts["margins"]
    assert margins[1] == 0 < margins[2] < margins[3]
    assert pair.margin == margins[pair.strength]
    assert "margins by strength" in found.notes[-1]


def test_the_split_is_by_prompt_and_copies_are_no_pairs() -> None:
    prompts = [prompt(f"q{k}") for k in range(60)]
    completions = [completion(f"{side}{k}", prompt=f"q{k}") for k in range(60) for side in "ab"]
    completions.append(completion("copy", "a0", prompt="q0"))
    judgments = [
        comparison(f"{k}", (f"a{k}", f"b{k}"), f"a{k}").model_copy(update={"prompt_id": f"q{k}"}) for k in range(60)
    ]
    judgments.append(comparison("copy", ("a0", "copy"), "copy"))
    config = PreferencesConfig(heldout_fraction=0.3)
    found = pairs_from_votes(judgments, prompts, completions, config)
    assert found.facts["pairs"] == {"identical texts": 1, "made": 60}
    splits = Counter(pair.split for pair in found.pairs)
    # Binomial of 60 with 0.3: outside 5..31 with probability below 1e-4.
    assert 5 <= splits["heldout"] <= 31
    limited = pairs_from_votes(judgments, prompts, completions, config.model_copy(update={"max_pairs": 7}))
    assert Counter(pair.split for pair in limited.pairs) == {"train": 7, "heldout": splits["heldout"]}
    assert limited.facts["pairs"]["over the limit"] == splits["train"] - 7


def test_one_prompt_is_split_by_text_and_pairs_across_are_counted() -> None:
    completions = [completion(f"c{k:02}") for k in range(40)]
    judgments = [comparison(f"{k}", (f"c{k:02}", f"c{k + 1:02}"), f"c{k:02}") for k in range(39)]
    found = pairs_from_votes(judgments, [prompt()], completions, PreferencesConfig(heldout_fraction=0.4))
    sides = {
        split: {t.content for p in found.pairs if p.split == split for t in (p.chosen, p.rejected)}
        for split in ("train", "heldout")
    }
    assert sides["train"]
    assert sides["heldout"]
    assert not sides["train"] & sides["heldout"]
    assert sum(found.facts["pairs"].values()) == 39


def test_what_does_not_fit_together_is_named() -> None:
    judgments = [comparison("1", ("a", "b"), "a")]
    config = PreferencesConfig()
    with pytest.raises(DataError, match="completion 'b', which is not among"):
        pairs_from_votes(judgments, [prompt()], [completion("a")], config)
    with pytest.raises(DataError, match="prompt 'q', which is not among"):
        pairs_from_votes(judgments, [], [completion("a"), completion("b")], config)
    with pytest.raises(DataError, match="judgment '1' compares completions of the prompts 'q' and 'r'"):
        pairs_from_votes(judgments, [prompt(), prompt("r")], [completion("a"), completion("b", prompt="r")], config)
    nothing = pairs_from_votes([comparison("1", ("a", "b"), None, outcome="skip")], [prompt()], [], config)
    assert (nothing.pairs, nothing.facts["judgments"]) == ([], {"skip": 1})
