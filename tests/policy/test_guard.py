"""A run whose scores can no longer be believed is stopped, and gives out the best policy that it had."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harken.artifacts import read_manifest
from harken.config import FixedKl, OptimizerConfig, PpoConfig, ScoreConfig
from harken.config.guard import GuardConfig
from harken.errors import ConfigError
from harken.policy.best import BEST_FILE
from harken.policy.guard import collapsed, critical_value, mean_and_error, over_optimized
from harken.policy.ppo import ppo
from harken.records import Completion, Prompt
from tests.policy import material

FAST = OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0)


def _config(guard: GuardConfig, **changes: Any) -> PpoConfig:
    settings: dict[str, Any] = {
        "steps": 12,
        "prompts_per_step": 8,
        "completions_per_prompt": 4,
        "minibatch_size": 32,
        "sampling_batch_size": 32,
        "epochs": 4,
        "kl": FixedKl(coef=0.0),
        "policy_optimizer": FAST,
        "score": ScoreConfig(stop_penalty="none", guard=guard),
    }
    return material.ppo_config(**(settings | changes))


def dislikes_the_letter(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [-score for score in material.count_letter(prompts, completions)]


def likes_nothing(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Empty completions are the best."""
    return [-float(len(item.message.content)) for item in completions]


def _rows(judge: Sequence[float], score: Sequence[float], error: float) -> list[dict[str, float]]:
    return [
        {"judge_mean": one, "judge_error": error, "score_mean": other, "empty_fraction": 0.0, "length_mean": 9.0}
        for one, other in zip(judge, score, strict=True)
    ]


def test_only_a_rising_score_with_a_falling_judge_stops_a_run() -> None:
    # Windows of 2, 4 iterations in all: one comparison at 0.01, so 2.33 standard errors of sqrt(2) 0.1 / sqrt(2) = 0.1.
    settings = GuardConfig(window=2)
    assert critical_value(settings, 4) == pytest.approx(2.326, abs=1e-3)
    falls, rises, stays = [1.0, 1.0, 0.7, 0.7], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.8, 0.8]
    found = over_optimized(_rows(falls, rises, 0.1), settings, 4)
    assert found is not None
    assert "fell from 1 to 0.7 (standard error 0.1) while the score rose from 0 to 1" in found
    assert over_optimized(_rows(stays, rises, 0.1), settings, 4) is None, "2 standard errors are an accident"
    assert over_optimized(_rows(falls, [0.0] * 4, 0.1), settings, 4) is None, "the score did not rise"
    assert over_optimized(_rows(falls, rises, 0.1)[:3], settings, 4) is None, "the second window is not whole"
    # The best window counts, not the first: 0, 1, 0.7.
    later = _rows([0.0, 0.0, *falls], [-1.0, -1.0, *rises], 0.05)
    assert over_optimized(later, settings, 6) is not None


def test_false_alarms_are_as_rare_as_asked_for() -> None:
    # 400 runs of 100 iterations, judge and score pure noise: at most 1 % in expectation, so 12 or more in 0.1 % of all.
    rng = random.Random(0)
    settings = GuardConfig(window=5, alarm=0.01)
    alarms = 0
    for _ in range(400):
        rows = _rows([rng.gauss(0, 0.1) for _ in range(100)], [rng.gauss(0, 1) for _ in range(100)], 0.1)
        alarms += any(over_optimized(rows[:end], settings, 100) is not None for end in range(5, 101, 5))
    assert alarms < 12
    # A fall of two spreads of the judge's scores among 64 completions is found at once: error 2 / 8 / sqrt(5) a window.
    rows = _rows([1.0] * 5 + [0.0] * 5, [0.0] * 5 + [1.0] * 5, 0.5 / 8)
    assert over_optimized(rows, settings, 100) is not None


def test_the_error_of_a_mean_is_that_of_prompts() -> None:
    # Prompt means 1 and 3: variance 2, over 2 prompts 1. Alone in its prompt, each completion counts by itself.
    assert mean_and_error([0.0, 2.0, 3.0, 3.0], 2) == (2.0, 1.0)
    assert mean_and_error([1.0, 3.0], 2) == (2.0, 1.0)
    mean, error = mean_and_error([1.0, 2.0, 6.0], 1)
    assert (mean, error) == (3.0, pytest.approx(math.sqrt(7 / 3)))


def test_a_limit_counts_only_where_an_earlier_rollout_was_far_from_it() -> None:
    def row(empty: float, length: float) -> dict[str, float]:
        return {"empty_fraction": empty, "length_mean": length}

    settings = GuardConfig(empty_limit=0.4, length_limit=5.0)
    assert collapsed([row(0.1, 12.0), row(0.5, 12.0)], settings) == (
        "50% of the completions hold no text (score.guard.empty_limit is 40%)"
    )
    assert "4.0 tokens" in (collapsed([row(0.2, 10.0), row(0.3, 8.0), row(0.3, 4.0)], settings) or "")
    assert collapsed([row(0.3, 12.0), row(0.5, 12.0)], settings) is None, "it began with 30 %"
    assert collapsed([row(0.1, 9.0), row(0.1, 4.0)], settings) is None, "it began with 9 tokens"
    assert collapsed([row(0.1, 12.0), row(0.4, 5.0)], settings) is None, "at the limits, not beyond"
    assert collapsed([row(0.0, 12.0), row(1.0, 0.0)], GuardConfig(empty_limit=None)) is None, "off"


def test_a_run_that_a_held_out_judge_likes_less_and_less_goes_back_to_its_best_policy(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = _config(GuardConfig(window=2))
    prompts = material.prompts()
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    ppo(tiny_model_dir, prompts, material.count_letter, whole, config, judge=dislikes_the_letter)
    manifest = read_manifest(whole)
    assert manifest is not None
    assert "the judge's mean fell" in manifest.info["stopped"]
    # The judge liked the first window most, which iteration 1 (counted from 0) ended.
    assert manifest.info["best_step"] == 1
    assert 3 <= manifest.info["iterations"] < config.steps
    rows = material.rows(whole / "metrics.jsonl")
    assert len(rows) == manifest.info["iterations"]
    assert all(row["judge_mean"] == pytest.approx(-row["score_mean"]) for row in rows)
    assert not (whole / BEST_FILE).exists()
    # Given out is the policy that had learned from one rollout.
    once = tmp_path / "once"
    ppo(tiny_model_dir, prompts, material.count_letter, once, config.model_copy(update={"steps": 1}))
    assert _weights(whole) == _weights(once)
    # Stopped and resumed it ends in the same way.
    stops, options = material.StopsAfter(2), {"judge": dislikes_the_letter}
    with pytest.raises(material.Stopped):
        ppo(tiny_model_dir, prompts, material.count_letter, halves, config, **options, reporter=stops)
    ppo(tiny_model_dir, prompts, material.count_letter, halves, config, judge=dislikes_the_letter)
    assert material.hashes(halves / "model") == material.hashes(whole / "model")
    again = read_manifest(halves)
    assert again is not None
    assert again.info == manifest.info


def test_a_run_that_its_judge_likes_goes_on_to_its_end(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = _config(GuardConfig(window=2), steps=6)
    ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, config, judge=material.count_letter)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.info == {"iterations": 6, "episodes": 192}
    one = _config(GuardConfig(), prompts_per_step=1, completions_per_prompt=1)
    with pytest.raises(ConfigError, match="at least 2 completions an iteration"):
        ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path / "one", one, judge=likes_nothing)


def test_a_policy_that_falls_silent_goes_back_to_where_it_spoke(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = _config(GuardConfig(), steps=40)
    ppo(tiny_model_dir, material.prompts(), likes_nothing, tmp_path, config)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert "hold no text (score.guard.empty_limit is 50%)" in manifest.info["stopped"]
    rows = material.rows(tmp_path / "metrics.jsonl")
    assert rows[0]["empty_fraction"] < 0.25
    assert all(row["empty_fraction"] <= 0.5 for row in rows)
    # The newest policy that left at most a quarter of its completions empty.
    spoke = [row["step"] - 1 for row in rows if row["empty_fraction"] <= 0.25]
    assert manifest.info["best_step"] == spoke[-1]
    # Off, it would have gone on.
    off = config.model_copy(update={"score": ScoreConfig(stop_penalty="none", guard=GuardConfig(empty_limit=None))})
    ppo(tiny_model_dir, material.prompts(), likes_nothing, tmp_path / "off", off)
    assert material.rows(tmp_path / "off" / "metrics.jsonl")[-1]["empty_fraction"] > 0.5


def _weights(out: Path) -> dict[str, str]:
    return material.hashes(out / "model", keep=lambda path: path.suffix == ".safetensors")
