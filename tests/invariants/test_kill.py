"""`kill -9` at any moment: the same command goes on, and ends in the same bytes."""

import random
from pathlib import Path

import pytest
import torch

from harken.policy.ppo import ppo
from harken.policy.sft import sft
from harken.reward.train import train_reward
from tests.invariants import kill
from tests.policy import material


def _work(stage: str, model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    if stage == "sft":
        sft(model, material.demonstrations(), out, material.sft_config())
    elif stage == "reward":
        train_reward(model, material.pairs(), out, material.reward_config())
    else:
        ppo(model, material.prompts(), material.count_letter, out, material.ppo_config(steps=6))


def _kill_and_compare(stage: str, model: Path, folder: Path, tries: int) -> None:
    context, rng = kill.server(), random.Random(0)
    whole = folder / "whole"
    kill.seconds(context, _work, stage, model, whole)  # the first process waits for the imports
    # The quicker of two, so that a busy moment does not put the kills behind the end.
    spans = [kill.seconds(context, _work, stage, model, folder / name) for name in ("again", "once more")]
    expected = material.hashes(whole / "model")
    assert material.hashes(folder / "again" / "model") == expected
    kills = 0
    for number in range(tries):
        out = folder / f"try-{number}"
        kills += kill.killed_and_resumed(context, rng, min(spans), _work, stage, model, out)
        assert material.hashes(out / "model") == expected, f"try {number}"
        assert material.rows(out / "metrics.jsonl") == material.rows(whole / "metrics.jsonl"), f"try {number}"
    assert kills >= tries / 3, f"{kills} kills in {tries} tries prove little"


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_killed_run_goes_on(stage: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    _kill_and_compare(stage, tiny_model_dir, tmp_path, tries=3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_run_killed_many_times_goes_on(stage: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    _kill_and_compare(stage, tiny_model_dir, tmp_path, tries=20)
