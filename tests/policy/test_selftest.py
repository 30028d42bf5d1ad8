"""Each mistake that otherwise shows only as a policy that learns nothing is caught in the first minute, by its name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as AutoModel
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from harken.config import FullConfig, LoraConfig, SamplingConfig
from harken.errors import SelfTestError
from harken.lm import llama as llama_module
from harken.lm import trunk as trunk_module
from harken.policy import ppo as ppo_module
from harken.policy import rollout as rollout_module
from harken.policy import selftest as selftest_module
from harken.policy.ppo import ppo, prepare
from harken.policy.rollout import POLICY, Rollout, rollout, score
from harken.policy.selftest import check_boundaries, check_first_rollout, check_output_layer
from harken.policy.update import update
from tests.policy import material
from tests.tiny import make_tiny_tokenizer

_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 259,
    "initializer_range": 0.2,
}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_LLAMA, num_key_value_heads=2),
    "qwen2": Qwen2Config(**_LLAMA, num_key_value_heads=2),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=259, initializer_range=0.2),
    "gpt_neox": GPTNeoXConfig(**_LLAMA),
    "gemma2": Gemma2Config(**_LLAMA, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**_LLAMA, num_key_value_heads=2, logits_scaling=3.0),
}


def _save(name: str, folder: Path) -> Path:
    config = ARCHITECTURES[name]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 257, 256, 258
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tune", [LoraConfig(), FullConfig()], ids=["lora", "full"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_healthy_model_passes(name: str, tune: LoraConfig | FullConfig, tmp_path: Path) -> None:
    config = material.ppo_config(tune=tune, sampling=SamplingConfig(max_new_tokens=6, temperature=0.7))
    state = prepare(_save(name, tmp_path), material.count_letter, config)
    experience = rollout(state.trunk, material.prompts(), config, step=0)
    check_first_rollout(state.trunk, experience)
    update(state, experience, score(experience, material.count_letter), config, step=0)  # checks the first minibatch


def _run(model: Path, out: Path, **changes: Any) -> None:
    ppo(model, material.prompts(), material.count_letter, out, material.ppo_config(**changes))


def _wrap_rollout(monkeypatch: pytest.MonkeyPatch, change: Callable[[Rollout], Rollout]) -> None:
    def changed(*arguments: Any, **options: Any) -> Rollout:
        return change(rollout(*arguments, **options))

    monkeypatch.setattr(ppo_module, "rollout", changed)


def test_a_scorer_at_another_temperature_is_caught(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = rollout_module.completion_logprobs

    def at_one(*arguments: Any, temperature: float = 1.0, **options: Any) -> Any:
        return honest(*arguments, **options)

    monkeypatch.setattr(rollout_module, "completion_logprobs", at_one)
    with pytest.raises(SelfTestError, match=r"sampler and scorer .* differ by .*temperature"):
        _run(tiny_model_dir, tmp_path, sampling=SamplingConfig(max_new_tokens=6, temperature=0.7))


def test_a_policy_that_does_not_start_as_the_reference_is_caught(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ppo_module.prepare

    def moved(*arguments: Any, **options: Any) -> Any:
        state = honest(*arguments, **options)
        with torch.no_grad():
            for parameter in state.trunk.parameters(POLICY).values():
                parameter.add_(0.1)
        return state

    monkeypatch.setattr(ppo_module, "prepare", moved)
    with pytest.raises(SelfTestError, match=r"policy and reference differ by .* before any update, expected 0"):
        _run(tiny_model_dir, tmp_path)


def test_a_dropout_that_is_on_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ppo_module.prepare

    def training(*arguments: Any, **options: Any) -> Any:
        state = honest(*arguments, **options)
        state.trunk.network(None).train()
        return state

    monkeypatch.setattr(ppo_module, "prepare", training)
    with pytest.raises(SelfTestError, match="dropout is on"):
        _run(_save("gpt2", tmp_path / "model"), tmp_path / "out")


def test_an_output_layer_that_is_scaled_is_caught(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = material.ppo_config()
    state = prepare(tiny_model_dir, material.count_letter, config)
    check_output_layer(state.trunk)
    network: Any = state.trunk.network(None)
    honest = network.forward

    def scaled(*arguments: Any, **options: Any) -> Any:
        found = honest(*arguments, **options)
        found.logits = found.logits * 2.0
        return found

    network.forward = scaled
    with pytest.raises(SelfTestError, match="changes its logits in a way Harken does not know"):
        check_output_layer(state.trunk)


def test_layers_computed_in_another_way_than_the_models_are_caught(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = llama_module.LlamaLayers.rotations

    def late(layers: llama_module.LlamaLayers, positions: torch.Tensor) -> Any:
        return honest(layers, positions * 2)

    monkeypatch.setattr(llama_module.LlamaLayers, "rotations", late)
    with pytest.raises(SelfTestError, match=r"own forward pass by .* nats a token"):
        _run(tiny_model_dir, tmp_path)


def test_an_unknown_soft_cap_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = trunk_module.Trunk.logits_fn

    def without_cap(trunk: trunk_module.Trunk, role: str | None) -> Any:
        trunk.network(role).config.final_logit_softcapping = None
        read = honest(trunk, role)
        trunk.network(role).config.final_logit_softcapping = 3.0
        return read

    monkeypatch.setattr(trunk_module.Trunk, "logits_fn", without_cap)
    with pytest.raises(SelfTestError, match="output layer"):
        _run(_save("gemma2", tmp_path / "model"), tmp_path / "out")


def test_positions_that_differ_between_sampler_and_scorer_are_caught(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = rollout_module.completion_logprobs

    def stretched(trunk: Any, role: Any, batch: Any, **options: Any) -> Any:
        positions = 2 * torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        wrong = replace(batch, position_ids=positions)
        return honest(trunk, role, wrong, **{**options, "hidden": trunk.hidden(role, wrong)})

    monkeypatch.setattr(rollout_module, "completion_logprobs", stretched)
    with pytest.raises(SelfTestError, match="positions or attention mask"):
        _run(tiny_model_dir, tmp_path)


def test_log_probabilities_from_two_computations_are_caught(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(experience: Rollout) -> Rollout:
        shift = 0.2 * experience.batch.completion_mask
        return replace(
            experience,
            old_logprobs=experience.old_logprobs + shift,
            ref_logprobs=experience.ref_logprobs + shift,
            sampler_logprobs=experience.sampler_logprobs + shift,
        )

    _wrap_rollout(monkeypatch, off)
    monkeypatch.setattr(selftest_module, "check_layers", lambda trunk, experience: None)  # it would notice first
    # exp(-0.2) = 0.8187; half of 0.2 squared = 0.02.
    with pytest.raises(SelfTestError, match=r"the ratio is 0\.8187 \(expected 1\) and the approximate KL 0\.02"):
        _run(tiny_model_dir, tmp_path)


def test_prompts_that_merge_with_their_completions_are_caught(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = material.ppo_config()
    state = prepare(tiny_model_dir, material.count_letter, config)
    experience = rollout(state.trunk, material.prompts(), config, step=0)
    check_boundaries(state.trunk, experience)
    chat = state.trunk.chat
    honest = chat.encode_prompt

    def last_token_apart(prompt: Any, **options: Any) -> list[int]:
        return [*honest(prompt, **options)[:-1], 32]  # as of a trailing space, which merges with the next word

    monkeypatch.setattr(chat, "encode_prompt", last_token_apart)
    with pytest.raises(SelfTestError, match=r"100% of the prompts merge with their completions"):
        check_boundaries(state.trunk, experience)


def test_nothing_is_checked_again_after_the_first_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    # A resumed run's policy has left the reference, which is no mistake.
    with pytest.raises(material.Stopped):
        ppo(
            tiny_model_dir,
            material.prompts(),
            material.count_letter,
            tmp_path,
            material.ppo_config(),
            reporter=material.StopsAfter(2),
        )
    _run(tiny_model_dir, tmp_path)
    assert len(material.rows(tmp_path / "metrics.jsonl")) == 4
