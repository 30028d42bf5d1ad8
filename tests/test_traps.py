"""docs/traps.md names tests that exist; here are those that have no better place."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harken.artifacts import read_manifest
from harken.config import DpoLossConfig, OptimizerConfig
from harken.lm.load import load_model
from harken.lm.optim import Optimizer
from harken.lm.trunk import Trunk
from harken.policy.ilql import ilql
from harken.policy.online_dpo import online_dpo
from harken.policy.ppo import ppo, prepare
from harken.policy.preference import dpo
from harken.policy.rollout import rollout, score
from harken.policy.sft import sft
from harken.reward.model import StoredRewardModel
from harken.reward.train import train_reward
from tests.policy import material

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "traps.md"
RUNS: dict[str, Callable[[Path, Path], Path]] = {
    "sft": lambda model, out: sft(model, material.demonstrations(), out, material.sft_config()),
    "reward": lambda model, out: train_reward(model, material.pairs(), out, material.reward_config()),
    "dpo": lambda model, out: dpo(model, material.pairs(), out, material.dpo_config()),
    "ilql": lambda model, out: ilql(model, material.scored(), out, material.ilql_config()),
    "online-dpo": lambda model, out: online_dpo(
        model, material.prompts(), material.count_letter, out, material.online_dpo_config()
    ),
}


def test_every_trap_has_a_row_and_every_test_that_a_row_names_exists() -> None:
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 45))
    missing: list[str] = []
    for number, row in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row.split("|")[-1])
        assert named, f"row {number} names no test"
        for file, test in named:
            path = TESTS / file
            if not path.is_file() or not re.search(rf"^(async )?def {test}\(", path.read_text("utf-8"), re.MULTILINE):
                missing.append(f"row {number}: {file}::{test}")
    assert not missing, "\n".join(missing)


def test_a_training_run_opens_no_connection(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments[-1])
        raise OSError("no connection is expected")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "sendto", refuse)
    ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, material.ppo_config(steps=1))
    assert asked == []


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_took_fewer_steps_than_planned_does_not_end_well(
    name: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Optimizer.__init__

    def plans_one_more(self: Optimizer, parameters: dict, settings: OptimizerConfig, total_steps: int) -> None:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
        make(self, parameters, settings, total_steps + 1)  # pyright: ignore[reportUnknownArgumentType]

    monkeypatch.setattr(Optimizer, "__init__", plans_one_more)
    with pytest.raises(AssertionError, match=r"\d optimizer steps, planned \d"):
        RUNS[name](tiny_model_dir, tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_run_says_how_many_iterations_and_episodes_it_had(tiny_model_dir: Path, tmp_path: Path) -> None:
    ppo(tiny_model_dir, material.prompts(), material.count_letter, tmp_path, material.ppo_config(steps=2))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    # 4 prompts of 2 completions each.
    assert manifest.info == {"iterations": 2, "episodes": 16}


def test_a_reward_model_of_another_base_reads_texts_with_its_own_tokenizer(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    # The same letters under other numbers.
    base = shutil.copytree(tiny_model_dir, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {token: 255 - number for token, number in tokenizer["model"]["vocab"].items()}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    folder = train_reward(base, material.pairs(), tmp_path / "reward", material.reward_config())
    reward = StoredRewardModel(folder, compute=material.COMPUTE)
    config = material.ppo_config()
    state = prepare(tiny_model_dir, reward, config)
    experience = rollout(state.trunk, material.prompts(4), config, step=0, sampler=state.sampler)
    alone = StoredRewardModel(folder, compute=material.COMPUTE).model()
    wanted = alone(experience.prompts, experience.completions)
    assert score(experience, reward).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    own = Trunk(load_model(tiny_model_dir, compute=material.COMPUTE, chat=material.RAW)).chat
    assert alone.chat.encode_completion("seen") != own.encode_completion("seen")
    assert own.decode_completion(own.encode_completion("seen")) == "seen"


def test_dpo_logs_both_sides_apart_and_a_likelihood_term_holds_the_chosen_one_up(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    last: dict[float, dict[str, float]] = {}
    for coef in (0.0, 5.0):
        fast = OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.0)
        config = material.dpo_config(loss=DpoLossConfig(nll_coef=coef), epochs=3, optimizer=fast)
        dpo(tiny_model_dir, material.pairs(), tmp_path / str(coef), config)
        last[coef] = material.rows(tmp_path / str(coef) / "metrics.jsonl")[-1]
    for row in last.values():
        assert {"chosen_logprob", "rejected_logprob", "reward_margin"} <= row.keys()
        assert torch.isfinite(torch.tensor([row["chosen_logprob"], row["rejected_logprob"]])).all()
    assert last[5.0]["chosen_logprob"] > last[0.0]["chosen_logprob"] + 1.0
