"""A run whose scores can no longer be believed is stopped, and gives out the best policy that it had."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harken.artifacts import read_manifest
from harken.config import FixedKl, FullConfig, OptimizerConfig, PpoConfig, SamplingConfig, ScoreConfig
from harken.config.guard import GuardConfig
from harken.errors import ConfigError
from harken.policy.best import BEST_FILE
from harken.policy.guard import collapsed, critical_value, mean_and_error, over_optimized
from harken.policy.ppo import ppo
from harken.policy.rollout import Rollout, rollout
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
        "tune": FullConfig(),
        "sampling": SamplingConfig(max_new_tokens=4),
        "policy_optimizer": FAST,
        "score": ScoreConfig(stop_penalty="none", guard=guard),
    }
    return material.ppo_config(**(settings | changes))


def likes_even_tokens(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Count tokens of even numbers: half of all, so that every completion teaches something."""
    return [float(sum(token % 2 == 0 for token in item.token_ids or ())) for item in completions]


def dislikes_even_tokens(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    return [-score for score in likes_even_tokens(prompts, completions)]


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
    ppo(tiny_model_dir, prompts, likes_even_tokens, whole, config, judge=dislikes_even_tokens)
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
    ppo(tiny_model_dir, prompts, likes_even_tokens, once, config.model_copy(update={"steps": 1}))
    assert _weights(whole) == _weights(once)
    # Stopped and resumed it ends in the same way.
    options: dict[str, Any] = {"judge": dislikes_even_tokens, "reporter": material.StopsAfter(2)}
    with pytest.raises(material.Stopped):
        ppo(tiny_model_dir, prompts, likes_even_tokens, halves, config, **options)
    ppo(tiny_model_dir, prompts, likes_even_tokens, halves, config, judge=dislikes_even_tokens)
    assert material.hashes(halves / "model") == material.hashes(whole / "model")
    again = read_manifest(halves)
    assert again is not None
    assert again.info == manifest.info


def test_a_run_that_its_judge_likes_goes_on_to_its_end(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = _config(GuardConfig(window=2), steps=6)
    ppo(tiny_model_dir, material.prompts(), likes_even_tokens, tmp_path, config, judge=likes_even_tokens)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.info == {"iterations": 6, "episodes": 192}
    one = _config(GuardConfig(), prompts_per_step=1, completions_per_prompt=1)
    with pytest.raises(ConfigError, match="at least 2 completions an iteration"):
        ppo(tiny_model_dir, material.prompts(), likes_even_tokens, tmp_path / "one", one, judge=likes_even_tokens)


def test_a_policy_that_falls_silent_goes_back_to_where_it_spoke(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 8 completions so many hold no text; 5 of 8 are more than half, and 2 of 8 the most that is far from that.
    numbers = [0, 1, 2, 3, 5, 8]

    def silenced(*arguments: Any, step: int, **options: Any) -> Rollout:
        experience = rollout(*arguments, step=step, **options)
        texts = ["" if row < numbers[step] else f"text {row}" for row in range(8)]
        items = [
            item.model_copy(update={"message": item.message.model_copy(update={"content": text})})
            for item, text in zip(experience.completions, texts, strict=True)
        ]
        return replace(experience, completions=items)

    monkeypatch.setattr("harken.policy.ppo.rollout", silenced)
    arguments = (tiny_model_dir, material.prompts(), likes_even_tokens)
    config = material.ppo_config(steps=6, policy_optimizer=FAST, critic_optimizer=FAST)
    ppo(*arguments, tmp_path / "stopped", config)
    manifest = read_manifest(tmp_path / "stopped")
    assert manifest is not None
    assert "62% of the completions hold no text (score.guard.empty_limit is 50%)" in manifest.info["stopped"]
    assert manifest.info["best_step"] == 2
    rows = material.rows(tmp_path / "stopped" / "metrics.jsonl")
    assert [row["empty_fraction"] for row in rows] == [number / 8 for number in numbers[:4]]
    twice = config.model_copy(update={"steps": 2})
    ppo(*arguments, tmp_path / "twice", twice)
    assert _weights(tmp_path / "stopped") == _weights(tmp_path / "twice")
    # Switched off, the run goes on.
    off = config.score.model_copy(update={"guard": GuardConfig(empty_limit=None)})
    ppo(*arguments, tmp_path / "off", config.model_copy(update={"score": off}))
    assert len(material.rows(tmp_path / "off" / "metrics.jsonl")) == 6


def _weights(out: Path) -> dict[str, str]:
    return material.hashes(out / "model", keep=lambda path: path.suffix == ".safetensors")
