"""Logits of a whole batch never exist: no loop makes more rows of the vocabulary at a time than its chunk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harken.config import ComputeConfig, PpoLossConfig, SamplingConfig
from harken.policy.ppo import ppo
from harken.policy.preference import dpo
from harken.policy.sft import sft
from harken.reward.train import train_reward
from tests.policy import material

VOCAB = 259
CHUNK = 3
COMPUTE = ComputeConfig(dtype="float32", device="cpu", chunk_tokens=CHUNK)


class WidestLogits(TorchDispatchMode):
    """Watches every tensor that any operation gives, the backward passes' included."""

    def __init__(self) -> None:
        """Have seen nothing yet."""
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note how many rows of the vocabulary the result holds."""
        del types
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            # The output layer's weight, seen from its other side, is as wide: 32 rows.
            is_weight = func in (torch.ops.aten.t.default, torch.ops.aten.transpose.int)
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCAB,) and not is_weight:
                self.rows.append(result.numel() // VOCAB)
        return results


def _sft(model: Path, out: Path) -> None:
    sft(model, material.demonstrations(), out, material.sft_config(compute=COMPUTE))


def _dpo(model: Path, out: Path) -> None:
    dpo(model, material.pairs(), out, material.dpo_config(compute=COMPUTE))


def _ppo(model: Path, out: Path) -> None:
    config = material.ppo_config(
        compute=COMPUTE,
        steps=1,
        sampling_batch_size=CHUNK,
        sampling=SamplingConfig(max_new_tokens=6),
        loss=PpoLossConfig(entropy_coef=0.01),
    )
    ppo(model, material.prompts(), material.count_letter, out, config)


@pytest.mark.parametrize("loop", [_sft, _dpo, _ppo])
def test_at_most_a_chunk_of_logits_is_alive(
    loop: Callable[[Path, Path], None], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The self-tests read one or two texts, in chunks of their own or to compare with the model's own logits.
    for name in ("ppo.check_output_layer", "preference.check_output_layer", "selftest.check_layers"):
        monkeypatch.setattr(f"harken.policy.{name}", lambda *arguments: None)
    monkeypatch.setattr("harken.lm.export.check_export", lambda *arguments: None)
    monkeypatch.setattr("harken.policy.preference.can_share_prompts", lambda *arguments: True)
    with WidestLogits() as seen:
        loop(tiny_model_dir, tmp_path)
    assert len(seen.rows) > 20, "it did compute logits"
    assert max(seen.rows) <= CHUNK


def test_a_reward_model_computes_no_logits_in_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.reward_config(compute=COMPUTE, normalization_samples=0)
    with WidestLogits() as seen:
        train_reward(tiny_model_dir, material.pairs(), tmp_path, config)
    assert not seen.rows
