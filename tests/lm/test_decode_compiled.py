"""Layers in one call, with weights in tiles, give what the model's own gives, to bf16's rounding."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from harken.config import LoraConfig
from harken.core.drawing import draw_tokens, sum_blocks
from harken.lm import decode_llama
from harken.lm.batch import Span
from harken.lm.decode_compiled import CompiledLayers, find_compiled
from harken.lm.decode_llama import LlamaDecoder
from harken.lm.kernels import Kernels, empty_in_large_pages
from harken.lm.llama import LlamaLayers
from tests.lm.archs import make_trunk, shake

WIDE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    # States far apart, so that a mistake shows beside rounding.
    "initializer_range": 0.1,
}


def _bf16(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 32), (96, 160), (1056, 64)])
def test_products_with_tiles(units: Kernels, rows: int, outputs: int, inputs: int) -> None:
    x, weight = _bf16(rows, inputs), _bf16(outputs, inputs)
    found = units.multiply(x, units.tiles(weight))
    # One rounding of the result, and sums in fp32.
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=2**-8, atol=1e-4)


def test_tiles_of_gates_and_ups_are_side_by_side(units: Kernels) -> None:
    x, weight = _bf16(5, 64), _bf16(96, 64)
    found = units.multiply(x, units.tiles(weight, is_gated=True))
    plain = units.multiply(x, units.tiles(weight))
    assert torch.equal(found, plain.unflatten(1, (2, 3, 16)).transpose(1, 2).flatten(1))


def test_bits_of_a_product_depend_on_no_other_row_and_no_number_of_threads(units: Kernels) -> None:
    x, tiles = _bf16(70, 96), units.tiles(_bf16(320, 96))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = units.multiply(x, tiles)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole[37:40], units.multiply(x[37:40], tiles))


def test_a_row_that_is_no_number_stays_alone(units: Kernels) -> None:
    x = _bf16(40, 32)
    x[3] = torch.nan
    found = units.multiply(x, units.tiles(_bf16(64, 32)))
    assert found[3].isnan().all()
    assert not found[torch.arange(40) != 3].isnan().any()


def _decoded(model: Any, role: str | None, *, num_lower: int = 0, pack_rows: int | None = 8) -> list[Tensor]:
    """Everything a decoder gives: after prompts of several lengths, with rows that leave and memory that grows."""
    prompts = [list(range(1, 1 + length)) for length in (1, 40, 17, 3)]
    with torch.no_grad():
        decoder = LlamaDecoder(model, role, num_lower=num_lower, pack_rows=pack_rows)
        states = [decoder.prefill(prompts, n=2, new_tokens=90)]
        lower = [decoder.lower_states]
        for step in range(70):
            rows = 8 if step < 4 else 5
            if step == 4:
                decoder.keep([0, 7, 2, 3, 6])
            states.append(decoder.step((torch.arange(rows) * 7 + step) % 250))
            lower.append(decoder.lower_states)
    return [part.double() for part in (*states, *lower) if part is not None]


@pytest.mark.parametrize("role", [None, "policy"])
@pytest.mark.parametrize("num_lower", [0, 1])
def test_decoding_is_as_near_to_fp64_as_without(
    units: Kernels, role: str | None, num_lower: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    trunk = make_trunk()
    trunk.model = AutoModelForCausalLM.from_config(LlamaConfig(**WIDE)).eval()
    with torch.no_grad():
        for name, value in trunk.model.named_parameters():
            if "norm" in name:  # they are all ones at first
                value.add_(torch.randn(len(value)) / 3)
    trunk.add_role("policy", LoraConfig(rank=5, top_layers=3 - num_lower), seed=0)
    shake(trunk, "policy", seed=1)
    used: list[LlamaLayers] = []

    def counted(layers: LlamaLayers) -> Kernels | None:
        used.append(layers)
        return find_compiled(layers)

    monkeypatch.setattr(decode_llama, "find_compiled", counted)
    trunk.model.bfloat16()
    model, active = trunk.network(role), trunk.switch.role
    found = _decoded(model, active, num_lower=num_lower)
    assert len(used) == 1 + (num_lower > 0)
    assert all(find_compiled(layers) for layers in used)
    plain = _decoded(model, active, num_lower=num_lower, pack_rows=None)
    model.double()
    exact = _decoded(model, active, num_lower=num_lower, pack_rows=None)
    errors, usual = (
        torch.tensor([(part - true).norm() for part, true in zip(parts, exact, strict=True)])
        for parts in (found, plain)
    )
    # Fewer roundings than with torch; in one step of few rows they may happen to add up.
    assert errors.norm() <= 1.1 * usual.norm()
    assert (errors <= 3 * usual).all()


@pytest.mark.parametrize("change", ["bias", "norm of heads", "narrow", "fp32", "act"])
def test_other_layers_go_through_python(units: Kernels, change: str) -> None:
    config = {
        "bias": lambda: Qwen2Config(**WIDE),
        "norm of heads": lambda: Qwen3Config(**WIDE),
        "narrow": lambda: LlamaConfig(**{**WIDE, "intermediate_size": 48}),
        "fp32": lambda: LlamaConfig(**WIDE),
        "act": lambda: LlamaConfig(**WIDE, hidden_act="gelu"),
    }[change]()
    model = AutoModelForCausalLM.from_config(config).eval()
    if change != "fp32":
        model.bfloat16()
    assert find_compiled(LlamaLayers(model, None)) is None
    # 30 tokens are drawn with it all the same.
    assert len(_decoded(model, None)) == 71
    assert find_compiled(LlamaLayers(model, None, 3)) is None, "no layers at all"
    fitting = LlamaLayers(AutoModelForCausalLM.from_config(LlamaConfig(**WIDE)).bfloat16(), None)
    assert find_compiled(fitting) is units


def test_what_would_be_written_beyond_memory_is_refused(units: Kernels) -> None:
    layers = LlamaLayers(AutoModelForCausalLM.from_config(LlamaConfig(**WIDE)).bfloat16(), None)
    made = CompiledLayers(units, layers)
    made.bind([empty_in_large_pages((2, 2, 2, 10, 32), torch.bfloat16) for _ in range(3)])
    rotations = layers.rotations(torch.zeros(3, dtype=torch.long))
    starts = torch.zeros(3, dtype=torch.long)
    with torch.no_grad(), pytest.raises(AssertionError):
        made.step(_bf16(3, 96), rotations, starts, 4)  # two rows of memory
    with torch.no_grad(), pytest.raises(AssertionError):
        made.step(_bf16(2, 96), layers.rotations(torch.zeros(2, dtype=torch.long)), starts[:2], 10)
    places = torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 10])
    with torch.no_grad(), pytest.raises(AssertionError):
        made.read(_bf16(3, 96), rotations, [Span(0, 3, 0, 0)], places, 1)


def test_memory_in_large_pages_is_zero() -> None:
    memory = empty_in_large_pages((3, 5), torch.bfloat16)
    assert (memory.shape, memory.dtype) == ((3, 5), torch.bfloat16)
    assert not memory.any()
    memory.fill_(1)


# ----------------------------------------------------------------------- sums over the vocabulary


@pytest.mark.parametrize("size", [1, 127, 128, 300])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sums_of_blocks_are_core_s(compiled: Kernels, size: int, temperature: float) -> None:
    logits = (torch.randn(9, size) * 6).to(compiled.dtype)
    logits[1, : size // 2] = -torch.inf
    logits[2] = logits[2, 0] - 1000
    logits[2, -1] += 1000
    found = compiled.sum_blocks(logits, temperature, with_entropy=True)
    wanted = sum_blocks(logits.double(), temperature, with_entropy=True)
    for ours, true in zip(found, wanted, strict=True):
        assert ours is not None
        assert true is not None
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-6)


def test_tokens_drawn_with_them_are_the_same(compiled: Kernels) -> None:
    logits = (torch.randn(200, 1000) * 4).to(compiled.dtype)
    logits[:, 128:256] = -torch.inf
    uniforms = torch.rand(200, dtype=torch.float64)
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "with_entropy": True}
    found = draw_tokens(logits, uniforms, **options, sum_blocks=compiled.sum_blocks)
    wanted = draw_tokens(logits, uniforms, **options)
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trouble", [torch.nan, torch.inf])
def test_a_row_that_diverged_is_named(compiled: Kernels, trouble: float) -> None:
    logits = torch.randn(4, 300).to(compiled.dtype)
    logits[2, 290] = trouble
    with pytest.raises(ValueError, match=r"rows \[2\] hold NaN"):
        draw_tokens(logits, torch.rand(4), temperature=1.0, top_k=0, top_p=1.0, sum_blocks=compiled.sum_blocks)
    logits[2] = -torch.inf
    with pytest.raises(ValueError, match=r"rows \[2\] hold NaN"):
        draw_tokens(logits, torch.rand(4), temperature=1.0, top_k=0, top_p=1.0, sum_blocks=compiled.sum_blocks)
