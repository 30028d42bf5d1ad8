"""Value checks of the losses on preferences; see checks.py."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.core.samples import close
from tests.reference import preference

Numbers = dict[str, Tensor]

# Chosen, rejected, reference chosen, reference rejected, tokens of each, label, weight. Log-ratios: (ln 9, 0), (2, 2),
# (-2, 0); per token of 2 and 4: (ln 3, 0), (1, .5), (-1, 0).
PAIRS = [
    (math.log(9) - 7.0, -4.0, -7.0, -4.0, 2.0, 4.0, 0.9, 1.0),
    (-3.0, -8.0, -5.0, -10.0, 2.0, 4.0, 1.0, 2.0),
    (-6.0, -1.0, -4.0, -1.0, 2.0, 4.0, 1.0, 1.0),
]


def _certain(pairs: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The pairs with label and weight 1."""
    return [(*pair[:6], 1.0, 1.0) for pair in pairs]


def _run(module: ModuleType, loss: str, pairs: list[tuple[float, ...]], **settings: Any) -> Numbers:
    fields = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    result = getattr(module, loss)(module.Pairs(*fields), denominator=float(fields[-1].sum()), **settings)
    return {"loss": result.loss, **result.metrics}


def _softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def check_dpo(module: ModuleType) -> None:
    # beta 1/2. Pair 1: rewards (ln 9 - 0) / 2 = ln 3 and (-4 - -4) / 2 = 0, sigmoid(ln 3) = 3/4, label .9.
    # Pair 2: rewards 1 and 1, weight 2: 2 ln 2. Pair 3: rewards -1 and 0: log(1 + e).
    first = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    result = _run(module, "dpo_loss", PAIRS, beta=0.5)
    close(result["loss"], (first + 2 * math.log(2) + math.log(1 + math.e)) / 4)
    close(result["accuracy"], (1 + 2 * 0.5 + 0) / 4)
    close(result["reward_margin"], (math.log(3) + 0 - 1) / 4)
    close(result["chosen_reward"], (math.log(3) + 2 - 1) / 4)
    close(result["rejected_reward"], (0 + 2 + 0) / 4)
    close(result["chosen_logprob"], (math.log(9) - 7 + 2 * -3 - 6) / 4)
    close(result["rejected_logprob"], (-4 + 2 * -8 - 1) / 4)


def check_dpo_variants(module: ModuleType) -> None:
    # Per token, beta 2: leads 2 ln 3, 1, -2: -log sigmoid is ln 10/9, log(1 + 1/e), log(1 + e^2).
    pairs = _certain(PAIRS)
    result = _run(module, "dpo_loss", pairs, beta=2.0, length_normalized=True)
    expected = (math.log(10 / 9) + _softplus(-1) + _softplus(2)) / 3
    close(result["loss"], expected)
    close(result["reward_margin"], (2 * math.log(3) + 1 - 2) / 3)
    # NLL per token of the chosen sides: (7 - ln 9) / 2, 3 / 2, 6 / 2.
    result = _run(module, "dpo_loss", pairs, beta=2.0, length_normalized=True, nll_coef=0.5)
    close(result["loss"], expected + 0.5 * ((7 - math.log(9)) / 2 + 1.5 + 3) / 3)
    # Without a reference, beta 1: leads ln 9 - 3, 5, -5.
    fields = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    free = module.dpo_loss(module.Pairs(*fields).without_reference(), beta=1.0, denominator=3.0)
    close(free.loss, (_softplus(3 - math.log(9)) + _softplus(-5) + _softplus(5)) / 3)


def check_labels(module: ModuleType) -> None:
    labels = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    # .9 * p + .1 * (1 - p); (p - .1) / .8.
    close(module.conservative_labels(labels, 0.1), [0.1, 0.5, 0.9])
    close(module.robust_labels(labels, 0.1), [-0.125, 0.5, 1.125])


def check_ipo(module: ModuleType) -> None:
    # beta 1/4: target 2. Leads ln 9, 0, -2; label .9 of the first: .9 (ln 9 - 2)^2 + .1 (ln 9 + 2)^2.
    lead = math.log(9)
    result = _run(module, "ipo_loss", PAIRS, beta=0.25)
    close(result["loss"], (0.9 * (lead - 2) ** 2 + 0.1 * (lead + 2) ** 2 + 2 * 4 + 16) / 4)
    close(result["reward_margin"], 0.25 * (lead + 0 - 2) / 4)
    # Per token the leads are ln 3, .5, -1.
    result = _run(module, "ipo_loss", _certain(PAIRS), beta=0.25, length_normalized=True)
    close(result["loss"], ((math.log(3) - 2) ** 2 + 1.5**2 + 9) / 3)
    close(result["chosen_reward"], 0.25 * (math.log(3) + 1 - 1) / 3)


def check_hinge(module: ModuleType) -> None:
    # beta 1/2: leads ln 3, 0, -1: costs 0 (label .9: .1 (1 + ln 3)), 1, 2.
    result = _run(module, "hinge_loss", PAIRS, beta=0.5)
    close(result["loss"], (0.1 * (1 + math.log(3)) + 2 * 1 + 2) / 4)
    close(result["reward_margin"], (math.log(3) + 0 - 1) / 4)
    result = _run(module, "hinge_loss", _certain(PAIRS), beta=0.5, nll_coef=2.0)
    close(result["loss"], (0 + 1 + 2 + 2 * ((7 - math.log(9)) / 2 + 1.5 + 3)) / 3)


def check_cpo(module: ModuleType) -> None:
    # beta 1: leads ln 9 - 3, 5, -5; the likelihood has weight 1 unless told otherwise.
    preference_term = (_softplus(3 - math.log(9)) + _softplus(-5) + _softplus(5)) / 3
    nll = ((7 - math.log(9)) / 2 + 1.5 + 3) / 3
    close(_run(module, "cpo_loss", _certain(PAIRS), beta=1.0)["loss"], preference_term + nll)
    result = _run(module, "cpo_loss", _certain(PAIRS), beta=1.0, nll_coef=0.25)
    close(result["loss"], preference_term + 0.25 * nll)
    close(result["chosen_reward"], (math.log(9) - 7 - 3 - 6) / 3)


def check_simpo(module: ModuleType) -> None:
    # Per token: (ln 9 - 7) / 2 and -1, -1.5 and -2, -3 and -1/4; beta 2, margin 1.
    leads = [math.log(9) - 5, 1.0, -5.5]
    result = _run(module, "simpo_loss", _certain(PAIRS), beta=2.0, margin=1.0)
    close(result["loss"], sum(_softplus(1 - lead) for lead in leads) / 3)
    close(result["reward_margin"], sum(leads) / 3)
    close(result["accuracy"], 1 / 3)
    # Label .9: the other way round the other side is to lead by the margin.
    result = _run(module, "simpo_loss", [(*PAIRS[1][:6], 0.9, 1.0)], beta=2.0, margin=1.0)
    close(result["loss"], 0.9 * math.log(2) + 0.1 * _softplus(2))


def check_orpo(module: ModuleType) -> None:
    # Per token p = 3/4 and 1/2: log odds ln 3 and 0, sigmoid(ln 3) = 3/4; -log(3/4) once as likelihood.
    pair = (2 * math.log(0.75), 3 * math.log(0.5), 0.0, 0.0, 2.0, 3.0, 1.0, 1.0)
    result = _run(module, "orpo_loss", [pair], odds_coef=0.2)
    close(result["loss"], -1.2 * math.log(0.75))
    close(result["chosen_reward"], 0.2 * math.log(3))
    close(result["rejected_reward"], 0.0)
    # Label .9: .9 of that, .1 of (-log 1/2 - .2 log 1/4).
    result = _run(module, "orpo_loss", [(*pair[:6], 0.9, 1.0)], odds_coef=0.2)
    close(result["loss"], -0.9 * 1.2 * math.log(0.75) + 0.1 * (math.log(2) + 0.4 * math.log(2)))


def check_at_random(module: ModuleType) -> None:
    generator = torch.Generator().manual_seed(17)
    logprobs = torch.rand(9, 4, generator=generator, dtype=torch.float64) * -9 - 0.1
    tokens = torch.randint(1, 8, (9, 2), generator=generator).double()
    others = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    pairs = [tuple(row) for row in torch.cat([logprobs, tokens, others], dim=1).tolist()]

    def noisy(labels: Callable[[Tensor, float], Tensor], noise: float) -> list[tuple[float, ...]]:
        return [
            (*pair[:6], float(labels(torch.tensor(pair[6], dtype=torch.float64), noise)), pair[7]) for pair in pairs
        ]

    def same(loss: str, expected: dict[str, float], of: list[tuple[float, ...]] = pairs, **settings: Any) -> None:
        actual = _run(module, loss, of, **settings)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            close(actual[name], value)

    for beta in (0.1, 1.0, 2.5):
        same("dpo_loss", preference.dpo(pairs, beta), beta=beta)
        same("hinge_loss", preference.hinge(pairs, beta, nll=0.3), beta=beta, nll_coef=0.3)
        same("simpo_loss", preference.simpo(pairs, beta, 0.6), beta=beta, margin=0.6)
        same("orpo_loss", preference.orpo(pairs, beta), odds_coef=beta)
        same("cpo_loss", preference.dpo(pairs, beta, nll=0.7, with_reference=False), beta=beta, nll_coef=0.7)
        for flag in (False, True):
            same("ipo_loss", preference.ipo(pairs, beta, per_token=flag), beta=beta, length_normalized=flag)
    per_token = preference.dpo(pairs, 2.0, per_token=True, nll=0.2)
    same("dpo_loss", per_token, beta=2.0, length_normalized=True, nll_coef=0.2)
    conservative = preference.dpo(pairs, 0.7, conservative=0.2)
    same("dpo_loss", conservative, noisy(module.conservative_labels, 0.2), beta=0.7)
    same("dpo_loss", preference.dpo(pairs, 0.7, robust=0.2), noisy(module.robust_labels, 0.2), beta=0.7)


def check_gradients(module: ModuleType) -> None:
    # At policy = reference d loss / d h = sigmoid(0) - p = -1/2 (dpo), 2 (0 - 1/(2 beta)) = -1/beta (ipo), -1 (hinge),
    # with h the lead of the chosen side: beta times the log-ratio (dpo, hinge), the log-ratio (ipo).
    for loss, slope in (("dpo_loss", 0.5 * 0.4), ("ipo_loss", 1 / 0.4), ("hinge_loss", 0.4)):
        values = torch.full((4, 2), -3.0, dtype=torch.float64, requires_grad=True)
        ones = torch.ones(2, dtype=torch.float64)
        pairs = module.Pairs(*values.unbind(), ones, ones, ones, ones)
        getattr(module, loss)(pairs, beta=0.4, denominator=2).loss.backward()
        assert values.grad is not None
        half = slope / 2
        close(values.grad, [[-half, -half], [half, half], [0.0, 0.0], [0.0, 0.0]])


def check_kto(module: ModuleType) -> None:
    # beta 1/2, z 1. Log-ratios 1 + 2 ln 3 (good), 1 - 2 ln 3 (bad, weight 2), 1 (label 3/4): sigmoids of ln 3, -ln 3, 0
    # are 3/4, 1/4, 1/2. Costs: lambda_D / 4, lambda_U / 4, (3 lambda_D + lambda_U) / 8; lambda 1 and 2.
    lead = 2 * math.log(3)
    own, ref = [lead - 4, 1 - lead - 6, -2.0], [-5.0, -6.0, -3.0]
    fields = torch.tensor([own, ref, [1.0, 0.0, 0.75], [1.0, 2.0, 1.0]], dtype=torch.float64).unbind()
    result = module.kto_loss(
        module.Labeled(*fields),
        beta=0.5,
        baseline=torch.tensor(1.0),
        good_weight=1.0,
        bad_weight=2.0,
        good_share=1.75 / 4,
        denominator=4.0,
    )
    close(result.loss, (1 / 4 + 2 * 2 / 4 + 5 / 8) / 4)
    close(result.metrics["accuracy"], (1 + 2 + 0.5) / 4)
    chosen, rejected = (0.5 * (1 + lead) + 0.75 * 0.5) / 1.75, (2 * 0.5 * (1 - lead) + 0.25 * 0.5) / 2.25
    close(result.metrics["chosen_reward"], chosen)
    close(result.metrics["rejected_reward"], rejected)
    close(result.metrics["reward_margin"], chosen - rejected)
    close(result.metrics["chosen_logprob"], (lead - 4 - 1.5) / 1.75)
    close(result.metrics["rejected_logprob"], (2 * (1 - lead - 6) - 0.5) / 2.25)


def check_kto_at_random(module: ModuleType) -> None:
    generator = torch.Generator().manual_seed(18)
    logprobs = torch.rand(9, 2, generator=generator, dtype=torch.float64) * -9
    others = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    rows = torch.cat([logprobs, others], dim=1)
    total = float(rows[:, 3].sum())
    for beta, z, good, bad in ((0.1, 0.0, 1.0, 1.0), (1.5, 0.7, 1.3, 0.8)):
        result = module.kto_loss(
            module.Labeled(*rows.unbind(1)),
            beta=beta,
            baseline=z,
            good_weight=good,
            bad_weight=bad,
            good_share=float((rows[:, 2] * rows[:, 3]).sum()) / total,
            denominator=total,
        )
        expected = preference.kto([tuple(row) for row in rows.tolist()], beta, z, good, bad)
        assert {"loss", *result.metrics} == expected.keys()
        for name, value in {"loss": result.loss, **result.metrics}.items():
            close(value, expected[name])


def check_kto_gradient(module: ModuleType) -> None:
    # At l = z the sigmoid's slope is 1/4: d / d l is -beta/4 for good, +beta/4 for bad completions; none into reference
    # and baseline.
    values = torch.full((2, 2), -3.0, dtype=torch.float64, requires_grad=True)
    baseline = torch.zeros((), dtype=torch.float64, requires_grad=True)
    labels, ones = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    result = module.kto_loss(
        module.Labeled(*values.unbind(), labels, ones),
        beta=0.4,
        baseline=baseline,
        good_weight=1.0,
        bad_weight=1.0,
        good_share=0.5,
        denominator=2,
    )
    close(result.loss, 0.5)
    result.loss.backward()
    assert values.grad is not None
    close(values.grad, [[-0.05, 0.05], [0.0, 0.0]])
    assert baseline.grad is None


def check_kto_baseline(module: ModuleType) -> None:
    own = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-3.0, -2.5], dtype=torch.float64)
    found = module.kto_baseline(own, ref)
    close(found, (2 + 0.5) / 2)
    assert not found.requires_grad
    close(module.kto_baseline(ref, own.detach()), 0.0)
