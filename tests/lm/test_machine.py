"""Measured figures of the machine, the precision a run settles on, and shares of the peak."""

import json
import os
from pathlib import Path

import pytest
import torch

from harken.config import ComputeConfig, LoraConfig, SftConfig
from harken.lm import load, machine, speed
from harken.lm.load import with_settled_dtype
from harken.lm.machine import (
    available_memory,
    matrix_rate,
    memory_bandwidth,
    memory_in_use,
    peak_memory,
    reset_peak_memory,
)
from harken.lm.speed import Meter, model_shape
from harken.policy.sft import sft
from harken.runs import Run, Timer
from harken.shapes import training_flops
from tests.lm.archs import make_trunk
from tests.policy import material

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not machine.CLEAR.exists(), reason="only Linux tells and resets the peak of a process")


@LINUX
def test_the_peak_follows_what_is_taken_and_can_be_reset() -> None:
    size = 200 * 2**20
    before = memory_in_use(CPU)
    data = torch.ones(size // 4)
    assert peak_memory(CPU) >= before + size * 0.9
    del data
    assert reset_peak_memory(CPU)
    assert peak_memory(CPU) < before + size * 0.5
    assert 0 < available_memory(CPU) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_without_proc_the_peak_is_that_of_the_whole_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "STATUS", tmp_path / "none")
    monkeypatch.setattr(machine, "CLEAR", tmp_path / "no" / "folder")
    assert not reset_peak_memory(CPU)
    assert peak_memory(CPU) > 50e6  # Python and torch alone


def test_rates_are_operations_and_bytes_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "best_seconds", lambda work, device: 0.5)
    assert matrix_rate.__wrapped__(torch.float32, CPU, size=10) == 2 * 1000 / 0.5
    assert memory_bandwidth.__wrapped__(CPU, num_bytes=4000) == 4000 / 0.5


def test_rates_are_measured_once_a_process() -> None:
    assert matrix_rate(torch.float32, CPU, size=64) == matrix_rate(torch.float32, CPU, size=64) > 0


@pytest.mark.parametrize(("gain", "taken"), [(1.2, torch.float32), (1.4, torch.bfloat16)])
def test_auto_takes_bfloat16_where_it_is_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, taken: torch.dtype
) -> None:
    monkeypatch.setattr(load, "matrix_rate", lambda dtype, device: gain if dtype == torch.bfloat16 else 1.0)
    assert load.pick_dtype("auto", CPU) == taken


def test_a_resumed_run_keeps_the_precision_it_started_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(load, "matrix_rate", lambda dtype, device: rates[dtype])
    config = SftConfig(compute=ComputeConfig(device="cpu"))
    first = with_settled_dtype(config, Run(tmp_path / "run", "sft", config, {}))
    assert first.compute.dtype == "bfloat16"
    rates[torch.bfloat16] = 0.5  # today the machine is busy
    again = with_settled_dtype(config, Run(tmp_path / "run", "sft", config, {}))
    assert again.compute.dtype == "bfloat16"
    assert with_settled_dtype(config, Run(tmp_path / "other", "sft", config, {})).compute.dtype == "float32"


def test_a_named_precision_settles_nothing(tmp_path: Path) -> None:
    config = SftConfig(compute=ComputeConfig(device="cpu", dtype="float32"))
    assert with_settled_dtype(config, Run(tmp_path / "run", "sft", config, {})) is config
    assert not (tmp_path / "run" / "settled.json").exists()


def test_a_share_of_the_peak_is_operations_over_seconds_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "matrix_rate", lambda dtype, device: 1e6)
    trunk = make_trunk("llama")
    meter = Meter(trunk, LoraConfig(rank=4))
    flops = meter.training(120, 10, 30)
    assert flops == training_flops(model_shape(trunk), 120, 12, 30, tune="lora", rank=4)
    timer = Timer()
    timer.seconds["train"] = 4.0
    found = meter.figures(timer, {"train": flops})
    assert found["share_of_peak_train"] == pytest.approx(flops / 4.0 / 1e6)
    monkeypatch.setattr(speed, "peak_memory", lambda device: 12345)
    assert meter.figures(timer, {}) == {"peak_memory_bytes": 12345.0}


def test_of_a_model_of_unknown_shape_only_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = make_trunk("llama")
    monkeypatch.setattr(type(trunk.model.config), "to_dict", lambda self: {})
    meter = Meter(trunk, LoraConfig())
    timer = Timer()
    timer.measure("train", 5)
    assert set(meter.figures(timer, {"train": meter.training(5, 1, 2)})) == {"peak_memory_bytes"}


def test_every_step_logs_shares_and_memory_but_they_do_not_count_as_results(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    sft(tiny_model_dir, material.demonstrations(), tmp_path / "out", material.sft_config(epochs=1))
    for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert 0 < row["share_of_peak_train"] < 1
        assert row["peak_memory_bytes"] > 50e6
    assert not {"share_of_peak_train", "peak_memory_bytes"} & set(material.rows(tmp_path / "out" / "metrics.jsonl")[0])
