"""Settings of the losses that train a policy on preference pairs directly."""

from typing import Annotated, Literal

from pydantic import Field

from harken.config.base import Config
from harken.config.shared import (
    ChatConfig,
    ComputeConfig,
    Count,
    LoraConfig,
    OptimizerConfig,
    Positive,
    Tune,
)


class DpoLossConfig(Config):
    """Direct preference optimization (arXiv:2305.18290)."""

    kind: Literal["dpo"] = "dpo"
    """Which loss."""
    beta: Positive = 0.1
    """Implicit reward of one nat: small values let the policy go far from the reference."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong (conservative DPO): label p becomes (1 - e) p + e (1 - p)."""


class DpoConfig(Config):
    """`harken dpo`: train a policy on preference pairs, without a reward model."""

    epochs: Count = 1
    """Passes over the pairs."""
    max_pairs: Count | None = None
    """Use only this many training pairs (drawn by the seed)."""
    batch_size: Count = 32
    """Pairs in one optimizer step."""
    max_length: Count = 512
    """Longest prompt plus completion, in tokens; longer ones are an error, never cut."""
    soft_labels: bool = True
    """Use the pairs' soft labels; off: every label is 1."""
    loss: DpoLossConfig = DpoLossConfig()
    """Which loss, and its settings."""
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
