"""Attention by products, over whole rows or over spans, gives what torch's fused kernel gives."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harken.config import ComputeConfig, FullConfig
from harken.lm import attention, kernels, llama
from harken.lm.attention import NAME, SHORT, short_attention, span_attention
from harken.lm.batch import Batch, Span, Tokens, pack, pad, pad_shared
from harken.lm.load import load_model
from tests.lm.archs import make_trunk, random_tokens


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


def _tokens(*sizes: int) -> list[Tokens]:
    return random_tokens(0, [(size - 2, 2) for size in sizes])


BATCHES = {
    "padded": pad(_tokens(5, 9, 3)),
    "packed": pack(_tokens(5, 9, 3, 7), 12),
    "shared": pad_shared([[Tokens([1, 2, 3, 4], [5, 6, 7]), Tokens([1, 2, 3, 4], [8])], _tokens(6)]),
    "a prompt of one token": pad_shared([[Tokens([1], [5, 6, 7]), Tokens([1], [8])]]),
}
every_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)


def _may_read(batch: Batch) -> torch.Tensor:
    """Return (N, N) bool over all real tokens, from the batch's own fields, token by token."""
    places = [(row, place) for row, length in enumerate(batch.lengths.tolist()) for place in range(length)]

    def reads(asking: tuple[int, int], seen: tuple[int, int]) -> bool:
        row, place = asking
        if row != seen[0] or seen[1] > place:
            return False
        if batch.segments is not None:
            return int(batch.segments[seen]) in (0, int(batch.segments[asking]))
        if batch.position_ids is not None:
            return place - seen[1] <= int(batch.position_ids[asking])
        return True

    return torch.tensor([[reads(asking, seen) for seen in places] for asking in places])


@every_batch
def test_spans_are_the_tokens_that_each_token_may_read(batch: Batch) -> None:
    expected = _may_read(batch)
    found = torch.zeros_like(expected)
    for start, end, shared_start, shared_end in batch.spans():
        for place in range(start, end):
            found[place, start : place + 1] = True
            found[place, shared_start:shared_end] = True
    assert torch.equal(found, expected)


@every_batch
@pytest.mark.parametrize("block", [1, 2, 128])
def test_attention_over_spans_equals_the_fused_kernel(
    batch: Batch, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    count = int(batch.lengths.sum())
    inputs = [torch.randn(count, heads, 4, generator=generator).requires_grad_() for heads in (6, 2, 2)]
    wanted = torch.randn(count, 24, generator=generator)
    ours = span_attention(torch.cat(inputs, dim=1), 2, torch.tensor(batch.spans()), 0.3)
    query, key, value = (part.transpose(0, 1)[None] for part in inputs)
    read = scaled_dot_product_attention(query, key, value, _may_read(batch), scale=0.3, enable_gqa=True)
    theirs = read[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for mine, other in zip(*(torch.autograd.grad(out, inputs, wanted) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_attention_over_spans_is_its_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    spans = [Span(0, 3, 0, 0), Span(3, 5, 0, 3), Span(5, 6, 0, 3), Span(6, 8, 6, 6)]
    heads = torch.randn(8, 8, 3, generator=generator, dtype=torch.float64).requires_grad_()

    def attend(heads: Tensor) -> Tensor:
        return span_attention(heads, 2, torch.tensor(spans), 0.5)

    # Tolerances: the softmax is in fp32 whatever the type.
    assert torch.autograd.gradcheck(attend, heads, eps=1e-2, atol=1e-3, rtol=1e-2)  # see above


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", ["padded", "packed", "shared"])
def test_long_rows_in_bf16_give_the_states_and_gradients_of_short_ones(
    name: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def spanned(heads: Tensor, key_heads: int, spans: Tensor, scale: float) -> Tensor:
        calls.append(len(heads))
        return span_attention(heads, key_heads, spans, scale)

    def no_kernels(*arguments: object) -> None:
        del arguments

    monkeypatch.setattr(llama, "span_attention", spanned)
    monkeypatch.setattr(kernels, "load", no_kernels)
    found: list[dict[str, torch.Tensor]] = []
    for short in (SHORT, 0):
        for module in (attention, llama):
            monkeypatch.setattr(module, "SHORT", short)
        trunk = make_trunk(name, torch.bfloat16)
        trunk.add_role("policy", FullConfig(), seed=0)
        states = trunk.hidden("policy", BATCHES[shape])
        states.float().square().sum().backward()
        gradients = {key: value.grad for key, value in trunk.parameters("policy").items() if value.grad is not None}
        found.append({"states": states.detach(), **gradients})
    assert len(calls) == 2  # layers
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        error = (value - found[1][key]).float().norm() / value.float().norm()
        assert error < 0.02, (key, error)
