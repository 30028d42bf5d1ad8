"""Settings of the losses that a policy learns from advantages with."""

from typing import Annotated, Literal

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import Fraction, Positive


class PolicyLossConfig(Config):
    """What all policy losses share."""

    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: all tokens of a minibatch weigh the same; sequence_mean: all completions do; constant: as the tokens,
    but divided by max_new_tokens for each completion, whatever their lengths."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus, at the start."""
    entropy_target: Annotated[float, Field(ge=0)] | None = None
    """Entropy, nats a token, below which the weight rises and above which it falls (arXiv:2505.22312)."""
    entropy_change: Positive = 0.005
    """How far the weight moves an iteration; never below 0 or above 20 times this."""
    ratio_limit: Positive | None = None
    """End the update before a minibatch whose mean ratio is above this (ReaL: 5, old TRL: 10)."""


class PpoLossConfig(PolicyLossConfig):
    """The clipped ratio (arXiv:1707.06347)."""

    kind: Literal["ppo"] = "ppo"
    """Which loss."""
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The ratio gains nothing below 1 - clip_low."""
    clip_high: Positive = 0.2
    """The ratio gains nothing above 1 + clip_high (DAPO, arXiv:2503.14476: 0.28)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound of the loss for negative advantages, as a multiple of the advantage (arXiv:1912.09729)."""


class ReinforceLossConfig(PolicyLossConfig):
    """The policy gradient without a ratio: one optimizer step an iteration."""

    kind: Literal["reinforce"] = "reinforce"
    """Which loss."""


class GspoLossConfig(PolicyLossConfig):
    """One clipped ratio for each completion: the geometric mean of its tokens' (arXiv:2507.18071)."""

    kind: Literal["gspo"] = "gspo"
    """Which loss."""
    clip_low: Fraction = 3e-4
    """The completion's ratio gains nothing below 1 - clip_low."""
    clip_high: Positive = 4e-4
    """The completion's ratio gains nothing above 1 + clip_high."""


class CispoLossConfig(PolicyLossConfig):
    """REINFORCE weighted by the clipped ratio (arXiv:2506.13585)."""

    kind: Literal["cispo"] = "cispo"
    """Which loss."""
    clip_low: Fraction = 1.0
    """Weights are at least 1 - clip_low; 1 is no lower bound."""
    clip_high: Positive = 0.2
    """Weights are at most 1 + clip_high."""


PolicyLoss = Annotated[
    PpoLossConfig | ReinforceLossConfig | GspoLossConfig | CispoLossConfig, Field(discriminator="kind")
]
