"""One optimizer step on preferences: read log-probabilities, take the loss that the settings name, learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harken.config import (
    ComputeConfig,
    CpoLossConfig,
    DpoConfig,
    DpoLossConfig,
    HingeLossConfig,
    IpoLossConfig,
    KtoLossConfig,
    OnlineDpoConfig,
    OrpoLossConfig,
    PreferenceLoss,
    RobustDpoLossConfig,
    SimpoLossConfig,
)
from harken.core.aggregate import LossOutput
from harken.core.kto_loss import Labeled, kto_baseline, kto_loss
from harken.core.preference_loss import (
    Pairs,
    conservative_labels,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    orpo_loss,
    robust_labels,
    simpo_loss,
)
from harken.errors import SelfTestError
from harken.lm.batch import Tokens, shared_size
from harken.lm.forward import TOLERANCE, group_logprobs
from harken.lm.optim import Optimizer
from harken.lm.trunk import Trunk
from harken.policy.sft import ROLE
from harken.progress import QUIET, Reporter

Group = tuple[Tokens, ...]
"""Two completions of one prompt: chosen and rejected; or (kto) its own, and one that answers another prompt."""

CHECKED_GROUPS = 4
"""Groups read by the self-test of the start."""


@dataclass(frozen=True)
class Examples:
    """What is learned: P pairs, or (kto) P labeled completions, each with one that answers another prompt."""

    groups: list[Group]
    """P of them."""
    reference: Tensor
    """(P, 2) fp32, log-probabilities of both completions under the reference; zeros where the loss has none."""
    labels: Tensor
    """(P,), probability that chosen is the better one, or that the completion is good."""
    weights: Tensor
    """(P,)."""
    shared: bool
    """Whether a group is one row, its prompt computed once."""

    def select(self, rows: Sequence[int]) -> "Examples":
        """Return some of the examples."""
        index = list(rows)
        groups = [self.groups[row] for row in index]
        return Examples(groups, self.reference[index], self.labels[index], self.weights[index], self.shared)

    def double(self) -> "Examples":
        """Return the examples in fp64."""
        numbers = (self.reference.double(), self.labels.double(), self.weights.double())
        return Examples(self.groups, *numbers, self.shared)


@dataclass(frozen=True)
class Whole:
    """What the loss of a microbatch must know of the whole batch."""

    denominator: float
    """Sum of the weights."""
    good_share: float
    """Weighted mean of the labels."""
    baseline: Tensor
    """0-d, nats: what `kto_loss` measures completions against; 0 for pairs."""

    @classmethod
    def of(cls, examples: Examples, mismatched_logprobs: Tensor | None) -> "Whole":
        """Return the batch's totals.

        Args:
            examples: the whole batch.
            mismatched_logprobs: (P,), of the second completions under the policy; None for pairs.
        """
        total = float(examples.weights.sum())
        share = float((examples.weights * examples.labels).sum()) / total
        if mismatched_logprobs is None:
            return cls(total, share, torch.zeros(()))
        return cls(total, share, kto_baseline(mismatched_logprobs, examples.reference[:, 1]))


def train_step(
    trunk: Trunk, optimizer: Optimizer, examples: Examples, config: DpoConfig | OnlineDpoConfig
) -> dict[str, float]:
    """Take one optimizer step; the loss is the weighted mean over the batch.

    Args:
        trunk: holds the policy.
        optimizer: steps the policy.
        examples: the batch.
        config: loss and sizes.
    """
    groups, shared, compute = examples.groups, examples.shared, config.compute
    mismatched = None
    if isinstance(config.loss, KtoLossConfig):
        others = [group[1:] for group in groups]
        mismatched = all_logprobs(trunk, ROLE, others, compute, shared=False)[:, 0]
        groups, shared = [group[:1] for group in groups], False
    whole = Whole.of(examples, mismatched)
    sizes = row_sizes(groups, shared=shared)
    batches = trunk.microbatches(sizes, compute.microbatch_tokens)
    totals: dict[str, float] = {"loss": 0.0}
    for rows in batches:
        some = [groups[row] for row in rows]
        logprobs = group_logprobs(trunk, ROLE, some, shared=shared, chunk_tokens=compute.chunk_tokens)
        result = preference_loss(config.loss, logprobs, examples.select(rows), whole)
        torch.autograd.backward(result.loss)
        totals["loss"] += float(result.loss.detach())
        for name, value in result.metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    if mismatched is not None:
        totals["kl_baseline"] = float(whole.baseline)
    rate = optimizer.learning_rate()
    norm = optimizer.step()
    held = sizes if shared else [sum(tokens.size for tokens in group) for group in groups]
    computed = sum(len(batch) * max(sizes[row] for row in batch) for batch in batches)
    return {**totals, "grad_norm": norm, "lr": rate, "padding_waste": 1.0 - sum(held) / computed}


def preference_loss(settings: PreferenceLoss, logprobs: Tensor, examples: Examples, whole: Whole) -> LossOutput:
    """Return the loss that the settings name.

    Args:
        settings: which loss.
        logprobs: (P, 2) of the examples' completions under the policy; (P, 1) will do for kto.
        examples: P of them.
        whole: of the batch that they are a part of.
    """
    there, total = logprobs.device, whole.denominator
    reference, labels, weights = (value.to(there) for value in (examples.reference, examples.labels, examples.weights))
    if isinstance(settings, KtoLossConfig):
        return kto_loss(
            Labeled(logprobs[:, 0], reference[:, 0], labels, weights),
            beta=settings.beta,
            baseline=whole.baseline.to(there),
            good_weight=settings.good_weight,
            bad_weight=settings.bad_weight,
            good_share=whole.good_share,
            denominator=total,
        )
    lengths = torch.tensor([[len(tokens.completion) for tokens in group] for group in examples.groups]).to(logprobs)
    sides = [value[:, side] for value in (logprobs, reference, lengths) for side in (0, 1)]
    pairs = Pairs(sides[0], sides[1], sides[2], sides[3], sides[4], sides[5], labels, weights)
    match settings:
        case DpoLossConfig():
            pairs = pairs._replace(soft_labels=conservative_labels(labels, settings.label_smoothing))
            return dpo_loss(
                pairs.without_reference() if settings.reference_free else pairs,
                beta=settings.beta,
                length_normalized=settings.length_normalized,
                nll_coef=settings.nll_coef,
                denominator=total,
            )
        case RobustDpoLossConfig():
            pairs = pairs._replace(soft_labels=robust_labels(labels, settings.label_noise))
            return dpo_loss(pairs, beta=settings.beta, denominator=total)
        case IpoLossConfig():
            pairs = pairs.without_reference() if settings.reference_free else pairs
            normalized = settings.length_normalized
            return ipo_loss(pairs, beta=settings.beta, length_normalized=normalized, denominator=total)
        case HingeLossConfig():
            pairs = pairs.without_reference() if settings.reference_free else pairs
            return hinge_loss(pairs, beta=settings.beta, nll_coef=settings.nll_coef, denominator=total)
        case OrpoLossConfig():
            return orpo_loss(pairs, odds_coef=settings.odds_coef, denominator=total)
        case SimpoLossConfig():
            return simpo_loss(pairs, beta=settings.beta, margin=settings.margin, denominator=total)
        case CpoLossConfig():
            return cpo_loss(pairs, beta=settings.beta, nll_coef=settings.nll_coef, denominator=total)


@torch.no_grad()
def measure(logprobs: Tensor, examples: Examples, settings: PreferenceLoss) -> dict[str, float]:
    """Return loss and metrics of examples, in fp64, without learning from them.

    Args:
        logprobs: (P, 2), of both completions of each group under the policy.
        examples: P of them.
        settings: which loss.
    """
    examples, logprobs = examples.double(), logprobs.double()
    whole = Whole.of(examples, logprobs[:, 1] if isinstance(settings, KtoLossConfig) else None)
    result = preference_loss(settings, logprobs, examples, whole)
    return {"loss": float(result.loss), **{name: float(value) for name, value in result.metrics.items()}}


@torch.no_grad()
def all_logprobs(
    trunk: Trunk,
    role: str | None,
    groups: Sequence[Group],
    compute: ComputeConfig,
    *,
    shared: bool,
    label: str = "reading",
    reporter: Reporter = QUIET,
) -> Tensor:
    """Return (P, K) fp32 on the CPU, summed log-probabilities of the K completions of each group under a role.

    A completion that stands in several groups is read once, each in a row of its own, where that is less to read.
    """
    alone, places = each_once(groups)
    if sum(row_sizes(alone, shared=False)) < sum(row_sizes(groups, shared=shared)):
        options: Any = {"shared": False, "label": label, "reporter": reporter}
        return all_logprobs(trunk, role, alone, compute, **options)[places, 0]
    # Nothing is kept for a backward pass, so four times as many tokens fit.
    batches = trunk.microbatches(row_sizes(groups, shared=shared), 4 * compute.microbatch_tokens)
    found = torch.zeros(len(groups), len(groups[0]) if groups else 2)
    for number in reporter.track(range(len(batches)), label, total=len(batches)):
        rows = batches[number]
        some = [groups[row] for row in rows]
        found[rows] = group_logprobs(trunk, role, some, shared=shared, chunk_tokens=compute.chunk_tokens).cpu()
    return found


def each_once(groups: Sequence[Group]) -> tuple[list[Group], Tensor]:
    """Return every completion, with its prompt, once and as a group of its own, and (P, K), where each now stands."""
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    found = [
        [places.setdefault((tuple(item.prompt), tuple(item.completion)), len(places)) for item in group]
        for group in groups
    ]
    return [(Tokens(list(prompt), list(completion)),) for prompt, completion in places], torch.tensor(found)


def row_sizes(groups: Sequence[Group], *, shared: bool) -> list[int]:
    """Return the computed positions of each group: one row, or as many as completions, as long as the longest."""
    if shared:
        return [shared_size(group) for group in groups]
    return [len(group) * max(tokens.size for tokens in group) for group in groups]


def check_start(trunk: Trunk, examples: Examples, compute: ComputeConfig) -> None:
    """Self-test before the first step: the policy is the reference.

    Raises:
        SelfTestError: the mean log-probability of a token differs by more than rounding.
    """
    some = examples.select(range(min(CHECKED_GROUPS, len(examples.groups))))
    logprobs = all_logprobs(trunk, ROLE, some.groups, compute, shared=some.shared)
    tokens = sum(len(item.completion) for group in some.groups for item in group)
    moved = float((logprobs - some.reference).abs().sum()) / tokens
    if not moved <= TOLERANCE[trunk.dtype]:
        raise SelfTestError(
            f"policy and reference differ by {moved:.2g} nats a token before any update, expected 0; the policy does "
            "not start as the reference, or dropout is on"
        )
