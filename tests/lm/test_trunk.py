"""One base, many roles: what each role computes, keeps to itself, and becomes on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from harken.config import FullConfig, LoraConfig
from harken.lm.batch import Batch, pad
from harken.lm.checkpoint import save_adapter, save_model
from harken.lm.forward import completion_logprobs, sequence_scores
from harken.lm.lora import LoraLinear
from harken.lm.trunk import Trunk
from tests.lm.archs import ARCHITECTURES, make_trunk, plain_logits, plain_model, random_tokens, shake

LORA = LoraConfig(rank=3, alpha=5.0)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def _batch() -> Batch:
    return pad(random_tokens(3, [(5, 9), (9, 5)]))  # equal lengths: no padding


@torch.no_grad()
def _logits(trunk: Trunk, role: str | None, batch: Batch) -> torch.Tensor:
    return trunk.logits_fn(role)(trunk.hidden(role, batch))


@torch.no_grad()
def _theirs(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch.ids, use_cache=False).logits


def _with_policy(name: str = "llama", *, seed: int = 1) -> Trunk:
    trunk = make_trunk(name)
    trunk.add_role("policy", LORA, seed=0)
    shake(trunk, "policy", seed=seed)
    return trunk


def _by_hand(name: str, trunk: Trunk, role: str) -> nn.Module:
    """A plain model with W + alpha / rank * up @ down written into each adapted weight, in fp64 and then fp32."""
    model = plain_model(name)
    own = trunk.parameters(role)
    with torch.no_grad():
        for path in trunk.adapted_paths(role):
            layer: Any = model.get_submodule(path)
            change = own[f"{path}.lora_B"].double() @ own[f"{path}.lora_A"].double() * (LORA.alpha / LORA.rank)
            change = change.T if isinstance(layer, Conv1D) else change
            layer.weight.copy_((layer.weight.double() + change).float())
    return model


@every_architecture
def test_logits_fn_equals_the_models_own_logits(name: str) -> None:
    batch = _batch()
    torch.testing.assert_close(_logits(make_trunk(name), None, batch), _theirs(plain_model(name), batch))


def test_soft_cap_and_scales_change_the_test_models_logits() -> None:
    # Else the test above would not notice if they were lost.
    for name in ("gemma2", "granite", "cohere"):
        model: Any = plain_model(name)
        with torch.no_grad():
            states = model.base_model(input_ids=torch.arange(9)[None]).last_hidden_state[0]
            raw = model.get_output_embeddings()(states)
        assert (raw - plain_logits(model, list(range(9)))).abs().max() > 0.1, name


@every_architecture
def test_the_reference_is_the_plain_model_bit_for_bit_the_same_whatever_roles_exist(name: str) -> None:
    batch = _batch()
    trunk = make_trunk(name)
    before = _logits(trunk, None, batch)
    trunk.add_role("policy", LORA, seed=0)
    trunk.add_role("critic", LORA, seed=1, head=True)
    shake(trunk, "policy", seed=1)
    shake(trunk, "critic", seed=2)
    _logits(trunk, "policy", batch)
    assert torch.equal(_logits(trunk, None, batch), before)
    plain = plain_model(name)
    with torch.no_grad():
        states = plain.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
        # Models built like llama are computed in another order of operations.
        torch.testing.assert_close(trunk.hidden(None, batch), states, rtol=1e-5, atol=1e-5)


@every_architecture
def test_a_fresh_adapter_changes_nothing(name: str) -> None:
    batch = _batch()
    trunk = make_trunk(name)
    trunk.add_role("policy", LORA, seed=0)
    assert torch.equal(_logits(trunk, "policy", batch), _logits(trunk, None, batch))


@every_architecture
def test_every_linear_layer_but_the_output_is_adapted(name: str) -> None:
    plain = plain_model(name)
    output = plain.get_output_embeddings()
    expected = {
        path
        for path, module in plain.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    trunk = make_trunk(name)
    trunk.add_role("policy", LORA, seed=0)
    assert set(trunk.adapted_paths("policy")) == expected
    assert len(expected) in (8, 14)  # two blocks: 4 layers each where projections are fused, else 7


@every_architecture
def test_an_adapted_forward_pass_equals_a_model_with_the_change_written_into_its_weights(name: str) -> None:
    batch = _batch()
    trunk = _with_policy(name)
    ours = _logits(trunk, "policy", batch)
    torch.testing.assert_close(ours, _theirs(_by_hand(name, trunk, "policy"), batch), rtol=1e-4, atol=1e-4)
    assert (ours - _logits(trunk, None, batch)).abs().max() > 0.1


@every_architecture
def test_peft_reads_a_saved_adapter_as_the_same_model(name: str, tmp_path: Path) -> None:
    batch = _batch()
    trunk = _with_policy(name)
    save_adapter(tmp_path, trunk, "policy", "base")
    wrapped: Any = PeftModel.from_pretrained(plain_model(name), tmp_path)
    torch.testing.assert_close(_logits(trunk, "policy", batch), _theirs(wrapped, batch), rtol=1e-4, atol=1e-5)
    merged = wrapped.merge_and_unload()
    ours = trunk.merged_weights("policy")
    for key, theirs in merged.state_dict().items():
        torch.testing.assert_close(ours[key], theirs, msg=key)


@every_architecture
def test_a_saved_model_loads_as_the_role(name: str, tmp_path: Path) -> None:
    batch = _batch()
    trunk = _with_policy(name)
    trunk.add_role("critic", LORA, seed=5, head=True)
    shake(trunk, "critic", seed=6)
    save_model(tmp_path, trunk, "policy")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.state_dict().keys() == plain_model(name).state_dict().keys()
    torch.testing.assert_close(_logits(trunk, "policy", batch), _theirs(again.eval(), batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_tied_embeddings_stay_tied_and_others_apart_on_disk(name: str, tmp_path: Path) -> None:
    save_model(tmp_path, _with_policy(name), "policy")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tied = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert tied == (name == "llama")
    assert torch.equal(again.get_input_embeddings().weight, plain_model(name).get_input_embeddings().weight)


def test_bf16_weights_merge_in_fp32_and_are_cast_once() -> None:
    trunk = make_trunk(dtype=torch.bfloat16)
    trunk.add_role("policy", LORA, seed=0)
    shake(trunk, "policy", seed=1)
    path = "model.layers.1.mlp.down_proj"
    own, weight = trunk.parameters("policy"), plain_model("llama", torch.bfloat16).get_submodule(path).weight
    change = own[f"{path}.lora_B"] @ own[f"{path}.lora_A"] * (LORA.alpha / LORA.rank)
    assert own[f"{path}.lora_A"].dtype == torch.float32
    merged = trunk.merged_weights("policy")[f"{path}.weight"]
    assert torch.equal(merged, (weight.float() + change).bfloat16())


def test_roles_do_not_disturb_each_other() -> None:
    batch = _batch()
    trunk = _with_policy()
    before = _logits(trunk, "policy", batch)
    trunk.add_role("second", LoraConfig(rank=2), seed=3)
    shake(trunk, "second", seed=4)
    assert torch.equal(_logits(trunk, "policy", batch), before)
    second = _logits(trunk, "second", batch)
    shake(trunk, "policy", seed=5)
    assert torch.equal(_logits(trunk, "second", batch), second)
    assert not torch.equal(_logits(trunk, "policy", batch), before)
    assert not torch.equal(second, before)


def test_adapters_depend_on_the_seed_and_differ_between_layers() -> None:
    first, same, other = make_trunk(), make_trunk(), make_trunk()
    for trunk, seed in ((first, 0), (same, 0), (other, 1)):
        trunk.add_role("policy", LORA, seed=seed, head=True)
    mine = first.state("policy")
    assert all(torch.equal(mine[key], value) for key, value in same.state("policy").items())
    down = [key for key in mine if key.endswith("lora_A")]
    assert not any(torch.equal(mine[key], other.state("policy")[key]) for key in [*down, "head.weight"])
    q, k = (mine[f"model.layers.{layer}.self_attn.q_proj.lora_A"] for layer in (0, 1))
    assert not torch.equal(q, k)


def test_fresh_adapters_have_the_spread_of_loras_authors() -> None:
    trunk = make_trunk()
    trunk.add_role("policy", LoraConfig(rank=64), seed=0)
    down = trunk.state("policy")["model.layers.0.mlp.gate_proj.lora_A"]
    # kaiming_uniform_(a = sqrt(5)) on 32 inputs: uniform within 1 / sqrt(32), so its spread is that over sqrt(3).
    bound = 32**-0.5
    assert float(down.abs().max()) <= bound
    # 2,048 uniform draws: the sample spread is within 5% of the true one by more than five of its standard errors.
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.05)  # random draws, see above


def test_gradients_reach_only_the_active_role() -> None:
    trunk = make_trunk()
    for role in ("policy", "critic"):
        trunk.add_role(role, LORA, seed=0, head=True)
        shake(trunk, role, seed=1)
    completion_logprobs(trunk, "policy", _batch()).logprobs.sum().backward()
    touched = {name for name, value in trunk.parameters("policy").items() if value.grad is not None}
    assert touched == {name for name in trunk.parameters("policy") if not name.startswith("head.")}
    assert all(value.grad is None for value in trunk.parameters("critic").values())
    assert all(not value.requires_grad for name, value in trunk.model.named_parameters() if ".base." in name)
    sequence_scores(trunk, "critic", _batch()).sum().backward()
    assert all(value.grad is not None for value in trunk.parameters("critic").values())
    trainable = {id(value) for role in ("policy", "critic") for value in trunk.parameters(role).values()}
    frozen = [value for value in trunk.model.parameters() if id(value) not in trainable]
    assert all(not value.requires_grad and value.grad is None for value in frozen)


@every_architecture
def test_a_full_role_trains_all_weights_and_leaves_the_reference_alone(name: str) -> None:
    batch = _batch()
    trunk = make_trunk(name)
    before = _logits(trunk, None, batch)
    trunk.add_role("policy", FullConfig(), seed=0)
    assert torch.equal(_logits(trunk, "policy", batch), before)
    completion_logprobs(trunk, "policy", batch).logprobs.sum().backward()
    own = trunk.parameters("policy")
    assert set(own) == {key for key, _ in plain_model(name).named_parameters()}
    assert all(value.grad is not None for value in own.values())
    assert all(value.grad is None for value in trunk.model.parameters())
    shake(trunk, "policy", seed=2)
    assert torch.equal(_logits(trunk, None, batch), before)
    assert not torch.equal(_logits(trunk, "policy", batch), before)


def test_adapters_go_onto_a_base_that_a_full_role_was_copied_from() -> None:
    batch = _batch()
    trunk = make_trunk()
    trunk.add_role("policy", FullConfig(), seed=0)
    trunk.add_role("critic", LORA, seed=1, head=True)
    shake(trunk, "critic", seed=2)
    assert torch.equal(_logits(trunk, "policy", batch), _logits(trunk, None, batch))
    assert not torch.equal(trunk.hidden("critic", batch), trunk.hidden(None, batch))


def test_a_full_role_saves_as_its_own_weights(tmp_path: Path) -> None:
    batch = _batch()
    trunk = make_trunk()
    trunk.add_role("policy", FullConfig(), seed=0, head=True)
    shake(trunk, "policy", seed=2, size=0.02)
    save_model(tmp_path, trunk, "policy")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(_logits(trunk, "policy", batch), _theirs(again.eval(), batch))


def test_a_role_without_adapters_is_a_head_on_the_base() -> None:
    trunk = make_trunk()
    trunk.add_role("critic", None, seed=0, head=True)
    assert sorted(trunk.parameters("critic")) == ["head.bias", "head.weight"]
    states = torch.tensor([[1.0] * 32, [2.0] * 32])
    total = float(trunk.state("critic")["head.weight"].sum())
    assert trunk.head("critic", states).tolist() == pytest.approx([total, 2 * total])


def test_state_goes_to_another_trunk_and_back() -> None:
    batch = _batch()
    trunk, other = _with_policy(), make_trunk()
    other.add_role("policy", LORA, seed=9)
    other.load_state("policy", trunk.state("policy"))
    assert torch.equal(_logits(other, "policy", batch), _logits(trunk, "policy", batch))


def test_a_state_is_a_copy() -> None:
    trunk = _with_policy()
    state = trunk.state("policy")
    kept = {key: value.clone() for key, value in state.items()}
    shake(trunk, "policy", seed=8)
    assert all(torch.equal(state[key], kept[key]) for key in state)


def test_a_state_of_another_shape_or_with_other_names_is_refused_by_name() -> None:
    trunk = _with_policy()
    state = trunk.state("policy")
    name = "model.layers.0.mlp.up_proj.lora_A"
    with pytest.raises(ValueError, match=rf"'policy'.*{name}"):
        trunk.load_state("policy", {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match="stranger"):
        trunk.load_state("policy", {**state, "stranger": torch.zeros(1)})
    with pytest.raises(ValueError, match=name):
        trunk.load_state("policy", {**state, name: torch.zeros(7, 32)})
    assert all(torch.equal(value, trunk.state("policy")[key]) for key, value in state.items())


def test_the_change_of_a_conv1d_lies_in_its_transposed_layout() -> None:
    trunk = _with_policy("gpt2")
    layer = trunk.model.get_submodule("transformer.h.0.mlp.c_fc")
    assert isinstance(layer, LoraLinear)
    assert layer.sizes == (32, 64)
    assert layer.delta("policy").shape == (32, 64)
