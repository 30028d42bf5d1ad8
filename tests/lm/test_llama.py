"""The own forward pass for models built like llama equals theirs, forward and backward, and decodes as they do."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig

from harken.config import FullConfig, LoraConfig
from harken.lm import decode_llama, llama
from harken.lm import trunk as trunk_module
from harken.lm.batch import Tokens, pack, pad
from harken.lm.decode import ModelDecoder, kept_rows
from harken.lm.decode_llama import LlamaDecoder
from harken.lm.forward import completion_logprobs
from harken.lm.llama import is_supported
from harken.lm.trunk import Trunk
from tests.lm.archs import make_trunk, plain_model, random_tokens, shake

ITEMS = random_tokens(3, [(3, 6), (7, 2), (1, 11), (4, 4)])
SMALL: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SCALED = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_models_built_like_llama_take_the_short_way(name: str) -> None:
    assert is_supported(plain_model(name))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "cohere", "gpt_neox", "mistral"])
def test_other_models_and_short_windows_go_through_their_own_forward_pass(name: str) -> None:
    assert not is_supported(plain_model(name))


@pytest.mark.parametrize(
    ("config", "supported"),
    [
        (MistralConfig(**SMALL, sliding_window=None), True),
        (LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True), True),
        (LlamaConfig(**SMALL, rope_parameters=SCALED), True),
        (LlamaConfig(**SMALL, rope_parameters=DYNAMIC), False),
    ],
)
@torch.no_grad()
def test_variants_equal_their_own_forward_pass(config: PreTrainedConfig, supported: bool) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    assert is_supported(model) == supported
    trunk = make_trunk()
    trunk.model = model
    batch = pad(ITEMS)
    states = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    for row, length in enumerate(batch.lengths.tolist()):
        torch.testing.assert_close(trunk.hidden(None, batch)[row, :length], states[row, :length], rtol=1e-5, atol=1e-5)


def _gradients(trunk: Trunk, packed: bool) -> dict[str, Tensor]:
    batch = pack(ITEMS, 24) if packed else pad(ITEMS)
    completion_logprobs(trunk, "policy", batch).logprobs.sum().backward()
    found = {name: value.grad for name, value in trunk.parameters("policy").items() if value.grad is not None}
    for value in trunk.parameters("policy").values():
        value.grad = None
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tune", [LoraConfig(rank=2), FullConfig()], ids=["adapters", "full"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gradients_equal_those_of_the_models_own_forward_pass(
    name: str, tune: LoraConfig | FullConfig, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = make_trunk(name)
    trunk.add_role("policy", tune, seed=0)
    shake(trunk, "policy", seed=1, size=0.02)
    ours = _gradients(trunk, packed)
    monkeypatch.setattr(trunk_module, "is_supported", lambda network: False)
    theirs = _gradients(trunk, packed)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 20
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


@torch.no_grad()
def test_a_role_in_full_training_decodes_with_its_present_weights() -> None:
    trunk = make_trunk()
    trunk.add_role("policy", FullConfig(), seed=0)
    network: Any = trunk.network("policy")
    prompts = [item.prompt for item in ITEMS]
    before = LlamaDecoder(network, None).prefill(prompts, n=1, new_tokens=2)
    shake(trunk, "policy", seed=1, size=0.05)
    after = LlamaDecoder(network, None).prefill(prompts, n=1, new_tokens=2)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, ModelDecoder(network).prefill(prompts, n=1, new_tokens=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [ModelDecoder, LlamaDecoder])
@torch.no_grad()
def test_rows_that_stay_are_not_disturbed_by_those_that_leave(kind: Any) -> None:
    model: Any = plain_model("llama")

    def states(keep: list[int] | None) -> Tensor:
        decoder = kind(model, None) if kind is LlamaDecoder else kind(model)
        decoder.prefill([item.prompt for item in ITEMS], n=2, new_tokens=3)
        tokens = torch.arange(8)
        decoder.step(tokens)
        rows = keep or list(range(8))
        if keep:
            decoder.keep(keep)
        return decoder.step(tokens[rows] + 9)

    # Rows 2, 5 and 6 stopped; the last ones fill their places.
    alive = [row not in (2, 5, 6) for row in range(8)]
    kept = kept_rows(alive)
    assert kept == [0, 1, 7, 3, 4]
    torch.testing.assert_close(states(kept), states(None)[kept], rtol=1e-5, atol=1e-5)


def test_as_few_rows_move_as_stopped() -> None:
    assert kept_rows([True] * 4) == [0, 1, 2, 3]
    assert kept_rows([False, True, True, False]) == [2, 1]
    assert kept_rows([False, False, False]) == []


def test_joined_weights_are_the_models_own_and_save_as_before(tmp_path: Any) -> None:
    model: Any = plain_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        LlamaDecoder(model, None).prefill([[1, 2]], n=1, new_tokens=1)
    first, second = (model.base_model.layers[0].self_attn.get_submodule(name).weight for name in ("q_proj", "k_proj"))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr(), "joined"
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in before.items())


def test_padding_does_not_go_through_the_layers() -> None:
    trunk = make_trunk()
    batch = pad(ITEMS)
    hidden = trunk.hidden(None, batch)
    assert not trunk.computes_padding
    assert torch.equal(hidden[0, 9:], torch.zeros_like(hidden[0, 9:]))
    network: Any = plain_model("llama").base_model
    with torch.no_grad():
        for row, length in enumerate(batch.lengths.tolist()):
            alone = network(input_ids=batch.ids[row : row + 1, :length]).last_hidden_state[0]
            torch.testing.assert_close(hidden[row, :length].detach(), alone, rtol=1e-5, atol=1e-5)
    # 9 + 9 + 12 tokens fit into 30; padded, two rows of 12 and one more of 9 would not.
    assert trunk.microbatches([9, 9, 12], 30) == [[2, 0, 1]]
    assert len(make_trunk("gpt2").microbatches([9, 9, 12], 30)) == 2
    assert trunk.padding_waste([9, 12], [[0, 1]]) == 0.0
    assert make_trunk("gpt2").padding_waste([9, 12], [[0, 1]]) == pytest.approx(3 / 24)


@pytest.mark.parametrize("tokens_of_a_pass", [1, 12, 1024])
def test_prompts_are_read_without_their_padding(tokens_of_a_pass: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_llama, "PREFILL_TOKENS", tokens_of_a_pass)
    trunk, sizes = make_trunk(), [3, 9, 1, 6]
    prompts = [item.prompt for item in random_tokens(2, [(size, 0) for size in sizes])]
    passed: list[int] = []
    real = llama.LlamaLayers.__call__

    def counted(self: llama.LlamaLayers, x: torch.Tensor, *others: Any) -> torch.Tensor:
        passed.append(len(x))
        return real(self, x, *others)

    monkeypatch.setattr(llama.LlamaLayers, "__call__", counted)
    decoder = LlamaDecoder(trunk.network(None), None)
    with torch.no_grad():
        states = decoder.prefill(prompts, n=2, new_tokens=4)
        later = decoder.step(torch.arange(8))
    assert sum(passed[:-1]) == sum(sizes)
    assert len(passed) - 1 == {1: 4, 12: 2, 1024: 1}[tokens_of_a_pass]
    batch = pad([Tokens([*prompts[row // 2], row], []) for row in range(8)])
    hidden = trunk.hidden(None, batch).detach()
    for row, length in enumerate(batch.lengths.tolist()):
        torch.testing.assert_close(states[row], hidden[row, length - 2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(later[row], hidden[row, length - 1], rtol=1e-5, atol=1e-5)
