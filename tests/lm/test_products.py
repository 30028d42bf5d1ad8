"""Products through oneDNN equal torch's, forward and backward, and are taken where they are the faster ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from harken.lm import products
from harken.lm.products import PACKED_STEPS, WIDE, can_pack, linear, packed, prefers_onednn


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every wide product goes through oneDNN, whatever this processor is; returns how often it did."""
    calls: list[int] = []
    real = products._OneDnnLinear.apply  # pyright: ignore[reportPrivateUsage]

    def counted(*arguments: object) -> object:
        calls.append(1)
        return real(*arguments)  # pyright: ignore[reportUnknownMemberType]

    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products._OneDnnLinear, "apply", counted)  # pyright: ignore[reportPrivateUsage]
    return calls


@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_torch(onednn: list[int], with_bias: bool) -> None:
    x, weight, bias = torch.randn(5, 24), torch.randn(WIDE, 24), torch.randn(WIDE)
    leaves = [[part.clone().requires_grad_() for part in (x, weight, bias)] for _ in range(2)]
    upstream = torch.randn(5, WIDE)
    for compute, (a, w, b) in zip((linear, functional.linear), leaves, strict=True):
        found = compute(a, w, b if with_bias else None)
        torch.testing.assert_close(found, functional.linear(x, weight, bias if with_bias else None))
        found.backward(upstream)
    assert len(onednn) == 1
    for ours, theirs in zip(*leaves, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_frozen_weights_get_no_gradient(onednn: list[int]) -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(WIDE, 8)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, -1))
    assert weight.grad is None
    assert onednn == [1]


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(3, 8), torch.randn(WIDE - 1, 8)),
        (torch.randn(2, 3, 8), torch.randn(WIDE, 8)),
        (torch.randn(0, 8), torch.randn(WIDE, 8)),
        (torch.randn(3, 8, dtype=torch.float64), torch.randn(WIDE, 8, dtype=torch.float64)),
        (torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(WIDE, 8, dtype=torch.bfloat16)),
    ],
    ids=["narrow", "not a matrix", "no rows", "fp64", "bf16"],
)
def test_what_is_not_faster_stays_with_torch(onednn: list[int], x: torch.Tensor, weight: torch.Tensor) -> None:
    assert torch.equal(linear(x, weight), functional.linear(x, weight))
    assert not onednn


@pytest.mark.parametrize(("capability", "wanted"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch, capability: str, wanted: bool) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    prefers_onednn.cache_clear()
    try:
        assert prefers_onednn() == wanted
    finally:
        prefers_onednn.cache_clear()


def _packs_here(dtype: torch.dtype) -> bool:
    has_type = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.mkldnn.is_available() and has_type


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_packed_weight_gives_what_a_plain_one_gives(dtype: torch.dtype, with_bias: bool) -> None:
    assert can_pack(nn.Linear(4, 4).to(dtype), PACKED_STEPS) == _packs_here(dtype)
    if not _packs_here(dtype):
        return
    weight = torch.randn(48, 32).to(dtype)
    bias = torch.randn(48).to(dtype) if with_bias else None
    ready = packed(weight, 64)
    for rows in (1, 3, 64, 200):
        x = torch.randn(rows, 32).to(dtype)
        torch.testing.assert_close(linear(x, ready, bias), functional.linear(x, weight, bias))


def test_a_packed_weight_is_a_copy() -> None:
    if not _packs_here(torch.float32):  # a torch without oneDNN; the test above says that nothing is packed then
        return
    weight = torch.randn(48, 32)
    ready, x = packed(weight, 4), torch.randn(4, 32)
    before = linear(x, ready)
    weight.zero_()
    assert torch.equal(linear(x, ready), before)


def test_large_models_few_steps_and_other_types_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(8, 8)
    assert not can_pack(network, PACKED_STEPS - 1)
    assert not can_pack(nn.Linear(8, 8, dtype=torch.float64), PACKED_STEPS)
    assert not can_pack(nn.Linear(8, 8, device="meta"), PACKED_STEPS)
    monkeypatch.setattr(products, "PACKED_BYTES", 4 * 8 * 8)  # but for the bias
    assert not can_pack(network, PACKED_STEPS)
