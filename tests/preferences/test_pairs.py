"""Splits and pairs: no text on both sides, limits kept, labels as computed by hand."""

import random
import statistics
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from harken.artifacts import iterate_records
from harken.config.preferences import PreferencesConfig
from harken.errors import DataError
from harken.preferences.pairs import (
    pairs_from_ratings,
    preference_share,
    preferences_from_export,
    soft_label,
)
from harken.preferences.split import normalized_text, split_of
from harken.records import Completion, Message, PreferencePair, Prompt, RatedCompletion

PROMPTS = [Prompt(id=name, messages=(Message(role="user", content=f"{name}:\n"),)) for name in ("q1", "q2")]


def _item(index: int, text: str, ratings: tuple[float, ...], prompt: int = 0) -> RatedCompletion:
    return RatedCompletion(
        prompt=PROMPTS[prompt],
        completion=Completion(
            id=f"c{index:04}",
            prompt_id=PROMPTS[prompt].id,
            message=Message(role="assistant", content=text),
        ),
        mean=statistics.fmean(ratings),
        std=statistics.pstdev(ratings),
        ratings=ratings,
        judgment_ids=tuple(f"c{index:04}-r{k}" for k in range(len(ratings))),
    )


def _many(count: int, seed: int = 0) -> list[RatedCompletion]:
    rng = random.Random(seed)
    return [_item(i, f"text {i}", tuple(float(rng.randint(-4, 4)) for _ in range(5)), i % 2) for i in range(count)]


# Few different texts, so that copies are frequent.
rated_items = st.lists(
    st.tuples(
        st.sampled_from(["Good.", "good.", " GOOD. ", "Bad.", "\uff22ad.", "Fine", "Dull", "x", "y", "z"]),
        st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=4).map(tuple),
        st.integers(0, 1),
    ),
    max_size=30,
).map(lambda rows: [_item(i, *row) for i, row in enumerate(rows)])

configs = st.builds(
    PreferencesConfig,
    min_difference=st.sampled_from([0.0, 0.5, 2.0]),
    pairs_per_item=st.integers(1, 3),
    max_pairs=st.none() | st.integers(1, 5),
    max_heldout_pairs=st.none() | st.integers(1, 5),
    heldout_fraction=st.sampled_from([0.1, 0.5]),
    seed=st.integers(0, 3),
)


def _texts(pairs: list[PreferencePair], split: str) -> set[str]:
    return {
        normalized_text(message.content)
        for pair in pairs
        if pair.split == split
        for message in (pair.chosen, pair.rejected)
    }


@given(rated=rated_items, config=configs)
def test_pairs_keep_every_promise(rated: list[RatedCompletion], config: PreferencesConfig) -> None:
    pairs = pairs_from_ratings(rated, config)
    item_of = {item.judgment_ids: item for item in rated}
    uses: Counter[str] = Counter()
    couples: Counter[frozenset[str]] = Counter()
    for pair in pairs:
        first = next(ids for ids in item_of if pair.judgment_ids[: len(ids)] == ids)
        chosen, rejected = item_of[first], item_of[pair.judgment_ids[len(first) :]]
        assert (pair.chosen, pair.rejected) == (
            chosen.completion.message,
            rejected.completion.message,
        )
        assert chosen.prompt.id == rejected.prompt.id == pair.prompt.id == pair.group
        assert pair.difference is not None
        assert pair.difference == chosen.mean - rejected.mean
        assert pair.difference >= config.min_difference
        assert normalized_text(pair.chosen.content) != normalized_text(pair.rejected.content)
        assert 0 < pair.soft_label < 1
        uses.update([chosen.completion.id, rejected.completion.id])
        couples[frozenset((chosen.completion.id, rejected.completion.id))] += 1
    assert not _texts(pairs, "train") & _texts(pairs, "heldout")
    assert max(uses.values(), default=0) <= config.pairs_per_item
    assert max(couples.values(), default=0) <= 1
    assert len({pair.id for pair in pairs}) == len(pairs)
    splits = Counter(pair.split for pair in pairs)
    assert splits["train"] <= (config.max_pairs or len(pairs))
    assert splits["heldout"] <= (config.max_heldout_pairs or len(pairs))


@given(rated=rated_items, config=configs, size=st.integers(2, 5))
def test_groups_compare_all_with_all(rated: list[RatedCompletion], config: PreferencesConfig, size: int) -> None:
    grouped = config.model_copy(update={"group_size": size, "max_pairs": None})
    pairs = pairs_from_ratings(rated, grouped)
    assert [pair for pair in pairs if pair.split == "heldout"] == [
        pair for pair in pairs_from_ratings(rated, config) if pair.split == "heldout"
    ], "held-out pairs stay independent"
    members: dict[str, set[str]] = {}
    found: Counter[str] = Counter()
    for pair in pairs:
        if pair.split == "train":
            assert pair.difference is not None
            assert pair.difference >= config.min_difference
            assert normalized_text(pair.chosen.content) != normalized_text(pair.rejected.content)
            sides = {judgment.rpartition("-")[0] for judgment in pair.judgment_ids}
            assert len(sides) == 2
            if pair.group != pair.prompt.id:
                members.setdefault(pair.group, set()).update(sides)
                found[pair.group] += 1
    # No completion is in two groups, and a group of k texts has at most k (k - 1) / 2 pairs.
    assert sum(len(group) for group in members.values()) == len(set().union(*members.values()))
    assert all(found[group] <= len(sides) * (len(sides) - 1) / 2 for group, sides in members.items())
    assert all(len(sides) <= size for sides in members.values())


def test_a_group_of_far_apart_texts_gives_every_pair_of_them() -> None:
    rated = [_item(i, f"text {i}", (float(i), float(i))) for i in range(4)]
    pairs = pairs_from_ratings(rated, PreferencesConfig(group_size=4, heldout_fraction=0.0))
    assert sorted((pair.chosen.content, pair.rejected.content) for pair in pairs) == [
        (f"text {high}", f"text {low}") for high in range(1, 4) for low in range(high)
    ]
    assert len({pair.group for pair in pairs}) == 1


@given(rated=rated_items, config=configs, order=st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_the_order_of_the_data(
    rated: list[RatedCompletion], config: PreferencesConfig, order: random.Random
) -> None:
    expected = pairs_from_ratings(rated, config)
    order.shuffle(rated)
    assert pairs_from_ratings(rated, config) == expected


def test_another_seed_gives_other_pairs() -> None:
    rated = _many(100)
    first = pairs_from_ratings(rated, PreferencesConfig(heldout_fraction=0.0, seed=0))
    other = pairs_from_ratings(rated, PreferencesConfig(heldout_fraction=0.0, seed=1))
    # 100 texts have about 25! * 25! matchings of two prompts: equal ones do not happen.
    assert {pair.id for pair in first} != {pair.id for pair in other}


def test_a_limit_keeps_the_pairs_that_come_first_without_it() -> None:
    rated = _many(200)
    everything = pairs_from_ratings(rated, PreferencesConfig())
    train = [pair for pair in everything if pair.split == "train"]
    heldout = [pair for pair in everything if pair.split == "heldout"]
    limited = pairs_from_ratings(rated, PreferencesConfig(max_pairs=7, max_heldout_pairs=2))
    assert limited == train[:7] + heldout[:2]
    assert {pair.prompt.id for pair in limited} == {"q1", "q2"}


@pytest.mark.parametrize(
    ("difference", "strength"),
    [(0.5, 0), (0.75, 0), (1.0, 1), (1.75, 1), (2.0, 2), (3.0, 3), (8.0, 3)],
)
def test_strength_follows_the_cuts(difference: float, strength: int) -> None:
    rated = [_item(0, "worse", (-4.0,)), _item(1, "better", (difference - 4.0,))]
    (pair,) = pairs_from_ratings(rated, PreferencesConfig(heldout_fraction=0.0))
    assert (pair.strength, pair.difference) == (strength, difference)
    assert (pair.chosen.content, pair.rejected.content) == ("better", "worse")


def test_pairs_closer_than_the_minimum_are_not_made() -> None:
    rated = [_item(0, "one", (0.0,)), _item(1, "two", (0.25,))]
    assert pairs_from_ratings(rated, PreferencesConfig(heldout_fraction=0.0)) == []


def test_preference_share_counts_rater_pairs() -> None:
    # (2, 0) against (1, 0, 0): 2 beats all three; 0 loses once and ties twice: (3 + 2/2) / 6.
    assert preference_share((2, 0), (1, 0, 0)) == pytest.approx(4 / 6)
    assert preference_share((1, 0, 0), (2, 0)) == pytest.approx(2 / 6)
    assert preference_share((3, 3), (3,)) == 0.5


def test_soft_label_is_smoothed_by_the_smaller_side() -> None:
    # Share 2/3 of n = 2 raters is 4/3 wins: (4/3 + 1) / (2 + 2) = 7/12.
    assert soft_label((2, 0), (1, 0, 0)) == pytest.approx(7 / 12)
    # All of 1 rater: (1 + 1) / (1 + 2); all of 18: 19/20. Never 1.
    assert soft_label((4,), (0, 0, 0)) == pytest.approx(2 / 3)
    assert soft_label((4,) * 18, (0,) * 20) == pytest.approx(19 / 20)
    rated = [_item(0, "worse", (1, 0, 0)), _item(1, "better", (2, 0))]
    config = PreferencesConfig(heldout_fraction=0.0)
    assert pairs_from_ratings(rated, config)[0].soft_label == pytest.approx(7 / 12)
    hard = config.model_copy(update={"soft_labels": False})
    assert pairs_from_ratings(rated, hard)[0].soft_label == 1


@given(text=st.text(), seed=st.integers(0, 5))
def test_copies_of_a_text_fall_on_one_side(text: str, seed: int) -> None:
    split = split_of(text, heldout_fraction=0.5, seed=seed)
    for copy in (f"  {text}\n", text.replace(" ", " \t ")):
        assert split_of(copy, heldout_fraction=0.5, seed=seed) == split
    half, third = (split_of(text, heldout_fraction=f, seed=seed) for f in (0.5, 0.3))
    assert half == "heldout" or third == "train"


def test_letter_case_and_width_do_not_move_a_text() -> None:
    # A fullwidth F and a no-break space.
    assert normalized_text("GOOD  \uff26ilm\u00a0!") == normalized_text("good film !") == "good film !"


def test_the_held_out_share_is_the_fraction() -> None:
    sides = [split_of(f"text {i}", heldout_fraction=0.1, seed=0) for i in range(10_000)]
    # Binomial with standard deviation 30: five of them, exceeded with probability 6e-7.
    assert 850 < sides.count("heldout") < 1150
    assert {split_of(str(i), heldout_fraction=0.0, seed=0) for i in range(100)} == {"train"}


def test_the_real_movie_ratings_give_thousands_of_pairs(movie_export: Path) -> None:
    pairs, rated = preferences_from_export(movie_export, PreferencesConfig())
    assert len(rated) == 10605
    assert len(pairs) > 5000
    texts = {split: {t.completion.message.content for t in rated if t.split == split} for split in ("train", "heldout")}
    assert not texts["train"] & texts["heldout"]
    # 10,603 different texts, 10 % held out: standard deviation 31.
    assert 850 < len(texts["heldout"]) < 1270
    for pair in pairs:
        assert {pair.chosen.content, pair.rejected.content} <= texts[pair.split]
        assert pair.difference is not None
        assert pair.difference >= 0.5
    labels = [pair.soft_label for pair in pairs]
    # At most 29 raters a side, so at most (29 + 1) / (29 + 2).
    assert max(labels) <= 30 / 31
    assert sum(label > 0.5 for label in labels) / len(labels) > 0.99
    # The label of stronger pairs is nearer to 1.
    means = [statistics.fmean(p.soft_label for p in pairs if p.strength == s) for s in range(4)]
    assert means == sorted(means)


def test_preferences_of_a_changed_or_missing_export_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        preferences_from_export(tmp_path / "none", PreferencesConfig())
    with pytest.raises(DataError, match=r"prompts\.jsonl: cannot be read"):
        preferences_from_export(tmp_path, PreferencesConfig())


def test_exported_judgments_lead_to_the_pairs(movie_export: Path) -> None:
    pairs, _ = preferences_from_export(movie_export, PreferencesConfig(max_pairs=20))
    known = {p.id for p in iterate_records(movie_export / "completions.jsonl", Completion)}
    for pair in pairs:
        assert {name.rsplit("-r", 1)[0] for name in pair.judgment_ids} <= known
