"""Best of n: what is kept, with ties and by lot, and that the numbers beside it are those of the draws."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from harken.config import BestOfConfig, SamplingConfig
from harken.core.best_of_n import best_of_n_kl
from harken.generate.best_of_n import best_of_n, choose
from harken.generate.sampling import generate
from harken.lm.load import load_model
from harken.lm.trunk import Trunk
from tests.policy import material


def _config(**changes: object) -> BestOfConfig:
    settings: dict[str, object] = {
        "best_of": 4,
        "completions_per_prompt": 2,
        "sampling": SamplingConfig(max_new_tokens=20, temperature=1.5),
        "chat": material.RAW,
        "compute": material.COMPUTE,
    }
    return BestOfConfig(**(settings | changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def trunk(tiny_model_dir: Path) -> Trunk:
    return Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW))


def test_the_best_of_each_group_is_kept_and_the_estimate_is_of_all_draws(trunk: Trunk) -> None:
    prompts = material.prompts(3)
    found = best_of_n(trunk, prompts, material.count_letter, _config())
    # The draws are those of `generate` with 8 completions a prompt.
    drawn = generate(trunk, prompts, _config(completions_per_prompt=8))
    scores = torch.tensor(material.count_letter([], drawn)).reshape(6, 4)
    assert found.scores == scores.amax(dim=1).tolist()
    assert [item.id for item in found.completions] == [
        drawn[group * 4 + place].id for group, place in enumerate(scores.argmax(dim=1).tolist())
    ]
    assert [item.prompt_id for item in found.completions] == [prompt.id for prompt in prompts for _ in range(2)]
    assert found.drawn_mean == pytest.approx(float(scores.mean()))
    assert set(found.expected) == {1, 2, 4}
    assert found.expected[1] == pytest.approx(found.drawn_mean)
    # Over 8 draws a prompt; the two groups of 4 are one of the ways to take 4 of them.
    assert found.expected[1] < found.expected[2] < found.expected[4]
    assert found.kl_bound == best_of_n_kl(4)


def test_the_first_of_equal_ones_is_kept() -> None:
    assert choose(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), 0.0, seed=0) == [1, 0]


def test_by_lot_each_is_kept_as_often_as_its_weight_says() -> None:
    # exp(0), exp(1), exp(2) at beta 1/2 of scores 0, .5, 1. 4 standard errors of 30,000 draws: 0.012.
    scores = torch.tensor([[0.0, 0.5, 1.0]]).expand(30_000, 3)
    counts = Counter(choose(scores, 0.5, seed=0))
    for place, weight in enumerate(torch.tensor([0.0, 1.0, 2.0]).softmax(0).tolist()):
        assert abs(counts[place] / 30_000 - weight) < 0.012  # 4 standard errors
    assert choose(scores[:50], 0.5, seed=0) == choose(scores[:50], 0.5, seed=0)
    assert choose(scores[:50], 0.5, seed=0) != choose(scores[:50], 0.5, seed=1)
