"""Adapters on the last layers only: what the layers below give is the same for all roles and computed once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from harken.config import FullConfig, LoraConfig
from harken.errors import ConfigError
from harken.lm import llama
from harken.lm.batch import Batch, Tokens, pad
from harken.lm.checkpoint import save_adapter
from harken.lm.forward import completion_logprobs, completion_values
from harken.lm.sample import sample
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings
from tests.lm.archs import ARCHITECTURES, make_trunk, plain_model, random_tokens, shake

TOP = LoraConfig(rank=3, alpha=5.0, top_layers=1)


def _batch() -> Batch:
    return pad(random_tokens(3, [(5, 9), (2, 4), (3, 8)]))


def _with_roles(name: str = "llama") -> Trunk:
    trunk = make_trunk(name)
    trunk.add_role("policy", TOP, seed=0)
    trunk.add_role("critic", TOP, seed=1, head=True)
    shake(trunk, "policy", seed=1)
    shake(trunk, "critic", seed=2)
    return trunk


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_the_last_layers_have_adapters(name: str) -> None:
    whole, top = make_trunk(name), make_trunk(name)
    whole.add_role("policy", LoraConfig(rank=3), seed=0)
    top.add_role("policy", TOP, seed=0)
    expected = {path for path in whole.adapted_paths("policy") if ".1." in f".{path}."}
    assert set(top.adapted_paths("policy")) == expected
    assert 2 * len(expected) == len(set(whole.adapted_paths("policy")))
    # The layers that have one start like those of a role with adapters everywhere.
    assert all(torch.equal(value, whole.parameters("policy")[name]) for name, value in top.parameters("policy").items())


@pytest.mark.parametrize(("share", "layers"), [(0.5, {1}), (0.1, {1}), (0.8, {0, 1})])
def test_a_share_of_the_layers_is_at_least_one(share: float, layers: set[int]) -> None:
    trunk = make_trunk("llama")
    trunk.add_role("policy", LoraConfig(top_layers=share), seed=0)
    assert {int(path.split(".")[2]) for path in trunk.adapted_paths("policy")} == layers


def test_a_role_that_reads_apart_may_have_adapters_below() -> None:
    trunk = _with_roles()
    trunk.add_role("reward", LoraConfig(rank=3), seed=3, head=True, reads_apart=True)
    batch = _batch()
    shared = trunk.with_lower_states(batch, max_tokens=1000)
    assert shared.num_lower_layers == 1
    torch.testing.assert_close(trunk.hidden("policy", shared), trunk.hidden("policy", batch), rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError, match="'reward' reads apart"):
        trunk.hidden("reward", shared)
    trunk.add_role("judge", LoraConfig(rank=3), seed=3, head=True)
    assert trunk.num_lower_layers == 0


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(ValueError, match="top_layers"):
        LoraConfig(top_layers=1.0)  # a number or a share?
    with pytest.raises(ConfigError, match="top_layers is 3, the model has 2 layers"):
        make_trunk("llama").add_role("policy", LoraConfig(top_layers=3), seed=0)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if llama.is_supported(plain_model(name))])
def test_with_lower_states_values_and_gradients_are_the_same(name: str) -> None:
    batch = _batch()
    trunk = _with_roles(name)
    shared = trunk.with_lower_states(batch, max_tokens=20)
    assert shared.num_lower_layers == 1
    for role in ("policy", None):
        one, other = (completion_logprobs(trunk, role, part).logprobs for part in (batch, shared))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    gradients: list[list[torch.Tensor]] = []
    for part in (batch, shared):
        loss = (
            completion_logprobs(trunk, "policy", part).logprobs.sum() + completion_values(trunk, "critic", part).sum()
        )
        parameters = [value for role in ("policy", "critic") for value in trunk.parameters(role).values()]
        gradients.append(list(torch.autograd.grad(loss, parameters)))
    for one, other in zip(*gradients, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_rows_bring_their_lower_states_along() -> None:
    trunk = _with_roles()
    shared = trunk.with_lower_states(_batch(), max_tokens=1000)
    part = shared.select([2, 1])
    assert part.lower_states is not None
    assert part.lower_states.shape[:2] == part.ids.shape
    whole = completion_logprobs(trunk, "policy", shared).logprobs
    torch.testing.assert_close(
        completion_logprobs(trunk, "policy", part).logprobs, whole[[2, 1], : part.ids.shape[1]], rtol=1e-5, atol=1e-5
    )


def test_layers_below_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = _with_roles()
    shared = trunk.with_lower_states(_batch(), max_tokens=1000)
    computed: list[int] = []
    original = llama._layer

    def counted(block: Any, role: str | None) -> llama.Layer:
        computed.append(1)
        return original(block, role)

    monkeypatch.setattr(llama, "_layer", counted)
    completion_logprobs(trunk, None, shared)
    assert len(computed) == 1
    completion_logprobs(trunk, None, _batch())
    assert len(computed) == 3


@pytest.mark.parametrize("n", [1, 2])
def test_sampling_tells_what_the_layers_below_gave(n: int) -> None:
    trunk = _with_roles()
    # Of three lengths, so that there is padding; several leave the batch early.
    prompts = [item.prompt for item in random_tokens(5, [(5, 1), (2, 1), (9, 1)])]
    settings = SamplingSettings(temperature=1.5, top_p=1.0, top_k=0, max_new_tokens=12)
    trunk.chat.stop_ids = frozenset(range(0, 259, 9))
    drawn = sample(trunk, "policy", prompts, settings, seeds=range(3 * n), n=n)
    assert len({len(item.token_ids) for item in drawn}) > 1
    batch = pad([Tokens(prompts[row // n], item.token_ids) for row, item in enumerate(drawn)])
    read = trunk.with_lower_states(batch, max_tokens=1000)
    told = trunk.with_lower_states(batch, max_tokens=1000, known=[item.lower_states for item in drawn])
    assert read.lower_states is not None
    assert told.lower_states is not None
    assert told.num_lower_layers == read.num_lower_layers == 1
    # All but the last token's, which sampling does not read and on which no log-probability or value depends.
    rows = torch.arange(batch.num_rows)
    assert not told.lower_states[rows, batch.last_index()].any()
    read.lower_states[rows, batch.last_index()] = 0.0
    torch.testing.assert_close(told.lower_states, read.lower_states, rtol=1e-5, atol=1e-5)
    for compute in (lambda part: completion_logprobs(trunk, "policy", part).logprobs,
                    lambda part: completion_values(trunk, "critic", part)):  # fmt: skip
        torch.testing.assert_close(compute(told), compute(batch), rtol=1e-4, atol=1e-5)


def test_nothing_is_shared_where_a_role_reaches_all_layers_or_is_a_copy() -> None:
    everywhere, copied = make_trunk("llama"), make_trunk("llama")
    everywhere.add_role("policy", LoraConfig(rank=3), seed=0)
    everywhere.add_role("critic", TOP, seed=1, head=True)
    copied.add_role("policy", FullConfig(), seed=0)
    copied.add_role("critic", TOP, seed=1, head=True)
    for trunk in (everywhere, copied):
        batch = _batch()
        assert trunk.with_lower_states(batch, max_tokens=1000) is batch


def test_a_saved_adapter_opens_in_peft_and_merges_to_the_same_model(tmp_path: Path) -> None:
    batch = pad(random_tokens(3, [(5, 9), (9, 5)]))
    trunk = _with_roles()
    save_adapter(tmp_path, trunk, "policy", "base")
    wrapped: Any = PeftModel.from_pretrained(plain_model("llama"), tmp_path)
    merged: Any = plain_model("llama")
    merged.load_state_dict(trunk.merged_weights("policy"), strict=False)
    with torch.no_grad():
        ours = trunk.logits_fn("policy")(trunk.hidden("policy", batch))
        for model in (wrapped, merged):
            torch.testing.assert_close(ours, model(input_ids=batch.ids).logits, rtol=1e-4, atol=1e-4)
