"""Settings of the losses that train a policy on preferences directly, and of the loops around them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harken.config.base import Config
from harken.config.sampler import OwnSamplerConfig, SamplerConfig
from harken.config.shared import (
    ChatConfig,
    ComputeConfig,
    Count,
    LoraConfig,
    OptimizerConfig,
    Positive,
    SamplingConfig,
    Tune,
)

NotNegative = Annotated[float, Field(ge=0)]
Noise = Annotated[float, Field(ge=0, lt=0.5)]


class DpoLossConfig(Config):
    """Direct preference optimization (arXiv:2305.18290)."""

    kind: Literal["dpo"] = "dpo"
    """Which loss."""
    beta: Positive = 0.1
    """Implicit reward of one nat: small values let the policy go far from the reference."""
    label_smoothing: Noise = 0.0
    """Share of labels taken to be wrong (conservative DPO): label p becomes (1 - e) p + e (1 - p)."""
    length_normalized: bool = False
    """Take rewards per token (arXiv:2411.15124, with beta 5)."""
    nll_coef: NotNegative = 0.0
    """Weight of the chosen side's negative log-likelihood per token, which keeps its likelihood from falling."""
    reference_free: bool = False
    """Compare with a reference that finds all completions equally likely; none is computed."""


class RobustDpoLossConfig(Config):
    """DPO whose expected loss is that of clean labels where a share of them was flipped (arXiv:2403.00409)."""

    kind: Literal["robust"] = "robust"
    """Which loss."""
    beta: Positive = 0.1
    """As for `dpo`."""
    label_noise: Noise = 0.1
    """Share of labels that were flipped."""


class IpoLossConfig(Config):
    """Identity preference optimization (arXiv:2310.12036): margins have a target, so certain labels stop pushing."""

    kind: Literal["ipo"] = "ipo"
    """Which loss."""
    beta: Positive = 0.1
    """The paper's tau: chosen is to lead by 1 / (2 beta) nats more than under the reference."""
    length_normalized: bool = False
    """Take the lead per token, as TRL does; the paper takes whole completions."""
    reference_free: bool = False
    """As for `dpo`."""


class HingeLossConfig(Config):
    """Hinge loss on the lead (SLiC, arXiv:2305.10425; with the reference, arXiv:2309.06657)."""

    kind: Literal["hinge"] = "hinge"
    """Which loss."""
    beta: Positive = 0.1
    """Chosen is to lead by 1 / beta nats."""
    nll_coef: NotNegative = 0.0
    """As for `dpo`; SLiC has it."""
    reference_free: bool = False
    """As for `dpo`; SLiC has no reference."""


class OrpoLossConfig(Config):
    """Likelihood of the chosen side plus its odds over the rejected one; no reference (arXiv:2403.07691)."""

    kind: Literal["orpo"] = "orpo"
    """Which loss."""
    odds_coef: Positive = 0.1
    """The paper's lambda: weight of the odds."""


class SimpoLossConfig(Config):
    """Rewards are log-probabilities per token; no reference (arXiv:2405.14734)."""

    kind: Literal["simpo"] = "simpo"
    """Which loss."""
    beta: Positive = 2.5
    """Reward of one nat a token."""
    margin: NotNegative = 1.375
    """The paper's gamma: the reward by which chosen is to lead; the authors take 0.55 beta."""


class CpoLossConfig(Config):
    """DPO without a reference, plus the chosen side's likelihood (arXiv:2401.08417)."""

    kind: Literal["cpo"] = "cpo"
    """Which loss."""
    beta: Positive = 0.1
    """Reward of one nat."""
    nll_coef: NotNegative = 1.0
    """Weight of the chosen side's negative log-likelihood per token."""


class KtoLossConfig(Config):
    """Kahneman-Tversky optimization (arXiv:2402.01306): completions that are good or bad each by itself."""

    kind: Literal["kto"] = "kto"
    """Which loss."""
    beta: Positive = 0.1
    """As for `dpo`."""
    good_weight: Positive = 1.0
    """Weight of good completions. The paper keeps (weight x number) of the good within 1 and 4/3 of the bad."""
    bad_weight: Positive = 1.0
    """Weight of bad completions."""


PreferenceLoss = Annotated[
    DpoLossConfig
    | RobustDpoLossConfig
    | IpoLossConfig
    | HingeLossConfig
    | OrpoLossConfig
    | SimpoLossConfig
    | CpoLossConfig
    | KtoLossConfig,
    Field(discriminator="kind"),
]


def needs_reference(loss: PreferenceLoss) -> bool:
    """Say whether a loss compares the policy with the model that it started from."""
    match loss:
        case OrpoLossConfig() | SimpoLossConfig() | CpoLossConfig():
            return False
        case RobustDpoLossConfig() | KtoLossConfig():
            return True
        case DpoLossConfig() | IpoLossConfig() | HingeLossConfig():
            return not loss.reference_free


class DpoConfig(Config):
    """`harken dpo`: train a policy on preference pairs, without a reward model."""

    epochs: Count = 1
    """Passes over the pairs."""
    max_pairs: Count | None = None
    """Use only this many training pairs (drawn by the seed)."""
    batch_size: Count = 32
    """Pairs (kto: completions) in one optimizer step."""
    max_length: Count = 512
    """Longest prompt plus completion, in tokens; longer ones are an error, never cut."""
    soft_labels: bool = True
    """Use the soft labels; off: every label of a pair is 1, and a single completion is good from 0.5 on."""
    loss: PreferenceLoss = DpoLossConfig()
    """Which loss, and its settings."""
    heldout_every: Count | None = None
    """Measure the loss on the held-out pairs every so many optimizer steps, and after the last one."""
    keep_best: bool = False
    """Give back the policy as it was when `heldout_every` measured the lowest loss, not as it is at the end."""
    save_every: Count = 1
    """Optimizer steps between checkpoints; a kill loses at most so many."""
    tune: Tune = LoraConfig()
    """Adapters or all weights."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    """Optimizer of the policy; all weights want a rate about 50 times lower than adapters."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides data order and adapter initialization."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.keep_best and self.heldout_every is None:
            raise ValueError("keep_best = true needs heldout_every: say how often the held-out loss is measured")
        if self.keep_best and self.optimizer.ema_decay is not None:
            raise ValueError("keep_best gives back one step's policy, optimizer.ema_decay an average; choose one")
        return self


class IpoConfig(DpoConfig):
    """`harken ipo`: `harken dpo` with another loss."""

    loss: PreferenceLoss = IpoLossConfig()
    """Which loss, and its settings."""


class OrpoConfig(DpoConfig):
    """`harken orpo`: `harken dpo` with another loss."""

    loss: PreferenceLoss = OrpoLossConfig()
    """Which loss, and its settings."""


class SimpoConfig(DpoConfig):
    """`harken simpo`: `harken dpo` with another loss."""

    loss: PreferenceLoss = SimpoLossConfig()
    """Which loss, and its settings."""


class CpoConfig(DpoConfig):
    """`harken cpo`: `harken dpo` with another loss."""

    loss: PreferenceLoss = CpoLossConfig()
    """Which loss, and its settings."""


class KtoConfig(DpoConfig):
    """`harken kto`: `harken dpo` with another loss, on pairs or on single completions with labels."""

    loss: PreferenceLoss = KtoLossConfig()
    """Which loss, and its settings."""


class OnlineDpoConfig(Config):
    """`harken online-dpo`: sample pairs from the policy, have them judged, learn from them, again and again."""

    steps: Count = 100
    """Iterations: sample, judge, learn."""
    prompts_per_step: Count = 32
    """Prompts of one iteration; each gives one pair."""
    completions_per_prompt: Annotated[int, Field(ge=2)] = 2
    """Completions of each prompt; the best and the worst of them are the pair."""
    epochs: Count = 1
    """Passes over an iteration's pairs."""
    minibatch_size: Count = 32
    """Pairs in one optimizer step."""
    soft_labels: bool = True
    """Label of a pair: sigmoid of the scores' difference over `score_scale`; the policy then has the same optimum as
    PPO with kl.coef = beta x score_scale. Off: 1, whatever the difference (1/2 where there is none)."""
    score_scale: Positive = 1.0
    """Difference of scores at which the better completion is preferred with 73 %."""
    reference_every: Count | None = None
    """Iterations after which the policy becomes the reference of the next ones (iterative DPO); none: never."""
    loss: PreferenceLoss = DpoLossConfig()
    """Which loss on pairs, and its settings."""
    sampling_batch_size: Count = 64
    """Completions drawn at the same time."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=48)
    """How completions are drawn."""
    sampler: SamplerConfig = OwnSamplerConfig()
    """Who draws them."""
    max_length: Count = 1024
    """Longest prompt plus completion, in tokens."""
    save_every: Count = 1
    """Iterations between checkpoints; a kill loses at most so many."""
    num_samples: Annotated[int, Field(ge=0)] = 4
    """Completions of each iteration kept in samples.jsonl."""
    tune: Tune = LoraConfig()
    """Adapters or all weights."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    """Optimizer of the policy."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides prompts, sampling and orders."""

    @model_validator(mode="after")
    def _pairs_and_reference(self) -> Self:
        if isinstance(self.loss, KtoLossConfig):
            raise ValueError("online-dpo learns from pairs; loss.kind = 'kto' is for `harken kto`")
        if self.reference_every is not None and not needs_reference(self.loss):
            raise ValueError(f"reference_every: the loss {self.loss.kind!r} as set has no reference; leave it out")
        return self
