"""Losses that train a policy on preferences directly, without a reward model.

All losses on pairs have one signature, `(pairs, <numbers>, denominator) -> LossOutput`. A pair with label p costs p
times what it costs if the chosen side is the better one, plus 1 - p times what it costs the other way round; so a pair
and its swap with label 1 - p are the same pair, for every loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harken.core.aggregate import LossOutput, check_above_zero, check_denominator, check_same_shape


class Pairs(NamedTuple):
    """P preference pairs as the losses see them.

    Attributes:
        chosen_logprobs: (P,) nats, sums over the completion's tokens under the policy, with gradient.
        rejected_logprobs: (P,), likewise.
        ref_chosen_logprobs: (P,) nats, the same under the reference; no gradient flows into it.
        ref_rejected_logprobs: (P,), likewise.
        chosen_lengths: (P,) float, tokens of each completion, at least 1.
        rejected_lengths: (P,), likewise.
        soft_labels: (P,), probability that the chosen completion is the better one.
        weights: (P,), at least zero.
    """

    chosen_logprobs: Tensor
    rejected_logprobs: Tensor
    ref_chosen_logprobs: Tensor
    ref_rejected_logprobs: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    soft_labels: Tensor
    weights: Tensor

    def without_reference(self) -> "Pairs":
        """Return the pairs with a reference that finds all completions equally likely."""
        zeros = torch.zeros_like(self.chosen_logprobs)
        return self._replace(ref_chosen_logprobs=zeros, ref_rejected_logprobs=zeros)


def conservative_labels(soft_labels: Tensor, noise: float) -> Tensor:
    """Labels that expect a share of the labels to be wrong: (1 - e) p + e (1 - p).

    Args:
        soft_labels: (P,), probabilities.
        noise: e, the share taken to be wrong, in [0, 0.5).

    Returns:
        (P,), between e and 1 - e.

    Source:
        E. Mitchell, A note on DPO with noisy preferences (2023); equal to label smoothing.
    """
    return (1.0 - _checked_noise(noise)) * soft_labels + noise * (1.0 - soft_labels)


def robust_labels(soft_labels: Tensor, noise: float) -> Tensor:
    """Labels that undo a share of wrong ones in expectation: (p - e) / (1 - 2 e).

    Robust DPO is ((1 - e) L(+) - e L(-)) / (1 - 2 e), which is the mixture of L(+) and L(-) with this label. It is the
    inverse of `conservative_labels`, and leaves [0, 1].

    Args:
        soft_labels: (P,), probabilities as they were collected.
        noise: e, the share that was flipped, in [0, 0.5).

    Returns:
        (P,), which averages over flips to the label before them.

    Source:
        arXiv:2403.00409.
    """
    return (soft_labels - _checked_noise(noise)) / (1.0 - 2.0 * noise)


def dpo_loss(
    pairs: Pairs, *, beta: float, denominator: float | Tensor, length_normalized: bool = False, nll_coef: float = 0.0
) -> LossOutput:
    """Direct preference optimization: with rewards beta * (log pi - log pi_ref), -log sigmoid(their difference).

    Args:
        pairs: conservative and robust DPO differ in their labels.
        beta: what a nat of leaving the reference is worth, above zero.
        denominator: sum of the weights in the whole batch of the optimizer step.
        length_normalized: divide each log-ratio by its completion's tokens first.
        nll_coef: weight of the preferred side's negative log-likelihood per token, at least zero.

    Returns:
        LossOutput with metrics ``accuracy`` (chosen has the higher reward; equal ones count one half),
        ``reward_margin`` (chosen minus rejected), ``chosen_reward``, ``rejected_reward``, ``chosen_logprob`` and
        ``rejected_logprob`` (of whole completions under the policy), all weighted means.

    Raises:
        ValueError: if shapes differ, beta or the denominator is not above zero, or nll_coef is below.

    Source:
        arXiv:2305.18290 eq. 7; per token: arXiv:2411.15124; with NLL: arXiv:2404.19733.
    """
    _check(pairs, denominator, beta=beta)
    chosen, rejected = _log_ratios(pairs, length_normalized=length_normalized)
    margins = beta * (chosen - rejected)
    per_pair = _mixed(pairs, -logsigmoid(margins), -logsigmoid(-margins)) + _nll(pairs, nll_coef)
    return _output(pairs, per_pair, beta * chosen, beta * rejected, denominator)


def ipo_loss(pairs: Pairs, *, beta: float, denominator: float | Tensor, length_normalized: bool = False) -> LossOutput:
    """Identity preference optimization: the squared distance of the log-ratios' difference from 1 / (2 beta).

    Args:
        pairs: as in `dpo_loss`.
        beta: the paper's tau: the difference is drawn to 1 / (2 beta) nats, above zero.
        denominator: sum of the weights in the whole batch of the optimizer step.
        length_normalized: per token, as the authors of the paper confirmed to TRL; else of whole completions, as the
            paper writes it.

    Returns:
        LossOutput with the metrics of `dpo_loss`; rewards are beta times the log-ratios.

    Raises:
        ValueError: as in `dpo_loss`.

    Source:
        arXiv:2310.12036 eq. 17.
    """
    _check(pairs, denominator, beta=beta)
    chosen, rejected = _log_ratios(pairs, length_normalized=length_normalized)
    lead, target = chosen - rejected, 1.0 / (2.0 * beta)
    per_pair = _mixed(pairs, (lead - target).square(), (lead + target).square())
    return _output(pairs, per_pair, beta * chosen, beta * rejected, denominator)


def hinge_loss(pairs: Pairs, *, beta: float, denominator: float | Tensor, nll_coef: float = 0.0) -> LossOutput:
    """Sequence likelihood calibration: max(0, 1 - difference of the rewards of `dpo_loss`).

    Args:
        pairs: `without_reference` it is the paper's loss with margin 1 / beta.
        beta: above zero.
        denominator: sum of the weights in the whole batch of the optimizer step.
        nll_coef: weight of the preferred side's negative log-likelihood per token, at least zero.

    Returns:
        LossOutput with the metrics of `dpo_loss`.

    Raises:
        ValueError: as in `dpo_loss`.

    Source:
        arXiv:2305.10425; with a reference: arXiv:2309.06657.
    """
    _check(pairs, denominator, beta=beta)
    chosen, rejected = _log_ratios(pairs, length_normalized=False)
    lead = beta * (chosen - rejected)
    per_pair = _mixed(pairs, (1.0 - lead).clamp(min=0.0), (1.0 + lead).clamp(min=0.0)) + _nll(pairs, nll_coef)
    return _output(pairs, per_pair, beta * chosen, beta * rejected, denominator)


def cpo_loss(pairs: Pairs, *, beta: float, denominator: float | Tensor, nll_coef: float = 1.0) -> LossOutput:
    """Contrastive preference optimization: DPO without a reference, plus the preferred side's likelihood.

    Args:
        pairs: the reference is not read.
        beta: above zero.
        denominator: sum of the weights in the whole batch of the optimizer step.
        nll_coef: weight of the negative log-likelihood per token, at least zero.

    Returns:
        LossOutput with the metrics of `dpo_loss`; rewards are beta * log pi.

    Raises:
        ValueError: as in `dpo_loss`.

    Source:
        arXiv:2401.08417 eq. 3 and 5. The likelihood is taken per token here, as in the authors' code.
    """
    return dpo_loss(pairs.without_reference(), beta=beta, nll_coef=nll_coef, denominator=denominator)


def simpo_loss(pairs: Pairs, *, beta: float, margin: float, denominator: float | Tensor) -> LossOutput:
    """Simple preference optimization: rewards beta * log pi per token; the chosen one is to lead by a margin.

    Args:
        pairs: the reference is not read.
        beta: above zero; 2 to 10, since rewards are per token.
        margin: gamma, in reward units, at least zero.
        denominator: sum of the weights in the whole batch of the optimizer step.

    Returns:
        LossOutput with the metrics of `dpo_loss`.

    Raises:
        ValueError: as in `dpo_loss`, or if the margin is below zero.

    Source:
        arXiv:2405.14734 eq. 6.
    """
    _check(pairs, denominator, beta=beta)
    if not margin >= 0:
        raise ValueError(f"margin is {margin}, expected zero or more")
    chosen, rejected = _log_ratios(pairs.without_reference(), length_normalized=True)
    lead = beta * (chosen - rejected)
    per_pair = _mixed(pairs, -logsigmoid(lead - margin), -logsigmoid(-lead - margin))
    return _output(pairs, per_pair, beta * chosen, beta * rejected, denominator)


def orpo_loss(pairs: Pairs, *, odds_coef: float, denominator: float | Tensor) -> LossOutput:
    """Odds ratio preference optimization: likelihood of the preferred side, plus a reward for its higher odds.

    With log p the mean log-probability of a token and odds p / (1 - p): -log p(chosen) - odds_coef * log sigmoid(log
    odds(chosen) - log odds(rejected)).

    Args:
        pairs: the reference is not read.
        odds_coef: the paper's lambda, above zero.
        denominator: sum of the weights in the whole batch of the optimizer step.

    Returns:
        LossOutput with the metrics of `dpo_loss`; rewards are odds_coef times the log odds.

    Raises:
        ValueError: as in `dpo_loss`, for odds_coef.

    Source:
        arXiv:2403.07691 eq. 4 to 7.
    """
    _check(pairs, denominator, odds_coef=odds_coef)
    chosen, rejected = (_log_odds(each) for each in _log_ratios(pairs.without_reference(), length_normalized=True))
    lead = chosen - rejected
    per_pair = odds_coef * _mixed(pairs, -logsigmoid(lead), -logsigmoid(-lead)) + _nll(pairs, 1.0)
    return _output(pairs, per_pair, odds_coef * chosen, odds_coef * rejected, denominator)


def _check(pairs: Pairs, denominator: float | Tensor, **above_zero: float) -> None:
    check_same_shape(pairs.chosen_logprobs, **pairs._asdict())
    check_above_zero(**above_zero)
    check_denominator(denominator)


def _checked_noise(noise: float) -> float:
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise is {noise}, expected at least 0 and less than 0.5")
    return noise


def _log_ratios(pairs: Pairs, *, length_normalized: bool) -> tuple[Tensor, Tensor]:
    """Log-ratios of policy to reference of the chosen and the rejected completions, (P,) each, whole or per token."""
    chosen = pairs.chosen_logprobs - pairs.ref_chosen_logprobs.detach()
    rejected = pairs.rejected_logprobs - pairs.ref_rejected_logprobs.detach()
    if not length_normalized:
        return chosen, rejected
    return chosen / pairs.chosen_lengths, rejected / pairs.rejected_lengths


def _mixed(pairs: Pairs, right: Tensor, wrong: Tensor) -> Tensor:
    """What each pair costs, (P,): `right` if the chosen side is the better one, `wrong` if it is not."""
    return pairs.soft_labels * right + (1.0 - pairs.soft_labels) * wrong


def _nll(pairs: Pairs, coef: float) -> Tensor | float:
    """Negative log-likelihood per token of the preferred side, (P,), times a coefficient."""
    if not coef >= 0:
        raise ValueError(f"nll_coef is {coef}, expected zero or more")
    if coef == 0:
        return 0.0
    chosen, rejected = _log_ratios(pairs.without_reference(), length_normalized=True)
    return coef * _mixed(pairs, -chosen, -rejected)


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p, below zero."""
    # At p = 1 the odds are infinite, and so would be the gradient.
    bounded = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return bounded - torch.log(-torch.expm1(bounded))


def _output(
    pairs: Pairs, per_pair: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor, denominator: float | Tensor
) -> LossOutput:
    """Weighted means of what each pair costs, (P,), and of the rewards of both sides, (P,)."""
    chosen, rejected = chosen_rewards.detach(), rejected_rewards.detach()
    lead = chosen - rejected
    numbers = {
        "accuracy": (lead > 0).to(lead.dtype) + 0.5 * (lead == 0).to(lead.dtype),
        "reward_margin": lead,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logprob": pairs.chosen_logprobs.detach(),
        "rejected_logprob": pairs.rejected_logprobs.detach(),
    }
    metrics = {name: (pairs.weights * value).sum() / denominator for name, value in numbers.items()}
    return LossOutput((pairs.weights * per_pair).sum() / denominator, metrics)
