"""From judges of known quality to a reward model: soft labels by reliability against those of the majority."""

import json
from pathlib import Path

import numpy as np
import pytest

from harken.config import FullConfig, OptimizerConfig, PreferencesConfig
from harken.config.preferences import MajorityConfig, ReliabilityConfig, Resolve
from harken.preferences.vote_pairs import pairs_from_votes
from harken.records import Comparison, Judge, Judgment, Message, PreferencePair
from harken.reward.train import train_reward
from tests.policy import material

LETTERS = 6
PROMPT = material.prompt("say")


def _texts(rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """Return different texts, and their worth: how often they have one letter."""
    found: dict[str, float] = {}
    while len(found) < count:
        letters = int(rng.integers(0, LETTERS))
        text = "".join(rng.permutation([material.LETTER] * letters + list(rng.choice(list("abcdfghij"), 8 - letters))))
        found[text] = (letters - 2.5) * 0.6
    return list(found), np.array(list(found.values()))


def _voted(
    rng: np.random.Generator, num_pairs: int, per_pair: int, resolve: Resolve, soft: bool
) -> list[PreferencePair]:
    """Pairs made of the votes of 24 judges: 10 careful, 6 careless, 4 reversed, 4 who take the one shown first."""
    factor = np.repeat([2.0, 0.0, -2.0, 0.0], [10, 6, 4, 4])
    habit = np.repeat([0.0, 0.0, 0.0, 4.0], [10, 6, 4, 4])
    texts, worth = _texts(rng, 2 * num_pairs)
    completions = [material.completion_of(PROMPT, text) for text in texts]
    judgments: list[Judgment] = []
    for pair in range(num_pairs):
        for judge in rng.choice(24, per_pair, replace=False):
            first, second = rng.permutation([2 * pair, 2 * pair + 1])
            p = 1 / (1 + np.exp(-factor[judge] * (worth[first] - worth[second]) - habit[judge]))
            winner = completions[first if rng.random() < p else second].id
            judgments.append(
                Judgment(
                    id=f"{pair}-{judge}",
                    judge=Judge(id=f"judge {judge}", kind="person"),
                    prompt_id=PROMPT.id,
                    shown=(completions[first].id, completions[second].id),
                    answer=Comparison(outcome="win", winner=winner),
                )
            )
    config = PreferencesConfig(resolve=resolve, soft_labels=soft, heldout_fraction=0.01)
    found = pairs_from_votes(judgments, [PROMPT], completions, config).pairs
    return [pair for pair in found if pair.split == "train"]


def _heldout(rng: np.random.Generator, count: int) -> list[PreferencePair]:
    """Pairs with the probability that a typical judge, of factor 1, prefers the better one."""
    texts, worth = _texts(rng, 2 * count)
    pairs: list[PreferencePair] = []
    for index in range(count):
        worse, better = sorted((2 * index, 2 * index + 1), key=lambda item: worth[item])
        label = float(1 / (1 + np.exp(worth[worse] - worth[better])))
        sides = [Message(role="assistant", content=texts[item]) for item in (better, worse)]
        pairs.append(
            PreferencePair(
                id=f"held out {index}",
                prompt=PROMPT,
                chosen=sides[0],
                rejected=sides[1],
                soft_label=label,
                split="heldout",
            )
        )
    return pairs


def _loss(model: Path, out: Path, seed: int, resolve: Resolve, *, soft: bool = True, num_pairs: int = 240) -> float:
    """Held-out cross-entropy of the reward model that the stage itself trains on these labels, nats a pair."""
    pairs = _voted(np.random.default_rng(seed), num_pairs, 6, resolve, soft)
    heldout = _heldout(np.random.default_rng(1000 + seed), 200)
    config = material.reward_config(
        batch_size=16, tune=FullConfig(), optimizer=OptimizerConfig(learning_rate=1e-2), margins=(0.0,) * 4, seed=seed
    )
    train_reward(model, [*pairs, *heldout], out, config)
    return json.loads((out / "evaluation.json").read_text())["calibration"]["nll"]


def _losses(model: Path, out: Path, seed: int) -> dict[str, float]:
    return {
        "reliability": _loss(model, out / "reliability", seed, ReliabilityConfig()),
        "majority": _loss(model, out / "majority", seed, MajorityConfig()),
        "votes": _loss(model, out / "votes", seed, MajorityConfig(), soft=False),
    }


def test_soft_labels_by_reliability_make_a_likelier_reward_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = _losses(tiny_model_dir, tmp_path, 0)
    assert found["reliability"] < min(found["majority"], found["votes"]), found


@pytest.mark.slow
def test_soft_labels_by_reliability_make_a_likelier_reward_model_on_eight_seeds(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    found = [_losses(tiny_model_dir, tmp_path / str(seed), seed) for seed in range(8)]
    gains = np.array([one["majority"] - one["reliability"] for one in found])
    # By chance alone 7 of 8 have probability 9 / 256.
    assert (gains > 0).sum() >= 7, found
    assert gains.mean() > 0.01, found
    # Hard labels are nearer; on single seeds they may win.
    assert np.mean([one["votes"] - one["reliability"] for one in found]) > 0.01, found


@pytest.mark.slow
def test_hard_labels_of_the_majority_lose_too_where_there_are_pairs_enough(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    def gain(seed: int) -> float:
        found = [
            _loss(tiny_model_dir, tmp_path / f"{seed} {name}", seed, resolve, soft=soft, num_pairs=960)
            for name, resolve, soft in (("votes", MajorityConfig(), False), ("soft", ReliabilityConfig(), True))
        ]
        return found[0] - found[1]

    gains = np.array([gain(seed) for seed in range(8)])
    # With 240 pairs it is 6 of 8, with 480 and 960 7 of 8; by chance alone 7 or 8 have probability 9 / 256.
    assert (gains > 0).sum() >= 7, gains
    assert gains.mean() > 0.01, gains
