"""The compiled kernels equal plain formulas in fp64, forward and backward, and nothing depends on their being there."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from transformers.activations import SiLUActivation

from harken.config import FullConfig
from harken.lm import elementwise, kernels
from harken.lm.attention import span_attention
from harken.lm.batch import Span, pad
from harken.lm.decode_llama import LlamaDecoder
from harken.lm.elementwise import gated, normed, rotated
from harken.lm.forward import completion_logprobs
from harken.lm.kernels import Kernels
from tests.lm.archs import make_trunk, random_tokens

CLOSE = {
    torch.float32: (3e-6, 3e-6),
    # Of a result one unit in the last place, bf16 has 8 digits; beside zero what a sum of rounded parts loses.
    torch.bfloat16: (2**-7, 2**-9),
}
"""Tolerances, relative and absolute."""
WIDE_HEADS: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Whether there are kernels is asked anew, in the test and after it."""
    kernels.load.cache_clear()
    yield
    kernels.load.cache_clear()


def _random(compiled: Kernels, *shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(compiled.dtype)


def _close(compiled: Kernels, times: int = 1) -> dict[str, Any]:
    rtol, atol = CLOSE[compiled.dtype]
    return {"rtol": rtol * times, "atol": atol * times}


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn all heads but the last."""
    first, second = x.chunk(2, dim=-1)
    whole = x * cos + torch.cat([second, first], dim=-1) * sin
    return torch.cat([whole[:, :-1], x[:, -1:]], dim=1)


Case = tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]
CASES: dict[str, Case] = {
    "norm": (lambda x, weight: normed(x, (weight, 1e-5)), _norm, [(5, 48), (48,)]),
    "norm of heads": (lambda x, weight: normed(x, (weight, 1e-5)), _norm, [(5, 3, 32), (32,)]),
    "gate": (lambda x: gated(SiLUActivation(), x), _swiglu, [(5, 96)]),
    "rotation": (lambda x, cos, sin: rotated(x, (cos, sin), 3), _turned, [(5, 4, 64), (5, 1, 64), (5, 1, 64)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes_are_those_of_plain_formulas(
    compiled: Kernels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, plain, shapes = CASES[name]
    given = [_random(compiled, *shape) for shape in shapes]
    if name == "rotation":
        angles = torch.rand(5, 1, 32) * 6
        cos, sin = angles.cos(), angles.sin()
        given[1:] = [torch.cat(halves, dim=-1).to(compiled.dtype) for halves in ((cos, cos), (-sin, sin))]
    upstream = _random(compiled, *shapes[0]) if name != "gate" else _random(compiled, 5, 48)
    # Cosine and sine are no parameters.
    learns = given[: 1 if name == "rotation" else None]
    for part in learns:
        part.requires_grad_()
    exact = [part.detach().double().requires_grad_(part.requires_grad) for part in given]
    used: list[int] = []

    def counted(*arguments: Any) -> Kernels | None:
        used.append(1)
        return kernels.find(*arguments)

    monkeypatch.setattr(elementwise, "find", counted)
    found, wanted = ours(*given), plain(*exact)
    found.backward(upstream)
    wanted.backward(upstream.double())
    assert used
    torch.testing.assert_close(found.double(), wanted, **_close(compiled))
    for part, true in zip(learns, exact, strict=False):
        assert part.grad is not None
        assert true.grad is not None
        # Five rows are added up in a weight's slope, each of the size of one.
        torch.testing.assert_close(part.grad.double(), true.grad, **_close(compiled, 2))


@pytest.mark.parametrize("name", CASES)
def test_without_a_backward_pass_it_is_the_same(compiled: Kernels, name: str) -> None:
    ours, _, shapes = CASES[name]
    given = [_random(compiled, *shape) for shape in shapes]
    with torch.no_grad():
        found = ours(*given)
    assert torch.equal(found, ours(*[part.requires_grad_() for part in given]))


def test_gates_that_fill_no_vectors_stay_with_torch(compiled: Kernels) -> None:
    # 2 x 24 numbers are whole vectors, 24 are not.
    gate_up = _random(compiled, 3, 48)
    with pytest.raises(AssertionError):
        compiled.swiglu(gate_up)
    exact = _swiglu(gate_up.double())
    torch.testing.assert_close(gated(SiLUActivation(), gate_up).double(), exact, **_close(compiled, 2))


def test_gates_far_from_zero(compiled: Kernels) -> None:
    gate = torch.tensor([-1e4, -100, -88, -30, -1e-3, 0, 1e-3, 30, 88, 100, 1e4, torch.inf, torch.nan, 1, 2, 3])
    gate_up = torch.cat([gate, torch.ones(16)]).to(compiled.dtype)[None]
    wanted = functional.silu(gate_up[:, :16].double())
    rtol = CLOSE[compiled.dtype][0]
    torch.testing.assert_close(compiled.swiglu(gate_up).double(), wanted, equal_nan=True, rtol=rtol, atol=1e-30)
    slopes = compiled.swiglu_backward(torch.ones(1, 16, dtype=compiled.dtype), gate_up)
    finite = gate.isfinite()
    assert slopes[:, :16][:, finite].isfinite().all()
    assert slopes[:, 12].isnan()


@pytest.mark.parametrize("width", [32, 64, 128, 160])
@pytest.mark.parametrize("here", [0, 15, 16, 69])
def test_a_step_reads_its_own_positions_and_no_others(compiled: Kernels, width: int, here: int) -> None:
    rows, heads, key_heads, room = 5, 6, 2, 70
    queries, new_keys, new_values = _random(compiled, rows, heads + 2 * key_heads, width).split(
        [heads, key_heads, key_heads], dim=1
    )
    starts = torch.randint(0, here + 1, (rows,))
    memory = torch.full((2, rows + 1, key_heads, room, width), torch.nan).to(compiled.dtype)
    for row, start in enumerate(starts):
        for part in memory:
            part[row, :, start:here] = _random(compiled, key_heads, here - int(start), width)
    found = compiled.attend_step((queries, new_keys, new_values), memory, starts, here, 0.3)
    for row, start in enumerate(starts):
        keys, values = (part[row, :, start : here + 1].double() for part in memory)
        assert torch.equal(keys[:, -1], new_keys[row].double())
        assert torch.equal(values[:, -1], new_values[row].double())
        scores = 0.3 * queries[row].double().view(key_heads, 3, width) @ keys.transpose(1, 2)
        wanted = (scores.softmax(-1) @ values).flatten()
        torch.testing.assert_close(found[row].double(), wanted, **_close(compiled))
    assert memory[0][:rows, :, here + 1 :].isnan().all(), "nothing is written beyond the position"
    assert memory[1][rows].isnan().all(), "rows that left are not written"


def test_one_score_far_above_the_others_takes_all(compiled: Kernels) -> None:
    memory = torch.zeros(2, 1, 1, 20, 32).to(compiled.dtype)
    memory[0, :, :, 7] = 100
    memory[1] = torch.arange(20).view(1, 1, 20, 1)
    new = torch.cat([torch.full((1, 1, 32), 10.0), torch.zeros(1, 1, 32), torch.full((1, 1, 32), 19.0)], dim=1)
    query, key, value = new.to(compiled.dtype).split([1, 1, 1], dim=1)
    found = compiled.attend_step((query, key, value), memory, torch.zeros(1, dtype=torch.long), 19, 1.0)
    assert torch.equal(found, torch.full((1, 32), 7).to(compiled.dtype))


PLAIN = [Span(0, 5, 0, 0), Span(5, 22, 5, 5), Span(22, 23, 22, 22), Span(23, 56, 23, 23)]
SHARED = [Span(0, 20, 0, 0), Span(20, 27, 0, 20), Span(27, 36, 0, 20), Span(36, 70, 0, 20), Span(70, 72, 70, 70)]
LONG = [Span(0, 150, 0, 0)]


@pytest.mark.parametrize("width", [32, 64, 96])
@pytest.mark.parametrize("spans", [PLAIN, SHARED, LONG], ids=["rows", "shared prompts", "long"])
def test_tokens_read_what_their_span_may(compiled: Kernels, spans: list[Span], width: int) -> None:
    tokens = spans[-1].end
    heads = _random(compiled, tokens, 10, width).requires_grad_()
    upstream = _random(compiled, tokens, 6 * width)
    found = span_attention(heads, 2, torch.tensor(spans), 0.3)
    found.backward(upstream)
    exact = heads.detach().double().requires_grad_()
    queries, keys, values = exact.split([6, 2, 2], dim=1)
    allowed = torch.zeros(tokens, tokens, dtype=torch.bool)
    for start, end, shared_start, shared_end in spans:
        allowed[start:end, start:end] = torch.ones(end - start, end - start).tril() > 0
        allowed[start:end, shared_start:shared_end] = True
    q, k, v = (part.transpose(0, 1)[None] for part in (queries, keys, values))
    read = scaled_dot_product_attention(q, k, v, allowed, scale=0.3, enable_gqa=True)
    wanted = read[0].transpose(0, 1).flatten(1)
    wanted.backward(upstream.double())
    # Scores are as large as 20, and their error is one of weights.
    torch.testing.assert_close(found.double(), wanted, **_close(compiled, 4))
    assert heads.grad is not None
    assert exact.grad is not None
    # A key's slope is the sum of what up to 150 x 3 queries want.
    torch.testing.assert_close(heads.grad.double(), exact.grad, **_close(compiled, 8))


def test_a_state_that_is_no_number_stays_in_its_span(compiled: Kernels) -> None:
    heads = _random(compiled, 56, 10, 32)
    heads[10] = torch.nan
    found = span_attention(heads, 2, torch.tensor(PLAIN), 0.3)
    assert found[10:22].isnan().all()
    assert not torch.cat([found[:5], found[22:]]).isnan().any()


def test_bits_of_a_row_depend_on_no_other_row_and_no_number_of_threads(compiled: Kernels) -> None:
    x, weight, gate_up = _random(compiled, 40, 48), _random(compiled, 48), _random(compiled, 40, 96)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = compiled.rms_norm(x, weight, 1e-5), compiled.swiglu(gate_up)
    finally:
        torch.set_num_threads(threads)
    parts = compiled.rms_norm(x[7:9], weight, 1e-5), compiled.swiglu(gate_up[7:9])
    for one, part in zip(whole, parts, strict=True):
        assert torch.equal(one[7:9], part)


def _small(name: str) -> Any:
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[name](**WIDE_HEADS)
    return AutoModelForCausalLM.from_config(config).eval()


def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> None:
        del arguments

    monkeypatch.setattr(kernels, "load", none)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_model_learns_and_decodes_as_without_them(
    compiled: Kernels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _small(name).to(compiled.dtype)
    items = random_tokens(3, [(3, 6), (7, 2), (1, 11), (4, 4)])

    def everything() -> list[Tensor]:
        trunk = make_trunk()
        trunk.model = model
        trunk.add_role("policy", FullConfig(), seed=0)
        read = completion_logprobs(trunk, "policy", pad(items)).logprobs
        read.sum().backward()
        slopes = [value.grad for value in trunk.parameters("policy").values() if value.grad is not None]
        with torch.no_grad():
            decoder = LlamaDecoder(model, None)
            states = [decoder.prefill([item.prompt for item in items], n=2, new_tokens=3)]
            states.append(decoder.step(torch.arange(8)))
            decoder.keep([0, 7, 2])
            states.append(decoder.step(torch.arange(3)))
        return [read.detach(), *states, *slopes]

    with_kernels = everything()
    _without(monkeypatch)
    for ours, theirs in zip(with_kernels, everything(), strict=True):
        size = theirs.abs().max().item()
        # Both round after each operation of two layers, bf16 to 8 digits.
        limit = size * (1e-5 if compiled.dtype == torch.float32 else 0.06)  # tolerance: bf16, two layers
        assert (ours - theirs).abs().max() <= limit


@pytest.mark.usefixtures("forgotten")
def test_they_are_kept_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Kernels) -> None:
    monkeypatch.setenv("HARKEN_CACHE", str(tmp_path))
    kernels.load.cache_clear()
    assert kernels.load(compiled.dtype) is not None
    (made,) = (tmp_path / "kernels").iterdir()
    assert made.suffix == ".so"
    before = made.stat().st_mtime_ns
    kernels.load.cache_clear()
    assert kernels.load(compiled.dtype) is not None
    assert made.stat().st_mtime_ns == before


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    "trouble", ["turned off", "no compiler", "broken compiler", "no folder", "a folder of everybody"]
)
def test_without_them_torch_computes(trouble: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARKEN_CACHE", str(tmp_path))
    match trouble:
        case "turned off":
            monkeypatch.setenv("HARKEN_KERNELS", "0")
        case "no compiler":
            monkeypatch.setenv("CC", "no-such-compiler")
        case "broken compiler":
            broken = tmp_path / "cc"
            broken.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
            broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
            monkeypatch.setenv("CC", str(broken))
        case "a folder of everybody":
            (tmp_path / "kernels").mkdir()
            (tmp_path / "kernels").chmod(0o777)
        case _:
            (tmp_path / "kernels").write_text("not a folder", encoding="utf-8")
    assert kernels.load(torch.float32) is None
    x = torch.randn(3, 32)
    torch.testing.assert_close(normed(x, (torch.ones(32), 1e-5)), _norm(x, torch.ones(32)))


@pytest.mark.parametrize(
    ("dtype", "device", "size"),
    [(torch.float32, "cpu", 24), (torch.float64, "cpu", 32), (torch.float16, "cpu", 32), (torch.float32, "meta", 32)],
)
def test_what_they_do_not_know_stays_with_torch(dtype: torch.dtype, device: str, size: int) -> None:
    assert kernels.find(dtype, torch.device(device), size) is None


def test_a_tensor_of_another_type_is_refused(compiled: Kernels) -> None:
    with pytest.raises(AssertionError):
        compiled.swiglu(torch.ones(1, 32, dtype=torch.float64))


def test_a_strict_compiler_has_nothing_to_say(compiled: Kernels, tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC") or "cc")
    assert compiler is not None
    # -O1 sees as many mistakes as -O3, in a sixth of the time.
    options = [*kernels.FLAGS, "-O1", "-Wall", "-Wextra", "-Werror", *kernels.DEFINES[compiled.dtype]]
    sources = [str(path) for path in kernels.SOURCES.glob("*.c")]
    command = [compiler, *options, *sources, "-o", str(tmp_path / "out.so"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
