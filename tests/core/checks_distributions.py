"""Value checks of masks, sums, log-probabilities, sampling and KL; see checks.py."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.samples import NAN, close, flags, random_rows, row
from tests.reference import distributions, ppo

# -------------------------------------------------------------------------------- aggregate


def check_masked_sum(module: ModuleType) -> None:
    # (1 + 2) / 4; the 5, the NaN and the inf lie outside the mask.
    x = row(5.0, 1.0, 2.0, NAN, math.inf)
    close(module.masked_sum(x, flags(".xx.."), 4), 0.75)


def check_masked_moments(module: ModuleType) -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 14 / 3.
    mean, variance = module.masked_moments(row(NAN, 1.0, 2.0, 6.0, 50.0), flags(".xxx."))
    close(mean, 3.0)
    close(variance, 14 / 3)
    # Exactly zero in fp32 too, where the mean of three times -1000.1 is not -1000.1.
    _, variance = module.masked_moments(torch.full((1, 4), -1000.1), flags(".xxx"))
    assert variance == 0.0
    mask, (x,) = random_rows(11, 1)
    for actual, expected in zip(module.masked_moments(x, mask), ppo.moments(x.tolist(), mask.tolist()), strict=True):
        close(actual, expected)


# --------------------------------------------------------------------------------- masking


def check_masks(module: ModuleType) -> None:
    lengths = torch.tensor([0, 2, 3])
    close(module.lengths_to_mask(lengths, 3), [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    mask = module.completion_mask_from_lengths(torch.tensor([1, 2]), torch.tensor([2, 1]), 4)
    close(mask, [[0, 1, 1, 0], [0, 0, 1, 0]])
    close(module.last_true_index(mask), [2, 2])
    close(module.last_true_index(flags(".x.x..")), [3])


# -------------------------------------------------------------------------------- logprobs


def check_token_logprobs(module: ModuleType) -> None:
    generator = torch.Generator().manual_seed(3)
    mask, _ = random_rows(0, 0)
    hidden = torch.randn(4, 9, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(7, (4, 9), generator=generator)
    result = module.token_logprobs(
        hidden,
        ids,
        mask,
        lambda h: h @ weight.T,
        temperature=0.7,
        chunk_tokens=4,
        with_entropy=True,
    )
    logprobs, entropy = distributions.token_logprobs(hidden.tolist(), weight.tolist(), ids.tolist(), mask.tolist(), 0.7)
    close(result.logprobs, logprobs)
    close(result.entropy, entropy)


def check_token_logprobs_by_hand(module: ModuleType) -> None:
    # The states are the logits. Token 1 of the row is drawn from the state at 0, softmax of
    # (ln 3, 0) = (3/4, 1/4): token id 1 has ln(1/4); entropy -(3/4 ln 3/4 + 1/4 ln 1/4).
    hidden = torch.tensor([[[math.log(3), 0.0], [9.0, -9.0]]], dtype=torch.float64)
    ids = torch.tensor([[0, 1]])
    result = module.token_logprobs(hidden, ids, flags(".x"), lambda h: h, with_entropy=True)
    close(result.logprobs, [[0.0, math.log(0.25)]])
    close(result.entropy, [[0.0, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]])
    assert module.token_logprobs(hidden, ids, flags(".x"), lambda h: h).entropy is None


def check_logprob_gradient(module: ModuleType) -> None:
    # At temperature 1/2 softmax gives (9/10, 1/10) for (ln 3, 0) and (1/2, 1/2) for (0, 0). The gradient of a token's
    # log-probability is its one-hot row less the softmax, over the temperature: (-1.8, 1.8) and (1, -1).
    given = torch.tensor([7.0, 3.0, 1.0], dtype=torch.float64)
    ids = torch.tensor([[0, 1, 0]])
    for rows, learns in ((2, False), (2, True), (1, False), (1, True)):
        scale = torch.ones(2, dtype=torch.float64, requires_grad=learns)
        hidden = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0], [5.0, 5.0]]], dtype=torch.float64, requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CACHED_LOGITS", 2 * rows)  # gone over at a time
            read = module.token_logprobs(hidden, ids, flags(".xx"), lambda h, s=scale: h * s, temperature=0.5)
            (read.logprobs * given).sum().backward()
        close(read.logprobs, [[0.0, math.log(0.1), math.log(0.5)]])
        assert hidden.grad is not None
        close(hidden.grad, [[[-5.4, 5.4], [1.0, -1.0], [0.0, 0.0]]])
        assert (scale.grad is not None) == learns
        if scale.grad is not None:
            close(scale.grad, [-5.4 * math.log(3), 0.0])


def sampling_probs(module: ModuleType, probs: list[float], temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities the sampler would use for a row of probabilities, (1, V)."""
    logits = torch.tensor([probs], dtype=torch.float64).log()
    return module.sampling_logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p).exp()


def check_sampling_logprobs(module: ModuleType) -> None:
    probs = [0.2, 0.5, 0.3]
    close(sampling_probs(module, probs, 1.0, 0, 1.0), [probs])
    # T = 1/2 squares: .04, .25, .09 of .38.
    close(sampling_probs(module, probs, 0.5, 0, 1.0), [[0.04 / 0.38, 0.25 / 0.38, 0.09 / 0.38]])
    close(sampling_probs(module, probs, 1.0, 2, 1.0), [[0.0, 0.625, 0.375]])
    # .5 < .7 <= .5 + .3: two tokens reach it.
    close(sampling_probs(module, probs, 1.0, 0, 0.7), [[0.0, 0.625, 0.375]])
    # After top-k the first token holds .625 >= .6, so one is enough; without renormalizing, two.
    close(sampling_probs(module, probs, 1.0, 2, 0.6), [[0.0, 1.0, 0.0]])
    close(sampling_probs(module, probs, 1.0, 0, 1e-9), [[0.0, 1.0, 0.0]])
    # Equal logits: exactly k, the lowest ids.
    close(sampling_probs(module, [0.2, 0.4, 0.2, 0.2], 1.0, 2, 1.0), [[1 / 3, 2 / 3, 0.0, 0.0]])
    close(sampling_probs(module, [0.25] * 4, 1.0, 0, 0.4), [[0.5, 0.5, 0.0, 0.0]])
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for settings in [(0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.9, 6, 0.6), (1.0, 12, 0.99)]:
        temperature, top_k, top_p = settings
        actual = module.sampling_logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        expected = [distributions.sampling_probs(z, *settings) for z in logits.tolist()]
        close(actual.exp(), expected)


def check_inverse_cdf(module: ModuleType) -> None:
    # Masses 0, 1/4, 0, 3/4: below 1/4 token 1, from 1/4 on token 3.
    logprobs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64).log()
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    drawn = module.inverse_cdf_sample(logprobs.expand(5, -1), uniforms)
    close(drawn, [1, 1, 3, 3, 3])
    # One token with the smallest positive mass.
    edge = torch.tensor([[-math.inf, math.log(5e-324), -math.inf]], dtype=torch.float64)
    close(module.inverse_cdf_sample(edge, torch.tensor([0.9])), [1])
    # Masses need not add up to 1: scaling all of them changes nothing.
    close(module.inverse_cdf_sample(logprobs.expand(5, -1) - 3.0, uniforms), [1, 1, 3, 3, 3])
    close(module.inverse_cdf_sample(logprobs.expand(5, -1) + 3.0, uniforms), [1, 1, 3, 3, 3])
    # More tokens than a block: a mass of 1/4 each at 5, 200, 260 and 299.
    wide = torch.zeros(1, 300, dtype=torch.float64)
    wide[0, [5, 200, 260, 299]] = 0.25
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.6, 0.9], dtype=torch.float64)
    close(module.inverse_cdf_sample(wide.log().expand(6, -1), uniforms), [5, 5, 200, 200, 260, 299])


def check_draw_tokens(module: ModuleType) -> None:
    # Chances .2, .3 and .5 at temperature 2 come from twice their logarithms, here 5 higher.
    logits = 2 * torch.tensor([[0.2, 0.0, 0.3, 0.5]], dtype=torch.float64).log() + 5
    uniforms = torch.tensor([0.0, 0.199, 0.201, 0.499, 0.501, 0.9], dtype=torch.float64)
    options = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "with_entropy": True}
    broken = logits.repeat(6, 1)
    broken[4] = math.nan
    for rows in (6, 4, 1):  # gone over at a time
        parts = [slice(start, start + rows) for start in range(0, 6, rows)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "rows_in_cache", lambda _, parts=parts: parts)
            tokens, logprobs, entropies = module.draw_tokens(logits.expand(6, -1), uniforms, **options)
            with pytest.raises(ValueError, match=r"rows \[4\] hold NaN"):
                module.draw_tokens(broken, uniforms, **options)
        close(tokens, [0, 0, 2, 2, 3, 3])
        close(logprobs.exp(), [0.2, 0.2, 0.3, 0.3, 0.5, 0.5])
        close(entropies, [-sum(chance * math.log(chance) for chance in (0.2, 0.3, 0.5))] * 6)
    # Chances in blocks of 128: 1/8 at 5, none in the second, 1/2 at 256 and 3/8 at 299, the last.
    wide = torch.zeros(4, 300, dtype=torch.float64)
    wide[:, [5, 256, 299]] = torch.tensor([1 / 8, 1 / 2, 3 / 8], dtype=torch.float64)
    uniforms = torch.tensor([0.12, 0.13, 0.624, 0.626], dtype=torch.float64)
    options["temperature"] = 1.0
    for rows in (4, 1):
        parts = [slice(start, start + rows) for start in range(0, 4, rows)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "rows_in_cache", lambda _, parts=parts: parts)
            tokens, logprobs, entropies = module.draw_tokens(wide.log() - 2, uniforms, **options)
        close(tokens, [5, 256, 256, 299])
        close(logprobs.exp(), [1 / 8, 1 / 2, 1 / 2, 3 / 8])
        close(entropies, [-sum(chance * math.log(chance) for chance in (1 / 8, 1 / 2, 3 / 8))] * 4)
    # Whoever sums the blocks may round otherwise: what lies past all masses is the last token that has one.
    flat = torch.tensor([[0.5, 0.5, 0.0]]).log()

    def more(*arguments: Any, **options: Any) -> Any:
        found = module.sum_blocks(*arguments, **options)
        return found._replace(mass=found.mass * 1.01)

    edge = torch.tensor([0.9999])
    close(module.draw_tokens(flat, edge, temperature=1.0, top_k=0, top_p=1.0, sum_blocks=more).tokens, [1])
    uniforms = torch.tensor([0.0, 0.199, 0.201, 0.499, 0.501, 0.9], dtype=torch.float64)
    options["temperature"] = 2.0
    # The two likeliest, by number or by mass: .3 and .5 become 3/8 and 5/8.
    for truncated in ({"top_k": 2}, {"top_p": 0.6}):
        tokens, logprobs, entropies = module.draw_tokens(logits.expand(6, -1), uniforms, **{**options, **truncated})
        close(tokens, [2, 2, 2, 3, 3, 3])
        close(logprobs.exp(), [0.375, 0.375, 0.375, 0.625, 0.625, 0.625])
        close(entropies, [-0.375 * math.log(0.375) - 0.625 * math.log(0.625)] * 6)


# -------------------------------------------------------------------------------------- kl


def check_kl_estimators(module: ModuleType) -> None:
    # policy 1/2, reference 1/4: delta = ln 2; k3 = 1/2 - 1 + ln 2.
    policy, ref = row(math.log(0.5)), row(math.log(0.25))
    close(module.kl_k1(policy, ref), [[math.log(2)]])
    close(module.kl_k2(policy, ref), [[0.5 * math.log(2) ** 2]])
    close(module.kl_k3(policy, ref), [[math.log(2) - 0.5]])
    _, (policy, ref) = random_rows(7, 2)
    policy, ref = policy / 2, ref / 2  # below k3's bound
    for name in ("k1", "k2", "k3"):
        reference: Callable[[float, float], float] = getattr(ppo, name)
        expected = [
            [reference(p, q) for p, q in zip(row_p, row_q, strict=True)]
            for row_p, row_q in zip(policy.tolist(), ref.tolist(), strict=True)
        ]
        close(getattr(module, f"kl_{name}")(policy, ref), expected)
    # Bounds: k3(5) = e^-5 - 1 + 5 is below 10, k3(-5) = e^5 - 6 above; e^1000 would overflow.
    close(module.kl_k3(row(5.0, -5.0), row(0.0, 0.0)), [[math.exp(-5) + 4, 10.0]])
    log_ratio = row(-1000.0).requires_grad_()
    module.kl_k3(log_ratio, row(0.0)).sum().backward()
    assert log_ratio.grad is not None
    close(log_ratio.grad, [[0.0]])


def check_full_kl(module: ModuleType) -> None:
    # (1/2, 1/2) against (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3); a constant added to logits is nothing.
    policy, ref = row(0.5, 0.5).log(), row(0.25, 0.75).log() + 7.0
    close(module.full_kl(policy, ref), [0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    # A token of probability zero adds nothing: (1, 0) against (1/4, 3/4) = ln 4.
    close(module.full_kl(row(1.0, 0.0).log(), ref), [math.log(4)])
    _, (policy, ref) = random_rows(8, 2)
    expected = [
        distributions.kl(distributions.softmax(p), distributions.softmax(q))
        for p, q in zip(policy.tolist(), ref.tolist(), strict=True)
    ]
    close(module.full_kl(policy, ref), expected)


def check_approx_kl(module: ModuleType) -> None:
    # Half of (.2^2 + .4^2) / 4 = .025.
    policy, old = row(NAN, -1.0, -2.0), row(0.0, -1.2, -1.6)
    close(module.approx_kl(policy, old, flags(".xx"), 4), 0.025)


def check_adaptive_kl_coef(module: ModuleType) -> None:
    def after(observed: float, lower: float = 0.001, upper: float = 10.0) -> float:
        return module.adaptive_kl_coef(
            0.15, observed, target=6.0, horizon=10_000, num_episodes=512, lower=lower, upper=upper
        )

    close(after(6.0), 0.15)
    close(after(6.6), 0.15 * (1 + 0.1 * 0.0512))  # error 0.1
    close(after(9.0), 0.15 * (1 + 0.2 * 0.0512))  # error 0.5, clipped
    close(after(0.0), 0.15 * (1 - 0.2 * 0.0512))  # error -1, clipped
    close(after(9.0, upper=0.15), 0.15)
    close(after(0.0, lower=0.15), 0.15)
