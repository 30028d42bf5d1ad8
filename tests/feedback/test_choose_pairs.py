"""Pairs chosen by what reward models are unsure of, each with the chance it had; and reports that weigh by it."""

import numpy as np
import pytest

from harken.errors import DataError
from harken.feedback.choose_pairs import (
    candidate_pairs,
    choose_pairs,
    inclusion_probabilities,
    prompt_clusters,
    uncertainty,
)
from harken.preferences.selection import effective_size, weighted_mean
from harken.records import Completion, Message, Prompt


def _prompt(text: str) -> Prompt:
    return Prompt(id=text, messages=(Message(role="user", content=text),))


def _completion(prompt: str, text: str, model: str) -> Completion:
    return Completion(
        id=f"{prompt}/{text}/{model}",
        prompt_id=prompt,
        message=Message(role="assistant", content=text),
        model=model,
    )


def test_candidates_are_all_pairs_of_different_texts() -> None:
    texts = [("a", "m"), ("b", "m"), ("a", "n"), ("c", "n")]  # the second "a" is the same text again
    completions = [_completion("p", *one) for one in texts] + [_completion("q", "a", "m")]
    found = candidate_pairs([_prompt("p"), _prompt("q")], completions, "any")
    assert [(one.prompt, one.one, one.other) for one in found] == [(0, 0, 1), (0, 0, 3), (0, 1, 3)]
    across = candidate_pairs([_prompt("p"), _prompt("q")], completions, "models")
    assert [(one.one, one.other) for one in across] == [(0, 3), (1, 3)]


def test_disagreement_is_what_an_ensemble_does_not_know_together() -> None:
    # Pair 0: both say 1/2, and agree on it; pair 1: sigmoid(+-2) = 0.8808 and 0.1192, mean 1/2;
    # H(1/2) = 0.693147, H(0.8808) = 0.365335 (computed by hand: -p ln p - q ln q).
    found = uncertainty(np.array([[0.0, 2.0], [0.0, -2.0]]))
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert found[1] == pytest.approx(0.693147 - 0.365335, abs=1e-5)


def test_a_single_model_is_unsure_where_it_predicts_one_half() -> None:
    found = uncertainty(np.array([[0.0, 1.0, -1.0, 5.0]]))
    assert found[0] == pytest.approx(np.log(2))
    assert found[1] == pytest.approx(found[2])
    assert found[0] > found[1] > found[3] > 0
    assert (uncertainty(np.zeros((0, 3))) == 1).all()


def test_chances_sum_to_the_number_chosen_and_are_never_zero() -> None:
    rng = np.random.default_rng(0)
    for num, chosen, share in ((1000, 100, 0.15), (50, 49, 0.5), (300, 10, 0.01), (40, 20, 1.0), (7, 9, 0.2)):
        scores = rng.exponential(size=num) ** 4
        scores[: num // 3] = 0.0
        found = inclusion_probabilities(scores, rng.integers(0, 5, num), chosen, share)
        assert found.sum() == pytest.approx(min(num, chosen))
        assert found.min() > 0
        assert found.max() <= 1
        assert found.min() >= share * min(num, chosen) / num - 1e-12


def test_pairs_with_a_higher_score_have_a_higher_chance_and_clusters_share_alike() -> None:
    scores = np.array([1.0, 2.0, 4.0] + [1.0] * 97)
    cluster = np.array([0] * 3 + [1] * 97)
    found = inclusion_probabilities(scores, cluster, 3, 0.2)
    assert found[0] < found[1] < found[2]
    # What is left when the random share (0.006 a pair) is taken: as much for three pairs as for the 97.
    assert (found[:3] - 0.006).sum() == pytest.approx((found[3:] - 0.006).sum())


def test_each_pair_is_chosen_as_often_as_its_chance_says() -> None:
    rng = np.random.default_rng(1)
    scores, cluster = rng.exponential(size=60), rng.integers(0, 4, 60)
    chance = inclusion_probabilities(scores, cluster, 12, 0.25)
    counts, randoms = np.zeros(60), np.zeros(60)
    draws = 800
    for seed in range(draws):
        chosen = choose_pairs(scores, cluster, num_chosen=12, random_share=0.25, seed=seed)
        assert len(chosen) == 12
        for one in chosen:
            assert one.probability == pytest.approx(chance[one.candidate])
            counts[one.candidate] += 1
            randoms[one.candidate] += one.is_random
    # Five standard errors on each of 60 pairs: a false alarm in some 10,000 sets of scores.
    assert (np.abs(counts / draws - chance) < 5 * np.sqrt(chance * (1 - chance) / draws) + 1e-9).all()
    # The random share is an even sample: every pair is in it with 0.25 * 12 / 60.
    even = 0.25 * 12 / 60
    assert (np.abs(randoms / draws - even) < 5 * np.sqrt(even * (1 - even) / draws)).all()


def test_the_same_seed_chooses_the_same_pairs() -> None:
    scores, cluster = np.linspace(0, 1, 40), np.zeros(40, dtype=np.int64)
    first, again, other = (
        choose_pairs(scores, cluster, num_chosen=8, random_share=0.1, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert choose_pairs(np.zeros(0), np.zeros(0, dtype=np.int64), num_chosen=3, random_share=0.1, seed=0) == []


def test_prompts_about_the_same_are_in_one_cluster() -> None:
    cats = [_prompt(f"tell me about cats and kittens {word}") for word in ("please", "now", "again", "too")]
    taxes = [_prompt(f"income tax return deadline {word}") for word in ("soon", "monday", "passed", "moved")]
    found = prompt_clusters(cats + taxes, 2)
    assert len(set(found[:4].tolist())) == 1
    assert len(set(found[4:].tolist())) == 1
    assert found[0] != found[4]
    assert (prompt_clusters(cats, 0) == 0).all()
    assert (
        prompt_clusters([_prompt("same words"), Prompt(id="2", messages=_prompt("same words").messages)], 5) == 0
    ).all()


def test_the_weighted_mean_is_right_where_the_plain_one_is_not() -> None:
    # 400 pairs; what is asked (does the first win?) hangs on the score by which pairs are chosen.
    rng = np.random.default_rng(2)
    scores = rng.uniform(size=400)
    wins = (rng.uniform(size=400) < 0.2 + 0.6 * scores).astype(float)
    cluster = np.zeros(400, dtype=np.int64)
    weighted: list[float] = []
    plain: list[float] = []
    covered = 0
    for seed in range(150):
        chosen = choose_pairs(scores**3, cluster, num_chosen=120, random_share=0.15, seed=seed)
        index = [one.candidate for one in chosen]
        found = weighted_mean(
            wins[index], np.array([one.probability for one in chosen]), index, resamples=200, seed=seed
        )
        assert found.low is not None
        assert found.high is not None
        weighted.append(found.value)
        plain.append(float(wins[index].mean()))
        covered += found.low <= wins.mean() <= found.high
    error = float(np.std(weighted)) / np.sqrt(150)
    assert abs(np.mean(weighted) - wins.mean()) < 4 * error + 0.005  # the ratio's own bias is of order 1 / n
    assert np.mean(plain) - wins.mean() > 0.05
    assert covered > 0.88 * 150


def test_weighted_mean_by_hand() -> None:
    # (1 / 0.5 + 0 / 0.25) / (1 / 0.5 + 1 / 0.25) = 2 / 6
    found = weighted_mean(np.array([1.0, 0.0]), np.array([0.5, 0.25]), ["p", "q"])
    assert found.value == pytest.approx(1 / 3)
    assert weighted_mean(np.array([1.0]), np.array([0.5]), ["p"]).low is None
    assert effective_size(np.array([0.5, 0.25])) == pytest.approx(36 / 20)
    with pytest.raises(DataError, match="outside"):
        weighted_mean(np.array([1.0]), np.array([0.0]), ["p"])
    with pytest.raises(DataError, match="no units"):
        weighted_mean(np.array([]), np.array([]), [])
