"""Settings of PPO."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harken.config.base import Config
from harken.config.sampler import OwnSamplerConfig, SamplerConfig
from harken.config.shared import (
    ChatConfig,
    ComputeConfig,
    Count,
    Fraction,
    LoraConfig,
    OptimizerConfig,
    Positive,
    SamplingConfig,
    Tune,
)


class FixedKl(Config):
    """The coefficient stays as it is."""

    kind: Literal["fixed"] = "fixed"
    """Which controller."""
    coef: Annotated[float, Field(ge=0)] = 0.05
    """Nats of KL cost this much score."""


class AdaptiveKl(Config):
    """The coefficient moves until the sequence KL meets the target (arXiv:1909.08593, section 2.2)."""

    kind: Literal["adaptive"] = "adaptive"
    """Which controller."""
    coef: Positive = 0.15
    """Coefficient at the start; it stays within 1/100 and 100 times of this."""
    target: Positive = 6.0
    """Sequence KL in nats."""
    horizon: Positive = 10_000.0
    """Episodes over which a clipped error of 0.2 changes the coefficient by a fifth."""


Kl = Annotated[FixedKl | AdaptiveKl, Field(discriminator="kind")]


class ScoreConfig(Config):
    """What happens to a score before it becomes reward."""

    clip: Positive = 10.0
    """Scores are clipped to plus and minus this."""
    stop_penalty: Literal["none", "replace", "subtract"] = "subtract"
    """For completions that did not stop: leave, replace the score, or subtract from it."""
    stop_value: float = 1.0
    """The score put in its place, or the amount subtracted."""
    whiten_rewards: bool = False
    """Scale the batch's rewards to unit spread, keeping their mean (OpenAI 2019)."""


class PpoLossConfig(Config):
    """The clipped losses (arXiv:1707.06347) and the advantage estimator (arXiv:1506.02438)."""

    clip_low: Positive = 0.2
    """The ratio gains nothing below 1 - clip_low."""
    clip_high: Positive = 0.2
    """The ratio gains nothing above 1 + clip_high."""
    dual_clip: Positive | None = None
    """Bound of the loss for negative advantages, as a multiple of the advantage (arXiv:1912.09729)."""
    value_clip: Positive = 0.2
    """Range around the old value inside which the value loss has a gradient."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """0 is one-step, 1 is Monte Carlo."""
    whiten_advantages: bool = True
    """Standardize the advantages over the whole rollout batch."""


class PpoConfig(Config):
    """`harken ppo`: proximal policy optimization with a critic, KL in the reward."""

    steps: Count = 100
    """Iterations: sample, score, update."""
    prompts_per_step: Count = 64
    """Prompts in one rollout batch."""
    completions_per_prompt: Count = 1
    """Completions of each prompt; they share the prompt's prefill."""
    epochs: Count = 4
    """Passes over a rollout batch, each in a fresh order."""
    minibatch_size: Count = 32
    """Completions in one optimizer step."""
    approx_kl_limit: Positive | None = 0.1
    """Stop the epochs when the policy has moved this far (nats a token) from the one that sampled."""
    kl_budget: Positive | None = None
    """Stop training when the sequence KL of a rollout (nats) has reached this, before `steps` are done."""
    sampling_batch_size: Count = 64
    """Completions drawn at the same time."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=48)
    """How completions are drawn."""
    sampler: SamplerConfig = OwnSamplerConfig()
    """Who draws them."""
    kl: Kl = FixedKl()
    """What leaving the reference costs."""
    score: ScoreConfig = ScoreConfig()
    """What happens to a score before it becomes reward."""
    loss: PpoLossConfig = PpoLossConfig()
    """Losses and advantages."""
    max_length: Count = 1024
    """Longest prompt plus completion, in tokens."""
    save_every: Count = 1
    """Iterations between checkpoints; a kill loses at most so many."""
    num_samples: Annotated[int, Field(ge=0)] = 4
    """Completions of each iteration kept in samples.jsonl."""
    tune: Tune = LoraConfig()
    """Adapters or all weights, for policy and critic."""
    critic: Literal["own", "head"] = "own"
    """own: a critic with adapters or weights of its own, as `tune`; head: a linear head on the states of the reward
    model (or of the reference, where the reward is no model on the same base), which are read once for all epochs."""
    policy_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, eps=1e-5)
    """Optimizer of the policy."""
    critic_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, eps=1e-5)
    """Optimizer of the critic."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides prompts, sampling and orders."""

    @model_validator(mode="after")
    def _full_support(self) -> Self:
        if self.sampling.top_p < 1 or self.sampling.top_k > 0:
            raise ValueError(
                "PPO samples from the whole distribution: with top_p or top_k the log-probabilities it learns from "
                "would not be those it sampled with; set top_p = 1 and top_k = 0"
            )
        return self
