"""Settings of PPO and its critic-free kin: one loop, in which advantage, loss and KL are chosen."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harken.config.base import Config
from harken.config.guard import GuardConfig
from harken.config.nlpo import MaskConfig
from harken.config.policy_loss import PolicyLoss, PpoLossConfig, ReinforceLossConfig
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


class KlConfig(Config):
    """How the cost of leaving the reference is estimated and where it is charged.

    Where it stands decides which estimator is right: in the reward k1, whose policy gradient is that of the KL; as a
    loss k2 or full (the gradient of KL(policy || reference)) or k3 (that of KL(reference || policy)).
    """

    estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """Of the KL of one token; full is exact, over the whole vocabulary, and reads the reference in every minibatch."""
    place: Literal["reward", "loss"] = "reward"
    """Charged with the reward of each token, so that it counts for the tokens before; or as a term of the loss."""
    budget: Positive | None = None
    """Stop training when the sequence KL of a rollout (nats) has reached this, before `steps` are done."""

    @model_validator(mode="after")
    def _right_place(self) -> Self:
        if self.place == "reward" and self.estimator != "k1":
            raise ValueError(
                f"{self.estimator} in the reward has not the gradient of a KL; use estimator = 'k1', or place = 'loss'"
            )
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError("k1 as a loss has a gradient of mean zero; use k2, k3 or full, or place = 'reward'")
        return self


class FixedKl(KlConfig):
    """The coefficient stays as it is."""

    kind: Literal["fixed"] = "fixed"
    """Which controller."""
    coef: Annotated[float, Field(ge=0)] = 0.05
    """Nats of KL cost this much score."""


class AdaptiveKl(KlConfig):
    """The coefficient moves until the sequence KL meets the target (arXiv:1909.08593, section 2.2)."""

    kind: Literal["adaptive"] = "adaptive"
    """Which controller."""
    coef: Positive = 0.15
    """Coefficient at the start."""
    target: Positive = 6.0
    """Sequence KL in nats."""
    horizon: Positive = 10_000.0
    """Episodes over which a clipped error of 0.2 changes the coefficient by a fifth."""
    bound: Annotated[float, Field(ge=1)] = 100.0
    """The coefficient stays within 1/bound and bound times of that at the start."""


Kl = Annotated[FixedKl | AdaptiveKl, Field(discriminator="kind")]


class ScoreConfig(Config):
    """What happens to a score before it becomes reward, and when scores are not believed."""

    clip: Positive = 10.0
    """Scores are clipped to plus and minus this."""
    stop_penalty: Literal["none", "replace", "subtract"] = "subtract"
    """For completions that did not stop: leave, replace the score, or subtract from it."""
    stop_value: float = 1.0
    """The score put in its place, or the amount subtracted."""
    min_length: Annotated[int, Field(ge=0)] = 0
    """Completions of fewer tokens get the stop penalty too (torchtune: 18), so that no token has to be forbidden."""
    overlong_buffer: Annotated[int, Field(ge=0)] = 0
    """Tokens before max_new_tokens over which a penalty grows linearly (arXiv:2503.14476: a fifth); 0 is off."""
    overlong_penalty: Positive = 1.0
    """That penalty at max_new_tokens."""
    whiten_rewards: bool = False
    """Scale the batch's rewards to unit spread, keeping their mean (OpenAI 2019)."""
    guard: GuardConfig = GuardConfig()
    """When a run is stopped because its scores can no longer be believed."""
    accept_chance: bool = False
    """Learn also from a reward model whose accuracy on held-out pairs may be that of a coin."""


class GaeConfig(Config):
    """Generalized advantage estimation with a critic (arXiv:1506.02438)."""

    kind: Literal["gae"] = "gae"
    """Which estimator."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """0 is one-step, 1 is Monte Carlo."""
    whiten: bool = True
    """Standardize the advantages over the whole rollout batch."""


class RlooConfig(Config):
    """Each completion's reward less the mean of the others of its prompt (arXiv:2402.14740)."""

    kind: Literal["rloo"] = "rloo"
    """Which estimator."""


class GroupConfig(Config):
    """Each completion's reward less its group's mean (GRPO, arXiv:2402.03300; Dr. GRPO, arXiv:2503.20783)."""

    kind: Literal["group"] = "group"
    """Which estimator."""
    divide_by_std: bool = True
    """Divide by the group's standard deviation; off is Dr. GRPO."""
    sampling_rounds: Count = 1
    """Draw up to so many batches of prompts to fill a step with groups whose rewards differ (DAPO,
    arXiv:2503.14476); 1 keeps all groups."""


class ReinforceConfig(Config):
    """Sums of the rewards to come, standardized over the whole batch (REINFORCE++, arXiv:2501.03262)."""

    kind: Literal["reinforce"] = "reinforce"
    """Which estimator."""
    gamma: Fraction = 1.0
    """Discount per token."""
    group_baseline: bool = False
    """First subtract the mean score of the prompt's completions."""


class RemaxConfig(Config):
    """Sums of the rewards to come less the score of the greedy completion (ReMax, arXiv:2310.10505)."""

    kind: Literal["remax"] = "remax"
    """Which estimator."""
    gamma: Fraction = 1.0
    """Discount per token."""


Advantage = Annotated[GaeConfig | RlooConfig | GroupConfig | ReinforceConfig | RemaxConfig, Field(discriminator="kind")]


class ValueConfig(Config):
    """The critic, and how it learns; of use with `advantage.kind = "gae"` only."""

    critic: Literal["own", "head"] = "head"
    """head: a linear head on the reference's states, fitted by least squares once an iteration: it needs no pass of its
    own and no training; own: a critic with adapters or weights of its own, as `tune`, trained by gradients."""
    fit_ridge: Positive = 3000.0
    """head: how many tokens weights of 0 are worth in the fit; more where returns are noisy."""
    fit_decay: Fraction = 0.8
    """head: share of its weight that an iteration's tokens keep in the next one's fit."""
    clip: Positive = 0.2
    """own: range around the old value inside which the value loss has a gradient; a large number is off."""
    huber_delta: Positive | None = None
    """own: error beyond which the loss grows linearly (ReaL: 10)."""
    normalize: bool = False
    """own: learn returns in units of their running mean and spread, the head rescaled so that values stay what they are
    (arXiv:1602.07714); for scores that are far from 0 or drift."""
    normalize_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """own: share of the running mean and spread that an iteration keeps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First iterations in which the critic learns and the policy does not."""

    @model_validator(mode="after")
    def _head_is_fitted(self) -> Self:
        of_own = ("clip", "huber_delta", "normalize", "normalize_decay")
        odd = [name for name in of_own if getattr(self, name) != type(self).model_fields[name].default]
        if self.critic == "head" and odd:
            raise ValueError(
                f"{', '.join(odd)}: of use with critic = 'own' only; critic = 'head' is fitted by least squares in any "
                "units; leave it out, or set critic = 'own'"
            )
        return self


class PtxConfig(Config):
    """Demonstrations that the policy goes on imitating, against forgetting (arXiv:2203.02155, PPO-ptx)."""

    data: str = ""
    """File of demonstrations, as of `harken sft`; empty is off."""
    coef: Annotated[float, Field(ge=0)] = 0.5
    """Weight of their loss."""
    relative: bool = True
    """The weight is the ratio of the two gradients' norms; off: it multiplies the mean loss per token (InstructGPT
    27.8)."""
    batch_size: Count = 16
    """Demonstrations in one optimizer step."""


class PpoConfig(Config):
    """`harken ppo` and its kin (`rloo`, `grpo`, ...), which are presets of these settings."""

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
    advantage: Advantage = GaeConfig()
    """How much better than expected a token was."""
    loss: PolicyLoss = PpoLossConfig()
    """What the policy minimizes."""
    value: ValueConfig = ValueConfig()
    """The critic, and how it learns."""
    ptx: PtxConfig = PtxConfig()
    """Demonstrations mixed into the policy's training."""
    mask: MaskConfig | None = None
    """NLPO's mask of unlikely tokens, as in `--set mask.top_p=0.9`; none: the policy may write any token."""
    max_length: Count = 1024
    """Longest prompt plus completion, in tokens."""
    save_every: Count = 1
    """Iterations between checkpoints; a kill loses at most so many."""
    num_samples: Annotated[int, Field(ge=0)] = 4
    """Completions of each iteration kept in samples.jsonl."""
    tune: Tune = LoraConfig(top_layers=0.5)
    """Adapters or all weights, for policy and critic. Adapters on the upper half of the layers cost about half."""
    policy_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, eps=1e-5)
    """Optimizer of the policy."""
    critic_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, eps=1e-5)
    """Optimizer of a critic of its own."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision, microbatches."""
    seed: int = 0
    """Decides prompts, sampling and orders."""

    @property
    def rollouts(self) -> int:
        """Completions of one iteration."""
        return self.prompts_per_step * self.completions_per_prompt

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of one iteration, where nothing stops it early."""
        return self.epochs * -(-self.rollouts // self.minibatch_size)

    @property
    def has_critic(self) -> bool:
        """Whether values are estimated."""
        return isinstance(self.advantage, GaeConfig)

    @property
    def has_head_critic(self) -> bool:
        """Whether the critic is a head that is fitted, with nothing of its own to train."""
        return self.has_critic and self.value.critic == "head"

    @property
    def needs_group(self) -> bool:
        """Whether completions are compared with others of their prompt."""
        wanted = self.advantage
        return isinstance(wanted, RlooConfig | GroupConfig) or (
            isinstance(wanted, ReinforceConfig) and wanted.group_baseline
        )

    @model_validator(mode="after")
    def _full_support(self) -> Self:
        if self.sampling.top_p < 1 or self.sampling.top_k > 0:
            raise ValueError(
                "PPO samples from the whole distribution: with top_p or top_k the log-probabilities it learns from "
                "would not be those it sampled with; set top_p = 1 and top_k = 0"
            )
        if self.mask is not None and not isinstance(self.sampler, OwnSamplerConfig):
            raise ValueError(
                f"sampler.kind = {self.sampler.kind!r} cannot draw from a masked policy: it takes only the policy's "
                "weights; set sampler.kind = 'own', or leave mask out"
            )
        return self

    @model_validator(mode="after")
    def _group_to_compare_with(self) -> Self:
        if self.needs_group and self.completions_per_prompt < 2:
            raise ValueError(
                f"advantage.kind = {self.advantage.kind!r} compares the completions of a prompt, found "
                "completions_per_prompt = 1; set it to at least 2"
            )
        return self

    @model_validator(mode="after")
    def _on_policy(self) -> Self:
        if isinstance(self.loss, ReinforceLossConfig) and self.updates_per_step > 1:
            raise ValueError(
                "loss.kind = 'reinforce' is right for completions of the policy as it is, found "
                f"{self.updates_per_step} optimizer steps an iteration; set epochs = 1 and minibatch_size to at least "
                f"{self.rollouts}, or loss.kind = 'ppo'"
            )
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        score = self.score
        if score.overlong_buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"score.overlong_buffer is {score.overlong_buffer}, expected at most sampling.max_new_tokens = "
                f"{self.sampling.max_new_tokens}"
            )
        if score.min_length and score.stop_penalty == "none":
            raise ValueError("score.min_length charges the stop penalty, found score.stop_penalty = 'none'; set one")
        return self

    @model_validator(mode="after")
    def _critic_settings_have_a_critic(self) -> Self:
        if self.value.warmup_steps and not self.has_critic:
            raise ValueError(
                f"value.warmup_steps is {self.value.warmup_steps}, but advantage.kind = {self.advantage.kind!r} has no "
                "critic; set it to 0"
            )
        if self.has_head_critic and self.critic_optimizer != type(self).model_fields["critic_optimizer"].default:
            raise ValueError(
                "critic_optimizer: of use with value.critic = 'own' only; value.critic = 'head' is fitted without one; "
                "leave it out, or set value.critic = 'own'"
            )
        return self
