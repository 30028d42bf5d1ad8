"""Attention by plain products gives what torch's fused kernel gives."""

from pathlib import Path

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harken.config import ComputeConfig
from harken.lm import attention
from harken.lm.attention import NAME, SHORT, short_attention
from harken.lm.load import load_model


class _Layer(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


def _inputs(length: int, num_keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(2, 6, length, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, num_keys, 8, generator=generator)
    return query, key, value


def _both(length: int, num_keys: int, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = _inputs(length, num_keys)
    ours, weights = short_attention(_Layer(), *inputs, mask, scaling=0.3)
    assert weights is None
    theirs, _ = sdpa_attention_forward(_Layer(), *inputs, mask, scaling=0.3)
    return ours, theirs


@pytest.mark.parametrize("length", [1, 2, 31, SHORT])
def test_causal_attention_equals_the_fused_kernel(length: int) -> None:
    torch.testing.assert_close(*_both(length, length, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("length", "num_keys"), [(1, 7), (5, 5), (3, 9)])
def test_masked_attention_equals_the_fused_kernel(length: int, num_keys: int) -> None:
    # Left padding: the first row does not see its first two keys.
    mask = torch.ones(2, 1, length, num_keys, dtype=torch.bool).tril(num_keys - length)
    mask[0, :, :, :2] = False
    mask[:, :, :, -1] = True
    torch.testing.assert_close(*_both(length, num_keys, mask), rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_of_the_fused_kernel() -> None:
    found: list[tuple[torch.Tensor, ...]] = []
    for function in (short_attention, sdpa_attention_forward):
        query, key, value = (tensor.requires_grad_() for tensor in _inputs(9, 9))
        function(_Layer(), query, key, value, None, scaling=0.3)[0].square().sum().backward()
        found.append(tuple(tensor.grad for tensor in (query, key, value) if tensor.grad is not None))
    assert len(found[0]) == 3
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_long_sequences_go_to_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def count(module: torch.nn.Module, query: torch.Tensor, *rest: object, **options: object) -> tuple[None, None]:
        calls.append(query.shape[2])
        return None, None

    monkeypatch.setattr(attention, "sdpa_attention_forward", count)
    for length in (SHORT, SHORT + 1):
        query, key, value = _inputs(length, length)
        short_attention(_Layer(), query, key, value, None)
    assert calls == [SHORT + 1]


def test_it_is_used_for_bf16_on_a_cpu_only(tiny_model_dir: Path) -> None:
    def implementation(dtype: str) -> str | None:
        compute = ComputeConfig.model_validate({"dtype": dtype, "device": "cpu"})
        return load_model(tiny_model_dir, compute=compute).model.config._attn_implementation

    assert implementation("bfloat16") == NAME
    assert implementation("float32") == "sdpa"
