"""Chunked log-probabilities and the two halves of the sampler."""

import math
import weakref

import pytest
import torch
from scipy import stats
from torch import Tensor

from harken.core.drawing import inverse_cdf_sample, sampling_logprobs
from harken.core.logprobs import preceding_states, token_logprobs
from harken.core.masking import completion_mask_from_lengths

MASK = completion_mask_from_lengths(torch.tensor([2, 1, 3]), torch.tensor([4, 6, 1]), 8)


def model(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (3, 8, 5), output weight (11, 5) and token ids (3, 8)."""
    generator = torch.Generator().manual_seed(21)
    hidden = torch.randn(3, 8, 5, generator=generator, dtype=dtype)
    weight = torch.randn(11, 5, generator=generator, dtype=dtype)
    return hidden, weight, torch.randint(11, (3, 8), generator=generator)


def plain(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same with whole (B, S, V) logits."""
    log_probs = (hidden[:, :-1] @ weight.T / temperature).log_softmax(dim=-1)
    chosen = log_probs.gather(2, ids[:, 1:, None]).squeeze(2)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    columns = torch.zeros(3, 1, dtype=hidden.dtype)
    return torch.cat([columns, chosen], 1) * MASK, torch.cat([columns, entropy], 1) * MASK


@pytest.mark.parametrize("chunk_tokens", [1, 3, 1000])
def test_chunks_change_neither_values_nor_gradients(chunk_tokens: int) -> None:
    hidden, weight, ids = model()
    coefficients = torch.linspace(-1, 2, MASK.numel(), dtype=torch.float64).view(MASK.shape)
    gradients: list[tuple[Tensor, ...]] = []
    values: list[tuple[Tensor, Tensor]] = []
    for is_chunked in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if is_chunked:
            result = token_logprobs(
                h,
                ids,
                MASK,
                lambda states, w=w: states @ w.T,
                temperature=0.6,
                chunk_tokens=chunk_tokens,
                with_entropy=True,
            )
            assert result.entropy is not None
            logprobs, entropy = result.logprobs, result.entropy
        else:
            logprobs, entropy = plain(h, w, ids, 0.6)
        values.append((logprobs.detach(), entropy.detach()))
        loss = (logprobs * coefficients + entropy * coefficients.flip(1)).sum()
        gradients.append(torch.autograd.grad(loss, (h, w)))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("chunk_tokens", [1, 3, 1000])
@pytest.mark.parametrize(("with_grad", "learns"), [(False, False), (True, False), (True, True)])
def test_no_more_logits_than_a_chunk_exist_forward_and_backward(
    chunk_tokens: int, with_grad: bool, learns: bool
) -> None:
    hidden, weight, ids = model()
    rows: list[int] = []

    def logits_fn(states: Tensor) -> Tensor:
        rows.append(len(states))
        return states @ weight.T

    with torch.set_grad_enabled(with_grad):
        hidden.requires_grad_(with_grad)
        weight.requires_grad_(learns)
        result = token_logprobs(hidden, ids, MASK, logits_fn, chunk_tokens=chunk_tokens)
    num_tokens = 11
    num_chunks = math.ceil(num_tokens / chunk_tokens)
    assert sum(count > 0 for count in rows) == num_chunks
    assert sum(rows) == num_tokens
    if with_grad:
        result.logprobs.sum().backward()
        # Where the output layer learns, each chunk is computed again in the backward pass: nothing of it was kept.
        assert sum(rows) == num_tokens * (2 if learns else 1)
    assert max(rows) <= chunk_tokens


@pytest.mark.parametrize("chunk_tokens", [1, 3, 1000])
def test_an_output_layer_that_does_not_learn_gives_the_same_gradients(chunk_tokens: int) -> None:
    hidden, weight, ids = model()
    coefficients = torch.linspace(-1, 2, MASK.numel(), dtype=torch.float64).view(MASK.shape)
    gradients: list[Tensor] = []
    for is_chunked in (True, False):
        h = hidden.clone().requires_grad_()
        logprobs = plain(h, weight, ids, 0.6)[0]
        if is_chunked:
            logprobs = token_logprobs(
                h, ids, MASK, lambda states: states @ weight.T, temperature=0.6, chunk_tokens=chunk_tokens
            ).logprobs
        # Not linear, so that the loss's gradient is known only after the log-probabilities.
        gradients += torch.autograd.grad((logprobs.exp() * coefficients).sum().square(), h)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("learns", [False, True])
def test_no_logits_are_kept_for_the_backward_pass(learns: bool) -> None:
    hidden, weight, ids = model()
    saved: list[weakref.ref[Tensor]] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(weakref.ref(x))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        states, learned = hidden.requires_grad_(), weight.requires_grad_(learns)
        result = token_logprobs(states, ids, MASK, lambda h: h @ learned.T, chunk_tokens=1000)
    kept = [x.numel() for reference in saved if (x := reference()) is not None]
    assert kept
    assert max(kept) < 11 * 11  # 11 tokens, vocabulary 11
    assert result.logprobs.requires_grad


def test_padding_columns_rows_and_row_order_change_no_logprob() -> None:
    hidden, weight, ids = model()

    def compute(h: Tensor, i: Tensor, m: Tensor) -> Tensor:
        return token_logprobs(h, i, m, lambda s: s @ weight.T, chunk_tokens=4).logprobs

    base = compute(hidden, ids, MASK)
    wide = compute(
        torch.cat([hidden, torch.full((3, 2, 5), math.nan, dtype=torch.float64)], dim=1),
        torch.nn.functional.pad(ids, (0, 2)),
        torch.nn.functional.pad(MASK, (0, 2)),
    )
    torch.testing.assert_close(wide[:, :8], base)
    assert not wide[:, 8:].any()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(compute(hidden[order], ids[order], MASK[order]), base[order])
    no_tokens = torch.zeros_like(MASK[:1])
    tall = compute(torch.cat([hidden, hidden[:1]]), torch.cat([ids, ids[:1]]), torch.cat([MASK, no_tokens]))
    torch.testing.assert_close(tall[:3], base)
    assert not tall[3].any()


def test_batch_without_completion_tokens_still_has_a_gradient() -> None:
    hidden, weight, ids = model()
    hidden.requires_grad_()
    weight.requires_grad_()
    result = token_logprobs(hidden, ids, torch.zeros_like(MASK), lambda h: h @ weight.T)
    result.logprobs.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_bf16_states_give_fp32_logprobs() -> None:
    hidden, weight, ids = model(torch.bfloat16)
    result = token_logprobs(hidden, ids, MASK, lambda h: h @ weight.T, with_entropy=True)
    assert result.logprobs.dtype == torch.float32
    assert result.entropy is not None
    assert result.entropy.dtype == torch.float32
    logits = (hidden[:, :-1] @ weight.T).float()[MASK[:, 1:]]
    expected = -torch.nn.functional.cross_entropy(logits, ids[MASK], reduction="none")
    torch.testing.assert_close(result.logprobs[MASK], expected)


def test_forbidden_token_leaves_entropy_and_its_gradient_finite() -> None:
    # Logits 0, 0, -inf: two equal tokens, entropy ln 2, at its maximum: gradient zero.
    states = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False, True]])
    bias = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)
    result = token_logprobs(states, torch.zeros(1, 2, dtype=torch.long), mask, lambda h: h + bias, with_entropy=True)
    assert result.entropy is not None
    torch.testing.assert_close(result.entropy[0, 1].item(), math.log(2))
    result.entropy.sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad, torch.zeros_like(states))


def test_preceding_states_is_the_shift_by_one() -> None:
    hidden = torch.arange(6.0).view(2, 3, 1)
    mask = torch.tensor([[False, True, False], [False, True, True]])
    # Row 0 index 1 -> state 0; row 1 indices 1, 2 -> states 3, 4.
    torch.testing.assert_close(preceding_states(hidden, mask), torch.tensor([[0.0], [3.0], [4.0]]))


def test_wrong_arguments_are_refused() -> None:
    hidden, weight, ids = model()
    for settings in ({"temperature": 0.0}, {"temperature": -1.0}, {"chunk_tokens": 0}):
        with pytest.raises(ValueError, match="expected"):
            token_logprobs(hidden, ids, MASK, lambda h: h @ weight.T, **settings)  # pyright: ignore[reportArgumentType]
    at_zero = MASK.clone()
    at_zero[0, 0] = True
    with pytest.raises(ValueError, match="index 0"):
        preceding_states(hidden, at_zero)
    with pytest.raises(ValueError, match="differ"):
        preceding_states(hidden, MASK[:, 1:])
    logits = torch.zeros(1, 3)
    for temperature, top_k, top_p in [(0.0, 0, 1.0), (1.0, -1, 1.0), (1.0, 0, 0.0), (1.0, 0, 1.1)]:
        with pytest.raises(ValueError, match="expected"):
            sampling_logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    for uniform in (-0.1, 1.0):
        with pytest.raises(ValueError, match="uniforms"):
            inverse_cdf_sample(logits, torch.tensor([uniform]))
    with pytest.raises(ValueError, match="uniforms"):
        inverse_cdf_sample(logits, torch.zeros(2))
    for bad in (math.nan, -math.inf, math.inf):
        rows = torch.tensor([[0.0, 0.0], [bad, bad]])
        with pytest.raises(ValueError, match=r"rows \[1\]"):
            inverse_cdf_sample(rows, torch.zeros(2))


def test_sampling_without_limits_is_the_scored_distribution() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(22))
    expected = (logits / 0.7).log_softmax(dim=-1)
    actual = sampling_logprobs(logits, temperature=0.7, top_k=0, top_p=1.0)
    assert torch.equal(actual, expected)
    assert torch.equal(sampling_logprobs(logits, temperature=0.7, top_k=50, top_p=1.0), expected)


def test_top_k_keeps_exactly_k_tokens_whatever_the_ties() -> None:
    generator = torch.Generator().manual_seed(23)
    logits = torch.randint(3, (40, 12), generator=generator).float()
    for top_k in (1, 4, 11):
        kept = sampling_logprobs(logits, temperature=1.0, top_k=top_k, top_p=1.0) > -math.inf
        assert (kept.sum(dim=-1) == top_k).all()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (6, 0.7)])
def test_drawn_tokens_follow_the_sampling_distribution(top_k: int, top_p: float) -> None:
    # Chi-square against the exact probabilities; false alarm below 1e-7 per case.
    generator = torch.Generator().manual_seed(24)
    logits = torch.randn(1, 10, generator=generator)
    logprobs = sampling_logprobs(logits, temperature=0.9, top_k=top_k, top_p=top_p)
    num_draws = 20_000
    uniforms = torch.rand(num_draws, generator=generator)
    counts = inverse_cdf_sample(logprobs.expand(num_draws, -1), uniforms).bincount(minlength=10)
    probs = logprobs[0].double().exp()
    kept = probs > 0
    assert not counts[~kept].any()
    expected = probs[kept] / probs[kept].sum() * num_draws
    assert expected.min() > 5
    result = stats.chisquare(counts[kept].numpy(), expected.numpy())
    assert float(result.pvalue) > 1e-7


def test_largest_fp32_uniform_draws_a_token_with_mass() -> None:
    generator = torch.Generator().manual_seed(25)
    logits = torch.randn(20, 5000, generator=generator)
    logprobs = sampling_logprobs(logits, temperature=1.0, top_k=40, top_p=1.0)
    uniforms = torch.full((20,), 1 - 2**-24)
    drawn = inverse_cdf_sample(logprobs, uniforms)
    assert logprobs.gather(1, drawn[:, None]).isfinite().all()
    assert inverse_cdf_sample(logprobs, torch.zeros(20)).equal((logprobs > -math.inf).int().argmax(dim=-1))


def test_draws_do_not_depend_on_the_rest_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(26)
    logprobs = torch.randn(8, 30, generator=generator).log_softmax(dim=-1)
    uniforms = torch.rand(8, generator=generator)
    together = inverse_cdf_sample(logprobs, uniforms)
    alone = [inverse_cdf_sample(logprobs[b : b + 1], uniforms[b : b + 1]) for b in range(8)]
    assert together.equal(torch.cat(alone))
