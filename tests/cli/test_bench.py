"""`harken bench`, `harken plan`, and `--fit` of the training commands."""

import json
from pathlib import Path
from typing import Any

import pytest

from harken.artifacts import read_json
from harken.cli_common import run_folder
from harken.config import SftConfig
from harken.errors import DataError
from harken.runs import Run
from tests.cli.calling import FP32, call, write_data


def test_bench_times_every_phase(tiny_model_dir: Path) -> None:
    ended = call("bench", "--model", tiny_model_dir, "--quick", "--full", "--json", "--set", "dtype=float32")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    phases = {phase["phase"]: phase for phase in found["phases"]}
    assert list(phases) == [
        "sampling",
        "scoring",
        "training, adapters",
        "reward training, adapters",
        "training, all weights",
    ]
    for phase in phases.values():
        assert 0 < phase["seconds_min"] <= phase["seconds"] <= phase["seconds_max"]
        assert phase["tokens_per_s"] == pytest.approx(phase["tokens"] / phase["seconds"])
        assert phase["share_of_matrix_rate"] > 0
        assert 0 <= phase["padding_waste"] < 1
        assert phase["peak_memory_bytes"] > 50e6
    assert phases["sampling"]["share_of_bandwidth"] > 0
    assert phases["scoring"]["share_of_bandwidth"] is None
    assert found["dtype"] == "float32"
    assert found["matrix_gflops"] > 0
    assert isinstance(found["has_kernels"], bool)


def test_bench_prints_a_table(tiny_model_dir: Path) -> None:
    ended = call("bench", "--model", tiny_model_dir, "--quick", "--set", "dtype=float32")
    machine, header, *lines = ended.out.splitlines()
    assert machine.startswith("float32 on cpu: ")
    assert header.split() == [
        "phase",
        "work",
        "tokens/s",
        "seconds",
        "matrix",
        "rate",
        "bandwidth",
        "padding",
        "peak",
        "memory",
    ]
    assert [line.split()[0] for line in lines] == ["sampling", "scoring", "training,", "reward"]


def test_plan_predicts_without_loading_anything() -> None:
    ended = call("plan", "--model", "7b", "--gpus", 4, "--tune", "full", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["parameters"] == 6_738_415_616
    assert [phase["phase"] for phase in found["phases"]] == ["sampling", "scoring", "training"]
    assert found["phases"][2]["bytes"] > found["phases"][1]["bytes"]
    text = call("plan", "--model", "7B", "--stage", "sft", "--gpu-memory", 10).out.splitlines()
    assert text[0] == "7B: 6.74 billion parameters; predicted on one device"
    assert text[2].split()[0] == "training"
    assert "NO" in text[2]
    assert len(text) == 3


def test_plan_reads_the_shape_of_a_folder_and_this_machine(tiny_model_dir: Path) -> None:
    ended = call("plan", "--model", tiny_model_dir, "--here", "--precision", "float32", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    # 2 layers of width 32: 2 x (2 x 32x32 + 2 x 32x16 + 3 x 32x64) + 5 norms + 259 tied embeddings.
    assert found["parameters"] == 2 * (2 * 1024 + 2 * 512 + 3 * 2048) + 5 * 32 + 259 * 32
    assert found["devices"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "9000B"], "--model 9000B: no such size or folder; give one of smollm2, 0.5B"),
        (["--model", "7B", "--gpu-memory", "0"], "--gpu-memory 0: expected a number above zero"),
        (["--model", "7B", "--gpus", "0"], "--gpus"),
        (["--model", "7B", "--tune", "half"], "--tune"),
    ],
)
def test_plan_says_what_is_wrong(arguments: list[str], words: str) -> None:
    ended = call("plan", *arguments)
    assert ended.code == 2
    assert words in ended.problem


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_fit_replaces_sizes_and_nothing_else(tiny_model_dir: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    common = ("sft", "--model", tiny_model_dir, "--data", tmp_path / "demonstrations.jsonl", *FP32)
    settings = ("--set", "compute.microbatch_tokens=77", "--set", "batch_size=8", "--set", "packing=false")
    plain = call(*common, *settings, "--out", tmp_path / "plain")
    fitted = call(*common, *settings, "--out", tmp_path / "fitted", "--fit")
    assert plain.code == fitted.code == 0, fitted.err
    config = read_json(tmp_path / "fitted" / "config.json")["config"]
    chosen = config["compute"]["microbatch_tokens"]
    assert chosen != 77
    assert f"fit: compute.microbatch_tokens: {chosen} replaces 77 of the settings" in fitted.err
    assert "fit: predicted peak memory" in fitted.err
    assert "in the first step, predicted" in fitted.err
    config["compute"]["microbatch_tokens"] = 77
    assert config == read_json(tmp_path / "plain" / "config.json")["config"]
    losses = [[row["loss"] for row in _rows(tmp_path / name)] for name in ("plain", "fitted")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    again = call(*common, *settings, "--out", tmp_path / "fitted", "--fit")
    assert again.code == 0, again.err
    assert "its sizes stay as they are" in again.err


def test_fit_chooses_three_sizes_for_ppo_and_two_for_a_reward_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "rules.py").write_text("def short(prompts, completions):\n    return [0.0 for _ in completions]\n")
    settings = ("--set", "steps=1", "--set", "prompts_per_step=4", "--set", "sampling.max_new_tokens=6")
    prompts, reward = tmp_path / "prompts.txt", f"{tmp_path / 'rules.py'}:short"
    common = ("--model", tiny_model_dir, *FP32, "--fit")
    ended = call("ppo", *common, *settings, "--prompts", prompts, "--reward", reward, "--out", tmp_path / "ppo")
    assert ended.code == 0, ended.err
    assert [line.split(",")[0] for line in ended.err.splitlines() if "at a time" in line] == [
        "fit: sampling",
        "fit: scoring",
        "fit: training",
    ]
    assert 1 <= read_json(tmp_path / "ppo" / "config.json")["config"]["sampling_batch_size"] <= 4
    few = ("--set", "normalization_samples=0", "--set", "batch_size=4")
    ended = call("reward", *common, *few, "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "reward")
    assert ended.code == 0, ended.err
    assert [line.split(",")[0] for line in ended.err.splitlines() if "at a time" in line] == [
        "fit: scoring",
        "fit: training",
    ]


def test_a_run_that_failed_before_its_first_step_leaves_no_folder_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail() -> None:
        with run_folder(out):
            Run(out, "sft", SftConfig(), {}).settle("dtype", lambda: "bfloat16")
            raise DataError("the model is not there")

    with pytest.raises(DataError):
        fail()
    assert not out.exists()
