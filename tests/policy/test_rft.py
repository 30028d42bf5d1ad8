"""Rejection-sampling fine-tuning: what is kept, that it learns, its rounds, and that it goes on where it stopped."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from harken.config import FullConfig, OptimizerConfig
from harken.datasets import read_demonstrations
from harken.errors import DataError
from harken.policy.rft import best, rft
from harken.progress import QUIET
from harken.records import Completion, Prompt
from tests.policy import material


def _scored(texts: str, finish: str = "stop") -> list[tuple[Completion, float]]:
    asked = material.prompt("say")
    return [
        (material.completion_of(asked, text, finish_reason=finish), float(text.count(material.LETTER)))
        for text in texts.split()
    ]


def test_the_best_different_whole_completions_are_kept() -> None:
    asked, config = material.prompt("say"), material.rft_config(keep=2)
    kept = best(asked, [*_scored("ae eee b eee ee"), *_scored("eeee", finish="length")], config)
    assert [(item.completion.content, score) for item, score in kept] == [("eee", 3.0), ("ee", 2.0)]
    assert not best(asked, _scored("ae b"), material.rft_config(min_score=2.0))


def test_it_learns_what_the_reward_likes(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.rft_config(
        rounds=3,
        completions_per_prompt=32,
        keep=4,
        epochs=8,
        tune=FullConfig(),
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )

    def is_short(asked: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        return [-float(item.num_tokens or 0) for item in completions]

    rft(tiny_model_dir, material.prompts(), is_short, tmp_path, config)
    rows = material.rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["kept_score_mean"] > rows[0]["score_mean"]
    assert rows[2]["score_mean"] > rows[0]["score_mean"] + 5
    assert all(row["kept_fraction"] <= 4 / 32 for row in rows)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_stopped_run_goes_on_in_its_round(earlier: bool, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.rft_config(rounds=2, earlier_rounds=earlier)
    arguments = (tiny_model_dir, material.prompts(), material.count_letter)
    rft(*arguments, tmp_path / "whole", config)
    for stop in (0, 1, 2):
        with pytest.raises(material.Stopped):
            rft(*arguments, tmp_path / "halves", config, reporter=material.StopsAfter(stop))
    rft(*arguments, tmp_path / "halves", config, reporter=QUIET)
    assert material.hashes(tmp_path / "whole" / "model") == material.hashes(tmp_path / "halves" / "model")
    assert material.rows(tmp_path / "whole" / "metrics.jsonl") == material.rows(tmp_path / "halves" / "metrics.jsonl")
    rows = material.rows(tmp_path / "whole" / "metrics.jsonl")
    fresh = [len(read_demonstrations(tmp_path / "whole" / f"round-{number}" / "kept.jsonl")) for number in (1, 2)]
    assert [row["demonstrations"] for row in rows] == [fresh[0], sum(fresh) if earlier else fresh[1]]


def test_a_round_that_keeps_nothing_says_what_to_do(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"round 1: none of 48 completions .* min_score = 99"):
        rft(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, material.rft_config(min_score=99.0))
    with pytest.raises(ValueError, match="keep = 9 of completions_per_prompt = 8"):
        material.rft_config(keep=9)


def test_samples_show_what_was_kept(tiny_model_dir: Path, tmp_path: Path) -> None:
    rft(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, material.rft_config())
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    kept = read_demonstrations(tmp_path / "round-1" / "kept.jsonl")
    assert [sample["completion"] for sample in samples] == [item.completion.content for item in kept[:4]]
